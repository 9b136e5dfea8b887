"""Find the mixture with the lowest predicted loss in a feasible set, or in the hull of the mixtures that were tried.

Laws with a gradient are minimised by Newton's method from several starts; the parametric ones are convex, so that the
starts agree. Laws without one are searched as RegMix does: many draws, and the mean of the best 128, which smooths the
steps of the prediction. D domains, P mixtures.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from mixtures.descent import INTERIOR, Objective, Quadratic, descend, in_hull, lowest_in_hull, newton
from mixtures.design import DesignSettings, dirichlet, draw
from mixtures.simplex import Simplex

DRAWS, MANY_DRAWS, FEW_DRAWS, BEST = 20_000, 100_000, 256, 128

Support = Literal["hull", "free", "draws"]


@dataclass(frozen=True, eq=False)
class Region:
    """Where a proposal is looked for, and how.

    Attributes:
        space: the feasible set.
        tried_PD: the mixtures of the swarm and the prior, as they are, whatever the bounds say.
        support: `hull`: the convex combinations of what was tried, moved into the bounds; `free`: all that the bounds
            allow; `draws`: RegMix's method, the mean of the best 128 of 100,000 Dirichlet draws around the prior.
        seed: of the draws.
    """

    space: Simplex
    tried_PD: np.ndarray
    support: Support = "hull"
    seed: int = 0

    @cached_property
    def allowed_PD(self) -> np.ndarray:
        """What was tried, moved into the bounds: distinct rows."""
        rows_PD = self.space.project(self.tried_PD)
        return rows_PD[np.sort(np.unique(rows_PD, axis=0, return_index=True)[1])]

    def within(self, space: Simplex) -> "Region":
        """The same search within other bounds."""
        return replace(self, space=space)

    def lowest(self, objective: Objective, near_D: np.ndarray | None = None) -> np.ndarray:
        """The best mixture found (D,), inside the space.

        Args:
            objective: what to minimise.
            near_D: an optimum of a similar objective; the search begins there and nowhere else.
        """
        prior_D = self.space.project(objective.prior_D[None])[0]
        if self.support == "draws" or objective.slope(prior_D) is None:
            return self._best_draws(objective)
        if near_D is not None:
            starts_PD = self.space.project(near_D[None])
        else:
            order_P = np.argsort(objective.values(self.allowed_PD), kind="stable")
            starts_PD = np.concatenate([prior_D[None], self.allowed_PD[order_P[:1]]])
        if self.support == "hull":
            starts_PD = np.stack([in_hull(self.allowed_PD, start_D) for start_D in starts_PD])
        elif near_D is None:
            starts_PD = np.concatenate([starts_PD, self._best_start(objective)])
        found = [newton(objective, self._lowest_of_model, start_D) for start_D in starts_PD]
        return self.space.project(min(found, key=objective.value)[None])[0]

    def _lowest_of_model(self, model: Quadratic, near_D: np.ndarray) -> np.ndarray:
        if self.support == "hull":
            return lowest_in_hull(model, self.allowed_PD, near_D)
        return descend(model, self.space, near_D)

    def _best_start(self, objective: Objective) -> np.ndarray:
        drawn_PD = self._drawn(objective.prior_D, FEW_DRAWS)
        return drawn_PD[[int(np.argmin(objective.values(drawn_PD)))]]

    def _drawn(self, prior_D: np.ndarray, count: int) -> np.ndarray:
        settings = DesignSettings(kind="regmix")
        return self.space.project(draw(np.random.default_rng(self.seed), prior_D, settings, count))

    def _best_draws(self, objective: Objective) -> np.ndarray:
        random = np.random.default_rng(self.seed)
        if self.support == "draws":
            shape_D = np.maximum(objective.prior_D, INTERIOR)
            pool_PD = self.space.project(dirichlet(random, np.tile(shape_D, (MANY_DRAWS, 1))))
        elif self.support == "free":
            pool_PD = np.concatenate([self.allowed_PD, self._drawn(objective.prior_D, DRAWS)])
        else:
            count = len(self.allowed_PD)
            share_KP = random.dirichlet(np.full(count, 2 / count), size=DRAWS)
            pool_PD = np.concatenate([self.allowed_PD, share_KP @ self.allowed_PD])
        order_P = np.argsort(objective.values(pool_PD), kind="stable")
        return self.space.project(pool_PD[order_P[:BEST]].mean(axis=0)[None])[0]
