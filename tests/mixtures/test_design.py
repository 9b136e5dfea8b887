import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixtures.design import DesignSettings, d_optimal, design_swarm, dirichlet, draw, i_optimal, kernel_of, quantised
from mixtures.mixture import Domains
from mixtures.simplex import Simplex
from mixtures.tables import Ratios
from pipelines.errors import DataError, RecipeError

DOMAINS = Domains.of({"web": 600, "code": 250, "books": 100, "math": 50})


@pytest.mark.parametrize("kind", ["d-optimal", "i-optimal", "regmix", "dirichlet"])
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


def test_regmixs_sampler_keeps_its_rules():
    swarm = design_swarm(DOMAINS, 200, DesignSettings(kind="regmix"))
    drawn_PD = swarm.weights_PD[1:]
    units_PD = drawn_PD / 2e-4
    assert units_PD == pytest.approx(np.round(units_PD), abs=1e-6)  # whole multiples of the least weight
    assert (drawn_PD <= 15 * np.array([0.6, 0.25, 0.1, 0.05]) + 2e-4).all()
    assert len(np.unique(drawn_PD, axis=0)) == 199
    assert (drawn_PD == 0).any()


def test_regmixs_strengths_are_fifteen_on_a_geometric_grid():
    prior_D = np.array([0.64, 0.36])
    drawn_PD = draw(np.random.default_rng(0), prior_D, DesignSettings(kind="regmix"), 60_000)
    mean = 0.8 / 1.4  # of the square roots 0.8 and 0.6
    strengths = np.geomspace(0.1, 5, 15)
    variance = float(np.mean(mean * (1 - mean) / (strengths + 1)))
    assert drawn_PD[:, 0].mean() == pytest.approx(mean, abs=0.01)
    assert drawn_PD[:, 0].var() == pytest.approx(variance, abs=0.003)


def test_quantising_drops_what_is_small_and_keeps_the_sum():
    found_PD = quantised(np.array([[0.5, 0.3, 0.19995, 0.00005], [1, 0, 0, 0]]), 0.1)
    assert found_PD.tolist() == [[0.5, 0.3, 0.2, 0.0], [1.0, 0.0, 0.0, 0.0]]
    assert quantised(np.array([[0.34, 0.33, 0.33]]), 0.25).tolist() == [[0.5, 0.25, 0.25]]


def test_a_choice_from_a_table_keeps_ids_begins_near_the_prior_and_ignores_the_order():
    drawn = design_swarm(DOMAINS, 60, DesignSettings(kind="regmix"))
    pool = Ratios(tuple(f"run{row}" for row in range(60)), drawn.domains, drawn.weights_PD)
    chosen = design_swarm(DOMAINS, 8, None, pool)
    known = dict(pool.rows())
    assert chosen.ids[0] == "run0"  # the prior itself
    assert len(set(chosen.ids)) == 8
    assert all(known[run] == weights for run, weights in chosen.rows())
    order = np.random.default_rng(0).permutation(60)
    turned = Ratios(tuple(pool.ids[row] for row in order), pool.domains, pool.weights_PD[order]).ordered(
        pool.domains[::-1]
    )
    assert design_swarm(DOMAINS, 8, None, turned).rows() == chosen.rows()


def test_a_choice_from_a_table_keeps_the_bounds_and_says_what_is_wrong():
    pool = design_swarm(DOMAINS, 60, DesignSettings(kind="regmix"))
    asked = DesignSettings(tokens=1000, epoch_cap=2.5, groups={"[bm]*": (0.0, 0.3)})
    chosen = design_swarm(DOMAINS, 2, asked, pool)
    assert asked.space(DOMAINS).contains(chosen.weights_PD, 2e-6).all()
    with pytest.raises(DataError, match="60 distinct mixtures were asked for, but only"):
        design_swarm(DOMAINS, 60, asked, pool)
    with pytest.raises(RecipeError, match="draws mixtures"):
        design_swarm(DOMAINS, 8, DesignSettings(kind="dirichlet"), pool)
    with pytest.raises(DataError, match="table of candidates"):
        design_swarm(Domains.of({"web": 1, "code": 1}), 2, None, pool)


def test_replicates_repeat_the_prior_and_the_mixture_nearest_to_a_vertex():
    swarm = design_swarm(DOMAINS, 6, DesignSettings(replicates=2))
    assert swarm.ids[:2] == ("prior", "mix-0001")
    assert swarm.ids[6:8] == ("prior-seed1", "prior-seed2")
    rows = dict(swarm.rows())
    assert rows["prior-seed1"] == rows["prior-seed2"] == rows["prior"]
    extreme = max((run for run in swarm.ids if "seed" not in run), key=lambda run: max(rows[run].values()))
    assert swarm.ids[8:] == (f"{extreme}-seed1", f"{extreme}-seed2")
    assert rows[f"{extreme}-seed1"] == rows[extreme]


def test_i_optimal_knows_the_reference_better_than_chance_and_than_d_optimal():
    random = np.random.default_rng(0)
    pool_PD = random.dirichlet(np.full(5, 0.5), 300)
    reference_FD = random.dirichlet(np.full(5, 8.0), 100)
    kernel = kernel_of(pool_PD)

    def doubt(rows):
        rows = np.asarray(rows)
        inner = kernel(pool_PD[rows], pool_PD[rows]) + 1e-2 * np.eye(len(rows))
        cross = kernel(reference_FD, pool_PD[rows])
        return float(np.mean(1 - np.einsum("fp,fp->f", cross @ np.linalg.inv(inner), cross)))

    chosen = i_optimal(pool_PD, 10, reference_FD)
    assert len(set(chosen)) == 10
    rivals = [np.r_[0, np.random.default_rng(seed).choice(np.arange(1, 300), 9, replace=False)] for seed in range(50)]
    assert doubt(chosen) < min(doubt(rows) for rows in rivals)
    assert doubt(chosen) < doubt(d_optimal(pool_PD, 10))
