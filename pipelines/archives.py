"""Raw files as streams of bytes: plain, gzip or zstd, and the members of tar and zip archives.

Nothing is unpacked on disk, and a member is only ever read as far as its reader asks: the bound on a record is also
the bound on memory. Offsets that other modules speak of count bytes of the decompressed stream.
"""

import fnmatch
import gzip
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

from pipelines.errors import DataError

GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
STREAM_ERRORS = (EOFError, OSError, zlib.error, zstandard.ZstdError, tarfile.TarError, zipfile.BadZipFile)
"""What reading a damaged file may raise, whatever its container."""


def open_raw(path: Path) -> BinaryIO:
    """Open a file for reading, decompressed when its first bytes say gzip or zstd.

    Raises:
        DataError: the file is missing or may not be read.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; give an existing file") from None
    magic = file.read(4)
    file.seek(0)
    if magic.startswith(GZIP_MAGIC):
        file.close()
        return cast(BinaryIO, gzip.GzipFile(path))
    if magic == ZSTD_MAGIC:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=True)
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, reader), 1 << 20))
    return file


def common_root(files: Sequence[Path]) -> Path:
    """The deepest folder that holds all the files: what origins are relative to when no root is given."""
    return Path(os.path.commonpath([os.path.abspath(file.parent) for file in files])) if files else Path()


def reason_of(error: BaseException) -> str:
    """Name what is wrong with a damaged stream: it ends early (`truncated`), or its bytes are wrong (`corrupt`)."""
    text = str(error).lower()
    ends_early = isinstance(error, EOFError) or "end of data" in text or "end-of-stream" in text or "unexpected" in text
    return "truncated" if ends_early else "corrupt"


def is_archive(path: Path) -> bool:
    """Whether the name says tar or zip."""
    return path.name.endswith((".tar", ".tar.gz", ".tgz", ".tar.zst", ".zip"))


def members_of(path: Path, pattern: str = "*") -> Iterator[tuple[str | None, BinaryIO]]:
    """Streams inside a file: each regular member of an archive whose name matches, in stored order, or the file itself.

    Args:
        path: an archive, or any other file, which yields one stream named None.
        pattern: shell pattern for names of members; `*` also matches `/`.

    Raises:
        EOFError, OSError, tarfile.TarError, zipfile.BadZipFile, ...: the container is damaged (`STREAM_ERRORS`).
    """
    if path.suffix == ".zip":
        yield from _zip_members(path, pattern)
    elif is_archive(path):
        yield from _tar_members(path, pattern)
    else:
        with open_raw(path) as stream:
            yield None, stream


def _tar_members(path: Path, pattern: str) -> Iterator[tuple[str, BinaryIO]]:
    with open_raw(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            if member.isfile() and fnmatch.fnmatchcase(member.name, pattern):
                content = archive.extractfile(member)
                assert content is not None  # a regular file has content
                yield member.name, cast(BinaryIO, content)


def _zip_members(path: Path, pattern: str) -> Iterator[tuple[str, BinaryIO]]:
    with open_raw(path) as stream, zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            if not member.is_dir() and fnmatch.fnmatchcase(member.filename, pattern):
                with archive.open(member) as content:
                    yield member.filename, cast(BinaryIO, content)
