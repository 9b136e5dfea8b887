"""Perplexity of documents under a causal language model: sums of nats, tokens and bytes, from which all else follows.

The policy (model digest, prefix token, window, dtype, backend) is hashed and written into every file of scores, since
numbers of two policies must never meet in one set of quantiles. Documents of at most one token are unscored: null, not
a large number that would spoil the quantiles. Prefix and windows follow lm-evaluation-harness.
"""

import contextlib
import functools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.pipeline.base import PipelineStep
from pydantic import Field

from pipelines.block import ReadDocuments
from pipelines.errors import DataError
from pipelines.execute import SCRATCH, parts_of, run_blocks
from pipelines.files import write_atomically
from pipelines.journal import record
from pipelines.manifest import Counts, digest_of
from pipelines.model_folder import check_model_folder, digest_model
from pipelines.recipe import Section
from pipelines.store import Outcome

POLICY_KEY = b"loam.policy"
READ_CHARS_PER_TOKEN = 64  # of a first window; a line of 50 MB, tokenized whole, takes minutes and gigabytes
SCORES_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        ("sum_nll_nats", pa.float64()),  # null: unscored
        ("scored_tokens", pa.int64()),
        ("bytes", pa.int64()),  # UTF-8 bytes of the scored part
        ("chars", pa.int64()),  # characters of the scored part
        ("truncated", pa.bool_()),
        ("domain", pa.string()),
        ("language", pa.string()),
        ("source", pa.string()),
    ]
)


