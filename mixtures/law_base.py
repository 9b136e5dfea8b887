"""What a mixing law is: a family that can be fitted, and a fitted law that predicts, differentiates and is saved.

One fitted law holds B problems at once (a metric each, or a metric and a fold each), all over the same domains.
Families are fitted along a path of penalties, strong to weak, so that cross-validation can choose the strength.
Nothing here knows names: `fitting` keys columns by name. P mixtures, D domains, B problems, K parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mixtures.least_squares import Form, Problems, cost_of, minimise


class FittedLaw(Protocol):
    """Predictions of B losses from a mixture."""

    @property
    def family(self) -> str:
        """Name of the family."""
        ...

    def predict(self, weights_PD: np.ndarray) -> np.ndarray:
        """Losses (P, B), in the units they were measured in."""
        ...

    def gradient(self, weights_D: np.ndarray) -> np.ndarray | None:
        """Derivatives (B, D) of each loss by each weight; None where the law has none."""
        ...

    def take(self, problems: Sequence[int]) -> "FittedLaw":
        """The law of some of the problems."""
        ...

    def to_json(self) -> dict[str, Any]:
        """All there is to it, as JSON values."""
        ...


class Family(Protocol):
    """A kind of law."""

    @property
    def name(self) -> str:
        """What recipes call it."""
        ...

    @property
    def penalties(self) -> tuple[float, ...]:
        """Strengths to try, strong to weak."""
        ...

    @property
    def least_runs(self) -> int:
        """Fewer runs than this and the family is not tried."""
        ...

    def fit_path(
        self, weights_PD: np.ndarray, values_BP: np.ndarray, counts_BP: np.ndarray
    ) -> Mapping[float, FittedLaw]:
        """Fit every problem at every penalty.

        Args:
            weights_PD: mixtures.
            values_BP: losses.
            counts_BP: how often each mixture counts in each problem: 0 holds it out, a resample may count it twice.
        """
        ...

    def fit(self, weights_PD: np.ndarray, values_BP: np.ndarray, counts_BP: np.ndarray, penalty: float) -> FittedLaw:
        """Fit every problem at one penalty."""
        ...

    def refit(
        self, law: FittedLaw, weights_PD: np.ndarray, values_BP: np.ndarray, counts_BP: np.ndarray, penalty: float
    ) -> FittedLaw:
        """Fit resamples of a swarm, each problem beginning where `law`, fitted to the swarm itself, ended."""
        ...

    def from_json(self, saved: Mapping[str, Any]) -> FittedLaw:
        """Read back what `to_json` gave."""
        ...


REFIT_ITERATIONS = 25  # of a resample, begun at the fit to all: more moves held-out predictions by 1% of their error


@dataclass(frozen=True, eq=False)
class Scaling:
    """Units of each problem: fitted in (loss - shift) / scale."""

    shift_B: np.ndarray
    scale_B: np.ndarray

    @classmethod
    def of(cls, values_BP: np.ndarray, counts_BP: np.ndarray) -> "Scaling":
        """Mean and standard deviation of what each problem sees."""
        share_BP = counts_BP / counts_BP.sum(axis=1, keepdims=True)
        shift_B = (share_BP * values_BP).sum(axis=1)
        spread_B = np.sqrt((share_BP * (values_BP - shift_B[:, None]) ** 2).sum(axis=1))
        least_B = 1e-9 * np.maximum(np.abs(shift_B), 1.0)  # a metric that does not vary is predicted as its mean
        return cls(shift_B, np.maximum(spread_B, least_B))

    def forward(self, values_BP: np.ndarray) -> np.ndarray:
        """To standardized units."""
        return (values_BP - self.shift_B[:, None]) / self.scale_B[:, None]

    def back(self, values_BP: np.ndarray) -> np.ndarray:
        """To the units of the loss."""
        return values_BP * self.scale_B[:, None] + self.shift_B[:, None]


class Curve(Form, Protocol):
    """A form bound to some mixtures, that can also be differentiated by the weights of one mixture."""

    def starts(self) -> np.ndarray:
        """Where fitting begins: (starts, K)."""
        ...


@dataclass(frozen=True, eq=False)
class ParametricLaw:
    """Fitted coefficients of a parametric family."""

    kind: "ParametricFamily"
    theta_BK: np.ndarray
    scaling: Scaling

    @property
    def family(self) -> str:
        """The family's name."""
        return self.kind.name

    def predict(self, weights_PD: np.ndarray) -> np.ndarray:
        """Losses (P, B)."""
        return self.scaling.back(self.kind.curve(weights_PD).values(self.theta_BK)).T

    def gradient(self, weights_D: np.ndarray) -> np.ndarray:
        """Derivatives (B, D)."""
        return self.kind.slope(weights_D, self.theta_BK) * self.scaling.scale_B[:, None]

    def take(self, problems: Sequence[int]) -> "ParametricLaw":
        """The law of some of the problems."""
        rows = list(problems)
        scaling = Scaling(self.scaling.shift_B[rows], self.scaling.scale_B[rows])
        return ParametricLaw(self.kind, self.theta_BK[rows], scaling)

    def to_json(self) -> dict[str, Any]:
        """Family, coefficients and units."""
        return {
            "family": self.family,
            "theta": self.theta_BK.tolist(),
            "shift": self.scaling.shift_B.tolist(),
            "scale": self.scaling.scale_B.tolist(),
        }


