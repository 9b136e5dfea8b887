"""The effective-data law: a loss falls as a power of the data that is effective for it.

    L = E + A (a0 + sum_i a_i w_i^b_i)^-g,    all of A, a, b, g positive, b_i <= 1

Domain i is worth a_i to the target, with returns that diminish by b_i < 1 (the `concave` form) or not at all (b_i = 1,
`effective_data`, half the parameters, for the smallest swarms). The sum is concave in w and L falls in it, so L is
convex and its optimum under caps is unique and, with b < 1, interior. P mixtures, D domains, B problems, K = 2 D + 4.
"""

from dataclasses import dataclass, field

import numpy as np

from mixtures.law_base import ParametricFamily

LEAST_EXPONENT, MOST_EXPONENT = 0.1, 1.0  # above 1 returns would grow with repetition
TYPICAL_EXPONENT = 0.5
SMALLEST_WEIGHT = 1e-9  # w^(b - 1) has no value at w = 0; weights are written in millionths


@dataclass(frozen=True, eq=False)
class EffectiveData:
    """The form at given mixtures; parameters are E, log A, log g, log a0, log a (D), log b (D)."""

    weights_PD: np.ndarray
    concave: bool
    log_PD: np.ndarray = field(init=False)
    used_PD: np.ndarray = field(init=False)
    prior_K: np.ndarray = field(init=False)
    precision_K: np.ndarray = field(init=False)
    lower_K: np.ndarray = field(init=False)
    upper_K: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        count = self.weights_PD.shape[1]
        used_PD = self.weights_PD > 0
        exponent = np.log(TYPICAL_EXPONENT) if self.concave else 0.0
        low, high = (np.log(LEAST_EXPONENT), np.log(MOST_EXPONENT)) if self.concave else (0.0, 0.0)
        head = {"prior_K": [-2.0, 0.5, np.log(0.5), np.log(0.05)], "precision_K": [0.02, 0.02, 1.0, 0.2],
                "lower_K": [-60.0, -12.0, np.log(0.03), -16.0], "upper_K": [5.0, 12.0, np.log(8.0), 6.0]}  # fmt: skip
        worth = {"prior_K": 0.0, "precision_K": 1.0, "lower_K": -16.0, "upper_K": 10.0}
        bend = {"prior_K": exponent, "precision_K": 3.0, "lower_K": low, "upper_K": high}
        for name, first in head.items():
            values_K = np.concatenate([first, np.full(count, worth[name]), np.full(count, bend[name])])
            object.__setattr__(self, name, values_K)
        object.__setattr__(self, "used_PD", used_PD)
        object.__setattr__(self, "log_PD", np.log(np.where(used_PD, self.weights_PD, 1.0)))

    def starts(self) -> np.ndarray:
        """From the prior with a moderate and with a steep power."""
        steep_K = self.prior_K.copy()
        steep_K[2] = np.log(1.5)
        return np.stack([self.prior_K, steep_K])

    def _parts(self, theta_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Worth of each domain (B, P, D), log of the effective data (B, P), and A x data^-g (B, P)."""
        count = self.weights_PD.shape[1]
        worth_BD, bend_BD = theta_BK[:, 4 : 4 + count], np.exp(theta_BK[:, 4 + count :])
        worth_BPD = np.exp(worth_BD[:, None, :] + bend_BD[:, None, :] * self.log_PD) * self.used_PD
        data_BP = np.log(np.exp(theta_BK[:, 3])[:, None] + worth_BPD.sum(axis=2))
        power_BP = np.exp(theta_BK[:, 1][:, None] - np.exp(theta_BK[:, 2])[:, None] * data_BP)
        return worth_BPD, data_BP, power_BP

    def values(self, theta_BK: np.ndarray) -> np.ndarray:
        """Predictions (B, P)."""
        return theta_BK[:, :1] + self._parts(theta_BK)[2]

    def jacobian(self, theta_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predictions (B, P) and derivatives (B, P, K)."""
        count = self.weights_PD.shape[1]
        worth_BPD, data_BP, power_BP = self._parts(theta_BK)
        gain_B1 = np.exp(theta_BK[:, 2])[:, None]
        slope_BPK = np.empty((*power_BP.shape, theta_BK.shape[1]))
        slope_BPK[:, :, 0] = 1.0
        slope_BPK[:, :, 1] = power_BP
        slope_BPK[:, :, 2] = -power_BP * gain_B1 * data_BP
        by_data_BP = -power_BP * gain_B1 * np.exp(-data_BP)
        slope_BPK[:, :, 3] = by_data_BP * np.exp(theta_BK[:, 3])[:, None]
        np.multiply(worth_BPD, by_data_BP[:, :, None], out=slope_BPK[:, :, 4 : 4 + count])
        bend_BD = np.exp(theta_BK[:, 4 + count :]) if self.concave else np.zeros_like(theta_BK[:, 4 + count :])
        np.multiply(slope_BPK[:, :, 4 : 4 + count], bend_BD[:, None, :] * self.log_PD, out=slope_BPK[:, :, 4 + count :])
        return theta_BK[:, :1] + power_BP, slope_BPK


class EffectiveDataFamily(ParametricFamily):
    """All exponents 1: returns do not diminish within a domain."""

    name = "effective_data"
    concave = False

    def curve(self, weights_PD: np.ndarray) -> EffectiveData:
        """The form bound to these mixtures."""
        return EffectiveData(weights_PD, self.concave)

    def slope(self, weights_D: np.ndarray, theta_BK: np.ndarray) -> np.ndarray:
        """Derivatives (B, D) by the weights."""
        count = len(weights_D)
        at_D = np.maximum(weights_D, SMALLEST_WEIGHT)
        worth_BPD, data_BP, power_BP = self.curve(at_D[None])._parts(theta_BK)
        by_data_B = -(power_BP * np.exp(theta_BK[:, 2])[:, None] * np.exp(-data_BP))[:, 0]
        return by_data_B[:, None] * worth_BPD[:, 0] * np.exp(theta_BK[:, 4 + count :]) / at_D


class ConcaveFamily(EffectiveDataFamily):
    """One exponent per domain, each at most 1."""

    name = "concave"
    concave = True
