"""datatrove readers for text, JSON Lines, JSON arrays and Parquet, inside archives or not.

Rank r reads file r. Every record becomes a Document that knows the bytes that it came from; one that cannot be read
becomes a rejected Document with a reason, so that counts add up and bad input never stops a run.
"""

import contextlib
import json
import os
import re
import shutil
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers.base import BaseReader

from pipelines.archives import STREAM_ERRORS, common_root, members_of, open_raw, reason_of
from pipelines.block import BATCH_ROWS, WriteDocuments
from pipelines.document import FATE, REASON, REJECTED, table_of
from pipelines.errors import DataError
from pipelines.execute import SCRATCH, run_blocks
from pipelines.records import Cutter, Record, cut, json_items, lines, record_of, whole

BATCH_BYTES = 32 << 20
MAX_RECORD_BYTES = 20_000_000
PLACE = re.compile(r"\{([\w.|-]+)\}")


@dataclass(frozen=True)
class Reading:
    """How the records of a source become documents.

    Attributes:
        source: name of the source; ids begin with it. Empty for files given on the command line: their ids stay.
        domain: name of the domain.
        language: ISO 639-3, where the source is known to be in one.
        text: template; `{question}`, `{code.0}`, `{content|paragraphs}` (the first that is there).
        id_field: field with the id; without it the id is the record's place.
        url_field: field with the URL.
        join: what lies between the items of a list that fills a template.
        metadata: fields that are kept as metadata.
        constant: metadata of every document, such as the licence.
        members: which members of an archive are read.
        max_record_bytes: a larger record is rejected as `too_large`.
        max_documents: at most so many documents of the source, shared out evenly over its files.
        max_bytes: at most so many bytes of text, shared out in the same way.
    """

    source: str = ""
    domain: str | None = None
    language: str | None = None
    text: str = "{text}"
    id_field: str | None = None
    url_field: str | None = None
    join: str = "\n"
    metadata: tuple[str, ...] = ()
    constant: tuple[tuple[str, str], ...] = ()
    members: str = "*"
    max_record_bytes: int = MAX_RECORD_BYTES
    max_documents: int | None = None
    max_bytes: int | None = None


class RawReader(BaseReader):
    """Base of the readers of raw files: override `read_file`.

    Args:
        files: one file per task.
        root: folder that the `file` of an origin is relative to.
        reading: what to make of a record.
    """

    type = "reader"

    def __init__(self, files: Sequence[Path], root: Path, reading: Reading) -> None:
        super().__init__()
        self.files = [str(file) for file in files]
        self.root = str(root)
        self.reading = reading

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of file `rank`, until its share of the source's limits is used up."""
        path = Path(self.files[rank])
        documents_left = _share(self.reading.max_documents, rank, len(self.files))
        bytes_left = _share(self.reading.max_bytes, rank, len(self.files))
        if documents_left <= 0 or bytes_left <= 0:
            return
        for document in self.read_file(path, Path(os.path.relpath(path, self.root)).as_posix()):
            yield document
            if FATE not in document.metadata:
                documents_left -= 1
                bytes_left -= len(document.text.encode())
            if documents_left <= 0 or bytes_left <= 0:
                return

    @abstractmethod
    def read_file(self, path: Path, name: str) -> Iterator[Document]:
        """Yield the documents of a file.

        Args:
            path: where it lies.
            name: its path relative to the root, for ids and origins.
        """

    def document(
        self,
        record: Record,
        name: str,
        member: str | None = None,
        fields: Mapping[str, Any] | None = None,
        text: str | None = None,
        problem: str | None = None,
        fate: str = REJECTED,
    ) -> Document:
        """The document of a record.

        Args:
            record: the bytes and their place.
            name: of the file, relative to the root.
            member: of an archive.
            fields: of a JSON object or a row, for id, URL and metadata.
            text: of the document; None or blank is a problem.
            problem: why there is no document, besides what the record says itself.
            fate: what a problem leads to.
        """
        place = (f"{name}!{member}" if member else name) + ("" if record.row is None else f"/{record.row}")
        reading = self.reading
        given = value_at(fields, reading.id_field) if fields and reading.id_field else None
        url = value_at(fields, reading.url_field) if fields and reading.url_field else None
        problem = record.problem or problem or _problem_of(text, f"{given}{url}")
        origin = {"file": name, "member": member, "offset": record.offset, "row": record.row,
                  "length": record.length, "sha256": record.sha256}  # fmt: skip
        metadata: dict[str, Any] = {"source": reading.source or None, "domain": reading.domain, "origin": origin}
        if text is None or problem is not None:
            return Document(text="", id=self._id(place), metadata={**metadata, FATE: fate, REASON: problem})
        metadata |= {"language": reading.language, "url": None if url is None else str(url)} | dict(reading.constant)
        for key in reading.metadata if fields else ():
            metadata[key] = _words(value_at(fields, key), reading.join)
        return Document(text=text, id=self._id(place if given in (None, "") else str(given)), metadata=metadata)

    def _id(self, local: str) -> str:
        source = self.reading.source
        return f"{source}/{local.removeprefix(source + '/')}" if source else local


