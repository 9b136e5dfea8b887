import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import passages
from pipelines.key_groups import key_groups
from pipelines.passages import Surroundings, anchors_of, match_large, match_leaders

LENGTH, GRAM = 16, 8


def texts_of(texts):
    data = np.frombuffer("".join(texts).encode() or b"\0", np.uint8)
    return data, np.cumsum([0, *(len(text.encode()) for text in texts)])


def by_windows(texts, length=LENGTH):
    """The oracle: every byte of a window that an earlier place has, too, as `(text, byte)`."""
    first, found = {}, set()
    for row, text in enumerate(text.encode() for text in texts):
        for start in range(len(text) - length + 1):
            window = text[start : start + length]
            if len(set(window)) == 1:
                continue
            source = first.setdefault(window, (row, start))
            if source != (row, start):
                begin = max(start, source[1] + length) if source[0] == row else start
                found |= {(row, byte) for byte in range(begin, start + length)}
    return found


def by_suffixes(texts, length=LENGTH):
    """Another oracle, Lee et al.'s: a sorted array of suffixes, neighbours with a common prefix of `length` bytes."""
    data = [text.encode() for text in texts]
    suffixes = sorted((d[s:], r, s) for r, d in enumerate(data) for s in range(len(d) - length + 1))
    found = set()
    for _, group in itertools.groupby(suffixes, key=lambda suffix: suffix[0][:length]):
        places = sorted((row, start) for _, row, start in group)
        found |= {(row, byte) for row, start in places[1:] for byte in range(start, start + length)}
    return found


def found_in(texts, match=None):
    data, offsets = texts_of(texts)
    around = Surroundings(data, offsets, LENGTH, GRAM)
    places, keys = anchors_of(data, offsets, LENGTH, GRAM)
    found = set()
    for groups in key_groups(lambda: iter([(places, keys, None)]), len(places), Path()):
        rows = np.searchsorted(offsets, groups.members, side="right") - 1
        if match is None:
            spans = [match_leaders(groups.members, rows, groups.sizes, around)]
        else:
            cuts = np.cumsum(groups.sizes)[:-1]
            parts = zip(np.split(groups.members, cuts), np.split(rows, cuts), strict=True)
            spans = [match(part, part_rows, around) for part, part_rows in parts if len(part)]
        found |= {(row, byte) for part in spans for row, start, end, _ in part.tolist() for byte in range(start, end)}
    return found


PIECES = st.sampled_from(
    ["abcabcabc", "the soil holds water ", "-" * 20, "xyz", "中文文本", "q", "a rope of sand and clay "]
)
TEXTS = st.lists(st.lists(PIECES, max_size=6).map("".join), max_size=5)


@settings(deadline=None, max_examples=200)  # the first call compiles
@given(TEXTS)
def test_copies_are_those_of_all_windows(texts):
    assert found_in(texts) == by_windows(texts)


@settings(deadline=None, max_examples=100)
@given(TEXTS, st.sampled_from([1, 3, 256]))
def test_large_groups_give_the_same(texts, leaders):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passages, "MOST_LEADERS", leaders)
        assert found_in(texts, match_large) == by_windows(texts)


def test_copies_are_those_of_a_suffix_array():
    words = [f"w{n}" for n in range(40)]
    rng = random.Random(7)
    base = [" ".join(rng.choices(words, k=40)) for _ in range(12)]
    texts = [text[: rng.randint(0, 60)] + rng.choice(base)[10:90] + text[70:] for text in base]
    assert found_in(texts) == by_suffixes(texts)


def test_anchors_are_few():
    data = np.random.default_rng(1).integers(97, 123, 100_000).astype(np.uint8)
    places, _ = anchors_of(data, np.array([0, len(data)]), 150, 75)
    assert 0.023 < len(places) / len(data) < 0.029  # 2 of 77
