"""Screens of synthetic samples that need filters, which synthesis does not import: a flow makes them and hands them in.

Personal data, listed words and languages are those of the filters, asked of what the model wrote and held against the
document: what stood there before is the document's matter, and was judged with it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from filters import pii, pii_candidates, pii_patterns, safety, word_lists
from filters.conditional import ConditionalScorer
from filters.language import IdentifyLanguage
from filters.language_model import model_digest
from filters.list_sources import list_path
from filters.perplexity import PerplexitySettings
from filters.safety import SafetySettings, listed_words, lists_of
from flows.plots import acceptance
from pipelines.decontaminate import DecontaminateSettings
from pipelines.document import table_of
from pipelines.errors import RecipeError
from pipelines.files import expand_inputs, sha256_of, write_atomically
from pipelines.locations import plain_name
from pipelines.manifest import digest_of
from pipelines.store import Outcome
from synth.evidence_gain import EvidenceGain
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
    judge_model: Path | None = None, earlier: Sequence[Path] = (), decontaminate: DecontaminateSettings | None = None,
    scratch: Path | None = None,
) -> Screening:  # fmt: skip
    """What a flow hands in to screen samples with.

    Args:
        settings: the recipe.
        benchmarks: evaluation sets that neither documents nor samples may hold, besides those that the recipe names.
        language_model: folder, for grounding, where the recipe names none.
        judge_model: folder, where the recipe names none.
        earlier: folders `judge/` of other runs.
        decontaminate: what counts as holding an item, where the recipe does not say.
        scratch: where a native checkpoint is exported to.

    Raises:
        RecipeError: grounding is asked for, and there is no model for it.
    """
    hooks: list[Screen] = [Language()] if settings.screen.language else []
    hooks += [PersonalData()] if settings.screen.personal_data else []
    hooks += [UnsafeWords(words_path(settings.screen.words))] if settings.screen.words else []
    if settings.grounding is not None:
        hooks += _grounding(settings.grounding, language_model, scratch)
    named = expand_inputs(settings.screen.benchmarks) if settings.screen.benchmarks else []
    return Screening([*benchmarks, *named], hooks, earlier, judge_model, decontaminate)


def words_path(given: Path) -> Path:
    """The folder of word lists that a recipe means: by path, or by the name that `loam fetch` knows."""
    return list_path(str(given), Path())


def _grounding(settings: GroundingSettings, model: Path | None, scratch: Path | None) -> list[Screen]:
    folder = settings.model or model
    if folder is None:
        raise RecipeError("grounding needs a language model: give --grounding MODEL, or grounding.model in the recipe")
    shared = settings.model_dump(exclude={"model", "hub", "evidence"})
    if settings.scorer == "native":  # the reference's own code scores it, which the export is proven equal to
        folder, shared["scorer"] = _exported(folder, scratch), "transformers"
    scorer = ConditionalScorer(folder, PerplexitySettings(**shared))
    return [Grounding(scorer), *([EvidenceGain(scorer)] if settings.evidence else [])]


def _exported(source: Path, scratch: Path | None) -> Path:
    from flows.model_folders import checkpoint_of
    from trainer.export import export_hf

    checkpoint, tokenizer = checkpoint_of(source)
    if scratch is None:
        raise RecipeError("grounding.scorer native is for `loam synth`; a run scores with its own exported model")
    export_hf(checkpoint, scratch, tokenizer)
    return scratch


class PersonalData:
    """The screen `personal_data`: types of it that the model wrote and the document does not hold."""

    name = "personal_data"

    def __init__(self) -> None:
        self.identity: Mapping[str, Any] = {"version": 2, "rules": _rules(pii, pii_candidates, pii_patterns)}

    def judge(self, candidates: Sequence[Candidate], limits: Limits) -> Sequence[Finding]:
        """Search what was written; details name the types, never the data."""
        return [self._finding(candidate) for candidate in candidates]

    def _finding(self, candidate: Candidate) -> Finding:
        written, before = candidate.written, _one_line(candidate.before)
        new = [s.type for s in pii.find(written) if _one_line(written[s.start : s.end]) not in before]
        return Finding("personal_data", ", ".join(sorted(set(new)))) if new else Finding()

    def close(self) -> None:
        """Nothing is held."""


class UnsafeWords:
    """The screen `unsafe_words`: listed words that the model wrote, and that nothing it was given holds.

    Args:
        words: folder of word lists by language.
    """

    name = "unsafe_words"

    def __init__(self, words: Path) -> None:
        self.settings = SafetySettings(words=str(words))
        lists_of(self.settings)  # what is missing is found before anything is asked
        digests = {plain_name(file.name): sha256_of(file) for file in expand_inputs([words])}
        self.identity: Mapping[str, Any] = {"version": 2, "lists": digests, "rules": _rules(safety, word_lists)}

    def judge(self, candidates: Sequence[Candidate], limits: Limits) -> Sequence[Finding]:
        """Search what was written and what it was made from."""
        languages = [candidate.language for candidate in candidates]
        written = listed_words([c.written for c in candidates], languages, self.settings)
        before = listed_words([c.before for c in candidates], languages, self.settings)
        return [
            Finding("unsafe_words", f"{len(new)} listed") if (new := words - held) else Finding()
            for words, held in zip(written, before, strict=True)
        ]

    def close(self) -> None:
        """Nothing is held."""


class Language:
    """The screen `language`: what was written is in another language than the document, within one script, too."""

    name = "language"

    def __init__(self) -> None:
        self.identity: Mapping[str, Any] = {"version": 2, "sure": SURE, "model": model_digest()}

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


def _rules(*modules: ModuleType) -> str:
    """Digest of what rules are written in: their patterns and checks are code."""
    return digest_of([sha256_of(Path(module.__file__)) for module in modules if module.__file__])[:16]


def _one_line(text: str) -> str:
    """White space does not tell: quotes are joined to one line."""
    return " ".join(text.split())


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
    judge, grounding, words = settings.judge, settings.grounding, settings.screen.words
    return {
        "responses": settings.engine.responses,
        "judge": (judge and judge.model) or judge_model,
        "judge_responses": judge and judge.engine.responses,
        "grounding": (grounding and grounding.model) or language_model,
        "words": words and words_path(words),
        **{f"screen-benchmark-{number}": path for number, path in enumerate(settings.screen.benchmarks)},
    }


def with_plot(outcome: Outcome, work: Path) -> Outcome:
    """Draw `report.svg` beside a synthesis' report."""
    whole = json.loads((work / "report.json").read_bytes())
    stages = [(stage["stage"], stage["passed"]) for stage in whole["stages"]]
    reasons = [(reason["reason"], reason["units"]) for reason in whole["reasons"][:MOST_REASONS]]
    write_atomically(work / "report.svg", acceptance(stages, reasons).encode())
    return outcome
