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
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datatrove.pipeline.base import PipelineStep
from pydantic import Field

from pipelines.block import ReadDocuments
from pipelines.encoder import SPOT_CHECK, Encoder, Engine
from pipelines.errors import DataError
from pipelines.execute import SCRATCH, parts_of, run_blocks, with_rejected_inputs
from pipelines.files import write_atomically
from pipelines.fim import FillInTheMiddle, FimSettings, make_special
from pipelines.indexed import token_dtype
from pipelines.journal import record
from pipelines.manifest import Counts
from pipelines.merge import merge
from pipelines.pieces import PIECE, PieceWriter, put_end_to_end, read_tally
from pipelines.quantities import Tokens
from pipelines.recipe import Section
from pipelines.sample import domains_of, hash_ids, source_ids
from pipelines.store import Outcome
from pipelines.tokenizer import SEGMENT_CHARS, Tokenizer, load_tokenizer

BATCH_BYTES = 1 << 20  # text encoded at a time: an encoding of `tokenizers` takes some 150 times its text's memory
BYTES_PER_WORKER = 64 << 20  # gigatoken encodes fewer sooner than another process has started and read the tokenizer
DOMAIN_NAME = re.compile(r"[\w.+-]+(/[\w.+-]+)*")


class EncodeSettings(Section):
    """How documents become tokens.

    Attributes:
        eos: token that ends documents; default: the tokenizer's own.
        validation_share: part of the documents of each domain that is held out, by hash of (seed, id).
        validation_minimum: documents held out of a small domain all the same, at most half of it.
        seed: decides order and hold-out.
        max_document_tokens: longer documents are cut to this length (end of text included) and counted.
        max_shard_tokens: a domain with more tokens becomes several shards, `<domain>-00000-of-00003` and so on.
        fim: documents that are told with their middle last; none without it.
        engine: `auto` takes gigatoken where it gives the same ids, else `tokenizers`; the ids never differ.
    """

    eos: str | None = None
    validation_share: float = Field(default=0.02, ge=0, lt=1)
    validation_minimum: int = Field(default=1, ge=0)
    seed: int = 0
    max_document_tokens: int | None = Field(default=None, ge=2)
    max_shard_tokens: Tokens | None = Field(default=None, ge=2)
    fim: FimSettings | None = None
    engine: Engine = "auto"

    @property
    def special(self) -> tuple[str, ...]:
        """Tokens that the tokenizer must have, and that no text may produce."""
        return self.fim.tokens if self.fim is not None else ()


