"""How good a model is: bits per byte of held-out text per domain, and multiple-choice accuracy, with intervals.

Bits per byte divides by the bytes of the text and not by tokens, so that models with different tokenizers compare.
Every number comes with a 95% interval, and every accuracy with its chance level, since small models stand close to it.
Conventions follow lm-evaluation-harness 0.4.13, with which a test checks agreement item by item; docs/evaluation.md.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pydantic import Field

from pipelines import journal
from pipelines.errors import DataError
from pipelines.execute import SCRATCH
from pipelines.files import write_atomically
from pipelines.progress import track
from pipelines.recipe import Section
from pipelines.store import Outcome
from trainer.eval_items import EvalItem, load_benchmarks
from trainer.held_out import Documents, HeldOut, TokenShard, held_out
from trainer.likelihood import Scorer, split_pair

Z95 = 1.959963984540054  # the normal distribution's 97.5% point
LN2 = math.log(2)


class EvaluateSettings(Section):
    """What to measure, and how much of it.

    Attributes:
        max_length: tokens per window; the model's own limit when null.
        tokens_per_domain: held-out documents are scored until they hold this many tokens; null scores all.
        chars_per_document: of a document from a Parquet file, this much at most; one long text is not its domain.
        items_per_benchmark: at most this many items of each benchmark, chosen by hash; null scores all.
        batch_tokens: most tokens in a padded batch.
        threads: CPU threads of torch; part of the settings because sums change with it in the last bits.
    """

    max_length: int | None = Field(default=None, ge=2)
    tokens_per_domain: int | None = Field(default=200_000, ge=1)
    chars_per_document: int = Field(default=100_000, ge=1)
    items_per_benchmark: int | None = Field(default=None, ge=1)
    batch_tokens: int = Field(default=8192, ge=1)
    threads: int = Field(default=1, ge=1)


def evaluate(
    model: Path,
    work: Path,
    settings: EvaluateSettings,
    validation: Path | Mapping[str, Sequence[Path]],
    items: Sequence[Path] = (),
) -> Outcome:
    """Measure a model; writes `results.json`, `documents.parquet` and `items.parquet`.

    Args:
        model: Hugging Face folder with its tokenizer.
        work: folder to fill; a call after a kill goes on with the parts that are missing.
        settings: how much to measure.
        validation: folder of held-out shards (their names are the domains), or domain -> held-out Parquet documents.
        items: item files (`trainer.eval_items`).

    Returns:
        As metrics what `results.json` holds.

    Raises:
        DataError: nothing to measure, or a model, document file or item file is unusable.
    """
    from trainer.device import torch_threads  # here, because it imports torch

    if not validation and not items:
        raise DataError("nothing to evaluate: give held-out documents or item files")
    sources = held_out(validation, settings.chars_per_document) if validation else {}
    groups, rejected = load_benchmarks(items)
    with torch_threads(settings.threads):
        scorer = Scorer(model, settings.max_length, settings.batch_tokens)
        documents = {
            domain: _once(work / SCRATCH / "domains" / f"{number:03d}.parquet",
                          lambda source=source: score_documents(scorer, source, settings.tokens_per_domain))
            for number, (domain, source) in enumerate(sources.items())
        }  # fmt: skip
        benchmarks = {name: _once(work / SCRATCH / "benchmarks" / f"{number:03d}.parquet",
                                  lambda group=group: score_items(scorer, _limited(group, settings)))
                      for number, (name, group) in enumerate(groups.items())}  # fmt: skip
    results = {
        "window_tokens": scorer.max_length,
        "domains": {domain: summarize_documents(table) for domain, table in documents.items()},
        "benchmarks": {name: summarize_items(table) for name, table in benchmarks.items()},
        "rejected_rows": rejected,
    }
    if documents:
        results["all_domains"] = summarize_documents(pa.concat_tables(documents.values()))
    _write(work / "documents.parquet", documents, "domain")
    _write(work / "items.parquet", benchmarks, "benchmark")
    write_atomically(work / "results.json", (json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())
    return Outcome(metrics=results)


def score_documents(scorer: Scorer, source: Documents | TokenShard, limit: int | None) -> pa.Table:
    """Score documents until they hold `limit` tokens.

    Args:
        scorer: the model.
        source: where they come from, in a fixed order.
        limit: tokens, or None for all.

    Returns:
        One row per document: id, nll_nats, tokens, bytes; documents without a token are left out.
    """
    rows: list[HeldOut] = []
    spans, owners = [], []
    tokens = 0
    for document in source.read(scorer):
        if document.tokens:
            found = scorer.spans_of(document.tokens)
            owners += [len(rows)] * len(found)
            spans += found
            rows.append(document)
            tokens += len(document.tokens)
        if limit is not None and tokens >= limit:
            break
    started = time.perf_counter()
    with track("bits per byte", tokens, "tokens") as tracker:
        nll = np.zeros(len(rows))
        np.add.at(nll, owners, scorer.nll_nats(spans, _adding(tracker)))
    journal.record("evaluate", documents=len(rows), tokens=tokens, seconds=round(time.perf_counter() - started, 3))
    return pa.table({"id": pa.array([row.id for row in rows], pa.string()), "nll_nats": pa.array(nll, pa.float64()),
                     "tokens": pa.array([len(row.tokens) for row in rows], pa.int64()),
                     "bytes": pa.array([row.size_bytes for row in rows], pa.int64())})  # fmt: skip


def score_items(scorer: Scorer, items: Sequence[EvalItem]) -> pa.Table:
    """Log-likelihood of every choice given its query.

    Returns:
        One row per item: id, gold, reason (why it could not be scored, else null), and per choice loglikelihoods
        (nats), chars (leading white space left out, as in lm-eval's acc_norm), and tokens and bytes (of all that is
        scored).
    """
    spans, places = [], []
    rows: list[dict[str, Any]] = []
    for number, item in enumerate(items):
        pairs = [split_pair(item.query, choice) for choice in item.choices]
        found = [scorer.pair_span(context, continuation) for context, continuation in pairs]
        usable = all(span is not None for span in found)
        rows.append({"id": item.id, "gold": item.gold, "reason": None if usable else "choice_without_room_or_token",
                     "loglikelihoods": [None] * len(found), "chars": [len(c.lstrip()) for c in item.choices],
                     "tokens": [span.scored if span else None for span in found],
                     "bytes": [len(continuation.encode()) for _, continuation in pairs]})  # fmt: skip
        if usable:
            places += [(number, choice) for choice in range(len(found))]
            spans += [span for span in found if span is not None]
    with track("multiple choice", sum(span.scored for span in spans), "tokens") as tracker:
        for (number, choice), nll in zip(places, scorer.nll_nats(spans, _adding(tracker)), strict=True):
            rows[number]["loglikelihoods"][choice] = -nll
    schema = pa.schema([("id", pa.string()), ("gold", pa.int64()), ("reason", pa.string()),
                        ("loglikelihoods", pa.list_(pa.float64())), ("chars", pa.list_(pa.int64())),
                        ("tokens", pa.list_(pa.int64())), ("bytes", pa.list_(pa.int64()))])  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schema)


def summarize_documents(table: pa.Table) -> dict[str, Any]:
    """Bits per byte and perplexity per token of scored documents.

    Sums are divided, means are not averaged: bpb = sum(nll) / (ln 2 * sum(bytes)). The interval is that of a ratio of
    sums over documents (linearized standard error); it is null for fewer than two documents.
    """
    nll, sizes = table["nll_nats"].to_numpy(), table["bytes"].to_numpy()
    tokens, size = int(np.sum(table["tokens"].to_numpy())), int(sizes.sum())
    if not size:
        return {"documents": 0, "tokens": 0, "bytes": 0, "nll_nats": 0.0, "bits_per_byte": None,
                "bits_per_byte_lo95": None, "bits_per_byte_hi95": None, "perplexity": None}  # fmt: skip
    total = math.fsum(nll)
    bits = total / (LN2 * size)
    spread = None
    if (n := len(nll)) > 1:
        residuals = nll / LN2 - bits * sizes
        spread = Z95 * math.sqrt(n / (n - 1) * math.fsum(residuals**2)) / size
    return {
        "documents": n, "tokens": tokens, "bytes": size, "nll_nats": total, "bits_per_byte": bits,
        "bits_per_byte_lo95": None if spread is None else max(0.0, bits - spread),
        "bits_per_byte_hi95": None if spread is None else bits + spread,
        "perplexity": math.exp(min(total / tokens, 700.0)),
    }  # fmt: skip


def summarize_items(table: pa.Table) -> dict[str, Any]:
    """Accuracy by total, per-character and per-token log-likelihood, chance, and bits per byte of the right answers.

    The last of the three, `acc_ppl`, takes the choice of lowest perplexity: of items of a right and a corrupted chain
    (`trainer.chains`) it is PPL-pass.
    """
    unscored = Counter(reason for reason in table["reason"].to_pylist() if reason)
    rows = [row for row in table.to_pylist() if row["reason"] is None]
    summary: dict[str, Any] = {"items": len(rows), "unscored": dict(sorted(unscored.items()))}
    if not rows:
        return summary
    chances = [1 / len(row["chars"]) for row in rows]
    summary["chance"] = math.fsum(chances) / len(rows)
    sums = [int(np.argmax(row["loglikelihoods"])) == row["gold"] for row in rows]
    norms = [int(np.argmax(_per(row, "chars"))) == row["gold"] for row in rows]
    per_token = [int(np.argmax(_per(row, "tokens"))) == row["gold"] for row in rows]
    for name, right in (("acc", sums), ("acc_norm", norms), ("acc_ppl", per_token)):
        low, high = wilson95(sum(right), len(right))
        summary |= {name: sum(right) / len(right), f"{name}_lo95": low, f"{name}_hi95": high,
                    f"{name}_verdict": _verdict(low, high, summary["chance"])}  # fmt: skip
    summary["gold_probability"] = math.fsum(_softmax(_per(row, "chars"))[row["gold"]] for row in rows) / len(rows)
    nats = -math.fsum(row["loglikelihoods"][row["gold"]] for row in rows)
    summary["gold_bits_per_byte"] = nats / (LN2 * sum(row["bytes"][row["gold"]] for row in rows))
    return summary


def wilson95(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a proportion (Wilson 1927): sound for small n and near 0 and 1."""
    share, z2 = right / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def _verdict(low: float, high: float, chance: float) -> str:
    return "above chance" if low > chance else "below chance" if high < chance else "not told from chance"


def _per(row: Mapping[str, Any], size: str) -> np.ndarray:
    return np.array(row["loglikelihoods"]) / np.array(row[size])


def _softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def _limited(items: Sequence[EvalItem], settings: EvaluateSettings) -> list[EvalItem]:
    """The items with the smallest hashes: the same ones whatever else a file holds."""
    ranked = sorted(items, key=lambda item: (xxhash.xxh3_64_intdigest(item.id.encode()), item.id))
    return ranked[: settings.items_per_benchmark]


def _once(path: Path, make: Any) -> pa.Table:
    """The table at `path`, made first when it is not there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        pq.write_table(make(), temporary)
        temporary.replace(path)
    return pq.read_table(path)


def _write(path: Path, tables: Mapping[str, pa.Table], label: str) -> None:
    if tables:
        named = [
            table.add_column(0, label, pa.array([name] * len(table), pa.string())) for name, table in tables.items()
        ]
        pq.write_table(pa.concat_tables(named), path, compression="zstd")


def _adding(tracker: Any) -> Any:
    done = Counter[str]()

    def add(tokens: int) -> None:
        done["tokens"] += tokens
        tracker.update(done["tokens"])

    return add
