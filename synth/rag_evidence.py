"""Evidence for a question: the right passage, and passages of other documents that look like it.

Distractors are what retrieval ranks highest outside the source, which makes them hard; so anything that could hold the
answer must be kept out of them. The source's cluster of near duplicates is left out where deduplication says what that
is, and each candidate is compared with the source anyway, shingle by shingle: without clusters, or with a corpus that
was never deduplicated, a copy of the right passage would else make "insufficient evidence" a lie.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipelines.errors import DataError
from pipelines.manifest import digest_of
from pipelines.minhash import Shape, sign
from synth.rag_checks import Pack, holds, is_yes_no
from synth.retrieval import Index, Passage, fuse
from synth.retrieval_settings import RagSettings
from synth.retrieval_text import cut_passages
from synth.retrieval_vectors import Vectors
from synth.verification import has_control_tokens

CANDIDATES, MOST_CANDIDATES = 64, 4096
_SHINGLES = Shape(ngram=5, bands=1, rows=1)  # words, or characters of scripts without spaces


@dataclass(frozen=True)
class Source:
    """Where a question comes from.

    Attributes:
        doc_id: the document that answers it.
        text: of it.
        passage: the part that holds the answer.
    """

    doc_id: str
    text: str
    passage: Passage


@dataclass(frozen=True)
class Found:
    """Evidence for a question.

    Attributes:
        pack: the question with its passages.
        copies: candidates left out since they are near duplicates of the source, by shingles.
        telling: candidates left out since they hold the answer.
    """

    pack: Pack
    copies: int
    telling: int


class Evidence:
    """Makes packs of evidence.

    Args:
        index: of the corpus.
        settings: how many distractors, and how often the right passage is missing.
        seed: of what is missing and of the order.
        clusters: `clusters.parquet` of `loam dedup`, if there is one.
        vectors: embeddings of the documents, if there are any.
        held_out: Parquet files with the ids of documents that must not be evidence.
    """

    def __init__(
        self, index: Index, settings: RagSettings, seed: int,
        clusters: Path | None = None, vectors: Vectors | None = None, held_out: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        self.index, self.settings, self.seed, self.vectors = index, settings, seed, vectors
        self._cluster_of, self._members = _read_clusters(clusters) if clusters else ({}, {})
        names = [name for file in held_out for name in pq.read_table(file, columns=["id"])["id"].to_pylist()]
        self.held_out = frozenset(number for name in names if (number := index.number_of(name)) is not None)

    @property
    def digest(self) -> str:
        """Of who is kept apart from whom."""
        held_out = sorted(self.index.ids[number].as_py() for number in self.held_out)
        return digest_of({"clusters": sorted(self._cluster_of.items()), "held_out": held_out})

    def cut(self, doc_id: str, text: str) -> list[Passage]:
        """The passages of a document, cut as the corpus is."""
        spans = cut_passages(pa.array([text]), self.settings.retrieval.passage_bytes)[:, 3:].tolist()
        return [Passage(doc_id, start, end, text[start:end]) for start, end in spans]

    def source_of(self, doc_id: str, question: str, references: Sequence[str]) -> Source | None:
        """The passage of a known document that answers a question: it holds the reference, or shares most with it."""
        number = self.index.number_of(doc_id)
        if number is None or number in self.held_out:
            return None
        numbers = self.index.passages_of(number)
        passages = [self.index.passage(n) for n in numbers]
        if not passages:
            return None
        told = [_tells(passage.text, references) for passage in passages]
        ranked = sorted(zip(told, self.index.scores(question, numbers), passages, strict=True),
                        key=lambda one: (-one[0], -one[1], one[2].start))  # fmt: skip
        return Source(doc_id, "\n".join(passage.text for passage in passages), ranked[0][2])

    def searched(self, question: str, references: Sequence[str]) -> Source | None:
        """The best passage of the whole corpus that holds a reference; None if none does."""
        for hit in self.index.search(question, CANDIDATES, self.held_out):
            passage = self.index.passage(hit.passage)
            if _tells(passage.text, references):
                return self.source_of(passage.doc_id, question, references)
        return None

    def pack(
        self, name: str, question: str, references: Sequence[str], source: Source, language: str
    ) -> Found | str:  # fmt: skip
        """Put evidence together.

        Args:
            name: of the question; with the seed it decides what is missing and the order.
            question: what is asked.
            references: right answers.
            source: where the answer is.
            language: of the question.

        Returns:
            The pack, or `no_distractor`.
        """
        others, copies, telling = self._distractors(name, question, references, source)
        if not others:
            return "no_distractor"
        absent = self._draw(name, "absent") < self.settings.absent_share
        kept = others if absent else [source.passage, *others[: self.settings.distractors]]
        ordered = sorted(kept, key=lambda one: self._draw(name, f"{one.doc_id}\0{one.start}"))
        oracle = 0 if absent else ordered.index(source.passage) + 1
        return Found(Pack(question, tuple(ordered), oracle, tuple(references), language), copies, telling)

    def _draw(self, name: str, what: str) -> float:
        return xxhash.xxh64_intdigest(f"{name}\0{what}".encode(), self.seed) / 2**64

    def _distractors(
        self, name: str, question: str, references: Sequence[str], source: Source
    ) -> tuple[list[Passage], int, int]:
        """The best passages of other documents, one of each: one more than wanted, if there are so many."""
        against = [_shingles(source.text), _shingles(source.passage.text)]
        found: list[Passage] = []
        copies = telling = 0
        for passage in self._candidates(name, question, source):
            if has_control_tokens(passage.text):
                continue
            if self.is_copy(passage.text, *against):
                copies += 1
            elif _tells(passage.text, references):
                telling += 1
            else:
                found.append(passage)
            if len(found) > self.settings.distractors:
                break
        return found, copies, telling

    def is_copy(self, text: str, source: np.ndarray, oracle: np.ndarray) -> bool:
        """Whether a passage shares too many shingles with the source, or holds too many of the right passage's."""
        own = _shingles(text)
        inside = len(np.intersect1d(own, source, assume_unique=True)) / max(1, len(own))
        taken = len(np.intersect1d(own, oracle, assume_unique=True)) / max(1, len(oracle))
        return max(inside, taken) >= self.settings.near_duplicate

    def _candidates(self, name: str, question: str, source: Source) -> Iterator[Passage]:
        """Passages outside the source and its cluster, best first, the best of each document."""
        mates = self._members.get(self._cluster_of.get(source.doc_id, ""), ())
        numbers = (self.index.number_of(one) for one in (source.doc_id, *mates))
        barred = self.held_out | {number for number in numbers if number is not None}
        most, given = CANDIDATES, 0
        while True:
            hits = self.index.search(question, most, barred)
            best: dict[int, int] = {}
            for hit in hits:
                best.setdefault(int(self.index.docs_P[hit.passage]), hit.passage)
            documents = self._order(list(best), name, source.doc_id, barred, most)
            for document in documents[given:]:
                if document not in best:
                    passages = self.index.passages_of(document)
                    best[document] = passages[int(np.argmax(self.index.scores(question, passages)))]
                yield self.index.passage(best[document])
            if len(hits) < most or most >= MOST_CANDIDATES or self.vectors:
                return
            most, given = 4 * most, len(documents)

    def _order(self, documents: list[int], name: str, doc_id: str, barred: frozenset[int], most: int) -> list[int]:
        near = self.vectors.nearest((name, doc_id), most, barred) if self.vectors else []
        near = [document for document in near if len(self.index.passages_of(document))]
        return fuse([documents, near]) if near else documents


def _tells(text: str, references: Sequence[str]) -> bool:
    return any(not is_yes_no(one) and holds(text, one) for one in references)


def _shingles(text: str) -> np.ndarray:
    return sign(pa.array([text]), _SHINGLES).shingles


def _read_clusters(path: Path) -> tuple[Mapping[str, str], Mapping[str, list[str]]]:
    try:
        table = pq.read_table(path, columns=["id", "cluster"])
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise DataError(
            f"--clusters {path}: expected Parquet with columns id and cluster, as loam dedup writes it: {error}"
        ) from None
    cluster_of = dict(zip(table["id"].to_pylist(), table["cluster"].to_pylist(), strict=True))
    members: dict[str, list[str]] = defaultdict(list)
    for one, cluster in cluster_of.items():
        members[cluster].append(one)
    return cluster_of, members
