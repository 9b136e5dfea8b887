import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.shingles import words_of
from pipelines.text_cuts import cut_texts


def cut(text, *spans):
    """The text without spans of characters, and the spans as they were cut."""
    rows = [[0, len(text[:a].encode()), len(text[:b].encode()), 7] for a, b in spans]
    texts, final, empty = cut_texts(pa.chunked_array([[text]]), np.array(rows, np.int64).reshape(-1, 4))
    return texts[0].as_py(), final[:, 1:3].tolist(), bool(empty[0])


@pytest.mark.parametrize(
    ("text", "span", "left"),
    [
        ("one two three four", (4, 14), "one four"),
        ("one two three four", (5, 12), "one two three four"),  # parts of words on both sides
        ("one two three four", (2, 15), "one four"),
        ("(one) two", (0, 6), "two"),
        ("a: one two and b", (2, 11), "a: and b"),
        ("中文一二三 end", (1, 3), "中二三 end"),
        ("first\nsecond\nthird", (6, 13), "first\nthird"),
        ("first\nsecond\n  third", (6, 13), "first\n  third"),
        ("first\nsecond", (6, 12), "first"),
        ("one,two", (3, 4), "one,two"),  # nothing else keeps them apart
        ("one, two, three", (3, 10), "one three"),
        ("one,two,three", (3, 8), "one,three"),
        ("one,中,", (3, 6), "one"),
        ("café au lait", (0, 4), "au lait"),
        ("cafe\u0301 au lait", (0, 4), "cafe\u0301 au lait"),  # the accent belongs to the e
    ],
)
def test_cuts_respect_words_and_characters(text, span, left):
    assert cut(text, span)[0] == left


def test_spans_are_merged_and_reported_in_characters():
    assert cut("é one two three four", (2, 9), (6, 15)) == ("é four", [[2, 16]], False)


def test_nothing_left():
    assert cut(" all of it ", (1, 10)) == ("", [[1, 11]], True)


@settings(deadline=None)  # the first call compiles
@example("aaaaa,a", [(1, 6)])
@given(st.text("ab é中\n,", max_size=30), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=4))
def test_words_that_stay_are_words_of_the_text_and_cut_bytes_lie_within_spans(text, spans):
    spans = sorted((min(a, b, len(text)), min(max(a, b), len(text))) for a, b in spans)
    left, final, _ = cut(text, *spans)
    assert set(words_of(left)) <= set(words_of(text))
    inside = {place for a, b in spans for place in range(a, b)}
    for start, end in final:
        assert {p for p in range(start, end) if not text[p].isspace()} <= inside
