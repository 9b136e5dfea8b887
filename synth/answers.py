"""The final answer of a chain of thought, and whether it is the reference's.

A verdict has three values: what cannot be read, has no reference or takes too long is `undecided`, never `refuted`,
because the published pains of verifiers are their false negatives. The kind of reference picks the judge: symbolic
equivalence for mathematics, a letter for multiple choice, tests in a sandbox for code.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from synth.dialogue import answer_of

GoldKind = Literal["math", "choice", "code", "none"]
VERSION = 2  # of all judges together; part of a sample's provenance


class Verdict(StrEnum):
    """What a judge found."""

    VERIFIED = "verified"
    REFUTED = "refuted"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Judgement:
    """A verdict with what it rests on.

    Attributes:
        verdict: of the judge.
        answer: what was read out of the text; None if nothing was.
        detail: why it is undecided or refuted; empty when verified.
    """

    verdict: Verdict
    answer: str | None = None
    detail: str = ""


STATED = re.compile(
    r"(?:final answer|the answer|答案)\s*(?:is|are|:|：|是|为)\s*[:：]?\s*(.+?)(?:\.(?=\s|$)|。|\n|$)", re.IGNORECASE
)
BRACE = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")
BOX = re.compile(r"\\boxed\s*(?=\{)")
HASHES = re.compile(r"^####\s*(.+?)\s*$", re.MULTILINE)
LETTER = re.compile(r"[(（\[]?\b([A-J])\b[)）\].:：,]?")


def boxed(text: str) -> str | None:
    r"""The content of the last whole `\boxed{...}`, braces inside it balanced, without boxes inside the box."""
    open_braces: list[tuple[int, bool]] = []  # where the content begins, and whether it is a box's
    last: tuple[int, int] | None = None
    for match in BRACE.finditer(text):
        mark = match.group()
        if mark == "{" or mark.startswith("\\boxed"):
            open_braces.append((match.end(), mark != "{"))
        elif mark == "}" and open_braces:
            start, is_box = open_braces.pop()
            last = (start, match.start()) if is_box else last  # a box around it ends later
    if last is None:
        return None
    found = BOX.sub("", text[last[0] : last[1]]).strip()
    return found[1:-1].strip() if re.fullmatch(r"\{[^{}]*\}", found) else found


def extract_answer(text: str) -> str | None:
    r"""The final answer as it is written: in `\boxed{}`, after `####`, or after "the answer is"; None if there is none.

    The part behind the thinking is read first; the last answer stands, since a chain may correct itself.
    """
    for part in (answer_of(text), text):
        if (answer := boxed(part)) is not None:
            return answer
        for pattern in (HASHES, STATED):
            if found := pattern.findall(part):
                return found[-1].strip().rstrip(".").strip() or None
    return None


def judge_choice(text: str, gold: str) -> Judgement:
    """Compare the letter of a multiple choice, exactly.

    Args:
        text: a chain of thought with its answer.
        gold: a letter.
    """
    answer = extract_answer(text)
    if answer is None:
        return Judgement(Verdict.UNDECIDED, detail="no_answer")
    plain = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", answer).strip()
    letters = set(LETTER.findall(plain))
    if len(letters) != 1:
        return Judgement(Verdict.UNDECIDED, answer, "no_letter" if not letters else "several_letters")
    same = letters == {gold.strip().strip("()").upper()}
    return Judgement(Verdict.VERIFIED, answer) if same else Judgement(Verdict.REFUTED, answer, "other_letter")
