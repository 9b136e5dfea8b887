"""Readers of rows: Parquet, Arrow IPC (file or stream) and CSV.

A row of Parquet or Arrow has no bytes of its own; its raw record is its canonical JSON (`templates.row_bytes`), so
that it can be found and checked again. A row of CSV is the bytes between line ends, quoted line ends included.
"""

import contextlib
import csv
import functools
import io
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document

from pipelines.block import BATCH_ROWS
from pipelines.charset import WIDE, decode_within, encoding_of
from pipelines.errors import DataError
from pipelines.locations import RemoteFile
from pipelines.readers import SAMPLE_BYTES, CutReader, RawReader, is_empty_split, piece_of
from pipelines.records import Cutter, Record, cut, record_of, skip_line
from pipelines.splits import Planner, Split, by_batch, by_row_group
from pipelines.templates import filled, row_bytes

TABLE_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError, SystemError)  # of text: ValueError
DELIMITERS = (",", "\t", ";", "|")


class TableReader(RawReader):
    """Base of the readers of columnar files: override `batches`."""

    def read_file(self, path: Path, name: str, split: Split) -> Iterator[Document]:
        """Yield a document per row.

        Raises:
            DataError: the file is not in its format.
        """
        row = split.row
        for batch in self.batches(path, split):
            for fields in _rows(batch):
                yield self._document(fields, name, row)
                row += 1

    def _document(self, fields: dict[str, Any] | None, name: str, row: int) -> Document:
        if fields is None:
            return self.document(record_of(b"", 0, row, "invalid_utf8"), name)
        data = row_bytes(fields)
        problem = "too_large" if len(data) > self.reading.max_record_bytes else None
        text = filled(self.reading.text, fields, self.reading.join)
        return self.document(record_of(data, 0, row, problem), name, None, fields, text)

    @abstractmethod
    def batches(self, path: Path, split: Split) -> Iterator[pa.RecordBatch]:
        """Yield the batches of a split."""


class ParquetReader(TableReader):
    """Rows of Parquet files."""

    name = "parquet"

    def planner_of(self, path: Path) -> Planner | None:
        """Row groups."""
        return by_row_group

    def batches(self, path: Path, split: Split) -> Iterator[pa.RecordBatch]:
        """Yield the batches of a split's row groups."""
        yield from parquet_batches(path, split)


class ArrowReader(TableReader):
    """Rows of Arrow IPC files and streams, Feather (version 2) among them."""

    name = "arrow"

    def planner_of(self, path: Path) -> Planner | None:
        """Record batches."""
        return by_batch

    def batches(self, path: Path, split: Split) -> Iterator[pa.RecordBatch]:
        """Yield a split's record batches in pieces of bounded rows."""
        yield from arrow_batches(path, split)


def parquet_batches(path: Path, split: Split) -> Iterator[pa.RecordBatch]:
    """Batches of the row groups of a split.

    Raises:
        DataError: the file is no Parquet.
    """
    try:
        with path.open("rb") as source, pq.ParquetFile(source) as file:
            end = file.num_row_groups if split.length is None else split.start + split.length
            yield from file.iter_batches(BATCH_ROWS, row_groups=list(range(split.start, end)))
    except TABLE_ERRORS as error:
        raise DataError(f"{path} is not readable Parquet: {_first_line(error)}") from None


def has_nulls(path: Path, names: Sequence[str]) -> bool:
    """Whether a column of a Parquet file holds a null: by its statistics, or by reading it where it has none.

    A file that cannot be read has none: what reads it next says what is wrong with it.
    """
    with contextlib.suppress(*TABLE_ERRORS), path.open("rb") as source, pq.ParquetFile(source) as file:
        columns = {file.schema.column(number).path: number for number in range(file.metadata.num_columns)}
        optional = [
            name for name in names if name in columns and file.schema.column(columns[name]).max_definition_level
        ]
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        counts = {name: [_null_count(group.column(columns[name])) for group in groups] for name in optional}
        if any(any(found) for found in counts.values()):
            return True
        unknown = [name for name, found in counts.items() if None in found]
        batches = file.iter_batches(BATCH_ROWS, columns=unknown) if unknown else ()
        return any(column.null_count for batch in batches for column in batch.columns)
    return False


def is_utf8(path: Path, names: Sequence[str]) -> bool:
    """Whether the strings of these columns of a Parquet file are UTF-8, which nothing but reading them tells.

    A file that cannot be read passes: what reads it next says what is wrong with it.
    """
    with contextlib.suppress(*TABLE_ERRORS), path.open("rb") as source, pq.ParquetFile(source) as file:
        columns = [name for name in names if name in file.schema_arrow.names]
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            try:
                batch.validate(full=True)
            except pa.ArrowInvalid:
                return False
    return True


def _null_count(chunk: Any) -> int | None:
    found = chunk.statistics
    return found.null_count if found is not None and found.has_null_count else None


