"""Segments that fit a prompt: nothing is lost, nothing is too long."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synth.rephrase_segments import long_enough, segments_of
from synth.token_counts import estimated_tokens


def letters(texts):
    """A tokenizer whose tokens are characters."""
    return [len(text) for text in texts]


def pieces(text: str, most: int, count=letters) -> list[str]:
    return [text[span.start : span.end] for span in segments_of(text, most, count)]


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("one\ntwo\nthree\n", 8, ["one\ntwo", "three"]),
        ("one\ntwo\nthree", 99, ["one\ntwo\nthree"]),
        ("It rained. It shone! Did it?", 12, ["It rained.", "It shone!", "Did it?"]),
        ("今天下雨。明天放晴！后天呢？", 7, ["今天下雨。", "明天放晴！", "后天呢？"]),
        ('He said "go." She went.', 14, ['He said "go."', "She went."]),
        ("他说：“走吧。”她走了。", 8, ["他说：“走吧。”", "她走了。"]),
        ("first, second, third and more", 15, ["first, second,", "third and more"]),
        ("山高，水长，路远", 4, ["山高，", "水长，", "路远"]),
        ("no border in here at all", 10, ["no border", "in here", "at all"]),
        ("千山鸟飞绝万径人踪灭", 5, ["千山鸟飞绝", "万径人踪灭"]),
        ("abcdefgh", 3, ["ab", "cd", "ef", "gh"]),
        ("a\nlong line here\nb", 6, ["a", "long", "line", "here", "b"]),
        ("", 5, []),
        (" \n ", 5, []),
    ],
)
def test_cuts(text: str, most: int, expected: list[str]):
    assert pieces(text, most) == expected


@given(st.text(st.sampled_from("ab .,。，中文\n!?\t"), max_size=200), st.integers(1, 30))
def test_nothing_is_lost_and_nothing_too_long(text: str, most: int):
    found = pieces(text, most)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(1 <= len(piece) <= most for piece in found)
    spans = segments_of(text, most, letters)
    assert all(one.end <= other.start for one, other in pairwise(spans))


def test_one_line_of_chinese_is_split_rather_than_dropped():
    text = "石灰岩遇到含有二氧化碳的雨水会慢慢溶解。" * 100
    found = pieces(text, 400, estimated_tokens)
    assert len(found) == 5
    assert all(piece.endswith("。") for piece in found)


def test_short_segments_are_counted():
    text = "a\nlonger line\nb"
    kept, short = long_enough(text, segments_of(text, 12, letters), 3, letters)
    assert [text[span.start : span.end] for span in kept] == ["longer line"]
    assert short == 2
    assert long_enough(text, [], 3, letters) == ([], 0)


def test_estimate():
    assert estimated_tokens(["", "four", "fives", "中文", "中文 and more"]) == [0, 1, 2, 2, 5]
