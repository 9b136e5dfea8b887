"""Timings of the mixture laws on a swarm of RegMix's size: 512 runs, 17 domains, 13 losses."""

import numpy as np
import pytest

from mixtures.design import DesignSettings, design_swarm
from mixtures.laws import FAMILIES
from mixtures.mixture import Domains

pytestmark = pytest.mark.bench

DOMAINS = Domains.of({f"d{number:02d}": 1000 + 300 * number for number in range(17)})


@pytest.fixture(scope="module")
def swarm():
    weights_PD = design_swarm(DOMAINS, 512, DesignSettings(kind="regmix")).weights_PD
    random = np.random.default_rng(0)
    worth_DM = random.lognormal(-1, 1, (17, 13))
    return weights_PD, (2 + (0.1 + np.sqrt(weights_PD) @ worth_DM) ** -0.5 + random.normal(0, 0.01, (512, 13))).T


@pytest.mark.parametrize("law", ["exponential", "ridge", "effective_data", "concave", "trees"])
def test_fit_thirteen_losses_along_all_penalties(benchmark, swarm, law):
    weights_PD, values_BP = swarm
    benchmark.pedantic(FAMILIES[law].fit_path, (weights_PD, values_BP, np.ones_like(values_BP)), rounds=1)


def test_design_64_of_1920(benchmark):
    benchmark.pedantic(design_swarm, (DOMAINS, 64), rounds=1)
