"""Web archives: WARC and WET through FastWARC, ARC through a small reader, and a deterministic WARC writer.

The raw record of a page is its *block* (the HTTP response as it was received), found again by the record's offset in
the file; length and sha256 are those of the block. A file that breaks off gives one last record with a problem.
"""

import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, cast

from fastwarc.stream_io import GzipWriter
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from pipelines.archives import (
    GZIP_MAGIC,
    STREAM_ERRORS,
    ZSTD_MAGIC,
    inflated,
    is_archive,
    members_of,
    open_raw,
    reason_of,
)
from pipelines.records import Record, cut, record_of, whole
from pipelines.splits import WHOLE, Planner, Split, by_member, by_record

PAGES = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
FIXED_DATE = datetime(2020, 1, 1, tzinfo=UTC)  # files that Loam writes hold no clock
HTML_TYPES = ("text/html", "application/xhtml+xml")
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n", re.IGNORECASE)
MEMBER_START, RECORD_START = GZIP_MAGIC + b"\x08", b"\r\n\r\nWARC/1."
MAX_HEAD_BYTES = 1 << 16
MAX_GAP = 16  # bytes looked at behind the last record: blank, or the beginning of one more
HTML_NAME = re.compile(r"\.x?html?(\.gz|\.zstd?)?$", re.IGNORECASE)
MAX_URL_LINE = 1 << 16


@dataclass(frozen=True, slots=True)
class Page:
    """One record of a web archive that may hold a page.

    Attributes:
        record: the raw block and its place; `problem` is set when it cannot be read.
        url: target of the request.
        record_id: the WARC-Record-ID, or None.
        status: HTTP status, or None where there is no HTTP message.
        media_type: lower case, without parameters; None when unknown.
        charset: as declared by the HTTP header, or None.
        payload: body with transfer and content encodings taken off.
        is_text: the payload is text that was extracted before (WET).
        member: of the archive that it lies in, or None.
    """

    record: Record
    url: str | None = None
    record_id: str | None = None
    status: int | None = None
    media_type: str | None = None
    charset: str | None = None
    payload: bytes = b""
    is_text: bool = False
    member: str | None = None


def is_warc(path: Path) -> bool:
    """Whether the name says WARC or WET."""
    return any(part in (".warc", ".wet") for part in path.suffixes)


def is_arc(path: Path) -> bool:
    """Whether the name says ARC."""
    return ".arc" in path.suffixes


def holds_pages(path: Path) -> bool:
    """Whether the name says that web pages are inside: a web archive, HTML, or an archive of files."""
    return is_warc(path) or is_arc(path) or is_archive(path) or HTML_NAME.search(path.name) is not None


def page_planner(path: Path) -> Planner | None:
    """What splits a big file of pages."""
    return by_record if is_warc(path) else by_member if is_archive(path) else None


def read_pages(path: Path, max_bytes: int, split: Split = WHOLE, members: str = "*") -> Iterator[Page]:
    """Pages of a WARC, WET, ARC or HTML file, plain or compressed, or of an archive of HTML files, in stored order.

    Args:
        path: the file; records that hold no page (requests, metadata, revisits) are passed over.
        max_bytes: a larger block has the problem `too_large`.
        split: which part of it.
        members: which members of an archive of files.
    """
    open_raw(path).close()  # a missing file is the user's error, not a damaged one
    if path.stat().st_size == 0:
        yield Page(record_of(b"", 0, None, "empty_file"))
    elif is_warc(path) and not is_archive(path):
        yield from _read_warc(path, max_bytes, split)
    elif is_arc(path) and not is_archive(path):
        yield from _read_arc(path, max_bytes)
    else:
        yield from _read_html(path, max_bytes, split, members)


def _read_html(path: Path, max_bytes: int, split: Split, pattern: str) -> Iterator[Page]:
    member = None
    try:
        for member, stream in members_of(path, pattern, split.start, split.length):
            kind = "text/html" if member is None or HTML_NAME.search(member) else None
            for record in cut(stream, whole, max_bytes):
                yield Page(record, media_type=kind, payload=record.data, member=member)
    except STREAM_ERRORS as error:
        yield Page(record_of(b"", 0, None, reason_of(error)), member=f"after {member}" if member else None)


