"""Cutting duplicate passages out of texts: what the methods `lines` and `substring` share.

A passage is a span of bytes of one document that an earlier one (by rank) holds, too. Spans lie on disk, one file for
each shard, and are merged when the shard is read again; how they are cut is in `text_cuts`. Where documents are to be
dropped as a whole, they are taken in order of rank, and a copy in a dropped one does not count: no passage is lost.

The one choice that matters for a killed run: spans are found under another name and appear whole, by rename, then never
change; what each shard's removal leaves lies apart from them. So shards that were done before the kill stay valid.

Legend of suffixes: B bytes, N documents, E spans.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datatrove.pipeline.base import PipelineStep

from pipelines.clusters import rank_order
from pipelines.compiled import kernel
from pipelines.dedup_decide import CLUSTERS, Corpus, write_clusters
from pipelines.document import DROPPED, with_column, with_fate
from pipelines.execute import SCRATCH, transform
from pipelines.files import write_atomically
from pipelines.store import Outcome
from pipelines.text_cuts import cut_texts

SPANS = pa.schema(
    [
        ("id", pa.string()),
        ("start", pa.int64()),  # in characters of the text as it was
        ("end", pa.int64()),
        ("matched_id", pa.string()),  # the document that holds the copy that stays
    ]
)
WIDTH = 4  # numbers of a span on disk: row in the shard, first byte, end byte, rank of the source
FOUND = "found.json"  # what the search reported


class Spans(NamedTuple):
    """Duplicate passages.

    Attributes:
        rows: int64 (E,), of the document in the corpus.
        starts: int64 (E,), first byte in its text.
        ends: int64 (E,), end byte.
        sources: int64 (E,), rank of the document that holds the copy that stays.
    """

    rows: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    sources: np.ndarray


class SpanFiles:
    """One file of spans for each shard, written between `begin` and `finish`.

    Texts are never held, but memory grows with the documents and the spans: about 110 bytes for each document (with ids
    of 30 bytes) while they are ranked and 16 from then on; up to 200 for each span of one shard; and in `settle` about
    130 for each span of the corpus.

    Args:
        work: folder of the step.
        corpus: whose shards; files of indexes have none.

    Attributes:
        folder: where the finished files lie.
        order: int64 (N,), rows of the corpus by rank.
        ranks: int64 (N,), rank of each row.
    """

    def __init__(self, work: Path, corpus: Corpus) -> None:
        self.folder = work / SCRATCH / "spans"
        self.draft = work / SCRATCH / "spans.tmp"
        self.corpus = corpus
        self.order = rank_order(corpus.light(np.arange(int(corpus.bases[-1]))))
        self.ranks = np.empty(len(self.order), np.int64)
        self.ranks[self.order] = np.arange(len(self.order))
        self.bases = corpus.bases[corpus.indexes :]

    def begin(self) -> bool:
        """Begin anew, with no spans; False when a killed run has finished: its spans hold, and tasks may read them."""
        if self.folder.is_dir():
            return False
        shutil.rmtree(self.draft, ignore_errors=True)
        self.draft.mkdir(parents=True)
        for rank in range(len(self.bases) - 1):
            span_file(self.draft, rank).write_bytes(b"")
        return True

    def finish(self, metrics: dict[str, int]) -> None:
        """Make the spans, and what to report of them, final."""
        write_atomically(self.draft / FOUND, json.dumps(metrics).encode())
        self.draft.replace(self.folder)

    def metrics(self) -> dict[str, int]:
        """What the search reported, now or before the kill."""
        return json.loads((self.folder / FOUND).read_text(encoding="utf-8"))

    def append(self, spans: Spans) -> None:
        """Add spans of any shards."""
        shards = np.searchsorted(self.bases, spans.rows, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            columns = (spans.rows[here] - self.bases[shard], spans.starts[here], spans.ends[here], spans.sources[here])
            with span_file(self.draft, int(shard)).open("ab") as file:
                np.stack(columns, axis=1).astype(np.int64).tofile(file)

    def settle(self, drop_share: float, cut: bool) -> None:
        """Drop documents of which so much is duplicate, and forget the spans whose source is dropped.

        Args:
            drop_share: of its bytes.
            cut: whether spans of documents that stay are to be cut out.
        """
        shards = [read_spans(self.draft, rank) for rank in range(len(self.bases) - 1)]
        every = np.concatenate([np.zeros((0, WIDTH), np.int64), *shards])
        firsts = np.repeat(self.bases[:-1], [len(spans) for spans in shards])
        takers = self.ranks[every[:, 0] + firsts]
        order = np.lexsort((every[:, 1], takers))
        sizes = np.concatenate([np.zeros(0, np.int64), *(file.column("size") for file in self.corpus.files)])
        gone = np.zeros(len(self.ranks), np.bool_)
        _settle(takers[order], every[order], sizes[self.order], drop_share, gone)
        alive = ~gone[every[:, 3]] & (gone[takers] | cut)
        cuts = np.cumsum([0, *(len(spans) for spans in shards)])
        for rank, spans in enumerate(shards):
            np.save(_gone_file(self.draft, rank), gone[self.ranks[self.bases[rank] : self.bases[rank + 1]]])
            spans[alive[cuts[rank] : cuts[rank + 1]]].tofile(span_file(self.draft, rank))


def span_file(folder: Path, rank: int) -> Path:
    """The spans of a shard."""
    return folder / f"{rank:05d}.spans"


def read_spans(folder: Path, rank: int) -> np.ndarray:
    """The spans of a shard: int64 (E, WIDTH), in order of row, start, end and source."""
    spans = np.fromfile(span_file(folder, rank), np.int64).reshape(-1, WIDTH)
    return spans[np.lexsort((spans[:, 3], spans[:, 2], spans[:, 1], spans[:, 0]))]


def _gone_file(folder: Path, rank: int) -> Path:
    return folder / f"{rank:05d}.gone.npy"


def _removed_file(work: Path, rank: int, what: str) -> Path:
    """`cut` or `lost` of a shard. Never removed by a later run: the shard's completion marker vouches for it."""
    return work / SCRATCH / "removed" / f"{rank:05d}.{what}.npy"


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    np.save(temporary, values)
    temporary.replace(path)


