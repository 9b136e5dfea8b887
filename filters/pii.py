"""Personal data: find it, mask it, and say where it was.

The one choice that matters: only documents that a columnar search finds suspicious reach Python; the spans are those of
the original text (in characters), so that what was masked can be audited. Source: `pii_patterns.py`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from filters.pii_patterns import CANDIDATE, KINDS
from pipelines.block import Block
from pipelines.document import with_column
from pipelines.execute import parts_of, transform
from pipelines.recipe import Section
from pipelines.store import Outcome

PiiType = Literal[
    "private_key", "api_key", "email", "iban", "credit_card", "us_ssn", "ip_address", "phone_number"
]  # fmt: skip
TYPES: tuple[PiiType, ...] = PiiType.__args__
SPANS = "pii.spans"
"""Attribute column of a fused pass: the spans of each document."""
SPAN = pa.struct([("start", pa.int64()), ("end", pa.int64()), ("type", pa.string()), ("replacement", pa.string())])


class Span(NamedTuple):
    """A piece of personal data.

    Attributes:
        start: first character, in the original text.
        end: after the last character.
        type: of `TYPES`.
        replacement: the placeholder, `<EMAIL>`.
    """

    start: int
    end: int
    type: str
    replacement: str


class PiiSettings(Section):
    """What counts, and what to do about it.

    Attributes:
        types: kinds to look for.
        action: `mask` replaces by placeholders; `tag` leaves the text and only reports spans.
    """

    types: list[PiiType] = Field(default_factory=lambda: list(TYPES))
    action: Literal["mask", "tag"] = "mask"


def find(text: str, types: Sequence[str] = TYPES) -> list[Span]:
    """Personal data in a text, from left to right, without overlaps (the earlier kind of `KINDS` stays)."""
    spans: list[Span] = []
    for kind in KINDS:
        if kind.name not in types:
            continue
        for match in kind.pattern.finditer(text):
            free = all(match.end() <= s.start or match.start() >= s.end for s in spans)
            if free and kind.valid(match):
                spans.append(Span(match.start(), match.end(), kind.name, kind.placeholder))
    return sorted(spans)


def mask(text: str, types: Sequence[str] = TYPES) -> tuple[str, list[Span]]:
    """Replace personal data by placeholders.

    Args:
        text: any text.
        types: kinds to look for.

    Returns:
        the masked text, and spans in the original.
    """
    spans = find(text, types)
    return replace_spans(text, spans), spans


def replace_spans(text: str, spans: Sequence[Span]) -> str:
    """A text with sorted spans replaced."""
    pieces, at = [], 0
    for span in spans:
        pieces += [text[at : span.start], span.replacement]
        at = span.end
    return "".join([*pieces, text[at:]])


class MaskPii(Block):
    """Mask (or tag) personal data; the spans become the attribute `pii.spans`.

    Args:
        settings: which kinds, and what to do.
    """

    name = "pii"

    def __init__(self, settings: PiiSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or PiiSettings()

    def apply(self, batch: pa.Table) -> pa.Table:
        """Mask a batch."""
        text = batch["text"].combine_chunks()
        suspicious = pc.match_substring_regex(text, CANDIDATE)
        texts = text.to_pylist() if pc.any(suspicious).as_py() else []
        found: list[list[dict]] = [[] for _ in range(batch.num_rows)]
        masked = False
        for row in pc.indices_nonzero(suspicious).to_pylist():
            changed, spans = mask(texts[row], self.settings.types)
            found[row] = [span._asdict() for span in spans]
            if spans and self.settings.action == "mask":
                texts[row], masked = changed, True
        if masked:
            batch = with_column(batch, "text", pa.array(texts, pa.string()))
        return with_column(batch, SPANS, pa.array(found, pa.list_(SPAN)))


def write_spans(work: Path, parts: Sequence[str]) -> dict[str, int]:
    """Gather the attribute `pii.spans` of all parts into `spans.parquet`.

    Args:
        work: a folder that a pass with `MaskPii` in it filled.
        parts: its parts in order (`pipelines.execute.parts_of`).

    Returns:
        type -> spans.
    """
    schema = pa.schema([("id", pa.string()), *SPAN])
    temporary = work / ".spans.parquet.tmp"
    counts: dict[str, int] = {}
    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for part in parts:
            path = work / "attributes" / f"{part}.parquet"
            if not path.is_file() or SPANS not in pq.read_schema(path).names:
                continue
            for batch in pq.ParquetFile(path).iter_batches(columns=["id", SPANS]):
                spans = batch.column(SPANS)
                flat = pc.list_flatten(spans)
                ids = batch.column("id").take(pc.list_parent_indices(spans))
                columns = [ids, *(pc.struct_field(flat, [field.name]) for field in SPAN)]
                writer.write_table(pa.table(columns, schema=schema))
                for entry in pc.value_counts(columns[3]).to_pylist():
                    counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    temporary.replace(work / "spans.parquet")
    return dict(sorted(counts.items()))


def mask_pii(files: Sequence[Path], work: Path, settings: PiiSettings | None = None, workers: int = 1) -> Outcome:
    """Mask personal data in documents.

    Args:
        files: Parquet documents.
        work: the step's folder; gets `kept/` (masked documents), `attributes/` and `spans.parquet` (id, start, end,
            type, replacement; positions in characters of the original text).
        settings: which kinds, and what to do.
        workers: processes.

    Returns:
        counts, and `spans`: type -> number.
    """
    counts = transform(files, [MaskPii(settings)], work, workers, "pii")
    return Outcome(counts, {"spans": write_spans(work, parts_of(files))})
