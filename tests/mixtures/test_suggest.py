import json

import numpy as np
import pytest
from scipy.special import ndtr

from mixtures.design import DesignSettings, design_swarm
from mixtures.fitting import fit_laws
from mixtures.ladder import fit_runs
from mixtures.ladder_files import write_ladder
from mixtures.mixture import Domains
from mixtures.posterior import Posterior, Witness, run_noise
from mixtures.runs import Runs
from mixtures.suggest import SuggestSettings, suggest
from mixtures.tables import Metrics, Ratios
from mixtures.validation import FitSettings
from mixtures.verbs import mix_suggest
from pipelines.errors import DataError

DOMAINS = Domains.of({"web": 600, "code": 250, "books": 100, "math": 50})
WORTH = {"web": 0.3, "code": 0.1, "books": 1.0, "math": 0.4}
QUICK = FitSettings(laws=("exponential", "effective_data"), scale="1M/1B")
BOTH = ("1M/1B", "60M/1.2B")


def losses(ratios, noise):
    worth_D = np.array([WORTH[name] for name in ratios.domains])
    law_P = 2 + (0.1 + np.sqrt(ratios.weights_PD) @ worth_D) ** -0.5
    return Metrics(ratios.ids, ("loss",), (law_P + np.random.default_rng(0).normal(0, noise, len(law_P)))[:, None])


def fit_of(noise=0.05, runs=16, **design):
    ratios = design_swarm(DOMAINS, runs, DesignSettings(kind="regmix", **design))
    return fit_laws(ratios, losses(ratios, noise), QUICK)


@pytest.fixture(scope="module")
def fit():
    return fit_of()


def test_a_batch_is_diverse_allowed_and_within_the_budget(fit):
    asked = SuggestSettings(budget_flops=3e16, batch=8, scales=("1M/1B",), regret=0, tokens=1000, epoch_cap=4)
    found = suggest(fit, DOMAINS, asked)
    assert not found.stop
    assert found.flops == sum(run.flops for run in found.runs) <= 3e16
    assert len(found.runs) == 5  # of 6e15 each
    rows = Ratios.of({run.id: run.weights for run in found.runs}).ordered(DOMAINS.names).weights_PD
    assert asked.space(DOMAINS).contains(rows, 2e-6).all()
    apart = np.abs(rows[:, None] - rows[None]).sum(axis=2)[np.triu_indices(5, 1)]
    assert np.median(apart) > 0.1
    assert found.expected_after < found.expected_regret
    assert found.runs[0].id == "next-0017"


def test_a_larger_scale_is_bought_only_where_it_tells_more_per_flop(fit):
    rich = suggest(fit, DOMAINS, SuggestSettings(budget_flops=3e18, batch=4, scales=BOTH, regret=0))
    assert {run.scale for run in rich.runs} <= set(BOTH)
    assert len([run for run in rich.runs if run.scale == "60M/1.2B"]) >= 3  # small ones would leave the budget unspent
    poor = suggest(fit, DOMAINS, SuggestSettings(budget_flops=1e17, batch=4, scales=BOTH, regret=0))
    assert {run.scale for run in poor.runs} == {"1M/1B"}  # one of 60M costs 4.3e17
    same = suggest(fit, DOMAINS, SuggestSettings(batch=4, scales=("1M/1B", "1M/100B"), regret=0))
    assert {run.scale for run in same.runs} == {"1M/1B"}  # the same parameters for a hundredth of the price


def test_it_stops_where_choosing_now_costs_less_than_is_tolerated(fit):
    found = suggest(fit, DOMAINS, SuggestSettings(regret=10.0))
    assert found.stop
    assert found.runs == []
    assert "within the tolerance of 10" in found.reason
    sure = suggest(fit_of(noise=0.0001, runs=60), DOMAINS)
    assert sure.expected_regret < suggest(fit, DOMAINS).expected_regret


def test_what_cannot_be_bought_or_named_is_refused(fit):
    with pytest.raises(DataError, match=r"buys no run: the cheapest costs 6e\+15"):
        suggest(fit, DOMAINS, SuggestSettings(budget_flops=1e15, scales=BOTH, regret=0))
    with pytest.raises(DataError, match="names no tokens"):
        suggest(fit, DOMAINS, SuggestSettings(scales=("60M",), regret=0))
    with pytest.raises(DataError, match="missing 'web'"):
        suggest(fit, Domains.of({"code": 1, "books": 1, "math": 1}))
    outside = Ratios.of({"a": {"web": 0.0, "code": 0.0, "books": 0.0, "math": 1.0}})
    with pytest.raises(DataError, match="no candidate lies within the bounds"):
        suggest(fit, DOMAINS, SuggestSettings(tokens=1000, epoch_cap=2), outside)


def test_from_a_pool_only_what_was_not_run_is_suggested(fit):
    fresh = design_swarm(DOMAINS, 40, DesignSettings(kind="regmix", seed=5))
    rows_PD = np.concatenate([fit.ratios.ordered(fresh.domains).weights_PD, fresh.weights_PD[1:]])
    pool = Ratios(tuple(f"p{row}" for row in range(len(rows_PD))), fresh.domains, rows_PD)
    found = suggest(fit, DOMAINS, SuggestSettings(regret=0, batch=4), pool)
    known = {tuple(sorted(weights.items())) for _, weights in pool.rows()}
    tried = {tuple(sorted(weights.items())) for _, weights in fit.ratios.rows()}
    chosen = {tuple(sorted(run.weights.items())) for run in found.runs}
    assert len(chosen) == 4
    assert chosen <= known - tried


