from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth.equations import equations_of, evaluate, holds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3 * 4", 14),
        ("(2 + 3) * 4", 20),
        ("-(2)", -2),
        ("50%*8", 4),
        ("1/3", Fraction(1, 3)),
        (".5", Fraction(1, 2)),
        ("1/0", None),
        ("3 4", None),
        ("(1", None),
        ("", None),
        ("2 **", None),
        ("__import__", None),
        ("(" * 300, None),
    ],
)
def test_expressions(text: str, value: Fraction | int | None):
    assert evaluate(text) == value


expressions = st.recursive(
    st.integers(0, 999).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(" ".join), inner.map(lambda text: f"({text})")
    ),
    max_leaves=8,
)


@given(expressions)
def test_expressions_as_python_reads_them(text: str):
    assert evaluate(text) == eval(text)  # built above from digits, brackets and three operators


@pytest.mark.parametrize(
    ("line", "right"),
    [
        ("so 95 + 15 = 110", [True]),
        ("so 95 + 15 = 111", [False]),
        ("It cost 192*100=$1920", [False]),
        ("260 kids - 24 kids - 63 kids - 25 kids = 148 kids", [True]),
        ("The first 6 bunches had 6 x 9 x 14 = 756 bananas.", [True]),
        ("3 * 4 = 12 = 10 + 2", [True, True]),
        ("1,000 / 3 = 333.33", [True]),
        ("1000 / 3 = 333.5", [False]),
        ("There are 10 / 4 = 2 boxes, with some left", [True]),
        ("20% * 120 kids = 24", [True]),
        ("1260 / 3500 * 100 = 36%", [True]),
        ("a 16-inch portrait is $5 x 2 = $10 each", [True]),
        ("(8*4)-5=27 gumballs,", [True]),
        ("12 ÷ 4 ＝ 3", [True]),
        ("4 * x + 600 = 10000", []),
        ("8m + m = 27", []),
        ("she works 11:00-8:00 = 3 hours", []),
        ("2^3 = 8", []),
        ("x == 3", []),
        ("8 x 1 1/2 = 12 rolls", []),
        ("no equation", []),
    ],
)
def test_equations_in_lines(line: str, right: list[bool]):
    assert [holds(value, result, written) for _, value, written, result in equations_of(line)] == right


@given(st.text())
def test_any_text_is_read(text: str):
    for _, value, written, result in equations_of(text):
        assert holds(value, result, written) in (True, False)


@given(st.integers(1, 999), st.integers(1, 999), st.sampled_from("+-*"))
def test_true_sums_hold_and_others_do_not(one: int, other: int, sign: str):
    result = {"+": one + other, "-": one - other, "*": one * other}[sign]
    [(_, value, written, found)] = equations_of(f"so we have {one} {sign} {other} = {result} apples.")
    assert holds(value, found, written)
    [(_, value, written, found)] = equations_of(f"so we have {one} {sign} {other} = {result + 1} apples.")
    assert not holds(value, found, written)
