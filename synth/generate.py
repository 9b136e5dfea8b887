"""Synthesis: new text from old, by a recipe of stages, one engine and verification between any two stages.

A document goes through the recipe's stages until an answer fails; then it is rejected with the reason, and nothing more
is asked about it. Every answer goes through the response log first, so that a killed run asks nothing twice. What is
accepted has passed every predicate; a weak model's documents are mostly rejected, and the counts say so.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from pipelines.execute import SCRATCH, with_rejected_inputs
from pipelines.manifest import Counts
from pipelines.progress import track
from pipelines.store import Outcome
from synth.asker import Asker
from synth.engines import open_engine
from synth.evidence_gain import summary as evidence_gain
from synth.forms import write_forms
from synth.kind import Inputs, Kind, Library
from synth.ledger import Row, summary
from synth.outputs import Maker, Reject, Work, write_outputs
from synth.recipe import SynthSettings, open_kind, prompts_of, recipe_hash
from synth.report import passed_stages, write_report
from synth.response_log import ResponseLog, forget, shared_logs
from synth.screening import Screening
from synth.screens import DOCUMENT, Screens
from synth.selection import select_documents
from synth.verification import verification_hash

WINDOW = 1024  # documents that go through the stages together


def synthesize(
    files: Sequence[Path],
    work: Path,
    settings: SynthSettings,
    model: Path | None = None,
    workers: int = 1,
    held_out: Sequence[Path] = (),
    library: Library | None = None,
    log: Path | None = None,
    earlier: Sequence[Path] = (),
    replaces: Path | None = None,
    other_model: bool = False,
    screening: Screening | None = None,
) -> Outcome:
    """Make samples; writes `samples/`, `rejects/`, `ledger.parquet`, `responses/`, and `report.md` and `report.json`.

    With a judge also `judge/` (its answers), with evaluation sets `contamination.parquet`.

    Args:
        files: Parquet documents.
        work: the step's working folder.
        settings: the recipe.
        model: folder in Hugging Face format, for engines in this process.
        workers: unused by engines in this process, which answer one request at a time; a server is asked
            `engine.concurrency` things at once.
        held_out: Parquet files with the ids (column `id`) of documents that no sample may be made of.
        library: what `cot_rag` retrieves from; `files` when not given.
        log: folder of all answers ever given, which outlives this step; a scratch folder of `work` when not given.
        earlier: folders `responses/` of other runs, whose answers are used where the same engine gave them; not those
            of a server without `engine.revision`.
        replaces: output of an earlier run whose place this one takes; of its answers none is lost.
        other_model: these logs may hold answers of another model.
        screening: evaluation sets, and screens that need what synthesis may not import.

    Returns:
        Counts over the units made of the documents drawn (and unread inputs), and: seen, passed stages, acceptance.

    Raises:
        LoamError: the engine is not to be had (see `open_engine`), a server stayed away, or the log is not ours.
    """
    log, before = log or work / SCRATCH / "answers" / "responses", [replaces / "responses"] if replaces else []
    known = [*before, work / "responses"]
    with (
        closing(open_kind(settings, Inputs(files, work, model, held_out, library or Library()))) as kind,
        closing(open_engine(settings.engine, model, log)) as engine,
        ResponseLog(log, engine, [*shared_logs(earlier, engine.identity), *known], other_model) as answers,
    ):
        selection = select_documents(files, settings, held_out)
        asker = Asker(engine, answers, settings, prompts_of(settings), recipe_hash(settings, kind.identity))
        screens = Screens(settings, screening or Screening(), engine.identity, work, log, other_model, replaces)
        with closing(screens):
            barred = screens.barred(selection.documents)
            works = [one for row in selection.documents.to_pylist() for one in cut(kind, row, barred)]
            _run_stages(asker, kind, works)
            _publish(answers, before, work)
            maker, settled = _maker(asker, kind, screens), settle(kind, asker.finished)
            judged = screens.run(settled, maker, asker.ledger)
    forms = _write(asker, settled, maker, judged, work, log)
    told = {"seen": selection.seen, "budget": asker.budget.unmet or screens.unmet}
    return _outcome(asker, settled, kind, told, work, forms, judged)


def _publish(answers: ResponseLog, before: Sequence[Path], work: Path) -> None:
    """The log that a run shows, and nothing lost of the run whose place it takes."""
    for place in before:
        answers.rescue(place)
    answers.publish(work / "responses")


def _maker(asker: Asker, kind: Kind, screens: Screens) -> Maker:
    verification = verification_hash(asker.settings.limits, screens.identity)
    return Maker(asker.settings, kind, asker.prompts, asker.recipe, verification, asker.engine.identity)


def _write(
    asker: Asker, settled: Sequence[Work], maker: Maker, judged: Sequence[Row], work: Path, log: Path
) -> dict[str, int]:
    """Everything that a run leaves behind; afterwards the log is not needed any more."""
    write_outputs(settled, [*asker.ledger, *judged], work, maker)
    forms = write_forms(settled, work, maker, maker.settings.forms)
    write_report(work, settled, asker.finished, maker.kind.stages, maker)
    asker.record_speed()
    forget(log, work / "responses")
    forget(log.with_name(f"{log.name}-judge"), work / "judge")
    return forms


def _run_stages(asker: Asker, kind: Kind, works: Sequence[Work]) -> None:
    with track("synth", len(works) * len(kind.stages), "stages") as tracker:
        for group in asker.groups(works, WINDOW):
            for stage in kind.stages:
                asker.run_stage(stage, [one for one in group if one.reject is None])
                asker.done += len(group)
                tracker.update(asker.done, f"{len(asker.ledger)} answers")


def cut(kind: Kind, row: dict[str, Any], barred: Mapping[str, str]) -> list[Work]:
    """The units of a document; one that is rejected at once where nothing can, or may, be made of it."""
    if row["id"] in barred:
        return [Work(row, "", None, Reject(DOCUMENT, "contaminated", barred[row["id"]]))]
    units = kind.units(row)
    if isinstance(units, str):
        return [Work(row, "", None, Reject("cut", units, ""))]
    return [Work(row, unit, draft) for unit, draft in units]


def settle(kind: Kind, works: Sequence[Work]) -> list[Work]:
    """The last word on each document, from all its units."""
    settled = []
    for _, group in groupby(works, key=lambda one: one.row["id"]):
        units = {one.unit: one for one in group}
        row = next(iter(units.values())).row
        ended = [(name, one.reject.reason if one.reject else one.draft) for name, one in units.items()]
        for name, result in kind.settle(ended):
            reject = Reject("settle", result, "") if isinstance(result, str) else None
            if reject and name in units:
                settled.append(replace(units[name], reject=units[name].reject or reject))
            else:
                settled.append(Work(row, name, result, reject))
    return settled


def accepted_ids(asked: Sequence[Work], settled: Sequence[Work]) -> set[str]:
    """Units whose answers are in an accepted sample, by the last word: that of the screens.

    Args:
        asked: units as they left the stages.
        settled: what is written of every document: those units, or all that passed joined into one.
    """
    units, kept = {one.id for one in asked}, [one for one in settled if one.reject is None]
    joined = {one.row["id"] for one in kept if one.id not in units}
    alone = {one.id for one in kept}
    return {one.id for one in asked if one.reject is None and (one.id in alone or one.row["id"] in joined)}


def told_by(kind: Kind, settled: Sequence[Work]) -> dict[str, Any]:
    """Numbers of a kind's own, such as verdicts; most have none."""
    numbers = getattr(kind, "numbers", None)
    return {} if numbers is None else numbers([(one.row, one.reject and one.reject.reason) for one in settled])


def _outcome(
    asker: Asker, settled: Sequence[Work], kind: Kind, told: Mapping[str, Mapping[str, float]], work: Path,
    forms: dict[str, int], judged: Sequence[Row],
) -> Outcome:  # fmt: skip
    reasons: dict[str, int] = {}
    for one in settled:
        if one.reject is not None:
            reasons[one.reject.reason] = reasons.get(one.reject.reason, 0) + 1
    kept = sum(one.reject is None for one in settled)
    metrics: dict[str, Any] = {
        **{name: found for name, found in told.items() if found},
        **told_by(kind, settled),
        "passed_stage": passed_stages(asker.finished, kind.stages),
        "accepted_share": kept / len(settled) if settled else None,
        **summary(asker.ledger, accepted_ids(asker.finished, settled), judged),
        **evidence_gain(settled),
        **({"forms": forms} if forms else {}),
    }
    counts = Counts(docs_in=len(settled), kept=kept, rejected=reasons)
    return Outcome(with_rejected_inputs(counts, work), metrics)
