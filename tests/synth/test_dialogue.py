"""Thinking and answer, told apart."""

import pytest

from synth.dialogue import Dialogue, Problem, answer_of, split_thinking


@pytest.mark.parametrize(
    ("chain", "parts"),
    [
        ("<think>\na\n</think>\n\nb", ("a", "b")),
        ("a</think>b", ("a", "b")),
        ("<think>a</think>b</think>c", ("a</think>b", "c")),
        ("<|begin_of_thought|>a<|end_of_thought|>\n<|begin_of_solution|>b<|end_of_solution|>", ("a", "b")),
        ("<|begin_of_thought|>a<|end_of_thought|> b", ("a", "b")),
        ("<|begin_of_thought|>a<|begin_of_solution|>b<|end_of_solution|>", ("a", "b")),
        ("a, so b", ("", "a, so b")),
        ("<think>never ends", ("", "<think>never ends")),
    ],
)
def test_marks(chain: str, parts: tuple[str, str]):
    assert split_thinking(chain) == parts


def test_thinking_is_not_the_answer():
    assert answer_of("<think>is it A? </think>\n B ") == "B"
    assert answer_of("<|begin_of_thought|>is it A?<|end_of_thought|>\n\nB") == "B"


def test_reply():
    assert Dialogue("q", "a", "b").reply == "<think>\na\n</think>\n\nb"
    assert Dialogue("q", "", "b").reply == "b"


@pytest.mark.parametrize(
    ("verified", "refuted", "undecided", "rate"), [(1, 3, 4, 0.25), (0, 2, 0, 0.0), (0, 0, 4, None), (2, 1, 0, 0.6667)]
)
def test_undecided_chains_say_nothing_of_difficulty(verified: int, refuted: int, undecided: int, rate: float | None):
    assert Problem("q", "math", "1", verified, refuted, undecided).pass_rate == rate
