"""Encoded documents on their way to shards: the pieces that parallel tasks write, and the shuffle that merges them.

Each task encodes one input file into a folder of its own, a raw token file and an Arrow table per domain; the merge
draws rows from all of them in an order that a hash of (seed, id) decides, so neither workers nor files show in the
result. Tables and tokens are memory-mapped: the merge holds one batch and 32 bytes per document.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.block import ROW_GROUP_ROWS
from pipelines.document import ORIGIN, SCHEMA
from pipelines.indexed import IndexedWriter, origin_path

MERGE_TOKENS = 1 << 22  # tokens gathered at a time: about 80 MB with their positions
SIDECAR = pa.schema(
    [
        *(SCHEMA.field(name) for name in ("id", "url", "source", "domain")),
        ("origin", ORIGIN),
        ("tokens", pa.int64()),  # length of the sequence, end of text included
        ("bytes", pa.int64()),  # UTF-8 bytes of the text that it encodes: for bits per byte
    ]
)
PIECE = pa.schema([*SIDECAR, ("order", pa.uint64()), ("held", pa.uint64())])
TALLY = "tally.json"


@dataclass
class PieceWriter:
    """One task's output: `<folder>/<number>.bin` and `.arrow` for each domain, and a tally; appears whole, by rename.

    Args:
        folder: of this task.
        dtype: of the tokens.
    """

    folder: Path
    dtype: np.dtype
    _open: dict[str, tuple] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # The process id keeps a worker that outlives its killed parent out of the way of the one that resumes.
        self.temporary = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)

    def append(self, domain: str, tokens_T: np.ndarray, rows: pa.Table) -> None:
        """Append documents of one domain: their tokens end to end, and their `PIECE` rows."""
        if domain not in self._open:
            number = len(self._open)
            tokens = (self.temporary / f"{number}.bin").open("wb")
            table = pa.ipc.new_file(str(self.temporary / f"{number}.arrow"), PIECE)
            self._open[domain] = (tokens, table)
        tokens, table = self._open[domain]
        tokens.write(tokens_T.astype(self.dtype, copy=False).tobytes())
        table.write_table(rows)

    def close(self, tally: Mapping[str, int], silent: Sequence[str]) -> None:
        """Finish: `tally` counts documents, `silent` names domains that had a file without any."""
        for tokens, table in self._open.values():
            tokens.close()
            table.close()
        summary = {"domains": list(self._open), "silent": list(silent), **tally}
        (self.temporary / TALLY).write_text(json.dumps(summary))
        if self.folder.exists():  # the same bytes, by a task that was killed before it was marked complete
            shutil.rmtree(self.temporary)
        else:
            self.temporary.replace(self.folder)


def read_tally(folder: Path) -> dict:
    """What `PieceWriter.close` wrote."""
    return json.loads((folder / TALLY).read_bytes())


@dataclass(frozen=True)
class Gathered:
    """All pieces of one domain, memory-mapped end to end.

    Attributes:
        table: `PIECE` rows in the order of the input.
        tokens: their tokens.
        start_D: int64, where each row's tokens begin.
        length_D: int64, how many they are.
    """

    table: pa.Table
    tokens: np.ndarray
    start_D: np.ndarray
    length_D: np.ndarray

    def column(self, name: str) -> np.ndarray:
        """A numeric column of the table."""
        return self.table[name].to_numpy()


def gather(domain: str, folders: Sequence[Path], scratch: Path, dtype: np.dtype) -> Gathered:
    """Join a domain's pieces into one file each (two open files, however many tasks there were)."""
    scratch.mkdir(parents=True, exist_ok=True)
    with (scratch / "all.bin").open("wb") as tokens, pa.ipc.new_file(str(scratch / "all.arrow"), PIECE) as rows:
        for folder in folders:
            if domain not in (names := read_tally(folder)["domains"]):
                continue
            number = names.index(domain)
            with (folder / f"{number}.bin").open("rb") as piece:
                shutil.copyfileobj(piece, tokens, 1 << 20)
            with pa.memory_map(str(folder / f"{number}.arrow")) as source, pa.ipc.open_file(source) as piece:
                for batch in range(piece.num_record_batches):
                    rows.write_batch(piece.get_batch(batch))
    table = pa.ipc.open_file(pa.memory_map(str(scratch / "all.arrow"))).read_all()
    length_D = table["tokens"].to_numpy()
    return Gathered(table, np.memmap(scratch / "all.bin", dtype, "r"), np.cumsum(length_D) - length_D, length_D)


def write_shard(gathered: Gathered, rows_R: np.ndarray, prefix: Path, vocab_size: int) -> None:
    """Write the given rows, in the given order, as a shard with its origin sidecar."""
    with IndexedWriter(prefix, vocab_size) as writer:
        for batch_R in _batches(rows_R, gathered.length_D[rows_R]):
            lengths_R = gathered.length_D[batch_R]
            writer.append(gathered.tokens[_ranges(gathered.start_D[batch_R], lengths_R)], lengths_R)
    sidecar = origin_path(prefix)
    temporary = sidecar.with_name(f".{sidecar.name}.tmp")
    with pq.ParquetWriter(temporary, SIDECAR, compression="zstd") as writer:
        for first in range(0, len(rows_R), ROW_GROUP_ROWS):
            chosen = gathered.table.select(SIDECAR.names).take(pa.array(rows_R[first : first + ROW_GROUP_ROWS]))
            writer.write_table(chosen.combine_chunks(), row_group_size=ROW_GROUP_ROWS)
    temporary.replace(sidecar)


def _batches(rows_R: np.ndarray, lengths_R: np.ndarray) -> Iterator[np.ndarray]:
    """Cut rows where another `MERGE_TOKENS` tokens have passed."""
    group_R = np.cumsum(lengths_R) // MERGE_TOKENS
    cuts = np.flatnonzero(np.diff(group_R)) + 1
    yield from (part for part in np.split(rows_R, cuts) if len(part))


def _ranges(start_R: np.ndarray, length_R: np.ndarray) -> np.ndarray:
    """Positions start, start + 1, ... of every row, end to end."""
    before_R = np.cumsum(length_R) - length_R
    return np.repeat(start_R - before_R, length_R) + np.arange(int(length_R.sum()))
