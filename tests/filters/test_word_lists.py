import json
import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters.word_lists import compile_words, count_words


def found(words, *texts, **how):
    return count_words(pa.array(texts, pa.string()), compile_words(words), **how)[0].tolist()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a BAD word", 1), ("badly done, Scunthorpe-like: xbad", 0), ("bad-bad bad", 3), ("bad_thing", 0), ("bad", 1),
        ("very  bad\nword", 1), ("badé", 0), ("ébad", 0), ("坏bad坏", 1), ("", 0), (None, 0), ("bad2", 0),
    ],
)  # fmt: skip
def test_words_end_where_a_reader_sees_them_end(text, count):
    assert found(["bad"], text) == [count]


def test_phrases_may_break_across_lines_and_the_longest_counts():
    assert found(["hot carl", "hot", "carl jr"], "hot\n  carl, hot carlo, hot carl jr") == [3]


def test_scripts_without_spaces_have_no_boundaries_but_letters_in_them_do():
    assert found(["色情", "sm", "3p"], "这是色情网站", "small 3pm", "玩sm吗", "3p色情") == [1, 0, 1, 2]
    assert found(["हिन्दी"], "हिन्दीयों", "हिन्दी।") == [0, 1]
    assert found(["섹스"], "섹스 섹스를") == [1]


def test_in_addresses_an_underscore_parts_words_and_some_lists_match_anywhere():
    assert found(["porn"], "x.com/free_porn_now", "x.com/freeporn", underscore=False) == [1, 0]
    assert found(["porn"], "x.com/freepornnow", underscore=False, anywhere=True) == [1]


def test_the_first_match_is_named():
    _, first = count_words(pa.array(["none", "a two one"]), compile_words(["one", "two"]))
    assert first.tolist() == [-1, 1]


WORDS = ["a", "ab", "a b", "b c", "é", "中", "b中"]


@given(st.text(alphabet="ab cé中_-\n", max_size=30))
def test_whether_anything_matches_is_what_a_regular_expression_says(text):
    letter = r"[^\W\u4e00-\u9fff]"
    edges = []
    for word in WORDS:
        before = rf"(?<!{letter})" if re.match(letter, word[0]) else ""
        after = rf"(?!{letter})" if re.match(letter, word[-1]) else ""
        edges.append(before + re.escape(word).replace(r"\ ", r"[ \t\n\r\v\f]+") + after)
    assert (found(WORDS, text)[0] > 0) == (re.search("|".join(edges), text) is not None)


def test_decisions_against_the_regular_expression_of_c4(shared):
    """C4 asks for anything but a word character on both sides."""
    words = (shared / "lists/ldnoobw/en").read_text().split("\n")
    words = [word.strip() for word in words if word.strip()]
    oracle = re.compile(r"(?:\W|^)(" + "|".join(map(re.escape, words)) + r")(?:\W|$)")
    texts = [entry["text"] for entry in json.loads((shared / "web/c4_demo.json").read_text())]
    texts += [f"before {word} after" for word in words] + [f"x{word}x" for word in words if word.isalpha()]
    expected = [oracle.search(text.lower()) is not None for text in texts]
    assert [count > 0 for count in found(words, *texts)] == expected
    assert sum(expected) >= len(words)
