"""Answers of rephrasings, by golden cases."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth.rephrase_answers import (
    drawn_pairs,
    parse_pairs,
    render_pairs,
    strip_bullets,
    strip_markdown,
    strip_quotes,
    without_prefix,
)


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("## Caves\n\nThey **grow** in *lime*.", "Caves\n\nThey grow in lime."),
        ("> said\n> again\n\n---\nend", "said\nagain\n\nend"),
        ("see [here](http://a.b/c) and `x`", "see here and x"),
        ("```python\nprint(1)\n```", "print(1)"),
        ("2 * 3 * 4 and a_b_c and $x^*y^*$", "2 * 3 * 4 and a_b_c and $x^*y^*$"),
        ("snake__case__name and __bold__ stay", "snake__case__name and bold stay"),
        ("***all***", "all"),
        ("issue #5 is no heading", "issue #5 is no heading"),
    ],
)
def test_markdown_goes_and_the_text_stays(marked: str, plain: str):
    assert strip_markdown(marked) == plain


@pytest.mark.parametrize(
    ("listed", "plain"),
    [
        ("- one\n* two\n\n• three", "one\ntwo\nthree"),
        ("1. one\n2) two\n（3）三\n4、四", "one\ntwo\n三\n四"),
        ("3.5 metres\n-5 degrees\n1998 was cold", "3.5 metres\n-5 degrees\n1998 was cold"),
        ("", ""),
    ],
)
def test_bullets_go_and_numbers_stay(listed: str, plain: str):
    assert strip_bullets(listed) == plain


@pytest.mark.parametrize(
    ("quoted", "plain"),
    [
        ('"all of it"', "all of it"),
        ("“全部”", "全部"),
        ('"one" and "two"', '"one" and "two"'),
        ('say "it"', 'say "it"'),
        ('"', '"'),
    ],
)
def test_quotes_around_the_whole_go(quoted: str, plain: str):
    assert strip_quotes(quoted) == plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Question: Why?\nAnswer: So.", [("Why?", "So.")]),
        ("- Question: Why?\n- Answer: So.\n\n- question 2: How?\nANSWER: Thus.", [("Why?", "So."), ("How?", "Thus.")]),
        ("Question: Which?\nA) one\nB) two\nAnswer: B) two\nas said", [("Which?\nA) one\nB) two", "B) two\nas said")]),
        ("问题：为什么？\n答案：因为。\n问：怎样？\n答：这样。", [("为什么？", "因为。"), ("怎样？", "这样。")]),
        ("Sure!\nQuestion: Why?\nAnswer: So.", None),
        ("Question: Why?", None),
        ("Answer: So.\nQuestion: Why?", None),
        ("Question: Why?\nQuestion: How?\nAnswer: So.", None),
        ("Question: Why?\nAnswer:", None),
        ("", None),
    ],
)
def test_pairs_are_read_or_refused(text: str, expected: list[tuple[str, str]] | None):
    assert parse_pairs(text) == expected


@given(st.lists(st.tuples(st.text("abc", min_size=1), st.text("xyz", min_size=1)), min_size=1, max_size=9))
def test_what_is_rendered_is_read_again(pairs: list[tuple[str, str]]):
    for language in ("en", "zh"):
        assert parse_pairs(render_pairs(pairs, language)) == pairs


PAIRS = [(f"q{n}", f"a{n}") for n in range(8)]


def test_the_draw_depends_on_key_and_seed_only():
    drawn = drawn_pairs(PAIRS, 600, "doc#distill#0", 7)
    assert drawn == drawn_pairs(PAIRS, 600, "doc#distill#0", 7)
    others = [drawn_pairs(PAIRS, 600, key, seed) for key, seed in [("doc#distill#1", 7), ("doc#distill#0", 8)]]
    assert all(other != drawn for other in others)


def test_at_most_ten_for_every_150_tokens():
    assert {len(drawn_pairs(PAIRS, 20, str(key), 0)) for key in range(50)} == {1}
    sizes = Counter(len(drawn_pairs(PAIRS, 60, str(key), 0)) for key in range(400))
    assert set(sizes) == {1, 2, 3, 4}  # 10 * 60 // 150
    assert min(sizes.values()) > 60  # each about 100 times
    firsts = Counter(drawn_pairs(PAIRS, 60, str(key), 0)[0] for key in range(400))
    assert set(firsts) == set(PAIRS)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("Paraphrased Text: It rained.", "It rained."),
        ("**Paraphrased text:**\n\nIt rained.", "It rained."),
        ("paraphrased  text\nIt rained.", "It rained."),
        ("It rained.", None),
        ("Here it is. Paraphrased Text: It rained.", None),
    ],
)
def test_prefixes(text: str, rest: str | None):
    assert without_prefix(text, "Paraphrased Text:") == rest
