"""Letter for letter: what a search in Python finds, with its places."""

import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.verbatim import build_needles, find_verbatim, squeezed


def found(texts: list[str], wanted: list[str]) -> list[tuple[int, int, str]]:
    hits = find_verbatim(pa.array(texts), build_needles(wanted))
    return sorted((n, v, texts[n][start:end]) for n, v, start, end in hits)


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        ("é solve: $4 X^{3} - 2\u00a0=\n106$!", "solve: $4 X^{3} - 2\u00a0=\n106$"),
        ("solve: $4 x^{3}+2=106$", None),
        ("resolve: $4x^{3}-2=106$", None),
        ("问solve: $4x^{3}-2=106$1", "solve: $4x^{3}-2=106$"),
    ],
)
def test_signs_count_and_spaces_do_not(text: str, hit: str | None) -> None:
    assert [shown for _, _, shown in found([text], ["Solve: $4 x^{3}-2=106$"])] == ([hit] if hit else [])


@pytest.mark.parametrize(("text", "times"), [("8+8÷2+2=14", 1), ("18+8÷2+2=", 0), ("(8+8÷2+2=) 8 + 8 ÷ 2 + 2 =", 2)])
def test_a_match_is_no_part_of_a_longer_number(text: str, times: int) -> None:
    assert len(found([text], ["8 + 8 ÷ 2 + 2 ="])) == times


def test_nothing_wanted_is_nothing_found() -> None:
    assert found(["a", ""], []) == []


LETTERS = st.text("a1+é中 \t", max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(LETTERS, min_size=1, max_size=4), st.lists(LETTERS.filter(str.strip), min_size=1, max_size=4))
def test_what_a_search_in_python_finds(texts: list[str], wanted: list[str]) -> None:
    expected = []
    for v, text in enumerate(wanted):
        pattern = r"\s*".join(map(re.escape, squeezed(text)))
        left = r"(?<![0-9a-z])" if re.match("[0-9a-z]", squeezed(text)) else ""
        right = r"(?![0-9a-z])" if re.search("[0-9a-z]$", squeezed(text)) else ""
        looked = re.compile(f"(?={left}({pattern}){right})")
        expected += [(n, v, hit[1]) for n, document in enumerate(texts) for hit in looked.finditer(document)]
    assert found(texts, wanted) == sorted(expected)
