"""What a bound costs: shadow prices of caps, floors and budgets, and the table of budgets against caps.

A price is the change of the best objective when a bound gives way a little, found by searching anew from the optimum.
For caps the step is unique tokens, so that it says what one more billion tokens of a domain is worth. At an optimum of
a smooth law this is the multiplier of the bound (the envelope theorem): tests compare the two. D domains, G groups.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pydantic import Field

from mixtures.bounds import Bounds
from mixtures.descent import Objective
from mixtures.mixture import Domains
from mixtures.optimum import Region
from mixtures.simplex import Simplex
from pipelines.errors import DataError
from pipelines.quantities import human
from pipelines.recipe import Section

BILLION = 10**9
POINT = 0.01  # of weight: the unit of the prices of floors and groups
LEAST_STEP, MOST_STEP = 1e-4, 1e-2  # of weight; a smaller step drowns in the search's precision, a larger one bends
CAPS = (4.0, 2.0, 1.0)  # of the table; returns vanish beyond 4 epochs, arXiv:2305.16264
TOLD = 3  # how many domains a row of the table names


class Prices(Section):
    """Change of the best objective when a bound that holds gives way; below 0 is better.

    Attributes:
        cap: domain -> per extra billion unique tokens.
        floor: domain -> per percentage point less.
        group: group or licence -> per percentage point that its budget gives way.
    """

    cap: dict[str, float]
    floor: dict[str, float]
    group: dict[str, float]


class CapRow(Section):
    """The best mixture under one budget and cap.

    Attributes:
        tokens, epoch_cap: the budget, and how often a domain may be read.
        loss: predicted target of the best allowed mixture; None where none is allowed.
        more: the same minus that without a cap.
        held: domains at their cap.
        largest: the heaviest domains.
        infeasible: why no mixture is allowed, where none is.
    """

    tokens: int
    epoch_cap: float | None
    loss: float | None = None
    more: float | None = None
    held: list[str] = Field(default_factory=list)
    largest: dict[str, float] = Field(default_factory=dict)
    infeasible: str | None = None


def prices(objective: Objective, region: Region, weights_D: np.ndarray, tokens_per_weight_D: np.ndarray) -> Prices:
    """Prices of the bounds that hold `weights_D`.

    Args:
        objective: what was minimised.
        region: where.
        weights_D: the optimum.
        tokens_per_weight_D: unique tokens that raise the cap of each domain by 1; infinite where tokens raise none.
    """
    space = region.space
    held = space.reasons(weights_D)
    before = objective.value(region.lowest(objective, weights_D))
    found: dict[str, dict[str, float]] = {"cap": {}, "floor": {}, "group": {}}

    def gained(moved: Simplex) -> float:
        return min(objective.value(region.within(moved).lowest(objective, weights_D)) - before, 0.0)

    for place, name in enumerate(space.names):
        if held.get(name) == "cap" and np.isfinite(tokens_per_weight_D[place]):
            billion = BILLION / tokens_per_weight_D[place]
            step = float(np.clip(billion, LEAST_STEP, MOST_STEP))
            upper_D = _moved(space.upper_D, place, min(step, 1 - space.upper_D[place]))
            found["cap"][name] = gained(replace(space, upper_D=upper_D)) * billion / step
        elif held.get(name) == "floor":
            step = min(MOST_STEP, float(space.lower_D[place]))
            found["floor"][name] = gained(replace(space, lower_D=_moved(space.lower_D, place, -step))) * POINT / step
    for place, name in enumerate(space.group_names):
        if name in held:
            most = held[name] == "most"
            bound_G = space.group_upper_G if most else space.group_lower_G
            step = min(MOST_STEP, float(1 - bound_G[place] if most else bound_G[place]))
            moved_G = _moved(bound_G, place, step if most else -step)
            moved = replace(space, group_upper_G=moved_G) if most else replace(space, group_lower_G=moved_G)
            found["group"][name] = gained(moved) * POINT / step
    return Prices.model_validate(found)


def _moved(bound: np.ndarray, place: int, step: float) -> np.ndarray:
    moved = bound.copy()
    moved[place] += step
    return moved


def cap_table(
    objective: Objective, told: Objective, region: Region, bounds: Bounds, domains: Domains, near_D: np.ndarray,
    budgets: Sequence[int], caps: Sequence[float] = CAPS,
) -> list[CapRow]:  # fmt: skip
    """The best mixture without a cap, then for each budget and cap; other bounds stay.

    Args:
        objective: what to minimise.
        told: what predicts the losses of the table.
        region: the search.
        bounds: as asked for.
        domains: in the order of the arrays.
        near_D: the optimum under `bounds`.
        budgets: training tokens T.
        caps: epochs E.
    """
    rows: list[CapRow] = []
    for tokens, cap in [(budgets[0], None), *((tokens, cap) for tokens in budgets for cap in caps)]:
        row = CapRow(tokens=tokens, epoch_cap=cap)
        try:
            space = bounds.model_copy(update={"tokens": tokens, "epoch_cap": cap}).space(domains)
        except DataError as error:
            rows.append(row.model_copy(update={"infeasible": str(error)}))
            continue
        weights_D = region.within(space).lowest(objective, near_D)
        loss = float(told.loss(weights_D[None])[0])
        free = rows[0].loss if rows else loss
        order = np.argsort(-weights_D, kind="stable")[:TOLD]
        rows.append(row.model_copy(update={
            "loss": loss, "more": None if free is None else loss - free,
            "held": [name for name, kind in space.reasons(weights_D).items() if kind == "cap"],
            "largest": {space.names[place]: round(float(weights_D[place]), 4) for place in order},
        }))  # fmt: skip
    return rows


def told_caps(rows: Sequence[CapRow]) -> dict[str, dict[str, object]]:
    """The table in words, for people and manifests: budget and cap -> loss, change and what is held."""
    told: dict[str, dict[str, object]] = {}
    for row in rows:
        name = f"{human(row.tokens)} tokens, " + (f"{row.epoch_cap:g} epochs" if row.epoch_cap else "no cap")
        if row.infeasible:
            told[name] = {"infeasible": row.infeasible}
        else:
            held = f"{len(row.held)} ({', '.join(row.held[:TOLD])}{' ...' if len(row.held) > TOLD else ''})"
            told[name] = {"loss": row.loss, "more": row.more, "at their cap": held if row.held else "none"}
    return told
