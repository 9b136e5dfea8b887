"""The learning curve of a domain: `loss = eps + beta * n^-alpha`, fitted while the training runs.

The fit is ADO's (arXiv:2410.11820): a robust one of the logarithm of the loss, since batches are noisy and the first
ones are far off any law; a coarse grid of starts, then L-BFGS with the analytic gradient from the best few, so that it
takes milliseconds between two training steps.

Legend: T points of a curve, C candidates.
"""

from dataclasses import dataclass

import numpy as np

HUBER = 1e-3  # of the logarithm of the loss: beyond it residuals count linearly
ALPHA = (0.05, 0.8)  # the authors' bounds: flatter or steeper is no language model's curve
POINTS = 128  # of a curve, evenly spaced in log tokens; more change nothing but the time
STARTS = 4
GRID = 8
WINDOW, ORDER = 9, 2  # of the Savitzky-Golay filter on the logarithms


@dataclass(frozen=True)
class LearningCurve:
    """`eps + beta * n^-alpha`, in nats per token after n tokens."""

    eps: float
    beta: float
    alpha: float

    def above(self, tokens: float) -> float:
        """What is left to gain after `tokens`: the loss less `eps`."""
        return self.beta * float(tokens) ** -self.alpha


def fit_learning_curve(tokens_T: np.ndarray, losses_T: np.ndarray) -> LearningCurve:
    """Fit a curve.

    Args:
        tokens_T: float64 (T,), rising, above 0.
        losses_T: float64 (T,), nats per token, above 0; T is 3 or more.
    """
    from scipy.optimize import minimize

    tokens_T, log_loss_T = _thinned(np.asarray(tokens_T, float), _smooth(np.log(losses_T)))
    scale = tokens_T[-1]  # tokens in units of the last count: eps and beta are then of one size
    log_n_T = np.log(tokens_T / scale)
    last, first = float(np.exp(log_loss_T.min())), float(np.exp(log_loss_T.max()))
    eps_C, beta_C, alpha_C = (
        axis.ravel() for axis in np.meshgrid(np.linspace(0.05, 0.95, GRID) * last,
                                             np.geomspace(0.02, 1.0, GRID) * max(first - 0.05 * last, 1e-3),
                                             np.linspace(*ALPHA, GRID), indexing="ij")
    )  # fmt: skip
    starts_C3 = np.stack([np.log(eps_C), np.log(beta_C), alpha_C], axis=1)
    costs_C = np.array([_cost(start, log_n_T, log_loss_T)[0] for start in starts_C3])
    bounds = [(np.log(1e-3 * last), np.log(last)), (np.log(1e-6), np.log(20 * first)), ALPHA]
    found = [
        minimize(_cost, starts_C3[best], (log_n_T, log_loss_T), jac=True, method="L-BFGS-B", bounds=bounds)
        for best in np.argsort(costs_C, kind="stable")[:STARTS]
    ]
    eps, beta, alpha = min(found, key=lambda result: result.fun).x
    return LearningCurve(float(np.exp(eps)), float(np.exp(beta) * scale**alpha), float(alpha))


def _cost(point_3: np.ndarray, log_n_T: np.ndarray, log_loss_T: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean Huber loss of `log(eps + beta n^-alpha)` over HUBER, and its gradient in (log eps, log beta, alpha)."""
    eps, alpha = np.exp(point_3[0]), point_3[2]
    above_T = np.exp(point_3[1] - alpha * log_n_T)
    model_T = eps + above_T
    miss_T = np.log(model_T) - log_loss_T
    size_T = np.abs(miss_T)
    cost_T = np.where(size_T <= HUBER, miss_T**2 / (2 * HUBER), size_T - HUBER / 2)
    slope_T = np.clip(miss_T / HUBER, -1, 1) / model_T
    gradient = np.array([(slope_T * eps).mean(), (slope_T * above_T).mean(), (-slope_T * above_T * log_n_T).mean()])
    return float(cost_T.mean()), gradient


def _smooth(log_loss_T: np.ndarray) -> np.ndarray:
    from scipy.signal import savgol_filter

    return np.asarray(savgol_filter(log_loss_T, WINDOW, ORDER)) if len(log_loss_T) > WINDOW else log_loss_T


def _thinned(tokens_T: np.ndarray, log_loss_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS of a curve, evenly spaced in log tokens."""
    wanted = np.geomspace(tokens_T[0], tokens_T[-1], min(POINTS, len(tokens_T)))
    places = np.unique(np.searchsorted(tokens_T, wanted).clip(0, len(tokens_T) - 1))
    return tokens_T[places], log_loss_T[places]
