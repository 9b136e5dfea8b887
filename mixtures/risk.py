"""What is feared of a mixture: an upper bound of its loss over laws refitted to resampled swarms.

`lcb` adds to the prediction as many standard deviations as the level asks for (a lower bound of quality is an upper
bound of loss); `cvar` is the mean over the worst share `1 - level` of the resamples, in Rockafellar and Uryasev's form
(Journal of Risk 2000) with the corner rounded by a logistic curve so that it has a slope everywhere. P mixtures,
M metrics, D domains, R resamples.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mixtures.law_base import FittedLaw

RiskKind = Literal["mean", "lcb", "cvar"]
ROUNDING = 0.05  # of the spread over resamples: how far the corner of the worst share is rounded
HALVINGS = 60


@dataclass(frozen=True, eq=False)
class Risk:
    """A bound over resampled laws.

    Attributes:
        kind: `lcb` or `cvar`.
        level: 0.9: the bound holds for nine resamples of ten (`lcb`), or is the mean of the worst tenth (`cvar`).
        laws: one per resample, of all metrics.
        coefficient_M: weight of each metric.
    """

    kind: RiskKind
    level: float
    laws: tuple[FittedLaw, ...]
    coefficient_M: np.ndarray

    def values(self, weights_PD: np.ndarray, loss_P: np.ndarray) -> np.ndarray:
        """The bound of each mixture (P,).

        Args:
            weights_PD: mixtures.
            loss_P: what the law fitted to all runs predicts.
        """
        loss_PR = np.stack([law.predict(weights_PD) @ self.coefficient_M for law in self.laws], axis=1)
        if self.kind == "lcb":
            return loss_P + self._normal() * loss_PR.std(axis=1)
        return np.array([_tail_mean(loss_R, self.level)[0] for loss_R in loss_PR])

    def slope(self, weights_D: np.ndarray, slope_D: np.ndarray) -> np.ndarray:
        """Derivatives (D,) of the bound.

        Args:
            weights_D: the mixture.
            slope_D: derivatives of the loss predicted by the law fitted to all runs.
        """
        loss_R = np.array([float((law.predict(weights_D[None]) @ self.coefficient_M)[0]) for law in self.laws])
        slope_RD = np.stack([self.coefficient_M @ _gradient(law, weights_D) for law in self.laws])
        if self.kind == "cvar":
            return _tail_mean(loss_R, self.level)[1] @ slope_RD
        spread = float(loss_R.std())
        off_R = (loss_R - loss_R.mean()) / (max(spread, 1e-15) * len(loss_R))
        return slope_D + self._normal() * (off_R @ slope_RD)

    def _normal(self) -> float:
        from scipy.special import ndtri  # here, so that reading a recipe does not load SciPy

        return float(ndtri(self.level))


def _gradient(law: FittedLaw, weights_D: np.ndarray) -> np.ndarray:
    gradient_MD = law.gradient(weights_D)
    assert gradient_MD is not None  # laws without one are searched by draws, which ask for no slope
    return gradient_MD


def _tail_mean(loss_R: np.ndarray, level: float) -> tuple[float, np.ndarray]:
    """Mean of the worst share of losses, and its derivative (R,) by each of them; the derivatives sum to 1."""
    spread = float(loss_R.std())
    soft = max(ROUNDING * spread, 1e-12)
    tail = (1 - level) * len(loss_R)
    low, high = float(loss_R.min()) - 60 * soft, float(loss_R.max()) + 60 * soft
    for _ in range(HALVINGS):  # the threshold above which the worst share lies
        middle = (low + high) / 2
        above = float(_logistic((loss_R - middle) / soft).sum())
        low, high = (middle, high) if above > tail else (low, middle)
    threshold = (low + high) / 2
    over_R = (loss_R - threshold) / soft
    weight_R, corner_R = _logistic(over_R), np.logaddexp(0, over_R)
    slope_R = weight_R / weight_R.sum()
    if soft > 1e-12:  # how far the corner is rounded moves with the losses, too
        rounding_R = ROUNDING * (loss_R - loss_R.mean()) / (spread * len(loss_R))
        slope_R = slope_R + float((corner_R - over_R * weight_R).sum()) / tail * rounding_R
    return threshold + soft * float(corner_R.sum()) / tail, slope_R


def _logistic(value_R: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -value_R))
