"""`loam mix online`, `components` and `mixmin` on a folder of shards: what each writes, and what it refuses."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from mixtures.mixture import Mixture
from tests.flows.conftest import Fails, Works
from tests.flows.small_shards import write_small_shards

MODEL = """kind: train
name: small
model: {layers: 1, width: 16, heads: 1, kv_heads: 1, head_dim: 8, ffn_width: 24, vocab_size: 64, max_sequence: 32}
stages: [{tokens: 2K, sequence_length: 16, batch_tokens: 128, learning_rate: 1e-2}]
validation_tokens: 400
device: cpu
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two domains, one of them in two buckets, with held-out text; and a recipe beside them."""
    (tmp_path / "small.yaml").write_text(MODEL)
    return write_small_shards(tmp_path / "data", ["code", "web/high", "web/low"])


@pytest.mark.parametrize("method", ["doremi", "doge", "aioli", "ado"])
def test_a_method_writes_a_mixture(works: Works, data: Path, tmp_path: Path, method: str) -> None:
    done = works("mix", "online", "small.yaml", "--method", method, "--data", data, "--set", "aioli.rounds=2",
                 "--out", "found")  # fmt: skip
    weights = Mixture.read(tmp_path / "found" / "mixture.yaml").weights
    assert weights == done["metrics"]["weights"]
    assert list(weights) == ["code", "web/high", "web/low"]
    online = json.loads((tmp_path / "found" / "online.json").read_text())
    assert online["method"] == method
    assert weights == pytest.approx(online["weights"], abs=2e-6)
    assert (tmp_path / "found" / "round-1.jsonl").is_file()


def test_what_was_found_is_what_training_takes(works: Works, data: Path, tmp_path: Path) -> None:
    works("mix", "online", "small.yaml", "--method", "doge", "--data", data, "--out", "found")
    done = works("train", "small.yaml", "--data", data, "--mixture", tmp_path / "found" / "mixture.yaml", "--out", "t")
    assert done["metrics"]["tokens"] == 2048


def test_mixmin_solves_what_components_measured(works: Works, data: Path, tmp_path: Path) -> None:
    works("mix", "components", "small.yaml", "--data", data, "--out", "components")
    (tmp_path / "ratios.csv").write_text(
        "id,code,web/high,web/low\na,1,0,0\nb,0,1,0\nc,0,0,1\nd,0.5,0.25,0.25\ne,0.2,0.2,0.6\n"
    )
    (tmp_path / "metrics.csv").write_text("id,code,web/high\na,1,4\nb,4,1\nc,4,4\nd,2,3\ne,3,3\n")
    done = works("mix", "mixmin", "--components", "components", "--ratios", "ratios.csv", "--metrics", "metrics.csv",
                 "--out", "solved")  # fmt: skip
    found = done["metrics"]
    assert found["loss"] <= min(found["uniform"], *found["single"].values()) + 1e-6
    assert found["gap"] <= 1e-6
    assert sum(Mixture.read(tmp_path / "solved" / "mixture.yaml").weights.values()) == pytest.approx(1)
    with (tmp_path / "solved" / "ensemble.csv").open() as file:
        rows = list(csv.DictReader(file))
    single = np.mean([float(rows[0][name]) for name in ("code", "web/high", "web/low")])
    assert single == pytest.approx(found["single"]["code"], abs=1e-6)
    assert set(found["agreement"]) == {"code", "web/high"}
    one = works("mix", "mixmin", "--components", "components", "--target", "code", "--out", "one")
    assert one["metrics"]["weights"]["code"] > found["weights"]["code"]


def test_what_cannot_work_is_said(fails: Fails, data: Path, tmp_path: Path) -> None:
    online, common = ["mix", "online"], ["--data", data, "--out", "found"]
    fails(2, "'doremi', 'doge', 'aioli' or 'ado'", *online, "small.yaml", "--method", "best", *common)
    fails(2, "expected a recipe of kind train", *online, "cot_backward", "--method", "ado", *common)
    fails(2, "16 steps are too few", *online, "small.yaml", "--method", "aioli", "--set", "aioli.rounds=9", *common)
    fails(3, "give a folder with train/ and validation/", "mix", "components", "small.yaml",
          "--data", data / "train", "--out", "found")  # fmt: skip
    fails(3, "scores.npz", "mix", "mixmin", "--components", data, "--out", "found")
    fails(2, "--metrics needs --ratios", "mix", "mixmin", "--components", data, "--metrics", "m.csv", "--out", "found")
