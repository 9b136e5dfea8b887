"""Synthesis: new text from old, by a recipe of stages, one engine and verification between any two stages.

A document goes through the recipe's stages until an answer fails; then it is rejected with the reason, and nothing more
is asked about it. Every answer goes through the response log first, so that a killed run asks nothing twice. What is
accepted has passed every predicate; a weak model's documents are mostly rejected, and the counts say so.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from pipelines.execute import with_rejected_inputs
from pipelines.journal import record
from pipelines.manifest import Counts
from pipelines.progress import track
from pipelines.store import Outcome
from synth.engines import open_engine
from synth.kind import Kind, Stage
from synth.outputs import Reject, Row, Work, write_outputs
from synth.prompt_files import Prompt, load_prompts
from synth.protocol import Engine, Message, Request, Response, request_key, wire_record
from synth.recipe import SynthSettings, open_kind, recipe_hash
from synth.response_log import ResponseLog
from synth.selection import select_documents
from synth.verification import answer_of, check_response

WINDOW = 1024  # documents that go through the stages together


def synthesize(
    files: Sequence[Path],
    work: Path,
    settings: SynthSettings,
    model: Path | None = None,
    workers: int = 1,
    held_out: Sequence[Path] = (),
) -> Outcome:
    """Make samples; writes `samples/`, `rejects/`, `ledger.parquet` and `responses/`.

    Args:
        files: Parquet documents.
        work: the step's working folder; its `responses/` are used again.
        settings: the recipe.
        model: folder in Hugging Face format, for engines in this process.
        workers: unused by engines in this process, which answer one request at a time; a server is asked
            `engine.concurrency` things at once.
        held_out: Parquet files with the ids (column `id`) of documents that no sample may be made of.

    Returns:
        Counts over the units made of the documents drawn (and inputs that could not be read), and: what was seen, units
        that passed each stage, tokens, acceptance.

    Raises:
        LoamError: the engine is not to be had (see `open_engine`), or a server stayed away.
    """
    started = time.monotonic()
    with (
        closing(open_kind(settings)) as kind,
        closing(open_engine(settings.engine, model)) as engine,
        ResponseLog(work / "responses", engine) as log,
    ):
        selection = select_documents(files, settings, held_out)
        rows = selection.documents.to_pylist()
        asker = Asker(engine, log, settings, load_prompts(settings.recipe), recipe_hash(settings))
        works = [Work(row, unit, draft) for row in rows for unit, draft in kind.units(row)]
        with track("synth", len(works) * len(kind.stages), "stages") as tracker:
            for at in range(0, len(works), WINDOW):
                group = works[at : at + WINDOW]
                for stage in kind.stages:
                    asker.run_stage(stage, [one for one in group if one.reject is None])
                    asker.done += len(group)
                    tracker.update(asker.done, f"{len(asker.ledger)} answers")
                asker.finished += group
    write_outputs(asker.finished, asker.ledger, work, settings, engine.identity, kind)
    written = sum(row.completion_tokens for row in asker.ledger)
    record("synth", asked=asker.asked, completion_tokens=written, seconds=round(time.monotonic() - started, 3))
    return _outcome(asker, kind, selection.seen, work)


@dataclass
class Asker:
    """What the stages share, and what they leave behind.

    Attributes:
        asked: requests that the engine really answered in this process; the others were in the log.
    """

    engine: Engine
    log: ResponseLog
    settings: SynthSettings
    prompts: dict[str, Prompt]
    recipe: str
    ledger: list[Row] = field(default_factory=list)
    finished: list[Work] = field(default_factory=list)
    asked: int = 0
    done: int = 0

    def run_stage(self, stage: Stage, works: Sequence[Work]) -> None:
        """Ask about every document; those whose answers all fail are rejected with the last reason."""
        waiting = list(works)
        for attempt in range(self.settings.attempts):
            requests = [self.request(stage, one, attempt) for one in waiting]
            answers = dict(self.answers(requests))
            failed = []
            for one, request in zip(waiting, requests, strict=True):
                key = request_key(request, self.engine.identity)
                response = answers[key]
                self.ledger.append(Row.of(key, one.id, stage.name, attempt, response))
                if (reason := self._advance(stage, one, response)) is not None:
                    failed.append((one, Reject(stage.name, reason, response.text)))
            waiting = [one for one, _ in failed]
            if attempt == self.settings.attempts - 1:
                for one, reject in failed:
                    one.reject = reject

    def _advance(self, stage: Stage, one: Work, response: Response) -> str | None:
        if (reason := check_response(response)) is not None:
            return reason
        answer = response.text.strip() if stage.keep_thinking else answer_of(response.text)
        result = stage.read(answer, one.draft, self.settings.limits)
        if isinstance(result, str):
            return result
        one.draft = result
        return None

    def request(self, stage: Stage, one: Work, attempt: int) -> Request:
        """The call of a stage; its seed comes from the recipe's seed, the document, the stage and the attempt."""
        prompt, sampling = self.prompts[stage.name], self.settings.sampling
        content = prompt.fill(stage.slots(one.draft, self.settings.limits))
        seed = xxhash.xxh64_intdigest(f"{one.id}\0{stage.name}\0{attempt}".encode(), self.settings.seed)
        return Request(
            messages=(Message(role="user", content=content),),
            max_tokens=min(prompt.max_tokens, sampling.max_tokens or prompt.max_tokens),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed & 0x7FFFFFFF,  # servers take 31 bits
            response_format=stage.schema if self.engine.capabilities.json_schema else None,
            metadata={"doc_id": one.id, "stage": stage.name, "attempt": str(attempt), "recipe": self.recipe},
        )

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[str, Response]]:
        """Answers by key: from the log where it has them, the others from the engine, logged as they come."""
        missing = []
        for request in requests:
            key = request_key(request, self.engine.identity)
            if (known := self.log.get(key)) is not None:
                yield key, known
            else:
                missing.append(request)
        for request, response in self.engine.generate(missing) if missing else ():
            key = request_key(request, self.engine.identity)
            if response.finish_reason != "not_recorded":
                self.log.add(key, wire_record(request, self.engine.identity), response)
            self.asked += 1
            yield key, response


def _outcome(asker: Asker, kind: Kind, seen: dict[str, int], work: Path) -> Outcome:
    reasons: dict[str, int] = {}
    passed = dict.fromkeys((stage.name for stage in kind.stages), 0)
    for one in asker.finished:
        if one.reject is not None:
            reasons[one.reject.reason] = reasons.get(one.reject.reason, 0) + 1
        for stage in kind.stages:
            if one.reject is not None and one.reject.stage == stage.name:
                break
            passed[stage.name] += 1
    kept = sum(one.reject is None for one in asker.finished)
    metrics: dict[str, Any] = {
        "seen": seen,
        "passed_stage": passed,
        "accepted_share": kept / len(asker.finished) if asker.finished else None,
        "answers": len(asker.ledger),
        "prompt_tokens": sum(row.prompt_tokens for row in asker.ledger),
        "completion_tokens": sum(row.completion_tokens for row in asker.ledger),
    }
    counts = Counts(docs_in=len(asker.finished), kept=kept, rejected=reasons)
    return Outcome(with_rejected_inputs(counts, work), metrics)
