"""Oracles: scipy's trust-constr, and the first-order conditions of a convex problem, checked by a linear programme."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, linprog, minimize

from mixtures.bounds import Bounds
from mixtures.descent import Objective
from mixtures.laws import FAMILIES
from mixtures.mixture import Domains
from mixtures.optimum import Region
from mixtures.risk import Risk
from mixtures.simplex import Simplex
from pipelines.errors import DataError

NAMES = ("web", "code", "books", "math", "wiki")
DOMAINS = Domains.of({"web": 600, "code": 250, "books": 100, "math": 50, "wiki": 30})
PRIOR_D = np.array([600, 250, 100, 50, 30]) / 1030


@cache
def law_of(seed, metrics=2, runs=40):
    random = np.random.default_rng(seed)
    weights_PD = random.dirichlet(np.full(5, 0.7), runs)
    worth_DM = random.lognormal(-1, 1, (5, metrics))
    losses_PM = 2 + (0.1 + np.sqrt(weights_PD) @ worth_DM) ** -0.5
    return weights_PD, FAMILIES["concave"].fit(weights_PD, losses_PM.T, np.ones_like(losses_PM.T), 0.1)


def objective_of(seed, strength=0.0, risk=None):
    weights_PD, law = law_of(seed)
    return weights_PD, Objective(law, np.array([0.5, 0.5]), PRIOR_D, strength, risk)


def first_order_gap(objective, space, weights_D):
    """How much lower a linear programme over the feasible set gets: 0 at the optimum of a convex objective."""
    slope_D = objective.slope(weights_D)
    budgets = np.vstack([space.groups_GD, -space.groups_GD])
    limits = np.concatenate([space.group_upper_G, -space.group_lower_G])
    bounds = list(zip(space.lower_D, space.upper_D, strict=True))
    lowest = linprog(slope_D, A_ub=budgets if len(budgets) else None, b_ub=limits if len(budgets) else None,
                     A_eq=np.ones((1, 5)), b_eq=[1], bounds=bounds)  # fmt: skip
    return float(slope_D @ weights_D - lowest.fun)


@settings(max_examples=12)
@given(st.integers(0, 3), st.floats(1.5, 8), st.floats(0, 0.1), st.floats(0.3, 0.9), st.sampled_from([0.0, 0.02]))
def test_first_order_conditions_hold_under_boxes_and_groups(seed, cap, floor, most, strength):
    bounds = Bounds(tokens=1030, epoch_cap=cap, floor={"math": min(floor, 0.04 * cap)}, groups={"[wb]*": (0.1, most)})
    try:
        space = bounds.space(DOMAINS)
    except DataError:  # the draw allows no mixture
        return
    tried_PD, objective = objective_of(seed, strength)
    found_D = Region(space, tried_PD, "free").lowest(objective)
    assert space.contains(found_D[None], 1e-6)[0]
    assert first_order_gap(objective, space, np.maximum(found_D, 1e-7)) < 2e-5


def test_boxes_and_groups_agree_with_trust_constr():
    space = Bounds(tokens=1030, epoch_cap=3, groups={"[cm]*": (0.3, 0.35)}).space(DOMAINS)
    tried_PD, objective = objective_of(1, 0.01)
    found_D = Region(space, tried_PD, "free").lowest(objective)
    oracle = minimize(
        objective.value, space.project(PRIOR_D[None])[0], jac=objective.slope, method="trust-constr",
        bounds=list(zip(np.maximum(space.lower_D, 1e-7), space.upper_D, strict=True)),
        constraints=[LinearConstraint(np.ones((1, 5)), 1, 1), LinearConstraint(space.groups_GD, 0.3, 0.35)],
        options={"maxiter": 2000, "gtol": 1e-9, "xtol": 1e-12},
    )  # fmt: skip
    assert objective.value(found_D) == pytest.approx(oracle.fun, abs=1e-5)
    assert objective.value(found_D) <= oracle.fun + 1e-6
    assert found_D == pytest.approx(oracle.x, abs=5e-3)


@settings(max_examples=10)
@given(st.integers(0, 3), st.integers(3, 40))
def test_in_the_hull_no_vertex_is_favoured_and_nothing_lies_outside(seed, runs):
    tried_PD, objective = objective_of(seed)
    tried_PD = np.concatenate([PRIOR_D[None], tried_PD[:runs]])
    found_D = Region(Simplex.of(DOMAINS), tried_PD, "hull").lowest(objective)
    slope_D = objective.slope(found_D)
    assert slope_D @ found_D - (tried_PD @ slope_D).min() < 2e-5
    share = linprog(np.zeros(len(tried_PD)), A_eq=np.vstack([tried_PD.T, np.ones(len(tried_PD))]),
                    b_eq=np.append(found_D, 1), options={"primal_feasibility_tolerance": 1e-7})  # fmt: skip
    assert share.status == 0


def test_the_hull_of_all_corners_is_the_simplex():
    _, objective = objective_of(3)
    corners = Region(Simplex.of(DOMAINS), np.eye(5), "hull").lowest(objective)
    everywhere = Region(Simplex.of(DOMAINS), np.eye(5), "free").lowest(objective)
    assert objective.value(corners) == pytest.approx(objective.value(everywhere), abs=1e-6)


def test_a_strong_pull_ends_at_the_prior_and_its_slope_is_the_derivative():
    tried_PD, objective = objective_of(0, 50.0)
    found_D = Region(Simplex.of(DOMAINS), tried_PD, "free").lowest(objective)
    assert found_D == pytest.approx(PRIOR_D, abs=5e-3)
    step_D, at_D = np.array([1, -1, 0, 0, 0]) * 1e-6, tried_PD[0]
    assert objective.slope(at_D) @ step_D == pytest.approx(
        (objective.value(at_D + step_D) - objective.value(at_D - step_D)) / 2, rel=1e-4
    )


@pytest.mark.parametrize("kind", ["lcb", "cvar"])
def test_risk_has_the_slope_that_differences_give_and_the_value_of_its_definition(kind):
    tried_PD, _ = law_of(0)
    laws = tuple(law_of(seed, 2, 20)[1] for seed in range(20))
    half_M = np.array([0.5, 0.5])
    objective = Objective(laws[0], half_M, PRIOR_D, 0.0, Risk(kind, 0.9, laws, half_M))
    at_D, step_D = tried_PD[1], np.array([1, -1, 1, -1, 0]) * 1e-6
    difference = (objective.value(at_D + step_D) - objective.value(at_D - step_D)) / 2
    assert objective.slope(at_D) @ step_D == pytest.approx(difference, rel=1e-3)
    loss_R = np.sort([float((law.predict(at_D[None]) @ half_M)[0]) for law in laws])
    mean = float(objective.loss(at_D[None])[0])
    expected = loss_R[-2:].mean() if kind == "cvar" else mean + 1.2815516 * loss_R.std()
    assert objective.value(at_D) == pytest.approx(expected, abs=0.05 * loss_R.std())


def test_the_order_of_domains_changes_no_weight_by_more_than_rounding():
    tried_PD, objective = objective_of(2)
    found_D = Region(Simplex.of(DOMAINS), tried_PD, "free").lowest(objective)
    again_D = Region(Simplex.of(DOMAINS), tried_PD[::-1], "free").lowest(objective)
    assert np.array_equal(found_D, again_D)


def test_regmixs_draws_are_the_mean_of_the_best_128():
    tried_PD, objective = objective_of(4)
    found_D = Region(Simplex.of(DOMAINS), tried_PD, "draws").lowest(objective)
    best_D = Region(Simplex.of(DOMAINS), tried_PD, "free").lowest(objective)
    assert objective.value(best_D) < objective.value(found_D) < objective.value(PRIOR_D)
