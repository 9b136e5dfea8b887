"""The quality classifier: a fastText model trained in the run, and the scores that it gives.

The one choice that matters: text is normalised by the same columnar expression in training and in serving, its identity
is stored beside the model and checked, so that a score never comes from text of another form; one thread and a seed
make `model.bin` the same bytes every time. Source: DCLM (arXiv:2406.11794), fastText (arXiv:1607.01759).
"""

import functools
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from filters.quality_training import train
from pipelines.block import Block
from pipelines.document import DROPPED, conform, with_fate, with_scores
from pipelines.errors import DataError
from pipelines.execute import SCRATCH, transform
from pipelines.files import write_atomically
from pipelines.manifest import Counts, digest_of
from pipelines.recipe import Section
from pipelines.store import Outcome

MODEL, CALIBRATION = "model.bin", "calibration.json"
POSITIVE, NEGATIVE = "__label__high", "__label__low"
NORMALISATION = (
    ("__label__", "label"),  # fastText would read it as a label
    (r"([[:punct:]]|\p{Han}|\p{Hiragana}|\p{Katakana}|[。，、；：？！“”‘’（）《》…—])", r" \1 "),
    (r"[\s\x00\x0b\x1c-\x1f\x{85}\x{a0}\x{3000}]+", " "),  # a line is an example to fastText; NUL ends one
)
"""RE2 replacements, in order, after lower-casing the first `HEAD_CHARS` characters."""
HEAD_CHARS = 20_000
NORMALISER = digest_of(["lower", HEAD_CHARS, NORMALISATION])[:16]
"""Identity of the normaliser, stored in `calibration.json`."""


class QualitySettings(Section):
    """How the classifier is trained, and what its score decides.

    Attributes:
        positive: domains or sources whose documents are examples of quality.
        negative: domains or sources whose documents are not; empty: all others.
        dim: size of the vectors.
        epoch: passes over the examples.
        lr: learning rate.
        word_ngrams: longest word n-gram that has a vector.
        bucket: slots of the hash table of n-grams.
        seed: of training, and of the held-out split.
        held_out: share of documents that calibrate and do not train.
        keep_threshold: smallest score that stays.
        keep_quantile: share of documents that stays, by the calibration's quantiles; both null: only score.
    """

    positive: list[str] = Field(default_factory=list)
    negative: list[str] = Field(default_factory=list)
    dim: int = Field(default=64, ge=1)
    epoch: int = Field(default=10, ge=1)
    lr: float = Field(default=0.2, gt=0)
    word_ngrams: int = Field(default=2, ge=1)
    bucket: int = Field(default=100_000, ge=1)
    seed: int = 0
    held_out: float = Field(default=0.2, gt=0, lt=1)
    keep_threshold: float | None = Field(default=None, ge=0, le=1)
    keep_quantile: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _one_cut(self) -> "QualitySettings":
        if self.keep_threshold is not None and self.keep_quantile is not None:
            raise ValueError("give keep_threshold or keep_quantile, not both")
        return self


