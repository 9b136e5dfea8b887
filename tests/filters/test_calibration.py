import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.calibration import apply_map, auc_interval, calibrate, fit_map, reliability
from pipelines.errors import DataError


def test_area_under_curve_by_hand():
    assert auc_interval(np.array([True, True, False]), np.array([0.9, 0.5, 0.5]))[0] == 0.75
    assert np.isnan(auc_interval(np.array([True]), np.array([0.5]))).all()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=4, max_size=40))
def test_area_and_interval_against_sklearn(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    labels, scores = np.array([label for label, _ in pairs]), np.array([score for _, score in pairs], float)
    area, low, high = auc_interval(labels, scores)
    if labels.all() or not labels.any():
        assert np.isnan(area)
    else:
        assert area == pytest.approx(metrics.roc_auc_score(labels, scores))
        assert 0 <= low <= area <= high <= 1


def test_the_interval_covers_the_truth():
    """Normal scores one standard deviation apart have an area of 0.760; 95 of 100 intervals should hold it."""
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = np.arange(200) % 2 == 0
        _, low, high = auc_interval(labels, rng.normal(size=200) + labels)
        inside += low <= 0.7602 <= high
    assert 180 <= inside <= 198


def test_isotonic_against_sklearn():
    isotonic = pytest.importorskip("sklearn.isotonic")
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 30, 300) / 30
    labels = rng.random(300) < scores
    oracle = isotonic.IsotonicRegression(out_of_bounds="clip").fit(scores, labels)
    asked = np.linspace(-0.5, 1.5, 101)
    assert apply_map(fit_map(labels, scores, "isotonic"), asked) == pytest.approx(oracle.predict(asked))


def test_platt_finds_the_logistic_curve_that_made_the_labels():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=20_000) * 3 + 10
    labels = rng.random(20_000) < 1 / (1 + np.exp(-(0.8 * scores - 8)))
    found = fit_map(labels, scores, "platt")
    assert (found["slope"], found["offset"]) == (pytest.approx(0.8, rel=0.05), pytest.approx(-8, rel=0.05))
    separable = fit_map(np.array([False] * 20 + [True] * 20), np.arange(40.0), "platt")
    assert np.isfinite(separable["slope"])


def test_reliability_by_hand():
    found = reliability(np.array([True, False, True, True]), np.array([0.85, 0.85, 0.15, 1.0]))
    assert [(row["from"], row["documents"], row["observed"]) for row in found["table"]] == [
        (0.1, 1, 1.0), (0.8, 2, 0.5), (0.9, 1, 1.0)]  # fmt: skip
    assert found["expected_error"] == pytest.approx((2 * 0.35 + 0.85) / 4)


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_a_calibrated_score_means_what_it_says(method):
    rng = np.random.default_rng(0)
    scores = rng.random(4000)
    labels = rng.random(4000) < scores**2
    found = calibrate(labels, scores, rng.integers(0, 2**63, 4000).astype(np.uint64), method)
    assert found["reliability"]["expected_error"] < 0.05
    assert found["auc_lo95"] < found["auc"] < found["auc_hi95"]


def test_one_class_or_too_few_labels_are_refused():
    keys = np.arange(30).astype(np.uint64)
    with pytest.raises(DataError, match="only 0 bad labelled documents"):
        calibrate(np.ones(30, bool), np.arange(30.0), keys, "isotonic")
    with pytest.raises(DataError, match="only 3 good labelled documents"):
        calibrate(np.arange(30) < 3, np.arange(30.0), keys, "isotonic")
