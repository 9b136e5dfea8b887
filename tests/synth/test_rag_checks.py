"""Quotes and answers, one by one."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synth.json_answers import read_object
from synth.rag_checks import agrees, find_quote, holds
from synth.verification import REASONS

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80) | st.lists(
    st.sampled_from(["a", "b", " ", "\n", "\u3000", '"', "“", "”", "'", "’", "中", ".", "(", "\\", "é", "😀"]),
    max_size=60,
).map("".join)


def plain(text: str) -> str:
    """White space and marks that need not agree, made equal by hand."""
    return " ".join(re.sub("[“”„‟«»″＂]", '"', re.sub("[‘’‚‛′＇]", "'", text)).split())


@settings(max_examples=400, deadline=None)
@given(TEXT, st.data())
def test_every_part_of_a_text_is_found_as_a_quote_of_it(text: str, data: st.DataObject):
    start = data.draw(st.integers(0, len(text)))
    quote = text[start : data.draw(st.integers(start, len(text)))]
    typed = plain(quote) if data.draw(st.booleans()) else re.sub(r"\s+", " \n", quote)
    found = find_quote(typed, text)
    if not quote.strip():
        assert found is None
    else:
        assert found is not None
        assert plain(text[slice(*found)]) in (plain(quote), plain(plain(quote)[1:-1]))


@settings(max_examples=400, deadline=None)
@given(TEXT, TEXT)
def test_what_is_found_is_what_was_quoted(quote: str, text: str):
    found = find_quote(quote, text)
    bare = plain(quote)[1:-1].strip()
    if found is None:
        assert plain(quote) == "" or plain(quote) not in plain(text)
    else:
        assert text[slice(*found)].strip() == text[slice(*found)] != ""
        assert plain(text[slice(*found)]) in (plain(quote), bare)


def test_a_changed_word_a_joined_line_or_another_case_is_no_quote():
    text = "Rain is “slightly acidic”,\nsince it takes up gas."
    assert find_quote('is "slightly acidic", since', text) == (5, 32)
    assert find_quote('"Rain is"', text) == (0, 7)
    for wrong in ("is slightly acidic", "rain is", "acidic since", "acidic”, sinceit", "", "...", "Rain ... gas"):
        assert find_quote(wrong, text) is None


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("The Eiffel Tower.", "Eiffel Tower", True),
        ("It was built by Gustave Eiffel in 1889", "Gustave Eiffel", True),
        ("Gustave", "Gustave Eiffel", True),  # F1 2/3
        ("Paris", "Gustave Eiffel", False),
        ("a tower", "the tower", True),
        ("Yes, it does.", "yes", True),
        ("No, though many say yes", "yes", False),
        ("There is no doubt", "no", False),
        ("光荣和ω-force", "光荣和ω-force", True),
        ("由光荣开发", "光荣", True),
        ("任天堂", "光荣", False),
        ("是的", "是", True),
        ("不是", "是", False),
        ("１８８９", "1889", True),
        ("", "yes", False),
        ("?!", "?!", False),
    ],
)
def test_answers_agree_with_references(answer: str, reference: str, right: bool):
    assert agrees(answer, reference, 0.5) is right


def test_an_answer_stands_in_a_text_in_whole_words():
    assert holds("He saw the sea, again.", "The SEA")
    assert not holds("He saw the season.", "sea")
    assert not holds("anything", "!")
    assert holds("位于中华人民共和国。", "人民共和国")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200) | st.sampled_from(['{"a": ' * 5000, '{"a": "\\ud800"}', '{"a": 1' + "0" * 5000 + "}"]))
def test_any_answer_is_read_or_named(text: str):
    read = read_object(text, "a")
    assert isinstance(read, dict) or read in REASONS
