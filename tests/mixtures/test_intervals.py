import numpy as np
import pytest

from mixtures.intervals import Intervals, sound_runs


def uneven(runs, seed):
    """Residuals ten times as large where the first domain has all the weight."""
    random = np.random.default_rng(seed)
    weights_PD = random.dirichlet([0.7] * 3, runs)
    size_P = 0.01 * 10 ** np.sqrt(weights_PD[:, 0])
    return weights_PD, size_P[:, None] * random.normal(size=(runs, 2))


def test_coverage_is_nominal_and_the_width_follows_the_errors():
    weights_PD, residual_PM = uneven(400, 0)
    fresh_PD, fresh_PM = uneven(4000, 1)
    intervals = Intervals(weights_PD, residual_PM)
    large_P = fresh_PD[:, 0] > 0.6
    for level in (0.80, 0.95):
        hit_PM = np.abs(fresh_PM) <= intervals.half(fresh_PD, level)
        assert hit_PM.mean() == pytest.approx(level, abs=0.03)
        assert hit_PM[large_P].mean() == pytest.approx(level, abs=0.07)
        assert hit_PM[~large_P].mean() == pytest.approx(level, abs=0.07)
    half_P = intervals.half(np.array([[0.98, 0.01, 0.01], [0.01, 0.49, 0.5]]), 0.80)[:, 0]
    assert half_P[0] > 3 * half_P[1]


def test_few_runs_have_nearly_one_width():
    weights_PD, residual_PM = uneven(8, 2)
    half_PM = Intervals(weights_PD, residual_PM).half(weights_PD, 0.80)
    assert (half_PM.max(axis=0) < 4 * half_PM.min(axis=0)).all()


def test_the_interval_of_an_objective_comes_from_its_own_residuals():
    weights_PD, residual_PM = uneven(60, 3)
    opposite_P = np.stack([residual_PM[:, 0], -residual_PM[:, 0]], axis=1) @ [0.5, 0.5]
    assert Intervals(weights_PD, opposite_P[:, None]).half(weights_PD, 0.95) == pytest.approx(0)


def test_runs_that_failed_on_all_metrics_are_set_aside():
    random = np.random.default_rng(4)
    weights_PD, residual_PM = random.dirichlet([1] * 3, 100), random.normal(size=(100, 5))
    residual_PM[7] += 20
    assert np.flatnonzero(~sound_runs(weights_PD, residual_PM)).tolist() == [7]
    assert sound_runs(weights_PD, residual_PM[:, :2]).all()  # two metrics are too few to tell


def test_one_large_error_on_one_metric_is_no_failure():
    random = np.random.default_rng(5)
    weights_PD, residual_PM = random.dirichlet([1] * 3, 100), random.normal(size=(100, 5))
    residual_PM[7, 2] = 50
    assert sound_runs(weights_PD, residual_PM).all()
