"""Ridge regression on [w, sqrt w]: linear in its coefficients, with diminishing returns in each domain.

Fitted by the same solver as the other laws (one step: the problem is quadratic), so folds and resamples cost the same.
Linear in w alone (`ols`) ranks RegMix's 60M runs at 82.9, with the square roots at 97.0. The `constant` family is here
too: the mean, which reveals when the others have learned nothing. P mixtures, D domains, B problems, K = 1 + 2 D.
"""

from dataclasses import dataclass, field

import numpy as np

from mixtures.law_base import ParametricFamily

FARTHEST = 1e6  # bounds that never bind


@dataclass(frozen=True, eq=False)
class Linear:
    """The form at given mixtures; parameters are the intercept, then one slope per feature."""

    features_PF: np.ndarray
    prior_K: np.ndarray = field(init=False)
    precision_K: np.ndarray = field(init=False)
    lower_K: np.ndarray = field(init=False)
    upper_K: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        count = 1 + self.features_PF.shape[1]
        object.__setattr__(self, "prior_K", np.zeros(count))
        object.__setattr__(self, "precision_K", np.concatenate([[1e-6], np.full(count - 1, 0.1)]))
        object.__setattr__(self, "lower_K", np.full(count, -FARTHEST))
        object.__setattr__(self, "upper_K", np.full(count, FARTHEST))

    def starts(self) -> np.ndarray:
        """The mean."""
        return self.prior_K[None]

    def values(self, theta_BK: np.ndarray) -> np.ndarray:
        """Predictions (B, P)."""
        return theta_BK[:, :1] + theta_BK[:, 1:] @ self.features_PF.T

    def jacobian(self, theta_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predictions (B, P) and derivatives (B, P, K)."""
        ones_P1 = np.ones((len(self.features_PF), 1))
        design_PK = np.concatenate([ones_P1, self.features_PF], axis=1)
        return self.values(theta_BK), np.broadcast_to(design_PK, (len(theta_BK), *design_PK.shape))


class RidgeFamily(ParametricFamily):
    """Features w and sqrt w."""

    name = "ridge"

    def curve(self, weights_PD: np.ndarray) -> Linear:
        """The form bound to these mixtures."""
        return Linear(np.concatenate([weights_PD, np.sqrt(weights_PD)], axis=1))

    def slope(self, weights_D: np.ndarray, theta_BK: np.ndarray) -> np.ndarray:
        """Derivatives (B, D) by the weights."""
        count = len(weights_D)
        roots_D = np.sqrt(np.maximum(weights_D, 1e-9))
        return theta_BK[:, 1 : 1 + count] + theta_BK[:, 1 + count :] / (2 * roots_D)


class OlsFamily(ParametricFamily):
    """Features w, hardly penalised: ordinary least squares, the baseline that RegMix compares with."""

    name = "ols"
    penalties = (1e-6,)  # the weights sum to 1, so that without any penalty the intercept would be undetermined

    def curve(self, weights_PD: np.ndarray) -> Linear:
        """The form bound to these mixtures."""
        return Linear(weights_PD)

    def slope(self, weights_D: np.ndarray, theta_BK: np.ndarray) -> np.ndarray:
        """Derivatives (B, D) by the weights."""
        return theta_BK[:, 1:]


class ConstantFamily(ParametricFamily):
    """No features: the mean of the runs."""

    name = "constant"
    penalties = (0.01,)

    def curve(self, weights_PD: np.ndarray) -> Linear:
        """The form bound to these mixtures."""
        return Linear(np.empty((len(weights_PD), 0)))

    def slope(self, weights_D: np.ndarray, theta_BK: np.ndarray) -> np.ndarray:
        """Zero."""
        return np.zeros((len(theta_BK), len(weights_D)))
