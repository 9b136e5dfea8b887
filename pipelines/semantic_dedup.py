"""Near duplicates in meaning: documents whose given embeddings have a cosine above a threshold.

Pairs are compared exactly within cells of k-means (SemDeDup: arXiv:2303.09540), each document in its `probes` nearest
cells, since a pair may lie on two sides of a border; with one cell every pair is compared. Everything runs over the
vectors in order of rank, on one thread of numpy, so that neither the order of the documents nor of the files matters.

Legend of suffixes: N documents in order of rank, D dimensions, C cells, M members of a cell.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import clusters
from pipelines.dedup_decide import Corpus, Decision, conclude
from pipelines.dedup_settings import DedupSettings, SemanticSettings
from pipelines.errors import DataError
from pipelines.signatures import SignatureFile

PER_CELL, SAMPLE, BLOCK = 1000, 50_000, 1024


def decide_by_embeddings(
    indexed: Sequence[SignatureFile], shards: Sequence[SignatureFile], embeddings: Sequence[Path],
    settings: DedupSettings, scratch: Path,
) -> Decision:  # fmt: skip
    """Decide.

    Args:
        indexed: signatures of earlier runs, with their vectors: their documents are never dropped.
        shards: signatures of the documents; their vectors are written beside them.
        embeddings: Parquet files with `id` and `embedding` (a list of numbers), or one `.npy` (N, D) with the vectors
            in the order of the documents.
        settings: what counts as a duplicate.
        scratch: folder for the vectors in order of rank.

    Raises:
        DataError: there are none, or they do not fit the documents or the index.
    """
    corpus = Corpus.of(indexed, shards)
    table = corpus.light(np.arange(int(corpus.bases[-1])))
    order_N = clusters.rank_order(table)
    _write_vectors(shards, embeddings, table["id"].combine_chunks().slice(corpus.old))
    vectors_ND = _in_order(corpus, order_N, scratch / "vectors.npy")
    forest = clusters.new_forest(len(order_N))
    if len(order_N) > corpus.old:
        _compare(vectors_ND, settings.semantic, corpus.old, forest)
    metrics = {"documents": len(order_N) - corpus.old, "indexed": corpus.old}
    metrics |= {"compared": int(forest.tally[0]), "similar": int(forest.tally[1])}
    return conclude(table, order_N, order_N, forest, corpus.old, corpus, metrics, False)


def _write_vectors(shards: Sequence[SignatureFile], paths: Sequence[Path], ids: pa.Array) -> None:
    """Write the vectors of each shard, of length 1, beside its signatures."""
    if len(ids) and not paths:
        raise DataError("method semantic needs embeddings: --embeddings FILE (Parquet with id and embedding, or .npy)")
    bases = np.cumsum([0, *(file.rows for file in shards)])
    width, outs, seen = 0, [], np.zeros(len(ids), bool)
    for path in paths if len(ids) else ():
        for rows, given in _read(path, ids):
            if not outs:
                width = given.shape[1]
                outs = [_vector_file(file.vectors, file.rows, width) for file in shards]
            if given.shape[1] != width:
                raise DataError(f"{path}: vectors of {given.shape[1]} numbers, expected {width} as before")
            with np.errstate(over="ignore", invalid="ignore"):  # looked at below
                lengths = np.linalg.norm(given, axis=1, keepdims=True)
            if len(odd := np.flatnonzero(~np.isfinite(lengths[:, 0]))):
                name = ids[int(rows[odd[0]])].as_py()
                raise DataError(f"{path}: the embedding of {name!r} is not of finite numbers; take these documents out")
            unit = given / np.where(lengths > 0, lengths, 1)
            of_shard = np.searchsorted(bases, rows, side="right") - 1
            for shard in np.unique(of_shard):
                here = of_shard == shard
                outs[shard][rows[here] - bases[shard]] = unit[here]
            seen[rows] = True
    if not seen.all():
        missing = ids[int(np.flatnonzero(~seen)[0])].as_py()
        raise DataError(f"{paths[0]}: no embedding for {int((~seen).sum())} documents, such as {missing!r}")
    for file in shards[len(outs) :]:  # there is no document
        _vector_file(file.vectors, 0, 1)


def _vector_file(path: Path, rows: int, width: int) -> np.ndarray:
    return np.lib.format.open_memmap(path, "w+", np.float32, (rows, width))


def _in_order(corpus: Corpus, order_N: np.ndarray, target: Path) -> np.ndarray:
    """The vectors by rank, in a mapped file: float32 (N, D)."""
    ranks = np.empty(len(order_N), np.int64)
    ranks[order_N] = np.arange(len(order_N))
    out: np.ndarray | None = None
    for file, base in zip(corpus.files, corpus.bases, strict=False):
        given = np.load(file.vectors, mmap_mode="r", allow_pickle=False)
        if not len(given):
            continue
        if out is None:
            out = _vector_file(target, len(order_N), given.shape[1])
        if given.shape[1] != out.shape[1]:
            expected = f"expected {out.shape[1]} as in the index; take the same model's embeddings"
            raise DataError(f"the embeddings are vectors of {given.shape[1]} numbers, {expected}")
        for begin in range(0, len(given), 1 << 14):
            some = given[begin : begin + (1 << 14)]
            out[ranks[base + begin : base + begin + len(some)]] = some
    return np.zeros((0, 1), np.float32) if out is None else out


def _read(path: Path, ids: pa.Array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows of documents and their vectors."""
    if path.suffix == ".npy":
        vectors = mapped_vectors(path, len(ids))
        for begin in range(0, len(ids), 1 << 14):
            rows = np.arange(begin, min(begin + (1 << 14), len(ids)))
            yield rows, np.asarray(vectors[rows], np.float32)
        return
    for names, given in listed_vectors(path):
        places = pc.index_in(names, value_set=ids)
        known = pc.is_valid(places)
        rows = places.filter(known).to_numpy(zero_copy_only=False).astype(np.int64)
        if len(rows):
            yield rows, given[known.to_numpy(zero_copy_only=False)]


