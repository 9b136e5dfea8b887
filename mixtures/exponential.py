"""The exponential mixing law: L = c + exp(u + t . w), from Data Mixing Laws (arXiv:2403.16952).

It is log-linear in the weights, cheap and hard to overfit, and its optimum is a corner of the feasible set. The level
u is kept apart from the slopes t, so that the penalty pulls the slopes alone towards no effect. P mixtures, D domains,
B problems, K = D + 2.
"""

from dataclasses import dataclass, field

import numpy as np

from mixtures.law_base import ParametricFamily


@dataclass(frozen=True, eq=False)
class Exponential:
    """The form at given mixtures; parameters are c, u, t (D)."""

    weights_PD: np.ndarray
    prior_K: np.ndarray = field(init=False)
    precision_K: np.ndarray = field(init=False)
    lower_K: np.ndarray = field(init=False)
    upper_K: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        count = self.weights_PD.shape[1]
        # slopes reach tens in published swarms, where a domain's own loss spans its range within 5% of weight
        head = {"prior_K": ([-2.0, 0.5], 0.0), "precision_K": ([0.02, 0.02], 0.01),
                "lower_K": ([-60.0, -12.0], -200.0), "upper_K": ([5.0, 12.0], 60.0)}  # fmt: skip
        for name, (first, slopes) in head.items():
            object.__setattr__(self, name, np.concatenate([first, np.full(count, slopes)]))

    def starts(self) -> np.ndarray:
        """No effect, with the floor of the loss near and far."""
        far_K = self.prior_K.copy()
        far_K[:2] = [-6.0, 1.8]
        return np.stack([self.prior_K, far_K])

    def _power(self, theta_BK: np.ndarray) -> np.ndarray:
        return np.exp(np.minimum(theta_BK[:, 1:2] + theta_BK[:, 2:] @ self.weights_PD.T, 60.0))

    def values(self, theta_BK: np.ndarray) -> np.ndarray:
        """Predictions (B, P)."""
        return theta_BK[:, :1] + self._power(theta_BK)

    def jacobian(self, theta_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predictions (B, P) and derivatives (B, P, K)."""
        power_BP = self._power(theta_BK)
        slope_BPK = np.empty((*power_BP.shape, theta_BK.shape[1]))
        slope_BPK[:, :, 0] = 1.0
        slope_BPK[:, :, 1] = power_BP
        np.multiply(power_BP[:, :, None], self.weights_PD, out=slope_BPK[:, :, 2:])
        return theta_BK[:, :1] + power_BP, slope_BPK


class ExponentialFamily(ParametricFamily):
    """One slope per domain."""

    name = "exponential"

    def curve(self, weights_PD: np.ndarray) -> Exponential:
        """The form bound to these mixtures."""
        return Exponential(weights_PD)

    def slope(self, weights_D: np.ndarray, theta_BK: np.ndarray) -> np.ndarray:
        """Derivatives (B, D) by the weights."""
        return self.curve(weights_D[None])._power(theta_BK) * theta_BK[:, 2:]
