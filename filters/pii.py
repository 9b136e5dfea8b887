"""Personal data: find it, mask it, and say where it was.

The one choice that matters: one compiled pass over a column finds the few places that can hold personal data, and only
windows around them meet the patterns; the spans are those of the original text (in characters), so that what was masked
can be audited and everything outside them is untouched. Sources: `pii_candidates.py`, `pii_patterns.py`.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from filters.pii_candidates import candidates
from filters.pii_patterns import KINDS, TYPES
from filters.pii_surrogates import surrogate
from pipelines.block import Block
from pipelines.document import with_column
from pipelines.execute import parts_of, transform
from pipelines.recipe import Section
from pipelines.store import Outcome

PiiType = Literal[
    "private_key", "api_key", "email", "iban", "cn_resident_id", "fr_nir", "credit_card", "us_ssn", "br_cpf", "kr_rrn",
    "in_aadhaar", "ca_sin", "es_dni", "uk_nino", "it_fiscal_code", "crypto_wallet", "ip_address", "mac_address",
    "phone_number",
]  # fmt: skip
DEFAULT_TYPES: tuple[PiiType, ...] = tuple(name for name in PiiType.__args__ if name != "mac_address")
"""A MAC address names a network card on a local network; nearly all in pages and code are examples: ask for it."""
SPANS = "pii.spans"
"""Attribute column of a fused pass: the spans of each document."""
SPAN = pa.struct([("start", pa.int64()), ("end", pa.int64()), ("type", pa.string()), ("replacement", pa.string())])
assert set(PiiType.__args__) == set(TYPES)


class Span(NamedTuple):
    """A piece of personal data.

    Attributes:
        start: first character, in the original text.
        end: after the last character.
        type: of `PiiType`.
        replacement: the placeholder, `<EMAIL>`, or the surrogate.
    """

    start: int
    end: int
    type: str
    replacement: str


class PiiSettings(Section):
    """What counts, and what to do about it.

    Attributes:
        types: kinds to look for.
        action: `mask` replaces by placeholders; `surrogate` by made-up values of the same shape, the same value always
            by the same; `tag` leaves the text and only reports spans.
        seed: of surrogates.
    """

    types: list[PiiType] = Field(default_factory=lambda: list(DEFAULT_TYPES))
    action: Literal["mask", "surrogate", "tag"] = "mask"
    seed: int = Field(default=0, ge=0)


def find(text: str, types: Sequence[str] = DEFAULT_TYPES) -> list[Span]:
    """Personal data in a text, from left to right, without overlaps (the earlier kind of `KINDS` stays)."""
    windows_W4 = candidates(pa.array([text], pa.string()))
    return find_in(text, windows_W4[:, 1:].tolist(), types)


def find_in(text: str, windows: Sequence[Sequence[int]], types: Sequence[str] = DEFAULT_TYPES) -> list[Span]:
    """The same where the windows are known already.

    Args:
        text: any text.
        windows: start, end and suspicions of each, as `pii_candidates.candidates` gives them.
        types: kinds to look for.
    """
    spans: list[Span] = []
    for kind in KINDS:
        if kind.name not in types:
            continue
        for start, end, suspicions in windows:
            if not suspicions & kind.near:
                continue
            for match in kind.pattern.finditer(text, start, end):
                first, last = match.span(kind.group)
                at = bisect_left(spans, (first,))
                free = (at == 0 or spans[at - 1].end <= first) and (at == len(spans) or last <= spans[at].start)
                if free and kind.valid(match):
                    insort(spans, Span(first, last, kind.name, kind.placeholder))
    return spans


def mask(text: str, types: Sequence[str] = DEFAULT_TYPES) -> tuple[str, list[Span]]:
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
        windows_W4 = candidates(text)
        rows, starts = np.unique(windows_W4[:, 0], return_index=True)
        suspicious = text.take(pa.array(rows)).to_pylist()
        found: list[list[dict]] = [[] for _ in range(batch.num_rows)]
        changed: dict[int, str] = {}
        bounds = [*starts.tolist(), len(windows_W4)]
        for number, (row, original) in enumerate(zip(rows.tolist(), suspicious, strict=True)):
            spans = self._spans(original, windows_W4[bounds[number] : bounds[number + 1], 1:].tolist())
            found[row] = [span._asdict() for span in spans]
            if spans and self.settings.action != "tag":
                changed[row] = replace_spans(original, spans)
        if changed:
            edited = np.zeros(batch.num_rows, bool)
            edited[list(changed)] = True
            text = pc.replace_with_mask(text, pa.array(edited), pa.array(list(changed.values()), pa.string()))
            batch = with_column(batch, "text", text)
        return with_column(batch, SPANS, pa.array(found, pa.list_(SPAN)))

    def _spans(self, text: str, windows: Sequence[Sequence[int]]) -> list[Span]:
        spans = find_in(text, windows, self.settings.types)
        if self.settings.action != "surrogate":
            return spans
        values = [surrogate(text[s.start : s.end], s.type, self.settings.seed) for s in spans]
        return [span._replace(replacement=value) for span, value in zip(spans, values, strict=True)]


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
        counts, `spans`: type -> number, and `documents_with_spans`.
    """
    counts = transform(files, [MaskPii(settings)], work, workers, "pii")
    spans = write_spans(work, parts_of(files))
    lists = (pq.read_table(path, columns=[SPANS])[SPANS] for path in sorted((work / "attributes").rglob("*.parquet")))
    found = sum(int(pc.sum(pc.greater(pc.list_value_length(column), 0)).as_py() or 0) for column in lists)
    return Outcome(counts, {"spans": spans, "spans_in_all": sum(spans.values()), "documents_with_spans": found})
