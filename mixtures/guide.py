"""Smoother laws that may guide the search for an optimum, where the chosen law's own optimum is not stable.

A stack predicts best, but the process in it has small hills and valleys whose lowest place moves with every resample of
the swarm. Its parametric members are convex: their optimum hardly moves, and lies where the stack is almost as low. A
stronger penalty steadies them further. P runs, M metrics, U metrics that count, R resamples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mixtures.fitting import Fit
from mixtures.law_base import FittedLaw, ParametricLaw
from mixtures.laws import FAMILIES
from mixtures.stack import Stack

STRONGER = (10.0, 100.0)  # times the member's penalty


@dataclass(frozen=True, eq=False)
class Guide:
    """A law with its refits, all of the metrics that count.

    Attributes:
        law: fitted to all runs.
        laws: to the resamples.
        metrics: which metrics of the fit they predict.
        name: what to call it.
    """

    law: FittedLaw
    laws: tuple[FittedLaw, ...]
    metrics: np.ndarray
    name: str


def guides(fit: Fit, laws: Sequence[FittedLaw], counts_RP: np.ndarray, coefficient_M: np.ndarray) -> Iterator[Guide]:
    """The chosen law, then its heaviest convex member, then the same under stronger penalties.

    Args:
        fit: the law.
        laws: refitted to the resamples.
        counts_RP: which runs these hold.
        coefficient_M: the objective.
    """
    every = np.arange(len(coefficient_M))
    yield Guide(fit.law, tuple(laws), every, fit.chosen)
    place = _convex_member(fit.law, coefficient_M)
    if place is None:
        return
    law, penalty, refitted = fit.law, fit.penalty, tuple(laws)
    if isinstance(law, Stack):
        law, penalty = law.members[place], law.penalties[place]
        refitted = tuple(each.members[place] for each in laws if isinstance(each, Stack))
        yield Guide(law, refitted, every, law.family)
    used = np.flatnonzero(coefficient_M)
    values_UP = fit.metrics.values_PM.T[used]
    family, resamples = FAMILIES[law.family], len(counts_RP)
    for times in STRONGER:
        stronger = family.refit(law.take(used.tolist()), fit.ratios.weights_PD, values_UP, np.ones_like(values_UP),
                                penalty * times)  # fmt: skip
        started = stronger.take(list(range(len(used))) * resamples)
        values_BP, counts_BP = np.tile(values_UP, (resamples, 1)), np.repeat(counts_RP, len(used), axis=0)
        found = family.refit(started, fit.ratios.weights_PD, values_BP, counts_BP, penalty * times)
        each = tuple(found.take(range(turn * len(used), (turn + 1) * len(used))) for turn in range(resamples))
        yield Guide(stronger, each, used, f"{law.family}, penalty {penalty * times:g}")


def _convex_member(law: FittedLaw, coefficient_M: np.ndarray) -> int | None:
    """Where the parametric member with the largest share in the objective stands; 0 for a parametric law itself."""
    if isinstance(law, ParametricLaw):
        return 0
    if not isinstance(law, Stack):
        return None
    share_S = coefficient_M @ law.share_BS
    places = [place for place, member in enumerate(law.members) if isinstance(member, ParametricLaw)]
    return max(places, key=lambda place: float(share_S[place]), default=None)
