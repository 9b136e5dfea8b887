import numpy as np
import pytest

from mixtures.cost import cost_to_decision, flops_of
from mixtures.design import DesignSettings, design_swarm
from mixtures.fitting import fit_laws
from mixtures.mixture import Domains
from mixtures.scale import Scale
from mixtures.tables import Metrics
from mixtures.validation import FitSettings
from pipelines.errors import DataError

DOMAINS = Domains.of({"web": 600, "code": 250, "books": 100, "math": 50})


def fit_of(noise, runs=60):
    ratios = design_swarm(DOMAINS, runs, DesignSettings(kind="regmix"))
    worth_D = np.array([0.3, 0.1, 1.0, 0.4])
    random = np.random.default_rng(0)
    losses_P = 2 + (0.1 + np.sqrt(ratios.weights_PD) @ worth_D) ** -0.5 + random.normal(0, noise, runs)
    return fit_laws(ratios, Metrics(ratios.ids, ("loss",), losses_P[:, None]), FitSettings(laws=("exponential",)))


def test_flops_are_six_n_d():
    assert flops_of(Scale.parse("60M/1.2B")) == 6 * 60e6 * 1.2e9
    with pytest.raises(DataError, match="names no tokens"):
        flops_of(Scale.parse("60M"))


def test_a_clear_swarm_is_decided_early_and_a_noisy_one_late_or_never():
    clear, noisy = fit_of(0.001), fit_of(0.3)
    found = cost_to_decision(clear, np.ones(1), clear.ratios.weights_PD, 6e15, 1.5e20, eps=0.02)
    assert found.swarm_flops == 60 * 6e15
    assert found.share_of_final == pytest.approx(60 * 6e15 / 1.5e20)
    assert found.runs_to_decision is not None
    assert found.flops_to_decision == found.runs_to_decision * 6e15
    late = cost_to_decision(noisy, np.ones(1), noisy.ratios.weights_PD, 6e15, 1.5e20, eps=0.02)
    assert late.runs_to_decision is None or late.runs_to_decision > found.runs_to_decision
    assert [each.runs for each in found.prefixes] == sorted(each.runs for each in found.prefixes)
    assert found.prefixes[0].mean_regret >= found.prefixes[-1].mean_regret - 1e-9
    assert found.summary()["runs_to_decision"] == found.runs_to_decision


def test_everything_is_within_a_large_eps_and_the_seed_decides():
    fit = fit_of(0.01)
    found = cost_to_decision(fit, np.ones(1), fit.ratios.weights_PD, 1.0, eps=100.0, replays=5)
    assert found.runs_to_decision == 8
    assert found.share_of_final is None
    again = cost_to_decision(fit, np.ones(1), fit.ratios.weights_PD, 1.0, eps=100.0, replays=5)
    assert again == found
