"""The manifest: the receipt of a step, written last, so that it exists only when the step is whole.

It holds no clock, host or absolute path: the same recipe over the same input gives the same bytes anywhere. What took
how long is in the run's journal (`pipelines/store.py`).
"""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.errors import DataError
from pipelines.files import sha256_of, write_atomically

MANIFEST = "manifest.json"


class Counts(BaseModel):
    """What became of the documents that came in; always adds up."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    docs_in: int = 0
    kept: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    rejected: dict[str, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _adds_up(self) -> "Counts":
        out = self.kept + sum(self.dropped.values()) + sum(self.rejected.values())
        if self.docs_in != out:
            raise ValueError(f"{self.docs_in} documents came in, but kept + dropped + rejected = {out}")
        return self


class FileEntry(BaseModel):
    """One output file, with what it takes to check it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    size_bytes: int
    sha256: str
    rows: int | None = None


class Manifest(BaseModel):
    """The receipt of one step.

    Attributes:
        step: the step's name, `filter`.
        id: hash of settings, parents and code version; the same id means the same output.
        settings: the resolved section of the recipe.
        parents: name of each input -> digest of its manifest or of its bytes.
        counts: documents in, kept, dropped and rejected, where the step handles documents.
        metrics: the step's own numbers (JSON values).
        outputs: every file beside the manifest, sorted by path.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = 1
    step: str
    id: str
    code: str
    settings: dict[str, Any]
    parents: dict[str, str]
    counts: Counts | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    outputs: list[FileEntry] = Field(default_factory=list)

    def digest(self) -> str:
        """sha256 of the manifest's bytes: what a child step records as its parent."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The canonical JSON form."""
        return (json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def digest_of(value: object) -> str:
    """sha256 of the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def list_outputs(folder: Path, without: Collection[str] = ()) -> list[FileEntry]:
    """Describe every file under `folder` except manifests and what lies in folders named `without`, sorted by path."""
    entries = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        if not set(without).isdisjoint(path.relative_to(folder).parts[:-1]):
            continue
        rows = pq.read_metadata(path).num_rows if path.suffix == ".parquet" else None
        entries.append(FileEntry(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size,
                                 sha256=sha256_of(path), rows=rows))  # fmt: skip
    return entries


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest` into `folder`, atomically."""
    write_atomically(folder / MANIFEST, manifest.to_bytes())


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of `folder`.

    Raises:
        DataError: there is none, or it cannot be parsed.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{folder} has no {MANIFEST}: the step that writes it has not finished; run it again") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a manifest: {str(error).splitlines()[0]}") from None


def check_outputs(folder: Path, manifest: Manifest, hashes: bool = True) -> None:
    """Compare the files in `folder` with the manifest.

    Args:
        folder: where the manifest lies.
        manifest: what to expect.
        hashes: also compare sha256; without it only presence and size.

    Raises:
        DataError: names the first file that is missing or differs, with expected and found values.
    """
    for entry in manifest.outputs:
        path = folder / entry.path
        if not path.is_file():
            raise DataError(
                f"{path} is missing, though the manifest of step {manifest.step} lists it; run the step again"
            )
        if (size := path.stat().st_size) != entry.size_bytes:
            raise DataError(f"{path}: expected {entry.size_bytes} bytes, found {size}; delete its folder and run again")
        if hashes and (found := sha256_of(path)) != entry.sha256:
            raise DataError(f"{path}: expected sha256 {entry.sha256}, found {found}; delete its folder and run again")
