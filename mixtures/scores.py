"""How good held-out predictions are: error, rank, regret, and whether anything was learned at all.

A law is judged on runs that it has not seen, by the size of its errors against those of the mean. P runs, M metrics.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.recipe import Section

PASSING = 0.05  # share of swarms with nothing to teach that may pass


class MetricScore(Section):
    """Held-out quality of one law on one metric.

    Attributes:
        rmse: root mean squared error, in the metric's units.
        relative: rmse over the standard deviation of the metric; about 1 means nothing was learned.
        spearman: rank correlation; None where predictions or values do not vary.
        regret: measured value of the run predicted to be best, minus the best measured value.
    """

    rmse: float
    relative: float
    spearman: float | None
    regret: float


def spearman(left_P: np.ndarray, right_P: np.ndarray) -> float | None:
    """Rank correlation, ties averaged; None where one side is constant."""
    left, right = (ranks - ranks.mean() for ranks in (_ranks(left_P), _ranks(right_P)))
    norm = math.sqrt(float(left @ left) * float(right @ right))
    return float(left @ right) / norm if norm > 0 else None


def _ranks(values_P: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share their mean rank."""
    _, place_P, count = np.unique(values_P, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place_P]


def student_quantile(freedom: int, probability: float) -> float:
    """Quantile of Student's t distribution."""
    from scipy.special import stdtrit  # here, so that reading a recipe does not load SciPy

    return float(stdtrit(freedom, probability))


def score(predicted_P: np.ndarray, measured_P: np.ndarray) -> MetricScore:
    """Compare held-out predictions with measurements."""
    rmse = float(np.sqrt(np.mean((predicted_P - measured_P) ** 2)))
    spread = float(measured_P.std())
    regret = float(measured_P[int(np.argmin(predicted_P))] - measured_P.min())
    relative = rmse / spread if spread > 0 else 1.0
    return MetricScore(rmse=rmse, relative=relative, spearman=spearman(predicted_P, measured_P), regret=regret)


def gain(law_PM: np.ndarray, mean_PM: np.ndarray, measured_PM: np.ndarray) -> tuple[float, float]:
    """How much squared error a law saves against the mean of the runs.

    Args:
        law_PM: held-out predictions of the law.
        mean_PM: held-out predictions by the mean.
        measured_PM: measurements.

    Returns:
        Saved share of each metric's variance, averaged over runs and metrics, and its standard error over runs.
    """
    saved_P = _saved(law_PM, mean_PM, measured_PM)
    return float(saved_P.mean()), float(saved_P.std(ddof=1) / math.sqrt(len(saved_P))) if len(saved_P) > 1 else math.inf


def _saved(law_PM: np.ndarray, mean_PM: np.ndarray, measured_PM: np.ndarray) -> np.ndarray:
    """Squared error that the law saves for each run (P,), in variances, averaged over metrics."""
    variance_M = np.maximum(measured_PM.var(axis=0), 1e-24)
    return (((mean_PM - measured_PM) ** 2 - (law_PM - measured_PM) ** 2) / variance_M).mean(axis=1)


def beats_mean(law_PM: np.ndarray, mean_PM: np.ndarray, measured_PM: np.ndarray) -> bool:
    """Whether a law predicts runs that it has not seen better than their mean does: on the whole, and run by run.

    On the whole it must save more than 2 / P of the variance, which the best constant would. The runs are counted by
    Wilcoxon's signed ranks: in heavy-tailed losses a standard error belongs to the one run furthest out.

    Args:
        law_PM: held-out predictions of the law.
        mean_PM: held-out predictions by the mean.
        measured_PM: measurements.
    """
    from scipy.stats import wilcoxon  # here, so that reading a recipe does not load SciPy

    saved_P = _saved(law_PM, mean_PM, measured_PM)
    if saved_P.mean() <= 2 / len(saved_P):
        return False
    found: Any = wilcoxon(saved_P, alternative="greater")
    return float(found.pvalue) < PASSING


def half_width(residual_P: np.ndarray, level: float) -> float:
    """Half of an interval that covers a new run with probability `level`, from held-out residuals.

    The conformal quantile, the ceil((n + 1) level)-th smallest absolute residual, needs no distribution. When there are
    too few residuals for it (95% needs 19), Student's t stands in.
    """
    count = len(residual_P)
    rank = math.ceil((count + 1) * level - 1e-9)
    if rank <= count:
        return float(np.sort(np.abs(residual_P))[rank - 1])
    spread = float(np.sqrt(np.mean(residual_P**2)))
    usual = student_quantile(max(count - 1, 1), (1 + level) / 2) * spread
    return max(usual, float(np.abs(residual_P).max()))


def regret(predicted_PM: np.ndarray, measured_PM: np.ndarray) -> float:
    """What choosing by predictions costs, in standard deviations: mean over metrics and over the mean of them all."""
    spread_M = measured_PM.std(axis=0)
    unit_M = np.where(spread_M > 0, spread_M, 1.0)
    both = []
    for table_PM in (predicted_PM, measured_PM):
        standard_PM = (table_PM - measured_PM.mean(axis=0)) / unit_M
        both.append(np.concatenate([standard_PM, standard_PM.mean(axis=1, keepdims=True)], axis=1))
    picked_M = np.argmin(both[0], axis=0)
    lost_M = both[1][picked_M, np.arange(len(picked_M))] - both[1].min(axis=0)
    return float((lost_M[:-1].mean() + lost_M[-1]) / 2)


def mean_over(scores: Sequence[MetricScore], field: str) -> float | None:
    """Mean of a field over metrics; None where it is undefined for all."""
    values = [getattr(each, field) for each in scores if getattr(each, field) is not None]
    return sum(values) / len(values) if values else None
