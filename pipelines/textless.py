"""Inputs of which no record has the text that was asked for: the wrong field, rather than bad documents.

Bad documents are counted and never stop a step. But where not one record has a text and the first lacks a field that
the template names, every count would say the same: the user is told which fields there are.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.archives import STREAM_ERRORS, open_raw
from pipelines.errors import DataError
from pipelines.execute import with_rejected_inputs
from pipelines.inputs import format_of
from pipelines.locations import common_root, location
from pipelines.manifest import Counts
from pipelines.readers import SAMPLE_BYTES
from pipelines.templates import PLACE, parse_json
from pipelines.tracing import read_origin


def refuse_textless(
    made: Sequence[Path], files: Sequence[Path], work: Path, text: str | None, option: str = "--text"
) -> None:
    """Stop where the fields that the text is made of are in no record.

    Args:
        made: what `inputs.as_documents` made of the files.
        files: what the user gave.
        work: the step's working folder.
        text: template of the text; `{text}` when not given.
        option: that says it.

    Raises:
        DataError: no record has text; names the fields that there are.
    """
    rejects = sorted((work / "rejects").glob("input-*.parquet"))
    if not rejects or any(not path.is_relative_to(work) or pq.read_metadata(path).num_rows for path in made):
        return
    first = pq.read_table(rejects[0], columns=["reason", "origin"]).slice(0, 1).to_pylist()[0]
    fields = fields_of(first["origin"], common_root(files)) if first["reason"] == "no_text" else []
    text = text or "{text}"
    wanted = [place.split(".")[0] for places in PLACE.findall(text) for place in places.split("|")]
    if fields and any(place not in fields for place in wanted):
        example = "{" + next((name for name in fields if name not in ("id", "url")), fields[0]) + "}"
        counts = with_rejected_inputs(Counts(), work)
        fates = ", ".join(f"{number:,} {reason}" for reason, number in counts.rejected.items())
        found = f"no record of {counts.docs_in:,} has the text {text} ({fates}); its fields are {', '.join(fields)}"
        raise DataError(f"{first['origin']['file']}: {found}; "
                        f"say what the text is, such as {option} '{example}'")  # fmt: skip


def fields_of(origin: Mapping[str, Any], root: Path) -> list[str]:
    """Names of the fields of a record that was read; none for what has no fields."""
    try:
        if format_of(Path(origin["member"] or origin["file"])) == "csv":
            return [] if origin["member"] else _header(location(str(root / origin["file"])))
        fields = parse_json(read_origin(origin, [root]))
    except (DataError, *STREAM_ERRORS):
        return []
    return list(fields) if isinstance(fields, dict) else []


def _header(path: Path) -> list[str]:
    with open_raw(path) as stream:
        line = stream.read(SAMPLE_BYTES).decode("utf-8-sig", "replace").splitlines()[0]
    return [name.strip('"') for name in re.split(r"[,;|\t]", line)]
