"""Many comparisons at once: the p-value of each paired difference, and Holm's correction over all of them.

Of twenty metrics that nothing changed, one is told from zero at 95% by chance. A metric that was named before the run
stands alone; the others share one level of error. Holm's step-down procedure (Scandinavian Journal of Statistics 6,
1979) holds it for any dependence between metrics, and never says less than Bonferroni's.
"""

from collections.abc import Sequence

import numpy as np


def paired_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p-value of Student's paired t test.

    Args:
        first: a metric per seed.
        second: the same seeds, in the same order.

    Returns:
        The probability of a mean difference at least this far from 0 where there is none; 1 with fewer than two pairs.
    """
    from scipy.special import stdtr  # here, so that reading a recipe does not load SciPy

    gaps = np.asarray(second, float) - np.asarray(first, float)
    if len(gaps) < 2 or not gaps.any():
        return 1.0
    error = float(gaps.std(ddof=1)) / len(gaps) ** 0.5
    return float(2 * stdtr(len(gaps) - 1, -abs(float(gaps.mean())) / error)) if error > 0 else 0.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values so that the chance of any false finding among them stays below the level that each is held to.

    Args:
        p_values: of comparisons that are looked at together.

    Returns:
        As many, in the same order: the k-th smallest times the number of those not smaller, never falling, at most 1.
    """
    p_N = np.asarray(p_values, float)
    order_N = np.argsort(p_N, kind="stable")
    corrected_N = np.empty(len(p_N))
    corrected_N[order_N] = np.minimum(1, np.maximum.accumulate(p_N[order_N] * np.arange(len(p_N), 0, -1)))
    return corrected_N.tolist()
