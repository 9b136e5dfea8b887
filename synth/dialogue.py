"""A sample as a dialogue: what a person asks, what an assistant thinks, and what it says.

Chains come in the marks of several families of models (`<think>`, `<|begin_of_thought|>`) or in none; here they are
told apart once, so that every form of the same samples says the same.
"""

import re
from dataclasses import dataclass

_OPEN = re.compile(r"\A\s*(?:<think>|<\|begin_of_thought\|>)")
_ENDS = ("</think>", "<|end_of_thought|>", "<|begin_of_solution|>")
_SOLUTION = re.compile(r"<\|(?:begin|end)_of_solution\|>")


@dataclass(frozen=True)
class Dialogue:
    """One question with its answer.

    Attributes:
        question: of the user.
        thinking: what comes before the answer; may be empty.
        answer: what is said in the end.
    """

    question: str
    thinking: str
    answer: str

    @property
    def reply(self) -> str:
        """What the assistant writes, its thinking between `<think>` and `</think>`."""
        return f"<think>\n{self.thinking}\n</think>\n\n{self.answer}" if self.thinking else self.answer


@dataclass(frozen=True)
class Problem:
    """A question whose answer can be checked, for learning by reward.

    Attributes:
        question: of the user.
        gold_kind: `math`, `choice` or `code`: who checks.
        gold: the reference, or for code the tests.
        verified: chains that were right.
        refuted: chains that were wrong.
        undecided: chains of which the judge could not say.
    """

    question: str
    gold_kind: str
    gold: str
    verified: int
    refuted: int
    undecided: int

    @property
    def pass_rate(self) -> float | None:
        """Share of the decided chains that were right; None where none is decided."""
        decided = self.verified + self.refuted
        return round(self.verified / decided, 4) if decided else None


def split_thinking(chain: str) -> tuple[str, str]:
    """Thinking and answer of a chain by its marks; the whole chain is the answer where it has none."""
    for end in _ENDS:
        thinking, mark, answer = chain.rpartition(end)
        if mark:
            return _OPEN.sub("", thinking).strip(), _SOLUTION.sub("", answer).strip()
    return "", chain.strip()


def answer_of(chain: str) -> str:
    """What a model answered, without the thinking before it."""
    return split_thinking(chain)[1]
