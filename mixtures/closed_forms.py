"""Mixtures that need no experiment: proportional, temperature, uniform, UniMax.

They are the baselines that every proposal has to beat: in arXiv:2411.05735 no earlier method beats uniform
consistently. UniMax (arXiv:2304.09151) spreads a budget as evenly as an epoch cap allows. Under bounds a closed form
becomes the nearest allowed mixture by KL; uniform under an epoch cap is then UniMax.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from mixtures.bounds import Bounds
from mixtures.mixture import Domains, Mixture
from pipelines.errors import DataError


class ClosedSettings(Bounds):
    """Which closed form, within which bounds.

    Attributes:
        kind: `proportional` and `uniform` need nothing more, `temperature` needs `tau`, `unimax` needs `tokens` and
            `epoch_cap`.
        tau: weights go with `unique_tokens ** (1 / tau)`; 1 is proportional, large tau uniform.
        name: of the mixture; the kind when not given.
    """

    kind: Literal["proportional", "temperature", "uniform", "unimax"]
    tau: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    name: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "ClosedSettings":
        if (self.kind == "temperature") != (self.tau is not None):
            raise ValueError("tau belongs to kind temperature, which needs it (tau 1 is proportional, 2 is flatter)")
        if self.epoch_cap is not None and self.tokens is None:
            raise ValueError("an epoch cap needs a token budget: give --tokens as well")
        if self.kind == "unimax" and self.epoch_cap is None:
            raise ValueError("unimax spreads a budget under a cap: give --tokens and --epoch-cap")
        return self


def closed_form(domains: Domains, settings: ClosedSettings) -> Mixture:
    """A closed form as a mixture inside its bounds, unrounded: what a formula gives is compared with the formula.

    Raises:
        RecipeError: a pattern of the bounds means no domain.
        DataError: the bounds allow no mixture; says why and by how much.
    """
    space = settings.space(domains)
    if settings.kind == "unimax":
        weights = unimax(domains, settings.tokens or 0, settings.epoch_caps(domains))
    elif settings.kind == "uniform":
        weights = uniform(domains)
    else:
        weights = temperature(domains, settings.tau or 1.0)
    inside_D = space.project(np.array([list(weights.values())]))[0]
    inside = dict(zip(domains.names, inside_D.tolist(), strict=True))
    name, about = settings.name or settings.kind, "by formula, inside its bounds"
    return Mixture(name=name, about=about, weights=inside, tokens=settings.tokens, epoch_cap=settings.epoch_cap)


def temperature(domains: Domains, tau: float = 1.0) -> dict[str, float]:
    """Weights in proportion to `unique_tokens ** (1 / tau)`; tau 1 is proportional, large tau uniform.

    Raises:
        DataError: tau is not positive.
    """
    if not tau > 0:
        raise DataError(f"temperature is {tau}, expected a positive number")
    largest = max(domains.unique_tokens.values())  # ratios first: no overflow at small tau
    scaled = {name: (count / largest) ** (1 / tau) for name, count in domains.unique_tokens.items()}
    total = math.fsum(scaled.values())  # in whatever order the domains are
    return {name: value / total for name, value in scaled.items()}


def proportional(domains: Domains) -> dict[str, float]:
    """Weights in proportion to unique tokens: every domain is read equally often."""
    return temperature(domains, 1.0)


def uniform(domains: Domains) -> dict[str, float]:
    """The same weight for every domain."""
    return {name: 1 / len(domains) for name in domains.names}


def unimax_budgets(domains: Domains, tokens: float, epochs: float | Mapping[str, float]) -> dict[str, float]:
    """Tokens to draw from each domain, evenly but at most `epochs` times what it holds.

    Domains are served from the one that can give least, each taking an even share of what is left or all it can give.

    Args:
        domains: what there is.
        tokens: the budget.
        epochs: cap on repetition: one number, or domain -> number, where a domain without one has no cap.

    Returns:
        Domain -> tokens; they sum to less than `tokens` when every domain is at its cap.
    """
    caps = epochs if isinstance(epochs, Mapping) else dict.fromkeys(domains.names, epochs)
    most = {name: caps.get(name, np.inf) * held for name, held in domains.unique_tokens.items()}
    budgets: dict[str, float] = {}
    left = float(tokens)
    for position, name in enumerate(sorted(most, key=lambda name: (most[name], name))):
        budgets[name] = min(left / (len(most) - position), most[name])
        left -= budgets[name]
    return {name: budgets[name] for name in domains.names}


def unimax(domains: Domains, tokens: float, epochs: float | Mapping[str, float]) -> dict[str, float]:
    """UniMax weights: the budgets of `unimax_budgets` over their sum."""
    budgets = unimax_budgets(domains, tokens, epochs)
    total = math.fsum(budgets.values())
    return {name: budget / total for name, budget in budgets.items()}
