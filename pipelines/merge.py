"""From pieces to shards: a global shuffle of each domain's documents, and shards of at most so many tokens.

The order is that of a hash of (seed, id), so neither workers nor the cut into input files show in the result. Two
rounds of parallel tasks: one for each domain puts its pieces into one file (two open files, however many tasks there
were) and decides which rows make which shard; one for each shard copies its documents out of the memory-mapped file.
Legend of suffixes: D documents of a domain, R rows of a shard, T tokens.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.pipeline.base import PipelineStep

from pipelines.block import ROW_GROUP_ROWS
from pipelines.execute import SCRATCH, run_blocks
from pipelines.files import write_atomically
from pipelines.indexed import IndexedWriter, origin_path
from pipelines.pieces import PIECE, SIDECAR, read_tally

BATCH_TOKENS = 1 << 22  # copied at a time
TOKENS_PER_WORKER = 50_000_000  # fewer are not worth another process
HoldOut = Callable[[np.ndarray], np.ndarray]


class Part(NamedTuple):
    """One shard to be written: rows `first` to `last` (of the order) of a split of a domain."""

    domain: int
    split: str
    name: str
    first: int
    last: int


def merge(
    domains: Sequence[str], folders: Sequence[Path], work: Path, dtype: np.dtype, vocab_size: int,
    splits: Sequence[str], held_out: HoldOut, max_tokens: int | None, workers: int,
) -> dict[str, dict[str, dict[str, int]]]:  # fmt: skip
    """Write the shards of all domains below `work`.

    Args:
        domains: names, sorted; each has a piece somewhere.
        folders: pieces of all tasks.
        work: the step's working folder; a shard is `<split>/<domain>`, or `<split>/<domain>-00000-of-00003` and so on
            where there are several.
        dtype: of the pieces' tokens.
        vocab_size: number of token ids.
        splits: names of the folders; "" for none.
        held_out: hashes to bool (D,): which documents go to `validation`.
        max_tokens: of a shard; a longer document has one of its own. None: one shard for a domain.
        workers: processes.

    Returns:
        For each domain and split (`train` where the split has no name) documents, tokens, bytes and shards.
    """
    scratch = work / SCRATCH / "merge"
    sizes = [sum((folder / f"{number}.bin").stat().st_size for folder, number in _pieces(name, folders))
             for name in domains]  # fmt: skip
    workers = min(workers, 1 + sum(sizes) // dtype.itemsize // TOKENS_PER_WORKER)
    gathering = GatherDomains(domains, folders, scratch, splits, held_out, max_tokens)
    run_blocks([gathering], len(domains), work, workers, "gather")
    plans = [json.loads((scratch / str(d) / "plan.json").read_bytes()) for d in range(len(domains))]
    parts = [Part(d, *part) for d, plan in enumerate(plans) for part in plan["parts"]]
    run_blocks([WriteShards(parts, scratch, work, dtype, vocab_size)], len(parts), work, workers, "write")
    return {domain: plan["told"] for domain, plan in zip(domains, plans, strict=True)}


class GatherDomains(PipelineStep):
    """Task d joins the pieces of domain d, and decides its order and its shards."""

    type = "merge"
    name = "gather"

    def __init__(
        self, domains: Sequence[str], folders: Sequence[Path], scratch: Path, splits: Sequence[str], held_out: HoldOut,
        max_tokens: int | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.domains = domains
        self.folders = folders
        self.scratch = scratch
        self.splits = splits
        self.held_out = held_out
        self.max_tokens = max_tokens

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Write `all.bin`, `all.arrow`, one `<split>.npy` of rows each, and `plan.json`."""
        folder, domain = self.scratch / str(rank), self.domains[rank]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _join(domain, self.folders, folder)
        table = _rows(folder)
        order_D = np.argsort(table["order"].to_numpy(), kind="stable")
        if "validation" in self.splits:
            held_D = self.held_out(table["held"].to_numpy())
        else:
            held_D = np.zeros(len(order_D), bool)
        told: dict[str, Any] = {}
        parts: list[tuple[str, str, int, int]] = []
        for split in self.splits:
            rows_R = order_D[held_D[order_D] == (split == "validation")]
            if not len(rows_R):
                continue
            np.save(folder / f"{split or 'train'}.npy", rows_R)
            length_R = table["tokens"].to_numpy()[rows_R]
            cuts = _cuts(length_R, self.max_tokens)
            for number, (first, last) in enumerate(cuts):
                name = domain if len(cuts) == 1 else f"{domain}-{number:05d}-of-{len(cuts):05d}"
                parts.append((split, name, first, last))
            size = int(table["bytes"].to_numpy()[rows_R].sum())
            told[split or "train"] = {"documents": len(rows_R), "tokens": int(length_R.sum()), "bytes": size}
            if self.max_tokens is not None:
                told[split or "train"]["shards"] = len(cuts)
        write_atomically(folder / "plan.json", json.dumps({"told": told, "parts": parts}).encode())


