"""Long-CoT forward: k chains of thought for a question, each judged against its reference.

The document is the question; its metadata hold the reference (`answer`, or `tests` for code). A chain that is not
verified is rejected: `refuted` with what the judge says, or `undecided`, which is never counted as wrong. Verified
samples carry the question's pass rate, the share of its decided chains that were verified, since questions between
always and never are those worth training on. A question without a reference is left to the majority of its chains:
`consensus`, never verified.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from synth.answers import VERSION, GoldKind, Judgement, Verdict, extract_answer, judge_choice
from synth.code_answers import extract_code, judge_code
from synth.consensus import majority
from synth.dialogue import Dialogue, Problem, split_thinking
from synth.kind import Inputs, Stage
from synth.math_answers import MathJudge
from synth.recipe import SynthSettings
from synth.verification import Limits

REFERENCE = {"math": "answer", "choice": "answer", "code": "tests"}
"""The key of a document's metadata that holds the reference of a kind."""
CONSENSUS = "consensus"
CHOICES = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Attempt:
    """One chain for one question.

    Attributes:
        question: text of the document.
        gold: the reference; None where the document has none.
        gold_kind: what it is.
        chain: the answer with its thinking.
        answer: what was read out of it.
        votes: chains that gave this answer, where there is no reference.
    """

    question: str
    gold: str | None
    gold_kind: GoldKind
    chain: str = ""
    answer: str = ""
    votes: int = 0