def arrow_batches(path: Path, split: Split) -> Iterator[pa.RecordBatch]:
    """The record batches of a split, in pieces of at most `BATCH_ROWS` rows.

    Raises:
        DataError: the file is neither an Arrow file nor a stream.
    """
    try:
        with path.open("rb") if isinstance(path, RemoteFile) else pa.memory_map(str(path)) as source:
            for batch in _ipc_batches(source, split):
                batch.validate(full=True)  # offsets that lead outside would be read all the same
                for begin in range(0, batch.num_rows, BATCH_ROWS):
                    yield batch.slice(begin, BATCH_ROWS)
    except TABLE_ERRORS as error:
        raise DataError(f"{path} is not readable Arrow IPC: {_first_line(error)}") from None


def _ipc_batches(source: Any, split: Split) -> Iterator[pa.RecordBatch]:
    try:
        file = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        yield from pa.ipc.open_stream(source)
        return
    end = file.num_record_batches if split.length is None else split.start + split.length
    for number in range(split.start, end):
        yield file.get_batch(number)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | None]:
    """The rows as mappings; None for one whose text is no UTF-8 (files may say that it is)."""
    try:
        yield from batch.to_pylist()
        return
    except (UnicodeDecodeError, ValueError, OverflowError):
        pass
    for number in range(batch.num_rows):
        try:
            yield batch.slice(number, 1).to_pylist()[0]
        except (UnicodeDecodeError, ValueError, OverflowError):
            yield None


class CsvReader(CutReader):
    """Rows of CSV with a header line, or of columns that are named; in TSV, by the name, quotes mean nothing."""

    name = "csv"

    def __init__(self, files: Sequence[Path], root: Path, reading: Any, columns: Sequence[str] = ()) -> None:
        self.columns = list(columns)
        super().__init__(files, root, reading)

    def cutter_of(self, path: Path) -> Cutter:
        """Rows: lines, but for line ends in quotes."""
        return functools.partial(csv_rows, quoted=".tsv" not in path.suffixes)

    def planner_of(self, path: Path) -> Planner | None:
        """Archives between members; whether a line end is quoted cannot be told from the middle of a file."""
        return super().planner_of(path)

    def documents_of(
        self, stream: BinaryIO, path: Path, name: str, member: str | None, split: Split
    ) -> Iterator[Document]:
        """Parse each row and fill the text template."""
        sample = stream.read(SAMPLE_BYTES)
        encoding = encoding_of(sample, self.reading.encoding)
        columns, delimiter = self.columns, "\t" if ".tsv" in path.suffixes else None
        quoting = csv.QUOTE_NONE if ".tsv" in path.suffixes else csv.QUOTE_MINIMAL
        for record in cut(piece_of(stream, before=sample), self.cutter_of(path), self.reading.max_record_bytes):
            if is_empty_split(record, split):
                continue
            if encoding in WIDE or record.problem is not None:
                yield self.document(record, name, member, problem=record.problem or "wide_encoding")
                if encoding in WIDE:
                    return
                continue
            text, explained = decode_within(record.data, encoding or "utf-8")
            delimiter = delimiter or max(DELIMITERS, key=text.count)
            cells = _cells(text.removeprefix("\ufeff"), delimiter, quoting)
            if not columns:
                columns = cells or []
                continue
            problem = None if explained else "bad_encoding"
            if cells is None or len(cells) != len(columns):
                problem = problem or "bad_row"
            yield self._row(record, name, member, dict(zip(columns, cells or (), strict=False)), problem)

    def _row(
        self, record: Record, name: str, member: str | None, fields: dict[str, Any], problem: str | None
    ) -> Document:
        text = filled(self.reading.text, fields, self.reading.join)
        return self.document(record, name, member, fields, text, problem)


def _cells(text: str, delimiter: str, quoting: int) -> list[str] | None:
    try:
        # one row, whatever line ends its quotes hold
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting))  # type: ignore[arg-type]
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def csv_rows(stream: BinaryIO, max_bytes: int, quoted: bool = True) -> Iterator[Record]:
    """A cutter for CSV: lines, joined while a quote is open; a row that outgrows the bound ends with its line."""
    offset = row = 0
    pieces: list[bytes] = []
    size, open_quote = 0, False
    while line := stream.readline(max_bytes + 2):
        pieces.append(line)
        size += len(line)
        open_quote ^= quoted and bool(line.count(b'"') & 1)
        if size <= max_bytes + 2 and (open_quote or not line.endswith(b"\n")):
            continue
        if size > max_bytes + 2:
            record = skip_line(stream, b"".join(pieces), offset, row)
            yield record
            size = record.length
        else:
            yield from _row_record(b"".join(pieces), offset, row, max_bytes)
        offset, row = offset + size, row + 1
        pieces, size, open_quote = [], 0, False
    yield from _row_record(b"".join(pieces), offset, row, max_bytes)


def _row_record(raw: bytes, offset: int, row: int, max_bytes: int) -> Iterator[Record]:
    data = raw.rstrip(b"\r\n")
    if len(data) > max_bytes:
        found = record_of(raw, offset, row, "too_large")
        yield Record(b"", offset, row, found.length, found.sha256, found.problem)
    elif data.strip():
        yield record_of(data, offset, row)
