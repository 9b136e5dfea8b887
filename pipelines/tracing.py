"""Tracing: from a row of a shard back to the raw bytes that its text came from, checked by sha256.

The place in a document's `origin` is enough: file, member, offset and length say where, the hash says that nothing has
changed since. Every format that the readers know is read again by the same code that read it first.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from pipelines.archives import STREAM_ERRORS, members_of, open_raw
from pipelines.errors import DataError
from pipelines.inputs import format_of
from pipelines.locations import is_url, location
from pipelines.splits import WHOLE, Split
from pipelines.table_readers import arrow_batches, parquet_batches
from pipelines.templates import row_bytes
from pipelines.warc import is_warc, warc_block

SKIP_BYTES = 1 << 20


def read_origin(origin: Mapping[str, Any], roots: Sequence[Path]) -> bytes:
    """The raw bytes of a record.

    Args:
        origin: fields of `document.ORIGIN`.
        roots: folders that the file may be below; the first that has it counts.

    Returns:
        the record's bytes: a JSON object, a text, an HTTP response (WARC, ARC), or a Parquet row as canonical JSON.

    Raises:
        DataError: the file is gone, or the bytes are not those that were read; names both hashes.
    """
    places = [location(origin["file"])] if is_url(origin["file"]) else [root / origin["file"] for root in roots]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        looked = ", ".join(map(str, roots)) or "no folder"
        raise DataError(f"raw file {origin['file']} is not in {looked}; name its folder: --root FOLDER")
    try:
        data = _fetch(path, origin)
    except STREAM_ERRORS as error:
        raise DataError(f"{path} cannot be read at {_place(origin)}: {error}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != origin["sha256"]:
        raise DataError(
            f"{path} at {_place(origin)}: expected sha256 {origin['sha256']}, found {found}; it has changed"
        )
    return data


def _place(origin: Mapping[str, Any]) -> str:
    member = f"member {origin['member']}, " if origin.get("member") else ""
    return f"{member}byte {origin['offset']}, row {origin.get('row')}"


def _fetch(path: Path, origin: Mapping[str, Any]) -> bytes:
    if is_warc(path):
        return warc_block(path, origin["offset"], origin.get("row"), origin["sha256"])
    kind = format_of(path)
    if kind in ("parquet", "arrow"):
        return _table_row(path, kind, origin["row"])
    if origin.get("member") is None:
        with open_raw(path) as stream:
            return _bytes_at(stream, origin)
    for member, stream in members_of(path):
        if member == origin["member"]:
            return _bytes_at(stream, origin)
    raise DataError(f"{path} has no member {origin['member']!r}; the archive has changed")


def _bytes_at(stream: BinaryIO, origin: Mapping[str, Any]) -> bytes:
    left = origin["offset"]
    while left and (skipped := stream.read(min(left, SKIP_BYTES))):
        left -= len(skipped)
    return stream.read(origin["length"])


def _table_row(path: Path, kind: str, row: int) -> bytes:
    """The canonical bytes of a row of a Parquet or Arrow file."""
    split = WHOLE
    if kind == "parquet":
        with path.open("rb") as source, pq.ParquetFile(source) as file:
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if row < rows:
                    split = Split(group, 1)
                    break
                row -= rows
    for batch in parquet_batches(path, split) if kind == "parquet" else arrow_batches(path, split):
        if row < batch.num_rows:
            return row_bytes(batch.slice(row, 1).to_pylist()[0])
        row -= batch.num_rows
    return b""


def trace(shard_prefix: Path, row: int) -> dict[str, Any]:
    """Look up where a row of a shard came from.

    Args:
        shard_prefix: path of the shard without suffix; `<prefix>.origin.parquet` lies beside `.bin` and `.idx`.
        row: sequence number in the shard.

    Returns:
        `id`, `source`, `domain` and `origin` of the document.

    Raises:
        DataError: there is no origin file, or no such row.
    """
    path = shard_prefix.with_name(f"{shard_prefix.name}.origin.parquet")
    if not path.is_file():
        raise DataError(f"{path} is missing; give the prefix of a shard that loam tokenize wrote")
    with pq.ParquetFile(path) as file:
        total = file.metadata.num_rows
        if not 0 <= row < total:
            raise DataError(f"{shard_prefix} has rows 0 to {total - 1}; there is no row {row}")
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if row < rows:
                return file.read_row_group(group).slice(row, 1).to_pylist()[0]
            row -= rows
    raise AssertionError("row groups hold all rows")
