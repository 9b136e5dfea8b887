"""Licences: what each document says of its own, or its source of it, as one SPDX identifier, and who may stay.

The one choice that matters: a document's own word (an SPDX line, a licence's header, a Creative Commons link) is looked
for where documents say such things, in their first and last lines, and is kept apart from what the source states: where
it came from stands beside it. A licence is never guessed. Sources: the SPDX list, Creative Commons' addresses.
"""

import fnmatch
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

from pipelines.block import Block
from pipelines.document import DROPPED, with_column, with_fate
from pipelines.execute import parts_of, transform
from pipelines.recipe import Section
from pipelines.store import Outcome

LICENCE, ORIGIN = "licence", "licence.from"
"""Attributes: the SPDX identifier, and what told it: `document` or `source`."""
EDGE_CHARS = 3000
"""Documents speak of their licence in their first or last lines."""
PERMISSIVE = ("MIT*", "Apache-2.0", "BSD-*", "0BSD", "ISC", "Zlib", "BSL-1.0", "Unlicense", "CC0-1.0", "CC-BY-[0-9]*",
              "Python-2.0", "PostgreSQL", "public-domain", "PDDL-1.0", "ODC-By-1.0", "X11", "NCSA", "W3C")  # fmt: skip
"""What `permissive` stands for in a recipe."""

_CC = r"creativecommons\.org/(?P<kind>licenses|publicdomain)/(?P<code>[a-z+-]+)/(?P<version>[0-9.]+[0-9])"
_SPDX = r"SPDX-License-Identifier:\s*(?P<id>[A-Za-z0-9][A-Za-z0-9.+() -]*[A-Za-z0-9.+)])"
_HINT = r"(?i)licen[sc]e|creativecommons|permission is hereby granted|redistribution"
HEADERS = (
    (r"(?i)licensed under the apache license,?\s+(?:version\s+)?2\.0|apache\.org/licenses/license-2\.0", "Apache-2.0"),
    (r"(?i)permission is hereby granted, free of charge, to any person obtaining", "MIT"),
    (r"(?i)under the terms of the gnu general public license[\s\S]{0,120}version 3", "GPL-3.0"),
    (r"(?i)under the terms of the gnu general public license[\s\S]{0,120}version 2", "GPL-2.0"),
    (r"(?i)subject to the terms of the mozilla public license,? v(?:ersion|\.)\s*2\.0", "MPL-2.0"),
    (r"(?i)redistributions of source code must retain[\s\S]{0,900}neither the name", "BSD-3-Clause"),
    (r"(?i)redistribution and use in source and binary forms", "BSD-2-Clause"),
    (r"(?i)licensed under the mit license|released under the mit license", "MIT"),
)
"""RE2 patterns of licence headers, in order."""
_NAMES = (
    (r"\bapache\b.*\b2\b", "Apache-2.0"), (r"\bapache\b", "Apache-2.0"), (r"\b(?:agpl|affero)\b.*3", "AGPL-3.0"),
    (r"\b(?:lgpl|lesser)\b.*2\.1", "LGPL-2.1"), (r"\b(?:lgpl|lesser)\b.*3", "LGPL-3.0"),
    (r"\b(?:gplv?|gnu general public license)\W*(?:v|version)?\W*3", "GPL-3.0"),
    (r"\b(?:gplv?|gnu general public license)\W*(?:v|version)?\W*2", "GPL-2.0"),
    (r"\b(?:gfdl|gnu free documentation)\b.*1\.2", "GFDL-1.2"), (r"\b(?:gfdl|gnu free documentation)\b", "GFDL-1.3"),
    (r"\bmpl\b.*2|mozilla public.*2", "MPL-2.0"), (r"\bbsd\b\W*2|simplified bsd", "BSD-2-Clause"),
    (r"\bbsd\b\W*3|(?:new|modified|revised) bsd", "BSD-3-Clause"), (r"^bsd(?: licen[sc]e)?$", "BSD-3-Clause"),
    (r"\bisc\b", "ISC"), (r"\bmit\b", "MIT"), (r"\bunlicense\b", "Unlicense"), (r"\bcc-?0\b", "CC0-1.0"),
    (r"\bodc[- ]by\b", "ODC-By-1.0"), (r"\bodbl\b", "ODbL-1.0"),
    (r"\b(?:psf|python software foundation)\b", "PSF-2.0"), (r"public domain|government works?", "public-domain"),
)  # fmt: skip


