"""Documents become token shards: `loam tokenize`.

Every document ends with the end-of-text token and nothing inside a document can produce it; within a domain documents
are shuffled by a hash of (seed, id), and the same kind of hash holds some back for validation, so both are the same for
any number of workers and any cut into files. The shards are Megatron's (`pipelines/indexed.py`), each with a sidecar
that maps its sequences to the documents' origins.
"""

import contextlib
import functools
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datatrove.pipeline.base import PipelineStep
from pydantic import Field

from pipelines.block import ReadDocuments
from pipelines.errors import DataError
from pipelines.execute import SCRATCH, parts_of, run_blocks
from pipelines.files import write_atomically
from pipelines.indexed import token_dtype
from pipelines.journal import record
from pipelines.manifest import Counts
from pipelines.pieces import PIECE, PieceWriter, gather, read_tally, write_shard
from pipelines.recipe import Section
from pipelines.sample import domains_of, hash_ids
from pipelines.store import Outcome
from pipelines.tokenizer import SEGMENT_CHARS, Tokenizer, load_tokenizer

BATCH_BYTES = 1 << 20  # text encoded at a time: an encoding takes some 150 times its text's memory
DOMAIN_NAME = re.compile(r"[\w.+-]+(/[\w.+-]+)*")


class EncodeSettings(Section):
    """How documents become tokens.

    Attributes:
        eos: token that ends documents; default: the tokenizer's own.
        validation_share: part of the documents of each domain that is held out, by hash of (seed, id).
        validation_minimum: documents held out of a small domain all the same, at most half of it.
        seed: decides order and hold-out.
        max_document_tokens: longer documents are cut to this length (end of text included) and counted.
    """

    eos: str | None = None
    validation_share: float = Field(default=0.02, ge=0, lt=1)
    validation_minimum: int = Field(default=1, ge=0)
    seed: int = 0
    max_document_tokens: int | None = Field(default=None, ge=2)


def encode(
    files: Sequence[Path],
    work: Path,
    tokenizer: Path,
    settings: EncodeSettings,
    workers: int = 1,
    name: str | None = None,
    held_out: Sequence[Path] = (),
) -> Outcome:
    """Write one shard per domain: `<domain>.bin`, `.idx`, `.origin.parquet`.

    With a validation share the shards lie in `train/` and `validation/`, else in `work` itself. A document's domain is
    `name` if given, else its column `domain`, else the folder of its part. A domain without documents has no shard and
    is listed in the metrics.

    Args:
        files: Parquet documents, one task each.
        work: the step's working folder.
        tokenizer: folder or file that `pipelines.tokenizer.load_tokenizer` understands.
        settings: see there.
        workers: processes; threads within a file when there are fewer files than workers.
        name: puts all documents into one domain.
        held_out: Parquet files with the ids (column `id`) of documents that an earlier call held out: they are left out
            here, and nothing else is held out. One decision, taken once, for any cut into domains.

    Returns:
        Counts (empty documents are dropped) and metrics: per domain and split documents, tokens and bytes of text.

    Raises:
        DataError: an input or the tokenizer cannot be read, or a domain's name is no path.
    """
    started = time.perf_counter()
    loaded = _cached_tokenizer(*_key(tokenizer, settings.eos))
    pieces = work / SCRATCH / "pieces"
    parts = parts_of(files)
    threads = workers // max(1, len(files))
    block = EncodeDocuments(pieces, parts, tokenizer, settings, name, threads, held_out)
    run_blocks([ReadDocuments([str(f) for f in files]), block], len(files), work, workers, "encode")
    folders = [pieces / f"{rank:05d}" for rank in range(len(files))]
    splits = ("train",) if held_out else ("train", "validation") if settings.validation_share else ("",)
    outcome = _merge_all(folders, work, loaded, settings, splits)
    text_bytes = sum(split["bytes"] for split in outcome.metrics["totals"].values())
    record("encode", seconds=round(time.perf_counter() - started, 3), text_bytes=text_bytes, workers=workers)
    return outcome


