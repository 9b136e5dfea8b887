from dataclasses import replace

import numpy as np
import pytest

from mixtures.descent import Objective
from mixtures.design import DesignSettings, design_swarm
from mixtures.fitting import fit_laws
from mixtures.guide import guides
from mixtures.mixture import Domains
from mixtures.optimum import Region
from mixtures.propose import ProposeSettings, propose
from mixtures.simplex import Simplex
from mixtures.stability import (
    STEADY,
    pairwise_distance,
    resamples_of,
    smallest_told,
    standings,
    steadied,
    weight_intervals,
)
from mixtures.stack import Stack
from mixtures.tables import Metrics, Ratios
from mixtures.validation import FitSettings

DOMAINS = Domains.of({"books": 100, "code": 250, "math": 50, "web": 600})
PRIOR_D = np.array([0.1, 0.25, 0.05, 0.6])
WORTH_D = np.array([1.0, 0.1, 0.4, 0.3])
PILE_CC = "metric/the_pile_pile_cc_val_loss"


def fit_of(laws, noise=0.02, runs=60):
    ratios = design_swarm(DOMAINS, runs, DesignSettings(kind="regmix"))
    random = np.random.default_rng(0)
    losses_P = 2 + (0.1 + np.sqrt(ratios.weights_PD) @ WORTH_D) ** -0.5 + random.normal(0, noise, runs)
    return fit_laws(ratios, Metrics(ratios.ids, ("loss",), losses_P[:, None]), FitSettings(laws=laws))


def searched(fit, pull=None, allowance=1.0, resamples=8):
    counts_RP = resamples_of(fit, resamples, 0)
    laws = fit.refit(counts_RP) if resamples else ()
    objective = Objective(fit.law, np.ones(1), PRIOR_D)
    region = Region(Simplex.of(DOMAINS), np.concatenate([PRIOR_D[None], fit.ratios.weights_PD]))
    return steadied(objective, region, guides(fit, laws, counts_RP, np.ones(1)), pull, allowance)


def test_the_mean_distance_of_pairs():
    assert pairwise_distance(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])) == pytest.approx((2 + 0 + 2) / 3)
    assert pairwise_distance(np.array([[1.0, 0.0]])) == 0


def test_each_resample_holds_as_many_runs_as_the_swarm():
    fit = fit_of(("exponential",))
    counts_RP = resamples_of(fit, 5, 1)
    assert (counts_RP.sum(axis=1) == 60).all()
    assert np.array_equal(counts_RP, resamples_of(fit, 5, 1))
    assert not np.array_equal(counts_RP, resamples_of(fit, 5, 2))


def test_an_optimum_that_is_stable_is_left_alone():
    found = searched(fit_of(("effective_data",), noise=0.0))
    assert found.stability.distance <= STEADY
    assert (found.stability.guide, found.stability.pull, found.stability.cost) == ("effective_data", 0, 0)


def test_an_optimum_that_wanders_is_steadied_within_the_allowance():
    fit = fit_of(("gaussian",), noise=0.05)
    found = searched(fit)
    assert found.stability.plain > STEADY
    assert found.stability.distance < found.stability.plain
    assert found.stability.pull > 0
    prior, ours = (float(fit.law.predict(row_D[None])[0, 0]) for row_D in (PRIOR_D, found.weights_D))
    assert found.stability.cost <= 0.15 * (prior - ours + found.stability.cost) + 1e-9
    plain = searched(fit, allowance=0.0)
    assert plain.stability.cost == pytest.approx(0, abs=1e-9)


def test_a_stack_may_be_searched_by_a_convex_member():
    fit, smooth = fit_of(("gaussian",)), fit_of(("effective_data",))
    law = Stack((fit.law, smooth.law), (fit.penalty, smooth.penalty), np.array([[0.5, 0.5]]))
    fit = replace(fit, law=law, chosen="stack", penalty=1.0)
    counts_RP = resamples_of(fit, 4, 0)
    found = list(guides(fit, fit.refit(counts_RP), counts_RP, np.ones(1)))
    assert [guide.name.partition(",")[0] for guide in found] == ["stack", *["effective_data"] * 3]
    better_D = WORTH_D / WORTH_D.sum()
    losses_P2 = [guide.law.predict(np.stack([PRIOR_D, better_D]))[:, 0] for guide in found]
    assert all(prior > better for prior, better in losses_P2)
    assert all(len(guide.laws) == 4 for guide in found)


def test_a_pull_that_is_given_is_used_and_no_other():
    found = searched(fit_of(("concave",)), pull=0.5)
    assert found.stability.pull == 0.5
    assert np.abs(found.weights_D - PRIOR_D).sum() < np.abs(searched(fit_of(("concave",))).weights_D - PRIOR_D).sum()


def test_without_resamples_there_is_only_the_optimum():
    found = searched(fit_of(("concave",)), resamples=0)
    assert found.stability.resamples == 0
    assert len(found.optima_RD) == 0


def test_standings_by_hand():
    class Fixed:
        """A law of one metric that knows two mixtures."""

        def __init__(self, first, second):
            self.loss = {1.0: first, 0.0: second}

        family = "fixed"

        def predict(self, weights_PD):
            return np.array([[self.loss[row_D[0]]] for row_D in weights_PD])

        def gradient(self, weights_D):
            return None

        def take(self, problems):
            return self

        def to_json(self):
            return {}

    laws = (Fixed(1.0, 2.0), Fixed(1.0, 0.5), Fixed(1.0, 3.0), Fixed(1.0, 4.0))
    objective = Objective(Fixed(1.0, 2.4), np.ones(1), np.array([0.5, 0.5]))
    candidates = {"first": np.array([1.0, 0.0]), "second": np.array([0.0, 1.0]), "again": np.array([1.0, 0.0])}
    told, drawn_NC = standings(objective, laws, np.array([1.0, 0.5, 1.0, 1.0]), candidates, np.zeros(3), 0)
    assert [told[name].p_best for name in candidates] == [0.75, 0.25, 0]
    assert told["first"].expected_regret == pytest.approx(0.125)
    assert told["second"].predicted == 2.4
    gains_N = drawn_NC[:, 1] - drawn_NC[:, 0]
    assert gains_N.mean() == pytest.approx(np.mean([1, -0.5, 2, 3]))
    assert smallest_told(gains_N) == pytest.approx(2.8015852 * gains_N.std())


def test_intervals_hold_eighty_percent():
    optima_RD = np.stack([np.linspace(0, 1, 101), 1 - np.linspace(0, 1, 101)], axis=1)
    assert weight_intervals(("a", "b"), optima_RD)["a"] == pytest.approx((0.1, 0.9))


@pytest.mark.slow
@pytest.mark.parametrize("target", [PILE_CC, "mean"])
def test_the_optimum_of_regmixs_swarm_is_stable_over_resamples(published, target):
    """512 runs of 1M parameters, all laws: mean L1 distance of the optima of two resamples at most 0.05."""
    folder = published / "regmix"
    ratios = Ratios.read_csv(folder / "train_mixture_1m.csv")
    metrics = Metrics.read_csv(folder / "train_pile_loss_1m.csv")
    metrics = metrics.select([PILE_CC]) if target == PILE_CC else metrics
    fit = fit_laws(ratios, metrics, FitSettings())
    held = zip(ratios.domains, ratios.weights_PD.mean(axis=0).tolist(), strict=True)
    domains = Domains.of({name: int(share * 250e9) for name, share in held})
    found = propose(fit, domains, ProposeSettings(target=target))
    print(f"\n{target}: {found.stability}")
    assert found.stability.distance <= 0.05
    assert found.basis == "law"
