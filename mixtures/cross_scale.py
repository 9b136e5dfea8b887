"""Predict one scale from runs at others: shapes are shared between scales, levels and spreads are carried in log N.

Small and large models agree on which mixtures are good for a loss, less so on how good: the level falls with the scale
and so does the spread, at a rate of its own for every metric. That is why the mean of metrics is ranked badly by a
small proxy's law, though every single one is ranked well. So each law is standardized over the mixtures of all scales;
the shapes are averaged with weights that predict held-out runs of the scale nearest to the target best; level and
spread are carried along log N. A few runs at a large scale correct both: a line for each metric, with its slope shrunk
to that of all metrics. K scales with a law, R reference mixtures, P runs, M metrics, D domains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixtures.law_base import FittedLaw

FLOOR_SHARE = 0.5  # of the lowest level that no scale removes; Chinchilla's floor (arXiv:2203.15556) at 60M is 0.5
CHANGE_DOUBT = 1 / 3  # standard error of an extrapolated change, as a share: floors from 0 to 0.8 differ by as much
RATIO_DOUBT = 0.3  # standard deviation, before any run is seen, of the spread's correction by a few runs
MOST_RATIO = 4.0  # spreads carried beyond the scales that were fitted change by no more than this


@dataclass(frozen=True, eq=False)
class CrossScaleLaw:
    """A weighted sum of laws, metric by metric.

    Attributes:
        laws: one per scale, all over the same metrics and domains.
        factor_KM: what each law's prediction is multiplied by.
        shift_M: what is added.
    """

    laws: tuple[FittedLaw, ...]
    factor_KM: np.ndarray
    shift_M: np.ndarray

    @property
    def family(self) -> str:
        """The name of this kind of law."""
        return "cross_scale"

    def predict(self, weights_PD: np.ndarray) -> np.ndarray:
        """Losses (P, M) at the target scale."""
        return self.combined([law.predict(weights_PD) for law in self.laws])

    def combined(self, predicted_KPM: Sequence[np.ndarray]) -> np.ndarray:
        """Losses (P, M) at the target scale from what each law predicts at its own."""
        parts = (part_PM * factor_M for part_PM, factor_M in zip(predicted_KPM, self.factor_KM, strict=True))
        return self.shift_M + sum(parts)

    def gradient(self, weights_D: np.ndarray) -> np.ndarray | None:
        """Derivatives (M, D); None where one of the laws has none."""
        slopes = [law.gradient(weights_D) for law in self.laws]
        whole_MD = np.zeros((len(self.shift_M), len(weights_D)))
        for slope_MD, factor_M in zip(slopes, self.factor_KM, strict=True):
            if slope_MD is None:
                return None
            whole_MD += slope_MD * factor_M[:, None]
        return whole_MD

    def take(self, problems: Sequence[int]) -> "CrossScaleLaw":
        """The law of some of the metrics."""
        rows = list(problems)
        return CrossScaleLaw(tuple(law.take(rows) for law in self.laws), self.factor_KM[:, rows], self.shift_M[rows])

    def to_json(self) -> dict[str, Any]:
        """Its parts."""
        return {"family": self.family, "laws": [law.to_json() for law in self.laws],
                "factor": self.factor_KM.tolist(), "shift": self.shift_M.tolist()}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Shape:
    """A law in units of its own level and spread.

    Attributes:
        law: of one scale.
        level_M: its mean over the reference mixtures.
        spread_M: its standard deviation over them; 1 where it is flat, whose shape is 0.
        flat_M: where it is.
    """

    law: FittedLaw
    level_M: np.ndarray
    spread_M: np.ndarray
    flat_M: np.ndarray

    @classmethod
    def of(cls, law: FittedLaw, reference_RD: np.ndarray) -> "Shape":
        """Measure level and spread over the mixtures of all scales, so that designs may differ between them."""
        values_RM = law.predict(reference_RD)
        level_M, spread_M = values_RM.mean(axis=0), values_RM.std(axis=0)
        flat_M = spread_M <= 1e-9 * np.maximum(np.abs(level_M), 1.0)
        return cls(law, level_M, np.where(flat_M, 1.0, spread_M), flat_M)

    def standardized(self, values_PM: np.ndarray) -> np.ndarray:
        """Predictions or measurements of its scale in its units."""
        return np.where(self.flat_M, 0.0, (values_PM - self.level_M) / self.spread_M)


@dataclass(frozen=True, eq=False)
class Place:
    """Level and spread of every metric at one point of the axis.

    Attributes:
        at: log N.
        level_M: mean over the reference mixtures.
        spread_M: what the shared shape is multiplied by; positive.
        error_M: standard error of the level.
        doubt_M: relative standard error of the spread.
    """

    at: float
    level_M: np.ndarray
    spread_M: np.ndarray
    error_M: np.ndarray
    doubt_M: np.ndarray


def shares(shape_KPM: np.ndarray, measured_PM: np.ndarray) -> np.ndarray:
    """Weights (K,) of shapes, positive and summing to 1, that predict standardized runs of a scale best.

    A law of many runs near the target has small errors on held-out runs there, so number and closeness count through
    what they are good for. One set of weights for all metrics: with few runs a choice per metric is mostly noise.

    Args:
        shape_KPM: predictions of each law for the runs, held out where the law was fitted to them.
        measured_PM: the runs, in the units of their scale.
    """
    count = len(shape_KPM)
    if count == 1:
        return np.ones(1)
    from scipy.optimize import nnls

    # centred within each metric: an error of level is no matter of shape
    columns = [(shape_PM - shape_PM.mean(axis=0)).ravel() for shape_PM in shape_KPM]
    target = (measured_PM - measured_PM.mean(axis=0)).ravel()
    found_K = nnls(np.stack(columns, axis=1), target)[0]
    return found_K / found_K.sum() if found_K.sum() > 0 else np.eye(count)[-1]


def carried(places: Sequence[Place], at: float) -> Place:
    """Level and spread at a point of the axis, from those measured at others.

    Between two scales both are interpolated. Beyond the last, the spread goes on as a power of N (a line in log N, so
    that it stays positive), and the level as a power law above a floor: both from the end, at the mean rate of all
    scales. With one scale nothing is known of rates and nothing changes.

    Args:
        places: sorted by `at`.
        at: log N of the target.
    """
    known = [place.at for place in places]
    if len(places) == 1 or any(abs(at - point) < 1e-9 for point in known):
        same = min(places, key=lambda place: abs(place.at - at))
        return Place(at, same.level_M, same.spread_M, same.error_M, same.doubt_M)
    spread_KM = np.log(np.stack([place.spread_M for place in places]))
    level_KM = np.stack([place.level_M for place in places])
    errors_KM, doubts_KM = (
        np.stack(each) for each in zip(*((one.error_M, one.doubt_M) for one in places), strict=True)
    )
    limit = np.log(MOST_RATIO)
    spread_M = np.exp(_along(known, spread_KM, at, limit))
    floor_M = np.where((level_KM > 0).all(axis=0), floor_share(known, level_KM) * level_KM.min(axis=0), -np.inf)
    positive_M = np.isfinite(floor_M)
    excess_KM = np.log(np.where(positive_M, level_KM - np.where(positive_M, floor_M, 0.0), 1.0))
    level_M = np.where(positive_M, np.where(positive_M, floor_M, 0.0) + np.exp(_along(known, excess_KM, at)),
                       _along(known, level_KM, at))  # fmt: skip
    end = int(np.argmin(np.abs(np.array(known) - at)))
    share = CHANGE_DOUBT if not known[0] <= at <= known[-1] else 0.5 * CHANGE_DOUBT
    error_M = np.hypot(errors_KM.max(axis=0), share * np.abs(level_M - level_KM[end]))
    doubt_M = np.hypot(doubts_KM.max(axis=0), share * np.abs(np.log(spread_M) - spread_KM[end]))
    return Place(at, level_M, spread_M, error_M, doubt_M)


def floor_share(known: Sequence[float], level_KM: np.ndarray) -> float:
    """Share of the lowest level that is its floor: the typical one, unless three scales or more show another."""
    if len(known) < 3:
        return FLOOR_SHARE
    level_KM = level_KM[:, (level_KM > 0).all(axis=0)]
    misfits = {}
    for share in np.arange(0, 10) / 10:
        excess_KM = np.log(level_KM - share * level_KM.min(axis=0))
        line_KM = np.stack(
            [np.polynomial.Polynomial.fit(known, column, 1)(np.array(known)) for column in excess_KM.T], 1
        )
        error_KM = np.exp(line_KM) - np.exp(excess_KM)
        # one share for all metrics; the typical one counts as an observation with an error of a hundredth of the level
        misfits[share] = float(np.mean((error_KM / level_KM) ** 2)) + (0.01 * (share - FLOOR_SHARE)) ** 2
    return float(min(misfits, key=misfits.__getitem__)) if level_KM.size else FLOOR_SHARE


def calibrated(expected: Place, shape_PM: np.ndarray, measured_PM: np.ndarray, error: float) -> Place:
    """Correct level and spread of a scale by a few runs of it.

    A line for each metric from what is expected to what was measured. Its slope is drawn to the slope of all metrics
    together, as far as the differences between metrics are explained by noise, and that one is drawn to 1.

    Args:
        expected: level and spread carried from other scales.
        shape_PM: the shared shape of the runs.
        measured_PM: what was measured.
        error: standard deviation of the shape's errors, in units of the spread.
    """
    runs = len(measured_PM)
    wanted_PM = (measured_PM - expected.level_M) / expected.spread_M
    away_PM = shape_PM - shape_PM.mean(axis=0)
    size_M = (away_PM**2).sum(axis=0)
    along_M = (away_PM * wanted_PM).sum(axis=0)
    variance = max(error**2, 1e-8)
    ratio_M, doubt_M = _shrunk(along_M, size_M, variance)
    if runs > 2:  # again with the errors that the runs show
        left_PM = wanted_PM - wanted_PM.mean(axis=0) - ratio_M * away_PM
        variance = max(variance, float((left_PM**2).sum() / (left_PM.shape[1] * (runs - 2))))
        ratio_M, doubt_M = _shrunk(along_M, size_M, variance)
    shift_M = wanted_PM.mean(axis=0) - ratio_M * shape_PM.mean(axis=0)
    error_M = expected.spread_M * np.sqrt(variance / runs)
    level_M = expected.level_M + expected.spread_M * shift_M
    return Place(expected.at, level_M, expected.spread_M * ratio_M, error_M, doubt_M / ratio_M)


def _shrunk(along_M: np.ndarray, size_M: np.ndarray, variance: float) -> tuple[np.ndarray, np.ndarray]:
    """Slopes along_M / size_M, each drawn to their common value and that one to 1, and their standard errors."""
    known = size_M.sum() / variance + 1 / RATIO_DOUBT**2
    pooled = (along_M.sum() / variance + 1 / RATIO_DOUBT**2) / known
    own_M = along_M / np.maximum(size_M, 1e-12)
    # method of moments: how much metrics differ beyond what their errors explain
    beyond = (size_M * (own_M - pooled) ** 2 - variance).sum() / max(size_M.sum(), 1e-12)
    between = min(max(float(beyond), 1e-12), RATIO_DOUBT**2)
    precision_M = size_M / variance
    ratio_M = np.maximum((precision_M * own_M + pooled / between) / (precision_M + 1 / between), 1 / MOST_RATIO)
    return ratio_M, np.sqrt(1 / (precision_M + 1 / between) + 1 / known)


def _along(known: Sequence[float], values_KM: np.ndarray, at: float, limit: float = np.inf) -> np.ndarray:
    """Values (M,) at a point: interpolated inside, outside from the nearer end at the mean rate, within `limit`."""
    if known[0] <= at <= known[-1]:
        return np.array([np.interp(at, known, column) for column in values_KM.T])
    end = 0 if at < known[0] else -1
    centred_K = np.array(known) - np.mean(known)
    rate_M = centred_K @ (values_KM - values_KM.mean(axis=0)) / (centred_K @ centred_K)
    return values_KM[end] + np.clip(rate_M * (at - known[end]), -limit, limit)
