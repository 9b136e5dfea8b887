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


@pytest.mark.parametrize(
    ("text", "times"),
    [("8+8÷2+2=14", 1), ("18+8÷2+2=", 0), ("0.8+8÷2+2=", 0), ("5, 8+8÷2+2=", 1), ("(8+8÷2+2=) 8 + 8 ÷ 2 + 2 =", 2)],
)
def test_a_match_is_no_part_of_a_longer_number(text: str, times: int) -> None:
    assert len(found([text], ["8 + 8 ÷ 2 + 2 ="])) == times


@pytest.mark.parametrize(
    ("text", "wanted", "times"),
    [
        ("x=5.3", "=5", 0), ("x=5,300", "=5", 0), ("x=5.3", "=5.", 0), ("x=5. Then", "=5", 1), ("x=5, 3", "=5", 1),
        ("3.5+y", "5+y", 0), ("3.5+y", ".5+y", 0), ("x=1.5+y", "=1.5", 1),
        ("naïveté", "naïvet", 0), ("éa=1", "a=1", 0), ("a=1é", "a=1", 0), ("мир=1", "р=1", 0), ("e\u0301=1", "e", 0),
        ("÷a=1√", "a=1", 1), ("若a=1则", "a=1", 1), ("求和 a=1", "和a=1", 1), ("\U00020000a=1\U0001f600", "a=1", 1),
    ],
)  # fmt: skip
def test_a_match_is_no_part_of_a_longer_word_of_any_script(text: str, wanted: str, times: int) -> None:
    assert len(found([text], [wanted])) == times


def test_nothing_wanted_is_nothing_found() -> None:
    assert found(["a", ""], []) == []


LETTERS = st.text("a1+.é中 \t", max_size=12)


def inside(text: str, at: int) -> bool:
    """Whether a place lies in a word or number, as a person would say it."""
    spans = (match.span(1) for shape in ("([a-zé1]+)", r"(?=(1\.1))") for match in re.finditer(shape, text))
    return any(start < at < end for start, end in spans)


@settings(max_examples=200, deadline=None)
@given(st.lists(LETTERS, min_size=1, max_size=4), st.lists(LETTERS.filter(str.strip), min_size=1, max_size=4))
def test_what_a_search_in_python_finds(texts: list[str], wanted: list[str]) -> None:
    expected = []
    for v, text in enumerate(wanted):
        pattern = r"\s*".join(map(re.escape, squeezed(text)))
        looked = re.compile(f"(?=({pattern}))")
        expected += [(n, v, hit[1]) for n, document in enumerate(texts) for hit in looked.finditer(document)
                     if not inside(document, hit.start(1)) and not inside(document, hit.end(1))]  # fmt: skip
    assert found(texts, wanted) == sorted(expected)
