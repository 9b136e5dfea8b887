import numpy as np
import pytest
from scipy.optimize import approx_fprime, check_grad

from trainer.learning_curve import LearningCurve, _cost, fit_learning_curve

TOKENS = np.cumsum(np.full(300, 1000.0))


@pytest.mark.parametrize(("eps", "beta", "alpha"), [(2.0, 30.0, 0.3), (1.0, 200.0, 0.5), (0.5, 10.0, 0.1)])
def test_a_clean_curve_is_found(eps: float, beta: float, alpha: float):
    found = fit_learning_curve(TOKENS, eps + beta * TOKENS**-alpha)
    assert found.alpha == pytest.approx(alpha, abs=0.01)
    assert found.eps + found.above(3e5) == pytest.approx(eps + beta * 3e5**-alpha, rel=1e-3)
    assert found.eps + found.above(3e6) == pytest.approx(eps + beta * 3e6**-alpha, rel=1e-2)  # ten times as far


def test_a_few_wild_batches_change_little():
    losses = 2.0 + 30.0 * TOKENS**-0.3
    losses[[50, 51, 120, 200]] *= 1.5
    found = fit_learning_curve(TOKENS, losses)
    assert found.eps + found.above(3e5) == pytest.approx(2.0 + 30.0 * 3e5**-0.3, rel=0.01)


def test_the_slope_is_the_right_one():
    noise = np.random.default_rng(0).standard_normal(300)
    log_n, log_loss = np.log(TOKENS / TOKENS[-1]), np.log(2 + 30 * TOKENS**-0.3) + 0.1 * noise
    point = np.array([0.4, 0.1, 0.25])
    gap = check_grad(lambda x: _cost(x, log_n, log_loss)[0], lambda x: _cost(x, log_n, log_loss)[1], point)
    assert gap < 1e-4 * np.abs(approx_fprime(point, lambda x: _cost(x, log_n, log_loss)[0])).max()


def test_a_flat_curve_has_nothing_left_to_gain():
    falling, flat = (fit_learning_curve(TOKENS, losses) for losses in (2 + 30 * TOKENS**-0.3, np.full(300, 2.0)))
    slope = [curve.alpha * curve.above(3e5) for curve in (falling, flat)]
    assert slope[1] < 0.02 * slope[0]


def test_a_curve_of_three_points_is_fitted():
    assert isinstance(fit_learning_curve(np.array([10.0, 20.0, 30.0]), np.array([3.0, 2.5, 2.3])), LearningCurve)