def test_the_order_of_the_domains_file_does_not_matter(fit):
    turned = Domains(domains=DOMAINS.domains[::-1])
    asked = SuggestSettings(regret=0, batch=2)
    assert suggest(fit, turned, asked) == suggest(fit, DOMAINS, asked)


def test_the_knowledge_gradient_of_two_mixtures_is_the_closed_form():
    """Expected gain of measuring one of two independent mixtures: s phi(d / s) - d Phi(-d / s)."""
    mean_X, deviation, noise = np.array([0.0, 0.3]), 0.5, 0.04
    covariance_XX = np.diag([1e-12, deviation**2])
    zero_XX = np.zeros((2, 2))
    belief = Posterior(mean_X, covariance_XX, zero_XX, zero_XX, noise, 2)
    moved = deviation**2 / np.sqrt(deviation**2 + noise)
    ratio = 0.3 / moved
    expected = moved * np.exp(-(ratio**2) / 2) / np.sqrt(2 * np.pi) - 0.3 * float(ndtr(-ratio))
    assert belief.gains(Witness())[1] == pytest.approx(expected, rel=0.03)
    assert belief.gains(Witness())[0] == pytest.approx(0, abs=1e-6)
    assert belief.after(1, Witness()).loss_XX[1, 1] == pytest.approx(deviation**2 * noise / (deviation**2 + noise))


def test_a_small_run_tells_nothing_of_what_changes_with_scale():
    zero_XX, drift_XX = np.zeros((2, 2)), np.eye(2)
    belief = Posterior(np.zeros(2), zero_XX, drift_XX, zero_XX, 0.01, 2)
    assert belief.gains(Witness(drift=0.0)).max() == pytest.approx(0, abs=1e-12)
    assert belief.gains(Witness(drift=1.0)).min() > 0.1
    assert belief.after(0, Witness(1.0)).expected_regret(0) < belief.expected_regret(0)
    assert belief.after(0, Witness(0.0)).expected_regret(0) == pytest.approx(belief.expected_regret(0))


def test_noise_is_read_off_replicates():
    assert run_noise(fit_of(), np.ones(1)) is None
    repeated = run_noise(fit_of(noise=0.05, runs=24, replicates=30), np.ones(1))
    assert repeated is not None
    assert np.sqrt(repeated) == pytest.approx(0.05, rel=0.3)


def test_the_verb_writes_what_a_trainer_reads_and_the_same_bytes_again(tmp_path):
    ratios = design_swarm(DOMAINS, 16, DesignSettings(kind="regmix"))
    write_ladder(fit_runs((Runs.of(ratios, losses(ratios, 0.05)),), QUICK), tmp_path / "fit")
    DOMAINS.write(tmp_path / "domains.yaml")
    for turn in ("one", "two"):
        asked = SuggestSettings(budget_flops=3e18, batch=3, scales=BOTH, regret=0)
        outcome = mix_suggest(tmp_path / "fit", tmp_path / "domains.yaml", tmp_path / turn, asked)
        assert outcome.metrics["stop"] is False
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["ratios.csv", "runs.csv", "suggest.json"]
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)
    rows = Ratios.read_csv(tmp_path / "one" / "ratios.csv")
    saved = json.loads((tmp_path / "one" / "suggest.json").read_text())
    assert [run["id"] for run in saved["runs"]] == list(rows.ids)


@pytest.mark.slow
def test_suggesting_finds_regmixs_best_run_several_times_sooner_than_chance(published):
    """Its 512 runs of 1M as a pool whose losses are looked up: runs until the best one found is within 0.01 nats."""
    ratios = Ratios.read_csv(published / "regmix" / "train_mixture_1m.csv")
    metrics = Metrics.read_csv(published / "regmix" / "train_pile_loss_1m.csv").ordered(ratios.ids)
    metrics = metrics.select(["metric/the_pile_pile_cc_val_loss"])
    truth_P, seeds = metrics.values_PM[:, 0], range(6)
    close, laws = truth_P.min() + 0.01, FitSettings(laws=("effective_data", "concave"))
    domains = Domains.of(dict.fromkeys(ratios.domains, 10**9))
    key = {tuple(np.round(row, 6)): place for place, row in enumerate(ratios.weights_PD)}

    def needed(seed):
        rows = list(np.random.default_rng(seed).permutation(512)[:16])
        while truth_P[rows].min() > close and len(rows) < 512:
            ids = tuple(ratios.ids[row] for row in rows)
            seen = Ratios(ids, ratios.domains, ratios.weights_PD[rows])
            fit = fit_laws(seen, Metrics(ids, metrics.names, metrics.values_PM[rows]), laws)
            batch = suggest(fit, domains, SuggestSettings(batch=4, regret=0, seed=seed), ratios).runs
            rows += [key[tuple(np.round([run.weights[name] for name in ratios.domains], 6))] for run in batch]
        return len(rows)

    def by_chance(seed):
        return int(np.argmax(truth_P[np.random.default_rng(seed).permutation(512)] <= close)) + 1

    ours, chance = np.array([needed(seed) for seed in seeds]), np.array([by_chance(seed) for seed in range(400)])
    print(f"\nruns until within 0.01: suggested {ours.mean():.0f} {sorted(ours)}, random {chance.mean():.0f}; "
          f"{chance.mean() / ours.mean():.1f} times fewer")  # fmt: skip
    assert chance.mean() / ours.mean() > 3