def _read_warc(path: Path, max_bytes: int, split: Split) -> Iterator[Page]:
    """Read records, going on behind damage at the next one that can be read."""
    row, last, start, damaged = split.row, -1, split.start, False
    end = None if split.length is None else split.start + split.length
    page: Page | None = None
    while start is not None:
        try:
            with _warc_stream(path) as file:
                if start:
                    file.seek(start)
                for entry in ArchiveIterator(file, parse_http=False):
                    if end is not None and entry.stream_pos >= end:
                        return
                    last = entry.stream_pos
                    page = _page_of(entry, row, max_bytes) if entry.record_type & PAGES else None
                    row, damaged = row + 1, False
                    if page is not None:
                        yield page
        except STREAM_ERRORS as error:
            start = _next_record(path, max(last, start) + 1)
            start = None if start is not None and end is not None and start >= end else start
            if not damaged:  # damage is counted once, however often reading is tried again
                problem = reason_of(error) if start or end else _tail_problem(path, last) or reason_of(error)
                yield Page(record_of(b"", max(last, 0), row, problem))
                row, damaged = row + 1, True
        else:
            told = page is not None and page.record.problem == "truncated"
            if not told and (problem := _tail_problem(path, last)):
                yield Page(record_of(b"", max(last, 0), row, problem))
            return


def _warc_stream(path: Path) -> BinaryIO:
    """A WARC file as FastWARC reads it: gzip members as they are, zstd taken off."""
    file = cast(BinaryIO, path.open("rb"))
    if file.read(4) == ZSTD_MAGIC:
        file.close()
        return open_raw(path)
    file.seek(0)
    return file


def _next_record(path: Path, after: int) -> int | None:
    """Where the next gzip member may begin, or the next record of a plain file; None when there is none."""
    with path.open("rb") as file:
        mark, begins = (MEMBER_START, 0) if file.read(2) == GZIP_MAGIC else (RECORD_START, 4)
        file.seek(after)
        overlap = b""
        while chunk := file.read(1 << 20):
            if (found := (overlap + chunk).find(mark)) >= 0:
                return after - len(overlap) + found + begins
            after, overlap = after + len(chunk), chunk[-len(mark) + 1 :]
    return None


def _page_of(entry: WarcRecord, row: int, max_bytes: int) -> Page:
    offset, length = entry.stream_pos, entry.content_length
    url, record_id = entry.headers.get("WARC-Target-URI"), entry.record_id
    if length > max_bytes:
        return Page(Record(b"", offset, row, length, _hash_of(entry), "too_large"), url, record_id)
    block = entry.reader.read()
    problem = None if len(block) == length else "truncated"
    record = record_of(block, offset, row, problem)
    if problem is None and (entry.headers.get("Content-Type") or "").startswith("application/http"):
        return _http_page(record, url, record_id)
    is_text = bool(entry.record_type & WarcRecordType.conversion)
    return Page(record, url, record_id, None, _media_type(entry.headers.get("Content-Type")), None, block, is_text)


def _hash_of(entry: WarcRecord) -> str:
    digest = hashlib.sha256()
    while chunk := entry.reader.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _media_type(header: str | None) -> str | None:
    return (header or "").split(";")[0].strip().lower() or None


def _http_page(record: Record, url: str | None, record_id: str | None) -> Page:
    """Parse the HTTP message in a block."""
    message = WarcRecord()
    message.init_headers(WarcRecordType.response)
    message.set_bytes_content(record.data)
    message.is_http = True
    try:
        message.parse_http(auto_decode="all", quirks_mode=True)
        payload = message.reader.read()
    except (OSError, ValueError):
        broken = Record(b"", record.offset, record.row, record.length, record.sha256, "bad_http")
        return Page(broken, url, record_id)
    kind = _media_type(message.http_content_type or message.http_headers.get("Content-Type"))
    return Page(record, url, record_id, message.http_headers.status_code, kind, message.http_charset, payload)


