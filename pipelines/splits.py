"""Splits: the parts of one big file that are read by tasks of their own.

Where a file is split follows from the file alone, never from the number of workers: about every `SPLIT_BYTES`, at the
beginning of a record. Every split knows the number and the offset of its first record, so that ids and origins are
those that one task would have written. A file that cannot be entered in the middle is one split, as the journal says.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import journal
from pipelines.archives import GZIP_MAGIC, STREAM_ERRORS, ZSTD_MAGIC, inflated, open_raw, zstd_frames

SPLIT_BYTES = 64 << 20  # of the file as it lies there: seconds of work, and few enough tasks
CHUNK_BYTES = 1 << 20
GZIP_MEMBER = GZIP_MAGIC + b"\x08"
WARC_HEAD_BYTES = 1 << 13


@dataclass(frozen=True, slots=True)
class Split:
    """What one task reads of a file.

    Attributes:
        start: byte of the file where it begins; number of a row group, batch or member for files made of those.
        length: bytes from there (decompressed, for text and JSON Lines); row groups, batches or members. None: all.
        row: number of its first record in the file.
        offset: of its first record in the decompressed stream.
        skip: decompressed bytes from `start` that belong to the split before.
    """

    start: int = 0
    length: int | None = None
    row: int = 0
    offset: int = 0
    skip: int = 0


WHOLE = Split()
Planner = Callable[[Path], Sequence[Split]]


def splits_of(path: Path, planner: Planner | None) -> Sequence[Split]:
    """The splits of a file, in order; at least one.

    Args:
        path: the file. One that is damaged is one split: its reader will say what is wrong.
        planner: one of the functions below, or None when the format cannot be split.
    """
    try:
        if path.stat().st_size < 2 * SPLIT_BYTES:
            return [WHOLE]
        splits = planner(path) if planner is not None else []
    except (pa.ArrowException, *STREAM_ERRORS):
        splits = []
    if len(splits) < 2:
        journal.record("unsplit", file=path.name, about="read by one task: it has no point of entry, or is damaged")
        return [WHOLE]
    return splits


def _targets(size: int) -> list[int]:
    """About where the splits after the first begin: shares of equal size, so that none is tiny."""
    count = max(1, round(size / SPLIT_BYTES))
    return [size * number // count for number in range(1, count)]


def by_line(path: Path) -> list[Split]:
    """Lines: plain files anywhere, compressed ones at the beginning of a gzip member or zstd frame."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic.startswith(GZIP_MAGIC):
        return _lines_of_parts(path, list(_gzip_starts(path)))
    if magic == ZSTD_MAGIC:
        with path.open("rb") as file:
            return _lines_of_parts(path, list(zstd_frames(cast(BinaryIO, file))))
    with open_raw(path) as stream:
        return _lines_of_stream(stream, [(target, target) for target in _targets(path.stat().st_size)])


def _lines_of_stream(stream: BinaryIO, entries: Sequence[tuple[int, int]]) -> list[Split]:
    """Splits at the first line that begins at or behind each entry.

    Args:
        stream: of all lines, decompressed.
        entries: of each, its place in the stream and the byte of the file where reading can begin.
    """
    begins = [(0, 0, 0, 0)]  # offset, row, start, place of start
    at = rows = 0
    for place, start in entries:
        while at < place and (chunk := stream.read(min(CHUNK_BYTES, place - at))):
            at, rows = at + len(chunk), rows + chunk.count(b"\n")
        ended = False
        while not ended and (line := stream.readline(CHUNK_BYTES)):
            ended = line.endswith(b"\n")
            at, rows = at + len(line), rows + ended
        if ended:
            begins.append((at, rows, start, place))
    while chunk := stream.read(CHUNK_BYTES):  # to its end: what breaks off is no matter for several tasks
        at += len(chunk)
    begins = [begin for begin in begins if begin[0] < at]
    ends = [*(begin[0] for begin in begins[1:]), None]
    return [Split(start, None if end is None else end - offset, row, offset, offset - place)
            for (offset, row, start, place), end in zip(begins, ends, strict=True)]  # fmt: skip


def _lines_of_parts(path: Path, starts: Sequence[int]) -> list[Split]:
    """The same for a compressed file of several parts, found by reading it once."""
    chosen, at = [], 0
    for target in _targets(path.stat().st_size):
        while at < len(starts) and starts[at] < target:
            at += 1
        if at < len(starts) and starts[at] not in chosen:
            chosen.append(starts[at])
    if not chosen:
        return []
    entries, place = [], 0
    for begin, end in zip([0, *chosen[:-1]], chosen, strict=True):
        place += _inflated_size(path, begin, end)
        entries.append((place, end))
    with open_raw(path) as stream:
        return _lines_of_stream(stream, entries)


def _inflated_size(path: Path, begin: int, end: int) -> int:
    with path.open("rb") as file, inflated(cast(BinaryIO, Window(cast(BinaryIO, file), begin, end))) as stream:
        return sum(len(chunk) for chunk in iter(lambda: stream.read(CHUNK_BYTES), b""))


