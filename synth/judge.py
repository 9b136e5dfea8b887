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
from pipelines.model_cost import HubModel
from synth.asker import Asker
from synth.engines import open_engine
from synth.json_answers import read_object
from synth.json_schemas import TEXT, answer_format, number_from, object_of
from synth.kind import Stage
from synth.ledger import Prices, Row
from synth.outputs import Reject, Work, name_of
from synth.prompt_files import load_prompts
from synth.protocol import Identity
from synth.recipe import SynthSettings
from synth.response_log import ResponseLog, shared_logs
from synth.screen_settings import JudgeSettings
from synth.screening import Candidate, Finding
from synth.verification import Limits

MARKS = ("faithful", "coherent", "useful")
LEAST, MOST = 1, 5


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
    found = read_object(answer, "scores", "reason")
    if isinstance(found, str):
        return found
    marks, reason = found["scores"], found["reason"]
    if not isinstance(marks, dict) or set(marks) != set(MARKS) or not isinstance(reason, str):
        return "wrong_shape"
    if not all(type(mark) is int and LEAST <= mark <= MOST for mark in marks.values()):
        return "wrong_shape"
    return Verdict(marks, reason)


def _slots(draft: Candidate, limits: Limits) -> dict[str, str]:
    return {"source": draft.source, "sample": draft.written}


_SCORES = object_of(**dict.fromkeys(MARKS, number_from(LEAST, MOST)))
STAGE = Stage("judge", _slots, read_verdict, answer_format("verdict", object_of(scores=_SCORES, reason=TEXT)))


class Judge:
    """The screen `judge`.

    Args:
        settings: the recipe, with a section `judge`.
        judge: that section.
        generator: who wrote the samples.
        work: the step's working folder; `judge/` in it is the published log.
        log: folder of all its answers ever given.
        earlier: folders `judge/` of other runs; read where the same judge is known to have answered.
        replaces: output of an earlier run whose place this one takes; of its judge's answers none is lost.
        other_model: `log` may hold answers of another model.

    Raises:
        RecipeError: judge and generator are one model, or a budget in dollars knows no prices of the judge.
        LoamError: the engine is not to be had (see `open_engine`).
    """

    name = "judge"

    def __init__(
        self, settings: SynthSettings, judge: JudgeSettings, generator: Identity, work: Path, log: Path,
        earlier: Sequence[Path] = (), replaces: Path | None = None, other_model: bool = False,
    ) -> None:  # fmt: skip
        if settings.budget_usd is not None and Prices.from_settings(judge.engine).prompt is None:
            raise RecipeError(
                "budget_usd pays the judge, too: it needs judge.engine.price_per_million_prompt and "
                "judge.engine.price_per_million_completion, 0 for a model of your own"
            )
        changed = {"engine": judge.engine, "sampling": judge.sampling, "attempts": judge.attempts, "seed": judge.seed}
        self.settings = settings.model_copy(update=changed)
        self.engine = open_engine(judge.engine, judge.model, log)
        if same_model(self.engine.identity, generator, judge.hub, settings.generator):
            self.engine.close()
            raise RecipeError(
                f"the judge is the generator ({name_of(generator)}): a model flatters itself; give judge.model or "
                "judge.engine of another one, or leave the section judge out"
            )
        self.prompts = load_prompts("judge")
        asked = {"prompts": self.prompts.hashes(), "sampling": judge.sampling.model_dump(mode="json")}
        self.recipe = digest_of({"recipe": "judge", "seed": judge.seed, **asked})[:16]
        self.identity: Mapping[str, Any] = {"engine": self.engine.identity.model_dump(mode="json"), **asked}
        self.work, self.log, self.other_model = work, log, other_model
        self.earlier = shared_logs(earlier, self.engine.identity)
        self.before = [replaces / self.name] if replaces else []
        self.ledger: list[Row] = []
        self.unmet: Mapping[str, float] = {}

    def spend(self, ledger: Sequence[Row]) -> None:
        """Take what the stages spent off the budget, which is one for all."""
        tokens, usd = sum(row.tokens for row in ledger), sum(row.cost_usd or 0.0 for row in ledger)
        left = {"budget_tokens": self.settings.budget_tokens and max(0, self.settings.budget_tokens - tokens),
                "budget_usd": self.settings.budget_usd and max(0.0, self.settings.budget_usd - usd)}  # fmt: skip
        self.settings = self.settings.model_copy(update=left)

    def judge(self, candidates: Sequence[Candidate], limits: Limits) -> Sequence[Finding]:
        """Ask about each sample."""
        works = [Work(dict(candidate.row), candidate.unit, candidate) for candidate in candidates]
        known = [*self.earlier, *self.before, self.work / self.name]
        with ResponseLog(self.log, self.engine, known, self.other_model) as answers:
            asker = Asker(self.engine, answers, self.settings, self.prompts, self.recipe)
            for group in asker.groups(works, len(works)):
                asker.run_stage(STAGE, group)
            for place in self.before:
                answers.rescue(place)
            answers.publish(self.work / self.name)
        asker.record_speed()
        self.ledger += asker.ledger
        self.unmet = asker.budget.unmet
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


def same_model(
    one: Identity, other: Identity, one_hub: HubModel | None = None, other_hub: HubModel | None = None
) -> bool:
    """Whether two engines answer with the same weights: by digest, or by name where one is a server, which shows none.

    Revisions of one model are one family: they may not judge one another.

    Args:
        one: an engine.
        other: another.
        one_hub: what the recipe declares the first one to be.
        other_hub: the same of the other.
    """
    if "endpoint" not in (one.backend, other.backend) and (one.digest or other.digest):
        return one.digest == other.digest
    return bool(_names_of(one, one_hub) & _names_of(other, other_hub))


def _names_of(identity: Identity, hub: HubModel | None) -> frozenset[str]:
    """What a model is called, in lower case; the name of a folder is the same for all of them, and tells nothing."""
    shown = [identity.model] if identity.backend == "endpoint" or not identity.digest else []
    return frozenset(name.lower() for name in (*shown, *([hub.dataset] if hub else [])))
