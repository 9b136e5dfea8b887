"""The store: perform a step once, whatever gets killed.

A step's id is a hash of its settings, its parents and the code. Its action fills a working folder beside the target;
when it returns, every file is hashed, the manifest is written, leftovers are removed and the folder is renamed. The
same id again is skipped. After a kill the same working folder is handed to the action again, which may resume from it.
"""

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import DataError, LoamError, MissingExtra, RecipeError, StepError
from pipelines.execute import REJECTED_INPUTS, SCRATCH
from pipelines.files import sha256_of
from pipelines.journal import KEPT_JOURNAL
from pipelines.locations import plain_name
from pipelines.manifest import (
    MANIFEST,
    Counts,
    Manifest,
    check_outputs,
    digest_of,
    list_outputs,
    read_manifest,
    write_manifest,
)
from pipelines.recipe import ROOT

FOLDERS = ("pipelines", "filters", "synth", "mixtures", "trainer", "flows")


@dataclass(frozen=True)
class Outcome:
    """What an action reports; files are found by looking."""

    counts: Counts | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Performed:
    """A finished step.

    Attributes:
        folder: where its outputs and manifest are.
        manifest: its receipt.
        how: `done` now, `skipped` (was there), or `reused` (linked from another run).
    """

    folder: Path
    manifest: Manifest
    how: str


@functools.cache
def code_version(*folders: str) -> str:
    """Hash of the sources of these packages (default: all), prompts included, the interpreter and the dependencies."""
    digest = hashlib.sha256(platform.python_version().encode())
    for folder in sorted(folders or FOLDERS):
        for path in sorted(p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".md")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    for requirement in sorted(importlib.metadata.requires("loam") or []):
        if "extra ==" not in requirement:
            name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                digest.update(f"{name}={importlib.metadata.version(name)}\n".encode())
    return digest.hexdigest()[:16]


def parents_from_files(files: Sequence[Path]) -> dict[str, str]:
    """Parents of a step that reads files given by the user: numbered names and sha256 of the bytes."""
    return {f"{number:05d}:{plain_name(path.name)}": sha256_of(path) for number, path in enumerate(files)}


def identity_of(step: str, settings: Mapping[str, Any], parents: Mapping[str, str], code: str) -> str:
    """The id of a step: the same id means the same output."""
    return digest_of({"step": step, "settings": dict(settings), "parents": dict(parents), "code": code})


def perform(
    step: str,
    out: Path,
    action: Callable[[Path], Outcome],
    settings: Mapping[str, Any],
    parents: Mapping[str, str],
    code: str | None = None,
    elsewhere: Sequence[Path] = (),
) -> Performed:
    """Perform a step, or find it performed.

    Args:
        step: its name.
        out: target folder.
        action: fills the folder it is given; called again with the same folder after a kill.
        settings: resolved settings, JSON values.
        parents: name -> digest of every input.
        code: version of the code; that of all packages when not given.
        elsewhere: folders that may hold the same step of other runs; an equal id is linked instead of computed.

    Raises:
        DataError: `out` holds files that Loam did not write or another step's, or another process works on it.
        StepError: the action failed; names the log.
    """
    identity = identity_of(step, settings, parents, code or code_version())
    with _sole_writer(out):
        if (found := _finished(out, identity)) is not None:
            return Performed(out, found, "skipped")
        _refuse_foreign(out, step)
        _clear_stale(out, identity)
        for other in elsewhere:
            if (found := _linked(other, out, identity)) is not None:
                return Performed(out, found, "reused")
        work = _beside(out, identity, "work")
        if (manifest := _finished(work, identity)) is None:
            (work / SCRATCH).mkdir(parents=True, exist_ok=True)
            try:
                outcome = _attempt(step, action, work)
            except (RecipeError, MissingExtra, DataError) as error:
                _clear_refused(work, keep=isinstance(error, DataError))
                raise
            manifest = Manifest(
                step=step, id=identity, code=code or code_version(), settings=dict(settings), parents=dict(parents),
                counts=outcome.counts, metrics=dict(outcome.metrics),
                outputs=list_outputs(work, (SCRATCH, KEPT_JOURNAL)),
            )  # fmt: skip
            write_manifest(work, manifest)
        # From here on nothing is resumed: scratch may go piece by piece only now that the manifest stands.
        shutil.rmtree(work / SCRATCH, ignore_errors=True)
        _publish(work, out)
    return Performed(out, manifest, "done")