def _tail_problem(path: Path, last: int) -> str | None:
    """What is wrong with the end of a file whose last record begins at `last` (-1: there is none), or None.

    FastWARC stops in silence at a file that breaks off between the lines of a header.
    """
    last = max(last, 0)
    with path.open("rb") as file:
        magic = file.read(4)
        if magic == ZSTD_MAGIC:
            return None  # its stream says so itself
        file.seek(last)
        if magic.startswith(GZIP_MAGIC):
            if not file.read(2).startswith(GZIP_MAGIC):  # one stream for all records: offsets count its content
                last = 0
            file.seek(last)
            return _stream_problem(inflated(cast(BinaryIO, file)))
        head, blank, _ = file.read(MAX_HEAD_BYTES).partition(b"\r\n\r\n")
        length = CONTENT_LENGTH.search(head + blank)
        if not head.startswith(b"WARC/"):
            return None
        if length is None or not blank:
            return "truncated"
        end = last + len(head) + len(blank) + int(length.group(1))
        file.seek(min(end, path.stat().st_size))
        return "truncated" if path.stat().st_size < end or file.read(MAX_GAP).strip() else None


def _stream_problem(stream: BinaryIO) -> str | None:
    try:
        while stream.read(1 << 20):
            pass
    except STREAM_ERRORS as error:
        return reason_of(error)
    return None


def _read_arc(path: Path, max_bytes: int) -> Iterator[Page]:
    """ARC: a line `URL IP date type length` before each block; the offset is the block's, in decompressed bytes."""
    end = row = 0
    try:
        with open_raw(path) as stream:
            while line := stream.readline(MAX_URL_LINE):
                end += len(line)
                if line.isspace():
                    continue
                fields = line.decode("latin-1").split()
                if len(fields) < 5 or not fields[-1].isdigit():
                    yield Page(record_of(b"", end, row, "corrupt"))
                    return
                length = int(fields[-1])
                if not fields[0].startswith("filedesc:"):
                    yield _arc_page(stream, fields, end, row, length, max_bytes)
                else:
                    stream.read(length)
                end, row = end + length, row + 1
    except STREAM_ERRORS as error:
        yield Page(record_of(b"", end, row, reason_of(error)))


def _arc_page(stream: BinaryIO, fields: list[str], offset: int, row: int, length: int, max_bytes: int) -> Page:
    if length > max_bytes:
        digest, left = hashlib.sha256(), length
        while left and (chunk := stream.read(min(left, 1 << 20))):
            digest.update(chunk)
            left -= len(chunk)
        return Page(Record(b"", offset, row, length, digest.hexdigest(), "too_large"), fields[0])
    block = stream.read(length)
    record = record_of(block, offset, row, None if len(block) == length else "truncated")
    if record.problem is None and block.startswith(b"HTTP/"):
        return _http_page(record, fields[0], None)
    return Page(record, fields[0], None, None, _media_type(fields[3]), None, block)


def warc_block(path: Path, offset: int, row: int | None, sha256: str) -> bytes:
    """The block of a WARC record: looked for at its offset, then by its number from the start of the file.

    Returns:
        the block found at the place; the caller compares its hash.
    """
    with _warc_stream(path) as file:
        try:
            file.seek(offset)
            block = next(iter(ArchiveIterator(file, parse_http=False))).reader.read()
        except (StopIteration, *STREAM_ERRORS):
            block = b""
    if hashlib.sha256(block).hexdigest() == sha256 or row is None:
        return block
    with _warc_stream(path) as file:
        for number, entry in enumerate(ArchiveIterator(file, parse_http=False)):
            if number == row:
                return entry.reader.read()
    return block


def write_warc(path: Path, pages: Iterable[tuple[str, bytes]]) -> int:
    """Write HTML pages as response records of a gzipped WARC: the same pages give the same bytes anywhere.

    Args:
        path: `.warc.gz` file, which appears whole.
        pages: URL and HTML in UTF-8.

    Returns:
        the number of records written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    count = 0
    with temporary.open("wb") as file:
        writer = GzipWriter(file)
        for url, html in pages:
            _response(url, html).write(writer, checksum_data=True)
            writer.finish()  # one gzip member per record, so that a record is found by its offset
            count += 1
        writer.close()
    temporary.replace(path)
    return count


def _response(url: str, html: bytes) -> WarcRecord:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(html)}\r\n\r\n"
    name = uuid.uuid5(uuid.NAMESPACE_URL, f"{url} {hashlib.sha256(html).hexdigest()}")
    record = WarcRecord()
    record.init_headers(WarcRecordType.response, f"uuid:{name}".encode())
    record.record_date = FIXED_DATE
    record.headers["WARC-Target-URI"] = url
    record.headers["Content-Type"] = "application/http; msgtype=response"
    record.set_bytes_content(head.encode() + html)
    record.is_http = True
    return record
