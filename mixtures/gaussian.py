"""Gaussian process on square roots of weights: no form is assumed, and each domain has its own length scale.

Hyper-parameters maximise the marginal likelihood with a weak prior (analytic gradients, L-BFGS from several starts) on
a seeded subset of the runs; the process is then conditioned on all of them. What is kept are plain numbers: length
scales and one coefficient per run. Inside the swarm it is the most exact law, outside it falls back to the mean.
P mixtures, N the runs with a count, D domains, B problems, K = D + 2 hyper-parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixtures.law_base import FittedLaw, Scaling

SUBSET = 200  # runs that hyper-parameters are fitted to: the cost is cubic, and more of them moved no rank
ITERATIONS = 60
SMALLEST_WEIGHT = 1e-9  # sqrt has no slope at 0
CELLS = 4_000_000  # kernel entries held at once
# log amplitude, log length scale (of sqrt w, which spans 0 to 1), log noise; in units of the losses' spread
PRIOR, SPREAD = (np.log(1.5), np.log(2.0), np.log(0.1)), (1.0, 1.0, 1.5)
STARTS = ((0.0, 0.0, 0.0), (0.5, -0.8, -1.0))  # offsets from the prior
LOWER, UPPER = (-4.0, -4.0, -7.0), (4.0, 6.0, 1.0)


@dataclass(frozen=True, eq=False)
class Process:
    """Conditioned processes, all over the same runs.

    Attributes:
        inputs_PD: weights of the runs.
        log_scale_BD: log length scales.
        log_amplitude_B, log_noise_B: standard deviations of the process and of a run's noise.
        coefficient_BP: of each run in each problem; 0 for runs that the problem left out.
        scaling: units.
    """

    inputs_PD: np.ndarray
    log_scale_BD: np.ndarray
    log_amplitude_B: np.ndarray
    log_noise_B: np.ndarray
    coefficient_BP: np.ndarray
    scaling: Scaling
    family: str = "gaussian"

    def predict(self, weights_PD: np.ndarray) -> np.ndarray:
        """Losses (P, B)."""
        out_PB = np.empty((len(weights_PD), len(self.log_amplitude_B)))
        size = max(1, CELLS // max(1, len(self.inputs_PD)))
        for begin in range(0, len(weights_PD), size):
            rows = slice(begin, begin + size)
            for turn in range(out_PB.shape[1]):
                used = np.flatnonzero(self.coefficient_BP[turn])
                kernel_PN = _kernel(weights_PD[rows], self.inputs_PD[used], self.log_scale_BD[turn])
                amplitude = np.exp(2 * self.log_amplitude_B[turn])
                out_PB[rows, turn] = amplitude * (kernel_PN @ self.coefficient_BP[turn, used])
        return self.scaling.back(out_PB.T).T

    def gradient(self, weights_D: np.ndarray) -> np.ndarray:
        """Derivatives (B, D)."""
        roots_D = np.sqrt(np.maximum(weights_D, SMALLEST_WEIGHT))
        away_ND = np.sqrt(self.inputs_PD) - roots_D
        precision_BD = np.exp(-2 * self.log_scale_BD)
        weight_BN = self.coefficient_BP * np.exp(2 * self.log_amplitude_B[:, None] - precision_BD @ (away_ND.T**2) / 2)
        return (weight_BN @ away_ND) * precision_BD / (2 * roots_D) * self.scaling.scale_B[:, None]

    def take(self, problems: Sequence[int]) -> "Process":
        """The processes of some of the problems."""
        rows = list(problems)
        return Process(
            self.inputs_PD, self.log_scale_BD[rows], self.log_amplitude_B[rows], self.log_noise_B[rows],
            self.coefficient_BP[rows], Scaling(self.scaling.shift_B[rows], self.scaling.scale_B[rows]), self.family,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """All numbers."""
        return {
            "family": self.family,
            "inputs": self.inputs_PD.tolist(),
            "log_scale": self.log_scale_BD.tolist(),
            "log_amplitude": self.log_amplitude_B.tolist(),
            "log_noise": self.log_noise_B.tolist(),
            "coefficient": self.coefficient_BP.tolist(),
            "shift": self.scaling.shift_B.tolist(),
            "scale": self.scaling.scale_B.tolist(),
        }


class GaussianFamily:
    """A process for each problem."""

    name: str = "gaussian"
    penalties: tuple[float, ...] = (1.0,)
    least_runs: int = 6

    def fit_path(self, weights_PD: np.ndarray, values_BP: np.ndarray, counts_BP: np.ndarray) -> Mapping[float, Process]:
        """The one fit there is."""
        return {1.0: self.fit(weights_PD, values_BP, counts_BP, 1.0)}

    def fit(self, weights_PD: np.ndarray, values_BP: np.ndarray, counts_BP: np.ndarray, penalty: float) -> Process:
        """Hyper-parameters and coefficients of every problem; `penalty` scales the prior on hyper-parameters.

        A problem with the values of an earlier one, as the folds of a metric have, begins where that one ended.
        """
        scaling = Scaling.of(values_BP, counts_BP)
        targets_BP = scaling.forward(values_BP)
        ended: dict[bytes, np.ndarray] = {}
        hyper_BK = np.empty((len(values_BP), weights_PD.shape[1] + 2))
        for turn, (targets_P, counts_P) in enumerate(zip(targets_BP, counts_BP, strict=True)):
            key = values_BP[turn].tobytes()
            rows = _subset(counts_P)
            evidence = Evidence(np.sqrt(weights_PD[rows]), targets_P[rows], counts_P[rows], penalty)
            hyper_BK[turn] = ended[key] = evidence.best(ended.get(key))
        return _conditioned(weights_PD, targets_BP, counts_BP, hyper_BK, scaling)

    def refit(
        self, law: FittedLaw, weights_PD: np.ndarray, values_BP: np.ndarray, counts_BP: np.ndarray, penalty: float
    ) -> Process:
        """The processes of `law` conditioned on the resampled runs, hyper-parameters kept."""
        assert isinstance(law, Process)
        scaling = Scaling.of(values_BP, counts_BP)
        hyper_BK = np.concatenate([law.log_amplitude_B[:, None], law.log_scale_BD, law.log_noise_B[:, None]], axis=1)
        return _conditioned(weights_PD, scaling.forward(values_BP), counts_BP, hyper_BK, scaling)

    def from_json(self, saved: Mapping[str, Any]) -> FittedLaw:
        """Read back the numbers."""
        numbers = {name: np.array(value, float) for name, value in saved.items() if name != "family"}
        return Process(numbers["inputs"], numbers["log_scale"], numbers["log_amplitude"], numbers["log_noise"],
                       numbers["coefficient"], Scaling(numbers["shift"], numbers["scale"]))  # fmt: skip


@dataclass(frozen=True, eq=False)
class Evidence:
    """Minus the log marginal likelihood per run, with the prior, of the runs of one problem."""

    roots_ND: np.ndarray
    targets_N: np.ndarray
    counts_N: np.ndarray
    penalty: float

    def best(self, start_K: np.ndarray | None) -> np.ndarray:
        """Hyper-parameters (K,) of the highest posterior."""
        from scipy.optimize import minimize  # here, so that reading a recipe does not load SciPy

        wide = [np.array([a, *[s] * self.roots_ND.shape[1], n]) for a, s, n in (PRIOR, *STARTS, LOWER, UPPER)]
        begin = [wide[0] + offset_K for offset_K in wide[1:-2]] if start_K is None else [start_K]
        bounds = list(zip(wide[-2], wide[-1], strict=True))
        found = [minimize(self.value_and_slope, start, jac=True, method="L-BFGS-B", bounds=bounds,
                          options={"maxiter": ITERATIONS}) for start in begin]  # fmt: skip
        return min(found, key=lambda result: result.fun).x

    def value_and_slope(self, hyper_K: np.ndarray) -> tuple[float, np.ndarray]:
        """The objective and its derivatives (K,)."""
        from scipy.linalg.lapack import dpotrf, dpotri  # pyright: ignore[reportAttributeAccessIssue]

        count = len(self.targets_N)
        scaled_ND = self.roots_ND * np.exp(-hyper_K[1:-1])
        smooth_NN = np.exp(2 * hyper_K[0]) * _correlation(scaled_ND, scaled_ND)
        noise_N = np.exp(2 * hyper_K[-1]) / self.counts_N
        factor_NN, failed = dpotrf(smooth_NN + np.diag(noise_N + 1e-10), lower=1)
        if failed:
            return 1e25, np.zeros_like(hyper_K)
        inverse_NN, _ = dpotri(factor_NN, lower=1)
        inverse_NN = np.tril(inverse_NN) + np.tril(inverse_NN, -1).T
        solved_N = inverse_NN @ self.targets_N
        value = 0.5 * self.targets_N @ solved_N + np.log(np.diag(factor_NN)).sum()
        outer_NN = inverse_NN - np.outer(solved_N, solved_N)
        pull_NN = outer_NN * smooth_NN
        rows_N = pull_NN.sum(axis=1)
        by_scale_D = rows_N @ scaled_ND**2 - (scaled_ND * (pull_NN @ scaled_ND)).sum(axis=0)
        slope_K = np.concatenate([[rows_N.sum()], by_scale_D, [np.diag(outer_NN) @ noise_N]])
        prior_K, spread_K = (np.array([a, *[s] * scaled_ND.shape[1], n]) for a, s, n in (PRIOR, SPREAD))
        away_K = (hyper_K - prior_K) / spread_K
        value += 0.5 * self.penalty * away_K @ away_K
        return float(value / count), (slope_K + self.penalty * away_K / spread_K) / count


def _conditioned(
    weights_PD: np.ndarray, targets_BP: np.ndarray, counts_BP: np.ndarray, hyper_BK: np.ndarray, scaling: Scaling
) -> Process:
    from scipy.linalg import cho_factor, cho_solve

    coefficient_BP = np.zeros_like(targets_BP)
    for turn, (hyper_K, counts_P) in enumerate(zip(hyper_BK, counts_BP, strict=True)):
        rows = np.flatnonzero(counts_P > 0)
        kernel_NN = np.exp(2 * hyper_K[0]) * _kernel(weights_PD[rows], weights_PD[rows], hyper_K[1:-1])
        kernel_NN[np.diag_indices(len(rows))] += np.exp(2 * hyper_K[-1]) / counts_P[rows] + 1e-10
        coefficient_BP[turn, rows] = cho_solve(cho_factor(kernel_NN, lower=True), targets_BP[turn, rows])
    return Process(weights_PD, hyper_BK[:, 1:-1], hyper_BK[:, 0], hyper_BK[:, -1], coefficient_BP, scaling)


def _subset(counts_P: np.ndarray) -> np.ndarray:
    """The runs that hyper-parameters see: all, or a seeded choice where there are many."""
    rows = np.flatnonzero(counts_P > 0)
    if len(rows) <= SUBSET:
        return rows
    return np.sort(np.random.default_rng(0).permutation(rows)[:SUBSET])


def _kernel(left_PD: np.ndarray, right_ND: np.ndarray, log_scale_D: np.ndarray) -> np.ndarray:
    narrow_D = np.exp(-log_scale_D)
    return _correlation(np.sqrt(left_PD) * narrow_D, np.sqrt(right_ND) * narrow_D)


def _correlation(left_PD: np.ndarray, right_ND: np.ndarray) -> np.ndarray:
    """Exponential of minus half the squared distance."""
    norms_PN = (left_PD**2).sum(axis=1)[:, None] + (right_ND**2).sum(axis=1)
    return np.exp(-0.5 * np.maximum(norms_PN - 2 * left_PD @ right_ND.T, 0.0))
