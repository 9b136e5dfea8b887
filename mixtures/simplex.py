"""The feasible set of mixtures: weights that sum to 1, under epoch caps, above floors, groups within their budgets.

A cap of E epochs over T tokens bounds weight i by E x U_i / T, where U_i are the domain's unique tokens; a group (a
pattern of names, or a licence) bounds the sum of its members. Projection is by Kullback-Leibler divergence, whose
solution is the same proportions scaled by one factor for each group and clipped. An empty set is an error that says
why, and how many tokens are missing. P mixtures, D domains, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mixtures.feasibility import Case, check_feasible, nearest_feasible
from mixtures.mixture import MILLION, Domains, check_same_names, in_millionths

TINY = 1e-12
SWEEPS = 400  # rounds over sum and groups; nested and disjoint groups need a few, overlapping ones up to hundreds
SETTLED = 1e-12  # what sum and budgets may be off when a projection stops
LEAST_FACTOR = 1e-200  # not 0, which could never grow again


class Group(NamedTuple):
    """A budget that several domains share.

    Attributes:
        name: how errors call it.
        members: the domains.
        least, most: bounds of their weights' sum.
    """

    name: str
    members: tuple[str, ...]
    least: float
    most: float


@dataclass(frozen=True, eq=False)
class Simplex:
    """Bounds on each domain's weight and on the sums of groups.

    Attributes:
        names: the domains, in the order of the arrays.
        lower_D: least weights.
        upper_D: largest weights, at most 1.
        groups_GD: 0 or 1, which domains count in which group.
        group_lower_G, group_upper_G: bounds of the groups' sums.
        group_names: how errors call the groups.
    """

    names: tuple[str, ...]
    lower_D: np.ndarray
    upper_D: np.ndarray
    groups_GD: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    group_lower_G: np.ndarray = field(default_factory=lambda: np.zeros(0))
    group_upper_G: np.ndarray = field(default_factory=lambda: np.zeros(0))
    group_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups_GD", self.groups_GD.reshape(len(self.group_lower_G), len(self.names)))

    @classmethod
    def of(
        cls,
        domains: Domains,
        tokens: int | None = None,
        epoch_cap: float | Mapping[str, float] | None = None,
        floor: Mapping[str, float] | None = None,
        groups: Sequence[Group] = (),
    ) -> "Simplex":
        """The mixtures of `domains` that a budget, caps, floors and groups allow.

        Args:
            domains: what there is.
            tokens: training budget T; caps count only with it.
            epoch_cap: how often a domain may be read: one number, or domain -> number.
            floor: domain -> least weight.
            groups: budgets that domains share.

        Raises:
            DataError: no mixture is allowed; the message says why and what would help.
        """
        names = domains.names
        caps = epoch_cap if isinstance(epoch_cap, Mapping) else dict.fromkeys(names, epoch_cap or np.inf)
        members = [name for group in groups for name in group.members]
        for what, found in (("the floor", floor or {}), ("the epoch cap", caps), ("a group", members)):
            check_same_names(what, found, "the domains", names, subset=True)
        held_D = np.array([domain.unique_tokens for domain in domains.domains], float)
        cap_D = np.array([caps.get(name, np.inf) for name in names])
        space = cls(
            names,
            np.array([(floor or {}).get(name, 0.0) for name in names]),
            np.minimum(1.0, cap_D * held_D / tokens) if tokens else np.ones(len(names)),
            np.array([[float(name in group.members) for name in names] for group in groups]),
            np.array([group.least for group in groups], float),
            np.array([group.most for group in groups], float),
            tuple(group.name for group in groups),
        )
        check_feasible(space.case(), held_D, cap_D, tokens)
        return space

    def case(self) -> Case:
        """The bounds as plain arrays."""
        return Case(self.names, self.lower_D, self.upper_D, self.groups_GD, self.group_lower_G, self.group_upper_G,
                    self.group_names)  # fmt: skip

    def contains(self, weights_PD: np.ndarray, tolerance: float = 1e-6) -> np.ndarray:
        """Which rows lie in the set, within `tolerance` for sums and bounds: bool (P,)."""
        within_PD = (weights_PD >= self.lower_D - tolerance) & (weights_PD <= self.upper_D + tolerance)
        sums_PG = weights_PD @ self.groups_GD.T
        in_budget_PG = (sums_PG >= self.group_lower_G - tolerance) & (sums_PG <= self.group_upper_G + tolerance)
        is_whole_P = np.abs(weights_PD.sum(axis=-1) - 1) <= tolerance
        return within_PD.all(axis=-1) & in_budget_PG.all(axis=-1) & is_whole_P

    def project(self, weights_PD: np.ndarray) -> np.ndarray:
        """The nearest allowed mixtures by KL(result || weights).

        The solution is `clip(c x weights x product of the factors of its groups, lower, upper)`; the factors are found
        in turn, each exactly. Where groups overlap so closely that the turns do not settle, a row becomes the nearest
        allowed one in the sum of absolute differences.

        Args:
            weights_PD: float64 (P, D), not negative; a zero stays zero unless the bounds leave no other room.

        Returns:
            float64 (P, D), rows in the set; the same bits in whatever order the domains are.
        """
        order_D, by_name = self._by_name
        projected_PD = np.empty_like(weights_PD, float)
        projected_PD[:, order_D] = by_name._project(np.ascontiguousarray(weights_PD[:, order_D], float))
        return projected_PD

    @cached_property
    def _by_name(self) -> tuple[np.ndarray, "Simplex"]:
        """The same set with domains and groups in the order of their names, and that order of the domains."""
        order_D, order_G = np.argsort(np.array(self.names)), np.argsort(np.array(self.group_names, str))
        return order_D, Simplex(
            tuple(self.names[i] for i in order_D), self.lower_D[order_D], self.upper_D[order_D],
            np.ascontiguousarray(self.groups_GD[order_G][:, order_D]), self.group_lower_G[order_G],
            self.group_upper_G[order_G], tuple(self.group_names[i] for i in order_G),
        )  # fmt: skip

    def _project(self, weights_PD: np.ndarray) -> np.ndarray:
        base_PD = np.where(weights_PD > 0, weights_PD, 0.0)
        base_PD = np.where(self._needs_zeros(base_PD)[:, None], np.maximum(base_PD, TINY), base_PD)
        projected_PD, settled_P = self._sweep(base_PD)
        again_P = ~settled_P & (base_PD <= 0).any(axis=-1)
        if again_P.any():  # overlapping groups may need a zero that no single one needs
            projected_PD[again_P], settled_P[again_P] = self._sweep(np.maximum(base_PD[again_P], TINY))
        projected_PD = projected_PD if self.group_names else self._settle(projected_PD)
        for row in np.flatnonzero(~settled_P):
            projected_PD[row] = nearest_feasible(self.case(), projected_PD[row])
        return projected_PD

    def _needs_zeros(self, base_PD: np.ndarray) -> np.ndarray:
        """Rows whose positive entries cannot reach the sum or the least of a group: bool (P,)."""
        reach_PD = np.where(base_PD > 0, self.upper_D, self.lower_D)
        short_PG = reach_PD @ self.groups_GD.T < self.group_lower_G
        return (reach_PD.sum(axis=-1) < 1) | short_PG.any(axis=-1)

    def _sweep(self, base_PD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fit the factors of the sum and of every group in turn; which rows met all bounds: bool (P,)."""
        groups_GD = np.vstack([self.groups_GD, np.ones(len(self.names))]) > 0
        upper_D = np.where(groups_GD[:-1], self.group_upper_G[:, None], np.inf).min(axis=0, initial=np.inf)
        upper_D = np.minimum(self.upper_D, upper_D)  # the same set; a budget of 0 is no factor
        least_G, most_G = np.append(self.group_lower_G, 1.0), np.append(self.group_upper_G, 1.0)
        factor_PG = np.ones((len(base_PD), len(groups_GD)))
        found_PD, settled_P = np.clip(base_PD, self.lower_D, upper_D), np.zeros(len(base_PD), bool)
        for _ in range(SWEEPS):
            rows = np.flatnonzero(~settled_P)
            if not len(rows):
                break
            scaled_PD = base_PD[rows] * np.prod(np.where(groups_GD, factor_PG[rows, :, None], 1.0), axis=1)
            for turn, member_D in enumerate(groups_GD):
                bounds = self.lower_D[member_D], upper_D[member_D]
                free_PD = scaled_PD[:, member_D] / factor_PG[rows, turn, None]
                factor_P = _factor(free_PD, *bounds, least_G[turn], most_G[turn])
                scaled_PD[:, member_D] = free_PD * factor_P[:, None]
                factor_PG[rows, turn] = factor_P
            found_PD[rows] = np.clip(scaled_PD, self.lower_D, upper_D)
            sums_PG = found_PD[rows] @ groups_GD.T
            # optimal: all sums allowed, and a factor below 1 only where a sum is at its most, above 1 at its least
            within_PG = (sums_PG >= least_G - SETTLED) & (sums_PG <= most_G + SETTLED)
            lowered_PG, raised_PG = factor_PG[rows] < 1 - SETTLED, factor_PG[rows] > 1 + SETTLED
            idle_PG = (lowered_PG & (sums_PG < most_G - SETTLED)) | (raised_PG & (sums_PG > least_G + SETTLED))
            settled_P[rows] = (within_PG & ~idle_PG).all(axis=1)
        return found_PD, settled_P

    def _settle(self, weights_PD: np.ndarray) -> np.ndarray:
        """Give the last rounding error to the coordinates that have room for it."""
        short_P = 1 - weights_PD.sum(axis=-1)
        room_PD = np.where(short_P[:, None] > 0, self.upper_D - weights_PD, weights_PD - self.lower_D)
        share_PD = room_PD / np.maximum(room_PD.sum(axis=-1, keepdims=True), TINY)
        return weights_PD + short_P[:, None] * share_PD

    def written(self, weights_PD: np.ndarray) -> np.ndarray:
        """Allowed mixtures in whole millionths, as they are written down; no bound is passed by more than one.

        Args:
            weights_PD: float64 (P, D) or (D,), rows in the set.
        """
        order_D, by_name = self._by_name
        rows, upper = np.atleast_2d(weights_PD)[:, order_D].tolist(), by_name.upper_D.tolist()
        rounded_PD = np.array([in_millionths(row, upper) for row in rows], float).reshape(-1, self.size)
        for row in np.flatnonzero(by_name._excess(rounded_PD) > 0.5):
            rounded_PD[row] = by_name._mended(rounded_PD[row])
        return rounded_PD[:, np.argsort(order_D)].reshape(weights_PD.shape)

    def _excess(self, weights_QD: np.ndarray) -> np.ndarray:
        """By how many millionths the groups' sums lie outside their budgets, one millionth allowed: (Q,)."""
        sums_QG = weights_QD @ self.groups_GD.T
        outside_QG = np.maximum(sums_QG - self.group_upper_G, self.group_lower_G - sums_QG)
        return np.maximum(outside_QG * MILLION - 1, 0).sum(axis=-1)

    def _mended(self, weights_D: np.ndarray) -> np.ndarray:
        """Move single millionths between domains while that brings the groups nearer to their budgets."""
        unit_DD = np.eye(self.size) / MILLION
        move_DDD = unit_DD[None] - unit_DD[:, None]  # from the first axis's domain to the second's
        while (before := float(self._excess(weights_D[None])[0])) > 0.5:
            moved_QD = (weights_D + move_DDD).reshape(-1, self.size)
            is_bad_Q = ((moved_QD < self.lower_D - 1e-6) | (moved_QD > self.upper_D + 1e-9)).any(axis=1)
            excess_Q = np.where(is_bad_Q, np.inf, self._excess(moved_QD))
            if excess_Q.min() >= before:
                break
            weights_D = moved_QD[int(np.argmin(excess_Q))]
        return np.round(weights_D * MILLION) / MILLION

    @property
    def size(self) -> int:
        """How many domains there are."""
        return len(self.names)

    def reasons(self, weights_D: np.ndarray, tolerance: float = 2e-6) -> dict[str, str]:
        """Which bounds hold a mixture back: name -> `cap` or `floor`; group -> `most` or `least`."""
        at_cap_D = (weights_D >= self.upper_D - tolerance) & (self.upper_D < 1)
        at_floor_D = (weights_D <= self.lower_D + tolerance) & (self.lower_D > 0)
        sums_G = self.groups_GD @ weights_D
        at_most_G = (sums_G >= self.group_upper_G - tolerance) & (self.group_upper_G < 1)
        at_least_G = (sums_G <= self.group_lower_G + tolerance) & (self.group_lower_G > 0)
        ends = ("cap", "floor"), ("most", "least")
        rows = (self.names, at_cap_D, at_floor_D), (self.group_names, at_most_G, at_least_G)
        return {name: words[0] if high else words[1] for words, row in zip(ends, rows, strict=True)
                for name, high, low in zip(*row, strict=True) if high or low}  # fmt: skip


