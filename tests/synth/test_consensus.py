"""Majorities, by small votes."""

import pytest

from synth.consensus import majority


@pytest.mark.parametrize(
    ("answers", "of", "share", "expected"),
    [
        ("aab", 3, 0.5, [0, 1]),
        ("aab", 4, 0.5, []),  # two of four is no majority
        ("abab", 4, 0.5, []),
        ("baab", 4, 0.4, [0, 3]),  # of two that are alike in number, the first
        ("aaa", 3, 0.99, [0, 1, 2]),
        ("a", 1, 0.5, []),  # one chain agrees with nobody
        ("", 4, 0.5, []),
        ("aAa", 4, 0.5, [0, 1, 2]),
    ],
)
def test_votes(answers: str, of: int, share: float, expected: list[int]):
    assert majority(answers, of, share, lambda one, other: one.lower() == other.lower()) == expected
