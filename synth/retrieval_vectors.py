"""Embeddings that were given with a corpus, as a second order of documents beside BM25's.

Loam computes no embeddings: they are read from a column or a file, as semantic deduplication reads them. Similarity is
the exact cosine with every document, rounded to six digits so that equal vectors are equal whatever the order of sums.

Legend of suffixes: D documents of the index, E dimensions.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import DataError
from pipelines.files import sha256_of
from pipelines.semantic_dedup import listed_vectors, mapped_vectors
from synth.retrieval import Index

ROWS = 1 << 14


class Vectors:
    """Vectors of the documents of an index, of length 1, in a mapped file; and those of others, such as questions.

    Args:
        files: Parquet with `id` and `embedding` (a list of numbers), or one `.npy` (D, E) in the order of the corpus.
        index: whose documents they are of.
        target: for the mapped file.

    Raises:
        DataError: they cannot be read, or differ in dimensions.
    """

    def __init__(self, files: Sequence[Path], index: Index, target: Path) -> None:
        self.index, self.others, self.rows_DE = index, {}, np.zeros((0, 1), np.float32)
        self.digest = ",".join(sorted(sha256_of(file) for file in files))
        target.parent.mkdir(parents=True, exist_ok=True)
        mapped = None
        for file in files:
            for ids, numbers, given in _read(file, index.ids):
                if mapped is None:
                    mapped = np.lib.format.open_memmap(target, "w+", np.float32, (len(index.ids), given.shape[1]))
                if given.shape[1] != mapped.shape[1]:
                    raise DataError(
                        f"{file}: vectors of {given.shape[1]} numbers, expected {mapped.shape[1]} as before"
                    )
                with np.errstate(over="ignore", invalid="ignore"):  # looked at below
                    lengths = np.linalg.norm(given, axis=1, keepdims=True)
                if len(odd := np.flatnonzero(~np.isfinite(lengths[:, 0]))):
                    raise DataError(f"{file}: the embedding of {ids[odd[0]]!r} is not of finite numbers; take it out")
                given = given / np.where(lengths > 0, lengths, 1)
                inside = numbers >= 0
                mapped[numbers[inside]] = given[inside]
                self.others |= {ids[row]: given[row] for row in np.flatnonzero(~inside)}
        if mapped is not None:
            self.rows_DE = mapped

    def nearest(self, names: Iterable[str], most: int, barred: frozenset[int]) -> list[int]:
        """Documents by their similarity to the first name that has a vector, nearest first.

        Args:
            names: ids of documents of the corpus or of others.
            most: how many.
            barred: documents that are left out.
        """
        vector = next((found for name in names if (found := self._vector(name)) is not None), None)
        if vector is None:
            return []
        cosines_D = np.concatenate([self.rows_DE[at : at + ROWS] @ vector for at in range(0, len(self.rows_DE), ROWS)])
        cosines_D[list(barred)] = -2
        order = np.lexsort((self.index.ranks_D, -cosines_D.astype(np.float64).round(6)))[:most]
        return [int(d) for d in order if cosines_D[d] > 0]

    def _vector(self, name: str) -> np.ndarray | None:
        number = self.index.number_of(name)
        if number is None:
            return self.others.get(name)
        return self.rows_DE[number] if number < len(self.rows_DE) and self.rows_DE[number].any() else None


def _read(path: Path, ids: pa.Array) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Yield ids, numbers of the documents (-1: not in the index) and vectors."""
    if path.suffix == ".npy":
        vectors = mapped_vectors(path, len(ids))
        for at in range(0, len(ids), ROWS):
            some = np.asarray(vectors[at : at + ROWS], np.float32)
            yield ids[at : at + ROWS].to_pylist(), np.arange(at, at + len(some)), some
        return
    for names, given in listed_vectors(path):
        numbers = pc.fill_null(pc.index_in(names, value_set=ids), -1)
        yield names.to_pylist(), numbers.to_numpy(zero_copy_only=False).astype(np.int64), given
