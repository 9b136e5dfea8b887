import json

import numpy as np
import pytest

from mixtures.fitting import fit_laws
from mixtures.laws import FAMILIES, law_from_json
from mixtures.scores import spearman
from mixtures.stack import shares
from mixtures.tables import Metrics, Ratios
from mixtures.validation import FitSettings

RANDOM = np.random.default_rng(0)


def test_shares_are_positive_and_sum_to_one():
    measured = RANDOM.normal(size=(30, 2))
    members = measured + RANDOM.normal(size=(3, 30, 2))
    found = shares(members, measured)
    assert found.shape == (2, 3)
    assert (found >= 0).all()
    assert found.sum(axis=1) == pytest.approx(1)


def test_an_exact_member_takes_all_and_a_useless_one_nothing():
    measured = RANDOM.normal(size=(200, 1))
    exact, useless = measured + RANDOM.normal(0, 0.01, (200, 1)), RANDOM.normal(size=(200, 1))
    assert shares(np.stack([exact, useless]), measured)[0] == pytest.approx([1, 0], abs=0.01)


def test_equally_good_members_with_independent_errors_share_equally():
    measured = RANDOM.normal(size=(400, 1))
    members = measured + RANDOM.normal(0, 0.3, (2, 400, 1))
    assert shares(members, measured)[0] == pytest.approx([0.5, 0.5], abs=0.1)


def test_few_runs_hardly_move_the_first_claim():
    measured = RANDOM.normal(size=(5, 2))
    errors = RANDOM.normal(0, 0.3, (2, 5, 2))
    assert shares(measured + errors, measured).min() > 0.1


def test_a_metric_with_no_variation_gets_finite_shares():
    found = shares(np.full((2, 6, 1), 2.5), np.full((6, 1), 2.5))
    assert found[0] == pytest.approx([0.5, 0.5])


def swarm(runs, domains, truth, seed=0, noise=0.01, strength=1.0):
    random = np.random.default_rng(seed)
    weights_PD = random.dirichlet([strength] * domains, runs)
    values_PM = truth(weights_PD)
    values_PM = values_PM + noise * values_PM.std(axis=0) * random.normal(size=values_PM.shape)
    ids = tuple(f"r{number:03d}" for number in range(runs))
    ratios = Ratios(ids, tuple(f"d{number:02d}" for number in range(domains)), weights_PD)
    return ratios, Metrics(ids, tuple(f"m{number}" for number in range(values_PM.shape[1])), values_PM)


def exponential(weights_PD):
    slopes = np.random.default_rng(7).normal(0, 1.5, (weights_PD.shape[1], 3))
    return 2 + np.exp(0.5 - weights_PD @ slopes)


def effective(weights_PD):
    worth = np.random.default_rng(8).lognormal(-1, 1.0, (weights_PD.shape[1], 3))
    return 1.5 + (0.05 + weights_PD**0.6 @ worth) ** -0.7


def check(runs, domains, truth, least_rho, most_relative):
    settings = FitSettings()
    fit = fit_laws(*swarm(runs, domains, truth, noise=0.05), settings)
    fresh, exact = swarm(200, domains, truth, seed=99, noise=0.0)
    predicted = fit.predict(fresh).values_PM
    relative = np.sqrt(((predicted - exact.values_PM) ** 2).mean(axis=0)) / exact.values_PM.std(axis=0)
    ranks = [spearman(*pair) for pair in zip(predicted.T, exact.values_PM.T, strict=True)]
    assert np.mean(ranks) > least_rho
    assert relative.mean() < most_relative
    return fit


@pytest.mark.parametrize("truth", [exponential, effective])
@pytest.mark.parametrize(("runs", "domains", "rho", "relative"), [(20, 2, 0.98, 0.15), (22, 5, 0.94, 0.35)])
def test_small_tables_by_default(runs, domains, rho, relative, truth):
    check(runs, domains, truth, rho, relative)


@pytest.mark.slow
@pytest.mark.parametrize("truth", [exponential, effective])
@pytest.mark.parametrize(
    ("runs", "domains", "rho", "relative"), [(26, 7, 0.93, 0.40), (24, 12, 0.80, 0.70), (80, 40, 0.75, 0.75)]
)
def test_more_tables_by_default(runs, domains, rho, relative, truth):
    check(runs, domains, truth, rho, relative)


def test_the_stack_is_no_worse_than_its_members_and_is_read_back(tmp_path):
    fit = fit_laws(*swarm(40, 4, exponential, noise=0.05, seed=2), FitSettings(folds=5))
    relative = {each.law: each.relative for each in fit.scores}
    assert relative["stack"] <= 1.05 * min(relative.values())
    assert fit.chosen == "stack"
    fit.write(tmp_path)
    again = law_from_json(json.loads((tmp_path / "law.json").read_text())["law"])
    assert np.array_equal(again.predict(fit.ratios.weights_PD), fit.law.predict(fit.ratios.weights_PD))
    assert sum(fit.scores[-1].shares.values()) == pytest.approx(1, abs=1e-5)


def test_a_stack_with_trees_has_no_slope():
    weights_PD = RANDOM.dirichlet([1, 1, 1], 60)
    values = (weights_PD @ [1.0, 2.0, 3.0])[None]
    smooth = FAMILIES["stack"].fit(weights_PD, values, np.ones((1, 60)), 1.0)
    assert smooth.gradient(weights_PD[0]).shape == (1, 3)
    forest = FAMILIES["trees"].fit(weights_PD, values, np.ones((1, 60)), 0.0)
    mixed = type(smooth)((smooth.members[0], forest), (1.0, 0.0), np.array([[0.5, 0.5]]))
    assert mixed.gradient(weights_PD[0]) is None
