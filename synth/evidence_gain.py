"""Evidence gain: how much likelier a language model finds an answer after its evidence, and after the right passage.

-log p(answer) is taken after three contexts: all passages and the question, the question alone, and the passages
without the right one and the question. That a document is retrieved and quoted does not say that it tells anything;
the difference to the question alone does (evidence gain), and the difference to the distractors says whether it is the
right passage that does it (oracle gain). Both are written beside the sample and reject nothing: a model that knows the
answer by heart gains nothing from evidence that is right. Who scores is handed in, as for `synth/grounding.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from synth.grounding import ConditionalScorer, Likelihood
from synth.outputs import Work
from synth.screening import Ablation, Candidate, Finding
from synth.verification import Limits

EVIDENCE, ORACLE = "evidence_gain_nats_per_byte", "oracle_gain_nats_per_byte"


class EvidenceGain:
    """The screen `evidence`, which only measures; samples whose right passage is missing, or that have none, pass.

    Args:
        scorer: the language model.
    """

    name = "evidence"

    def __init__(self, scorer: ConditionalScorer) -> None:
        self.scorer = scorer
        self.identity: Mapping[str, Any] = {"version": 1, "policy": dict(scorer.policy)}

    def judge(self, candidates: Sequence[Candidate], limits: Limits) -> Sequence[Finding]:
        """Score each answer after its three contexts."""
        parts = {one.id: one.ablation for one in candidates if one.ablation is not None}
        contexts = [context for part in parts.values() for context in contexts_of(part)]
        answers = [part.answer for part in parts.values() for _ in range(3)]
        scores = self.scorer.score(contexts, answers)
        found = {name: facts_of(scores[3 * n : 3 * n + 3]) for n, name in enumerate(parts)}
        return [Finding(facts=found.get(candidate.id, {})) for candidate in candidates]

    def close(self) -> None:
        """Let go of the model."""
        self.scorer.close()


def contexts_of(part: Ablation) -> tuple[str, str, str]:
    """What stands before the answer: with the evidence, without, with its distractors only; the question last."""
    asked = f"{part.question}\n\n"
    return f"{part.evidence}\n\n{asked}", asked, f"{part.distractors}\n\n{asked}"


def facts_of(scores: Sequence[Likelihood | None]) -> dict[str, str]:
    """What is written beside a sample.

    Args:
        scores: of the answer with the evidence, without, with distractors only.
    """
    given, without, distractors = scores
    if given is None or without is None or distractors is None:
        return {"ablation": "unscored"}
    if given.cut:  # what is left of the passages is not the evidence
        return {"ablation": "evidence_cut"}
    return {
        "ablation": "scored",
        "ablation_evidence_nats": f"{given.given_nats:.6f}",
        "ablation_question_nats": f"{without.given_nats:.6f}",
        "ablation_distractors_nats": f"{distractors.given_nats:.6f}",
        "ablation_tokens": str(given.tokens),
        "ablation_bytes": str(given.bytes),
        EVIDENCE: f"{(without.given_nats - given.given_nats) / given.bytes:.8f}",
        ORACLE: f"{(distractors.given_nats - given.given_nats) / given.bytes:.8f}",
    }


def summary(works: Sequence[Work]) -> dict[str, Any]:
    """The gains of all accepted samples that were scored, and the share that gained anything; empty where none was.

    Args:
        works: settled and screened; sums are divided, so that long answers weigh more.
    """
    told = [one.facts for one in works if one.reject is None and one.facts.get("ablation") == "scored"]
    if not told:
        return {}
    size = sum(int(facts["ablation_bytes"]) for facts in told)
    nats = {name: sum(float(facts[f"ablation_{name}_nats"]) for facts in told)
            for name in ("evidence", "question", "distractors")}  # fmt: skip
    return {"evidence_gain": {
        "samples": len(told),
        EVIDENCE: (nats["question"] - nats["evidence"]) / size,
        ORACLE: (nats["distractors"] - nats["evidence"]) / size,
        "share_above_question": sum(float(facts[EVIDENCE]) > 0 for facts in told) / len(told),
        "share_above_distractors": sum(float(facts[ORACLE]) > 0 for facts in told) / len(told),
    }}  # fmt: skip
