"""What mixture reuse saves: the regret of a new swarm over what changed against one over all domains.

The truth is the concave law of RegMix's 512 runs of 1M parameters (17 domains, 13 losses, their mean is the target), so
that every mixture has a known value; each simulated run has noise of 0.05 nats per loss. Two domains are new, and the
old mixture is the optimum without them. `pytest -m bench tests/bench/test_reuse_bench.py -s`
"""

import numpy as np
import pytest

from mixtures.design import DesignSettings, design_swarm
from mixtures.fitting import fit_laws
from mixtures.laws import FAMILIES
from mixtures.mixture import Domains, Mixture
from mixtures.propose import ProposeSettings, propose
from mixtures.reuse import Reuse
from mixtures.tables import Metrics, Ratios
from mixtures.validation import FitSettings

pytestmark = pytest.mark.bench

NOISE, SEEDS = 0.05, range(4)
LAWS, QUICK = FitSettings(laws=("concave",)), ProposeSettings(resamples=0, confidence=0)
CHANGES = {"wikipedia and github": ("wikipedia_en", "github"), "pile_cc": ("pile_cc",)}


class Truth:
    """The law of the published runs."""

    def __init__(self, folder):
        ratios = Ratios.read_csv(folder / "train_mixture_1m.csv")
        self.names = tuple(sorted(ratios.domains))
        weights_PD = ratios.ordered(self.names).weights_PD
        metrics = Metrics.read_csv(folder / "train_pile_loss_1m.csv").ordered(ratios.ids)
        family, values_BP = FAMILIES["concave"], metrics.values_PM.T
        self.law = family.fit(weights_PD, values_BP, np.ones_like(values_BP), family.penalties[-1])
        self.metrics = metrics.names
        prior_D = weights_PD.mean(axis=0)
        self.domains = Domains.of({n: int(1e12 * w) for n, w in zip(self.names, prior_D, strict=True)})
        self.best = self.value(self.optimum(self.names))

    def value(self, weights):
        """The mean loss of a mixture."""
        return float(self.law.predict(np.array([[weights.get(name, 0.0) for name in self.names]])).mean())

    def regret(self, weights):
        """Its distance to the best mixture of all domains."""
        return self.value(weights) - self.best

    def optimum(self, allowed):
        """The best mixture of some domains, by exponentiated gradient with halved steps."""
        free_D = np.array([name in allowed for name in self.names])
        found_D, step = free_D / free_D.sum(), 0.5
        value = self.law.predict(found_D[None]).mean()
        while step > 1e-9:
            slope_D = np.where(free_D, self.law.gradient(np.maximum(found_D, 1e-9)).mean(axis=0), np.inf)
            fall_D = np.where(free_D, (slope_D - slope_D.min()) / np.ptp(slope_D[free_D]), 0)
            trial_D = found_D * np.exp(-step * fall_D)
            trial_D /= trial_D.sum()
            trial = self.law.predict(trial_D[None]).mean()
            if trial < value:
                found_D, value, step = trial_D, trial, step * 1.1
            else:
                step /= 2
        return {name: float(w) for name, w in zip(self.names, found_D, strict=True) if name in allowed}

    def runs(self, ratios, seed):
        """Simulated losses."""
        exact_PM = self.law.predict(ratios.ordered(self.names).weights_PD)
        noise_PM = np.random.default_rng(seed).normal(0, NOISE, exact_PM.shape)
        return Metrics(ratios.ids, self.metrics, exact_PM + noise_PM)


@pytest.fixture(scope="module")
def truth(published):
    return Truth(published / "regmix")


def reused(truth, reuse, runs, seed):
    virtual = reuse.design(runs, DesignSettings(seed=seed))
    fit = fit_laws(virtual, truth.runs(reuse.expand(virtual), seed), LAWS)
    return truth.regret(reuse.propose(fit, QUICK)[0].weights)


def solved_anew(truth, runs, seed):
    swarm = design_swarm(truth.domains, runs, DesignSettings(seed=seed))
    return truth.regret(propose(fit_laws(swarm, truth.runs(swarm, seed), LAWS), truth.domains, QUICK).mixture.weights)


def test_regret_of_reuse_against_a_full_swarm(truth):
    anew = {runs: np.mean([solved_anew(truth, runs, seed) for seed in SEEDS]) for runs in (24, 32, 48, 64)}
    print("\nall 17 domains:", {runs: round(float(regret), 4) for runs, regret in anew.items()})
    for label, new in CHANGES.items():
        names = [name for name in truth.names if not name.endswith(new)]
        old = truth.optimum(names)
        reuse = Reuse.of(Mixture(name="old", weights={n: w / sum(old.values()) for n, w in old.items()}), truth.domains)
        found = {runs: np.mean([reused(truth, reuse, runs, seed) for seed in SEEDS]) for runs in (8, 12, 16, 24)}
        kept = truth.regret(reuse.carried)
        print(f"new: {label}; old mixture kept: {kept:.4f}; reuse:", {n: round(float(r), 4) for n, r in found.items()})
        assert found[16] < anew[32]
        assert found[16] < 0.25 * kept
