"""Splits: the parts of one big file that are read by tasks of their own.

Where a file is split follows from the file alone, never from the number of workers: about every `SPLIT_BYTES`, at the
beginning of a record. Every split knows the number and the offset of its first record, so that ids and origins are
those that one task would have written. A file that cannot be entered in the middle is one split, as the journal says.
"""

import bisect
import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import journal
from pipelines.archives import GZIP_MAGIC, STREAM_ERRORS, ZSTD_MAGIC, inflated, zstd_frames

SPLIT_BYTES = 32 << 20  # of the file as it lies there: a second of work or less, so that two workers end together
WORTH = 4  # times that: a smaller file is one task, and Parquet that is one task need not be written again
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
        if path.stat().st_size < WORTH * SPLIT_BYTES:
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
    """Lines: plain files anywhere, compressed ones at the beginning of a gzip member or zstd frame.

    The numbers of records want every line counted, so a compressed file is inflated once before the tasks inflate
    their parts (a fifth of the work of reading it); one that is a single member or frame is not even that.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic.startswith(GZIP_MAGIC):
            starts = _at_or_behind(_targets(size), list(_gzip_starts(path)))
        elif magic == ZSTD_MAGIC:
            starts = _at_or_behind(_targets(size), list(zstd_frames(cast(BinaryIO, file))))
        else:
            starts = _targets(size)
    starts = [0, *starts]
    if len(starts) == 1:
        return []
    counts = [_counted(path, begin, end) for begin, end in zip(starts, [*starts[1:], None], strict=True)]
    return _lines_of_ranges(starts, counts)


def _at_or_behind(targets: Sequence[int], places: Sequence[int]) -> list[int]:
    """The first of the places (ascending) at or behind each target, once each."""
    found = (bisect.bisect_left(places, target) for target in targets)
    return list(dict.fromkeys(places[at] for at in found if at < len(places)))


class _Count(NamedTuple):
    """Of a range of the stream: bytes, line ends, and where its first whole line begins (None: no line end in it)."""

    size: int
    rows: int
    first: int | None


def _counted(path: Path, begin: int, end: int | None) -> _Count:
    """Count what lies between two bytes of the file, decompressed; what breaks off is no matter for several tasks."""
    size = rows = 0
    first = None
    with open_range(path, begin, end) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            if first is None and (at := chunk.find(b"\n")) >= 0:
                first = size + at + 1
            size, rows = size + len(chunk), rows + chunk.count(b"\n")
    return _Count(size, rows, first)


def _lines_of_ranges(starts: Sequence[int], counts: Sequence[_Count]) -> list[Split]:
    """Splits at the first line that begins in each range.

    Args:
        starts: bytes of the file at which reading can begin; the first is 0.
        counts: of what lies between each and the next.
    """
    total = sum(count.size for count in counts)
    begins = [WHOLE]
    place, row = counts[0].size, counts[0].rows
    for start, count in zip(starts[1:], counts[1:], strict=True):
        if count.first is not None and place + count.first < total:
            begins.append(Split(start, None, row + 1, place + count.first, count.first))
        place, row = place + count.size, row + count.rows
    ends = [*(begin.offset for begin in begins[1:]), None]
    return [replace(begin, length=None if end is None else end - begin.offset)
            for begin, end in zip(begins, ends, strict=True)]  # fmt: skip


@contextlib.contextmanager
def open_range(path: Path, begin: int, end: int | None = None) -> Iterator[BinaryIO]:
    """The stream of what lies between two bytes of a file: decompressed, when the file is."""
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(begin)
        stream = cast(BinaryIO, file if end is None else Window(cast(BinaryIO, file), begin, end))
        packed = magic.startswith(GZIP_MAGIC) or magic == ZSTD_MAGIC
        yield inflated(stream) if packed else stream


class Window:
    """The bytes of a file from `begin` to `end`, read like a file."""

    def __init__(self, file: BinaryIO, begin: int, end: int) -> None:
        self.file, self.begin, self.end = file, begin, end
        self.file.seek(begin)

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes."""
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
