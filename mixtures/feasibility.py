"""Whether any mixture satisfies a set of bounds, and if none does, why.

The plain reasons come first, each with its number: a floor above its cap, floors above 1, caps that hold fewer tokens
than the horizon, a group that its members cannot fill. What remains is settled by a linear program that lets the
groups give way by as little as possible: its multipliers name the bounds that conflict. D domains, G groups.
"""

from typing import NamedTuple

import numpy as np

from pipelines.errors import DataError
from pipelines.quantities import human

SLACK = 1e-9  # what bounds may miss each other by, as a weight: rounding, not conflict


class Case(NamedTuple):
    """The bounds of a feasible set as arrays; see `mixtures.simplex.Simplex`."""

    names: tuple[str, ...]
    lower_D: np.ndarray
    upper_D: np.ndarray
    groups_GD: np.ndarray
    group_lower_G: np.ndarray
    group_upper_G: np.ndarray
    group_names: tuple[str, ...]


def check_feasible(case: Case, held_D: np.ndarray, cap_D: np.ndarray, tokens: int | None) -> None:
    """Make sure that a mixture exists.

    Args:
        case: the bounds.
        held_D: unique tokens of the domains.
        cap_D: how often each domain may be read; infinite where that is not limited.
        tokens: training budget, for saying weights as tokens.

    Raises:
        DataError: none exists; says which bounds conflict and by how much.
    """
    reason = (
        _floor_above_cap(case)
        or _caps_below_horizon(case, held_D, cap_D, tokens)
        or _group_alone(case, tokens)
        or _conflict(case, tokens)
    )
    if reason:
        raise DataError(f"no mixture fits: {reason}")


def _floor_above_cap(case: Case) -> str | None:
    for name, low, high in zip(case.names, case.lower_D, case.upper_D, strict=True):
        if low > high + SLACK:
            return f"the floor of {name!r} is {low:g} but its epoch cap allows {high:.4g}"
    if case.lower_D.sum() > 1 + SLACK:
        return f"the floors sum to {case.lower_D.sum():g}, more than 1"
    return None


def _caps_below_horizon(case: Case, held_D: np.ndarray, cap_D: np.ndarray, tokens: int | None) -> str | None:
    missing = 1 - float(case.upper_D.sum())
    if not tokens or missing <= SLACK:
        return None
    allowed, largest = human((1 - missing) * tokens), float(cap_D.max())
    needed = human(missing * tokens / largest)
    if (cap_D == largest).all():
        at = "" if largest == 1 else f" at {largest:g} epochs"
        return f"the caps allow {allowed} tokens of {human(tokens)}{at}: needs {needed} more tokens"
    widest = case.names[int(np.argmax(np.where(cap_D == largest, held_D, 0)))]
    return (
        f"the caps allow {allowed} tokens of {human(tokens)}: needs {needed} more tokens of {widest!r}, whose cap of "
        f"{largest:g} epochs is the largest, or more of others"
    )


def _group_alone(case: Case, tokens: int | None) -> str | None:
    """A group that fits none of what its members may be, or that leaves the others too much or too little."""
    floors_G, caps_G = case.groups_GD @ case.lower_D, case.groups_GD @ case.upper_D
    rows = zip(case.group_names, case.group_lower_G, case.group_upper_G, floors_G, caps_G, strict=True)
    for name, least, most, floors, caps in rows:
        if floors > most + SLACK:
            return f"{name} may have at most {most:g}, but the floors in it sum to {floors:.4g}"
        if caps < least - SLACK:
            needs = f": needs {human((least - caps) * tokens)} more tokens to read there" if tokens else ""
            return f"{name} must have at least {least:g}, but the caps in it allow {caps:.4g}{needs}"
    rest_G = (1 - case.groups_GD) @ case.upper_D
    for name, most, rest in zip(case.group_names, case.group_upper_G, rest_G, strict=True):
        if most + rest < 1 - SLACK:
            if not rest:
                return f"{name} means every domain and may have at most {most:g}"
            gap = _amount(1 - most - rest, tokens)
            return f"{name} may have at most {most:g} and all others have caps for {rest:.4g}; {gap} has no place"
    return None


def _conflict(case: Case, tokens: int | None) -> str | None:
    """Bounds that conflict only together: the multipliers of the program that bends the groups least."""
    if not case.group_names:
        return None
    from scipy.optimize import linprog

    groups, domains = len(case.group_names), len(case.names)
    nothing_GG, whole_GG = np.zeros((groups, groups)), np.eye(groups)
    found = linprog(
        np.concatenate([np.zeros(domains), np.ones(2 * groups)]),
        A_ub=np.block([[-case.groups_GD, -whole_GG, nothing_GG], [case.groups_GD, nothing_GG, -whole_GG]]),
        b_ub=np.concatenate([-case.group_lower_G, case.group_upper_G]),
        A_eq=np.concatenate([np.ones(domains), np.zeros(2 * groups)])[None], b_eq=[1.0],
        bounds=[*zip(case.lower_D, case.upper_D, strict=True), *[(0, None)] * (2 * groups)], method="highs",
    )  # fmt: skip
    if found.fun <= SLACK:
        return None
    least_G, most_G = np.split(np.abs(found.ineqlin.marginals) > SLACK, 2)
    at_cap_D = (np.abs(found.upper.marginals[:domains]) > SLACK) & (case.upper_D < 1)
    at_floor_D = (np.abs(found.lower.marginals[:domains]) > SLACK) & (case.lower_D > 0)
    held = [f"the least of {name} ({bound:g})" for name, bound in _where(case.group_names, case.group_lower_G, least_G)]
    held += [f"the most of {name} ({bound:g})" for name, bound in _where(case.group_names, case.group_upper_G, most_G)]
    held += [f"the cap of {name!r} ({bound:.4g})" for name, bound in _where(case.names, case.upper_D, at_cap_D)]
    held += [f"the floor of {name!r} ({bound:.4g})" for name, bound in _where(case.names, case.lower_D, at_floor_D)]
    return f"{', '.join(held)} cannot all hold; they miss each other by {_amount(found.fun, tokens)}"


def _where(names: tuple[str, ...], bounds: np.ndarray, chosen: np.ndarray) -> list[tuple[str, float]]:
    return [(name, float(bound)) for name, bound, picked in zip(names, bounds, chosen, strict=True) if picked]


def _amount(share: float, tokens: int | None) -> str:
    return f"{share:.4g} of the weight" + (f" ({human(share * tokens)} tokens)" if tokens else "")


def nearest_feasible(case: Case, weights_D: np.ndarray) -> np.ndarray:
    """The allowed mixture nearest in the sum of absolute differences: float64 (D,)."""
    from scipy.optimize import linprog

    domains = len(case.names)
    whole_DD, nothing_GD = np.eye(domains), np.zeros_like(case.groups_GD)
    found = linprog(
        np.concatenate([np.zeros(domains), np.ones(domains)]),
        A_ub=np.block([[whole_DD, -whole_DD], [-whole_DD, -whole_DD],
                       [-case.groups_GD, nothing_GD], [case.groups_GD, nothing_GD]]),
        b_ub=np.concatenate([weights_D, -weights_D, -case.group_lower_G, case.group_upper_G]),
        A_eq=np.concatenate([np.ones(domains), np.zeros(domains)])[None], b_eq=[1.0],
        bounds=[*zip(case.lower_D, case.upper_D, strict=True), *[(0, None)] * domains], method="highs",
    )  # fmt: skip
    return np.clip(found.x[:domains], case.lower_D, case.upper_D)
