"""Which documents to write about: a draw by hash among those that fit a prompt.

The draw depends on seed and id alone, so that more shards, other shard borders or another order change nothing about
documents that were drawn before, except for who is among the first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from pipelines.block import BATCH_ROWS
from pipelines.document import SCHEMA, conform
from pipelines.errors import DataError
from synth.recipe import SynthSettings
from synth.verification import has_control_tokens


@dataclass(frozen=True)
class Selection:
    """Documents to write about, and what became of the others.

    Attributes:
        documents: in the order of their hashes.
        seen: how many there were, and why some were not eligible.
    """

    documents: pa.Table
    seen: dict[str, int]


def select_documents(files: Sequence[Path], settings: SynthSettings, held_out: Sequence[Path] = ()) -> Selection:
    """Draw documents.

    Args:
        files: Parquet documents.
        settings: seed, number and bounds of length.
        held_out: Parquet files with the ids (column `id`) of documents that are not eligible: a sample holds its
            document, and would carry a held-out one into training.

    Raises:
        DataError: a file is not readable.
    """
    seen = {"documents": 0, "too_short": 0, "too_long": 0, "control_tokens": 0, "repeated_id": 0, "held_out": 0}
    barred = pa.chunked_array([pq.read_table(f, columns=["id"])["id"].combine_chunks() for f in held_out], pa.string())
    chosen, keys, known = SCHEMA.empty_table(), np.empty(0, np.uint64), set()
    for batch in _batches(files):
        seen["documents"] += batch.num_rows
        inside = pc.is_in(batch["id"], value_set=barred)
        seen["held_out"] += pc.sum(inside).as_py() or 0
        batch = batch.filter(pc.invert(inside))
        batch = _eligible(batch, settings, seen, known)
        fresh = [xxhash.xxh64_intdigest(name.encode(), settings.seed) for name in batch["id"].to_pylist()]
        keys = np.concatenate([keys, np.array(fresh, dtype=np.uint64)])
        order = np.argsort(keys, kind="stable")[: settings.max_documents]
        chosen, keys = pa.concat_tables([chosen, batch]).take(pa.array(order)), keys[order]
    return Selection(chosen, seen)


def _batches(files: Sequence[Path]) -> Iterator[pa.Table]:
    for file in files:
        try:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(BATCH_ROWS):
                    yield conform(pa.Table.from_batches([batch]), file=file)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{file} is not readable Parquet: {error}") from None


def _eligible(batch: pa.Table, settings: SynthSettings, seen: dict[str, int], known: set[str]) -> pa.Table:
    chars = pc.utf8_length(batch["text"])
    short, long = pc.less(chars, settings.min_chars), pc.greater(chars, settings.max_chars)
    seen["too_short"] += pc.sum(short).as_py() or 0
    seen["too_long"] += pc.sum(long).as_py() or 0
    batch = batch.filter(pc.invert(pc.or_(short, long)))
    clean = []
    for name, text in zip(batch["id"].to_pylist(), batch["text"].to_pylist(), strict=True):
        why = "repeated_id" if name in known else "control_tokens" if has_control_tokens(text) else None
        known.add(name)
        clean.append(why is None)
        if why is not None:
            seen[why] += 1
    return batch.filter(pa.array(clean, pa.bool_()))
