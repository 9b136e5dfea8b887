"""The feasible set of mixtures: weights that sum to 1, under epoch caps and above floors.

A cap of E epochs over T tokens bounds weight i by E x U_i / T, where U_i are the domain's unique tokens. Projection is
by Kullback-Leibler divergence, whose solution is the same proportions scaled by one factor and clipped. An empty set
is an error that says how many tokens are missing. P mixtures, D domains.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mixtures.mixture import Domains, check_same_names
from pipelines.errors import DataError
from pipelines.quantities import human

BISECTIONS = 100  # halvings of a log-scale interval: far below the spacing of float64
TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Simplex:
    """Bounds on each domain's weight.

    Attributes:
        names: the domains, in the order of the arrays.
        lower_D: least weights.
        upper_D: largest weights, at most 1.
    """

    names: tuple[str, ...]
    lower_D: np.ndarray
    upper_D: np.ndarray

    @classmethod
    def of(
        cls,
        domains: Domains,
        tokens: int | None = None,
        epoch_cap: float | None = None,
        floor: Mapping[str, float] | None = None,
    ) -> "Simplex":
        """The mixtures of `domains` that a budget, a cap and floors allow.

        Args:
            domains: what there is.
            tokens: training budget T; the cap counts only with it.
            epoch_cap: how often a domain may be read.
            floor: domain -> least weight.

        Raises:
            DataError: no mixture is allowed; the message says why and what would help.
        """
        check_same_names("the floor", floor or {}, "the domains", domains.names, subset=True)
        held_D = np.array([domain.unique_tokens for domain in domains.domains], float)
        lower_D = np.array([(floor or {}).get(name, 0.0) for name in domains.names])
        upper_D = np.ones(len(domains))
        if tokens and epoch_cap:
            upper_D = np.minimum(1.0, epoch_cap * held_D / tokens)
            if (missing := tokens - epoch_cap * held_D.sum()) > 1e-9 * tokens:
                raise DataError(
                    f"no mixture fits: {human(tokens)} tokens at {epoch_cap:g} epochs, but the domains hold "
                    f"{human(held_D.sum())} unique tokens; needs {human(missing / epoch_cap)} more tokens"
                )
        for name, low, high in zip(domains.names, lower_D, upper_D, strict=True):
            if low > high:
                raise DataError(
                    f"no mixture fits: the floor of {name!r} is {low:g} but its epoch cap allows {high:.4g}"
                )
        if lower_D.sum() > 1 + 1e-9:
            raise DataError(f"no mixture fits: the floors sum to {lower_D.sum():g}, more than 1")
        return cls(domains.names, lower_D, upper_D)

    def contains(self, weights_PD: np.ndarray, tolerance: float = 1e-6) -> np.ndarray:
        """Which rows lie in the set, within `tolerance` for sums and bounds: bool (P,)."""
        within_PD = (weights_PD >= self.lower_D - tolerance) & (weights_PD <= self.upper_D + tolerance)
        return within_PD.all(axis=-1) & (np.abs(weights_PD.sum(axis=-1) - 1) <= tolerance)

    def project(self, weights_PD: np.ndarray) -> np.ndarray:
        """The nearest allowed mixtures by KL(result || weights).

        The solution is `clip(c x weights, lower, upper)` with the one factor c that makes the sum 1.

        Args:
            weights_PD: float64 (P, D), not negative; a zero stays zero unless the caps leave no other room.

        Returns:
            float64 (P, D), rows in the set.
        """
        base_PD = np.where(weights_PD > 0, weights_PD, 0.0)
        reach_P = np.where(base_PD > 0, self.upper_D, self.lower_D).sum(axis=-1)
        base_PD = np.where((reach_P < 1)[:, None], np.maximum(base_PD, TINY), base_PD)
        low_P, high_P = np.full(len(base_PD), -60.0), np.full(len(base_PD), 60.0)
        for _ in range(BISECTIONS):
            middle_P = (low_P + high_P) / 2
            over_P = np.clip(base_PD * np.exp(middle_P)[:, None], self.lower_D, self.upper_D).sum(axis=-1) > 1
            high_P, low_P = np.where(over_P, middle_P, high_P), np.where(over_P, low_P, middle_P)
        projected_PD = np.clip(base_PD * np.exp(low_P)[:, None], self.lower_D, self.upper_D)
        return self._settle(projected_PD)

    def _settle(self, weights_PD: np.ndarray) -> np.ndarray:
        """Give the last rounding error to the coordinates that have room for it."""
        short_P = 1 - weights_PD.sum(axis=-1)
        room_PD = np.where(short_P[:, None] > 0, self.upper_D - weights_PD, weights_PD - self.lower_D)
        share_PD = room_PD / np.maximum(room_PD.sum(axis=-1, keepdims=True), TINY)
        return weights_PD + short_P[:, None] * share_PD

    def reasons(self, weights_D: np.ndarray, tolerance: float = 2e-6) -> dict[str, str]:
        """Which bounds hold a mixture back: name -> `cap` or `floor`."""
        at_cap_D = (weights_D >= self.upper_D - tolerance) & (self.upper_D < 1)
        at_floor_D = (weights_D <= self.lower_D + tolerance) & (self.lower_D > 0)
        return {name: "cap" if cap else "floor"
                for name, cap, low in zip(self.names, at_cap_D, at_floor_D, strict=True) if cap or low}  # fmt: skip


def kl(weights_D: np.ndarray, prior_D: np.ndarray) -> float:
    """KL(weights || prior) in nats; a zero weight counts nothing."""
    used_D = weights_D > 0
    return float(np.sum(weights_D[used_D] * np.log(weights_D[used_D] / np.maximum(prior_D[used_D], TINY))))
