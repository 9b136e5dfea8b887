"""Licences: what the source of each document states, or else the document itself, as SPDX, and who may stay.

The one choice that matters: a document's own word never goes before its source's. It fills in where the source states
nothing, and only an SPDX tag that is a comment line of its own counts, unless prose is asked for: prose speaks of other
works' licences more often than of its own. Names: `filters.licence_names`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from filters.licence_names import parse, passes, spdx_of, written
from pipelines.block import Block
from pipelines.document import DROPPED, stated_licences, with_column, with_fate
from pipelines.execute import parts_of, transform
from pipelines.recipe import Section
from pipelines.store import Outcome

LICENCE, ORIGIN = "licence", "licence.from"
"""Attributes: the SPDX expression, and what told it: `document` or `source`."""
EDGE_CHARS = 3000
"""Documents speak of their licence in their first or last lines."""

_TAG = re.compile(
    r"^[ \t]*(?:#+|//+!?|/\*+|\*|--+|;+|%+|<!--|\{#|\(\*|!|rem\b|dnl\b|\.\\\")[ \t]*"
    r"SPDX-License-Identifier:(?P<id>.*)$",
    re.MULTILINE | re.IGNORECASE,
)
_CLOSERS = re.compile(r"(?:\*+/|-->|#\}|\*\))$")
_LINK = re.compile(r"creativecommons\.org/(?:licenses|publicdomain)/[a-z+-]+/[0-9]\.[0-9]", re.IGNORECASE)
_HINT = r"(?i)licen[sc]e|creativecommons|permission is hereby granted|redistribution"
HEADERS = (
    (r"licensed under the apache license,?\s+(?:version\s+)?2\.0|apache\.org/licenses/license-2\.0", "Apache-2.0"),
    (r"permission is hereby granted, free of charge, to any person obtaining", "MIT"),
    (r"under the terms of the gnu general public license[\s\S]{0,120}version 3", "GPL-3.0"),
    (r"under the terms of the gnu general public license[\s\S]{0,120}version 2", "GPL-2.0"),
    (r"subject to the terms of the mozilla public license,? v(?:ersion|\.)\s*2\.0", "MPL-2.0"),
    (r"redistributions of source code must retain[\s\S]{0,900}neither the name", "BSD-3-Clause"),
    (r"redistribution and use in source and binary forms(?![\s\S]{0,1500}neither the name)", "BSD-2-Clause"),
    (r"licensed under the mit license|released under the mit license", "MIT"),
)
"""Patterns of licence headers in prose; texts that match several licences name none."""


class LicenceSettings(Section):
    """Which licences may stay.

    Of an expression joined by AND every part must pass, of one joined by OR any part; exceptions (WITH) are set aside.

    Attributes:
        allow: SPDX identifiers, patterns of one identifier (`CC-BY-SA-*`; `CC-BY-*` takes in NC and ND) or
            `permissive`; empty: all.
        deny: the same; goes before `allow`.
        unknown: what becomes of documents without a known licence; by default `drop` where `allow` is set, else `keep`.
        detect: look for SPDX tags in documents whose source states nothing.
        detect_prose: also for licence headers and links to Creative Commons in what they say.
    """

    allow: list[str] = Field(default_factory=list)
    deny: list[str] = Field(default_factory=list)
    unknown: Literal["keep", "drop"] | None = None
    detect: bool = True
    detect_prose: bool = False

    @property
    def drops_unknown(self) -> bool:
        """Whether documents without a known licence go."""
        return bool(self.allow) if self.unknown is None else self.unknown == "drop"

    def verdict(self, licence: str | None) -> str | None:
        """None for a document that stays, else the reason."""
        if licence is None:
            return "licence.unknown" if self.drops_unknown else None
        return None if passes(licence, self.allow, self.deny) else f"licence.{licence}"


def detected_licences(texts: pa.Array, prose: bool = False) -> pa.Array:
    """What documents say themselves: SPDX expressions, string (N,), null where they say nothing.

    Args:
        texts: string (N,).
        prose: also take licence headers and links to Creative Commons, where there is no tag.
    """
    rows = pc.indices_nonzero(pc.match_substring_regex(texts, _HINT if prose else "(?i)spdx-license-identifier:"))
    found: list[str | None] = [None] * len(texts)
    for row, text in zip(rows.to_pylist(), texts.take(rows).to_pylist(), strict=True):
        edges = _edges(text)
        found[row] = _told_in_prose(edges) if prose and not _TAG.search(edges) else _tagged(edges)
    return pa.array(found, pa.string())


def _edges(text: str) -> str:
    """The first and last characters of a text, lines that the cut parted left out."""
    if len(text) <= 2 * EDGE_CHARS:
        return text
    return text[:EDGE_CHARS].rpartition("\n")[0] + "\n" + text[-EDGE_CHARS:].partition("\n")[2]


def _tagged(text: str) -> str | None:
    """The licence of SPDX tags on comment lines: all of them, joined by AND; None where one is no valid expression."""
    trees = [parse(_CLOSERS.sub("", tag["id"].strip())) for tag in _TAG.finditer(text)]
    names = list(dict.fromkeys(written(tree) for tree in trees if tree is not None))
    if not names or None in trees:
        return None
    return spdx_of(" AND ".join(f"({name})" for name in names))


def _told_in_prose(text: str) -> str | None:
    links = {spdx_of(link) for link in _LINK.findall(text)}
    names = links | {name for pattern, name in HEADERS if re.search(pattern, text, re.IGNORECASE)}
    return names.pop() if len(names) == 1 else None


class Licences(Block):
    """Say each document's licence, and drop those that may not stay.

    Adds the attributes `licence` (SPDX) and `licence.from`; what a document says, its source being silent, goes to its
    metadata.

    Args:
        settings: which may stay.
    """

    name = "licences"

    def __init__(self, settings: LicenceSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or LicenceSettings()

    def apply(self, batch: pa.Table) -> pa.Table:
        """Judge a batch."""
        metadata = batch["metadata"].combine_chunks()
        words = stated_licences(metadata)
        stated, own = _each(words, spdx_of), pa.nulls(batch.num_rows, pa.string())
        nothing = own
        if self.settings.detect or self.settings.detect_prose:
            silent = pc.if_else(pc.is_null(words), batch["text"].combine_chunks(), nothing)
            own = detected_licences(silent, self.settings.detect_prose)
        licence = pc.coalesce(stated, own)
        told = pc.if_else(pc.is_valid(own), "document", pc.if_else(pc.is_valid(stated), "source", nothing))
        batch = batch.append_column(LICENCE, licence).append_column(ORIGIN, told)
        batch = with_column(batch, "metadata", _with_licence(metadata, own))
        if not (self.settings.allow or self.settings.deny or self.settings.drops_unknown):
            return batch
        return with_fate(batch, DROPPED, _each(licence, self.settings.verdict, nulls=True))


def _each(column: pa.Array | pa.ChunkedArray, function, nulls: bool = False) -> pa.Array:
    """Map the distinct values of a string column: a corpus has thousands of documents for each licence."""
    encoded = pc.dictionary_encode(column, null_encoding="encode" if nulls else "mask")
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    mapped = [None if value is None and not nulls else function(value) for value in encoded.dictionary.to_pylist()]
    return pa.array(mapped, pa.string()).take(encoded.indices)


def _with_licence(metadata: pa.Array, own: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Metadata with the entry `licence` set where `own` says one."""
    rows = np.asarray(pc.indices_nonzero(pc.is_valid(own)))
    if not len(rows):
        return metadata
    changed = metadata.to_pylist()
    for row, licence in zip(rows.tolist(), own.take(pa.array(rows)).to_pylist(), strict=True):
        changed[row] = [(key, value) for key, value in changed[row] or [] if key != "licence"] + [("licence", licence)]
    return pa.array(changed, metadata.type)


def licence_table(work: Path, parts: Sequence[str]) -> dict[str, int]:
    """Documents by licence, the commonest first, from the attributes of a pass with `Licences` in it."""
    counts: Counter[str] = Counter()
    for part in parts:
        path = work / "attributes" / f"{part}.parquet"
        if path.is_file() and LICENCE in pq.read_schema(path).names:
            for entry in pc.value_counts(pq.read_table(path, columns=[LICENCE])[LICENCE]).to_pylist():
                counts[entry["values"] or "unknown"] += entry["counts"]
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def filter_licences(files: Sequence[Path], work: Path, settings: LicenceSettings, workers: int = 1) -> Outcome:
    """Say the licence of documents and drop those that may not stay.

    Args:
        files: Parquet documents.
        work: the step's folder; gets `kept/`, `dropped/` (reason `licence.GPL-3.0-only`, `licence.unknown`) and
            `attributes/`.
        settings: which may stay.
        workers: processes.

    Returns:
        counts, and `licences`: documents by licence, dropped ones included.
    """
    counts = transform(files, [Licences(settings)], work, workers, "licences")
    return Outcome(counts, {"licences": licence_table(work, parts_of(files))})
