"""Timings of the mixture laws on a swarm of RegMix's size: 512 runs, 17 domains, 13 losses."""

import numpy as np
import pytest

from mixtures.design import DesignSettings, design_swarm
from mixtures.fitting import fit_laws
from mixtures.laws import FAMILIES
from mixtures.mixture import Domains
from mixtures.propose import propose
from mixtures.tables import Metrics
from mixtures.threads import single_threaded

pytestmark = pytest.mark.bench

DOMAINS = Domains.of({f"d{number:02d}": 1000 + 300 * number for number in range(17)})


@pytest.fixture(scope="module")
def swarm():
    ratios = design_swarm(DOMAINS, 512, DesignSettings(kind="regmix"))
    random = np.random.default_rng(0)
    worth_DM = random.lognormal(-1, 1, (17, 13))
    values_PM = 2 + (0.1 + np.sqrt(ratios.weights_PD) @ worth_DM) ** -0.5 + random.normal(0, 0.01, (512, 13))
    return ratios, Metrics(ratios.ids, tuple(f"m{number:02d}" for number in range(13)), values_PM)


@pytest.mark.parametrize("law", ["exponential", "ridge", "effective_data", "concave", "gaussian", "trees"])
def test_fit_thirteen_losses_along_all_penalties(benchmark, swarm, law):
    ratios, metrics = swarm
    values_BP = metrics.values_PM.T
    fit = single_threaded(FAMILIES[law].fit_path)
    benchmark.pedantic(fit, (ratios.weights_PD, values_BP, np.ones_like(values_BP)), rounds=1)


def test_fit_and_propose_by_default(benchmark, swarm):
    ratios, metrics = swarm
    benchmark.pedantic(lambda: propose(fit_laws(ratios, metrics), DOMAINS), rounds=1)


def test_design_64_of_1920(benchmark):
    benchmark.pedantic(design_swarm, (DOMAINS, 64), rounds=1)
