import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures.design import DesignSettings, d_optimal, design_swarm, dirichlet
from mixtures.mixture import Domains
from mixtures.simplex import Simplex
from pipelines.errors import DataError

DOMAINS = Domains.of({"web": 600, "code": 250, "books": 100, "math": 50})


@pytest.mark.parametrize("kind", ["d-optimal", "regmix", "dirichlet"])
def test_a_swarm_has_the_prior_first_and_distinct_rows_that_sum_to_one(kind):
    swarm = design_swarm(DOMAINS, 24, DesignSettings(kind=kind))
    assert swarm.rows()[0][1] == {"web": 0.6, "code": 0.25, "books": 0.1, "math": 0.05}
    assert len(np.unique(swarm.weights_PD, axis=0)) == 24
    assert (np.round(swarm.weights_PD * 1e6).sum(axis=1) == 1e6).all()
    assert (swarm.weights_PD <= 15 * swarm.weights_PD[0] + 1e-9).all()


def test_the_seed_decides():
    first, again, other = (design_swarm(DOMAINS, 8, DesignSettings(seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.weights_PD, again.weights_PD)
    assert not np.array_equal(first.weights_PD, other.weights_PD)


def test_the_order_of_domains_changes_columns_only():
    turned = Domains(domains=DOMAINS.domains[::-1])
    assert design_swarm(turned, 16).rows() == design_swarm(DOMAINS, 16).rows()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.floats(1.05, 6), st.sampled_from(["d-optimal", "regmix", "dirichlet"]))
def test_every_mixture_keeps_caps_and_floors(seed, cap, kind):
    asked = DesignSettings(kind=kind, seed=seed, tokens=1000, epoch_cap=cap, floor={"math": 0.02})
    space = Simplex.of(DOMAINS, 1000, cap, {"math": 0.02})
    assert space.contains(design_swarm(DOMAINS, 6, asked).weights_PD, 2e-6).all()


def test_more_mixtures_than_the_caps_allow_is_an_error():
    with pytest.raises(DataError, match="8 distinct mixtures were asked for, but only 1"):
        design_swarm(DOMAINS, 8, DesignSettings(tokens=1000, epoch_cap=1))


def test_dirichlet_mean_and_spread():
    drawn_PD = dirichlet(np.random.default_rng(0), np.tile([0.02, 0.5, 2.0], (40_000, 1)))
    total = 2.52
    share_D = np.array([0.02, 0.5, 2.0]) / total
    assert drawn_PD.mean(axis=0) == pytest.approx(share_D, abs=0.005)
    assert drawn_PD.var(axis=0) == pytest.approx(share_D * (1 - share_D) / (total + 1), abs=0.003)


def test_d_optimal_spreads_out_and_beats_chance():
    pool_PD = np.random.default_rng(0).dirichlet(np.full(5, 0.5), 400)
    roots_PD = np.sqrt(pool_PD)

    def volume(rows):
        gap = ((roots_PD[rows][:, None] - roots_PD[rows][None]) ** 2).sum(axis=-1)
        return np.linalg.slogdet(np.exp(-gap) + 1e-9 * np.eye(len(rows)))[1]

    chosen = d_optimal(pool_PD, 12)
    assert chosen[0] == 0
    assert len(set(chosen)) == 12
    rivals = [np.r_[0, np.random.default_rng(seed).choice(np.arange(1, 400), 11, replace=False)] for seed in range(50)]
    assert volume(chosen) > max(volume(rows) for rows in rivals)


def test_one_domain_is_its_own_prior():
    assert design_swarm(Domains.of({"web": 5}), 1).rows() == [("prior", {"web": 1.0})]