class Window:
    """The bytes of a file from `begin` to `end`, read like a file."""

    def __init__(self, file: BinaryIO, begin: int, end: int | None) -> None:
        self.file, self.begin, self.end = file, begin, end
        self.file.seek(begin)

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes."""
        if self.end is None:
            return self.file.read(size)
        left = max(0, self.end - self.file.tell())
        return self.file.read(left if size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a byte, counted from `begin`."""
        return self.file.seek(self.begin + offset) - self.begin

    def tell(self) -> int:
        """Where it stands, counted from `begin`."""
        return self.file.tell() - self.begin

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _gzip_starts(path: Path) -> Iterator[int]:
    """Bytes at which a gzip member begins, the first included: its magic is there and its first bytes inflate."""
    with path.open("rb") as file:
        for start in _magic_places(cast(BinaryIO, file)):
            file.seek(start)
            try:
                zlib.decompressobj(31).decompress(file.read(WARC_HEAD_BYTES), WARC_HEAD_BYTES)
            except zlib.error:
                continue
            yield start


def _magic_places(file: BinaryIO) -> Iterator[int]:
    at, overlap = 0, b""
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        data, begin = overlap + chunk, at - len(overlap)
        found = data.find(GZIP_MEMBER)
        while found >= 0:
            yield begin + found
            found = data.find(GZIP_MEMBER, found + 1)
        at, overlap = at + len(chunk), chunk[-2:]
        file.seek(at)  # the caller may have moved it


def by_record(path: Path) -> list[Split]:
    """Records of a WARC file, when each is a gzip member of its own, or when the file is plain.

    That a member holds one record and no more is proven without inflating it: the length in the record's header is the
    length that the member's trailer gives.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        is_gzip = file.read(2) == GZIP_MAGIC
        starts = _warc_members(cast(BinaryIO, file), size) if is_gzip else _warc_records(cast(BinaryIO, file), size)
    begins = [(0, 0)]
    at = 0
    for target in _targets(size):
        while at < len(starts) and starts[at] < target:
            at += 1
        if at < len(starts) and starts[at] > begins[-1][0]:
            begins.append((starts[at], at))
    if not starts:
        return []
    ends = [*(start for start, _ in begins[1:]), None]
    return [Split(start, None if end is None else end - start, row)
            for (start, row), end in zip(begins, ends, strict=True)]  # fmt: skip


def _record_bytes(head: bytes) -> int | None:
    """Bytes of the WARC record that begins with `head`, its two empty lines included; None when it is none."""
    header, blank, _ = head.partition(b"\r\n\r\n")
    if not blank or not header.startswith(b"WARC/"):
        return None
    for line in header.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return len(header) + 4 + int(value) + 4
    return None


def _warc_members(file: BinaryIO, size: int) -> list[int]:
    """Where the members begin, or nothing when one is not exactly one record."""
    starts: list[int] = []
    expected = 0
    for start in _magic_places(file):
        file.seek(start)
        try:
            head = zlib.decompressobj(31).decompress(file.read(WARC_HEAD_BYTES), WARC_HEAD_BYTES)
        except zlib.error:
            continue  # three bytes that happened to be the magic
        length = _record_bytes(head)
        if length is None:
            continue
        if starts and _trailer(file, start) != expected & 0xFFFFFFFF:
            return []
        starts.append(start)
        expected = length
    return starts if starts and _trailer(file, size) == expected & 0xFFFFFFFF else []


def _trailer(file: BinaryIO, end: int) -> int:
    """The length that the member ending at `end` says it has."""
    file.seek(max(0, end - 4))
    return int.from_bytes(file.read(4), "little")


def _warc_records(file: BinaryIO, size: int) -> list[int]:
    """Where the records of a plain file begin, or nothing when their lengths do not lead to its end."""
    starts, at = [], 0
    while at < size:
        file.seek(at)
        if (length := _record_bytes(file.read(WARC_HEAD_BYTES))) is None:
            return []
        starts.append(at)
        at += length
    return starts if at == size else []


def by_row_group(path: Path) -> list[Split]:
    """Row groups of a Parquet file."""
    with path.open("rb") as file, pq.ParquetFile(file) as parquet:
        groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
        sizes = [sum(g.column(c).total_compressed_size for c in range(g.num_columns)) for g in groups]
        return _grouped(sizes, [group.num_rows for group in groups])


def by_batch(path: Path) -> list[Split]:
    """Record batches of an Arrow IPC file; a stream has no index of them and is one split."""
    if type(path) is not type(Path()):
        return []
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            return []
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        return _grouped([batch.nbytes for batch in batches], [batch.num_rows for batch in batches])


def by_member(path: Path) -> list[Split]:
    """Members of a zip or a plain tar; a compressed tar is one split."""
    import tarfile
    import zipfile

    with path.open("rb") as file:
        if path.suffix.lower() == ".zip":
            sizes = [member.compress_size for member in zipfile.ZipFile(file).infolist()]
        elif path.suffix.lower() == ".tar":
            sizes = [member.size for member in tarfile.open(fileobj=file, mode="r:")]  # noqa: SIM115 - it only reads
        else:
            return []
    return _grouped(sizes, [0] * len(sizes))


def _grouped(sizes: Sequence[int], rows: Sequence[int]) -> list[Split]:
    """Runs of neighbours of about `SPLIT_BYTES` each."""
    splits: list[Split] = []
    begin = row = size = 0
    for number, more in enumerate(sizes):
        size += more
        if size >= SPLIT_BYTES or number == len(sizes) - 1:
            splits.append(Split(begin, number + 1 - begin, row))
            row += sum(rows[begin : number + 1])
            begin, size = number + 1, 0
    return splits
