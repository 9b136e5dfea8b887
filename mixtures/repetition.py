"""Repeated data is worth less: a domain's weight is replaced by the share of the budget that its tokens are worth.

Epochs beyond the first lose value exponentially (Muennighoff et al., arXiv:2305.16264): from U unique tokens read e
times, D_eff = U + U R (1 - exp(-(e - 1) / R)) with R about 15 tokens' worth remain, and D_eff = e U up to one epoch.
A law that is fed w_i = D_eff,i / T knows that a small domain runs dry; where nothing is repeated nothing changes, bit
for bit. P mixtures, D domains, B problems.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mixtures.law_base import FittedLaw
from mixtures.mixture import check_same_names
from pipelines.quantities import Tokens
from pipelines.recipe import Section

HALF_LIFE = 15.0  # R*, fitted by Muennighoff et al. to 182 runs of up to 9B parameters


class Repetition(Section):
    """How much unique data there is behind the runs of a swarm.

    Attributes:
        tokens: budget of every run.
        unique_tokens: domain -> tokens, for every domain.
        half_life: R, epochs over which repeated tokens lose their worth.
    """

    tokens: Annotated[Tokens, Field(gt=0)]
    unique_tokens: dict[str, Annotated[Tokens, Field(gt=0)]]
    half_life: Annotated[float, Field(gt=0)] = HALF_LIFE

    def discount(self, domains: Sequence[str]) -> "Discount":
        """For weights in the order of `domains`.

        Raises:
            DataError: the names differ.
        """
        check_same_names("`repetition.unique_tokens`", tuple(self.unique_tokens), "the ratios table", tuple(domains))
        unique_D = np.array([self.unique_tokens[name] for name in domains], float)
        return Discount(unique_D / self.tokens, self.half_life)


@dataclass(frozen=True, eq=False)
class Discount:
    """What weights are worth.

    Attributes:
        once_D: weight at which a domain is read once, U_i / T.
        half_life: R.
    """

    once_D: np.ndarray
    half_life: float = HALF_LIFE

    def worth(self, weights_PD: np.ndarray) -> np.ndarray:
        """D_eff / T of each weight; the last axis is domains."""
        gained = -np.expm1(-self._beyond(weights_PD) / self.half_life)
        return np.where(weights_PD > self.once_D, self.once_D * (1 + self.half_life * gained), weights_PD)

    def slope(self, weights_D: np.ndarray) -> np.ndarray:
        """Derivative (D,) of `worth` by the weight of the same domain: 1 up to one epoch."""
        return np.exp(-self._beyond(weights_D) / self.half_life)

    def _beyond(self, weights_PD: np.ndarray) -> np.ndarray:
        """Epochs after the first."""
        return np.maximum(weights_PD / np.maximum(self.once_D, 1e-12) - 1, 0.0)


@dataclass(frozen=True, eq=False)
class RepeatedLaw:
    """A law of what weights are worth."""

    law: FittedLaw
    discount: Discount

    @property
    def family(self) -> str:
        """The family of the law within."""
        return self.law.family

    def predict(self, weights_PD: np.ndarray) -> np.ndarray:
        """Losses (P, B)."""
        return self.law.predict(self.discount.worth(weights_PD))

    def gradient(self, weights_D: np.ndarray) -> np.ndarray | None:
        """Derivatives (B, D); None where the law has none."""
        inner_BD = self.law.gradient(self.discount.worth(weights_D))
        return None if inner_BD is None else inner_BD * self.discount.slope(weights_D)

    def take(self, problems: Sequence[int]) -> "RepeatedLaw":
        """The law of some of the problems."""
        return RepeatedLaw(self.law.take(problems), self.discount)

    def to_json(self) -> dict[str, Any]:
        """The law within, and where each domain is read once."""
        repetition = {"once": self.discount.once_D.tolist(), "half_life": self.discount.half_life}
        return {"family": self.family, "repetition": repetition, "law": self.law.to_json()}


def discount_from_json(saved: Mapping[str, Any]) -> Discount:
    """Read back what `RepeatedLaw.to_json` keeps under `repetition`."""
    return Discount(np.array(saved["once"], float), float(saved["half_life"]))
