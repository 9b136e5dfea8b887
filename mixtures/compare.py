"""Did the proposal beat the prior? A paired difference over seeds, with its interval.

Seeds are pairs: the same seed gives both runs the same initial weights and order of data, so their difference is
less noisy than either. "inconclusive" is a legal answer.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mixtures.scores import student_quantile
from pipelines.errors import DataError
from pipelines.recipe import Section

LEVEL = 0.95


class Verdict(Section):
    """The outcome of a paired comparison.

    Attributes:
        verdict: `better` or `worse` when the whole interval lies on one side of 0.
        difference: mean of proposal minus prior; below 0 the proposal is better.
        interval: Student's t interval of the difference, 95%; None with fewer than two pairs.
        pairs: how many.
    """

    verdict: Literal["better", "worse", "inconclusive"]
    difference: float
    interval: tuple[float, float] | None
    pairs: int


def compare(prior_losses: Sequence[float], proposal_losses: Sequence[float]) -> Verdict:
    """Compare two mixtures trained with the same seeds.

    Args:
        prior_losses: final loss per seed.
        proposal_losses: the same seeds, in the same order.

    Raises:
        DataError: the two differ in length, are empty, or hold a value that is not finite.
    """
    if len(prior_losses) != len(proposal_losses) or not prior_losses:
        raise DataError(
            f"a paired comparison needs the same seeds on both sides: found {len(prior_losses)} losses of the prior "
            f"and {len(proposal_losses)} of the proposal"
        )
    gaps = np.asarray(proposal_losses, float) - np.asarray(prior_losses, float)
    if not np.isfinite(gaps).all():
        raise DataError("a paired comparison needs finite losses; a run diverged: look at its training curve")
    middle = float(gaps.mean())
    if len(gaps) < 2:
        return Verdict(verdict="inconclusive", difference=middle, interval=None, pairs=len(gaps))
    half = student_quantile(len(gaps) - 1, (1 + LEVEL) / 2) * float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    lo, hi = middle - half, middle + half
    verdict = "better" if hi < 0 else "worse" if lo > 0 else "inconclusive"
    return Verdict(verdict=verdict, difference=middle, interval=(lo, hi), pairs=len(gaps))
