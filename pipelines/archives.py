"""Raw files as streams of bytes: plain, gzip or zstd, and the members of tar and zip archives.

Nothing is unpacked on disk, and a member is only ever read as far as its reader asks: the bound on a record is also
the bound on memory. A stream that inflates beyond all text ends as a `bomb`. Offsets that other modules speak of count
bytes of the decompressed stream.
"""

import fnmatch
import io
import struct
import tarfile
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import zstandard

from pipelines.errors import DataError

GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
SKIPPABLE = range(0x184D2A50, 0x184D2A60)  # zstd frames that hold no data, RFC 8878 section 3.1.2
CHUNK_BYTES = 1 << 18
MAX_RATIO = 400  # of inflated to packed bytes; the most repetitive logs reach about 100
RATIO_FREE_BYTES = 1 << 28  # inflated bytes below which the ratio is not looked at
STREAM_ERRORS = (
    EOFError, OSError, zlib.error, zstandard.ZstdError, tarfile.TarError, zipfile.BadZipFile,
    RuntimeError,  # zipfile: a compression that it does not know, a member that is encrypted
    UnicodeDecodeError,  # tarfile and zipfile: names that are no text
    ValueError,  # tarfile: numbers that are none
    OverflowError, MemoryError,  # sizes that cannot be
    IndexError, struct.error,  # zipfile and tarfile: headers that are too short
)  # fmt: skip
"""What reading a damaged file may raise, whatever its container."""


class Bomb(OSError):
    """A stream that inflates beyond what any text does."""


def open_raw(path: Path) -> BinaryIO:
    """Open a file for reading, decompressed when its first bytes say gzip or zstd.

    Raises:
        DataError: the file is missing or may not be read.
    """
    try:
        file = cast(BinaryIO, path.open("rb"))
        magic = file.read(4)
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        raise DataError(f"{path} cannot be read: {why}; give an existing file") from None
    file.seek(0)
    return inflated(file) if magic.startswith(GZIP_MAGIC) or magic == ZSTD_MAGIC else file


def inflated(file: BinaryIO) -> BinaryIO:
    """The decompressed stream of a file that stands at the beginning of a gzip member or zstd frame."""
    start = file.tell()
    magic = file.read(4)
    file.seek(start)
    raw = _Gunzip(file) if magic.startswith(GZIP_MAGIC) else _Unzstd(file)
    return cast(BinaryIO, io.BufferedReader(raw, CHUNK_BYTES))


class _Inflater(io.RawIOBase):
    """Base of the streams that inflate: bounds what comes out by what went in."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.file, self.begin, self.given = file, file.tell(), 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.file.close()
        super().close()

    def tell(self) -> int:
        return self.given

    def readinto(self, buffer: Any) -> int:
        data = self.inflate(len(buffer))
        buffer[: len(data)] = data
        self.given += len(data)
        if self.given > RATIO_FREE_BYTES and self.given > MAX_RATIO * (self.file.tell() - self.begin):
            raise Bomb("inflates beyond all text")
        return len(data)

    @abstractmethod
    def inflate(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""


class _Gunzip(_Inflater):
    """The members of a gzip file, one after another; zeros behind the last are padding."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.member, self.packed = zlib.decompressobj(31), b""

    def inflate(self, size: int) -> bytes:
        while True:
            self.packed = self.packed or self.file.read(CHUNK_BYTES)
            if not self.packed:
                if self.member is not None:
                    raise EOFError("end of data before the end of a gzip member")
                return b""
            if self.member is None:
                self.packed = self.packed.lstrip(b"\0")
                if not self.packed:
                    continue
                self.member = zlib.decompressobj(31)
            data = self.member.decompress(self.packed, size)
            self.packed = self.member.unconsumed_tail
            if self.member.eof:
                self.packed, self.member = self.member.unused_data, None
            if data:
                return data


