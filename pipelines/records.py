"""Records: a stream of bytes cut into lines, paragraphs, sections, JSON items or one whole piece.

A record keeps the place of its bytes and their sha256, so that a document can be walked back to them, and it may name
a `problem` instead of failing: what cannot be read is counted, never raised. No record is held beyond its bound.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from pipelines.archives import STREAM_ERRORS, reason_of

CHUNK_BYTES = 1 << 20
MAX_JSON_BYTES = 1 << 28  # a JSON array is held whole while its items are cut out
JSON = json.JSONDecoder()
BLANK = re.compile(r"[ \t\r\n\ufeff]*")  # with the byte order mark that some editors leave


class Record(NamedTuple):
    """One piece of a stream.

    Attributes:
        data: its bytes; empty when there is a problem with its size.
        offset: of its first byte in the decompressed stream.
        row: its number in the stream, from 0.
        length: bytes.
        sha256: of the bytes, in hex.
        problem: why it cannot be a document (`too_large`, `truncated`, ...), or None.
    """

    data: bytes
    offset: int
    row: int | None
    length: int
    sha256: str
    problem: str | None = None


def record_of(data: bytes, offset: int, row: int | None, problem: str | None = None) -> Record:
    """A record of bytes that are at hand."""
    return Record(data, offset, row, len(data), hashlib.sha256(data).hexdigest(), problem)


Cutter = Callable[[BinaryIO, int], Iterator[Record]]
"""Cuts a stream into records of at most so many bytes."""


def cut(stream: BinaryIO, cutter: Cutter, max_bytes: int, offset: int = 0, row: int = 0) -> Iterator[Record]:
    """Cut a stream; what is damaged or empty becomes a last record with a problem.

    Args:
        stream: bytes, decompressed.
        cutter: one of the functions below.
        max_bytes: a larger record is passed over and named `too_large`.
        offset: of the stream's first byte in its file, and
        row: the number of its first record there.
    """
    end, rows = offset, row
    try:
        for record in cutter(stream, max_bytes):
            if offset or row:
                record = _moved(record, offset, row)
            end, rows = record.offset + record.length, rows + 1
            yield record
        if rows == row:
            yield record_of(b"", offset, None, "no_records" if stream.tell() else "empty_file")
    except STREAM_ERRORS as error:
        yield record_of(b"", end, rows, reason_of(error))


def _moved(record: Record, offset: int, row: int) -> Record:
    number = None if record.row is None else record.row + row
    return Record(record.data, record.offset + offset, number, record.length, record.sha256, record.problem)


def lines(stream: BinaryIO, max_bytes: int) -> Iterator[Record]:
    """One record per line that is not blank, without its line end; rows count all lines."""
    offset = row = 0
    while line := stream.readline(max_bytes + 2):
        data = line.rstrip(b"\r\n")
        if len(data) > max_bytes:
            record = skip_line(stream, line, offset, row)
            yield record
            offset += record.length
        else:
            if not data.isspace() and data:
                yield record_of(data, offset, row)
            offset += len(line)
        row += 1


def skip_line(stream: BinaryIO, start: bytes, offset: int, row: int) -> Record:
    """Pass over the rest of a line that is too long, hashing it on the way; `start` has been read."""
    digest, length, piece = hashlib.sha256(start), len(start), start
    while not piece.endswith(b"\n") and (piece := stream.readline(CHUNK_BYTES)):
        digest.update(piece)
        length += len(piece)
    return Record(b"", offset, row, length, digest.hexdigest(), "too_large")


def whole(stream: BinaryIO, max_bytes: int) -> Iterator[Record]:
    """The stream as one record."""
    data = stream.read(max_bytes + 1)
    if len(data) <= max_bytes:
        if data:
            yield record_of(data, 0, None)
        return
    digest, length = hashlib.sha256(data), len(data)
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
        length += len(chunk)
    yield Record(b"", 0, None, length, digest.hexdigest(), "too_large")


@dataclass(slots=True)
class _Gathering:
    """Lines gathered into one record, hashed as they come so that one that is too large needs no memory."""

    max_bytes: int
    offset: int = 0
    length: int = 0
    pieces: list[bytes] = field(default_factory=list)
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def add(self, line: bytes) -> None:
        self.digest.update(line)
        self.length += len(line)
        if self.length <= self.max_bytes:
            self.pieces.append(line)

    def record(self, row: int) -> Record:
        fits = self.length <= self.max_bytes
        data = b"".join(self.pieces) if fits else b""
        return Record(data, self.offset, row, self.length, self.digest.hexdigest(), None if fits else "too_large")


def paragraphs(stream: BinaryIO, max_bytes: int) -> Iterator[Record]:
    """One record per block of lines between blank lines."""
    return _gather(stream, max_bytes, starts=None)


def sections(pattern: str) -> Cutter:
    """A cutter that begins a new record at every line in which `pattern` is found (`^ = [^=]` for WikiText)."""
    return functools.partial(_gather, starts=re.compile(pattern.encode()))


def _gather(stream: BinaryIO, max_bytes: int, starts: re.Pattern[bytes] | None) -> Iterator[Record]:
    offset = row = 0
    current = _Gathering(max_bytes)
    while line := stream.readline(max_bytes + 1):
        blank = line.isspace()
        ends = blank if starts is None else starts.search(line) is not None
        if ends and current.length:
            yield current.record(row)
            row += 1
        if ends or not current.length:
            current = _Gathering(max_bytes, offset)
        if not (blank and (starts is None or not current.length)):
            current.add(line)
        offset += len(line)
    if current.length:
        yield current.record(row)


def json_items(path: str = "") -> Cutter:
    """A cutter for JSON documents: one record per item of an array.

    Args:
        path: keys that lead to the array, with dots: `data.paragraphs`; arrays on the way are walked through.
    """
    return functools.partial(_json_items, tuple(filter(None, path.split("."))))


def _json_items(keys: tuple[str, ...], stream: BinaryIO, max_bytes: int) -> Iterator[Record]:
    data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        yield Record(b"", 0, None, len(data), "", "too_large")
        return
    at = chars = row = 0
    try:
        text = data.decode()
        for start, end in _spans(text, _skip(text, 0), keys) if data else ():
            at += len(text[chars:start].encode())
            raw = text[start:end].encode()
            yield record_of(raw, at, row) if len(raw) <= max_bytes else _too_large(raw, at, row)
            at, chars, row = at + len(raw), end, row + 1
    except UnicodeDecodeError:
        yield record_of(b"", 0, None, "invalid_utf8")
    except (ValueError, RecursionError):
        yield record_of(b"", at, row, "bad_json")


def _too_large(raw: bytes, offset: int, row: int) -> Record:
    return Record(b"", offset, row, len(raw), hashlib.sha256(raw).hexdigest(), "too_large")


def _spans(text: str, at: int, keys: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Spans (characters) of the items below `keys` of the JSON value that starts at `at`.

    Raises:
        ValueError: not JSON.
    """
    if text[at : at + 1] == "[":
        for start, end in _elements(text, at):
            if keys:
                yield from _spans(text, start, keys)
            else:
                yield start, end
    elif not keys:
        yield at, JSON.raw_decode(text, at)[1]
    elif text[at : at + 1] == "{":
        for key, start in _fields(text, at):
            if key == keys[0]:
                yield from _spans(text, start, keys[1:])


def _elements(text: str, at: int) -> Iterator[tuple[int, int]]:
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        end = JSON.raw_decode(text, at)[1]
        yield at, end
        at = _after_comma(text, end, "]")


def _fields(text: str, at: int) -> Iterator[tuple[str, int]]:
    at = _skip(text, at + 1)
    while text[at : at + 1] != "}":
        key, end = JSON.raw_decode(text, at)
        at = _skip(text, _skip(text, end) + 1)
        yield key, at
        at = _after_comma(text, JSON.raw_decode(text, at)[1], "}")


def _after_comma(text: str, at: int, closing: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] == ",":
        return _skip(text, at + 1)
    if text[at : at + 1] != closing:
        raise ValueError(f"expected ',' or {closing!r}")
    return at


def _skip(text: str, at: int) -> int:
    match = BLANK.match(text, at)
    assert match is not None  # the pattern matches the empty string
    return match.end()