class Forward:
    """The recipe `cot_forward`.

    Args:
        rollouts: chains per question.
        gold_kind: of references, where a document's metadata do not say (`gold_kind`).
        min_consensus: share of the chains that must agree where there is no reference.
    """

    identity = ""

    def __init__(self, rollouts: int, gold_kind: GoldKind, min_consensus: float = 0.5) -> None:
        self.rollouts, self.gold_kind, self.min_consensus = rollouts, gold_kind, min_consensus
        self.judge = MathJudge()
        self.stages = (
            Stage("solve", lambda draft, limits: {"question": draft.question}, self._read, keep_thinking=True),
        )

    def units(self, row: Mapping[str, Any]) -> Sequence[tuple[str, Attempt]]:
        """As many chains as rollouts."""
        metadata = dict(row["metadata"] or ())
        kind = metadata.get("gold_kind", self.gold_kind)
        gold = metadata.get(REFERENCE.get(kind, ""))
        return [(f"rollout-{number}", Attempt(row["text"], gold, kind)) for number in range(self.rollouts)]

    def _read(self, answer: str, draft: Attempt, limits: Limits) -> Attempt | str:
        if draft.gold is None and (open_answer := self.answered(answer, draft.gold_kind)) is not None:
            return replace(draft, chain=answer, answer=open_answer)
        found = self.judged(answer, draft)
        if found.verdict is not Verdict.VERIFIED:
            return f"{found.verdict}: {found.detail}"
        return replace(draft, chain=answer, answer=found.answer or "")

    def answered(self, answer: str, kind: str) -> str | None:
        """The final answer of a chain whose question has no reference; None where it has none that can be compared."""
        if kind == "math":
            return extract_answer(answer)
        if kind == "choice":
            return next((one for one in CHOICES if judge_choice(answer, one).verdict is Verdict.VERIFIED), None)
        return None

    def judged(self, answer: str, draft: Attempt) -> Judgement:
        """The verdict on a chain."""
        if draft.gold is None or draft.gold_kind not in REFERENCE:
            return Judgement(Verdict.UNDECIDED, detail="no_reference")
        if draft.gold_kind == "code":
            return judge_code(answer, draft.gold)
        if draft.gold_kind == "choice":
            return judge_choice(answer, draft.gold)
        return self.judge.judge(answer, draft.gold)

    def settle(self, ended: Sequence[tuple[str, Any]]) -> Sequence[tuple[str, Any]]:
        """As they came; of a question without reference, the chains that most of them agree with."""
        open_ones = [(name, one) for name, one in ended if isinstance(one, Attempt) and one.gold is None]
        if not open_ones:
            return ended
        same = self._same_letter if open_ones[0][1].gold_kind == "choice" else self._same_value
        agreed = majority([one.answer for _, one in open_ones], len(ended), self.min_consensus, same)
        most = {open_ones[index][0] for index in agreed}
        outvoted = f"{Verdict.UNDECIDED}: {'outvoted' if most else 'no_consensus'}"
        votes = {name: replace(one, votes=len(most)) if name in most else outvoted for name, one in open_ones}
        return [(name, votes.get(name, one)) for name, one in ended]

    def _same_letter(self, one: str, other: str) -> bool:
        return one == other

    def _same_value(self, one: str, other: str) -> bool:
        return self.judge.compare(one, other).verdict is Verdict.VERIFIED

    def dialogue(self, draft: Attempt) -> Dialogue:
        """Question, thinking and answer; a chain without marks is all thinking, and its answer is said again."""
        thinking, answer = split_thinking(draft.chain)
        if not thinking:
            code = extract_code(draft.chain) if draft.gold_kind == "code" else None
            thinking = answer
            answer = f"\\boxed{{{draft.answer}}}" if code is None else f"```python\n{code.strip()}\n```"
        return Dialogue(draft.question, thinking, answer)

    def problem(self, drafts: Sequence[Attempt], reasons: Sequence[str]) -> Problem | None:
        """The question with its reference, and how its chains fared; None without a reference."""
        first = drafts[0]
        if first is None or first.gold is None or first.gold_kind not in REFERENCE:
            return None
        verified, refuted = reasons.count(""), sum(reason.startswith(Verdict.REFUTED) for reason in reasons)
        undecided = len(reasons) - verified - refuted
        return Problem(first.question, first.gold_kind, first.gold, verified, refuted, undecided)

    def sample_slots(self, draft: Attempt) -> Mapping[str, str]:
        """Question and chain."""
        return {"question": draft.question, "chain": draft.chain}

    def written(self, draft: Attempt) -> str:
        """The chain; the question is the document."""
        return draft.chain

    def shown(self, draft: Attempt) -> str:
        """It is the document."""
        return ""

    def provenance(self, draft: Attempt, mates: Sequence[str]) -> Mapping[str, str]:
        """The reference, the answer, and how many of the question's chains were verified of those decided."""
        verified = mates.count("")
        refuted = sum(reason.startswith(Verdict.REFUTED) for reason in mates)
        common = {"question": draft.question, "gold_kind": draft.gold_kind, "answer": draft.answer,
                  "verifier": f"{draft.gold_kind} {VERSION}", "rollouts": str(self.rollouts)}  # fmt: skip
        if draft.gold is None:
            return common | {"verdict": CONSENSUS, "votes": str(draft.votes)}
        rate = json.dumps(round(verified / (verified + refuted), 4))
        return common | {"gold": draft.gold, "verdict": Verdict.VERIFIED, "verified": str(verified),
                         "refuted": str(refuted), "pass_rate": rate}  # fmt: skip

    def numbers(self, ended: Sequence[tuple[Mapping[str, Any], str | None]]) -> dict[str, Any]:
        """How many questions have a reference, and the verdicts on chains.

        Args:
            ended: document and reason of rejection (None: accepted) of every chain.
        """
        golds = {row["id"]: self.units(row)[0][1].gold for row, _ in ended}
        known = (Verdict.REFUTED, Verdict.UNDECIDED)
        verdicts: Counter[str] = Counter()
        for row, reason in ended:
            accepted = CONSENSUS if golds[row["id"]] is None else str(Verdict.VERIFIED)
            found = next((str(one) for one in known if (reason or "").startswith(one)), "other")
            verdicts[accepted if reason is None else found] += 1
        referenced = sum(gold is not None for gold in golds.values())
        return {"references": {"questions": len(golds), "with_reference": referenced},
                "verdicts": dict(sorted(verdicts.items()))}  # fmt: skip

    def close(self) -> None:
        """End the judge's process."""
        self.judge.close()


def open_forward(settings: SynthSettings, inputs: Inputs) -> Forward:
    """The kind `cot_forward`."""
    return Forward(settings.rollouts, settings.gold_kind, settings.limits.min_consensus)
