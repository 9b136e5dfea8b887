"""Did one mixture beat another? Paired differences over seeds, with intervals, corrected for their number.

Seeds are pairs: the same seed gives two runs the same initial weights and order of data, so their difference is less
noisy than either. Several comparisons are corrected by Holm's step-down rule (Holm 1979, Scand. J. Statist. 6), so that
the chance of any false claim stays below 5%. "inconclusive" is a legal answer, and it says how large a difference these
seeds could have shown.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from mixtures.multiple import holm, paired_p
from mixtures.scores import student_quantile
from pipelines.errors import DataError
from pipelines.recipe import Section

LEVEL = 0.95
POWER = 0.8  # of the difference that is called detectable


class Verdict(Section):
    """The outcome of a paired comparison.

    Attributes:
        verdict: `better` or `worse` when the difference can be told from 0 at the level, else `inconclusive`.
        difference: mean of the one minus the other, such as proposal minus prior; below 0 the one is better.
        interval: Student's t interval of the difference at `level`; None with fewer than two pairs.
        level: of the interval: 95%, or what Holm's rule asks of this comparison among several.
        p_value: two-sided, of no difference; None with fewer than two pairs.
        p_adjusted: the same after Holm's correction; equal to `p_value` for a single comparison.
        detectable: the difference that so many pairs with this spread show in four of five experiments.
        pairs: how many.
    """

    verdict: Literal["better", "worse", "inconclusive"]
    difference: float
    interval: tuple[float, float] | None
    level: float = LEVEL
    p_value: float | None = None
    p_adjusted: float | None = None
    detectable: float | None = None
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
    p_value = paired_p(prior_losses, proposal_losses)
    return _verdict(gaps, 1 - LEVEL, p_value, p_value)


def compare_each(ours: Mapping[int, float], others: Mapping[str, Mapping[int, float]]) -> dict[str, Verdict]:
    """Compare one mixture with several others, by seed, with Holm's correction.

    Args:
        ours: seed -> loss of the one, such as the proposal.
        others: name -> seed -> loss; only seeds on both sides count.

    Returns:
        Name -> ours against it, in the order of `others`; below 0 is better for ours. The interval of each is at the
        level at which Holm's rule tested it, so that it leaves out 0 exactly where the verdict is not `inconclusive`,
        but for those that were no longer tested.

    Raises:
        DataError: there is another without a common seed, or a loss is not finite.
    """
    gaps: dict[str, np.ndarray] = {}
    for name, losses in others.items():
        seeds = sorted(set(ours) & set(losses))
        if not seeds:
            raise DataError(f"no seed was trained both on the proposal and on {name!r}; run the confirmation again")
        gaps[name] = np.array([ours[seed] - losses[seed] for seed in seeds])
        if not np.isfinite(gaps[name]).all():
            raise DataError("a paired comparison needs finite losses; a run diverged: look at its training curve")
    found = {name: paired_p(np.zeros(len(gap)).tolist(), gap.tolist()) for name, gap in gaps.items()}
    adjusted = dict(zip(found, holm(list(found.values())), strict=True))
    order = sorted(found, key=lambda name: (found[name], name))
    alphas = {name: (1 - LEVEL) / (len(order) - place) for place, name in enumerate(order)}
    return {name: _verdict(gap, alphas[name], found[name], adjusted[name]) for name, gap in gaps.items()}


def _verdict(gaps: np.ndarray, alpha: float, p_value: float, p_adjusted: float) -> Verdict:
    middle = float(gaps.mean())
    if len(gaps) < 2:
        return Verdict(verdict="inconclusive", difference=middle, interval=None, pairs=len(gaps))
    error, freedom = float(gaps.std(ddof=1)) / math.sqrt(len(gaps)), len(gaps) - 1
    half = student_quantile(freedom, 1 - alpha / 2) * error
    told = "inconclusive" if p_adjusted >= 1 - LEVEL - 1e-12 else "better" if middle < 0 else "worse"
    return Verdict(
        verdict=told, difference=middle, interval=(middle - half, middle + half), level=1 - alpha, p_value=p_value,
        p_adjusted=p_adjusted, detectable=half + student_quantile(freedom, POWER) * error, pairs=len(gaps),
    )  # fmt: skip
