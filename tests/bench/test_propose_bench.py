"""CPU time of fit and proposal on RegMix's swarm: 512 runs of 1M, 13 losses. The figure to keep is 30 s on one core."""

import time

import pytest

from mixtures.fitting import fit_laws
from mixtures.mixture import Domains
from mixtures.propose import ProposeSettings, propose
from mixtures.tables import Metrics, Ratios

pytestmark = pytest.mark.bench

PILE_CC = "metric/the_pile_pile_cc_val_loss"


@pytest.fixture(scope="module")
def swarm(published):
    ratios = Ratios.read_csv(published / "regmix" / "train_mixture_1m.csv")
    return ratios, Metrics.read_csv(published / "regmix" / "train_pile_loss_1m.csv")


@pytest.mark.parametrize("target", ["mean", PILE_CC])
def test_fit_and_propose(swarm, target):
    ratios, metrics = swarm
    began = time.process_time()
    fit = fit_laws(ratios, metrics)
    fitted = time.process_time()
    held = dict(zip(ratios.domains, ratios.weights_PD.mean(axis=0).tolist(), strict=True))
    domains = Domains.of({name: int(share * 250e9) for name, share in held.items()})
    found = propose(fit, domains, ProposeSettings(target=target, tokens=250 * 10**9, epoch_cap=4))
    ended = time.process_time()
    print(f"\n{target}: fit {fitted - began:.1f} s, propose {ended - fitted:.1f} s of CPU; {found.stability}")
