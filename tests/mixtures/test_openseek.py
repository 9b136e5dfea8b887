"""The shipped recipes are what the published numbers give, byte for byte, and the numbers are the published ones."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from mixtures.bounds import Bounds
from mixtures.closed_forms import closed_form
from mixtures.fitting import fit_laws
from mixtures.mixture import Domains, Mixture
from mixtures.openseek import (
    AVERAGES,
    BASELINE,
    NO_SAMPLING,
    PHI4,
    PT_8T,
    RECIPES,
    TABLES,
    TASKS,
    V01,
    benchmark_rows,
    by_domain,
    by_path,
    corrected_averages,
    mixture_of,
    pt_8t,
    published_rows,
    runs_at,
    shipped,
    unique_tokens,
    write_tables,
)
from mixtures.propose import ProposeSettings, propose
from mixtures.tables import Metrics, Ratios
from mixtures.validation import FitSettings
from pipelines.errors import DataError
from pipelines.recipe import find_recipe


@pytest.mark.parametrize("file", shipped())
def test_a_shipped_recipe_is_what_is_computed(file):
    assert (RECIPES / file).read_text(encoding="utf-8") == shipped()[file]
    assert Mixture.read(find_recipe(file.removesuffix(".yaml"))).name == file.removesuffix(".yaml")


def test_the_shipped_tables_are_what_is_computed(tmp_path):
    write_tables(tmp_path)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == sorted({path.name for path in TABLES.iterdir()} - {"weights.csv", "benchmarks.csv"})
    for name in made:
        assert (tmp_path / name).read_bytes() == (TABLES / name).read_bytes(), name


@pytest.mark.parametrize(
    ("mixture", "rows", "paths", "total"),
    [(V01, 26, 26, 99.99), (NO_SAMPLING, 15, 38, 100.0), (PHI4, 38, 38, 99.96), (BASELINE, 84, 84, 100.0001)],
)
def test_rows_and_sums_as_published(mixture, rows, paths, total):
    assert len(published_rows(mixture)) == rows
    assert math.fsum(row.percent for row in published_rows(mixture)) == pytest.approx(total, abs=1e-9)
    assert len(by_path(mixture)) == paths
    assert math.fsum(by_path(mixture).values()) == pytest.approx(total, abs=1e-9)
    assert sum(round(weight * 10**6) for weight in mixture_of(mixture).weights.values()) == 10**6


def test_weights_by_domain_and_by_path_agree():
    for mixture in (V01, NO_SAMPLING, PHI4, BASELINE):
        sums, total = by_domain(mixture), math.fsum(by_domain(mixture).values())
        found = mixture_of(mixture).by_part()
        assert found == pytest.approx({name: percent / total for name, percent in sums.items()}, abs=4e-5)


def test_what_contradicts_what():
    phi4, natural, baseline = by_domain(PHI4), by_domain(NO_SAMPLING), by_domain(BASELINE)
    assert phi4["CC-EN"] == pytest.approx(64.19)  # the pie chart of the same mixture has 64.23
    reasoning = [name for name in phi4 if name.endswith("-Synth")] + ["Reasoning&Instruct"]
    assert [phi4[name] / natural[name] for name in reasoning] == pytest.approx([4.66] * 6, abs=0.07)
    assert phi4["CC-ZH"] / natural["CC-ZH"] == pytest.approx(0.47, abs=0.005)
    assert baseline["Arxiv-Synth"] == pytest.approx(47.17, abs=0.01)
    assert baseline["CC-EN"] == pytest.approx(11.53, abs=0.01)
    tokens = {row.name: row.percent / 100 * 103.05e9 for row in published_rows(BASELINE)}
    assert tokens["CC-EN/Nemotron-CC-high-actual-actual/high/part_142"] == pytest.approx(1_140_543_860, rel=1e-4)


def test_two_printed_averages_are_wrong():
    wrong = {
        (run, name)
        for run, row in benchmark_rows().items()
        for name, value in corrected_averages(row).items()
        if abs(row[f"pub_{name}"] - value) > 1.5e-4  # printed with four decimals
    }
    assert wrong == {("data_mix/Phi4-Sampling_16B_100B", "EN"), ("data_mix/Phi4-Sampling_16B_100B", "ZH")}
    phi4 = benchmark_rows()["data_mix/Phi4-Sampling_16B_100B"]
    assert phi4["pub_ZH"] == phi4["CMMLU"]  # copied from the task
    assert corrected_averages(phi4)["EN"] == pytest.approx(0.4135, abs=5e-5)
    assert len(AVERAGES["All"]) == 14


def test_the_same_run_is_published_under_two_names():
    rows = benchmark_rows()
    assert rows["data_mix/No-Sampling_16B_100B"] == rows["dataset_version/A3B-v1.0-baseline_100B"]


def test_experiments_are_tables_that_a_fit_reads():
    ratios, metrics = Ratios.read_csv(TABLES / "ratios_100B.csv"), Metrics.read_csv(TABLES / "metrics_100B.csv")
    assert set(ratios.ids) == set(metrics.ids) == {V01, NO_SAMPLING, PHI4}
    assert metrics.names == TASKS
    found = dict(zip(metrics.names, metrics.values_PM[metrics.ids.index(PHI4)], strict=True))
    assert found["GSM8K"] == pytest.approx(1 - 0.1039)  # laws take losses: an accuracy is an error rate
    assert len(runs_at("300B")[0].ids) == 2


def test_three_mixtures_teach_no_law_so_that_pt_8t_is_the_closed_form():
    with pytest.raises(DataError, match="law"):
        fit_laws(*runs_at("100B"))
    domains = Domains.read(TABLES / "domains.yaml")
    assert closed_form(domains, PT_8T).weights == pytest.approx(Mixture.read(find_recipe("openseek-pt-8t")).weights)
    assert list(pt_8t().epochs(domains).values()) == pytest.approx([0.8] * 15)
    assert unique_tokens().total == pytest.approx(10**13)


def test_it_is_what_is_proposed_where_nothing_was_learned():
    random, names = np.random.default_rng(0), unique_tokens().names
    weights_PD = random.dirichlet(np.ones(len(names)), 24)
    runs = [f"r{number}" for number in range(24)]
    ratios = Ratios(tuple(runs), names, weights_PD / weights_PD.sum(axis=1, keepdims=True))
    noise = Metrics.of({run: {"loss": 3 + float(random.normal(0, 0.01))} for run in runs})
    settings = ProposeSettings(tokens=PT_8T.tokens, epoch_cap=PT_8T.epoch_cap, resamples=0)
    proposal = propose(fit_laws(ratios, noise, FitSettings(laws=("ridge",))), unique_tokens(), settings)
    assert proposal.basis == "prior"
    assert proposal.mixture.weights == pt_8t().weights


def test_eight_trillion_tokens_of_the_phi4_mixture_stay_within_four_epochs_of_the_estimate():
    total = math.fsum(by_domain(PHI4).values())
    mixture = Mixture.rounded(
        "phi4", {name: value / total for name, value in by_domain(PHI4).items()}, tokens=8 * 10**12
    )
    epochs = mixture.epochs(unique_tokens())
    assert max(epochs, key=lambda name: epochs[name]) == "Arxiv-Synth"
    assert max(epochs.values()) == pytest.approx(3.77, abs=0.01)


def test_the_guide_has_the_numbers_that_are_computed():
    guide = (Path(__file__).parents[2] / "docs" / "openseek-mixtures.md").read_text(encoding="utf-8")
    old, natural, phi4, baseline = (by_domain(mixture) for mixture in (V01, NO_SAMPLING, PHI4, BASELINE))
    for name in natural:
        cells = (natural[name], phi4[name], phi4[name] / natural[name], baseline[name])
        first = f"{old[name]:.2f}" if name in old else "-"
        assert f"| {name} | {first} | {' | '.join(f'{cell:.2f}' for cell in cells)} |" in guide
    assert "0.4135 (printed 0.3992) | 0.2409 (printed 0.2538)" in guide
    domains, total = unique_tokens(), math.fsum(phi4.values())
    prior_1D = np.array([[phi4[name] / total for name in domains.names]])
    for cap in (4, 2, 1):
        space = Bounds(tokens=8 * 10**12, epoch_cap=cap).space(domains)
        shares = dict(zip(domains.names, space.project(prior_1D)[0].tolist(), strict=True))
        reasoning = sum(share for name, share in shares.items() if "Synth" in name or "Reasoning" in name)
        assert f"| {cap} | {reasoning:.2%} | {shares['CC-EN']:.2%} | {shares['CC-ZH']:.2%} |" in guide


def test_the_numbers_are_the_published_ones(published):
    files = {V01: ("openseek_mix_pt13T_v01.csv", "weight_percent"),
             PHI4: ("openseek_mix_small_v1_1330B_phi4.csv", "raw_weight"),
             BASELINE: ("openseek_mix_100B_baseline.csv", "raw_weight"),
             NO_SAMPLING: ("openseek_mix_domains.csv", "v1.0_no_sampling_pct")}  # fmt: skip
    for mixture, (file, column) in files.items():
        rows = list(csv.DictReader((published / file).open()))
        assert [row.domain for row in published_rows(mixture)] == [row["domain"] for row in rows]
        assert [row.percent for row in published_rows(mixture)] == [float(row[column]) for row in rows]
    rows = list(csv.DictReader((published / "openseek_benchmarks.csv").open()))
    for row in rows:
        ours = benchmark_rows()[f"{row['experiment']}/{row['variant']}"]
        assert ours == {name: float(row[name]) for name in ours}
        expected = [float(row[f"calc_{name}"]) for name in AVERAGES]
        assert np.allclose(list(corrected_averages(ours).values()), expected, atol=1e-4)