class WriteShards(PipelineStep):
    """Task p writes one shard with its sidecar."""

    type = "merge"
    name = "write"

    def __init__(self, parts: Sequence[Part], scratch: Path, work: Path, dtype: np.dtype, vocab_size: int) -> None:
        super().__init__()
        self.parts = parts
        self.scratch = scratch
        self.work = work
        self.dtype = dtype
        self.vocab_size = vocab_size

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        """Copy the rows."""
        part = self.parts[rank]
        folder = self.scratch / str(part.domain)
        table = _rows(folder)
        rows_R = np.load(folder / f"{part.split or 'train'}.npy", mmap_mode="r")[part.first : part.last]
        tokens = np.memmap(folder / "all.bin", self.dtype, "r").view(np.ndarray)
        length_D = table["tokens"].to_numpy()
        _write(table, tokens, length_D, np.ascontiguousarray(rows_R), self.work / part.split / part.name,
               self.vocab_size)  # fmt: skip


def _cuts(length_R: np.ndarray, max_tokens: int | None) -> list[tuple[int, int]]:
    """First and last row of each shard: as many documents as fit, one at least."""
    if max_tokens is None:
        return [(0, len(length_R))]
    end_R = np.cumsum(length_R)
    cuts, first = [], 0
    while first < len(length_R):
        before = int(end_R[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(end_R, before + max_tokens, "right")))
        cuts.append((first, last))
        first = last
    return cuts


def _pieces(domain: str, folders: Sequence[Path]) -> Iterator[tuple[Path, int]]:
    """Folder and number of each piece of a domain."""
    for folder in folders:
        if domain in (names := read_tally(folder)["domains"]):
            yield folder, names.index(domain)


def _join(domain: str, folders: Sequence[Path], into: Path) -> None:
    with (into / "all.bin").open("wb") as tokens, pa.ipc.new_file(str(into / "all.arrow"), PIECE) as rows:
        for folder, number in _pieces(domain, folders):
            with (folder / f"{number}.bin").open("rb") as piece:
                shutil.copyfileobj(piece, tokens, 1 << 20)
            with pa.memory_map(str(folder / f"{number}.arrow")) as source, pa.ipc.open_file(source) as piece:
                for batch in range(piece.num_record_batches):
                    rows.write_batch(piece.get_batch(batch))


def _rows(folder: Path) -> pa.Table:
    """`PIECE` rows of a domain in the order of the input, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(folder / "all.arrow"))).read_all()


def _write(
    table: pa.Table, tokens_T: np.ndarray, length_D: np.ndarray, rows_R: np.ndarray, prefix: Path, vocab_size: int
) -> None:
    """Write the given rows, in the given order, as a shard with its origin sidecar."""
    start_D = np.cumsum(length_D) - length_D
    with IndexedWriter(prefix, vocab_size) as writer:
        for batch_R in _batches(rows_R, length_D[rows_R]):
            length_R = length_D[batch_R]
            first_R = start_D[batch_R].tolist()
            copied = [tokens_T[a:b] for a, b in zip(first_R, (start_D[batch_R] + length_R).tolist(), strict=True)]
            writer.append(np.concatenate(copied), length_R)
    sidecar = origin_path(prefix)
    temporary = sidecar.with_name(f".{sidecar.name}.tmp")
    with pq.ParquetWriter(temporary, SIDECAR, compression="zstd") as writer:
        for first in range(0, len(rows_R), ROW_GROUP_ROWS):
            chosen = table.select(SIDECAR.names).take(pa.array(rows_R[first : first + ROW_GROUP_ROWS]))
            writer.write_table(chosen.combine_chunks(), row_group_size=ROW_GROUP_ROWS)
    temporary.replace(sidecar)


def _batches(rows_R: np.ndarray, lengths_R: np.ndarray) -> Iterable[np.ndarray]:
    """Cut rows where another `BATCH_TOKENS` tokens have passed."""
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths_R) // BATCH_TOKENS)) + 1
    return (part for part in np.split(rows_R, cuts) if len(part))
