"""Deduplication: exact, by URL, near, by lines, by repeated passages, by embeddings; and against earlier runs.

Each shard is signed on its own, in parallel; who is whose duplicate is found on the signatures alone (`dedup_decide`);
a second pass over the shards writes what is kept and what is dropped. Candidates of MinHash are verified by the Jaccard
similarity of their shingles, because at 14 bands of 8 rows more than half of the pairs at similarity 0.7 share a band
(Leskovec et al., Mining of Massive Datasets, ch. 3). Which copy stays is decided by rank, never by place.

Scratch on disk, for each byte of text: 0.65 bytes of shingles (minhash), 1 of text (substring); docs/dedup.md has more.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datatrove.pipeline.base import PipelineStep

from pipelines.block import ReadDocuments
from pipelines.dedup_decide import Decision, decide, write_clusters
from pipelines.dedup_index import open_index, write_index
from pipelines.dedup_settings import DedupSettings
from pipelines.document import DROPPED, with_column, with_fate
from pipelines.execute import SCRATCH, run_blocks, transform
from pipelines.journal import record
from pipelines.signatures import SignDocuments, open_signatures
from pipelines.store import Outcome

REASONS = {"exact": "exact_duplicate", "url": "url_duplicate", "minhash": "near_duplicate",
           "semantic": "semantic_duplicate"}  # fmt: skip
REHYDRATION = {1: 1, 2: 2, 3: 3, 5: 5, 100: 8, 1000: 1}  # cluster size from which a weight holds: FineWeb-2


def dedup(
    files: Sequence[Path],
    work: Path,
    settings: DedupSettings,
    workers: int = 1,
    against: Sequence[Path] = (),
    embeddings: Sequence[Path] = (),
) -> Outcome:
    """Drop duplicates.

    Writes `kept/`, `dropped/` (reason `exact_duplicate`, `url_duplicate`, `near_duplicate`, `semantic_duplicate`,
    `duplicate_lines` or `duplicate_substring`), `clusters.parquet` (`dedup_decide.CLUSTERS`: the documents that have a
    duplicate, and no others), and `index/`, which a later run takes as `against`; it holds the documents kept here and
    those of this run's own `against`: the newest stands for all. The methods that cut texts also write `spans.parquet`
    (`removal.SPANS`).

    Args:
        files: Parquet documents.
        work: folder to fill; may hold the beginnings of a killed run.
        settings: what counts as a duplicate.
        workers: processes.
        against: outputs or `index/` of earlier runs. Only documents of `files` are dropped.
        embeddings: of method `semantic`, see `semantic_dedup`.

    Raises:
        DataError: `against` is not an index, or one made with other settings; or the embeddings do not fit.
    """
    (work / SCRATCH).mkdir(parents=True, exist_ok=True)
    if settings.method == "lines":
        from pipelines.line_dedup import dedup_lines

        return dedup_lines(files, work, settings, workers, against)
    if settings.method == "substring":
        from pipelines.substring_dedup import dedup_substrings

        return dedup_substrings(files, work, settings, workers, against)
    decision = _by_signatures(files, work, settings, workers, against, embeddings)
    write_clusters(work / "clusters.parquet", decision.clusters)
    for rank, (dropped, sizes) in enumerate(zip(decision.dropped, decision.sizes, strict=True)):
        np.save(work / SCRATCH / f"dropped-{rank:05d}.npy", dropped)
        np.save(work / SCRATCH / f"sizes-{rank:05d}.npy", sizes)
    block = DropDuplicates(str(work), REASONS[settings.method], settings.rehydrate)
    return Outcome(transform(files, [block], work, workers, "drop"), decision.metrics)


def _by_signatures(
    files: Sequence[Path], work: Path, settings: DedupSettings, workers: int, against: Sequence[Path],
    embeddings: Sequence[Path],
) -> Decision:  # fmt: skip
    began = time.perf_counter()
    indexed = [file for folder in against for file in open_index(folder, settings)]
    signer = SignDocuments(str(work), settings)
    run_blocks([ReadDocuments([str(f) for f in files]), signer], len(files), work, workers, "sign")
    record("dedup", stage="sign", seconds=round(time.perf_counter() - began, 3))
    shards = [open_signatures(signer.file(rank)) for rank in range(len(files))]
    if settings.method == "semantic":
        from pipelines.semantic_dedup import decide_by_embeddings

        decision = decide_by_embeddings(indexed, shards, embeddings, settings, work / SCRATCH)
    else:
        decision = decide(indexed, shards, settings, work / SCRATCH)
    record("dedup", stage="decide", seconds=round(time.perf_counter() - began, 3))
    write_index(work / "index", indexed, shards, decision.dropped, settings)
    record("dedup", stage="index", seconds=round(time.perf_counter() - began, 3))
    return decision


class DropDuplicates(PipelineStep):
    """Marks the rows that were found to be duplicates, and says for how many each kept one stands."""

    type = "block"
    name = "drop"

    def __init__(self, work: str, reason: str, rehydrate: bool) -> None:
        super().__init__()
        self.work = work
        self.reason = reason
        self.rehydrate = rehydrate

    def run(self, data: Iterable[pa.Table], rank: int = 0, world_size: int = 1) -> Iterator[pa.Table]:
        """Mark each batch; rows come in the order in which they were signed."""
        folder, at = Path(self.work) / SCRATCH, 0
        dropped, sizes = np.load(folder / f"dropped-{rank:05d}.npy"), np.load(folder / f"sizes-{rank:05d}.npy")
        for batch in data:
            here = slice(at, at + batch.num_rows)
            at += batch.num_rows
            if self.rehydrate:
                batch = with_column(batch, "cluster_size", pa.array(sizes[here]))
                batch = with_column(batch, "weight", pa.array(np.where(dropped[here], 0, weights(sizes[here]))))
            yield with_fate(
                batch, DROPPED, pc.if_else(pa.array(dropped[here]), self.reason, pa.scalar(None, pa.string()))
            )


def weights(sizes: np.ndarray) -> np.ndarray:
    """How often FineWeb-2 repeats a document that stands for a cluster of each size: int64, see `REHYDRATION`."""
    steps = np.array(list(REHYDRATION))
    return np.array(list(REHYDRATION.values()))[np.searchsorted(steps, sizes, side="right") - 1]
