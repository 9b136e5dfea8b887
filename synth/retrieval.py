"""Searching a retrieval index: the passages of a corpus that say most about a question, best first.

Every posting of every term of the question counts (nothing is pruned, so the result is BM25's own), added up in blocks
of passages that stay in the cache; equal scores stand in the order of documents' ids, then of passages. Where documents
have embeddings, the two orders are joined by reciprocal ranks (Cormack et al. 2009, doi:10.1145/1571941.1572114).

Legend of suffixes: P passages, T pairs of term and passage, Q terms of a question, K results.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.compiled import inlined, kernel
from pipelines.errors import DataError
from synth.retrieval_index import REMEDY, read_receipt
from synth.retrieval_text import terms_of_text

BLOCK = 1 << 15  # passages whose scores are held at once


@dataclass(frozen=True)
class Passage:
    """A part of a document.

    Attributes:
        doc_id: of the document.
        start: its first character there.
        end: one past its last.
        text: what stands between.
    """

    doc_id: str
    start: int
    end: int
    text: str


class Hit(NamedTuple):
    """A passage that was found.

    Attributes:
        passage: its number.
        score: BM25, or the fused score.
    """

    passage: int
    score: float


class _Tables(NamedTuple):
    """What the kernels read: postings by term, and each passage's document and each document's rank by id."""

    passages_T: np.ndarray
    weights_T: np.ndarray
    docs_P: np.ndarray
    ranks_D: np.ndarray


@inlined
def _better(score, passage, other_score, other, tables):
    if score != other_score:
        return score > other_score
    one, two = tables.ranks_D[tables.docs_P[passage]], tables.ranks_D[tables.docs_P[other]]
    return one < two if one != two else passage < other


@inlined
def _holds(sorted_values, value):
    at = np.searchsorted(sorted_values, value)
    return at < len(sorted_values) and sorted_values[at] == value


@inlined
def _offer(found_K, scores_K, count, passage, score, tables):
    """Put a passage in its place among the best; return how many there are."""
    if count == len(found_K):
        if not _better(score, passage, scores_K[count - 1], found_K[count - 1], tables):
            return count
        count -= 1
    at = count
    while at and _better(score, passage, scores_K[at - 1], found_K[at - 1], tables):
        found_K[at], scores_K[at] = found_K[at - 1], scores_K[at - 1]
        at -= 1
    found_K[at], scores_K[at] = passage, score
    return count + 1


@kernel
def _look_up(terms_Q, terms_V, starts_V):
    """Where the postings of a question's terms begin and end, and how often it says each."""
    terms_Q.sort()
    at_Q, end_Q = np.empty(len(terms_Q), np.int64), np.empty(len(terms_Q), np.int64)
    times_Q, count = np.empty(len(terms_Q), np.float32), 0
    for q in range(len(terms_Q)):
        place = np.searchsorted(terms_V, terms_Q[q])
        if place == len(terms_V) or terms_V[place] != terms_Q[q]:
            continue
        if count and at_Q[count - 1] == starts_V[place]:
            times_Q[count - 1] += 1
        else:
            at_Q[count], end_Q[count], times_Q[count] = starts_V[place], starts_V[place + 1], 1
            count += 1
    return at_Q[:count], end_Q[:count], times_Q[:count]


@kernel
def _add_up(at_Q, end_Q, times_Q, tables, begin, end, sums):
    """Add up the scores of the passages of a block; `at_Q` moves on. Whether there was any."""
    touched, first = False, np.uint32(begin)
    for q in range(len(at_Q)):
        at, stop, times = at_Q[q], end_Q[q], times_Q[q]
        if end < len(tables.docs_P):
            stop = at + np.searchsorted(tables.passages_T[at:stop], np.uint32(end))
        for t in range(at, stop):
            sums[tables.passages_T[t] - first] += times * tables.weights_T[t]
        touched = touched or stop > at
        at_Q[q] = stop
    return touched


@kernel
def _search(at_Q, end_Q, times_Q, tables, barred_D, found_K, scores_K):
    """Find the best passages of documents that are not barred; return how many there are."""
    passages = len(tables.docs_P)
    sums = np.zeros(min(BLOCK, passages), np.float32)
    count, least = 0, np.float32(1e-30)
    for begin in range(0, passages, BLOCK):
        end = min(passages, begin + BLOCK)
        if not _add_up(at_Q, end_Q, times_Q, tables, begin, end, sums):
            continue
        for p in range(end - begin):
            if sums[p] >= least and not _holds(barred_D, tables.docs_P[begin + p]):
                count = _offer(found_K, scores_K, count, begin + p, sums[p], tables)
                least = scores_K[count - 1] if count == len(found_K) else least
        sums[:] = 0
    return count


@kernel
def _scores(at_Q, end_Q, times_Q, tables, first, sums):
    """The scores of neighbouring passages."""
    for q in range(len(at_Q)):
        postings = tables.passages_T[at_Q[q] : end_Q[q]]
        for t in range(np.searchsorted(postings, np.uint32(first)), len(postings)):
            place = np.int64(postings[t]) - first
            if place >= len(sums):
                break
            sums[place] += times_Q[q] * tables.weights_T[at_Q[q] + t]


