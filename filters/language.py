"""Language identification: the `language` verb, and the block that keeps the languages that a recipe wants.

The one choice that matters: a confidence is the normalised probability of the label, and a threshold drops with a
reason (`language.<code>`, `language.<code>_<Script>`, `language.low_confidence`); source code is no wrong language: it
is found and labelled `zxx` (ISO 639-3: no linguistic content), and stays. Source: `language_model.py`.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datatrove.pipeline.base import PipelineStep
from pydantic import Field

from filters.by_domain import distinct, split_by_settings
from filters.scripts import script_of
from pipelines.block import Block, ReadDocuments
from pipelines.document import DROPPED, with_column, with_fate, with_scores
from pipelines.errors import RecipeError
from pipelines.execute import parts_of, run_blocks, with_rejected_inputs
from pipelines.manifest import Counts
from pipelines.recipe import Section
from pipelines.store import Outcome

LABELS = {"code": "zxx"}
"""Words that a recipe may say instead of a code."""


class LanguageSettings(Section):
    """What to do about languages.

    Attributes:
        keep: ISO 639-3 codes that stay, macrolanguages included (`zho`), with a script or without (`srp_Latn`,
            `zho_Hans`); null keeps all.
        min_confidence: smallest probability that stays, 0..1 (FineWeb: 0.65 with another model).
        code: whether source code (`zxx`) stays whatever `keep` and `min_confidence` say, or is judged like a language.
        label: set this code on every document without looking (`zxx`, or `code`, for source code).
    """

    keep: list[str] | None = None
    min_confidence: float = Field(default=0.0, ge=0, le=1)
    code: Literal["keep", "judge"] = "keep"
    label: str | None = None

    def wanted(self) -> set[str] | None:
        """Languages that stay, macrolanguages opened, those with a script as `code_Script`; None: all.

        Raises:
            RecipeError: a code that the model does not know.
        """
        if self.keep is None:
            return None
        from filters.language_model import ISO_639_3, MACROLANGUAGES, known_languages
        from filters.scripts import KNOWN

        known, wanted = known_languages(), set()
        for name in self.keep:
            code, _, script = name.partition("_")
            if code not in known:
                near = [ISO_639_3[code]] if code in ISO_639_3 else difflib.get_close_matches(code, sorted(known), n=3)
                raise RecipeError(f"unknown language {code!r} in keep; {_hint(near, 'ISO 639-3', 'eng, cmn, fra')}")
            if script and script not in KNOWN:
                near = difflib.get_close_matches(script, sorted(KNOWN), n=3)
                raise RecipeError(f"unknown script {script!r} in keep; {_hint(near, 'ISO 15924', 'Latn, Cyrl, Hans')}")
            wanted |= {f"{label}_{script}" if script else label for label in MACROLANGUAGES.get(code, (code,))}
        return wanted


def _hint(near: Sequence[str], standard: str, examples: str) -> str:
    return f"did you mean {' or '.join(near)}?" if near else f"give {standard} codes such as {examples}"


class IdentifyLanguage(Block):
    """Set `language`, `scores.language` and the attribute `script`; drop what is not wanted.

    Args:
        settings: one for all documents, or by domain (`*`: the rest).
    """

    name = "language"

    def __init__(self, settings: LanguageSettings | Mapping[str, LanguageSettings] | None = None) -> None:
        super().__init__()
        self.settings = LanguageSettings() if settings is None else settings
        for one in distinct(self.settings):
            one.wanted()  # a wrong code is found before work starts

    def apply(self, batch: pa.Table) -> pa.Table:
        """Label a batch."""
        from filters.language_model import identify

        codes = np.full(batch.num_rows, "", object)
        confidence = np.ones(batch.num_rows)
        reasons = np.full(batch.num_rows, None, object)
        text = batch["text"].combine_chunks()
        for settings, rows in split_by_settings(batch, self.settings):
            at = np.asarray(rows)
            if settings.label is not None:
                codes[at] = LABELS.get(settings.label, settings.label)
                continue
            found, confidence[at] = identify(text.take(rows))
            codes[at] = found.to_numpy(zero_copy_only=False)
        languages = pa.array(codes, pa.string())
        scripts = script_of(text, languages)
        for settings, rows in split_by_settings(batch, self.settings):
            if settings.label is None:
                at = np.asarray(rows)
                reasons[at] = _verdicts(languages.take(rows), scripts.take(rows), confidence[at], settings)
        batch = with_column(with_column(batch, "language", languages), "script", scripts)
        batch = with_scores(batch, language=pa.array(confidence, pa.float64()))
        return with_fate(batch, DROPPED, pa.array(reasons, pa.string()))


def _verdicts(codes: pa.Array, scripts: pa.Array, confidence_N: np.ndarray, settings: LanguageSettings) -> np.ndarray:
    """Reasons, object (N,): None keeps; a language that is not wanted is named before a low confidence."""
    from filters.language_model import CODE

    nothing = pa.scalar(None, pa.string())
    reasons = pc.if_else(pa.array(confidence_N < settings.min_confidence), "language.low_confidence", nothing)
    if (wanted := settings.wanted()) is not None:
        stays = pa.array(sorted(wanted))
        written = pc.binary_join_element_wise(codes, pc.fill_null(scripts, "Zyyy"), "_")
        other = pc.invert(pc.or_(pc.is_in(codes, value_set=stays), pc.is_in(written, value_set=stays)))
        # the script is named where it alone is the reason
        languages = pa.array(sorted({name.partition("_")[0] for name in wanted}))
        named = pc.if_else(pc.is_in(codes, value_set=languages), written, codes)
        reasons = pc.if_else(other, pc.binary_join_element_wise("language", named, "."), reasons)
    if settings.code == "keep":
        reasons = pc.if_else(pc.equal(codes, CODE), nothing, reasons)
    return reasons.to_numpy(zero_copy_only=False)


class _WriteScores(PipelineStep):
    """End of the verb's pipeline: `scores/<part>.parquet` with id, language, confidence, script."""

    type = "writer"
    name = "scores"

    def __init__(self, out: str, parts: list[str]) -> None:
        super().__init__()
        self.out = out
        self.parts = parts

    def run(self, data: Iterable[pa.Table], rank: int = 0, world_size: int = 1) -> None:
        path = Path(self.out) / "scores" / f"{self.parts[rank]}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        names = {"id": pa.string(), "language": pa.string(), "confidence": pa.float64(), "script": pa.string()}
        schema = pa.schema(names.items())
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for batch in data:
                confidence = pc.struct_field(batch["scores"].combine_chunks(), ["language"])
                writer.write_table(
                    pa.table([batch["id"], batch["language"], confidence, batch["script"]], schema=schema)
                )
        temporary.replace(path)