def normalise(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Bring texts to the one-line form that the classifier reads: string (N,) to string (N,)."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    texts = pc.utf8_lower(pc.utf8_slice_codeunits(texts, 0, HEAD_CHARS))
    for pattern, replacement in NORMALISATION:
        texts = pc.replace_substring_regex(texts, pattern, replacement)
    return pc.utf8_trim_whitespace(texts)


def area_under_curve(labels_N: np.ndarray, scores_N: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties counted half; NaN with one class only.

    Args:
        labels_N: bool (N,).
        scores_N: float (N,).
    """
    from scipy.stats import rankdata

    positives, negatives = int(labels_N.sum()), int((~labels_N).sum())
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(scores_N)[labels_N].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def train_quality(files: Sequence[Path], work: Path, settings: QualitySettings) -> Outcome:
    """Train the classifier and calibrate it on held-out documents.

    Args:
        files: Parquet documents, labelled by domain or source; or JSONL(.gz) with `text` and `label` (0 or 1).
        work: the step's folder; gets `model.bin` and `calibration.json` (area under the curve, 101 quantiles of the
            score over all held-out documents, identity of the normaliser).
        settings: how.

    Returns:
        counts of examples, and the calibration's numbers.

    Raises:
        DataError: a class has no documents.
    """
    texts, labels, keys = _examples(files, settings)
    held = keys < np.uint64(settings.held_out * 2**64)
    train = _balanced(labels, keys, ~held)
    for label, name in ((1, "positive"), (0, "negative")):
        if not (labels[train] == label).sum():
            raise DataError(f"no {name} documents to train on: {_explain(settings)}")
    model = _fit(texts, labels, train, work, settings)
    scores = _scores(model, texts.filter(pa.array(held)))
    known = labels[held] >= 0
    auc = area_under_curve(labels[held][known] == 1, scores[known])
    quantiles = np.quantile(scores, np.linspace(0, 1, 101)) if len(scores) else np.zeros(101)
    metrics: dict[str, Any] = {
        "auc": None if np.isnan(auc) else round(auc, 6), "train_positive": int((labels[train] == 1).sum()),
        "train_negative": int((labels[train] == 0).sum()), "held_out": int(known.sum()),
    }  # fmt: skip
    calibration = {**metrics, "normaliser": NORMALISER, "quantiles": [round(float(q), 6) for q in quantiles]}
    write_atomically(work / CALIBRATION, (json.dumps(calibration, indent=1, sort_keys=True) + "\n").encode())
    return Outcome(Counts(docs_in=len(labels), kept=len(labels)), metrics)


def _explain(settings: QualitySettings) -> str:
    return f"positive is {settings.positive or 'label 1'}, negative is {settings.negative or 'all others, or label 0'}"


def _examples(files: Sequence[Path], settings: QualitySettings) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """All texts (normalised), labels int (1, 0, -1 unknown) and uint64 keys that decide split and order."""
    from xxhash import xxh64_intdigest

    texts, labels, keys = [], [], []
    for file in files:
        ids, text, label = _labelled(file) if ".jsonl" in file.name else _by_origin(file, settings)
        texts.append(normalise(text))
        labels.append(label)
        keys += [xxh64_intdigest(identity.encode("utf-8", "surrogatepass"), settings.seed) for identity in ids]
    text = pa.chunked_array(texts, pa.string()).combine_chunks()
    return text, np.concatenate([*labels, np.zeros(0, int)]), np.array(keys, np.uint64)


def _labelled(file: Path) -> tuple[list[str], pa.Array, np.ndarray]:
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        try:
            rows = [json.loads(line) for line in lines if line.strip()]
            texts, labels = [row["text"] for row in rows], np.array([int(row["label"]) for row in rows], int)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}: expected JSON lines with `text` and `label` (0 or 1): {error}") from None
    return texts, pa.array(texts, pa.string()), labels  # the text itself is the identity: copies fall together


def _by_origin(file: Path, settings: QualitySettings) -> tuple[list[str], pa.Array, np.ndarray]:
    table = conform(pq.ParquetFile(file).read())
    positive = _named(table, settings.positive)
    negative = _named(table, settings.negative) if settings.negative else ~positive
    labels = np.where(positive, 1, np.where(negative, 0, -1))
    return table["id"].to_pylist(), table["text"].combine_chunks(), labels


def _named(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """Bool (N,): documents whose domain (or a parent of it) or source has one of the names."""
    wanted = pa.array(list(names), pa.string())
    parents = pc.replace_substring_regex(pc.fill_null(table["domain"], ""), "/.*", "")
    found = [pc.is_in(column, value_set=wanted) for column in (table["domain"], parents, table["source"])]
    return np.asarray(functools.reduce(pc.or_, found))


def _balanced(labels: np.ndarray, keys: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Rows to train on, in the order of their keys, equally many of each class."""
    order = np.argsort(keys, kind="stable")
    order = order[chosen[order]]
    classes = [order[labels[order] == label] for label in (0, 1)]
    size = min(map(len, classes))
    picked = np.concatenate([rows[:size] for rows in classes])
    return picked[np.argsort(keys[picked], kind="stable")]


def _fit(texts: pa.Array, labels: np.ndarray, rows: np.ndarray, work: Path, settings: QualitySettings) -> Any:
    import fasttext

    scratch = work / SCRATCH / "train.txt"
    names = [f"{POSITIVE if labels[row] else NEGATIVE} " for row in rows]
    lines = pc.binary_join_element_wise(pa.array(names, pa.string()), texts.take(pa.array(rows)), "")
    write_atomically(scratch, ("\n".join(lines.to_pylist()) + "\n").encode("utf-8", "replace"))
    temporary = work / f".{MODEL}.tmp"
    arguments = {"dim": settings.dim, "epoch": settings.epoch, "lr": settings.lr, "wordNgrams": settings.word_ngrams,
                 "bucket": settings.bucket, "seed": settings.seed}  # fmt: skip
    train(scratch, temporary, arguments)
    temporary.replace(work / MODEL)
    return fasttext.load_model(str(work / MODEL))


def _scores(model: Any, normalised: pa.Array) -> np.ndarray:
    """Probability of the positive class: float64 (N,), 0..1."""
    if not len(normalised):
        return np.zeros(0)
    labels, probabilities = model.predict(normalised.to_pylist(), k=2)
    return np.array([
        min(1.0, float(dict(zip(names, p, strict=True)).get(POSITIVE, 0.0)))
        for names, p in zip(labels, probabilities, strict=True)
    ])  # fmt: skip


def read_calibration(model: Path) -> Mapping[str, Any]:
    """The calibration beside a model.

    Args:
        model: `model.bin` or its folder.

    Raises:
        DataError: it is missing, or belongs to another normaliser.
    """
    path = (model if model.is_dir() else model.parent) / CALIBRATION
    try:
        calibration = json.loads(path.read_text())
    except (OSError, ValueError):
        raise DataError(f"{path} is missing or broken; train the model with `loam quality train`") from None
    if (found := calibration.get("normaliser")) != NORMALISER:
        raise DataError(f"{path}: trained with normaliser {found}, this is {NORMALISER}; train the model again")
    if not path.with_name(MODEL).is_file():
        raise DataError(f"{path.with_name(MODEL)} is missing; train the model with `loam quality train`")
    return calibration


def threshold_of(settings: QualitySettings, calibration: Mapping[str, Any]) -> float | None:
    """The smallest score that stays, or None when nothing is dropped."""
    if settings.keep_quantile is None:
        return settings.keep_threshold
    return float(np.interp(1 - settings.keep_quantile, np.linspace(0, 1, 101), calibration["quantiles"]))


class ScoreQuality(Block):
    """Set `scores.quality`; with a threshold, drop what lies below it (`quality.low`).

    Args:
        settings: the threshold.
        model: `model.bin` or its folder.

    Raises:
        DataError: no model, or one of another normaliser.
    """

    name = "quality"

    def __init__(self, settings: QualitySettings, model: Path) -> None:
        super().__init__()
        self.path = str((model if model.is_dir() else model.parent) / MODEL)
        self.threshold = threshold_of(settings, read_calibration(model))

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_model"}

    def apply(self, batch: pa.Table) -> pa.Table:
        """Score a batch."""
        if "_model" not in self.__dict__:
            import fasttext

            self._model = fasttext.load_model(self.path)
        scores = pa.array(_scores(self._model, normalise(batch["text"])))
        batch = with_scores(batch, quality=scores).append_column("quality.score", scores)
        if self.threshold is None:
            return batch
        low = pc.less(scores, self.threshold)
        return with_fate(batch, DROPPED, pc.if_else(low, pa.scalar("quality.low"), pa.scalar(None, pa.string())))


def score_quality(
    files: Sequence[Path], work: Path, settings: QualitySettings, model: Path, workers: int = 1
) -> Outcome:
    """Score documents.

    Args:
        files: Parquet documents.
        work: the step's folder; gets `kept/`, `dropped/` (reason `quality.low`), `attributes/` (`quality.score`).
        settings: the threshold.
        model: `model.bin` or its folder.
        workers: processes.

    Returns:
        counts, and the threshold.

    Raises:
        DataError: no model, or one of another normaliser.
    """
    block = ScoreQuality(settings, model)
    return Outcome(transform(files, [block], work, workers, "quality"), {"threshold": block.threshold})