class _Unzstd(_Inflater):
    """The frames of a zstd file, one after another."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=False)

    def inflate(self, size: int) -> bytes:
        if data := self.reader.read(size):
            return data
        self.file.seek(self.begin)  # zstandard ends in silence where the file breaks off
        for _ in zstd_frames(self.file):
            pass
        return b""


def zstd_frames(file: BinaryIO) -> Iterator[int]:
    """Where each zstd frame begins, from where the file stands; read from the headers of their blocks (RFC 8878).

    Raises:
        EOFError: the file ends within a frame.
    """
    while head := file.read(18):  # the longest header
        start = file.tell() - len(head)
        magic = int.from_bytes(head[:4], "little")
        if magic in SKIPPABLE:
            file.seek(start + 8 + int.from_bytes(head[4:8], "little"))
            continue
        yield start
        at = start + zstandard.frame_header_size(head)
        last = False
        while not last:
            file.seek(at)
            if len(block := file.read(3)) < 3:
                raise EOFError("end of data within a zstd frame")
            value = int.from_bytes(block, "little")
            last, kind, size = bool(value & 1), value >> 1 & 3, value >> 3
            at += 3 + (1 if kind == 1 else size)  # 1: one byte, to be repeated
        at += 4 * zstandard.get_frame_parameters(head).has_checksum
        file.seek(at - 1)
        if not file.read(1):
            raise EOFError("end of data within a zstd frame")


def reason_of(error: BaseException) -> str:
    """Name what is wrong with a damaged stream: it ends early (`truncated`), is a `bomb`, or its bytes are wrong."""
    if isinstance(error, Bomb):
        return "bomb"
    text = str(error).lower()
    ends_early = isinstance(error, EOFError) or "end of data" in text or "end-of-stream" in text or "unexpected" in text
    return "truncated" if ends_early else "corrupt"


def is_archive(path: Path) -> bool:
    """Whether the name says tar or zip."""
    return path.name.lower().endswith((".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd", ".zip"))


def members_of(
    path: Path, pattern: str = "*", start: int = 0, length: int | None = None
) -> Iterator[tuple[str | None, BinaryIO]]:
    """Streams inside a file: each regular member of an archive whose name matches, in stored order, or the file itself.

    Args:
        path: an archive, or any other file, which yields one stream named None.
        pattern: shell pattern for names of members; `*` also matches `/`.
        start: number of the first member that is looked at.
        length: how many are looked at; all when not given.

    Raises:
        EOFError, OSError, tarfile.TarError, zipfile.BadZipFile, ...: the container is damaged (`STREAM_ERRORS`).
    """
    if path.suffix.lower() == ".zip":
        yield from _zip_members(path, pattern, start, length)
    elif is_archive(path):
        yield from _tar_members(path, pattern, start, length)
    else:
        with open_raw(path) as stream:
            yield None, stream


def _tar_members(path: Path, pattern: str, start: int, length: int | None) -> Iterator[tuple[str, BinaryIO]]:
    # a plain tar is walked by its headers, so that members of other tasks are passed over unread
    mode = "r:" if path.suffix.lower() == ".tar" else "r|"
    with open_raw(path) as stream, tarfile.open(fileobj=stream, mode=mode) as archive:
        for number, member in enumerate(archive):
            if length is not None and number >= start + length:
                return
            if number >= start and member.isreg() and fnmatch.fnmatchcase(member.name, pattern):
                content = archive.extractfile(member)
                assert content is not None  # a regular file has content
                yield member.name, cast(BinaryIO, content)


def _zip_members(path: Path, pattern: str, start: int, length: int | None) -> Iterator[tuple[str, BinaryIO]]:
    with open_raw(path) as stream, zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        for member in members[start : len(members) if length is None else start + length]:
            if not member.is_dir() and fnmatch.fnmatchcase(member.filename, pattern):
                with archive.open(member) as content:
                    yield member.filename, cast(BinaryIO, content)
