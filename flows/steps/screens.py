"""Screens of synthetic samples that need filters, which synthesis does not import: a flow makes them and hands them in.

Personal data, listed words and languages are those of the filters, asked of what the model wrote and held against the
document: what stood there before is the document's matter, and was judged with it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from filters.conditional import ConditionalScorer
from filters.language import IdentifyLanguage
from filters.perplexity import PerplexitySettings
from filters.pii import find
from filters.safety import Safety, SafetySettings
from flows.plots import acceptance
from pipelines.document import table_of
from pipelines.errors import RecipeError
from pipelines.files import write_atomically
from pipelines.store import Outcome
from synth.grounding import Grounding
from synth.recipe import SynthSettings
from synth.screen_settings import GroundingSettings, JudgeSettings
from synth.screening import Candidate, Finding, Screen, Screening
from synth.verification import Limits

SURE = 0.8  # confidence from which a language counts: short texts are often taken for a neighbour's
MOST_REASONS = 20  # in the drawing
LEAST_CHARS = 80  # of what was written, for the same reason


def screening_of(
    settings: SynthSettings, benchmarks: Sequence[Path] = (), language_model: Path | None = None,
    judge_model: Path | None = None, earlier: Sequence[Path] = (),
) -> Screening:  # fmt: skip
    """What a flow hands in to screen samples with.

    Args:
        settings: the recipe.
        benchmarks: evaluation sets that neither documents nor samples may hold.
        language_model: folder, for grounding, where the recipe names none.
        judge_model: folder, where the recipe names none.
        earlier: folders `judge/` of other runs.

    Raises:
        RecipeError: grounding is asked for, and there is no model for it.
    """
    hooks: list[Screen] = [Language()] if settings.screen.language else []
    hooks += [PersonalData()] if settings.screen.personal_data else []
    hooks += [UnsafeWords(settings.screen.words)] if settings.screen.words else []
    if settings.grounding is not None:
        hooks.append(_grounding(settings.grounding, language_model))
    return Screening(benchmarks, hooks, earlier, judge_model)


def _grounding(settings: GroundingSettings, model: Path | None) -> Grounding:
    folder = settings.model or model
    if folder is None:
        raise RecipeError("grounding needs a language model: give --grounding MODEL, or grounding.model in the recipe")
    shared = settings.model_dump(exclude={"model"})
    return Grounding(ConditionalScorer(folder, PerplexitySettings(**shared)))


class PersonalData:
    """The screen `personal_data`: types of it that the model wrote and the document does not hold."""

    name = "personal_data"
    identity: Mapping[str, Any] = {"version": 1}

    def judge(self, candidates: Sequence[Candidate], limits: Limits) -> Sequence[Finding]:
        """Search what was written; details name the types, never the data."""
        return [self._finding(candidate) for candidate in candidates]

    def _finding(self, candidate: Candidate) -> Finding:
        written = candidate.written
        new = [span.type for span in find(written) if written[span.start : span.end] not in candidate.document]
        return Finding("personal_data", ", ".join(sorted(set(new)))) if new else Finding()

    def close(self) -> None:
        """Nothing is held."""


class UnsafeWords:
    """The screen `unsafe_words`.

    Args:
        words: folder of word lists by language.
    """

    name = "unsafe_words"

    def __init__(self, words: Path) -> None:
        self.block = Safety(SafetySettings(words=str(words)))
        self.identity: Mapping[str, Any] = {"version": 1}

    def judge(self, candidates: Sequence[Candidate], limits: Limits) -> Sequence[Finding]:
        """Search what was written and what it was made from."""
        written = self._counts([c.written for c in candidates], candidates)
        before = self._counts([c.document for c in candidates], candidates)
        return [
            Finding("unsafe_words", f"{count} listed") if count > held else Finding()
            for count, held in zip(written, before, strict=True)
        ]

    def _counts(self, texts: Sequence[str], candidates: Sequence[Candidate]) -> list[int]:
        languages = [candidate.language for candidate in candidates]
        table = self.block.apply(_stream(texts, languages))
        return pc.fill_null(table["safety.words"], 0).to_pylist()

    def close(self) -> None:
        """Nothing is held."""


class Language:
    """The screen `language`: what was written is in another language than the document, within one script, too."""

    name = "language"
    identity: Mapping[str, Any] = {"version": 1, "sure": SURE}

    def judge(self, candidates: Sequence[Candidate], limits: Limits) -> Sequence[Finding]:
        """Identify both, by one model."""
        written = _languages([candidate.written for candidate in candidates])
        before = _languages([candidate.document for candidate in candidates])
        return [
            Finding("language_mismatch", f"{one} for a document in {other}")
            if one and other and one != other and len(candidate.written) >= LEAST_CHARS else Finding()
            for candidate, one, other in zip(candidates, written, before, strict=True)
        ]  # fmt: skip

    def close(self) -> None:
        """Nothing is held."""


def _languages(texts: Sequence[str]) -> list[str | None]:
    """Code of each text; None where it is not sure, or no language (source code)."""
    table = IdentifyLanguage().apply(_stream(texts, [None] * len(texts)))
    sure = pc.greater_equal(pc.struct_field(table["scores"], ["language"]), SURE)
    told = pc.and_(pc.fill_null(sure, False), pc.not_equal(table["language"], "zxx"))
    return pc.if_else(told, table["language"], pa.scalar(None, pa.string())).to_pylist()


def _stream(texts: Sequence[str], languages: Sequence[str | None]) -> pa.Table:
    pairs = zip(texts, languages, strict=True)
    return table_of([{"id": str(n), "text": text, "language": code} for n, (text, code) in enumerate(pairs)])


def asked_for(settings: SynthSettings, judge_model: Path | None, language_model: Path | None) -> SynthSettings:
    """The recipe with the sections that options ask for, if it has none: the models come from outside."""
    judge = settings.judge or (JudgeSettings() if judge_model else None)
    grounding = settings.grounding or (GroundingSettings() if language_model else None)
    return settings.model_copy(update={"judge": judge, "grounding": grounding})


def screen_inputs(
    settings: SynthSettings, judge_model: Path | None = None, language_model: Path | None = None
) -> dict[str, Path | None]:
    """Files and folders that a recipe of synthesis names, or an option; what a step's identity covers."""
    judge, grounding = settings.judge, settings.grounding
    return {
        "responses": settings.engine.responses,
        "judge": (judge and judge.model) or judge_model,
        "judge_responses": judge and judge.engine.responses,
        "grounding": (grounding and grounding.model) or language_model,
        "words": settings.screen.words,
    }


def with_plot(outcome: Outcome, work: Path) -> Outcome:
    """Draw `report.svg` beside a synthesis' report."""
    whole = json.loads((work / "report.json").read_bytes())
    stages = [(stage["stage"], stage["passed"]) for stage in whole["stages"]]
    reasons = [(reason["reason"], reason["units"]) for reason in whole["reasons"][:MOST_REASONS]]
    write_atomically(work / "report.svg", acceptance(stages, reasons).encode())
    return outcome
