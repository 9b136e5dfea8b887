"""Oracles: the multipliers of a convex problem, and proposing anew with more of what is short."""

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from mixtures.bounds import Bounds
from mixtures.descent import Objective
from mixtures.laws import FAMILIES
from mixtures.mixture import Domains
from mixtures.optimum import Region
from mixtures.prices import BILLION, cap_table, prices, told_caps

HELD = {"web": 600 * BILLION, "code": 250 * BILLION, "books": 100 * BILLION, "math": 50 * BILLION}
DOMAINS = Domains.of(HELD)
PRIOR_D = np.array([0.6, 0.25, 0.1, 0.05])
WORTH_D = np.array([0.3, 0.1, 1.0, 0.4])
BOUNDS = Bounds(tokens=1000 * BILLION, epoch_cap=2, floor={"code": 0.22}, groups={"[bm]*": (0.0, 0.25)})


@pytest.fixture(scope="module")
def objective():
    weights_PD = np.random.default_rng(0).dirichlet(np.full(4, 0.7), 60)
    losses_P = 2 + (0.1 + np.sqrt(weights_PD) @ WORTH_D) ** -0.5
    law = FAMILIES["concave"].fit(weights_PD, losses_P[None], np.ones((1, 60)), 0.001)
    return Objective(law, np.ones(1), PRIOR_D)


def priced(objective, bounds, domains=DOMAINS):
    region = Region(bounds.space(domains), PRIOR_D[None], "free")
    found_D = region.lowest(objective)
    per_weight_D = np.full(4, bounds.tokens / bounds.epoch_cap)
    return found_D, prices(objective, region, found_D, per_weight_D)


def test_only_bounds_that_hold_have_a_price(objective):
    _, found = priced(objective, BOUNDS)
    assert set(found.cap) == {"books"}
    assert set(found.floor) == {"code"}
    assert set(found.group) == {"group '[bm]*'"}
    assert max(found.cap["books"], found.floor["code"], found.group["group '[bm]*'"]) < 0


def test_prices_are_the_multipliers_of_the_first_order_conditions(objective):
    found_D, found = priced(objective, BOUNDS)
    slope_D = objective.slope(found_D)  # = level - cap of books + floor of code - group of books and math
    parts = np.array([[1, 1, 1, 1], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, -1, -1]], float).T
    solved = lsq_linear(parts, slope_D, bounds=([-np.inf, 0, 0, 0], np.inf))
    assert solved.cost < 1e-8
    _, cap, floor, group = solved.x
    assert found.cap["books"] == pytest.approx(-cap * 2 / 1000, rel=0.1)
    assert found.floor["code"] == pytest.approx(-floor * 0.01, rel=0.1)
    assert found.group["group '[bm]*'"] == pytest.approx(-group * 0.01, rel=0.1)


def test_one_more_billion_tokens_is_worth_its_price(objective):
    before_D, found = priced(objective, BOUNDS)
    after_D, _ = priced(objective, BOUNDS, Domains.of(HELD | {"books": 101 * BILLION}))
    gained = float(np.diff(objective.loss(np.stack([before_D, after_D])))[0])
    assert gained == pytest.approx(found.cap["books"], rel=0.05)


def test_the_table_of_caps_in_words(objective):
    region = Region(BOUNDS.space(DOMAINS), PRIOR_D[None], "free")
    plain = Bounds(tokens=1000 * BILLION)
    rows = cap_table(objective, objective, region, plain, DOMAINS, PRIOR_D, [1000 * BILLION, 2000 * BILLION])
    told = told_caps(rows)
    assert list(told)[:2] == ["1T tokens, no cap", "1T tokens, 4 epochs"]
    assert told["2T tokens, 1 epochs"] == {"infeasible": rows[-1].infeasible}
    assert "needs 1T more tokens" in str(rows[-1].infeasible)
    assert rows[3].largest["web"] == pytest.approx(0.6, abs=1e-6)  # one epoch of everything: proportional
    assert [row.more for row in rows[:4]] == sorted(row.more for row in rows[:4])
    assert rows[2].loss == pytest.approx(rows[4].loss, abs=1e-6)  # 2 epochs of T are 4 of 2T