def _share(limit: int | None, rank: int, files: int) -> float:
    return float("inf") if limit is None else limit // files + (rank < limit % files)


def _problem_of(text: str | None, names: str) -> str | None:
    if text is None or not text.strip():
        return "no_text"
    if "\0" in text:
        return "nul_bytes"
    try:
        text.encode()
        names.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return "bad_unicode"
    return None


class CutReader(RawReader):
    """Base of readers that cut each stream of a file (the file, or members of an archive) into records."""

    def __init__(self, files: Sequence[Path], root: Path, reading: Reading, cutter: Cutter | None = None) -> None:
        super().__init__(files, root, reading)
        self.cutter = cutter

    def cutter_of(self, path: Path) -> Cutter:
        """How a file is cut: what was given, else what suits its name."""
        return self.cutter or whole

    def read_file(self, path: Path, name: str) -> Iterator[Document]:
        """Yield a document per record; a container that breaks gives one rejected document for its rest."""
        member, streams, cutter = None, 0, self.cutter_of(path)
        try:
            for member, stream in members_of(path, self.reading.members):
                streams += 1
                for record in cut(stream, cutter, self.reading.max_record_bytes):
                    yield self.parse(record, name, member)
                    if record.problem in ("truncated", "corrupt"):
                        return  # what follows in a damaged container cannot be found
        except STREAM_ERRORS as error:
            yield self.parse(record_of(b"", 0, None, reason_of(error)), name, f"after {member}" if member else None)
            return
        if not streams:
            yield self.parse(record_of(b"", 0, None, "no_records"), name, None)

    @abstractmethod
    def parse(self, record: Record, name: str, member: str | None) -> Document:
        """Make a record a document."""


class TextReader(CutReader):
    """Text in UTF-8: the cutter says what a document is."""

    name = "text"

    def parse(self, record: Record, name: str, member: str | None) -> Document:
        """Decode the record; bytes that are no UTF-8 are rejected."""
        try:
            text = record.data.decode("utf-8-sig" if record.offset == 0 else "utf-8")
        except UnicodeDecodeError:
            return self.document(record, name, member, problem="invalid_utf8")
        return self.document(record, name, member, text=text)


class JsonReader(CutReader):
    """JSON objects: lines of JSON Lines, or items of arrays (a `.json` file that begins with `[`, unless told)."""

    name = "json"

    def cutter_of(self, path: Path) -> Cutter:
        """Lines, unless the file is an array."""
        if self.cutter is None and path.name.split(".gz")[0].endswith(".json") and _first_byte(path) == b"[":
            return json_items()
        return self.cutter or lines

    def parse(self, record: Record, name: str, member: str | None) -> Document:
        """Parse the record and fill the text template."""
        fields = parse_json(record.data) if record.problem is None else {}
        if isinstance(fields, str):
            return self.document(record, name, member, problem=fields)
        return self.document(record, name, member, fields, filled(self.reading.text, fields, self.reading.join))


class ParquetReader(RawReader):
    """Rows of Parquet files; the raw record of a row is its canonical JSON (`row_bytes`)."""

    name = "parquet"

    def read_file(self, path: Path, name: str) -> Iterator[Document]:
        """Yield a document per row.

        Raises:
            DataError: the file is no Parquet.
        """
        row = 0
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH_ROWS):
                    for fields in batch.to_pylist():
                        data = row_bytes(fields)
                        problem = "too_large" if len(data) > self.reading.max_record_bytes else None
                        text = filled(self.reading.text, fields, self.reading.join)
                        yield self.document(record_of(data, 0, row, problem), name, None, fields, text)
                        row += 1
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path} is not readable Parquet: {str(error).splitlines()[0]}") from None


