import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtures.scale import Scale, axis_of, coordinate
from pipelines.errors import DataError


@pytest.mark.parametrize(
    ("text", "params", "tokens"),
    [
        ("60M/1.2B", 60_000_000, 1_200_000_000),
        ("60M", 60_000_000, None),
        (" 1.235B / 25B ", 1_235_000_000, 25_000_000_000),
        ("6e7/1e9", 60_000_000, 1_000_000_000),
        ("122471424/100", 122_471_424, 100),
        ("60000000.0", 60_000_000, None),
    ],
)
def test_parse(text, params, tokens):
    assert Scale.parse(text) == Scale(params, tokens)


@pytest.mark.parametrize("text", ["tiny", "", "60M/", "/1B", "60M/1B/2B", "0", "-60M", "nan", "60X", "1e999", "60 M B"])
def test_what_is_no_scale_is_said(text):
    with pytest.raises(DataError, match="expected parameters and tokens"):
        Scale.parse(text)
    assert Scale.of_label(text) is None


@given(st.integers(1, 10**15), st.none() | st.integers(1, 10**15))
def test_what_is_written_reads_back_equal(params, tokens):
    assert Scale.parse(str(Scale(params, tokens))) == Scale(params, tokens)


@given(st.text(max_size=12))
def test_any_text_is_a_scale_or_a_data_error(text):
    assert Scale.of_label(text) is None or Scale.parse(text).params > 0


def test_written_for_people():
    assert str(Scale(60_000_000, 1_200_000_000)) == "60M/1.2B"
    assert str(Scale(999)) == "999"


def test_the_axis_is_params_unless_they_are_all_the_same():
    one, two, three = Scale(10, 100), Scale(20, 100), Scale(10, 200)
    assert (axis_of([one, two]), axis_of([one, three]), axis_of([one])) == ("params", "tokens", "params")
    assert coordinate(two, "params") == math.log(20)
    assert coordinate(three, "tokens") == math.log(200)
    with pytest.raises(DataError, match="write it as 20/20B"):
        coordinate(Scale(20), "tokens")