class ParametricFamily(ABC):
    """Base of the families that are fitted by least squares with a penalty."""

    name: str
    penalties: tuple[float, ...] = (100.0, 10.0, 1.0, 0.1, 0.01, 0.001)
    least_runs: int = 4

    @abstractmethod
    def curve(self, weights_PD: np.ndarray) -> Curve:
        """The form bound to these mixtures."""

    @abstractmethod
    def slope(self, weights_D: np.ndarray, theta_BK: np.ndarray) -> np.ndarray:
        """Derivatives (B, D) by the weights, in standardized units."""

    def fit_path(
        self, weights_PD: np.ndarray, values_BP: np.ndarray, counts_BP: np.ndarray
    ) -> Mapping[float, ParametricLaw]:
        """Fit from the strongest penalty on, each strength beginning where the one before ended."""
        curve = self.curve(weights_PD)
        scaling = Scaling.of(values_BP, counts_BP)
        targets_BP = np.where(counts_BP > 0, scaling.forward(values_BP), 0.0)
        runs_B = counts_BP.sum(axis=1)
        laws, theta_BK = {}, None
        for penalty in self.penalties:
            # the penalty is a prior's precision: its weight against the mean residual falls with the number of runs
            problems = Problems(targets_BP, counts_BP / runs_B[:, None], penalty / runs_B)
            theta_BK = _best_start(curve, problems) if theta_BK is None else minimise(curve, problems, theta_BK)[0]
            laws[penalty] = ParametricLaw(self, theta_BK, scaling)
        return laws

    def fit(
        self, weights_PD: np.ndarray, values_BP: np.ndarray, counts_BP: np.ndarray, penalty: float
    ) -> ParametricLaw:
        """Fit along the path down to `penalty`."""
        return self.fit_path(weights_PD, values_BP, counts_BP)[penalty]

    def refit(
        self, law: FittedLaw, weights_PD: np.ndarray, values_BP: np.ndarray, counts_BP: np.ndarray, penalty: float
    ) -> ParametricLaw:
        """Fit from the coefficients of `law` on, at one penalty."""
        assert isinstance(law, ParametricLaw)
        scaling = Scaling.of(values_BP, counts_BP)
        runs_B = counts_BP.sum(axis=1)
        targets_BP = np.where(counts_BP > 0, scaling.forward(values_BP), 0.0)
        problems = Problems(targets_BP, counts_BP / runs_B[:, None], penalty / runs_B)
        return ParametricLaw(
            self, minimise(self.curve(weights_PD), problems, law.theta_BK, REFIT_ITERATIONS)[0], scaling
        )

    def from_json(self, saved: Mapping[str, Any]) -> ParametricLaw:
        """Read back coefficients and units."""
        scaling = Scaling(np.array(saved["shift"], float), np.array(saved["scale"], float))
        return ParametricLaw(self, np.array(saved["theta"], float), scaling)


def _best_start(curve: Curve, problems: Problems) -> np.ndarray:
    """Fit from every start and keep, for each problem, the one that ended lowest."""
    best_BK, best_B = None, None
    for start_K in curve.starts():
        theta_BK, cost_B = minimise(curve, problems, np.tile(start_K, (len(problems.targets_BP), 1)))
        if best_BK is None or best_B is None:
            best_BK, best_B = theta_BK, cost_B
        else:
            lower_B = cost_B < best_B
            best_BK, best_B = np.where(lower_B[:, None], theta_BK, best_BK), np.minimum(cost_B, best_B)
    assert best_BK is not None
    assert np.isfinite(cost_of(curve, problems, best_BK)).all()
    return best_BK
