"""The judge: a second model that marks finished samples, and never the one that wrote them.

Three marks of 1 to 5 (faithful, coherent, useful); the lowest decides, since one fault spoils a sample. A verdict that
cannot be read is undecided, not a bad mark, and is counted apart. Its answers have a log of their own; asking, budget
and ledger are those of every other stage (`synth/asker.py`). Models flatter themselves (arXiv:2404.13076), so that a
judge of the generator's identity is refused before anything is asked.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import RecipeError
from pipelines.manifest import digest_of
from synth.asker import Asker
from synth.engines import open_engine
from synth.kind import Stage
from synth.ledger import Row
from synth.outputs import Reject, Work, name_of
from synth.prompt_files import load_prompts
from synth.protocol import Identity
from synth.recipe import SynthSettings
from synth.response_log import ResponseLog
from synth.screen_settings import JudgeSettings
from synth.screening import Candidate, Finding
from synth.verification import Limits

MARKS = ("faithful", "coherent", "useful")
_MARK = {"type": "integer", "minimum": 1, "maximum": 5}
_SCHEMA: dict[str, Any] = {
    "type": "object", "required": ["scores", "reason"], "additionalProperties": False,
    "properties": {
        "scores": {"type": "object", "required": list(MARKS), "additionalProperties": False,
                   "properties": dict.fromkeys(MARKS, _MARK)},
        "reason": {"type": "string"},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What the judge says of a sample.

    Attributes:
        marks: by name, 1 to 5.
        reason: in its words.
    """

    marks: Mapping[str, int]
    reason: str


def read_verdict(answer: str, draft: Any, limits: Limits) -> Verdict | str:
    """The verdict in an answer, or why there is none."""
    try:
        found = json.loads(answer)
        marks, reason = found["scores"], found["reason"]
    except (ValueError, KeyError, TypeError):
        return "wrong_shape"
    if not isinstance(marks, dict) or set(marks) != set(MARKS) or not isinstance(reason, str):
        return "wrong_shape"
    if not all(type(mark) is int and 1 <= mark <= 5 for mark in marks.values()):
        return "wrong_shape"
    return Verdict(marks, reason)


def _slots(draft: Candidate, limits: Limits) -> dict[str, str]:
    return {"source": draft.document, "sample": draft.written}


FORMAT = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": _SCHEMA, "strict": True}}
STAGE = Stage("judge", _slots, read_verdict, FORMAT)


class Judge:
    """The screen `judge`.

    Args:
        settings: the recipe, with a section `judge`.
        judge: that section.
        generator: who wrote the samples.
        work: the step's working folder; `judge/` in it is the published log.
        log: folder of all its answers ever given.
        earlier: folders `judge/` of other runs.
        other_model: `log` may hold answers of another model.

    Raises:
        RecipeError: judge and generator are one model.
        LoamError: the engine is not to be had (see `open_engine`).
    """

    name = "judge"

    def __init__(
        self, settings: SynthSettings, judge: JudgeSettings, generator: Identity, work: Path, log: Path,
        earlier: Sequence[Path] = (), other_model: bool = False,
    ) -> None:  # fmt: skip
        changed = {"engine": judge.engine, "sampling": judge.sampling, "attempts": judge.attempts, "seed": judge.seed}
        self.settings = settings.model_copy(update=changed)
        self.engine = open_engine(judge.engine, judge.model, log)
        if same_model(self.engine.identity, generator):
            self.engine.close()
            raise RecipeError(
                f"the judge is the generator ({name_of(generator)}): a model flatters itself; give judge.model or "
                "judge.engine of another one, or leave the section judge out"
            )
        self.prompts = load_prompts("judge")
        asked = {"prompts": self.prompts.hashes(), "sampling": judge.sampling.model_dump(mode="json")}
        self.recipe = digest_of({"recipe": "judge", "seed": judge.seed, **asked})[:16]
        self.identity: Mapping[str, Any] = {"engine": self.engine.identity.model_dump(mode="json"), **asked}
        self.work, self.log, self.earlier, self.other_model = work, log, earlier, other_model
        self.ledger: list[Row] = []

    def spend(self, ledger: Sequence[Row]) -> None:
        """Take what the stages spent off the budget, which is one for all."""
        tokens, usd = sum(row.tokens for row in ledger), sum(row.cost_usd or 0.0 for row in ledger)
        left = {"budget_tokens": self.settings.budget_tokens and max(0, self.settings.budget_tokens - tokens),
                "budget_usd": self.settings.budget_usd and max(0.0, self.settings.budget_usd - usd)}  # fmt: skip
        self.settings = self.settings.model_copy(update=left)

    def judge(self, candidates: Sequence[Candidate], limits: Limits) -> Sequence[Finding]:
        """Ask about each sample."""
        works = [Work(dict(candidate.row), candidate.unit, candidate) for candidate in candidates]
        known = [*self.earlier, self.work / self.name]
        with ResponseLog(self.log, self.engine, known, self.other_model) as answers:
            asker = Asker(self.engine, answers, self.settings, self.prompts, self.recipe)
            for group in asker.groups(works, len(works)):
                asker.run_stage(STAGE, group)
            for place in self.earlier:
                answers.rescue(place)
            answers.publish(self.work / self.name)
        asker.record_speed()
        self.ledger += asker.ledger
        return [self._finding(one, limits) for one in works]

    def _finding(self, one: Work, limits: Limits) -> Finding:
        facts = {"judge": name_of(self.engine.identity)}
        if one.reject is not None:
            return undecided(one.reject, limits, facts)
        marks, reason = one.draft.marks, one.draft.reason
        facts |= {"judge_scores": json.dumps(marks, sort_keys=True), "judge_reason": reason}
        low = min(marks.values()) < limits.min_judge_score
        return Finding("judge_low" if low else None, f"{facts['judge_scores']} {reason}", facts)

    def close(self) -> None:
        """Let go of the model."""
        self.engine.close()


def undecided(reject: Reject, limits: Limits, facts: Mapping[str, str]) -> Finding:
    """The finding where there is no verdict: not asked for want of budget, or not to be read."""
    if reject.reason == "budget":
        return Finding("budget", "", facts)
    told = {**facts, "judge_undecided": reject.reason}
    return Finding(None if limits.keep_undecided else "judge_unreadable", f"{reject.reason}: {reject.answer}", told)


def same_model(one: Identity, other: Identity) -> bool:
    """Whether two engines answer with the same weights: by digest, or by name where a server shows none."""
    return one.digest == other.digest if one.digest or other.digest else one.model == other.model
