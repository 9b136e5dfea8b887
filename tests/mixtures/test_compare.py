import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mixtures.compare import compare, compare_each
from pipelines.errors import DataError

PRIOR = {4: 2.50, 5: 2.60, 6: 2.55}
NOISE = st.lists(st.floats(-1, 1), min_size=3, max_size=3)


def test_a_paired_difference_is_that_of_scipy():
    ours = [2.41, 2.50, 2.49]
    found, expected = compare(list(PRIOR.values()), ours), stats.ttest_rel(ours, list(PRIOR.values()))
    interval = expected.confidence_interval(0.95)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx((interval.low, interval.high))
    assert (found.verdict, found.pairs) == ("better", 3)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [([2.4, 2.5, 2.45], "better"), ([2.6, 2.7, 2.65], "worse"), ([2.4, 2.7, 2.55], "inconclusive"),
     ([2.5, 2.6, 2.55], "inconclusive")],
)  # fmt: skip
def test_the_verdict_says_on_which_side_the_interval_lies(ours: list[float], verdict: str):
    assert compare(list(PRIOR.values()), ours).verdict == verdict


def test_one_pair_proves_nothing():
    found = compare([2.5], [1.0])
    assert (found.verdict, found.interval, found.detectable) == ("inconclusive", None, None)


def test_what_could_be_shown_is_shown_in_four_of_five_experiments():
    """The detectable difference, tried: pairs with that true difference and the same spread."""
    random = np.random.default_rng(0)
    gaps = np.array([-0.01, 0.0, 0.01])
    detectable = compare([0.0] * 3, gaps.tolist()).detectable
    assert detectable is not None
    drawn = detectable + 0.01 * random.standard_normal((2000, 3))
    shown = np.mean([compare([0.0] * 3, row.tolist()).verdict == "worse" for row in drawn])
    assert 0.7 < shown < 0.95


def test_several_comparisons_are_corrected_by_holm():
    """Two of three with p 0.03: alone each is told, together neither; one with p 0.001 is."""
    ours = dict.fromkeys(range(3), 0.0)

    def other(p: float) -> dict[int, float]:
        half = float(stats.t.ppf(1 - p / 2, 2))  # mean over standard error that has this p
        return {0: 1.0 - 3**0.5 / half, 1: 1.0, 2: 1.0 + 3**0.5 / half}

    found = compare_each(ours, {"a": other(0.03), "b": other(0.03), "c": other(0.001)})
    assert {name: one.verdict for name, one in found.items()} == {
        "a": "inconclusive", "b": "inconclusive", "c": "better",
    }  # fmt: skip
    assert [found[name].p_value for name in "abc"] == pytest.approx([0.03, 0.03, 0.001])
    assert [found[name].p_adjusted for name in "abc"] == pytest.approx([0.06, 0.06, 0.003])
    assert found["c"].level == pytest.approx(1 - 0.05 / 3)


@given(NOISE, NOISE, NOISE)
def test_an_interval_leaves_out_0_where_something_is_told(a: list[float], b: list[float], c: list[float]):
    arms = {name: dict(enumerate(values)) for name, values in zip("abc", (a, b, c), strict=True)}
    found = compare_each(dict.fromkeys(range(3), 0.0), arms)
    for one in found.values():
        assert one.interval is not None
        low, high = one.interval
        if one.verdict != "inconclusive":
            assert low > -1e-9 if one.verdict == "worse" else high < 1e-9
    assert list(compare_each(dict.fromkeys(range(3), 0.0), dict(reversed(arms.items())))) == ["c", "b", "a"]


def test_only_common_seeds_count():
    found = compare_each({4: 2.4, 5: 2.5, 6: 2.4}, {"prior": {5: 2.6, 6: 2.55, 9: 0.0}})
    assert found["prior"].pairs == 2
    assert found["prior"].difference == pytest.approx(-0.125)


def test_no_common_seed_and_a_loss_that_is_no_number_are_refused():
    with pytest.raises(DataError, match="no seed was trained both on the proposal and on 'prior'"):
        compare_each({1: 2.0}, {"prior": {2: 2.0}})
    with pytest.raises(DataError, match="finite losses"):
        compare_each({1: 2.0}, {"prior": {1: float("nan")}})
    with pytest.raises(DataError, match="found 1 losses of the prior and 2"):
        compare([1.0], [1.0, 2.0])
