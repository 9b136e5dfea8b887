"""The quality classifier: a fastText model trained in the run, and the scores that it gives.

The one choice that matters: text is normalised by the same columnar expression in training and in serving, its identity
is stored beside the model and checked, so that a score never comes from text of another form; one thread and a seed
make `model.bin` the same bytes every time. Source: DCLM (arXiv:2406.11794), fastText (arXiv:1607.01759).
"""

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from filters.calibration import auc_interval, reliability
from filters.quality_training import Examples, balanced_rows, read_examples, train, write_lines
from pipelines.block import Block
from pipelines.document import DROPPED, with_fate, with_scores
from pipelines.errors import DataError
from pipelines.execute import SCRATCH, transform
from pipelines.files import sha256_of, write_atomically
from pipelines.manifest import Counts, digest_of
from pipelines.recipe import Section
from pipelines.store import Outcome

MODEL, CALIBRATION = "model.bin", "calibration.json"
POSITIVE, NEGATIVE = "__label__high", "__label__low"
NORMALISATION = (
    ("__label__", "label"),  # fastText would read it as a label
    (r"([[:punct:]]|\p{Han}|\p{Hiragana}|\p{Katakana}|[。，、；：？！“”‘’（）《》…—])", r" \1 "),
    (r"(?:\s*[\r\n])+\s*", " <nl> "),  # how a page breaks its lines says much; a line is an example to fastText
    (r"[\s\x00\x0b\x1c-\x1f\x{85}\x{a0}\x{3000}]+", " "),  # NUL ends an example, the others end words
)
"""RE2 replacements, in order, after lower-casing the first `HEAD_CHARS` characters."""
HEAD_CHARS = 20_000
NORMALISER = digest_of(["lower", HEAD_CHARS, NORMALISATION])[:16]
"""Identity of the normaliser, stored in `calibration.json`."""
CROSS_FIT_BELOW = 10_000
"""Fewer examples than that are too dear to be held out: each calibrates a model that was trained on the others."""
SCORER_KEY = b"loam.scorer"
"""Metadata of a column of scores: the identity of what gave them."""
SIZE = "quality.bytes"
"""Attribute beside the score: bytes of the document, which weigh it in an ensemble."""


