"""datatrove readers for text, JSON Lines and JSON arrays, inside archives or not.

Task r reads one split of one file (`pipelines/splits.py`). Every record becomes a Document that knows the bytes that it
came from; one that cannot be read becomes a rejected Document with a reason, so that counts add up and bad input never
stops a run.
"""

import contextlib
import io
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from datatrove.data import Document
from datatrove.pipeline.readers.base import BaseReader

from pipelines.archives import (
    CHUNK_BYTES,
    STREAM_ERRORS,
    is_archive,
    members_of,
    open_raw,
    reason_of,
)
from pipelines.charset import WIDE, decode, decode_within, encoding_of
from pipelines.document import FATE, LABELS, REASON, REJECTED
from pipelines.extra_fields import METADATA, kept_fields
from pipelines.locations import below, location
from pipelines.records import Cutter, Record, cut, json_items, lines, record_of, whole
from pipelines.splits import WHOLE, Planner, Split, by_line, by_member, open_range, splits_of
from pipelines.templates import filled, parse_json, value_at, words_of

MAX_RECORD_BYTES = 20_000_000
SAMPLE_BYTES = 1 << 16
BOM = b"\xef\xbb\xbf"


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
        rest: every other field is kept as metadata too, by the rules of `extra_fields`.
        constant: metadata of every document, such as the licence.
        members: which members of an archive are read.
        encoding: of text; detected when None.
        max_record_bytes: a larger record is rejected as `too_large`.
        max_documents: at most so many documents of the source, shared out evenly over its splits.
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
    rest: bool = False
    constant: tuple[tuple[str, str], ...] = ()
    members: str = "*"
    encoding: str | None = None
    max_record_bytes: int = MAX_RECORD_BYTES
    max_documents: int | None = None
    max_bytes: int | None = None


