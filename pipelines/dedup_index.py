"""The index that a deduplication leaves for later ones: signature files of what was kept, and a description of them.

The one choice that matters: an index stores all shingles of a document (4 bytes each), so that a later run compares
new texts with old ones by their true Jaccard similarity, as if both were at hand. A new index takes in the files of
those it was made against, so that the newest stands for all. Every file is described with its sha256, which is checked.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dedup_settings import DedupSettings
from pipelines.errors import DataError
from pipelines.files import sha256_of, write_atomically
from pipelines.signatures import SignatureFile, columns_of, open_signatures

VERSION = 3
DESCRIPTION = "index.json"
PARTS = ("settings", "files")  # of the description
BESIDE = {"minhash": (".u32",), "semantic": (".npy",), "substring": (".text", ".anchors")}
"""What lies beside each file of signatures, by method."""


def index_folder(against: Path) -> Path:
    """The index in the output of an earlier run, or the folder itself.

    Raises:
        DataError: neither is an index.
    """
    folder = against / "index" if (against / "index").is_dir() else against
    if not (folder / DESCRIPTION).is_file():
        raise DataError(f"{against} holds no index; give the folder that an earlier `loam dedup` wrote")
    return folder


def index_digest(against: Path) -> str:
    """sha256 of an index's description, which holds those of all its files."""
    return sha256_of(index_folder(against) / DESCRIPTION)


def open_index(against: Path, settings: DedupSettings) -> list[SignatureFile]:
    """Open the files of an index.

    Args:
        against: the output or the `index/` of an earlier run.
        settings: of this run.

    Raises:
        DataError: there is none, it is of another version or of other settings, or a file is damaged.
    """
    folder = index_folder(against)
    described = _description(folder)
    if (found := described.get("version")) != VERSION:
        raise DataError(f"the index {folder} is of version {found}, expected {VERSION}; make it again with loam dedup")
    found, asked = described["settings"], json.loads(json.dumps(settings.of_index))
    if found != asked:
        names = sorted(name for name in {*found, *asked} if found.get(name) != asked.get(name))
        differences = ", ".join(f"{name} {found.get(name)}, asked for {asked.get(name)}" for name in names)
        raise DataError(f"the index {folder} was made with other settings: {differences}; use the same, or no index")
    for name, digest in described["files"].items():
        actual = sha256_of(folder / name) if (folder / name).is_file() else "no such file"
        if actual != digest:
            raise DataError(f"{folder / name}: expected sha256 {digest}, found {actual}; make the index again")
    files = [open_signatures(folder / name) for name in sorted(described["files"]) if name.endswith(".arrow")]
    beside = [file.path.with_suffix(suffix).name for file in files for suffix in BESIDE.get(settings.method, ())]
    if lacking := [name for name in beside if name not in described["files"]]:
        raise DataError(f"{folder / lacking[0]} belongs to the index, which does not list it; make the index again")
    return files


def _description(folder: Path) -> dict[str, Any]:
    """What the index says of itself."""
    path = folder / DESCRIPTION
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read: {error}; make the index again with loam dedup") from None
    if not isinstance(found, dict) or not all(isinstance(found.get(part, {}), dict) for part in PARTS):
        raise DataError(f"{path} does not describe an index; make the index again with loam dedup")
    lacking = [part for part in PARTS if part not in found]
    if lacking and found.get("version") == VERSION:
        raise DataError(f"{path} lacks {' and '.join(lacking)}; make the index again with loam dedup")
    if odd := [name for name in found.get("files", ()) if Path(name).name != name]:
        raise DataError(f"{path} names {odd[0]!r}, which is no file of its folder; make the index again")
    return found


def write_index(
    folder: Path,
    before: Sequence[SignatureFile],
    shards: Sequence[SignatureFile],
    dropped: Sequence[np.ndarray],
    settings: DedupSettings,
    write_shard: Callable[[SignatureFile, np.ndarray, Path, DedupSettings], None] | None = None,
) -> None:
    """Write an index: the files of those before, then those of each shard, and a description of them all.

    Args:
        folder: of the index; what is in it is removed.
        before: files of the indexes that the shards were deduplicated against.
        shards: what was deduplicated.
        dropped: for each shard, which of its documents were (bool).
        settings: of this run.
        write_shard: writes the files of one shard, given where its signatures are to lie; by default the signatures of
            what was kept, with its shingles or vectors.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, file in enumerate(before):
        for path in sorted(file.path.parent.glob(f"{file.path.stem}.*")):
            link(path, folder / f"{number:05d}{path.suffix}")
    for number, (file, gone) in enumerate(zip(shards, dropped, strict=True), start=len(before)):
        (write_shard or _write_kept)(file, gone, folder / f"{number:05d}.arrow", settings)
    _describe_index(folder, settings)


def _describe_index(folder: Path, settings: DedupSettings) -> None:
    """Finish an index."""
    described = {
        "version": VERSION,
        "settings": settings.of_index,
        "files": {path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    }
    write_atomically(folder / DESCRIPTION, json.dumps(described, indent=1, sort_keys=True).encode())


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _write_kept(file: SignatureFile, gone: np.ndarray, target: Path, settings: DedupSettings) -> None:
    schema, base = columns_of(settings), 0
    near = settings.method == "minhash"
    with (
        pa.ipc.new_file(target, schema) as writer,
        file.shingles.open("rb") as given,
        SignatureFile(target, 0).shingles.open("wb") as taken,
    ):
        for batch in file.batches(schema.names):
            kept = ~gone[base : base + batch.num_rows] & pc.is_valid(batch["key_0"]).to_numpy()
            base += batch.num_rows
            writer.write_table(batch.filter(pa.array(kept)))
            if near:
                sizes = batch["size"].to_numpy()
                numbers = np.fromfile(given, np.uint32, int(sizes.sum()))
                numbers[np.repeat(kept, sizes)].tofile(taken)
    if settings.method == "semantic":
        _write_vectors(file.vectors, target.with_suffix(".npy"), np.flatnonzero(~gone))


def _write_vectors(source: Path, target: Path, kept: np.ndarray, most: int = 1 << 14) -> None:
    given = np.load(source, mmap_mode="r", allow_pickle=False)
    taken = np.lib.format.open_memmap(target, "w+", given.dtype, (len(kept), given.shape[1]))
    for begin in range(0, len(kept), most):
        taken[begin : begin + most] = given[kept[begin : begin + most]]
    taken.flush()