def _factor(base_PN: np.ndarray, lower_N: np.ndarray, upper_N: np.ndarray, least: float, most: float) -> np.ndarray:
    """The factor nearest to 1 that brings `clip(factor x base, lower, upper).sum()` into [least, most]: (P,).

    The sum is piecewise linear in the factor, with a corner where an entry leaves its lower and where it meets its
    upper bound. The piece that crosses is found by halving the sorted corners, and the factor by its slope.
    """
    total_P = np.clip(base_PN, lower_N, upper_N).sum(axis=1)
    factor_P = np.ones(len(base_PN))
    rows = np.flatnonzero((total_P < least) | (total_P > most))
    if not len(rows):
        return factor_P
    goal_P, base_PN = np.where(total_P[rows] < least, least, most), base_PN[rows]
    ends_PK = np.concatenate([np.broadcast_to(lower_N, base_PN.shape), np.broadcast_to(upper_N, base_PN.shape)], axis=1)
    twice_PK = np.concatenate([base_PN, base_PN], axis=1)
    corner_PK = np.sort(np.divide(ends_PK, twice_PK, out=np.zeros_like(ends_PK), where=twice_PK > 0), axis=1)
    low_P, high_P = np.zeros(len(rows), int), np.full(len(rows), corner_PK.shape[1] - 1)
    for _ in range(corner_PK.shape[1].bit_length()):
        middle_P = (low_P + high_P) // 2
        is_below_P = _sum_at(np.take_along_axis(corner_PK, middle_P[:, None], 1), base_PN, lower_N, upper_N) <= goal_P
        low_P, high_P = np.where(is_below_P, middle_P, low_P), np.where(is_below_P, high_P, middle_P)
    left_P1, right_P1 = (np.take_along_axis(corner_PK, place_P[:, None], 1) for place_P in (low_P, high_P))
    inside_PN = base_PN * (left_P1 + right_P1) / 2
    slope_P = np.where((inside_PN > lower_N) & (inside_PN < upper_N), base_PN, 0.0).sum(axis=1)
    short_P = goal_P - _sum_at(left_P1, base_PN, lower_N, upper_N)
    moved_P = left_P1[:, 0] + np.divide(short_P, slope_P, out=np.full(len(rows), np.inf), where=slope_P > 0)
    factor_P[rows] = np.clip(moved_P, np.maximum(left_P1[:, 0], LEAST_FACTOR), np.maximum(right_P1[:, 0], LEAST_FACTOR))
    return factor_P


def _sum_at(factor_P1: np.ndarray, base_PN: np.ndarray, lower_N: np.ndarray, upper_N: np.ndarray) -> np.ndarray:
    return np.clip(factor_P1 * base_PN, lower_N, upper_N).sum(axis=1)


def kl(weights_D: np.ndarray, prior_D: np.ndarray) -> float:
    """KL(weights || prior) in nats; a zero weight counts nothing."""
    used_D = weights_D > 0
    return float(np.sum(weights_D[used_D] * np.log(weights_D[used_D] / np.maximum(prior_D[used_D], TINY))))
