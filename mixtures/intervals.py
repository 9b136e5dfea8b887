"""Intervals from held-out residuals: conformal, with a width that follows where in the simplex the law errs.

Errors of proxies differ by mixture (most where one or few domains have all the weight), so that one width for all is
too wide for most and too narrow for some. The size of a residual is modelled as log-linear in the square roots of the
weights, with a ridge that leaves one width for all when runs are few; every residual is divided by the size that the
others predict for it before the conformal quantile is taken, so that coverage does not rest on the model being right.
P new mixtures, N runs, D domains, M columns.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mixtures.scores import half_width

RIDGE = 20.0  # runs that the belief in one width for all is worth, for each domain
FAILED, LEAST_METRICS = 4.0, 3  # how far beyond the usual error, and on half of how many metrics at least
WIDEST = np.log(5.0)  # how far the size at a mixture may differ from the typical one


@dataclass(frozen=True, eq=False)
class Intervals:
    """Half widths around the predictions of a law.

    Attributes:
        runs_ND: mixtures of the swarm.
        residual_NM: measured minus held-out prediction, for each metric or objective.
        sound_N: bool, runs that residuals are taken from; all where None.
    """

    runs_ND: np.ndarray
    residual_NM: np.ndarray
    sound_N: np.ndarray | None = None

    def half(self, weights_PD: np.ndarray, level: float) -> np.ndarray:
        """Half widths (P, M) of intervals that cover a new run with probability `level`."""
        used_NM = self._standard_NM if self.sound_N is None else self._standard_NM[self.sound_N]
        quantile_M = np.array([half_width(column_N, level) for column_N in used_NM.T])
        features_PD = (np.sqrt(weights_PD) - self._middle_D) / self._unit_D
        return quantile_M * np.exp(np.clip(features_PD @ self._slope_DM, -WIDEST, WIDEST))

    @cached_property
    def _middle_D(self) -> np.ndarray:
        return np.sqrt(self.runs_ND).mean(axis=0)

    @cached_property
    def _unit_D(self) -> np.ndarray:
        return np.maximum(np.sqrt(self.runs_ND).std(axis=0), 1e-3)  # a domain without variation says nothing

    @cached_property
    def _features_ND(self) -> np.ndarray:
        return (np.sqrt(self.runs_ND) - self._middle_D) / self._unit_D

    @cached_property
    def _size_NM(self) -> np.ndarray:
        """Log sizes about their mean; a tenth of the typical size is added, since a lucky hit is no precision."""
        size_NM = np.abs(self.residual_NM)
        log_NM = np.log(size_NM + 0.1 * np.median(size_NM, axis=0) + 1e-300)
        return log_NM - log_NM.mean(axis=0)

    @cached_property
    def _solver_DN(self) -> np.ndarray:
        features_ND = self._features_ND
        return np.linalg.solve(features_ND.T @ features_ND + RIDGE * np.eye(features_ND.shape[1]), features_ND.T)

    @cached_property
    def _slope_DM(self) -> np.ndarray:
        return self._solver_DN @ self._size_NM

    @cached_property
    def _standard_NM(self) -> np.ndarray:
        """Residuals over the sizes that the other runs predict (ridge left-one-out, in closed form)."""
        own_N = np.einsum("nd,dn->n", self._features_ND, self._solver_DN)[:, None] + 1 / len(self.runs_ND)
        others_NM = (self._features_ND @ self._slope_DM - own_N * self._size_NM) / np.maximum(1 - own_N, 1e-6)
        return self.residual_NM / np.exp(np.clip(others_NM, -WIDEST, WIDEST))


def sound_runs(runs_ND: np.ndarray, residual_NM: np.ndarray) -> np.ndarray:
    """Which runs (N,) are as far from the law as others are, judged over all metrics at once.

    A run that is off by many times the usual error on half of its metrics has failed, rather than the law: RegMix's
    512 runs have a dozen such, nearly all among numbers 257 to 390. Fits outlive them; an interval for a sound run
    should not be as wide as they ask for. With few metrics a failure looks like an error of the law.
    """
    if residual_NM.shape[1] < LEAST_METRICS:
        return np.full(len(residual_NM), True)
    size_NM = np.abs(Intervals(runs_ND, residual_NM)._standard_NM)
    usual_M = np.maximum(np.median(size_NM, axis=0), 1e-300)
    return np.median(size_NM / usual_M, axis=1) <= FAILED