class QualitySettings(Section):
    """How the classifier is trained, and what its score decides.

    Attributes:
        positive: domains or sources whose documents are examples of quality.
        negative: domains or sources whose documents are not; empty: all others.
        dim: size of the vectors.
        epoch: passes over the examples; null: 5, and more (up to 50) where there are less than 3,000 examples.
        lr: learning rate.
        word_ngrams: longest word n-gram that has a vector.
        bucket: slots of the hash table of n-grams; null: 100,000, and 2,000,000 from 10,000 examples on.
        seed: of training, and of the held-out split.
        held_out: share of documents that calibrate and do not train; below 10,000 examples all do both, in turns.
        keep_threshold: smallest score that stays.
        keep_quantile: share of documents that stays, by the calibration's quantiles; both null: only score.
        positive_label: of a fastText model trained elsewhere (`__label__hq` of DCLM's); its text is only joined to one
            line, and it needs no calibration.
    """

    positive: list[str] = Field(default_factory=list)
    negative: list[str] = Field(default_factory=list)
    dim: int = Field(default=16, ge=1)
    epoch: int | None = Field(default=None, ge=1)
    lr: float = Field(default=0.5, gt=0)
    word_ngrams: int = Field(default=2, ge=1)
    bucket: int | None = Field(default=None, ge=1)
    seed: int = 0
    held_out: float = Field(default=0.2, gt=0, le=0.5)
    keep_threshold: float | None = Field(default=None, ge=0, le=1)
    keep_quantile: float | None = Field(default=None, gt=0, le=1)
    positive_label: str | None = None

    @model_validator(mode="after")
    def _one_cut(self) -> "QualitySettings":
        if self.keep_threshold is not None and self.keep_quantile is not None:
            raise ValueError("give keep_threshold or keep_quantile, not both")
        if self.positive_label is not None and self.keep_quantile is not None:
            raise ValueError("a model from elsewhere has no quantiles; give keep_threshold")
        return self

    def arguments(self, examples: int) -> dict[str, Any]:
        """Arguments of fastText for so many examples."""
        epoch = self.epoch or min(50, max(5, -(-15_000 // max(1, examples))))
        bucket = self.bucket or (100_000 if examples < CROSS_FIT_BELOW else 2_000_000)
        return {"dim": self.dim, "epoch": epoch, "lr": self.lr, "wordNgrams": self.word_ngrams, "bucket": bucket,
                "seed": self.seed}  # fmt: skip


def normalise(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Bring texts to the one-line form that the classifier reads: string (N,) to string (N,)."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    texts = pc.utf8_lower(pc.utf8_slice_codeunits(pc.utf8_trim_whitespace(texts), 0, HEAD_CHARS))
    for pattern, replacement in NORMALISATION:
        texts = pc.replace_substring_regex(texts, pattern, replacement)
    return pc.utf8_trim_whitespace(texts)


def one_line(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Texts with line breaks made spaces and nothing else changed: what DCLM's models read."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    return pc.replace_substring_regex(pc.utf8_trim_whitespace(texts), r"[\r\n\x00]+", " ")


def train_quality(files: Sequence[Path], work: Path, settings: QualitySettings) -> Outcome:
    """Train the classifier and calibrate it on documents that it was not trained on.

    Args:
        files: Parquet documents, labelled by domain or source, or by a column `label`; or JSON lines with `text` and
            `label` (0 or 1).
        work: the step's folder; gets `model.bin` and `calibration.json` (area under the curve with its interval, a
            reliability table, 101 quantiles of the held-out score, identity of the normaliser).
        settings: how.

    Returns:
        counts of examples, and the calibration's numbers.

    Raises:
        DataError: a class has no documents.
    """
    examples = read_examples(files, normalise, settings.positive, settings.negative, settings.seed)
    for label, name in ((1, "positive"), (0, "negative")):
        if not (examples.labels_N == label).sum():
            raise DataError(f"no {name} documents to train on: {_explain(settings)}")
    scores_N, rows = _fit(examples, work, settings)
    held_N = ~np.isnan(scores_N)
    known_N = held_N & (examples.labels_N >= 0)
    good_N, probability_N = examples.labels_N[known_N] == 1, scores_N[known_N]
    area = [None if np.isnan(value) else round(value, 6) for value in auc_interval(good_N, probability_N)]
    metrics: dict[str, Any] = {
        "auc": area[0], "auc_lo95": area[1], "auc_hi95": area[2], "held_out": int(known_N.sum()),
        "train_positive": int((examples.labels_N[rows] == 1).sum()),
        "train_negative": int((examples.labels_N[rows] == 0).sum()),
    }  # fmt: skip
    quantiles = np.quantile(scores_N[held_N], np.linspace(0, 1, 101)) if held_N.any() else np.zeros(101)
    calibration = {**metrics, "normaliser": NORMALISER, "quantiles": [round(float(q), 6) for q in quantiles],
                   "reliability": reliability(good_N, probability_N)}  # fmt: skip
    write_atomically(work / CALIBRATION, (json.dumps(calibration, indent=1, sort_keys=True) + "\n").encode())
    count = len(examples.labels_N)
    return Outcome(Counts(docs_in=count, kept=count), metrics)


def _explain(settings: QualitySettings) -> str:
    return f"positive is {settings.positive or 'label 1'}, negative is {settings.negative or 'all others, or label 0'}"


def _fit(examples: Examples, work: Path, settings: QualitySettings) -> tuple[np.ndarray, np.ndarray]:
    """Write the model; returns held-out scores (NaN where a document was not held out) and the rows trained on."""
    folds = max(2, round(1 / settings.held_out))
    fold_N = (examples.keys_N >> np.uint64(32)) * np.uint64(folds) >> np.uint64(32)
    scores_N = np.full(len(fold_N), np.nan)
    few = int((examples.labels_N >= 0).sum()) < CROSS_FIT_BELOW
    path, rows = work / MODEL, np.zeros(0, int)
    for fold in range(folds) if few else (0,):
        rows = balanced_rows(examples, fold_N != fold)
        if len(rows):
            held_N = fold_N == fold
            model = _train_on(examples, rows, work / SCRATCH / MODEL if few else path, settings)
            scores_N[held_N] = positive_scores(model, examples.texts.filter(pa.array(held_N)), POSITIVE)
    if few or not len(rows):
        rows = balanced_rows(examples, np.ones(len(fold_N), bool))
        _train_on(examples, rows, path, settings)
    return scores_N, rows


def _train_on(examples: Examples, rows: np.ndarray, path: Path, settings: QualitySettings) -> Any:
    import fasttext

    lines = path.parent / (".train.txt" if path.parent.name == SCRATCH else f"{SCRATCH}/train.txt")
    write_lines(examples, rows, (NEGATIVE, POSITIVE), lines)
    temporary = path.with_name(f".{path.name}.tmp")
    train(lines, temporary, settings.arguments(len(rows)))
    temporary.replace(path)
    return fasttext.load_model(str(path))


def positive_scores(model: Any, lines: pa.Array, label: str) -> np.ndarray:
    """Probability of a label: float64 (N,), 0..1; one call of fastText for the whole column.

    Args:
        model: a fastText model.
        lines: string (N,), one line each.
        label: whose probability is asked for.
    """
    scores_N = np.zeros(len(lines))
    if not len(lines):
        return scores_N
    labels, probabilities = model.predict(lines.to_pylist(), k=-1)
    row_L = np.repeat(np.arange(len(lines)), [len(names) for names in labels])
    found_L = np.array(list(chain.from_iterable(labels)), dtype=object) == label
    scores_N[row_L[found_L]] = np.minimum(np.concatenate(probabilities)[found_L], 1.0)
    return scores_N


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

    The attribute `quality.score` carries the identity of the model and of its text form in its metadata.

    Args:
        settings: the threshold.
        model: `model.bin` or its folder.

    Raises:
        DataError: no model, or one of another normaliser.
    """

    name = "quality"

    def __init__(self, settings: QualitySettings, model: Path) -> None:
        super().__init__()
        self.path = str(model / MODEL if model.is_dir() else model)
        self.label = settings.positive_label or POSITIVE
        own = settings.positive_label is None
        self.threshold = threshold_of(settings, read_calibration(model) if own else {})
        self.lines = normalise if own else one_line
        identity = digest_of([sha256_of(Path(self.path)), NORMALISER if own else "one line", self.label])[:16]
        self.field = pa.field("quality.score", pa.float64(), metadata={SCORER_KEY: f"fasttext:{identity}".encode()})

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_model"}

    def apply(self, batch: pa.Table) -> pa.Table:
        """Score a batch."""
        if "_model" not in self.__dict__:
            import fasttext

            self._model = fasttext.load_model(self.path)
            labels = [str(label) for label in self._model.get_labels()]
            if self.label not in labels:
                raise DataError(f"{self.path} has no label {self.label!r}; it has {', '.join(labels)}")
        scores = pa.array(positive_scores(self._model, self.lines(batch["text"]), self.label))
        batch = with_scores(batch, quality=scores).append_column(self.field, scores)
        batch = batch.append_column(SIZE, pc.cast(pc.binary_length(batch["text"]), pa.int64()))
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
        work: the step's folder; gets `kept/`, `dropped/` (reason `quality.low`) and `attributes/` (`quality.score`,
            `quality.bytes`).
        settings: the threshold.
        model: `model.bin` or its folder.
        workers: processes.

    Returns:
        counts, the threshold, and quantiles of the scores.

    Raises:
        DataError: no model, or one of another normaliser.
    """
    block = ScoreQuality(settings, model)
    counts = transform(files, [block], work, workers, "quality")
    return Outcome(counts, {"threshold": block.threshold, "scores": _quantiles(work, block.field.name)})


def _quantiles(work: Path, column: str) -> dict[str, float]:
    """Where the scores lie, as far as four digits tell."""
    tables = [pq.read_table(path, columns=[column]) for path in sorted((work / "attributes").rglob("*.parquet"))]
    scores = np.concatenate([table[column].to_numpy() for table in tables]) if tables else np.zeros(0)
    names = {"least": 0, "quarter": 0.25, "median": 0.5, "three_quarters": 0.75, "most": 1}
    return {name: round(float(np.quantile(scores, at)), 4) for name, at in names.items()} if len(scores) else {}