@kernel
def _settle(takers_E, spans_E, sizes_N, drop_share, gone_N):
    """Take documents in order of rank: one is gone when its spans of sources that stay cover its share."""
    begin = 0
    while begin < len(takers_E):
        taker, end, covered, reached = takers_E[begin], begin, 0, 0
        while end < len(takers_E) and takers_E[end] == taker:
            if not gone_N[spans_E[end, 3]]:
                covered += max(0, spans_E[end, 2] - max(reached, spans_E[end, 1]))
                reached = max(reached, spans_E[end, 2])
            end += 1
        gone_N[taker] = covered >= drop_share * sizes_N[taker]
        begin = end


class RemoveSpans(PipelineStep):
    """Cuts the spans of a shard out of its texts; drops what has nothing left.

    Args:
        work: folder of the step.
        folder: of the spans.
        reason: of a drop.
    """

    type = "block"
    name = "remove"

    def __init__(self, work: str, folder: str, reason: str) -> None:
        super().__init__()
        self.work = work
        self.folder = folder
        self.reason = reason

    def run(self, data: Iterable[pa.Table], rank: int = 0, world_size: int = 1) -> Iterator[pa.Table]:
        """Change each batch; rows come in the order in which they were signed."""
        folder, at = Path(self.folder), 0
        spans, cuts, lost = read_spans(folder, rank), [np.zeros((0, WIDTH), np.int64)], [np.zeros(0, np.bool_)]
        gone_N = np.load(_gone_file(folder, rank)) if _gone_file(folder, rank).is_file() else None
        for batch in data:
            first, end = np.searchsorted(spans[:, 0], [at, at + batch.num_rows])
            dropped = np.zeros(batch.num_rows, bool) if gone_N is None else gone_N[at : at + batch.num_rows].copy()
            if end > first:
                here = spans[first:end].copy()
                here[:, 0] -= at
                texts, final, empty = cut_texts(batch["text"], here)
                dropped |= empty
                whole = batch["text"].combine_chunks().cast(pa.large_string())
                batch = with_column(batch, "text", pc.if_else(pa.array(dropped), whole, texts).cast(pa.string()))
                final[:, 0] += at
                cuts.append(final)
            at += batch.num_rows
            lost.append(dropped)
            yield with_fate(batch, DROPPED, pc.if_else(pa.array(dropped), self.reason, pa.scalar(None, pa.string())))
        _save(_removed_file(Path(self.work), rank, "cut"), np.concatenate(cuts))
        _save(_removed_file(Path(self.work), rank, "lost"), np.concatenate(lost))


