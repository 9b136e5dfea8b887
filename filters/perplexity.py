"""Perplexity of documents under a causal language model: sums of nats, tokens and bytes, from which all else follows.

The policy (scorer, model digest, prefix token, window, dtype) is hashed and written into every file of scores, since
numbers of two policies must never meet in one set of quantiles. Scorers stand behind one protocol
(`filters/score_table.py`): causal models by transformers or vLLM, n-gram models by KenLM.
"""

import contextlib
import functools
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.pipeline.base import PipelineStep
from pydantic import Field

from filters.nll_vllm import VLLM_EXTRA_TOKENS
from filters.score_table import POLICY_KEY, SCORES_SCHEMA, Scorer
from filters.scorer_causal import READ_CHARS_PER_TOKEN, CausalScorer, open_tokenizer, open_transformers, prefix_id
from filters.scorer_kenlm import kenlm_digest
from pipelines.block import ReadDocuments
from pipelines.execute import SCRATCH, parts_of, run_blocks, with_rejected_inputs
from pipelines.files import write_atomically
from pipelines.journal import record
from pipelines.manifest import Counts, digest_of
from pipelines.model_folder import check_model_folder, digest_model
from pipelines.recipe import Section
from pipelines.store import Outcome


class PerplexitySettings(Section):
    """How documents are scored.

    Attributes:
        scorer: what runs the model: `transformers` or `vllm` for a causal one, `kenlm` for an n-gram one.
        max_tokens: tokens per window; the model's own limit where that is smaller.
        long_documents: score the `first` window only (bounds the cost, enough to rank), or every `disjoint` window.
        prefix: token put before the document, so that its first token is scored too: the tokenizer's `eos` or `bos`, a
            token as it is written (`<|endoftext|>`), or `none`.
        dtype: of weights and activations; the softmax is float32 always.
        batch_tokens: tokens per forward pass, padding included.
        threads: of each worker; fixed here because the order of float sums depends on it.
        device: where the model runs.
    """

    scorer: Literal["transformers", "vllm", "kenlm"] = "transformers"
    max_tokens: int = Field(default=4096, ge=2)
    long_documents: Literal["first", "disjoint"] = "first"
    prefix: Literal["eos", "bos", "none"] | Annotated[str, Field(pattern=r"<.+>")] = "eos"
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
        model: folder in Hugging Face format, tokenizer included; a KenLM file for that scorer.
        workers: processes, each with its own copy of the model.

    Returns:
        Counts (every document is kept), and per domain: documents, unscored, tokens, nats per token, bits per byte.

    Raises:
        DataError: the model is incomplete or its tokenizer lacks the prefix token.
        MissingExtra: the scorer is not installed.
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
    counts = with_rejected_inputs(Counts(docs_in=total, kept=total), work)
    return Outcome(counts, {"policy": policy_hash(policy), "domains": metrics})


def policy_of(model: Path, settings: PerplexitySettings) -> dict[str, Any]:
    """Everything that two scores must share to be compared.

    Raises:
        DataError: the model folder is incomplete or its tokenizer lacks the prefix token.
    """
    shared = {"version": 2, "scorer": settings.scorer}
    if settings.scorer == "kenlm":
        return {**shared, "model": kenlm_digest(model), "normalization": "cc_net"}
    check_model_folder(model)
    positions = json.loads((model / "config.json").read_bytes()).get("max_position_embeddings")
    longest = positions and positions - (VLLM_EXTRA_TOKENS if settings.scorer == "vllm" else 0)
    return {
        **shared,
        "model": digest_model(model),
        "dtype": settings.dtype,
        "prefix": settings.prefix,
        "prefix_id": prefix_id(open_tokenizer(str(model)), settings.prefix, model),
        "max_tokens": min(settings.max_tokens, longest or settings.max_tokens),
        "long_documents": settings.long_documents,
        "read_chars_per_token": READ_CHARS_PER_TOKEN,
    }


def policy_hash(policy: dict[str, Any]) -> str:
    """Hash of a policy, as it stands in the files of scores."""
    return digest_of(policy)[:32]


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


def open_scorer(model: str, settings: PerplexitySettings, policy: dict[str, Any]) -> Scorer:
    """Load a model from disk, once per process.

    Args:
        model: folder in Hugging Face format, or a KenLM file.
        settings: how to score.
        policy: of `policy_of` for these two.
    """
    if settings.scorer == "kenlm":
        from filters.scorer_kenlm import KenlmScorer

        return KenlmScorer(Path(model))
    if settings.scorer == "vllm":
        from filters import nll_vllm

        engine = nll_vllm.open_vllm(model, settings.dtype, policy["max_tokens"], settings.batch_tokens, policy["model"])
        backend = functools.partial(nll_vllm.windows_nll_N, engine)
    else:
        from filters import nll

        loaded = open_transformers(model, settings.dtype, settings.device, policy["model"])
        backend = functools.partial(nll.windows_nll_N, loaded, batch_tokens=settings.batch_tokens)
    tokenizer = open_tokenizer(model).backend_tokenizer
    whole = settings.long_documents == "disjoint"
    return CausalScorer(backend, tokenizer, policy["prefix_id"], policy["max_tokens"], whole)


@contextlib.contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
