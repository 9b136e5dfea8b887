"""Exact repeated passages, within a document and across the corpus: every copy but the first is cut out.

The texts are written to one file, their anchors (`passages`) to one for each shard; equal anchors are grouped range
by range and their surroundings compared through a memory map that is let go of as it is read. So the text is never
held, and the corpus is never cut into chunks between which copies would be missed. What is held grows with documents
and spans: about 110 bytes for each document while they are ranked, then 24; 40 for each anchor of one range; what
`removal.SpanFiles` says for each span. Cuts respect words and characters (`text_cuts`). Which copy is the first is
decided by rank, and within a document by place.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from datatrove.pipeline.base import PipelineStep

from pipelines.block import ReadDocuments
from pipelines.dedup_decide import Corpus, mapped
from pipelines.dedup_index import link, open_index, write_index
from pipelines.dedup_settings import DedupSettings
from pipelines.execute import SCRATCH, run_blocks
from pipelines.key_groups import Groups, key_groups
from pipelines.passages import MOST_LEADERS, Surroundings, anchors_of, gram_bytes, match_large, match_leaders
from pipelines.removal import SpanFiles, Spans, remove
from pipelines.shingles import utf8_buffers
from pipelines.signatures import SignatureFile, SignDocuments, open_signatures
from pipelines.store import Outcome

RELEASE_MEMBERS = 3000  # anchors compared before the map is let go of: the system maps 64 KB around each
ANCHORS = pa.schema([("place", pa.int64()), ("key", pa.uint64())])


class WriteAnchors(PipelineStep):
    """Writes the text of a shard and its anchors beside its signatures, and passes the documents on.

    Args:
        folder: of the signatures.
        min_bytes: of a passage.
    """

    type = "block"
    name = "anchors"

    def __init__(self, folder: str, min_bytes: int) -> None:
        super().__init__()
        self.folder = folder
        self.min_bytes = min_bytes

    def run(self, data: Iterable[pa.Table], rank: int = 0, world_size: int = 1) -> Iterator[pa.Table]:
        """Write while the stream passes."""
        path, base = Path(self.folder) / f"{rank:05d}.text", 0
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as text, pa.ipc.new_file(path.with_suffix(".anchors"), ANCHORS) as writer:
            for batch in data:
                data_B, offsets_N = utf8_buffers(batch["text"])
                places_A, keys_A = anchors_of(data_B, offsets_N, self.min_bytes, gram_bytes(self.min_bytes))
                writer.write_table(pa.table([places_A - offsets_N[0] + base, keys_A], schema=ANCHORS))
                data_B[offsets_N[0] : offsets_N[-1]].tofile(text)
                base += int(offsets_N[-1] - offsets_N[0])
                yield batch


def dedup_substrings(
    files: Sequence[Path], work: Path, settings: DedupSettings, workers: int, against: Sequence[Path] = ()
) -> Outcome:
    """Cut out every copy of a passage but the first; arguments as for `dedup.dedup`."""
    indexed = [file for folder in against for file in open_index(folder, settings)]
    signer, asked = SignDocuments(str(work), settings), settings.substring
    folder = signer.file(0).parent
    pipeline = [ReadDocuments([str(f) for f in files]), WriteAnchors(str(folder), asked.min_bytes), signer]
    run_blocks(pipeline, len(files), work, workers, "sign")
    shards = [open_signatures(signer.file(rank)) for rank in range(len(files))]
    corpus = Corpus.of(indexed, shards)
    spans = SpanFiles(work, corpus)
    if spans.begin():
        metrics = _find(corpus, spans, asked.min_bytes, work / SCRATCH / "corpus.text")
        if asked.policy == "document" or asked.drop_share < 1:
            spans.settle(asked.drop_share, asked.policy == "span")
        spans.finish(metrics)
    outcome, dropped = remove(files, work, spans, "duplicate_substring", workers)
    write_index(work / "index", indexed, shards, dropped, settings, _write_anchors)
    return outcome


def _find(corpus: Corpus, spans: SpanFiles, length: int, path: Path) -> dict[str, int]:
    """Write the spans of all copies but the first."""
    with path.open("wb") as out:
        for file in corpus.files:
            with file.path.with_suffix(".text").open("rb") as text:
                shutil.copyfileobj(text, out, 1 << 20)
    offsets_N = np.concatenate([[0], *(file.column("size") for file in corpus.files)]).astype(np.int64).cumsum()
    text_B, release = mapped(path, np.uint8)
    around = Surroundings(text_B, offsets_N, length, gram_bytes(length))
    anchors = [open_signatures(file.path.with_suffix(".anchors")) for file in corpus.files]
    bases = offsets_N[corpus.bases]

    def scan() -> Iterator[tuple[np.ndarray, np.ndarray, None]]:
        for base, file in zip(bases, anchors, strict=False):
            for batch in file.batches(ANCHORS.names):
                yield batch["place"].to_numpy() + base, batch["key"].to_numpy(), None

    count = sum(file.rows for file in anchors)
    compared = 0
    for groups in key_groups(scan, count, path.parent, int(bases[corpus.indexes])):
        _match(groups, around, spans, corpus.old, release)
        compared += len(groups.members)
    return {"documents": int(corpus.bases[-1]) - corpus.old, "anchors": count, "repeated_anchors": compared}


def _match(
    groups: Groups, around: Surroundings, spans: SpanFiles, old: int, release: Callable[[], None]
) -> None:  # fmt: skip
    """Append the spans that earlier documents have, too; none in the first `old` rows, those of indexes."""
    numbers_M = np.repeat(np.arange(len(groups.sizes)), groups.sizes)
    rows_M = np.searchsorted(around.offsets, groups.members, side="right") - 1
    order_M = np.lexsort((groups.members, spans.ranks[rows_M], numbers_M))
    places_M, rows_M = groups.members[order_M], rows_M[order_M]
    ends_G = np.cumsum(groups.sizes)
    begin = 0
    while begin < len(groups.sizes):
        first = int(ends_G[begin] - groups.sizes[begin])
        if groups.sizes[begin] > MOST_LEADERS:
            here, end = slice(first, int(ends_G[begin])), begin + 1
            found = match_large(places_M[here], rows_M[here], around)
        else:
            end = max(begin + 1, int(np.searchsorted(ends_G, first + RELEASE_MEMBERS, side="right")))
            large = np.flatnonzero(groups.sizes[begin:end] > MOST_LEADERS)
            end = begin + int(large[0]) if len(large) else end
            here = slice(first, int(ends_G[end - 1]))
            found = match_leaders(places_M[here], rows_M[here], groups.sizes[begin:end], around)
        found = found[found[:, 0] >= old]
        spans.append(Spans(found[:, 0], found[:, 1], found[:, 2], spans.ranks[found[:, 3]]))
        release()
        begin = end


def _write_anchors(file: SignatureFile, gone: np.ndarray, target: Path, settings: DedupSettings) -> None:
    """A shard of the index: all documents and their texts, and the anchors of those that were kept."""
    link(file.path, target)
    link(file.path.with_suffix(".text"), target.with_suffix(".text"))
    ends_N = np.cumsum(file.column("size"))
    with pa.ipc.new_file(target.with_suffix(".anchors"), ANCHORS) as writer:
        for batch in open_signatures(file.path.with_suffix(".anchors")).batches(ANCHORS.names):
            rows = np.searchsorted(ends_N, batch["place"].to_numpy(), side="right")
            writer.write_table(batch.filter(pa.array(~gone[rows])))
