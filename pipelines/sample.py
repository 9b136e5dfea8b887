"""Drawing a sample of documents with an even share of bytes for every domain.

Documents are taken by a hash of (seed, id), lowest first, until a domain's share is full; what small domains leave over
goes to the larger ones. So the sample does not depend on how documents are spread over files. Two passes: sizes and
hashes first, texts of the chosen rows second.
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
from pipelines.errors import DataError
from pipelines.execute import parts_of

DOCUMENT_CAP = 1 << 20  # characters of one document that are used: a single huge one must not be the whole sample


def hash_ids(ids: pa.ChunkedArray | pa.Array, salt: str) -> np.ndarray:
    """uint64 (documents,): a hash of (salt, id) that is the same on every machine and in every version."""
    prefix, digest = f"{salt}\0".encode(), xxhash.xxh3_64_intdigest
    names = ids.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
    return np.fromiter((digest(prefix + name) for name in names), np.uint64, len(names))


def source_ids(batch: pa.Table) -> pa.ChunkedArray | pa.Array:
    """Id of the document that each row is made of, which decides its split: a sample of synthesis holds its document.

    Args:
        batch: with `id`, and `metadata` that hold `doc_id` where a row was made from another document.
    """
    if "metadata" not in batch.schema.names or batch["metadata"].null_count == batch.num_rows:
        return batch["id"]
    named = pc.map_lookup(batch["metadata"], pa.scalar("doc_id"), "first")
    return pc.coalesce(named, batch["id"])


def domains_of(batch: pa.Table | pa.RecordBatch, part: str, name: str | None = None) -> list[str]:
    """The domain of each row: `name` if given, else the column `domain`, else the part's folder, else `documents`."""
    fallback = part.rpartition("/")[0] or "documents"
    if name is not None or "domain" not in batch.schema.names:
        return [name or fallback] * batch.num_rows
    return [domain or fallback for domain in batch.column("domain").to_pylist()]


@dataclass(frozen=True)
class Sample:
    """Chosen documents.

    Attributes:
        files: where they lie.
        rows: for each file, the chosen row numbers, ascending.
        totals: documents and bytes per domain.
    """

    files: tuple[Path, ...]
    rows: tuple[np.ndarray, ...]
    totals: dict[str, dict[str, int]]

    def texts(self) -> Iterator[list[str]]:
        """The texts, batch by batch, in the order of files and rows."""
        for file, rows in zip(self.files, self.rows, strict=True):
            first = 0
            for batch in _batches(file, ["text"]):
                here = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + batch.num_rows)] - first
                first += batch.num_rows
                if len(here):
                    chosen = pc.fill_null(batch.column("text").take(pa.array(here)), "")
                    yield pc.utf8_slice_codeunits(chosen, 0, DOCUMENT_CAP).to_pylist()


def balanced_sample(files: Sequence[Path], sample_bytes: int, seed: int) -> Sample:
    """Choose documents.

    Args:
        files: Parquet documents.
        sample_bytes: UTF-8 bytes of text to choose at most; every domain gets one document at least.
        seed: decides which.

    Raises:
        DataError: no document has any text.
    """
    names: dict[str, int] = {}
    found = [_measure(file, part, seed, names) for file, part in zip(files, parts_of(files), strict=True)]
    table = np.concatenate(found) if found else np.zeros(0, _MEASURE)
    if not int(table["bytes"].sum()):
        raise DataError(f"no text to train a tokenizer on in {len(files)} files; give documents, or a tokenizer's path")
    budget_by_domain = _shares(np.bincount(table["domain"], table["bytes"], len(names)), sample_bytes)
    chosen = np.zeros(len(table), bool)
    totals = {}
    for name, domain in sorted(names.items()):
        mine = np.flatnonzero(table["domain"] == domain)
        mine = mine[np.argsort(table["hash"][mine], kind="stable")]
        taken = mine[: max(1, int(np.searchsorted(np.cumsum(table["bytes"][mine]), budget_by_domain[domain], "right")))]
        chosen[taken] = True
        totals[name] = {"documents": len(taken), "bytes": int(table["bytes"][taken].sum())}
    ends = np.cumsum([len(f) for f in found])
    rows = tuple(np.flatnonzero(part) for part in np.split(chosen, ends[:-1]))
    return Sample(tuple(files), rows, totals)


_MEASURE = np.dtype([("domain", np.int64), ("hash", np.uint64), ("bytes", np.int64)])


def _measure(file: Path, part: str, seed: int, names: dict[str, int]) -> np.ndarray:
    """One record per row of `file`; numbers new domains in `names`."""
    pieces = [np.zeros(0, _MEASURE)]
    for batch in _batches(file, ["id", "text", "domain"]):
        piece = np.zeros(batch.num_rows, _MEASURE)
        piece["domain"] = [names.setdefault(d, len(names)) for d in domains_of(batch, part)]
        piece["hash"] = hash_ids(batch.column("id"), f"{seed}/sample")
        text = pc.utf8_slice_codeunits(pc.fill_null(batch.column("text"), ""), 0, DOCUMENT_CAP)
        piece["bytes"] = pc.binary_length(text).to_numpy(zero_copy_only=False)
        pieces.append(piece)
    return np.concatenate(pieces)


def _shares(sizes: np.ndarray, total: float) -> np.ndarray:
    """Split `total` evenly; what a small domain cannot use goes to the others."""
    shares, remaining = np.zeros(len(sizes)), total
    for left, domain in zip(range(len(sizes), 0, -1), np.argsort(sizes, kind="stable"), strict=True):
        shares[domain] = min(float(sizes[domain]), remaining / left)
        remaining -= float(shares[domain])
    return shares


def _batches(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(file) as parquet:
            have = [name for name in columns if name in parquet.schema_arrow.names]
            if missing := {"id", "text"} & set(columns) - set(have):
                raise DataError(f"{file}: documents need a column {sorted(missing)[0]!r}; found: {', '.join(have)}")
            yield from parquet.iter_batches(BATCH_ROWS, columns=have)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} is not readable Parquet: {error}") from None
