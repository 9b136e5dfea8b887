import json

import dill
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from filters.calibration import auc_interval
from filters.quality import (
    CALIBRATION,
    SCORER_KEY,
    QualitySettings,
    ScoreQuality,
    normalise,
    one_line,
    read_calibration,
    score_quality,
    threshold_of,
    train_quality,
)
from filters.quality_training import train
from pipelines.document import STREAM, conform
from pipelines.errors import DataError, StepError

WORDS = {"books": ["harbour", "winter", "letter", "evening", "quiet", "garden", "remember"],
         "spam": ["cheap", "click", "winner", "bonus", "casino", "free", "offer"]}  # fmt: skip
SETTINGS = QualitySettings(positive=["books"], dim=8, bucket=1000, epoch=10, lr=0.5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder, files = tmp_path_factory.mktemp("corpus"), []
    rng = np.random.default_rng(0)
    for domain, words in WORDS.items():
        texts = [" ".join(rng.choice([*words, "the", "of"], 20)) for _ in range(200)]
        path = folder / "kept" / domain / "part-00000.parquet"
        path.parent.mkdir(parents=True)
        ids = [f"{domain}-{n}" for n in range(200)]
        pq.write_table(pa.table({"id": ids, "text": texts, "domain": [f"{domain}/all"] * 200}), path)
        files.append(path)
    return files


@pytest.fixture(scope="module")
def model(corpus, tmp_path_factory):
    work = tmp_path_factory.mktemp("model")
    train_quality(corpus, work, SETTINGS)
    return work


def test_separable_classes_are_told_apart(model):
    calibration = json.loads((model / CALIBRATION).read_text())
    assert calibration["auc"] > 0.99
    assert calibration["train_positive"] == calibration["train_negative"] == 200  # few: all train, all calibrate
    assert calibration["held_out"] == 400
    assert sum(row["documents"] for row in calibration["reliability"]["table"]) == 400


def test_the_model_is_the_same_bytes_every_time(corpus, model, tmp_path):
    train_quality(corpus, tmp_path, SETTINGS)
    assert (tmp_path / "model.bin").read_bytes() == (model / "model.bin").read_bytes()
    assert (tmp_path / CALIBRATION).read_bytes() == (model / CALIBRATION).read_bytes()


def test_scores_and_thresholds(corpus, model, tmp_path):
    outcome = score_quality(corpus, tmp_path / "all", QualitySettings(), model)
    assert outcome.counts.kept == 400
    kept = pq.read_table(tmp_path / "all/kept/spam/part-00000.parquet")
    assert max(s["quality"] for s in kept["scores"].to_pylist()) < 0.5
    outcome = score_quality(corpus, tmp_path / "half", QualitySettings(keep_threshold=0.5), model, workers=2)
    assert outcome.counts.dropped == {"quality.low": 200}
    assert (tmp_path / "half/attributes/books/part-00000.parquet").is_file()


def test_scores_carry_the_identity_of_their_model(corpus, model, tmp_path):
    score_quality(corpus, tmp_path, QualitySettings(), model)
    schema = pq.read_schema(tmp_path / "attributes/spam/part-00000.parquet")
    assert schema.names == ["id", "quality.score", "quality.bytes"]
    assert schema.field("quality.score").metadata[SCORER_KEY].startswith(b"fasttext:")


def test_a_model_from_elsewhere_needs_its_label_only(corpus, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("__label__hq quiet garden winter\n__label__cc casino bonus offer\n" * 50)
    train(lines, tmp_path / "dclm.bin", {"dim": 8, "epoch": 20, "lr": 0.5, "bucket": 1000, "wordNgrams": 2, "seed": 0})
    settings = QualitySettings(positive_label="__label__hq", keep_threshold=0.5)
    assert score_quality(corpus, tmp_path / "out", settings, tmp_path / "dclm.bin").counts.dropped == {
        "quality.low": 200
    }
    block = ScoreQuality(QualitySettings(positive_label="__label__good"), tmp_path / "dclm.bin")
    with pytest.raises(DataError, match="it has __label__"):
        block.apply(conform(pa.table({"id": ["a"], "text": ["quiet"]}), STREAM))


def test_many_examples_are_held_out_and_train_in_few_passes(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("filters.quality.CROSS_FIT_BELOW", 100)
    outcome = train_quality(corpus, tmp_path, SETTINGS)
    assert outcome.metrics["train_positive"] + outcome.metrics["train_negative"] + outcome.metrics["held_out"] <= 400
    assert QualitySettings().arguments(300)["epoch"] == 50
    assert QualitySettings().arguments(1_000_000) | {"epoch": 5, "bucket": 2_000_000} == QualitySettings().arguments(
        1_000_000
    )


def test_a_quantile_keeps_about_its_share():
    calibration = {"quantiles": list(np.linspace(0, 1, 101))}
    assert threshold_of(QualitySettings(keep_quantile=0.1), calibration) == pytest.approx(0.9)
    assert threshold_of(QualitySettings(), calibration) is None
    with pytest.raises(ValidationError, match="not both"):
        QualitySettings(keep_quantile=0.1, keep_threshold=0.5)


def test_normalisation_gives_one_line():
    texts = pa.array(["Hello,\nWorld!\t 中文。 __label__high", "\na\x00b\r\n \nc\u3000d\n", ""])
    assert normalise(texts).to_pylist() == ["hello , <nl> world ! 中 文 。 labelhigh", "a b <nl> c d", ""]
    assert one_line(texts).to_pylist() == ["Hello, World!\t 中文。 __label__high", "a b   c\u3000d", ""]


@given(st.text(max_size=80))
def test_a_normalised_text_never_breaks_the_line_format(text):
    text = text.encode("utf-8", "ignore").decode()
    line = normalise(pa.array([text])).to_pylist()[0]
    assert not set(line) & set("\n\r\v\f\x00\t")
    assert "__label__" not in line


def test_another_normaliser_is_refused(model, tmp_path):
    calibration = json.loads((model / CALIBRATION).read_text()) | {"normaliser": "0" * 16}
    (tmp_path / CALIBRATION).write_text(json.dumps(calibration))
    with pytest.raises(DataError, match="trained with normaliser 0000"):
        read_calibration(tmp_path)
    with pytest.raises(DataError, match="is missing or broken"):
        ScoreQuality(QualitySettings(), tmp_path / "nowhere" / "model.bin")


def test_missing_examples_and_failed_training_are_explained(corpus, tmp_path):
    with pytest.raises(DataError, match="no positive documents"):
        train_quality(corpus, tmp_path, QualitySettings(positive=["bokks"]))
    with pytest.raises(StepError, match="lower lr"):
        train_quality(corpus, tmp_path, SETTINGS.model_copy(update={"lr": 1e9}))
    bad = tmp_path / "labels.jsonl"
    bad.write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="expected JSON lines"):
        train_quality([bad], tmp_path, QualitySettings())


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "no positive documents"),
        ([("a", 1), ("b", 1)], "no negative documents"),
        ([("a", 1), ("b", 2)], "row 1: label is 2, expected 0 or 1"),
        ([("a", 1), ("b", float("nan"))], "row 1: label is nan"),
        ([("a", 1), (None, 0)], "row 1: text is None"),
        ([("a", 1), ("b", None)], "row 1: label is None"),
    ],
)
def test_bad_labels_are_named(tmp_path, rows, match):
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    with pytest.raises(DataError, match=match):
        train_quality([path], tmp_path / "out", QualitySettings())