class Batches(PipelineStep):
    """Turn a stream of documents into Arrow tables of bounded rows and bytes."""

    type = "batches"
    name = "tables"

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[pa.Table]:
        """Yield stream tables; at least one document each."""
        pending: list[Document] = []
        size = 0
        for document in data:
            pending.append(document)
            size += len(document.text)
            if len(pending) >= BATCH_ROWS or size >= BATCH_BYTES:
                yield table_of(pending)
                pending, size = [], 0
        if pending:
            yield table_of(pending)


def parse_json(data: bytes) -> dict[str, Any] | str:
    """The object that the bytes spell, or why there is none (`bad_json`, `invalid_utf8`, `not_an_object`)."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(data.decode())  # slower, but takes NaN and large integers
        except UnicodeDecodeError:
            return "invalid_utf8"
        except (ValueError, RecursionError):
            return "bad_json"
    return value if isinstance(value, dict) else "not_an_object"


def row_bytes(fields: Mapping[str, Any]) -> bytes:
    """Canonical JSON of a Parquet row: the same bytes whenever the row has the same values."""
    return json.dumps(fields, sort_keys=True, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")


def filled(template: str, fields: Mapping[str, Any], join: str) -> str | None:
    """Fill a text template, or None when a field that it names is missing, null or empty."""
    values = {}
    for place in PLACE.findall(template):
        found = (value_at(fields, key) for key in place.split("|"))
        values[place] = next((words for value in found if (words := _words(value, join))), None)
        if values[place] is None:
            return None
    return PLACE.sub(lambda match: values[match.group(1)], template)


def value_at(fields: Any, key: str | None) -> Any:
    """The value at `a.b.0`, or None."""
    if isinstance(fields, dict) and key in fields:
        return fields[key]
    for part in (key or "").split("."):
        if isinstance(fields, dict):
            fields = fields.get(part)
        elif isinstance(fields, list) and part.isdigit() and int(part) < len(fields):
            fields = fields[int(part)]
        else:
            return None
    return fields


def _words(value: Any, join: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return join.join(filter(None, (_words(item, join) for item in value)))
    return json.dumps(value, ensure_ascii=False)


def as_documents(files: Sequence[Path], work: Path, workers: int = 1) -> list[Path]:
    """Make Parquet documents of files given by a user; Parquet passes as it is.

    JSON Lines (.gz, .zst) and JSON arrays become `work/.scratch/inputs/documents/part-NNNNN.parquet`, numbered by their
    place in `files`; records that cannot be read go to `work/rejects/input-NNNNN.parquet`, where
    `execute.count_documents` finds and counts them. Calling again after a kill resumes.

    Raises:
        DataError: a file is missing, or neither Parquet nor JSON by its name.
    """
    raw = {number: file for number, file in enumerate(files) if file.suffix != ".parquet"}
    for file in raw.values():
        if not re.search(r"\.(jsonl|ndjson|json)(\.gz|\.zst)?$", file.name):
            raise DataError(f"{file}: expected Parquet or JSON Lines (.parquet, .jsonl, .jsonl.gz, .jsonl.zst)")
        open_raw(file).close()
    inputs = work / SCRATCH / "inputs"
    reader = JsonReader(list(raw.values()), common_root(list(raw.values())), Reading(id_field="id", url_field="url"))
    blocks = [reader, Batches(),
              WriteDocuments(str(inputs), [f"part-{number:05d}" for number in raw], kept="documents")]  # fmt: skip
    run_blocks(blocks, len(raw), work, workers, "inputs")
    for number in raw:
        with contextlib.suppress(FileNotFoundError):
            (work / "rejects").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(inputs / f"rejects/part-{number:05d}.parquet", work / f"rejects/input-{number:05d}.parquet")
    return [inputs / f"documents/part-{n:05d}.parquet" if n in raw else file for n, file in enumerate(files)]


class ReadEach(PipelineStep):
    """Beginning of a pipeline over several sources: every task has its own reader.

    Args:
        tasks: reader, and the rank that it is told, of each task.
    """

    type = "reader"
    name = "each"

    def __init__(self, tasks: Sequence[tuple[RawReader, int]]) -> None:
        super().__init__()
        self.tasks = list(tasks)

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of task `rank`."""
        reader, local = self.tasks[rank]
        yield from reader.run(None, local, world_size)


def _first_byte(file: Path) -> bytes:
    with contextlib.suppress(*STREAM_ERRORS), open_raw(file) as stream:
        return stream.read(4096).lstrip()[:1]
    return b""
