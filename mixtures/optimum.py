"""Find the mixture with the lowest predicted loss in a feasible set.

Laws with a gradient are minimised by SLSQP from several starts; those of this project are convex, so the starts agree.
Trees are searched as RegMix does: many draws around the prior, and the mean of the best 128, which smooths the steps of
the prediction. D domains, M metrics, P draws.
"""

from dataclasses import dataclass

import numpy as np

from mixtures.design import DesignSettings, draw
from mixtures.law_base import FittedLaw
from mixtures.simplex import Simplex, kl

DRAWS, FEW_DRAWS, BEST = 20_000, 256, 128
HULL_STEPS, HULL_TOLERANCE = 2000, 1e-9
INTERIOR = 1e-7  # sqrt and powers below 1 have no slope at 0


@dataclass(frozen=True, eq=False)
class Objective:
    """A weighted mean of predicted losses, plus a pull towards the prior.

    Attributes:
        law: predicts the metrics.
        coefficient_M: weight of each metric; sums to 1.
        prior_D: where the pull leads.
        strength: loss units per nat of KL(w || prior).
    """

    law: FittedLaw
    coefficient_M: np.ndarray
    prior_D: np.ndarray
    strength: float = 0.0

    def loss(self, weights_PD: np.ndarray) -> np.ndarray:
        """The predicted objective of each mixture (P,), without the pull."""
        return self.law.predict(weights_PD) @ self.coefficient_M

    def value(self, weights_D: np.ndarray) -> float:
        """Loss plus pull."""
        pull = self.strength * kl(weights_D, self.prior_D) if self.strength else 0.0
        return float(self.loss(weights_D[None])[0]) + pull

    def slope(self, weights_D: np.ndarray) -> np.ndarray | None:
        """Derivatives (D,) of `value`; None when the law has none."""
        gradient_MD = self.law.gradient(weights_D)
        if gradient_MD is None:
            return None
        ratio_D = np.maximum(weights_D, INTERIOR) / np.maximum(self.prior_D, INTERIOR)
        return self.coefficient_M @ gradient_MD + self.strength * (np.log(ratio_D) + 1)


def lowest(objective: Objective, space: Simplex, starts_PD: np.ndarray, seed: int) -> np.ndarray:
    """The best mixture found (D,), inside `space`.

    Args:
        objective: what to minimise.
        space: where.
        starts_PD: allowed mixtures to begin from.
        seed: of the draws.
    """
    settings = DesignSettings(kind="regmix", seed=seed)
    stepwise = objective.slope(starts_PD[0]) is None
    drawn_PD = draw(np.random.default_rng(seed), objective.prior_D, settings, DRAWS if stepwise else FEW_DRAWS)
    pool_PD = np.concatenate([starts_PD, space.project(drawn_PD)])
    pull_P = np.array([objective.strength * kl(row_D, objective.prior_D) for row_D in pool_PD])
    order_P = np.argsort(objective.loss(pool_PD) + pull_P, kind="stable")
    if stepwise:
        return space.project(pool_PD[order_P[:BEST]].mean(axis=0)[None])[0]
    begin_PD = np.concatenate([starts_PD, pool_PD[order_P[:2]]])
    found = [_descend(objective, space, begin_D) for begin_D in begin_PD]
    return min([*found, *begin_PD], key=objective.value)


def lowest_in_hull(objective: Objective, tried_PD: np.ndarray, seed: int) -> np.ndarray:
    """The best mixture (D,) among the convex combinations of mixtures that were tried.

    Inside their hull a law interpolates; outside it nothing was measured, and its intervals mean nothing. Laws with a
    gradient are minimised by exponentiated gradient on the combination's shares, halving steps that do not help.

    Args:
        objective: what to minimise.
        tried_PD: allowed mixtures; caps and floors are convex, so that combinations are allowed, too.
        seed: of the draws, for laws without a gradient.
    """
    if objective.slope(tried_PD[0]) is None:
        share_KP = np.random.default_rng(seed).dirichlet(np.full(len(tried_PD), 2 / len(tried_PD)), size=DRAWS)
        pool_PD = np.concatenate([tried_PD, share_KP @ tried_PD])
        pull_P = np.array([objective.strength * kl(row_D, objective.prior_D) for row_D in pool_PD])
        return pool_PD[np.argsort(objective.loss(pool_PD) + pull_P, kind="stable")[:BEST]].mean(axis=0)
    share_P = np.full(len(tried_PD), 1 / len(tried_PD))
    value, step = objective.value(share_P @ tried_PD), 1.0
    for _ in range(HULL_STEPS):
        slope_D = objective.slope(share_P @ tried_PD)
        assert slope_D is not None
        fall_P = tried_PD @ slope_D
        trial_P = share_P * np.exp(-step * (fall_P - fall_P.min()) / max(float(np.ptp(fall_P)), 1e-12))
        trial_P /= trial_P.sum()
        found = objective.value(trial_P @ tried_PD)
        if found > value:
            step /= 2
        else:
            done = value - found < HULL_TOLERANCE * max(abs(value), 1.0) and step < 1
            share_P, value, step = trial_P, found, step * 1.2
            if done:
                break
    return share_P @ tried_PD


def _descend(objective: Objective, space: Simplex, begin_D: np.ndarray) -> np.ndarray:
    from scipy.optimize import minimize  # here, so that reading a recipe does not load SciPy

    lower_D = np.minimum(np.maximum(space.lower_D, INTERIOR), space.upper_D)
    unit = max(abs(objective.value(begin_D)), 1.0)

    def value(weights_D: np.ndarray) -> float:
        return objective.value(weights_D) / unit

    def slope(weights_D: np.ndarray) -> np.ndarray:
        slope_D = objective.slope(weights_D)
        assert slope_D is not None
        return slope_D / unit

    sums: dict = {"type": "eq", "fun": lambda w_D: w_D.sum() - 1, "jac": np.ones_like}
    result = minimize(
        value, np.clip(begin_D, lower_D, space.upper_D), jac=slope, method="SLSQP", constraints=[sums],
        bounds=list(zip(lower_D, space.upper_D, strict=True)), options={"maxiter": 300, "ftol": 1e-12},
    )  # fmt: skip
    return space.project(np.where(np.isfinite(result.x), np.maximum(result.x, 0), 0)[None])[0]
