"""Long-CoT forward: k chains of thought for a question, each judged against its reference.

The document is the question; its metadata hold the reference (`answer`, or `tests` for code). A chain that is not
verified is rejected: `refuted` with what the judge says, or `undecided`, which is never counted as wrong. Verified
samples carry the question's pass rate, the share of its decided chains that were verified, since questions between
always and never are those worth training on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from synth.answers import VERSION, GoldKind, Judgement, Verdict, judge_choice
from synth.code_answers import judge_code
from synth.kind import Stage
from synth.math_answers import MathJudge
from synth.verification import Limits

REFERENCE = {"math": "answer", "choice": "answer", "code": "tests"}
"""The key of a document's metadata that holds the reference of a kind."""


@dataclass(frozen=True)
class Attempt:
    """One chain for one question.

    Attributes:
        question: text of the document.
        gold: the reference; None where the document has none.
        gold_kind: what it is.
        chain: the answer with its thinking.
        answer: what was read out of it.
    """

    question: str
    gold: str | None
    gold_kind: GoldKind
    chain: str = ""
    answer: str = ""


class Forward:
    """The recipe `cot_forward`.

    Args:
        rollouts: chains per question.
        gold_kind: of references, where a document's metadata do not say (`gold_kind`).
    """

    def __init__(self, rollouts: int, gold_kind: GoldKind) -> None:
        self.rollouts, self.gold_kind = rollouts, gold_kind
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
        found = self.judged(answer, draft)
        if found.verdict is not Verdict.VERIFIED:
            return f"{found.verdict}: {found.detail}"
        return replace(draft, chain=answer, answer=found.answer or "")

    def judged(self, answer: str, draft: Attempt) -> Judgement:
        """The verdict on a chain."""
        if draft.gold is None or draft.gold_kind not in REFERENCE:
            return Judgement(Verdict.UNDECIDED, detail="no_reference")
        if draft.gold_kind == "code":
            return judge_code(answer, draft.gold)
        if draft.gold_kind == "choice":
            return judge_choice(answer, draft.gold)
        return self.judge.judge(answer, draft.gold)

    def sample_slots(self, draft: Attempt) -> Mapping[str, str]:
        """Question and chain."""
        return {"question": draft.question, "chain": draft.chain}

    def provenance(self, draft: Attempt, mates: Sequence[str]) -> Mapping[str, str]:
        """The reference, the answer, and how many of the question's chains were verified of those decided."""
        verified = mates.count("")
        refuted = sum(reason.startswith(Verdict.REFUTED) for reason in mates)
        return {
            "question": draft.question,
            "gold": draft.gold or "",
            "gold_kind": draft.gold_kind,
            "answer": draft.answer,
            "verdict": Verdict.VERIFIED,
            "verifier": f"{draft.gold_kind} {VERSION}",
            "rollouts": str(self.rollouts),
            "verified": str(verified),
            "refuted": str(refuted),
            "pass_rate": json.dumps(round(verified / (verified + refuted), 4)),
        }

    def close(self) -> None:
        """End the judge's process."""
        self.judge.close()
