"""Fit many small regressions that share their inputs at once: batched Levenberg-Marquardt with analytic Jacobians.

A swarm asks for hundreds of fits of the same form over the same mixtures (metrics x folds x starts, and bootstrap
resamples), each with tens of parameters; solved together they cost one pass of linear algebra per iteration instead of
hundreds of slow quasi-Newton runs. A fold or a resample is a weighting of rows. B problems, P mixtures, K parameters.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

ITERATIONS = 120
CONVERGED = 1e-7  # relative decrease of the cost that counts as none
CHUNK_CELLS = 1_500_000  # problems x mixtures x parameters held at once: about 12 MB, stays near the cache


class Form(Protocol):
    """A parametric function of a mixture, in standardized units of the loss."""

    @property
    def prior_K(self) -> np.ndarray:
        """Where the penalty pulls each parameter."""
        ...

    @property
    def precision_K(self) -> np.ndarray:
        """How strongly, relative to the law's penalty."""
        ...

    @property
    def lower_K(self) -> np.ndarray:
        """Least values."""
        ...

    @property
    def upper_K(self) -> np.ndarray:
        """Largest values."""
        ...

    def values(self, theta_BK: np.ndarray) -> np.ndarray:
        """Predictions (B, P)."""
        ...

    def jacobian(self, theta_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predictions (B, P) and their derivatives (B, P, K)."""
        ...


@dataclass(frozen=True, eq=False)
class Problems:
    """What to fit.

    Attributes:
        targets_BP: float64, standardized losses; where the share is 0 the value is not looked at.
        share_BP: weight of each mixture in each problem; rows sum to 1.
        penalty_B: weight of the quadratic pull towards the form's prior.
    """

    targets_BP: np.ndarray
    share_BP: np.ndarray
    penalty_B: np.ndarray

    def take(self, rows: np.ndarray) -> "Problems":
        """Some of the problems."""
        return Problems(self.targets_BP[rows], self.share_BP[rows], self.penalty_B[rows])


def minimise(
    form: Form, problems: Problems, start_BK: np.ndarray, iterations: int = ITERATIONS
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise, for each problem, sum(share x residual^2) + penalty x sum(precision x (theta - prior)^2).

    Args:
        form: the function; bounds are kept by clipping, with parameters held while they push against them.
        problems: targets, weights of rows, penalties.
        start_BK: where to begin.
        iterations: how many at most.

    Returns:
        theta (B, K) and cost (B,).
    """
    theta_BK = np.clip(start_BK, form.lower_K, form.upper_K)
    cost_B = np.empty(len(theta_BK))
    size = max(1, CHUNK_CELLS // (problems.targets_BP.shape[1] * theta_BK.shape[1]))
    for begin in range(0, len(theta_BK), size):
        rows = np.arange(begin, min(begin + size, len(theta_BK)))
        theta_BK[rows], cost_B[rows] = _minimise_chunk(form, problems.take(rows), theta_BK[rows], iterations)
    return theta_BK, cost_B


def cost_of(form: Form, problems: Problems, theta_BK: np.ndarray) -> np.ndarray:
    """The objective of each problem (B,)."""
    residual_BP = form.values(theta_BK) - problems.targets_BP
    pull_B = (form.precision_K * (theta_BK - form.prior_K) ** 2).sum(axis=1)
    return (problems.share_BP * residual_BP**2).sum(axis=1) + problems.penalty_B * pull_B


def _minimise_chunk(
    form: Form, problems: Problems, theta_BK: np.ndarray, iterations: int
) -> tuple[np.ndarray, np.ndarray]:
    theta_BK = theta_BK.copy()
    cost_B = cost_of(form, problems, theta_BK)
    damping_B = np.full(len(theta_BK), 1e-2)
    quiet_B = np.zeros(len(theta_BK), int)
    active = np.arange(len(theta_BK))
    for _ in range(iterations):
        part = problems.take(active)
        step_BK = _step(form, part, theta_BK[active], damping_B[active])
        trial_BK = np.clip(theta_BK[active] + step_BK, form.lower_K, form.upper_K)
        trial_B = cost_of(form, part, trial_BK)
        better_B = trial_B < cost_B[active]
        small_B = cost_B[active] - trial_B < CONVERGED * cost_B[active]
        theta_BK[active[better_B]] = trial_BK[better_B]
        cost_B[active[better_B]] = trial_B[better_B]
        damping_B[active] = np.where(better_B, np.maximum(damping_B[active] * 0.3, 1e-9), damping_B[active] * 5)
        quiet_B[active] = np.where(better_B & ~small_B, 0, quiet_B[active] + small_B)
        active = active[(quiet_B[active] < 4) & (damping_B[active] < 1e8)]
        if not len(active):
            break
    return theta_BK, cost_B


def _step(form: Form, problems: Problems, theta_BK: np.ndarray, damping_B: np.ndarray) -> np.ndarray:
    predicted_BP, slope_BPK = form.jacobian(theta_BK)
    weighted_BPK = slope_BPK * problems.share_BP[:, :, None]
    pull_BK = problems.penalty_B[:, None] * form.precision_K
    gradient_BK = np.einsum("bpk,bp->bk", weighted_BPK, predicted_BP - problems.targets_BP, optimize=False)
    gradient_BK += pull_BK * (theta_BK - form.prior_K)
    normal_BKK = weighted_BPK.transpose(0, 2, 1) @ slope_BPK
    diagonal = np.arange(theta_BK.shape[1])
    normal_BKK[:, diagonal, diagonal] += pull_BK
    scale_BK = normal_BKK[:, diagonal, diagonal]
    normal_BKK[:, diagonal, diagonal] += damping_B[:, None] * (scale_BK + 1e-6) + 1e-12
    held_BK = ((theta_BK <= form.lower_K) & (gradient_BK > 0)) | ((theta_BK >= form.upper_K) & (gradient_BK < 0))
    free_BK = (~held_BK).astype(float)
    normal_BKK *= free_BK[:, :, None] * free_BK[:, None, :]
    normal_BKK[:, diagonal, diagonal] += held_BK
    return -np.linalg.solve(normal_BKK, (gradient_BK * free_BK)[..., None])[..., 0]
