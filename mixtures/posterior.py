"""What is believed of mixtures that were not run: the law, its refits, and what no law of its form can say.

The covariance of two mixtures is that of the laws refitted to resampled swarms, plus a Gaussian process on square roots
of weights for what the law misses, as large as its held-out errors and conditioned on the runs: without it a confident
law would never look where it has not been. Choosing by such a belief is the correlated knowledge gradient (Frazier,
Powell and Dayanik 2009): how much lower the lowest expected loss is expected to be after a run. P runs, X mixtures of
which the first C may be chosen in the end, R resamples, Z points of a normal distribution.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mixtures.design import kernel_of
from mixtures.fitting import Fit
from mixtures.noise import replicate_rows
from mixtures.stability import resamples_of

NODES = 65  # quantiles that stand for the outcome of a run
SAMPLES = 512  # of possible truths, for the expected regret
UNTOLD = 0.5  # share of the squared held-out error that is noise of the runs, where no replicates tell


class Witness(NamedTuple):
    """What a run at some scale tells of the scale that counts.

    Attributes:
        drift: share of what changes from the scale of the fit to the scale that counts which such a run shows.
        noise: variance of its own that it adds, beyond that between seeds.
    """

    drift: float = 1.0
    noise: float = 0.0


@dataclass(frozen=True, eq=False)
class Posterior:
    """Belief about an objective at some mixtures: the loss at the scale of the fit plus what changes with scale.

    Attributes:
        mean_X: expected loss.
        loss_XX: covariance of losses at the scale of the fit.
        drift_XX: covariance of the changes.
        mixed_XX: covariance of a loss (row) with a change (column); runs at a larger scale see their sum.
        noise: variance of a run about its mixture's loss.
        choices: how many of the first mixtures may be chosen in the end.
    """

    mean_X: np.ndarray
    loss_XX: np.ndarray
    drift_XX: np.ndarray
    mixed_XX: np.ndarray
    noise: float
    choices: int

    @classmethod
    def of(
        cls, fit: Fit, coefficient_M: np.ndarray, weights_XD: np.ndarray, choices: int, drift: float, resamples: int,
        seed: int,
    ) -> "Posterior":  # fmt: skip
        """The belief that a fit supports.

        Args:
            fit: the law and its swarm.
            coefficient_M: the objective.
            weights_XD: the mixtures.
            choices: how many of the first may be chosen.
            drift: variance of what changes from the scale of the fit to the scale that counts.
            resamples: refits.
            seed: of them.
        """
        tried_PD = fit.ratios.weights_PD
        residual_P = (fit.metrics.values_PM - fit.held_out_PM) @ coefficient_M
        error = float(np.mean(residual_P**2))
        noise = run_noise(fit, coefficient_M)
        noise = max(UNTOLD * error if noise is None else min(noise, 0.9 * error), 1e-12)
        kernel, missed = kernel_of(tried_PD), max(error - noise, 1e-12)
        known_PP = missed * kernel(tried_PD, tried_PD) + noise * np.eye(len(tried_PD))
        cross_XP = missed * kernel(weights_XD, tried_PD)
        gain_XP = np.linalg.solve(known_PP, cross_XP.T).T
        miss_P = (fit.metrics.values_PM - fit.law.predict(tried_PD)) @ coefficient_M
        near_XX = kernel(weights_XD, weights_XD)
        loss_RX = np.stack(
            [law.predict(weights_XD) @ coefficient_M for law in fit.refit(resamples_of(fit, resamples, seed))]
        )
        off_RX = (loss_RX - loss_RX.mean(axis=0)) / np.sqrt(max(len(loss_RX) - 1, 1))
        mean_X = fit.law.predict(weights_XD) @ coefficient_M + gain_XP @ miss_P
        loss_XX = missed * near_XX - gain_XP @ cross_XP.T + off_RX.T @ off_RX
        return cls(mean_X, loss_XX, drift * near_XX, np.zeros_like(near_XX), noise, choices)

    @property
    def best(self) -> int:
        """The mixture to choose now."""
        return int(np.argmin(self.mean_X[: self.choices]))

    def gains(self, witness: Witness) -> np.ndarray:
        """How much a run of each mixture is expected to lower the loss of what is chosen: (X,), not below 0.

        Args:
            witness: what the run tells.
        """
        from scipy.special import ndtri  # here, so that reading a recipe does not load SciPy

        share, last = witness.drift, self.choices
        node_Z = ndtri((np.arange(NODES) + 0.5) / NODES)
        mean_C = self.mean_X[:last]
        variance_X = (self.loss_XX + 2 * share * self.mixed_XX + share**2 * self.drift_XX).diagonal()
        told_XC = (self.loss_XX + self.mixed_XX)[:, :last] + share * (self.mixed_XX.T + self.drift_XX)[:, :last]
        shift_XC = told_XC / np.sqrt(np.maximum(variance_X, 0) + self.noise + witness.noise)[:, None]
        lowest_X = np.zeros(len(variance_X))
        for node in node_Z:
            lowest_X += (mean_C + node * shift_XC).min(axis=1)
        return np.maximum(float(mean_C.min()) - lowest_X / NODES, 0.0)

    def after(self, mixture: int, witness: Witness) -> "Posterior":
        """The belief once a mixture was run, whatever comes out: the mean stays, the doubt shrinks."""
        loss_X = self.loss_XX[mixture] + witness.drift * self.mixed_XX[:, mixture]
        drift_X = self.mixed_XX[mixture] + witness.drift * self.drift_XX[mixture]
        variance = loss_X[mixture] + witness.drift * drift_X[mixture] + self.noise + witness.noise
        return replace(
            self,
            loss_XX=self.loss_XX - np.outer(loss_X, loss_X) / variance,
            drift_XX=self.drift_XX - np.outer(drift_X, drift_X) / variance,
            mixed_XX=self.mixed_XX - np.outer(loss_X, drift_X) / variance,
        )

    def expected_regret(self, seed: int) -> float:
        """Mean over possible truths, at the scale that counts, of the chosen mixture's loss minus the lowest one."""
        total_CC = (self.loss_XX + self.drift_XX + self.mixed_XX + self.mixed_XX.T)[: self.choices, : self.choices]
        value_C, vector_CC = np.linalg.eigh(total_CC)
        root_CC = vector_CC * np.sqrt(np.maximum(value_C, 0))
        random = np.random.default_rng(seed)
        truth_SC = self.mean_X[: self.choices] + random.normal(size=(SAMPLES, self.choices)) @ root_CC.T
        return float((truth_SC[:, self.best] - truth_SC.min(axis=1)).mean())


def run_noise(fit: Fit, coefficient_M: np.ndarray) -> float | None:
    """Variance between runs of one mixture, pooled over repeated mixtures; None when none was repeated."""
    measured_P = fit.metrics.values_PM @ coefficient_M
    repeated = [rows for rows in replicate_rows(fit.ratios) if len(rows) > 1]
    freedom = sum(len(rows) - 1 for rows in repeated)
    if not freedom:
        return None
    return float(sum(((measured_P[rows] - measured_P[rows].mean()) ** 2).sum() for rows in repeated) / freedom)
