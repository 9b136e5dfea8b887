import numpy as np
import pytest

from mixtures.fitting import fit_laws
from mixtures.ladder import fit_runs
from mixtures.ladder_files import load_ladder, report, write_ladder
from mixtures.mixture import Domains
from mixtures.noise import measure_noise
from mixtures.propose import ProposeSettings, propose
from mixtures.runs import Runs
from mixtures.tables import Metrics, Ratios
from mixtures.validation import FitSettings

QUICK = FitSettings(laws=("exponential", "ridge"))


def tables(rows, names=("loss",)):
    """Rows of (weights of x, values); equal weights are replicates."""
    ratios = Ratios.of({f"r{place:02d}": {"x": weight, "y": 1 - weight} for place, (weight, *_) in enumerate(rows)})
    return ratios, Metrics(ratios.ids, names, np.array([values for _, *values in rows], float))


def test_noise_is_pooled_over_repeated_mixtures():
    # variances 2 (one degree of freedom) and 1 (two): (2 + 2 x 1) / 3
    ratios, metrics = tables([(0.5, 1), (0.5, 3), (0.25, 5), (0.25, 6), (0.25, 7), (0.75, 10)])
    found = measure_noise(ratios, metrics)
    assert found.replicates == {"r00": 2, "r02": 3}
    assert found.seed_sd["loss"] == pytest.approx(np.sqrt(4 / 3))
    assert {run: sd["loss"] for run, sd in found.by_mixture.items()} == pytest.approx({"r00": np.sqrt(2), "r02": 1})
    assert found.snr["loss"] == pytest.approx(np.std([2, 6, 10], ddof=1) / np.sqrt(4 / 3))
    assert found.not_fitted == {}


def test_metrics_that_seeds_move_as_much_as_mixtures_are_refused():
    ratios, metrics = tables([(0.5, 1.0, 5.0), (0.5, 1.01, 5.4), (0.25, 2.0, 5.1), (0.75, 3.0, 5.3)], ("good", "noise"))
    found = measure_noise(ratios, metrics)
    assert list(found.not_fitted) == ["noise"]
    assert found.not_fitted["noise"]["reason"] == "signal-to-noise below 2"
    assert found.not_fitted["noise"]["snr"] == found.snr["noise"] < 2 < found.snr["good"]
    assert measure_noise(ratios, metrics, least_snr=0).not_fitted == {}


def test_without_replicates_nothing_is_known_and_nothing_refused():
    found = measure_noise(*tables([(0.5, 1), (0.25, 5), (0.75, 1)]))
    assert (found.replicates, found.snr, found.not_fitted) == ({}, {}, {})


def test_replicates_that_agree_exactly_are_no_division_by_zero():
    found = measure_noise(*tables([(0.5, 1), (0.5, 1), (0.75, 2)]))
    assert found.snr["loss"] > 1e6


def test_a_metric_at_chance_is_no_evidence():
    rows = [(0.1 * place, 0.75 + 0.01 * (-1) ** place, 0.60 + 0.01 * place) for place in range(8)]
    found = measure_noise(*tables(rows, ("mmlu_error", "arc_error")), chance={"*_error": 0.75})
    assert {name: why["reason"] for name, why in found.not_fitted.items()} == {
        "mmlu_error": "not better than chance, 0.75"
    }


def noisy(loss, seeds=3):
    random = np.random.default_rng(0)
    weights = [*np.linspace(0.05, 0.95, 12), *[0.5] * seeds]
    return tables([(weight, loss(weight), random.normal()) for weight in weights], ("loss", "noise"))


def test_a_noisy_metric_is_left_and_the_report_says_so(tmp_path):
    ratios, metrics = noisy(lambda weight: 2 + (weight - 0.7) ** 2)
    ladder = fit_runs([Runs.of(ratios, metrics)], QUICK)
    assert ladder.at().metrics.names == ("loss",)
    found = report(ladder)
    assert list(found["not_fitted"]) == ["noise"]
    assert found["replicates"] == {"r12": 3}
    assert found["snr"]["noise"] < 2
    assert found["learned"]
    write_ladder(ladder, tmp_path)
    assert (tmp_path / "metrics.csv").read_text().startswith("id,loss\n")


def test_when_all_is_noise_the_prior_is_proposed(tmp_path):
    ratios, metrics = noisy(lambda weight: 2 + (weight - 0.7) ** 2)
    ladder = fit_runs([Runs.of(ratios, metrics.select(["noise"]))], QUICK)
    assert report(ladder)["chosen"] == "constant"
    assert list(report(ladder)["not_fitted"]) == ["noise"]
    found = propose(ladder.at(), Domains.of({"x": 10, "y": 30}), ProposeSettings(resamples=4))
    assert found.basis == "prior"
    assert found.mixture.weights == {"x": 0.25, "y": 0.75}
    write_ladder(ladder, tmp_path)
    again = load_ladder(tmp_path).at().predict(ladder.at().ratios)
    assert np.array_equal(again.values_PM, ladder.at().predict(ladder.at().ratios).values_PM)


def test_a_single_scale_without_noise_is_the_fit_of_its_tables():
    ratios, metrics = noisy(lambda weight: 2 + (weight - 0.7) ** 2, seeds=1)
    ladder, fit = fit_runs([Runs.of(ratios, metrics)], QUICK), fit_laws(ratios, metrics, QUICK)
    assert np.array_equal(ladder.at().predict(ratios).values_PM, fit.predict(ratios).values_PM)
    assert report(ladder)["snr"].startswith("unknown")


def test_order_of_rows_and_columns_changes_nothing():
    ratios, metrics = noisy(lambda weight: weight)
    order = np.random.default_rng(1).permutation(len(ratios.ids))
    ids = tuple(ratios.ids[row] for row in order)
    turned = Ratios(ids, ratios.domains[::-1], ratios.weights_PD[order][:, ::-1])
    first = measure_noise(Runs.of(ratios, metrics).ratios, Runs.of(ratios, metrics).metrics)
    second = measure_noise(Runs.of(turned, metrics).ratios, Runs.of(turned, metrics).metrics)
    assert first == second