def encode(
    files: Sequence[Path],
    work: Path,
    tokenizer: Path,
    settings: EncodeSettings,
    workers: int = 1,
    name: str | None = None,
    held_out: Sequence[Path] = (),
) -> Outcome:
    """Write the shards of each domain: `<domain>.bin`, `.idx`, `.origin.parquet`.

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
        RecipeError: the tokenizer lacks a token that `fim` needs.
    """
    started = time.perf_counter()
    loaded = _cached_tokenizer(*_key(tokenizer), settings.eos, settings.special)
    pieces = work / SCRATCH / "pieces"
    parts = parts_of(files)
    threads = workers // max(1, len(files))
    engine = _cached_encoder(loaded, settings.engine).engine if workers > 1 else ""
    workers = min(workers, 1 + _text_bytes(files) // BYTES_PER_WORKER) if engine == "gigatoken" else workers
    block = EncodeDocuments(pieces, parts, tokenizer, settings, name, threads, held_out)
    run_blocks([ReadDocuments([str(f) for f in files]), block], len(files), work, workers, "encode")
    folders = [pieces / f"{rank:05d}" for rank in range(len(files))]
    splits = ("train",) if held_out else ("train", "validation") if settings.validation_share else ("",)
    outcome = _merged(folders, work, loaded, settings, splits, workers)
    text_bytes = sum(split["bytes"] for split in outcome.metrics["totals"].values())
    engines = sorted({read_tally(folder)["engine"] for folder in folders})
    record("encode", seconds=round(time.perf_counter() - started, 3), text_bytes=text_bytes, workers=workers,
           engine=", ".join(engines))  # fmt: skip
    return outcome


class EncodeDocuments(PipelineStep):
    """End of a pipeline: encodes one part's documents into pieces for `pipelines.merge`.

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
        tokenizer = _cached_tokenizer(*_key(self.tokenizer), self.settings.eos, self.settings.special)
        fim = FillInTheMiddle(self.settings.fim, self.settings.seed, tokenizer) if self.settings.fim else None
        writer = PieceWriter(self.pieces / f"{rank:05d}", token_dtype(tokenizer.vocab_size))
        tally: Counter[str] = Counter(docs_in=0, empty=0, cut=0, held_out=0, fim=0)
        left_out = _ids_in(self.held_out)
        with _tokenizer_threads(self.threads):
            encoder = _cached_encoder(tokenizer, self.settings.engine)
            for batch in chain.from_iterable(map(_slices, data)):
                tally["docs_in"] += batch.num_rows
                if self.held_out:
                    rest = batch.filter(pc.invert(pc.is_in(batch["id"], value_set=left_out)))
                    tally["held_out"] += batch.num_rows - rest.num_rows
                    batch = rest
                self._encode(batch, rank, encoder, fim, writer, tally)
                progress = self.pieces.parent / "progress" / str(rank)
                write_atomically(progress, str(tally["docs_in"]).encode())
        silent = [self.domain or self.parts[rank].rpartition("/")[0]] if not tally["docs_in"] else []
        writer.close({**tally, "engine": encoder.engine}, [domain for domain in silent if domain])

    def _encode(
        self, batch: pa.Table, rank: int, encoder: Encoder, fim: FillInTheMiddle | None, writer: PieceWriter,
        tally: Counter,
    ) -> None:  # fmt: skip
        batch = batch.set_column(batch.schema.get_field_index("text"), "text", pc.fill_null(batch["text"], ""))
        domains = np.array(domains_of(batch, self.parts[rank], self.domain), dtype=object)
        for domain in dict.fromkeys(domains.tolist()):
            if not DOMAIN_NAME.fullmatch(domain) or ".." in domain.split("/"):
                raise DataError(f"domain {domain!r} cannot name a shard: expected words such as 'web_en/high'")
        order_D = hash_ids(batch["id"], f"{self.settings.seed}/order")
        told = _tell(batch, domains, encoder, fim, order_D, self.settings.max_document_tokens)
        size_D = pc.binary_length(batch["text"]).to_numpy().astype(np.int64)
        for row in told.cut:
            size_D[row] = _encoded_bytes(encoder.tokenizer, batch["text"][int(row)].as_py(), int(told.tokens[row]) - 1)
        tally["cut"] += len(told.cut)
        tally["empty"] += int((told.tokens <= 1).sum())
        tally["fim"] += sum(mode is not None for mode in told.fim)
        described = self._describe(batch, domains, told, size_D, order_D)
        for domain in dict.fromkeys(domains[told.tokens > 1]):
            chosen_D = (domains == domain) & (told.tokens > 1)
            s = chosen_D[told.owner]
            tokens_T = put_end_to_end(
                told.ids, told.start[s], told.length[s], told.lead[s], told.last[s], encoder.tokenizer.eos_id,
                writer.dtype,
            )  # fmt: skip
            writer.append(domain, tokens_T, described.take(pa.array(np.flatnonzero(chosen_D))))

    def _describe(
        self, batch: pa.Table, domains: np.ndarray, told: "Told", size_D: np.ndarray, order_D: np.ndarray
    ) -> pa.Table:
        held_out = self.settings.validation_share > 0
        added = {
            "domain": pa.array(domains, pa.string()),
            "tokens": pa.array(told.tokens, pa.int64()),
            "bytes": pa.array(size_D),
            "fim": pa.array(told.fim, pa.string()),
            "order": pa.array(order_D),
            "held": pa.array(
                hash_ids(source_ids(batch), f"{self.settings.seed}/held") if held_out else np.zeros_like(order_D)
            ),
        }
        return pa.table([added[name] if name in added else batch[name] for name in PIECE.names], schema=PIECE)


class Told(NamedTuple):
    """A batch's documents as segments of ids, each document's in the order in which it is told.

    Attributes:
        ids: that segments are parts of.
        owner: int64 (S,), document of each segment, ascending.
        start: int64 (S,), where it begins in `ids`.
        length: int64 (S,).
        lead: int32 (S, 2), special tokens before it, -1 for none.
        last: bool (S,), whether it ends its document.
        tokens: int64 (D,), of each document, its end token included.
        cut: documents that were cut to the length.
        fim: `psm`, `spm` or None for each document.
    """

    ids: np.ndarray
    owner: np.ndarray
    start: np.ndarray
    length: np.ndarray
    lead: np.ndarray
    last: np.ndarray
    tokens: np.ndarray
    cut: np.ndarray
    fim: list[str | None]


def _tell(
    batch: pa.Table, domains: np.ndarray, encoder: Encoder, fim: FillInTheMiddle | None, order_D: np.ndarray,
    limit: int | None,
) -> Told:  # fmt: skip
    """Encode a batch; documents whose middle stands last are three segments, and never cut."""
    texts, count = batch["text"], batch.num_rows
    names = [name if order % SPOT_CHECK == 0 else "" for name, order in zip(batch["id"].to_pylist(), order_D.tolist(),
                                                                             strict=True)]  # fmt: skip
    ids, length_S = encoder.encode(texts, names)
    owner_S, lead_S2 = np.arange(count), np.full((count, 2), -1, np.int32)
    modes: list[str | None] = [None] * count
    if fim is not None and len((cut := fim.segments(batch["id"], texts, domains.tolist())).rows):
        more = encoder.encode(pa.array(cut.texts, pa.large_string()))
        tokens_R = more.lengths.reshape(-1, 3).sum(axis=1) + 4
        taken_R = (tokens_R <= (limit or tokens_R)) & (length_S[cut.rows] > 0)
        taken_S = np.repeat(taken_R, 3)
        plain = ~np.isin(owner_S, cut.rows[taken_R])
        start_S = np.concatenate([_starts(length_S)[plain], (len(ids) + _starts(more.lengths))[taken_S]])
        ids, length_S = np.concatenate([ids, more.ids]), np.concatenate([length_S[plain], more.lengths[taken_S]])
        lead_S2 = np.concatenate([lead_S2[plain], cut.leads[taken_S]])
        owner_S = np.concatenate([owner_S[plain], np.repeat(cut.rows, 3)[taken_S]])
        for row, mode in zip(cut.rows[taken_R], np.array(cut.modes)[taken_R].tolist(), strict=True):
            modes[row] = mode
        order_S = np.argsort(owner_S, kind="stable")
        start_S, length_S, lead_S2, owner_S = start_S[order_S], length_S[order_S], lead_S2[order_S], owner_S[order_S]
    else:
        start_S = _starts(length_S)
    tokens_D = np.bincount(owner_S, length_S + (lead_S2 >= 0).sum(axis=1), count).astype(np.int64) + 1
    long_D = np.flatnonzero(tokens_D > limit) if limit is not None else np.zeros(0, np.int64)
    if limit is not None:
        length_S = np.where(np.isin(owner_S, long_D), limit - 1, length_S)
        tokens_D[long_D] = limit
    last_S = np.append(owner_S[1:] != owner_S[:-1], True)[: len(owner_S)]
    return Told(ids, owner_S, start_S, length_S, lead_S2, last_S, tokens_D, long_D, modes)


def _starts(length_S: np.ndarray) -> np.ndarray:
    return np.cumsum(length_S) - length_S


def _text_bytes(files: Sequence[Path]) -> int:
    """About how many bytes of text there are, as the files' footers say."""
    total = 0
    for file in files:
        with contextlib.suppress(pa.ArrowException, OSError):  # the reader says what is wrong with it
            told = pq.read_metadata(file)
            total += sum(told.row_group(number).total_byte_size for number in range(told.num_row_groups))
    return total


def _slices(batch: pa.Table) -> Iterator[pa.Table]:
    """Cut a batch where another `BATCH_BYTES` of text have passed."""
    size_D = pc.fill_null(pc.binary_length(batch["text"]), 0).to_numpy()
    cuts = [0, *(np.flatnonzero(np.diff(np.cumsum(size_D) // BATCH_BYTES)) + 1).tolist(), batch.num_rows]
    return (batch.slice(a, b - a) for a, b in pairwise(cuts) if b > a)


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


def _key(path: Path) -> tuple[str, int]:
    """What the cache goes by: a tokenizer written anew under the same path is another one."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return str(path), max((p.stat().st_mtime_ns for p in files), default=0)


@functools.lru_cache(maxsize=2)
def _cached_tokenizer(path: str, changed_ns: int, eos: str | None, special: tuple[str, ...]) -> Tokenizer:
    tokenizer = load_tokenizer(Path(path), eos)
    make_special(tokenizer, special)
    return tokenizer


@functools.lru_cache(maxsize=1)
def _cached_encoder(tokenizer: Tokenizer, engine: Engine) -> Encoder:
    return Encoder(tokenizer, engine)


def _ids_in(files: Sequence[Path]) -> pa.Array:
    """The column `id` of all files."""
    return pa.concat_arrays(
        [pq.read_table(f, columns=["id"])["id"].combine_chunks() for f in files] or [pa.array([], pa.string())]
    )


def _merged(
    folders: Sequence[Path], work: Path, tokenizer: Tokenizer, settings: EncodeSettings, splits: tuple[str, ...],
    workers: int,
) -> Outcome:  # fmt: skip
    tallies = [read_tally(folder) for folder in folders]
    domains = sorted({domain for tally in tallies for domain in tally["domains"]})
    dtype = token_dtype(tokenizer.vocab_size)
    described = merge(
        domains, folders, work, dtype, tokenizer.vocab_size, splits, functools.partial(_held_out, settings),
        settings.max_shard_tokens, workers,
    )  # fmt: skip
    totals = {split or "train": _total(described, split or "train") for split in splits}
    documents = sum(tally["docs_in"] for tally in tallies)
    gone = {key: n for key in ("empty", "held_out") if (n := sum(tally[key] for tally in tallies))}
    metrics: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, "dtype": dtype.name, "domains": described,
        "totals": totals,
        "validation_bytes": {d: s["validation"]["bytes"] for d, s in described.items() if "validation" in s},
        "empty_domains": sorted({d for tally in tallies for d in tally["silent"]} - set(domains)),
        "documents_cut": sum(tally["cut"] for tally in tallies),
        "documents_fim": sum(tally["fim"] for tally in tallies),
    }  # fmt: skip
    counts = Counts(docs_in=documents, kept=documents - sum(gone.values()), dropped=gone)
    return Outcome(with_rejected_inputs(counts, work), metrics)


def _held_out(settings: EncodeSettings, hash_D: np.ndarray) -> np.ndarray:
    """Bool (documents,): which go to validation; one document at least stays for training."""
    held_D = np.zeros(len(hash_D), bool)
    drawn = int((hash_D < np.uint64(settings.validation_share * 2.0**64)).sum())
    count = min(max(drawn, min(settings.validation_minimum, len(hash_D) // 2)), len(hash_D) - 1)
    held_D[np.argsort(hash_D, kind="stable")[:count]] = True
    return held_D


def _total(described: dict[str, dict[str, dict[str, int]]], split: str) -> dict[str, int]:
    parts = [splits[split] for splits in described.values() if split in splits]
    return {key: sum(part[key] for part in parts) for key in ("documents", "tokens", "bytes")}
