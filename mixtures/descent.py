"""Minimise a law: Newton's method within linear bounds, or within the hull of given mixtures.

A law costs milliseconds to evaluate, a quadratic costs microseconds: so a quadratic model of the law is minimised, and
the next is made where it was lowest. Within boxes and groups SLSQP minimises the model. In the hull it does so over the
shares of a few vertices, and the vertex that the slope favours most joins them until none would help (simplicial
decomposition). D domains, M metrics, P mixtures, V vertices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixtures.law_base import FittedLaw
from mixtures.risk import Risk
from mixtures.simplex import Simplex, kl

TURNS, HALVINGS, GAP = 60, 20, 1e-8  # models in a search; halvings of a step; units of the loss that are left
NEARBY = 1e-3  # relative step of the differences that give the curvature
LEAST_CURVATURE = 1e-8  # of the largest: a flat direction is not followed for ever
HULL_ROUNDS = 200  # rounds of a vertex each
INTERIOR = 1e-7  # sqrt and powers below 1 have no slope at 0
ITERATIONS, PRECISION = 300, 1e-13  # of SLSQP
NO_SHARE = 1e-9  # a vertex below it leaves
WHOLE = 100.0  # weight of the sum of shares against the mixture that they make


@dataclass(frozen=True, eq=False)
class Objective:
    """A weighted mean of predicted losses, with what is feared of it, plus a pull towards the prior.

    Attributes:
        law: predicts the metrics.
        coefficient_M: weight of each metric; sums to 1.
        prior_D: where the pull leads.
        strength: loss units per nat of KL(w || prior).
        risk: an upper bound over resampled laws that replaces the prediction, where one is wanted.
    """

    law: FittedLaw
    coefficient_M: np.ndarray
    prior_D: np.ndarray
    strength: float = 0.0
    risk: Risk | None = None

    def loss(self, weights_PD: np.ndarray) -> np.ndarray:
        """The predicted objective of each mixture (P,), without risk and pull."""
        return self.law.predict(weights_PD) @ self.coefficient_M

    def values(self, weights_PD: np.ndarray) -> np.ndarray:
        """What is minimised, for each mixture (P,): loss or its bound, plus pull."""
        loss_P = self.risk.values(weights_PD, self.loss(weights_PD)) if self.risk else self.loss(weights_PD)
        if not self.strength:
            return loss_P
        return loss_P + self.strength * np.array([kl(row_D, self.prior_D) for row_D in weights_PD])

    def value(self, weights_D: np.ndarray) -> float:
        """The same for one mixture."""
        return float(self.values(weights_D[None])[0])

    def slope(self, weights_D: np.ndarray) -> np.ndarray | None:
        """Derivatives (D,) of `value`; None when the law has none."""
        gradient_MD = self.law.gradient(weights_D)
        if gradient_MD is None:
            return None
        slope_D = self.coefficient_M @ gradient_MD
        if self.risk:
            slope_D = self.risk.slope(weights_D, slope_D)
        if not self.strength:
            return slope_D
        ratio_D = np.maximum(weights_D, INTERIOR) / np.maximum(self.prior_D, INTERIOR)
        return slope_D + self.strength * (np.log(ratio_D) + 1)


@dataclass(frozen=True, eq=False)
class Quadratic:
    """A second-order model of an objective about a mixture: cheap to minimise where the law is not.

    Attributes:
        at_D: the mixture.
        slope_D: derivatives there.
        curvature_DD: second derivatives, none of them below 0.
    """

    at_D: np.ndarray
    slope_D: np.ndarray
    curvature_DD: np.ndarray

    @classmethod
    def of(cls, objective: Objective, at_D: np.ndarray) -> "Quadratic":
        """The model about `at_D`; curvature by differences of the slope, its negative part turned over."""
        slope_D = _slope(objective, at_D)
        step_D = NEARBY * at_D + INTERIOR
        rows_DD = np.stack(
            [(_slope(objective, at_D + moved_D) - slope_D) / moved_D.sum() for moved_D in np.diag(step_D)]
        )
        value_D, vector_DD = np.linalg.eigh((rows_DD + rows_DD.T) / 2)
        least = LEAST_CURVATURE * max(float(np.abs(value_D).max()), 1e-12)
        return cls(at_D, slope_D, (vector_DD * np.maximum(np.abs(value_D), least)) @ vector_DD.T)

    def value(self, weights_D: np.ndarray) -> float:
        """Change against the mixture that the model is about."""
        way_D = weights_D - self.at_D
        return float(self.slope_D @ way_D + way_D @ self.curvature_DD @ way_D / 2)

    def slope(self, weights_D: np.ndarray) -> np.ndarray:
        """Derivatives (D,) of `value`."""
        return self.slope_D + self.curvature_DD @ (weights_D - self.at_D)


def _slope(objective: Objective, weights_D: np.ndarray) -> np.ndarray:
    slope_D = objective.slope(weights_D)
    assert slope_D is not None  # laws without one are searched by draws
    return slope_D


def newton(
    objective: Objective, lowest: Callable[[Quadratic, np.ndarray], np.ndarray], begin_D: np.ndarray
) -> np.ndarray:
    """Minimise models of the objective in turn, as far along each as the objective falls.

    Args:
        objective: what to minimise.
        lowest: where a model is lowest, begun at a mixture.
        begin_D: where to begin.
    """
    at_D, value = begin_D, objective.value(begin_D)
    for _ in range(TURNS):
        model = Quadratic.of(objective, at_D)
        goal_D = lowest(model, at_D)
        promised = -model.value(goal_D)
        if promised <= GAP:
            break
        for halving in range(HALVINGS):
            trial_D = at_D + 0.5**halving * (goal_D - at_D)
            trial = objective.value(trial_D)
            if trial < value - 1e-4 * 0.5**halving * promised:
                break
        else:
            break
        at_D, value = trial_D, trial
    return at_D


def _shares(vertices_PD: np.ndarray, near_D: np.ndarray) -> np.ndarray:
    """Shares (P,) of few vertices whose combination is nearest to a mixture."""
    from scipy.optimize import nnls  # here, so that reading a recipe does not load SciPy

    system = np.vstack([vertices_PD.T, np.full(len(vertices_PD), WHOLE)])
    share_P = nnls(system, np.append(near_D, WHOLE))[0]
    share_P[share_P <= NO_SHARE] = 0
    return share_P / share_P.sum()


def in_hull(vertices_PD: np.ndarray, near_D: np.ndarray) -> np.ndarray:
    """The convex combination (D,) of vertices nearest to a mixture."""
    return _shares(vertices_PD, near_D) @ vertices_PD


def lowest_in_hull(objective: Quadratic, vertices_PD: np.ndarray, near_D: np.ndarray) -> np.ndarray:
    """The best mixture (D,) among convex combinations of the vertices, begun at `near_D`."""
    share_P = _shares(vertices_PD, near_D)
    active = list(np.flatnonzero(share_P))
    share_V = share_P[active]
    found_D = share_V @ vertices_PD[active]
    for _ in range(HULL_ROUNDS):
        slope_D = objective.slope(found_D)
        fall_P = vertices_PD @ slope_D
        best = int(np.argmin(fall_P))
        if slope_D @ found_D - fall_P[best] <= GAP / 10:
            break
        if best not in active:
            active, share_V = [*active, best], np.append(share_V, 0.0)
        corners_VD = vertices_PD[active]
        solved_V = _best_shares(objective, corners_VD, share_V)
        if objective.value(solved_V @ corners_VD) >= objective.value(found_D):
            break
        kept = solved_V > NO_SHARE
        active = [vertex for vertex, keep in zip(active, kept, strict=True) if keep]
        share_V = solved_V[kept] / solved_V[kept].sum()
        found_D = share_V @ vertices_PD[active]
    return found_D


def _best_shares(objective: Quadratic, corners_VD: np.ndarray, start_V: np.ndarray) -> np.ndarray:
    ones = np.ones(len(start_V))
    found_V = _slsqp(
        lambda share_V: objective.value(share_V @ corners_VD),
        lambda share_V: corners_VD @ objective.slope(share_V @ corners_VD), start_V, 0 * ones, ones, [],
    )  # fmt: skip
    found_V = np.maximum(found_V, 0)
    return found_V / found_V.sum()


def descend(objective: Quadratic, space: Simplex, begin_D: np.ndarray) -> np.ndarray:
    """Where a model is lowest (D,) among the mixtures that the bounds allow."""
    lower_D = np.minimum(np.maximum(space.lower_D, INTERIOR), space.upper_D)
    budgets: list[dict[str, Any]] = []
    if len(space.group_lower_G):
        both_KD = np.vstack([space.groups_GD, -space.groups_GD])
        bound_K = np.concatenate([space.group_lower_G, -space.group_upper_G])
        budgets = [{"type": "ineq", "fun": lambda w_D: both_KD @ w_D - bound_K, "jac": lambda _: both_KD}]
    found_D = _slsqp(objective.value, objective.slope, begin_D, lower_D, space.upper_D, budgets)
    return space.project(np.maximum(found_D, 0)[None])[0]


def _slsqp(
    value: Callable[[np.ndarray], float],
    slope: Callable[[np.ndarray], np.ndarray],
    begin: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    budgets: list[dict[str, Any]],
) -> np.ndarray:
    """Minimise over points that sum to 1 within bounds; where it ends, or `begin` when that is not finite."""
    from scipy.optimize import minimize  # here, so that reading a recipe does not load SciPy

    unit = max(abs(value(begin)), 1.0)
    whole = {"type": "eq", "fun": lambda point: point.sum() - 1, "jac": np.ones_like}
    result = minimize(
        lambda point: value(point) / unit, np.clip(begin, lower, upper), jac=lambda point: slope(point) / unit,
        method="SLSQP", constraints=[whole, *budgets], bounds=list(zip(lower, upper, strict=True)),
        options={"maxiter": ITERATIONS, "ftol": PRECISION},
    )  # fmt: skip
    return result.x if np.isfinite(result.x).all() else begin
