"""`loam track` and `loam experts` on what `loam train` wrote."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.indexed import IndexedWriter
from tests.flows.conftest import Fails, Works

MODEL = """kind: train
name: small
model: {layers: 2, width: 16, heads: 1, kv_heads: 1, head_dim: 8, ffn_width: 24, vocab_size: 64, max_sequence: 32,
        experts: 4, expert_width: 8}
stages: [{tokens: 2K, sequence_length: 16, batch_tokens: 128, learning_rate: 1e-2}]
validation_tokens: 400
checkpoint_every: 8
checkpoint_permanent: 8
device: cpu
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for part, documents in (("train", 30), ("validation", 6)):
        for number, name in enumerate(["code", "web"]):
            with IndexedWriter(tmp_path / "data" / part / name, 64) as writer:
                for _ in range(documents):
                    writer.append(np.resize(random.permutation(16) + 16 * number, 40), np.array([40]))
    (tmp_path / "small.yaml").write_text(MODEL)
    return tmp_path / "data"


def test_experts_of_a_training(works: Works, fails: Fails, data: Path, tmp_path: Path):
    works("train", "small.yaml", "--data", data, "--out", "trained")
    assert (tmp_path / "trained" / ".journal" / "provenance.jsonl").is_file()
    done = works("experts", "trained", "--data", data, "--out", "looked", "--set", "tokens_per_domain=200")
    found = json.loads((tmp_path / "looked" / "experts.json").read_text())
    assert done["metrics"]["layers"] == len(found["layers"]) == 1
    assert sorted(map(int, found["saturation"])) == [8, 16]
    assert list(found["training_load"]) == ["1"]
    page = (tmp_path / "looked" / "experts.html").read_text()
    assert page.count("<svg") == 5  # load, spread, co-activation, saturation, domains
    fails(3, "holds no training", "experts", data, "--data", data, "--out", "nothing")


def test_track_says_what_it_needs(works: Works, fails: Fails, data: Path):
    works("train", "small.yaml", "--data", data, "--out", "trained")
    fails(2, "--to 'paper' is not known; there are: mlflow, wandb", "track", "trained", "--to", "paper", "--out", "t")
    fails(3, "holds no training", "track", data, "--to", "mlflow", "--out", "t")
    for extra in ("mlflow", "wandb"):
        if importlib.util.find_spec(extra) is None:
            fails(5, f"pip install -e '.[{extra}]'", "track", "trained", "--to", extra, "--out", "t")
        else:
            first, again = (works("track", "trained", "--to", extra, "--out", "t") for _ in range(2))
            assert (first["added"], again["added"], first["finished"]) == (16, 0, True)