def test_labels_may_be_a_column_of_parquet_or_compressed_lines(tmp_path):
    rows = [{"id": f"d{n}", "text": ["good words here", "bad other there"][n % 2] + f" {n}", "label": 1 - n % 2}
            for n in range(40)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "labels.parquet")
    with pa.output_stream(str(tmp_path / "labels.jsonl.zst"), compression="zstd") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    for name in ("labels.parquet", "labels.jsonl.zst"):
        outcome = train_quality(
            [tmp_path / name], tmp_path / name.replace(".", "-"), QualitySettings(dim=4, bucket=100)
        )
        assert outcome.metrics["auc"] == 1


def test_the_block_travels_without_its_model(model):
    block = ScoreQuality(QualitySettings(), model)
    table = conform(pa.table({"id": ["a"], "text": ["quiet garden"]}), STREAM)
    before = block.apply(table)["scores"].to_pylist()
    assert dill.loads(dill.dumps(block)).apply(table)["scores"].to_pylist() == before


def test_human_labels(shared, tmp_path):
    """The default, on half of the pages that people judged; chance is 0.5 with a standard error of 0.05."""
    rows = [json.loads(line) for line in (shared / "quality/dclm_majority_data.jsonl").read_text().splitlines()]
    half = tmp_path / "half.jsonl"
    half.write_text("".join(json.dumps(row) + "\n" for row in rows[::2]))
    outcome = train_quality([half], tmp_path / "model", QualitySettings())
    assert outcome.metrics["held_out"] == 150
    ids = pa.array([str(n) for n in range(150)])
    others = conform(pa.table({"id": ids, "text": [row["text"] for row in rows[1::2]]}), STREAM)
    scores = ScoreQuality(QualitySettings(), tmp_path / "model").apply(others)["quality.score"].to_numpy()
    labels = np.array([row["label"] for row in rows[1::2]]) == 1
    area, low, high = auc_interval(labels, scores)
    assert low < area < high
    assert area > 0.75


def test_a_file_without_text_is_named(tmp_path):
    file = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": ["a"], "label": [1]}), file)
    with pytest.raises(DataError, match=f"^{file}: documents need a column 'text'; found: id, label; "):
        train_quality([file], tmp_path / "out", QualitySettings())