class RawReader(BaseReader):
    """Base of the readers of raw files: override `read_file`, and `planner_of` where files can be split.

    Args:
        files: what is read, in this order.
        root: folder that the `file` of an origin is relative to.
        reading: what to make of a record.

    Attributes:
        tasks: file and split of each task.
    """

    type = "reader"

    def __init__(self, files: Sequence[Path], root: Path, reading: Reading) -> None:
        super().__init__()
        self.root = str(root)
        self.reading = reading
        self._named = {reading.text[1:-1], reading.id_field, reading.url_field} - {None}  # a text of one field, only
        self.lost: Counter[str] = Counter()  # values of other fields that are no metadata
        self.tasks = [(str(file), split) for file in files for split in splits_of(file, self.planner_of(file))]

    def planner_of(self, path: Path) -> Planner | None:
        """What splits a file of this kind, or None."""
        return None

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Yield the documents of task `rank`, until its share of the source's limits is used up."""
        file, split = self.tasks[rank]
        path = location(file)
        documents_left = _share(self.reading.max_documents, rank, len(self.tasks))
        bytes_left = _share(self.reading.max_bytes, rank, len(self.tasks))
        if documents_left <= 0 or bytes_left <= 0:
            return
        for document in self.read_file(path, below(path, location(self.root)), split):
            yield document
            if FATE not in document.metadata:
                documents_left -= 1
                bytes_left -= len(document.text.encode()) if self.reading.max_bytes else 0
            if documents_left <= 0 or bytes_left <= 0:
                return

    @abstractmethod
    def read_file(self, path: Path, name: str, split: Split) -> Iterator[Document]:
        """Yield the documents of a split of a file.

        Args:
            path: where the file lies.
            name: its path relative to the root, for ids and origins.
            split: which part of it.
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
        problem = record.problem or problem or _problem_of(text, f"{place}{given}{url}")
        origin = {"file": name, "member": member, "offset": record.offset, "row": record.row,
                  "length": record.length, "sha256": record.sha256}  # fmt: skip
        metadata: dict[str, Any] = {"source": reading.source or None, "domain": reading.domain, "origin": origin}
        if text is None or problem is not None:
            origin["member"] = _clean(member)
            return Document(
                text="", id=_clean(self._id(place)) or "", metadata={**metadata, FATE: fate, REASON: problem}
            )
        metadata |= {"language": reading.language, "url": None if url is None else str(url)} | dict(reading.constant)
        for key in reading.metadata if fields else ():
            metadata[key] = _clean(words_of(value_at(fields, key), reading.join))
        if reading.rest and fields:
            labels = {name: _clean(fields[name]) for name in LABELS if isinstance(fields.get(name), str)}
            metadata |= labels
            metadata[METADATA] = kept_fields(fields, {*self._named, *labels}, self.lost)
        return Document(text=text, id=self._id(place if given in (None, "") else str(given)), metadata=metadata)

    def _id(self, local: str) -> str:
        source = self.reading.source
        return f"{source}/{local.removeprefix(source + '/')}" if source else local


def _share(limit: int | None, rank: int, tasks: int) -> float:
    return float("inf") if limit is None else limit // tasks + (rank < limit % tasks)


def _clean(words: str | None) -> str | None:
    """Words with half a surrogate pair, which no file can hold, lose it."""
    return words and words.encode(errors="replace").decode()


def _problem_of(text: str | None, names: str) -> str | None:
    if text is None or not text or text.isspace():
        return "no_text"
    if "\0" in text:
        return "nul_bytes"
    try:
        if not (text.isascii() and names.isascii()):
            text.encode()
            names.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return "bad_unicode"
    return None


class CutReader(RawReader):
    """Base of readers that cut each stream of a file (the file, or members of an archive) into records."""

    def __init__(self, files: Sequence[Path], root: Path, reading: Reading, cutter: Cutter | None = None) -> None:
        self.cutter = cutter
        super().__init__(files, root, reading)

    def cutter_of(self, path: Path) -> Cutter:
        """How a file is cut: what was given, else what suits its name."""
        return self.cutter or whole

    def planner_of(self, path: Path) -> Planner | None:
        """Archives between members; other files between lines, where lines are records."""
        if is_archive(path):
            return by_member
        return by_line if self.cutter_of(path) is lines else None

    def read_file(self, path: Path, name: str, split: Split) -> Iterator[Document]:
        """Yield a document per record; a container that breaks gives one rejected document for its rest."""
        member, streams = None, 0
        try:
            for member, stream in _streams(path, self.reading.members, split):
                streams += 1
                for document in self.documents_of(stream, path, name, member, split if member is None else WHOLE):
                    yield document
                    if document.metadata.get(REASON) in ("truncated", "corrupt", "bomb"):
                        return  # what follows in a damaged container cannot be found
        except STREAM_ERRORS as error:
            damage = record_of(b"", 0, None, reason_of(error))
            yield self.document(damage, name, f"after {member}" if member else None)
            return
        if not streams and split == WHOLE:
            yield self.document(record_of(b"", 0, None, "no_records"), name)

    @abstractmethod
    def documents_of(
        self, stream: BinaryIO, path: Path, name: str, member: str | None, split: Split
    ) -> Iterator[Document]:
        """Yield the documents of a stream.

        Args:
            stream: its bytes, those of the split.
            path: the file that it is in.
            name: of the file, relative to the root.
            member: of the archive, or None.
            split: which part of the file it is.
        """


def _streams(path: Path, members: str, split: Split) -> Iterator[tuple[str | None, BinaryIO]]:
    """The streams that a split reads."""
    if is_archive(path):
        yield from members_of(path, members, split.start, split.length)
    elif split == WHOLE:
        yield from members_of(path, members)
    else:
        with open_split(path, split) as stream:
            yield None, stream


@contextlib.contextmanager
def open_split(path: Path, split: Split) -> Iterator[BinaryIO]:
    """The stream of a split of lines: decompressed, from its first record to its last."""
    with open_range(path, split.start) as stream:
        left = split.skip
        while left and (skipped := stream.read(min(left, SAMPLE_BYTES))):
            left -= len(skipped)
        yield stream if split.length is None else piece_of(stream, split.length)


class _Piece(io.RawIOBase):
    """Bytes that were read before, then those that follow in the stream, up to a number of them."""

    def __init__(self, stream: BinaryIO, size: float, before: bytes) -> None:
        super().__init__()
        self.stream, self.left, self.before, self.given = stream, size, before, 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.given

    def readinto(self, buffer: Any) -> int:
        want = int(min(len(buffer), self.left))
        data = self.before[:want] or self.stream.read(want)
        self.before = self.before[want:]
        buffer[: len(data)] = data
        self.left, self.given = self.left - len(data), self.given + len(data)
        return len(data)


def piece_of(stream: BinaryIO, size: float = float("inf"), before: bytes = b"") -> BinaryIO:
    """A stream of `before` and what follows in `stream`, `size` bytes in all."""
    return cast(BinaryIO, io.BufferedReader(_Piece(stream, size, before), CHUNK_BYTES))


class TextReader(CutReader):
    """Text: the cutter says what a document is, the encoding is detected once for each file or member."""

    name = "text"

    def documents_of(
        self, stream: BinaryIO, path: Path, name: str, member: str | None, split: Split
    ) -> Iterator[Document]:
        """Decode each record; what no encoding explains is rejected."""
        cutter, bound, said = self.cutter_of(path), self.reading.max_record_bytes, self.reading.encoding
        if cutter is whole:
            for record in cut(stream, whole, bound):
                found = decode(record.data, said) or ("", None)
                yield self._document(record, name, member, *found)
            return
        if split != WHOLE:  # every split of a file is in the encoding that its beginning is in
            with open_raw(path) as beginning:
                encoding = encoding_of(beginning.read(SAMPLE_BYTES), said)
        else:
            sample = stream.read(SAMPLE_BYTES)
            encoding, stream = encoding_of(sample, said), piece_of(stream, before=sample)
        for record in cut(stream, cutter, bound, split.offset, split.row):
            if encoding in WIDE:  # a line end is not a byte there; the file is one reject, whatever its splits
                if not split.offset:
                    yield self._document(record, name, member, "", None, "wide_encoding")
                return
            text, explained = decode_within(record.data, encoding or "utf-8")
            problem = None if explained else "invalid_utf8" if encoding in (None, "utf-8") else "bad_encoding"
            if not is_empty_split(record, split):
                yield self._document(record, name, member, text, encoding, problem)

    def _document(
        self, record: Record, name: str, member: str | None, text: str, encoding: str | None, problem: str | None = None
    ) -> Document:
        problem = problem or (None if encoding or record.problem else "bad_encoding")
        document = self.document(record, name, member, text=text.removeprefix("\ufeff"), problem=problem)
        if encoding not in (None, "utf-8"):
            document.metadata["encoding"] = encoding
        return document


def is_empty_split(record: Record, split: Split) -> bool:
    """Whether there is nothing in a part of a file, which is no fault of the file."""
    return split != WHOLE and record.problem in ("no_records", "empty_file")


class JsonReader(CutReader):
    """JSON objects: lines of JSON Lines, or items of arrays (a `.json` file that begins with `[`, unless told)."""

    name = "json"

    def planner_of(self, path: Path) -> Planner | None:
        """Between lines, unless the file is an array; archives between members."""
        if is_archive(path):
            return by_member
        is_lines = self.cutter is lines or (self.cutter is None and not (_may_be_array(path) and _begins_array(path)))
        return by_line if is_lines else None

    def documents_of(
        self, stream: BinaryIO, path: Path, name: str, member: str | None, split: Split
    ) -> Iterator[Document]:
        """Parse each record and fill the text template."""
        cutter = self.cutter or lines
        if self.cutter is None and split == WHOLE and _may_be_array(Path(member or path.name)):
            sample = stream.read(SAMPLE_BYTES)
            cutter, stream = json_items() if _is_array(sample) else lines, piece_of(stream, before=sample)
        for record in cut(stream, cutter, self.reading.max_record_bytes, split.offset, split.row):
            if not is_empty_split(record, split):
                yield self._document(record, name, member)

    def _document(self, record: Record, name: str, member: str | None) -> Document:
        data = record.data.removeprefix(BOM) if record.offset == 0 else record.data
        fields = parse_json(data) if record.problem is None else {}
        if isinstance(fields, str):
            return self.document(record, name, member, problem=fields)
        return self.document(record, name, member, fields, filled(self.reading.text, fields, self.reading.join))


def _may_be_array(path: Path) -> bool:
    return ".json" in path.suffixes


def _is_array(sample: bytes) -> bool:
    return sample.removeprefix(BOM).lstrip()[:1] == b"["


def _begins_array(file: Path) -> bool:
    with contextlib.suppress(*STREAM_ERRORS), open_raw(file) as stream:
        return _is_array(stream.read(SAMPLE_BYTES))
    return False
