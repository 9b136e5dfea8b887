"""Lines and paragraphs that occur more than once in a corpus: every copy but the first is cut out.

Lines are compared by 128 bits of their normalized form, grouped range by range, so that one byte is held for each line
(and for documents and spans what `removal.SpanFiles` says). The first copy is the one in the document of lowest rank,
and the first within it: the order of the input does not matter. A line of fewer than `min_bytes` is left alone, because
short lines repeat by chance. Source: the paragraph deduplication of CCNet (arXiv:1911.00359), and DCLM's share of
duplicates from which a document is dropped.

Legend of suffixes: B bytes, N documents, L lines of a corpus, those of an index first; M members of groups.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from datatrove.pipeline.base import PipelineStep

from pipelines.block import ReadDocuments
from pipelines.compiled import kernel
from pipelines.dedup_decide import Corpus
from pipelines.dedup_index import link, open_index, write_index
from pipelines.dedup_settings import DedupSettings
from pipelines.execute import SCRATCH, run_blocks
from pipelines.key_groups import key_groups
from pipelines.removal import SpanFiles, Spans, remove
from pipelines.shingles import GROWTH, code_points, collapse, is_space, simplify, utf8_buffers, xxh64
from pipelines.signatures import SignatureFile, SignDocuments, open_signatures
from pipelines.store import Outcome

LINES = pa.schema(
    [
        ("row", pa.int64()),  # of the document in its shard
        ("start", pa.int64()),  # first byte in the text
        ("end", pa.int64()),  # end byte, the line feed included
        ("key_0", pa.uint64()),
        ("key_1", pa.uint64()),
    ]
)


@kernel
def _line_end(data_B, at, end, paragraph):
    """Where the line or paragraph that begins at a byte ends, and whether it holds anything but white space."""
    filled = False
    while at < end:
        blank, begin = True, at
        while at < end and data_B[at] != 10:
            blank = False if data_B[at] >= 128 else blank and is_space(np.int64(data_B[at]))
            at += 1
        at = min(at + 1, end)
        filled = filled or not blank
        if not paragraph:
            break
        if filled and (blank or begin == at):
            while at < end and (data_B[at] == 10 or data_B[at] == 13):
                at += 1
            break
    return at, filled


@kernel
def _line_keys(data_B, offsets_N, table, paragraph, by_words, min_bytes):
    """Spans and keys of the lines that are long enough: int64 (L, 3) and uint64 (L, 2)."""
    longest = np.int64(0)
    for n in range(len(offsets_N) - 1):
        longest = max(longest, offsets_N[n + 1] - offsets_N[n])
    out_B, units_U4 = np.empty(GROWTH * longest, np.uint8), np.empty((longest // 2 + 1, 4), np.int64)
    most = (offsets_N[-1] - offsets_N[0]) // max(1, min_bytes // 4) + len(offsets_N)
    lines_L3, keys_L2, count = np.empty((most, 3), np.int64), np.empty((most, 2), np.uint64), 0
    for n in range(len(offsets_N) - 1):
        at, end = offsets_N[n], offsets_N[n + 1]
        while at < end:
            after, filled = _line_end(data_B, at, end, paragraph)
            if filled and after - at >= min_bytes // 4:
                if by_words:
                    used, _ = simplify(data_B, at, after, table, False, False, out_B, units_U4)
                else:
                    used = collapse(data_B, at, after, out_B, 0)
                if used >= min_bytes:
                    lines_L3[count, 0], lines_L3[count, 1] = n, at - offsets_N[n]
                    lines_L3[count, 2] = after - offsets_N[n]
                    keys_L2[count, 0] = xxh64(out_B, 0, used, np.uint64(0))
                    keys_L2[count, 1] = xxh64(out_B, 0, used, np.uint64(1))
                    count += 1
            at = after
    return lines_L3[:count], keys_L2[:count]


class KeyLines(PipelineStep):
    """Writes spans and keys of the lines of a shard beside its signatures, and passes the documents on.

    Args:
        folder: of the signatures.
        settings: what a line is.
    """

    type = "block"
    name = "lines"

    def __init__(self, folder: str, settings: DedupSettings) -> None:
        super().__init__()
        self.folder = folder
        self.settings = settings.lines

    def run(self, data: Iterable[pa.Table], rank: int = 0, world_size: int = 1) -> Iterator[pa.Table]:
        """Write while the stream passes."""
        asked, base, table = self.settings, 0, code_points()
        shape = (asked.unit == "paragraph", asked.normalize == "words", asked.min_bytes)
        path = Path(self.folder) / f"{rank:05d}.lines"
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.ipc.new_file(path, LINES) as writer:
            for batch in data:
                lines_L3, keys_L2 = _line_keys(*utf8_buffers(batch["text"]), table, *shape)
                columns = [lines_L3[:, 0] + base, lines_L3[:, 1], lines_L3[:, 2], keys_L2[:, 0], keys_L2[:, 1]]
                writer.write_table(pa.table([np.ascontiguousarray(column) for column in columns], schema=LINES))
                base += batch.num_rows
                yield batch


def dedup_lines(
    files: Sequence[Path], work: Path, settings: DedupSettings, workers: int, against: Sequence[Path]
) -> Outcome:
    """Cut out every copy of a line but the first; arguments as for `dedup.dedup`."""
    indexed = [file for folder in against for file in open_index(folder, settings)]
    signer = SignDocuments(str(work), settings)
    folder = signer.file(0).parent
    pipeline = [ReadDocuments([str(f) for f in files]), KeyLines(str(folder), settings), signer]
    run_blocks(pipeline, len(files), work, workers, "sign")
    shards = [open_signatures(signer.file(rank)) for rank in range(len(files))]
    corpus = Corpus.of(indexed, shards)
    spans = SpanFiles(work, corpus)
    if spans.begin():
        metrics = _find(corpus, [_lines_of(file) for file in corpus.files], spans, work / SCRATCH)
        if settings.lines.drop_share < 1:
            spans.settle(settings.lines.drop_share, cut=True)
        spans.finish(metrics)
    outcome, dropped = remove(files, work, spans, "duplicate_lines", workers)
    write_index(work / "index", indexed, shards, dropped, settings, _write_lines)
    return outcome


def _lines_of(file: SignatureFile) -> SignatureFile:
    """The lines beside a file of signatures."""
    return open_signatures(file.path.with_suffix(".lines"))


def _find(corpus: Corpus, lines: Sequence[SignatureFile], spans: SpanFiles, scratch: Path) -> dict[str, int]:
    """Write the spans of all copies but the first."""
    every = Corpus(lines, np.cumsum([0, *(file.rows for file in lines)]), corpus.indexes)
    count, duplicates = int(every.bases[-1]), 0
    for groups in key_groups(every.scan(("key_0", "key_1"), np.ones(count, bool)), count, scratch, every.old):
        unique, back_M = np.unique(groups.members, return_inverse=True)
        places_M3 = _places(every, corpus, unique)[back_M]
        numbers_M = np.repeat(np.arange(len(groups.sizes)), groups.sizes)
        places_M3 = places_M3[np.lexsort((places_M3[:, 1], spans.ranks[places_M3[:, 0]], numbers_M))]
        firsts_M = np.repeat(np.cumsum(groups.sizes) - groups.sizes, groups.sizes)
        copies = (firsts_M != np.arange(len(firsts_M))) & (places_M3[:, 0] >= corpus.old)
        rows_E, starts_E, ends_E = places_M3[copies].T
        spans.append(Spans(rows_E, starts_E, ends_E, spans.ranks[places_M3[firsts_M[copies], 0]]))
        duplicates += int(copies.sum())
    return {"documents": int(corpus.bases[-1]) - corpus.old, "lines": count - every.old, "duplicate_lines": duplicates}


def _places(every: Corpus, corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """Document in the corpus, first and end byte of some lines (ascending): int64 (M, 3)."""
    found = [np.zeros((0, 3), np.int64)]
    for number, file in enumerate(every.files):
        here = rows[(rows >= every.bases[number]) & (rows < every.bases[number + 1])] - every.bases[number]
        if len(here):
            table = file.take(here, ["row", "start", "end"])
            row, start, end = (table[name].to_numpy() for name in table.column_names)
            found.append(np.stack([row + corpus.bases[number], start, end], axis=1))
    return np.concatenate(found)


def _write_lines(file: SignatureFile, gone: np.ndarray, target: Path, settings: DedupSettings) -> None:
    """A shard of the index: all documents, and the lines of those that were kept."""
    link(file.path, target)
    with pa.ipc.new_file(target.with_suffix(".lines"), LINES) as writer:
        for batch in _lines_of(file).batches(LINES.names):
            writer.write_table(batch.filter(pa.array(~gone[batch["row"].to_numpy()])))