def _clear_refused(work: Path, keep: bool) -> None:
    """Remove the working folder of a step that was refused before it did anything but read its inputs.

    Args:
        work: the folder.
        keep: what it has in scratch may be of use: data may be mended where settings cannot.
    """
    held = [path.relative_to(work) for path in work.rglob("*") if not path.is_dir()]
    passing = {SCRATCH, KEPT_JOURNAL}
    if not any(keep or not (passing & set(path.parts) or path.match(REJECTED_INPUTS)) for path in held):
        shutil.rmtree(work, ignore_errors=True)


def _beside(out: Path, identity: str, kind: str) -> Path:
    """A folder of ours next to `out`: `work` in progress, `link` being linked, `old` being replaced."""
    return out.parent / f".{out.name}.{identity[:12]}.{kind}"


def _finished(folder: Path, identity: str) -> Manifest | None:
    """The manifest, if the folder holds this very step whole; a damaged one counts as not done."""
    try:
        manifest = read_manifest(folder)
        if manifest.id != identity:
            return None
        check_outputs(folder, manifest, hashes=False)
    except DataError:
        return None
    return manifest


def _refuse_foreign(out: Path, step: str) -> None:
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise DataError(f"{out} exists and was not written by loam; give an empty or new folder")
    if (out / MANIFEST).is_file() and (found := read_manifest(out).step) != step:
        raise DataError(f"{out} holds the output of {found!r}, this is {step!r}; give another folder")


def _attempt(step: str, action: Callable[[Path], Outcome], work: Path) -> Outcome:
    try:
        return action(work)
    except (LoamError, KeyboardInterrupt):
        raise
    except Exception as error:
        log = work / SCRATCH / "error.log"
        with contextlib.suppress(OSError):  # a full disk must not hide what happened
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(traceback.format_exc())
        problem = f"{type(error).__name__}: {error}"
        raise StepError(f"step {step} failed: {problem}; log: {log}; run again to resume") from error


@contextlib.contextmanager
def _sole_writer(out: Path) -> Iterator[None]:
    """Hold `.<out>.lock` beside the target; the kernel lets go of it when the process dies.

    `lockf`, not `flock`: a lock that forked children inherit would outlive a killed parent.
    """
    path = out.parent / f".{out.name}.lock"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}; give another folder") from None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                raise BlockingIOError  # it was removed by its owner between our opening and locking it
        except OSError:
            raise DataError(f"another loam process is working on {out}; wait for it or stop it") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _clear_stale(out: Path, identity: str) -> None:
    """Remove what earlier ids left beside the target: their settings or code are gone."""
    keep = _beside(out, identity, "work")
    for kind in ("work", "link", "old"):
        for other in out.parent.glob(f".{out.name}.*.{kind}"):
            if other != keep:
                shutil.rmtree(other)


def _publish(work: Path, out: Path) -> None:
    if out.exists():
        old = work.with_suffix(".old")
        out.rename(old)
        work.rename(out)
        shutil.rmtree(old)
    else:
        work.rename(out)
    descriptor = os.open(out.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the rename itself is on disk
    finally:
        os.close(descriptor)


def _linked(source: Path, out: Path, identity: str) -> Manifest | None:
    """Hard-link the same step of another run (copy where the file system cannot); None when it is not there whole."""
    manifest = _finished(source, identity)
    if manifest is None:
        return None
    link = _beside(out, identity, "link")
    try:
        for entry in manifest.outputs:
            target = link / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source / entry.path, target)
            except OSError:
                shutil.copy2(source / entry.path, target)
        link.mkdir(parents=True, exist_ok=True)
        check_outputs(link, manifest, hashes=False)
        if _finished(source, identity) != manifest:  # it was replaced meanwhile
            raise DataError(f"{source} changed")
    except (OSError, DataError):
        shutil.rmtree(link, ignore_errors=True)
        return None
    write_manifest(link, manifest)
    _publish(link, out)
    return manifest