class Index:
    """An index that was built by `retrieval_index.build_index`; its files are mapped, not read.

    Args:
        folder: of the index.

    Raises:
        DataError: there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.receipt, self.folder = read_receipt(folder), folder
        try:
            self._open(folder)
        except (OSError, ValueError, EOFError, SyntaxError, pa.ArrowInvalid) as error:  # numpy reads headers as Python
            raise DataError(f"the retrieval index {folder} is damaged ({error}); {REMEDY}") from None

    def _open(self, folder: Path) -> None:
        """Map the files, which must fit together: the kernels check no bounds."""
        loaded = {name: _mapped(folder, name) for name in ("terms", "starts", "docs", "ranks")}
        self.terms_V, self.starts_V = loaded["terms"], loaded["starts"]
        self.docs_P, self.ranks_D = loaded["docs"], loaded["ranks"]
        self._tables = _Tables(
            np.memmap(folder / "passages.u4", np.uint32, "r"),
            np.memmap(folder / "weights.f4", np.float32, "r"),
            loaded["docs"], loaded["ranks"],
        )  # fmt: skip
        self._source = pa.memory_map(str(folder / "passages.arrow"))
        self._batches = pa.ipc.open_file(self._source)
        sizes = [self._batches.get_batch(n).num_rows for n in range(self._batches.num_record_batches)]
        self._firsts = np.concatenate([[0], np.cumsum(sizes)])
        documents = pq.read_metadata(folder / "documents.parquet").num_rows
        found = (len(self.starts_V), len(self._tables.passages_T), len(self._tables.weights_T),
                 len(self.docs_P), len(self.ranks_D))  # fmt: skip
        postings = int(self.starts_V[-1]) if len(self.starts_V) else 0
        if found != (len(self.terms_V) + 1, postings, postings, int(self._firsts[-1]), documents):
            raise ValueError("its files do not fit together")

    @property
    def identity(self) -> str:
        """Of corpus, settings and the way of cutting."""
        return self.receipt["index"]

    @cached_property
    def ids(self) -> pa.Array:
        """Ids of the documents, by number."""
        return pq.read_table(self.folder / "documents.parquet")["id"].combine_chunks()

    @cached_property
    def _provenance(self) -> pa.Table:
        return pq.read_table(self.folder / "documents.parquet", columns=["source", "licence"])

    def provenance_of(self, doc_id: str) -> dict[str, str | None]:
        """Source and stated licence of a document; null where nothing is known of it."""
        number = self.number_of(doc_id)
        if number is None:
            return {"source": None, "licence": None}
        return self._provenance.slice(number, 1).to_pylist()[0]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.ids.to_pylist())}

    def number_of(self, doc_id: str) -> int | None:
        """The number of a document; None if the corpus has no such one."""
        return self._numbers.get(doc_id)

    def passage(self, number: int) -> Passage:
        """A passage by its number."""
        batch = int(np.searchsorted(self._firsts, number, side="right")) - 1
        row = self._batches.get_batch(batch).slice(number - int(self._firsts[batch]), 1).to_pylist()[0]
        return Passage(**row)

    def passages_of(self, document: int) -> range:
        """The numbers of a document's passages."""
        first, end = np.searchsorted(self.docs_P, [document, document + 1])
        return range(int(first), int(end))

    def search(self, question: str, most: int, barred: Iterable[int] = ()) -> list[Hit]:
        """The passages with the highest scores.

        Args:
            question: any text.
            most: how many.
            barred: numbers of documents that are left out.

        Returns:
            Best first; passages that share no term with the question are never among them.
        """
        at_Q, end_Q, times_Q = self._postings(question)
        found_K, scores_K = np.empty(most, np.int64), np.empty(most, np.float32)
        barred_D = np.array(sorted(barred), np.int64)
        count = _search(at_Q, end_Q, times_Q, self._tables, barred_D, found_K, scores_K) if most else 0
        return [Hit(*pair) for pair in zip(found_K[:count].tolist(), scores_K[:count].tolist(), strict=True)]

    def scores(self, question: str, passages: range) -> np.ndarray:
        """The scores of neighbouring passages: float32."""
        sums = np.zeros(len(passages), np.float32)
        _scores(*self._postings(question), self._tables, passages.start, sums)
        return sums

    def _postings(self, question: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _look_up(terms_of_text(question), self.terms_V, self.starts_V)

    def close(self) -> None:
        """Let go of the passages' file."""
        self._source.close()


def fuse(orders: Sequence[Sequence[int]], damping: int = 60) -> list[int]:
    """Join orders of the same things by reciprocal ranks; equal sums stand as in the first order, then by number."""
    sums: dict[int, float] = {}
    for order in orders:
        for rank, item in enumerate(order, 1):
            sums[item] = sums.get(item, 0.0) + 1 / (damping + rank)
    first = {item: rank for rank, item in enumerate(orders[0])} if orders else {}
    return sorted(sums, key=lambda item: (-round(sums[item], 12), first.get(item, len(first)), item))


def _mapped(folder: Path, name: str) -> np.ndarray:
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
