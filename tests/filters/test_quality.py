import json

import dill
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from filters.quality import (
    CALIBRATION,
    QualitySettings,
    ScoreQuality,
    area_under_curve,
    normalise,
    read_calibration,
    score_quality,
    threshold_of,
    train_quality,
)
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
    assert calibration["train_positive"] == calibration["train_negative"] > 100


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


def test_a_quantile_keeps_about_its_share():
    calibration = {"quantiles": list(np.linspace(0, 1, 101))}
    assert threshold_of(QualitySettings(keep_quantile=0.1), calibration) == pytest.approx(0.9)
    assert threshold_of(QualitySettings(), calibration) is None
    with pytest.raises(ValidationError, match="not both"):
        QualitySettings(keep_quantile=0.1, keep_threshold=0.5)


def test_normalisation_gives_one_line():
    texts = pa.array(["Hello,\nWorld!\t 中文。 __label__high", "a\x00b\r\nc\u3000d", ""])
    assert normalise(texts).to_pylist() == ["hello , world ! 中 文 。 labelhigh", "a b c d", ""]


@given(st.text(max_size=80))
def test_a_normalised_text_never_breaks_the_line_format(text):
    text = text.encode("utf-8", "ignore").decode()
    line = normalise(pa.array([text])).to_pylist()[0]
    assert not set(line) & set("\n\r\v\f\x00\t")
    assert "__label__" not in line


def test_area_under_curve_by_hand():
    assert area_under_curve(np.array([True, True, False]), np.array([0.9, 0.5, 0.5])) == 0.75
    assert np.isnan(area_under_curve(np.array([True]), np.array([0.5])))


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


def test_the_block_travels_without_its_model(model):
    block = ScoreQuality(QualitySettings(), model)
    table = conform(pa.table({"id": ["a"], "text": ["quiet garden"]}), STREAM)
    before = block.apply(table)["scores"].to_pylist()
    assert dill.loads(dill.dumps(block)).apply(table)["scores"].to_pylist() == before


def test_human_labels(shared, tmp_path):
    settings = QualitySettings(held_out=0.5)
    outcome = train_quality([shared / "quality/dclm_majority_data.jsonl"], tmp_path, settings)
    assert outcome.metrics["held_out"] > 100
    assert outcome.metrics["auc"] > 0.7  # trained on 136 pages; chance is 0.5 with a standard error of 0.05
