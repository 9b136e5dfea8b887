"""Small file operations that must be right: atomic writes, hashes, input globs."""

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import DataError
from pipelines.locations import RemoteFile, location

CHUNK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name, flush it to disk, rename.

    A reader sees the old file or the new one, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def remove_empty_folders(folder: Path, below: Path) -> None:
    """Remove a folder and those above it that are below another, up to the first that holds something."""
    with contextlib.suppress(OSError):  # one that is not empty
        while folder != below and below in folder.parents:
            if folder.is_dir():
                folder.rmdir()
            folder = folder.parent


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object that `loam fetch` wrote; empty where there is none.

    Raises:
        DataError: the file is no JSON.
    """
    try:
        return json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError:
        raise DataError(f"{path} is not JSON; remove it and run loam fetch again") from None


def expand_inputs(patterns: Sequence[str | Path]) -> list[Path]:
    """Turn paths, folders, globs and URLs into a sorted list of files without repeats.

    A folder means every file below it whose name does not begin with a dot or underscore, manifests left out.

    Raises:
        DataError: a pattern matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in map(str, patterns):
        remote = location(pattern)
        if isinstance(remote, RemoteFile):
            found.update(dict.fromkeys(_matches(remote)))
            continue
        pattern = str(remote)
        matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
        if not matches and Path(pattern).exists():  # a literal path with glob characters in it
            matches = [Path(pattern)]
        if not matches:
            raise DataError(f"no file matches {pattern!r}; give a path, a folder or a glob such as 'data/**/*.parquet'")
        for match in matches:
            files = sorted(p for p in match.rglob("*") if _is_data(p, match)) if match.is_dir() else [match]
            found.update(dict.fromkeys(files))
    if not found:
        raise DataError(f"no data file in {', '.join(map(str, patterns))}")
    return list(found)


def _matches(remote: RemoteFile) -> list[RemoteFile]:
    if not (matches := remote.matches()):
        raise DataError(f"no file matches {str(remote)!r}; give a URL of a file, a folder or a glob")
    return matches


def _is_data(path: Path, root: Path) -> bool:
    parts = path.relative_to(root).parts
    return path.is_file() and path.name != "manifest.json" and not any(p.startswith((".", "_")) for p in parts)
