"""Inputs: which reader reads which file, and how files that a user gives to a verb become Parquet documents.

Parquet on this disk passes as it is, unless it holds rows without id or text, or is both big and so much of what was
given that several tasks should share it; everything else is read once, into the step's scratch folder, in parts that
depend on the files alone.
"""

import contextlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from pipelines.archives import is_archive, open_raw
from pipelines.block import BATCH_BYTES, BATCH_ROWS, WriteDocuments
from pipelines.document import STREAM, conform, reject_nulls, table_of
from pipelines.errors import DataError
from pipelines.execute import SCRATCH, run_blocks
from pipelines.extra_fields import METADATA
from pipelines.files import write_atomically
from pipelines.locations import RemoteFile, below, common_root, location
from pipelines.readers import JsonReader, RawReader, Reading, TextReader
from pipelines.splits import Split, by_batch, by_row_group, splits_of
from pipelines.table_readers import (
    TABLE_ERRORS,
    ArrowReader,
    CsvReader,
    ParquetReader,
    arrow_batches,
    has_nulls,
    is_utf8,
    parquet_batches,
)
from pipelines.warc import is_arc, is_warc

FORMATS = (
    ("parquet", r"\.(parquet|pq)$"),
    ("arrow", r"\.(arrow|feather|ipc|arrows)$"),
    ("jsonl", r"\.(jsonl|ndjson)(\.gz|\.zstd?)?$"),
    ("json", r"\.json(\.gz|\.zstd?)?$"),
    ("csv", r"\.(csv|tsv)(\.gz|\.zstd?)?$"),
    ("html", r"\.x?html?(\.gz|\.zstd?)?$"),
    ("text", r"\.(txt|md|rst|tex)(\.gz|\.zstd?)?$"),
)
FEW = 16  # a big file of more than a sixteenth of all bytes would leave workers idle at the end: it is shared
LOST = "left_out"  # folder, below the inputs', of counts of what is no metadata
TAKEN = "Parquet, Arrow, JSON Lines, CSV, .txt or .md (plain, .gz, .zst, .zstd), or a .zip or .tar of them"


def format_of(path: Path) -> str | None:
    """The format that a file's name speaks of: a name in `FORMATS`, `warc`, `archive`, or None."""
    if is_archive(path):
        return "archive"
    if is_warc(path) or is_arc(path):
        return "warc"
    return next((name for name, ending in FORMATS if re.search(ending, path.name.lower())), None)


def holds_documents(path: Path) -> bool:
    """Whether a file's name speaks of a format that verbs on documents read."""
    return format_of(path) not in (None, "html", "warc")


class MemberReader(TextReader):
    """Members of archives, each in the format that its name speaks of: JSON Lines, JSON, CSV, else text."""

    name = "members"

    def documents_of(
        self, stream: BinaryIO, path: Path, name: str, member: str | None, split: Split
    ) -> Iterator[Document]:
        """Yield the documents of a member."""
        inside = Path(member or path.name)
        kinds = {"jsonl": JsonReader, "json": JsonReader, "csv": CsvReader}
        reader = kinds.get(format_of(inside) or "")
        if reader is None:
            yield from super().documents_of(stream, path, name, member, split)
        else:
            yield from reader([], Path(self.root), self.reading).documents_of(stream, inside, name, member, split)


class ReadTables(PipelineStep):
    """Beginning of a pipeline over columnar files that hold documents already; task r reads one split of one file.

    Args:
        files: Parquet or Arrow IPC, with columns `id` and `text`.
        root: folder that the names of rows without an id are relative to.
    """

    type = "reader"
    name = "tables"

    def __init__(self, files: Sequence[Path], root: Path) -> None:
        super().__init__()
        self.root = str(root)
        self.lost: Counter[str] = Counter()  # values of other columns that are no metadata
        planners = {"parquet": by_row_group, "arrow": by_batch}
        self.tasks = [(str(file), split) for file in files
                      for split in splits_of(file, planners[format_of(file) or ""])]  # fmt: skip

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[pa.Table]:
        """Yield stream tables; rows without id or text are rejected."""
        file, split = self.tasks[rank]
        path = location(file)
        name, row = below(path, location(self.root)), split.row
        batches = parquet_batches if format_of(path) == "parquet" else arrow_batches
        for batch in batches(path, split):
            yield reject_nulls(conform(pa.Table.from_batches([batch]), STREAM, path, self.lost), name, row)
            row += batch.num_rows


class Batches(PipelineStep):
    """Turn a stream of documents into Arrow tables of bounded rows and bytes; tables in it pass."""

    type = "batches"
    name = "tables"

    def run(self, data: Iterable[Document | pa.Table], rank: int = 0, world_size: int = 1) -> Iterator[pa.Table]:
        """Yield stream tables; at least one document each."""
        pending: list[Document] = []
        size = 0
        for document in data:
            if isinstance(document, pa.Table):
                yield document
                continue
            pending.append(document)
            size += len(document.text)
            if len(pending) >= BATCH_ROWS or size >= BATCH_BYTES:
                yield table_of(pending)
                pending, size = [], 0
        if pending:
            yield table_of(pending)


class ReadEach(PipelineStep):
    """Beginning of a pipeline over several readers: every task has its own.

    Args:
        tasks: reader, and the rank that it is told, of each task.
        lost: folder for counts of what each task left out of the metadata, where it takes every field.
    """

    type = "reader"
    name = "each"

    def __init__(self, tasks: Sequence[tuple[RawReader | ReadTables, int]], lost: str | None = None) -> None:
        super().__init__()
        self.tasks, self.lost = list(tasks), lost

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Document | pa.Table]:
        """Yield the documents of task `rank`."""
        reader, local = self.tasks[rank]
        reader.lost.clear()  # one reader may have several tasks of a process
        yield from reader.run(None, local, world_size)
        if self.lost is not None:
            _write_lost(Path(self.lost), f"task-{rank}", reader.lost)