def language(
    files: Sequence[Path],
    work: Path,
    settings: LanguageSettings | Mapping[str, LanguageSettings] | None = None,
    workers: int = 1,
) -> Outcome:
    """Tell the language of every document; nothing is dropped.

    Args:
        files: Parquet documents.
        work: the step's folder; gets `scores/<part>.parquet`: id, language (ISO 639-3), confidence (0..1),
            script (ISO 15924, see `scripts.script_of`; null without letters). Program code is `zxx`.
        settings: only `label` matters here.
        workers: processes.

    Returns:
        counts, and `languages`: code -> documents.
    """
    parts = parts_of(files)
    blocks = [ReadDocuments([str(f) for f in files]), IdentifyLanguage(settings), _WriteScores(str(work), parts)]
    run_blocks(blocks, len(files), work, workers, "language")
    tables = [pq.read_table(work / "scores" / f"{part}.parquet", columns=["language"]) for part in parts]
    found = pa.concat_tables(tables)["language"].value_counts().to_pylist() if tables else []
    languages = {entry["values"]: entry["counts"] for entry in sorted(found, key=lambda e: e["values"])}
    total = sum(languages.values())
    counts = with_rejected_inputs(Counts(docs_in=total, kept=total), work)
    return Outcome(counts, {"languages": languages})