def remove(
    files: Sequence[Path], work: Path, spans: SpanFiles, reason: str, workers: int
) -> tuple[Outcome, list[np.ndarray]]:
    """Write the texts without their duplicate passages, `spans.parquet` and `clusters.parquet`.

    Returns:
        What to report, and for each shard which rows were dropped.
    """
    counts = transform(files, [RemoveSpans(str(work), str(spans.folder), reason)], work, workers, "remove")
    changed, dropped, cut = [np.zeros((0, 3), np.int64)], [], 0
    with pq.ParquetWriter(work / ".spans.tmp", SPANS, compression="zstd") as writer:
        for rank, base in enumerate(spans.bases[:-1]):
            final, lost = (np.load(_removed_file(work, rank, what)) for what in ("cut", "lost"))
            ids, matched = _ids(spans.corpus, final[:, 0] + base), _ids(spans.corpus, spans.order[final[:, 3]])
            writer.write_table(pa.table([ids, final[:, 1], final[:, 2], matched], schema=SPANS))
            cut += int((final[:, 2] - final[:, 1]).sum())
            nearest = _nearest(read_spans(spans.folder, rank), np.unique(final[:, 0]))
            changed.append(np.stack([nearest[:, 0] + base, nearest[:, 1], lost[nearest[:, 0]]], axis=1))
            dropped.append(lost)
    (work / ".spans.tmp").replace(work / "spans.parquet")
    write_clusters(work / "clusters.parquet", _clusters(spans, np.concatenate(changed)))
    return Outcome(counts, spans.metrics() | {"characters_cut": cut}), dropped


def _nearest(spans: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """For each row the source of most of its bytes: int64 (D, 2), row and rank of the source."""
    spans = spans[np.isin(spans[:, 0], rows)]
    order = np.lexsort((spans[:, 3], spans[:, 0]))
    rows_E, sources_E, lengths_E = spans[order, 0], spans[order, 3], (spans[:, 2] - spans[:, 1])[order]
    new = np.ones(len(order), bool)
    new[1:] = (rows_E[1:] != rows_E[:-1]) | (sources_E[1:] != sources_E[:-1])
    totals = np.add.reduceat(lengths_E, np.flatnonzero(new)) if len(order) else lengths_E
    rows_P, sources_P = rows_E[new], sources_E[new]
    best = np.lexsort((sources_P, -totals, rows_P))
    _, first = np.unique(rows_P[best], return_index=True)
    return np.stack([rows_P[best][first], sources_P[best][first]], axis=1)


def _clusters(spans: SpanFiles, changed: np.ndarray) -> pa.Table:
    """Documents that lost a passage, with the one that holds most of it; and those, which stay as they are."""
    matched = spans.order[changed[:, 1]]
    sources = np.setdiff1d(matched, changed[:, 0])
    sources = sources[sources >= spans.bases[0]]
    ids, names, own = _ids(spans.corpus, changed[:, 0]), _ids(spans.corpus, matched), _ids(spans.corpus, sources)
    kept = np.concatenate([changed[:, 2] == 0, np.ones(len(sources), bool)])
    unmatched = pa.nulls(len(sources), pa.string())
    columns = [pa.concat_arrays([ids, own]), pa.concat_arrays([names, own]), pa.array(kept),
               pa.concat_arrays([names, unmatched]), pa.nulls(len(kept), pa.float64())]  # fmt: skip
    return pa.table(columns, schema=CLUSTERS)


def _ids(corpus: Corpus, rows: np.ndarray) -> pa.Array:
    """The ids of some rows, in any order and with repeats."""
    unique, back = np.unique(rows, return_inverse=True)
    ids = corpus.light(unique)["id"].combine_chunks() if len(unique) else pa.array([], pa.string())
    return ids.take(pa.array(back))
