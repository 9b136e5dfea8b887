"""The decorator of all kernels: numba, compiled once per machine and version of the kernels.

The one choice that matters: numba's own cache looks only at the file of the function that is called, and would go on
serving machine code of a kernel whose callee in another file has changed; so the cache lies in a folder named by the
hash of all files with kernels. Source: numba's documentation, "Caching", limitations.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from numba import config, njit

from pipelines.recipe import ROOT

Function = TypeVar("Function", bound=Callable[..., Any])
FOLDERS = ("pipelines", "filters", "synth", "trainer")
TABLES = b"filters.characters"  # holds no kernel, but arrays that kernels compile in


def _cache_folder() -> str | None:
    """Where compiled kernels lie: None when the folder cannot be written."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.py")):
        source = path.read_bytes()
        if b"pipelines.compiled" in source or TABLES in source or path.stem == "characters":
            digest.update(path.name.encode() + b"\0" + source)
    folder = Path(__file__).resolve().parent / "__pycache__" / f"kernels-{digest.hexdigest()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


_FOLDER = _cache_folder()


def kernel(function: Function) -> Function:
    """Compile a function at its first call, without the interpreter's lock."""
    return _compile(function, "never")


def inlined(function: Function) -> Function:
    """The same for a small function that is copied into the kernels that call it."""
    return _compile(function, "always")


def _compile(function: Function, inline: Literal["never", "always"]) -> Function:
    settings: Any = config
    before, settings.CACHE_DIR = settings.CACHE_DIR, _FOLDER or ""
    try:
        compiled: Any = njit(cache=_FOLDER is not None, nogil=True, inline=inline)(function)
    finally:
        settings.CACHE_DIR = before
    return compiled