class LicenceSettings(Section):
    """Which licences may stay.

    Attributes:
        allow: SPDX identifiers, patterns (`CC-BY-*`) or `permissive`; empty: all.
        deny: the same; goes before `allow`.
        unknown: what becomes of documents without a known licence when something is allowed or denied.
        detect: look for what documents say themselves.
    """

    allow: list[str] = Field(default_factory=list)
    deny: list[str] = Field(default_factory=list)
    unknown: Literal["keep", "drop"] = "keep"
    detect: bool = True

    def verdict(self, licence: str | None) -> str | None:
        """None for a document that stays, else the reason."""
        if licence is None:
            return "licence.unknown" if self.unknown == "drop" else None
        if _named(licence, self.deny) or (self.allow and not _named(licence, self.allow)):
            return f"licence.{licence}"
        return None


def _named(licence: str, patterns: Sequence[str]) -> bool:
    every = [p for pattern in patterns for p in (PERMISSIVE if pattern == "permissive" else (pattern,))]
    return any(fnmatch.fnmatchcase(licence.lower(), pattern.lower()) for pattern in every)


def spdx_of(stated: str) -> str | None:
    """The SPDX identifier of a licence as people write it; None when it is not known.

    Args:
        stated: `Apache License 2.0`, `cc-by-sa-4.0`, an address of Creative Commons, ...
    """
    text = " ".join(stated.split())
    low = text.lower()
    if link := re.search(_CC, low):
        return _creative_commons(link["code"], link["version"], link["kind"] == "publicdomain")
    written = re.search(r"\bcc[ -](by(?:[ -](?:nc|sa|nd))*)(?:[ -]v?(\d(?:\.\d)?))?", low)
    if written:
        version = written[2] or "4.0"
        return _creative_commons(written[1].replace(" ", "-"), version if "." in version else f"{version}.0", False)
    return next((name for pattern, name in _NAMES if re.search(pattern, low)), None)


def _creative_commons(code: str, version: str, public: bool) -> str:
    if public:
        return "CC0-1.0" if code == "zero" else "public-domain"
    return f"CC-{code.upper()}-{version}"


def stated_licences(metadata: pa.Array) -> pa.Array:
    """What sources state: string (N,), `licence` or `license` of the metadata, null where there is neither."""
    found = pa.nulls(len(metadata), pa.string())
    for key in ("licence", "license"):
        value = pc.map_lookup(metadata, pa.scalar(key), "first")
        found = pc.coalesce(found, value)
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(found), ""), pa.scalar(None, pa.string()), found)


def detected_licences(texts: pa.Array) -> pa.Array:
    """What documents say themselves: SPDX identifiers, string (N,), null where they say nothing."""
    edges = pc.binary_join_element_wise(
        pc.utf8_slice_codeunits(texts, 0, EDGE_CHARS), pc.utf8_slice_codeunits(texts, -EDGE_CHARS), "\n"
    )
    rows = pc.indices_nonzero(pc.match_substring_regex(edges, _HINT))  # few documents speak of a licence at all
    found: list[str | None] = [None] * len(edges)
    for row, licence in zip(rows.to_pylist(), _detected(edges.take(rows)).to_pylist(), strict=True):
        found[row] = licence
    return pa.array(found, pa.string())


def _detected(edges: pa.Array) -> pa.Array:
    found = pc.struct_field(pc.extract_regex(edges, _SPDX), ["id"])
    links = [None if link is None else spdx_of(f"creativecommons.org/{link['kind']}/{link['code']}/{link['version']}")
             for link in pc.extract_regex(edges, f"(?i){_CC}").to_pylist()]  # fmt: skip
    found = pc.coalesce(found, pa.array(links, pa.string()))
    for pattern, name in HEADERS:
        named = pc.if_else(pc.match_substring_regex(edges, pattern), name, pa.scalar(None, pa.string()))
        found = pc.coalesce(found, named)
    return found


class Licences(Block):
    """Say each document's licence, and drop those that may not stay.

    Adds the attributes `licence` (SPDX) and `licence.from`; what a document says itself goes to its metadata.

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
        stated = _each(stated_licences(metadata), spdx_of)
        nothing = pa.nulls(batch.num_rows, pa.string())
        own = detected_licences(batch["text"].combine_chunks()) if self.settings.detect else nothing
        licence = pc.coalesce(own, stated)
        told = pc.if_else(pc.is_valid(own), "document", pc.if_else(pc.is_valid(stated), "source", nothing))
        batch = batch.append_column(LICENCE, licence).append_column(ORIGIN, told)
        batch = with_column(batch, "metadata", _with_licence(metadata, own))
        if not (self.settings.allow or self.settings.deny or self.settings.unknown == "drop"):
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
        work: the step's folder; gets `kept/`, `dropped/` (reason `licence.GPL-3.0`, `licence.unknown`) and
            `attributes/`.
        settings: which may stay.
        workers: processes.

    Returns:
        counts, and `licences`: documents by licence, dropped ones included.
    """
    counts = transform(files, [Licences(settings)], work, workers, "licences")
    return Outcome(counts, {"licences": licence_table(work, parts_of(files))})