class EncodeDocuments(PipelineStep):
    """End of a pipeline: encodes one part's documents into pieces for `_merge_all`.

    Args:
        pieces: folder for one folder per task.
        parts: where each task's documents lie, for their domain.
        tokenizer: path; loaded once per process.
        settings: of the step.
        name: domain of all documents, if given.
        threads: of the tokenizer within this task.
        held_out: Parquet files with ids of documents to leave out.
    """

    type = "writer"
    name = "encode"

    def __init__(
        self, pieces: Path, parts: Sequence[str], tokenizer: Path, settings: EncodeSettings, name: str | None,
        threads: int, held_out: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.pieces = pieces
        self.parts = parts
        self.tokenizer = tokenizer
        self.settings = settings
        self.domain = name
        self.threads = threads
        self.held_out = held_out

    def run(self, data: Iterable[pa.Table], rank: int = 0, world_size: int = 1) -> None:
        """Consume the stream."""
        tokenizer = _cached_tokenizer(*_key(self.tokenizer, self.settings.eos))
        writer = PieceWriter(self.pieces / f"{rank:05d}", token_dtype(tokenizer.vocab_size))
        tally: Counter[str] = Counter(docs_in=0, empty=0, cut=0, held_out=0)
        left_out = _ids_in(self.held_out)
        with _tokenizer_threads(self.threads):
            for batch in chain.from_iterable(map(_slices, data)):
                tally["docs_in"] += batch.num_rows
                if self.held_out:
                    rest = batch.filter(pc.invert(pc.is_in(batch["id"], value_set=left_out)))
                    tally["held_out"] += batch.num_rows - rest.num_rows
                    batch = rest
                self._encode(batch, rank, tokenizer, writer, tally)
                progress = self.pieces.parent / "progress" / str(rank)
                write_atomically(progress, str(tally["docs_in"]).encode())
        silent = [self.domain or self.parts[rank].rpartition("/")[0]] if not tally["docs_in"] else []
        writer.close(tally, [domain for domain in silent if domain])

    def _encode(self, batch: pa.Table, rank: int, tokenizer: Tokenizer, writer: PieceWriter, tally: Counter) -> None:
        limit = self.settings.max_document_tokens
        texts = pc.fill_null(batch["text"], "")
        ids = tokenizer.encode(texts.to_pylist())
        size_D = pc.binary_length(texts).to_numpy().astype(np.int64)
        full_D = np.fromiter(map(len, ids), np.int64, len(ids))
        if limit is not None:
            for row in np.flatnonzero(full_D >= limit):
                ids[row] = ids[row][: limit - 1]
                size_D[row] = _encoded_bytes(tokenizer, texts[int(row)].as_py(), limit - 1)
                tally["cut"] += 1
        tally["empty"] += int((full_D == 0).sum())
        domains = np.array(domains_of(batch, self.parts[rank], self.domain), dtype=object)
        described = self._describe(batch, ids, size_D)
        for domain in dict.fromkeys(domains[full_D > 0]):
            rows = np.flatnonzero((domains == domain) & (full_D > 0))
            tokens = _end_to_end([ids[row] for row in rows], tokenizer.eos_id)
            if not DOMAIN_NAME.fullmatch(domain) or ".." in domain.split("/"):
                raise DataError(f"domain {domain!r} cannot name a shard: expected words such as 'web_en/high'")
            writer.append(domain, tokens, _with_domain(described.take(pa.array(rows)), domain))

    def _describe(self, batch: pa.Table, ids: Sequence[Sequence[int]], size_D: np.ndarray) -> pa.Table:
        seed = self.settings.seed
        added = {
            "tokens": pa.array([len(row) + 1 for row in ids], pa.int64()),
            "bytes": pa.array(size_D),
            "order": pa.array(hash_ids(batch["id"], f"{seed}/order")),
            "held": pa.array(hash_ids(batch["id"], f"{seed}/held")),
        }
        return pa.table([added[name] if name in added else batch[name] for name in PIECE.names], schema=PIECE)


def _with_domain(table: pa.Table, domain: str) -> pa.Table:
    index = table.schema.get_field_index("domain")
    return table.set_column(index, PIECE.field("domain"), pa.array([domain] * table.num_rows, pa.string()))


def _slices(batch: pa.Table) -> Iterator[pa.Table]:
    """Cut a batch where another `BATCH_BYTES` of text have passed."""
    size_D = pc.fill_null(pc.binary_length(batch["text"]), 0).to_numpy()
    cuts = [0, *(np.flatnonzero(np.diff(np.cumsum(size_D) // BATCH_BYTES)) + 1).tolist(), batch.num_rows]
    return (batch.slice(a, b - a) for a, b in pairwise(cuts) if b > a)


def _end_to_end(ids: Sequence[Sequence[int]], eos_id: int) -> np.ndarray:
    """Tokens of all documents, each followed by the end of text."""
    end = (eos_id,)
    return np.fromiter(chain.from_iterable(chain(row, end) for row in ids), np.int32, sum(map(len, ids)) + len(ids))


def _encoded_bytes(tokenizer: Tokenizer, text: str, tokens: int) -> int:
    """UTF-8 bytes of `text` that its first `tokens` tokens cover, a character cut in two counted whole."""
    chars = SEGMENT_CHARS
    offsets = tokenizer.backend.encode(text[:chars], add_special_tokens=False).offsets
    while len(offsets) <= tokens and chars < len(text):
        chars *= 2
        offsets = tokenizer.backend.encode(text[:chars], add_special_tokens=False).offsets
    return len(text[: offsets[tokens - 1][1]].encode())


@contextlib.contextmanager
def _tokenizer_threads(threads: int) -> Iterator[None]:
    """Let `tokenizers` use this many threads (its pool reads the environment when it is first used)."""
    wanted = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(threads)}
    if threads <= 1:
        wanted = {"TOKENIZERS_PARALLELISM": "false"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _key(path: Path, eos: str | None) -> tuple[str, str | None, int]:
    """What the cache goes by: a tokenizer written anew under the same path is another one."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return str(path), eos, max((p.stat().st_mtime_ns for p in files), default=0)


@functools.lru_cache(maxsize=2)
def _cached_tokenizer(path: str, eos: str | None, changed_ns: int) -> Tokenizer:
    return load_tokenizer(Path(path), eos)


def _ids_in(files: Sequence[Path]) -> pa.Array:
    """The column `id` of all files."""
    return pa.concat_arrays(
        [pq.read_table(f, columns=["id"])["id"].combine_chunks() for f in files] or [pa.array([], pa.string())]
    )


def _merge_all(
    folders: Sequence[Path], work: Path, tokenizer: Tokenizer, settings: EncodeSettings, splits: tuple[str, ...]
) -> Outcome:
    tallies = [read_tally(folder) for folder in folders]
    domains = sorted({domain for tally in tallies for domain in tally["domains"]})
    described: dict[str, dict[str, dict[str, int]]] = {}
    for domain in domains:
        described[domain] = _merge(domain, folders, work, tokenizer, settings, splits)
    totals = {split or "train": _total(described, split or "train") for split in splits}
    documents = sum(tally["docs_in"] for tally in tallies)
    gone = {key: n for key in ("empty", "held_out") if (n := sum(tally[key] for tally in tallies))}
    metrics: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id,
        "dtype": token_dtype(tokenizer.vocab_size).name, "domains": described, "totals": totals,
        "validation_bytes": {d: s["validation"]["bytes"] for d, s in described.items() if "validation" in s},
        "empty_domains": sorted({d for tally in tallies for d in tally["silent"]} - set(domains)),
        "documents_cut": sum(tally["cut"] for tally in tallies),
    }  # fmt: skip
    return Outcome(Counts(docs_in=documents, kept=documents - sum(gone.values()), dropped=gone), metrics)


def _merge(
    domain: str, folders: Sequence[Path], work: Path, tokenizer: Tokenizer, settings: EncodeSettings,
    splits: tuple[str, ...],
) -> dict[str, dict[str, int]]:  # fmt: skip
    """Write one domain's shards, documents in hashed order; tell what is in them."""
    scratch = work / SCRATCH / "merge"
    gathered = gather(domain, folders, scratch, token_dtype(tokenizer.vocab_size))
    order_D = np.argsort(gathered.column("order"), kind="stable")
    held_D = _held_out(gathered.column("held"), settings) if "validation" in splits else np.zeros(len(order_D), bool)
    found = {}
    for split in splits:
        rows = order_D[held_D[order_D] == (split == "validation")]
        if len(rows):
            write_shard(gathered, rows, work / split / domain, tokenizer.vocab_size)
            found[split or "train"] = {
                "documents": len(rows), "tokens": int(gathered.length_D[rows].sum()),
                "bytes": int(gathered.column("bytes")[rows].sum()),
            }  # fmt: skip
    del gathered
    shutil.rmtree(scratch)
    return found


def _held_out(hash_D: np.ndarray, settings: EncodeSettings) -> np.ndarray:
    """Bool (documents,): which go to validation; one document at least stays for training."""
    held_D = np.zeros(len(hash_D), bool)
    drawn = int((hash_D < np.uint64(settings.validation_share * 2.0**64)).sum())
    count = min(max(drawn, min(settings.validation_minimum, len(hash_D) // 2)), len(hash_D) - 1)
    held_D[np.argsort(hash_D, kind="stable")[:count]] = True
    return held_D


def _total(described: dict[str, dict[str, dict[str, int]]], split: str) -> dict[str, int]:
    parts = [splits[split] for splits in described.values() if split in splits]
    return {key: sum(part[key] for part in parts) for key in ("documents", "tokens", "bytes")}
