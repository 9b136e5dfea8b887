"""Paired p-values against SciPy, Holm's correction against its definition and by what it promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixtures.multiple import holm, paired_p


def test_the_p_value_is_that_of_scipy():
    generator = np.random.default_rng(0)
    for pairs in (2, 3, 10):
        first, second = generator.normal(size=pairs), generator.normal(0.3, size=pairs)
        assert paired_p(first, second) == pytest.approx(stats.ttest_rel(first, second).pvalue)


def test_what_tells_nothing_and_what_tells_all():
    assert paired_p([1.0], [2.0]) == 1
    assert paired_p([1.0, 2.0], [1.0, 2.0]) == 1
    assert paired_p([1.0, 2.0], [2.0, 3.0]) == 0  # the same difference every time


def test_holm_by_hand():
    # 0.005 times 4, then 0.01 times 3, 0.03 times 2, and 0.04, which may not fall below it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_nothing_and_bonferroni_and_keeps_the_order(p_values: list[float]):
    corrected = holm(p_values)
    assert all(p <= c <= min(1, p * len(p_values)) for p, c in zip(p_values, corrected, strict=True))
    assert sorted(corrected) == [corrected[n] for n in np.argsort(p_values, kind="stable")]


def test_false_findings_are_as_rare_as_said():
    generator = np.random.default_rng(1)
    runs = generator.normal(size=(400, 20, 5))  # 20 metrics of 5 seeds, which nothing changed
    found = [min(holm([paired_p(np.zeros(5), gaps) for gaps in run])) <= 0.05 for run in runs]
    assert np.mean(found) < 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