def mapped_vectors(path: Path, rows: int) -> np.ndarray:
    """A `.npy` with as many vectors, mapped: (rows, dimensions).

    Raises:
        DataError: it is no such file, or its array is none of numbers or of another shape.
    """
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:  # numpy reads the header as Python
        raise DataError(f"{path} is not a readable .npy file: {error}; write it with numpy.save") from None
    if vectors.ndim != 2 or len(vectors) != rows:
        raise DataError(f"{path}: an array of shape {vectors.shape}, expected ({rows}, dimensions)")
    if vectors.dtype.kind not in "fiu":
        raise DataError(f"{path}: an array of {vectors.dtype}, expected numbers")
    return vectors


def listed_vectors(path: Path) -> Iterator[tuple[pa.Array, np.ndarray]]:
    """Yield the ids and vectors (float32) of a Parquet file with `id` and `embedding`, batch by batch.

    Raises:
        DataError: it cannot be read, or its vectors differ in length.
    """
    try:
        with pq.ParquetFile(path) as file:
            if missing := {"id", "embedding"} - set(file.schema_arrow.names):
                raise DataError(f"{path}: columns id and embedding are needed; {', '.join(sorted(missing))} is missing")
            for batch in file.iter_batches(1 << 14, columns=["id", "embedding"]):
                if not len(batch):
                    continue
                values = batch["embedding"]
                lengths = pc.min_max(pc.fill_null(pc.list_value_length(values), -1)).as_py()
                if lengths["min"] != lengths["max"] or lengths["min"] < 1:
                    raise DataError(f"{path}: vectors of different lengths, or none")
                flat = values.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
                yield batch["id"].cast(pa.string()), flat.reshape(len(values), -1)
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is not a readable Parquet file of embeddings: {error}") from None


def _centres(vectors_ND: np.ndarray, asked: SemanticSettings) -> np.ndarray:
    """Centres of spherical k-means over a sample, float32 (C, D)."""
    count = asked.cells or max(1, len(vectors_ND) // PER_CELL)
    generator = np.random.default_rng(asked.seed)
    chosen = np.sort(generator.choice(len(vectors_ND), min(SAMPLE, len(vectors_ND)), replace=False))
    sample = np.asarray(vectors_ND[chosen])
    centres_CD = sample[np.sort(generator.choice(len(sample), min(count, len(sample)), replace=False))]
    for _ in range(asked.iterations if len(centres_CD) > 1 else 0):
        nearest = _nearest_cells(sample, centres_CD, 1)[:, 0]
        sums_CD = np.zeros_like(centres_CD)
        np.add.at(sums_CD, nearest, sample)
        lengths = np.linalg.norm(sums_CD, axis=1, keepdims=True)
        centres_CD = np.where(lengths > 0, sums_CD / np.where(lengths > 0, lengths, 1), centres_CD)
    return centres_CD


def _nearest_cells(vectors_ND: np.ndarray, centres_CD: np.ndarray, probes: int) -> np.ndarray:
    """The cells of the nearest centres, nearest first: int64 (N, probes)."""
    probes = min(probes, len(centres_CD))
    found = [np.zeros((0, probes), np.int64)]
    for begin in range(0, len(vectors_ND), BLOCK):
        cosines = np.asarray(vectors_ND[begin : begin + BLOCK]) @ centres_CD.T
        found.append(np.argsort(-cosines, axis=1, kind="stable")[:, :probes])
    return np.concatenate(found)


def _compare(vectors_ND: np.ndarray, asked: SemanticSettings, settled: int, forest: clusters.Forest) -> None:
    """Join the pairs of each cell that are similar enough, but for those of two settled documents."""
    centres_CD = _centres(vectors_ND, asked)
    cells_NP = _nearest_cells(vectors_ND, centres_CD, asked.probes)
    for cell in range(len(centres_CD)):
        members_M = np.flatnonzero((cells_NP == cell).any(axis=1))
        for begin in range(0, len(members_M), BLOCK):
            some = vectors_ND[members_M[begin : begin + BLOCK]]
            for other in range(begin, len(members_M), BLOCK):
                cosines = some @ vectors_ND[members_M[other : other + BLOCK]].T
                forest.tally[0] += cosines.size
                one, two = np.nonzero(cosines >= asked.threshold - 1e-6)  # rounding must not part equal vectors
                ones, twos = members_M[begin + one], members_M[other + two]
                before = (ones < twos) & (twos >= settled)
                similarity = np.minimum(cosines[one, two][before].astype(np.float64), 1.0).round(6)
                clusters.join_all(ones[before], twos[before], similarity, settled, forest)
