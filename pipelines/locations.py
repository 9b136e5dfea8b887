"""Files anywhere: on this disk, or behind a URL that fsspec opens, both as a `Path` that the readers know how to open.

A remote file is a path whose text is its URL, so that names, suffixes and parents work as they do on disk. Nothing
is fetched to learn about it. What would download from a public server (`hf://`, `http://`) is refused here: that is
what `loam fetch` is for, or `LOAM_HTTP=1` where plain HTTP was asked for.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from pipelines.errors import DataError, MissingExtra

URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)
HTTP = ("http", "https")


class RemoteFile(type(Path())):
    """A file behind a URL; `str()` of it is the URL."""

    def __str__(self) -> str:
        match = URL.fullmatch(super().__str__())
        return f"{match[1]}://{match[2]}" if match else super().__str__()

    def __fspath__(self) -> str:
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return (RemoteFile, (str(self),))

    def open(self, mode: str = "rb", *_: Any, **__: Any) -> Any:
        """Open for reading through fsspec; the file can seek."""
        return self._system().open(str(self), mode)

    def stat(self, **_: Any) -> os.stat_result:
        """Its size; the other fields mean nothing."""
        size = int(self._system().info(str(self)).get("size") or 0)
        return cast(os.stat_result, SimpleNamespace(st_size=size, st_mode=0o100444))

    def exists(self, **_: Any) -> bool:
        """Whether there is such a file or folder."""
        return bool(self._system().exists(str(self)))

    def is_file(self, **_: Any) -> bool:
        """Whether it is a file."""
        return bool(self._system().isfile(str(self)))

    def is_dir(self, **_: Any) -> bool:
        """Whether it is a folder."""
        return bool(self._system().isdir(str(self)))

    def resolve(self, strict: bool = False) -> "RemoteFile":
        """A URL is as absolute as it gets."""
        return self

    def matches(self) -> list["RemoteFile"]:
        """Files that it names: itself, those that its glob matches, or those of the folder."""
        system, scheme = self._system(), URL.fullmatch(str(self))
        assert scheme is not None  # it was made from a URL
        if any(letter in str(self) for letter in "*?["):
            found = [name for name in system.glob(str(self)) if system.isfile(name)]
        elif system.isdir(str(self)):
            found = system.find(str(self))
        else:
            found = [str(self)] if system.exists(str(self)) else []
        return [RemoteFile(str(system.unstrip_protocol(name))) for name in sorted(found)]

    def _system(self) -> Any:
        import fsspec

        scheme = str(self).partition(":")[0]
        if scheme == "hf":
            raise DataError(f"{self} needs a download; run: loam fetch {self} --to FOLDER, and give that folder")
        if scheme in HTTP and os.environ.get("LOAM_HTTP") != "1":
            raise DataError(f"{self} would be downloaded; set LOAM_HTTP=1 to allow it, or fetch it to a file first")
        try:
            return fsspec.filesystem(scheme)
        except ImportError as error:
            extra = "the extra s3: pip install -e '.[s3]'" if scheme in ("s3", "s3a") else "what fsspec wants for it"
            raise MissingExtra(f"{self}: {scheme}:// needs {extra} ({error})") from None
        except ValueError:
            raise DataError(f"{self}: nothing is known that opens {scheme}://; give a local path") from None


def is_url(text: str) -> bool:
    """Whether a path is a URL (a drive letter is none)."""
    return URL.fullmatch(text) is not None


def location(text: str | Path) -> Path:
    """The path of a file given by a user: `file://` and paths are on this disk, other URLs are remote."""
    match = URL.fullmatch(str(text))
    if match is None:
        return Path(text)
    return Path("/" + match[2]) if match[1] in ("file", "local") else RemoteFile(str(text))


def plain_name(name: str) -> str:
    r"""A file's name as text, the same under every locale; bytes that are no UTF-8 are written `\xNN`."""
    return name if name.isascii() else os.fsencode(name).decode("utf-8", "backslashreplace")


def below(path: Path, root: Path) -> str:
    """The name of a file in ids and origins: its path relative to the root, or its URL when it lies elsewhere."""
    if isinstance(path, RemoteFile) or isinstance(root, RemoteFile):
        return str(path)[len(str(root)) :].lstrip("/") if str(path).startswith(f"{root}/") else str(path)
    return plain_name(Path(os.path.relpath(path, root)).as_posix())


def common_root(files: Sequence[Path]) -> Path:
    """The deepest folder that holds all the files: what origins are relative to when no root is given."""
    remote = [file for file in files if isinstance(file, RemoteFile)]
    if not remote:
        return Path(os.path.commonpath([os.path.abspath(file.parent) for file in files])) if files else Path()
    parents = {str(file.parent) for file in files}
    if len(remote) < len(files) or len({parent.partition("://")[0] for parent in parents}) > 1:
        return Path()  # here and there: remote files are called by their URL
    scheme = next(iter(parents)).partition("://")[0]
    return RemoteFile(f"{scheme}://{os.path.commonpath([p.partition('://')[2] or '/' for p in parents])}")