class PerplexitySettings(Section):
    """How documents are scored.

    Attributes:
        max_tokens: tokens per window; the model's own limit where that is smaller.
        long_documents: score the `first` window only (bounds the cost, enough to rank), or every `disjoint` window.
        prefix: token put before the document, so that its first token is scored too.
        dtype: of weights and activations; the softmax is float32 always.
        batch_tokens: tokens per forward pass, padding included.
        threads: of each worker; fixed here because the order of float sums depends on it.
        device: where the model runs.
    """

    max_tokens: int = Field(default=4096, ge=2)
    long_documents: Literal["first", "disjoint"] = "first"
    prefix: Literal["eos", "bos", "none"] = "eos"
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_tokens: int = Field(default=2048, ge=1)
    threads: int = Field(default=1, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"


def score_perplexity(
    files: Sequence[Path], work: Path, settings: PerplexitySettings, model: Path, workers: int = 1
) -> Outcome:
    """Score documents; writes `scores/<part>.parquet` and `policy.json`.

    Args:
        files: Parquet documents.
        work: the step's working folder.
        settings: window, prefix, dtype.
        model: folder in Hugging Face format, tokenizer included.
        workers: processes, each with its own copy of the model.

    Returns:
        Counts (every document is kept), and per domain: documents, unscored, tokens, nats per token, bits per byte.

    Raises:
        DataError: the model folder is incomplete or its tokenizer lacks the prefix token.
    """
    started = time.monotonic()
    policy = policy_of(model, settings)
    write_atomically(work / "policy.json", (json.dumps(policy, indent=1, sort_keys=True) + "\n").encode())
    parts = parts_of(files)
    step = ScoreShards(str(work), parts, str(model), settings, policy)
    run_blocks([ReadDocuments([str(file) for file in files]), step], len(files), work, workers, "perplexity")
    metrics = summarize([work / "scores" / f"{part}.parquet" for part in parts])
    total = sum(row["documents"] for row in metrics.values())
    tokens = sum(row["scored_tokens"] for row in metrics.values())
    record("perplexity", documents=total, tokens=tokens, seconds=round(time.monotonic() - started, 3))
    return Outcome(Counts(docs_in=total, kept=total), {"policy": policy_hash(policy), "domains": metrics})


def policy_of(model: Path, settings: PerplexitySettings) -> dict[str, Any]:
    """Everything that two scores must share to be compared.

    Raises:
        DataError: the model folder is incomplete or its tokenizer lacks the prefix token.
    """
    check_model_folder(model)
    positions = json.loads((model / "config.json").read_bytes()).get("max_position_embeddings")
    return {
        "version": 1,
        "model": digest_model(model),
        "backend": "transformers",
        "dtype": settings.dtype,
        "prefix": settings.prefix,
        "prefix_id": prefix_id(_tokenizer(str(model)), settings.prefix, model),
        "max_tokens": min(settings.max_tokens, positions or settings.max_tokens),
        "long_documents": settings.long_documents,
        "read_chars_per_token": READ_CHARS_PER_TOKEN,
    }


def policy_hash(policy: dict[str, Any]) -> str:
    """Hash of a policy, as it stands in the files of scores."""
    return digest_of(policy)[:32]


def prefix_id(tokenizer: Any, prefix: str, model: Path) -> int | None:
    """Token id of the prefix.

    Raises:
        DataError: the tokenizer has no such token.
    """
    if prefix == "none":
        return None
    found = tokenizer.eos_token_id if prefix == "eos" else tokenizer.bos_token_id
    if found is None:
        raise DataError(f"{model}: the tokenizer has no {prefix} token; use prefix: none, or name one in its config")
    return found


def summarize(score_files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Totals of score files by domain; documents weigh by their tokens and bytes, not one by one."""
    columns = ["domain", "sum_nll_nats", "scored_tokens", "bytes", "truncated"]
    if not score_files:
        return {}
    table = pl.concat([pl.DataFrame(pq.read_table(file, columns=columns)) for file in score_files])
    totals = (
        table.with_columns(pl.col("domain").fill_null("all"))
        .group_by("domain")
        .agg(pl.len().alias("documents"), pl.col("sum_nll_nats").null_count().alias("unscored"),
             pl.col("truncated", "scored_tokens", "bytes", "sum_nll_nats").sum())
        .sort("domain")
    )  # fmt: skip
    return {
        row["domain"]: {
            **{key: row[key] for key in ("documents", "unscored", "truncated", "scored_tokens", "bytes")},
            "nats_per_token": row["sum_nll_nats"] / row["scored_tokens"] if row["scored_tokens"] else None,
            "bits_per_byte": row["sum_nll_nats"] / row["bytes"] / float(np.log(2)) if row["bytes"] else None,
        }
        for row in totals.iter_rows(named=True)
    }


class ScoreShards(PipelineStep):
    """End of a pipeline: scores a shard's documents and writes them as one file."""

    type = "scorer"
    name = "perplexity"

    def __init__(self, out: str, parts: list[str], model: str, settings: PerplexitySettings, policy: dict) -> None:
        super().__init__()
        self.out, self.parts, self.model, self.settings, self.policy = out, parts, model, settings, policy

    def run(self, data: Iterable[pa.Table], rank: int = 0, world_size: int = 1) -> None:
        """Consume the stream; batches never span shards, so that workers change nothing."""
        path = Path(self.out) / "scores" / f"{self.parts[rank]}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        schema = SCORES_SCHEMA.with_metadata({POLICY_KEY: policy_hash(self.policy).encode()})
        scorer = open_scorer(self.model, self.settings, self.policy)
        seen = 0
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer, _torch_threads(self.settings.threads):
            for batch in data:
                writer.write_table(scorer.score(batch).cast(schema))
                seen += batch.num_rows
                write_atomically(Path(self.out) / SCRATCH / "progress" / str(rank), str(seen).encode())
        temporary.replace(path)


class Scorer:
    """A loaded model with its tokenizer.

    Args:
        model: causal language model in eval mode.
        tokenizer: of the `tokenizers` library; control tokens in documents are read as the text that they are.
        prefix: token id before each document, or None.
        settings: window and batch.
        max_tokens: the window, at most what the model takes.
    """

    def __init__(
        self, model: Any, tokenizer: Any, prefix: int | None, settings: PerplexitySettings, max_tokens: int
    ) -> None:
        self.model, self.tokenizer, self.prefix = model, tokenizer, prefix
        self.settings, self.max_tokens = settings, max_tokens
        tokenizer.encode_special_tokens = True

    def score(self, batch: pa.Table) -> pa.Table:
        """Score the documents of a table with `id` and `text`; rows keep their order."""
        from filters.nll import windows_nll_N, windows_of

        whole = self.settings.long_documents == "disjoint"
        read = None if whole else READ_CHARS_PER_TOKEN * self.max_tokens
        documents = batch["text"].to_pylist()
        texts = [text[:read] for text in documents]
        encodings = self.tokenizer.encode_batch(texts, add_special_tokens=False)
        windows, owners, rows = [], [], []
        for number, (document, text, encoding) in enumerate(zip(documents, texts, encodings, strict=True)):
            ids = encoding.ids
            mine = windows_of(ids, self.prefix, self.max_tokens, whole) if len(ids) > 1 else []
            windows += mine
            owners += [number] * len(mine)
            scored, size, chars, cut = _measure(
                text, encoding, sum(len(window) - 1 for window in mine), self.prefix is not None
            )
            rows.append((scored, size, chars, cut or (scored > 0 and len(text) < len(document))))
        sums_N = windows_nll_N(self.model, windows, self.settings.batch_tokens)
        nll = np.bincount(owners, weights=sums_N, minlength=len(texts)) if owners else np.zeros(len(texts))
        return self._table(batch, rows, nll)

    @staticmethod
    def _table(batch: pa.Table, rows: list[tuple[int, int, int, bool]], nll: np.ndarray) -> pa.Table:
        tokens, sizes, chars, truncated = (list(column) for column in zip(*rows, strict=True))
        scored = (np.array(tokens) > 0) & np.isfinite(nll)
        columns = {
            "id": batch["id"],
            "sum_nll_nats": pa.array(nll, mask=~scored),
            "scored_tokens": pa.array(np.where(scored, tokens, 0)),
            "bytes": pa.array(np.where(scored, sizes, 0)),
            "chars": pa.array(np.where(scored, chars, 0)),
            "truncated": pa.array(truncated),
            **{name: batch[name] for name in ("domain", "language", "source")},
        }
        return pa.table(columns).cast(SCORES_SCHEMA)


def _measure(text: str, encoding: Any, scored: int, prefixed: bool) -> tuple[int, int, int, bool]:
    """Scored tokens, bytes and characters of the scored part, and whether the end was left out."""
    possible = len(encoding.ids) if prefixed else len(encoding.ids) - 1
    if not scored:
        return 0, 0, 0, False
    first = 0 if prefixed else encoding.offsets[0][1]
    last = len(text) if scored == possible else encoding.offsets[scored - prefixed][1]
    part = text[first:last]
    return scored, len(part.encode()), len(part), scored < possible


def open_scorer(model: str, settings: PerplexitySettings, policy: dict[str, Any]) -> Scorer:
    """Load a model from disk, once per process.

    Args:
        model: folder in Hugging Face format.
        settings: how to score.
        policy: of `policy_of` for these two.
    """
    loaded, tokenizer = _load(model, settings.dtype, settings.device, policy["model"])
    return Scorer(loaded, tokenizer, policy["prefix_id"], settings, policy["max_tokens"])


@functools.lru_cache(maxsize=1)
def _load(model: str, dtype: str, device: str, digest: str) -> tuple[Any, Any]:
    """Model and tokenizer; the digest tells two models apart that stood at one path."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # weights load in silence: progress is Loam's to show
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        model, local_files_only=True, use_safetensors=True, dtype=getattr(torch, dtype)
    )
    return loaded.to(device).eval(), _tokenizer(model).backend_tokenizer


def _tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model, local_files_only=True)


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