def as_documents(files: Sequence[Path], work: Path, workers: int = 1, text: str | None = None) -> list[Path]:
    """Make Parquet documents of files given by a user; whole Parquet on this disk passes, as one of many or small.

    The others become `work/.scratch/inputs/documents/part-NNNNN.parquet`, numbered by their place in `files`
    (`part-NNNNN-MMM` where a big one is read by several tasks); records that cannot be read, and rows
    without id or text, go to `work/rejects/input-NNNNN.parquet`, where `execute.count_documents` and
    `execute.with_rejected_inputs` find and count them. Calling again after a kill resumes. Other fields of a record
    become metadata (`extra_fields`); `left_out` counts what of them does not.

    Args:
        files: what the user gave.
        work: the step's working folder.
        workers: processes.
        text: template of the text; `{text}` when not given.

    Raises:
        DataError: a file is missing, or its name speaks of no format that holds documents.
    """
    root = common_root(files)
    tasks: list[tuple[RawReader | ReadTables, int]] = []
    parts: list[list[str]] = []  # of each file; none for one that passes
    here = [file for file in files if not isinstance(file, RemoteFile) and file.is_file()]
    most = sum(file.stat().st_size for file in here) // FEW
    for number, file in enumerate(files):
        reader = _reader_of(file, root, text, most)
        count = 0 if reader is None else len(reader.tasks)
        names = [f"{number:05d}"] if count == 1 else [f"{number:05d}-{split:03d}" for split in range(count)]
        tasks += [(reader, rank) for rank in range(count) if reader is not None]
        parts.append(names)
    inputs = work / SCRATCH / "inputs"
    names = [name for of_file in parts for name in of_file]
    for number, (file, of_file) in enumerate(zip(files, parts, strict=True)):
        if not of_file:
            _write_lost(inputs / LOST, f"file-{number}", _lost_of(file))
    blocks = [ReadEach(tasks, str(inputs / LOST)), Batches(),
              WriteDocuments(str(inputs), [f"part-{name}" for name in names], kept="documents")]  # fmt: skip
    run_blocks(blocks, len(tasks), work, workers, "inputs")
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            (work / "rejects").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(inputs / f"rejects/part-{name}.parquet", work / f"rejects/input-{name}.parquet")
    made = [[inputs / f"documents/part-{name}.parquet" for name in of_file] for of_file in parts]
    return [path for file, of_file in zip(files, made, strict=True) for path in of_file or [file]]


def left_out(work: Path) -> dict[str, int]:
    """What `as_documents` left out of the metadata: reason -> values; see `extra_fields`."""
    files = sorted((work / SCRATCH / "inputs" / LOST).glob("*.json"))
    total: Counter[str] = sum((Counter(json.loads(file.read_bytes())) for file in files), Counter())
    return dict(sorted(total.items()))


def _write_lost(folder: Path, name: str, lost: Counter[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}.json", json.dumps({reason: n for reason, n in lost.items() if n}).encode())


def _lost_of(file: Path) -> Counter[str]:
    """The same of a Parquet file that passes as it is, and whose columns become metadata where it is read."""
    lost: Counter[str] = Counter()
    with (
        contextlib.suppress(DataError, *TABLE_ERRORS),
        pq.ParquetFile(file) as parquet,
    ):  # what reads it next says what is wrong
        schema = parquet.schema_arrow
        is_ours = METADATA in schema.names and pa.types.is_map(schema.field(METADATA).type)
        names = [name for name in schema.names if name != "text" and not is_ours]
        for batch in parquet.iter_batches(BATCH_ROWS, columns=names) if len(names) > 1 else ():
            table = pa.Table.from_batches([batch])
            conform(table.append_column("text", pa.nulls(table.num_rows, pa.string())), lost=lost)
    return lost


def _reader_of(file: Path, root: Path, text: str | None, most: int) -> RawReader | ReadTables | None:
    """What reads a user's file; None for Parquet that may pass: one task's, or of at most `most` bytes."""
    reading = Reading(text=text or "{text}", id_field="id", url_field="url", rest=True)
    kind = format_of(file)
    if kind is None or not holds_documents(file):
        more = "; web pages go through loam extract" if kind else ""
        raise DataError(f"{file}: expected {TAKEN}{more}")
    if kind in ("parquet", "arrow") and text is None:
        open_raw(file).close()
        tables = ReadTables([file], root)
        local = kind == "parquet" and not isinstance(file, RemoteFile)
        passes = local and (len(tables.tasks) == 1 or file.stat().st_size <= most)
        sound = passes and not has_nulls(file, ("id", "text")) and is_utf8(file, ("id", "text"))
        return None if sound else tables
    open_raw(file).close()
    return reader_for(kind, [file], root, reading)


def reader_for(kind: str, files: Sequence[Path], root: Path, reading: Reading) -> RawReader:
    """The reader of records in a format of `FORMATS` (but `html`), or of archives with members in any of them."""
    kinds = {"parquet": ParquetReader, "arrow": ArrowReader, "jsonl": JsonReader, "json": JsonReader,
             "csv": CsvReader, "text": TextReader, "archive": MemberReader}  # fmt: skip
    return kinds[kind](files, root, reading)
