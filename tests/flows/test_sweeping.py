"""`loam sweep`: every combination trained once, compared in pairs of a seed, drawn, resumed after a kill."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.flows.conftest import Fails, Works
from tests.flows.small_shards import write_small_shards

ROOT = Path(__file__).resolve().parents[2]
SWEEP = """kind: sweep
name: rates
about: a rate that is too low, one that learns, one that does not
train:
  name: small
  model: {layers: 1, width: 16, heads: 1, kv_heads: 1, head_dim: 8, ffn_width: 24, vocab_size: 64, max_sequence: 32}
  stages: [{tokens: 2K, sequence_length: 16, batch_tokens: 128, learning_rate: 1e-2}]
  validation_tokens: 400
  checkpoint_every: 4
  device: cpu
grid:
  stages.*.learning_rate: [1e-4, 1e-2, 1e-1]
  stages.0.batch_tokens: [128, 256]
seeds: [0, 1]
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "rates.yaml").write_text(SWEEP)
    return write_small_shards(tmp_path / "data", ["code", "web"])


def published(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_sweep_tabulates_compares_and_draws(works: Works, data: Path, tmp_path: Path) -> None:
    done = works("sweep", "rates.yaml", "--data", data, "--out", "one")
    rows = list(csv.DictReader((tmp_path / "one" / "sweep.csv").open()))
    assert len(rows) == done["metrics"]["trials"] == 12
    assert done["metrics"]["points"] == 6
    for row in rows:
        assert float(row["target"]) == pytest.approx((float(row["code"]) + float(row["web"])) / 2, abs=1e-6)
    found = json.loads((tmp_path / "one" / "sweep.json").read_text())
    losses = [point["loss"] for point in found["points"]]
    assert losses == sorted(losses)
    assert found["best"] == done["metrics"]["best"]
    slow = [point for point in found["points"] if point["values"]["stages.*.learning_rate"] == 1e-4]
    assert {point["verdict"] for point in slow} <= {"worse", "not distinguishable from the best"}
    assert all(point["difference"] > 0.05 for point in slow)
    page = (tmp_path / "one" / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "stages.*.learning_rate" in page


def test_workers_and_sigkill_change_no_byte(works: Works, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "sweep", "rates.yaml", "--data", str(data), "--out", "killed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    while child.poll() is None and len(list(tmp_path.glob(".killed.*.work/trials/*.json"))) < 3:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    [first] = tmp_path.glob(".killed.*.work")
    before = {path.name: path.stat().st_mtime_ns for path in (first / "trials").glob("*.json")}
    works("sweep", "rates.yaml", "--data", data, "--out", "killed", "--workers", "2")
    assert 3 <= len(before) < 12
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "trials").glob("*.json")}
    assert {name: after[name] for name in before} == before  # not trained again
    works("sweep", "rates.yaml", "--data", data, "--out", "whole")
    assert published(tmp_path / "killed") == published(tmp_path / "whole")


def test_a_trial_that_diverges_is_told(works: Works, data: Path, tmp_path: Path) -> None:
    sets = ("--set", "grid={stages.*.learning_rate: [1e-2, 1e30]}", "--set", "seeds=[0]")
    done = works("sweep", "rates.yaml", "--data", data, "--out", "out", *sets)
    [reason] = done["metrics"]["failed"].values()
    assert reason.endswith("norm nan")  # no word of where the batch lay, which is another place each time
    points = json.loads((tmp_path / "out" / "sweep.json").read_text())["points"]
    assert [point["verdict"] for point in points] == ["best", "failed"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("grid={model.wdth: [1]}", "model.wdth: no 'wdth' in the training recipe; there is: layers, width"),
        ("grid={model.heads: [3], model.kv_heads: [2]}", "the trial model.heads=3, model.kv_heads=2 cannot be trained"),
        ("grid={stages.last.tokens: [1K]}", "no 'last' in the training recipe; there is: *, 0, main"),
        ("seeds=[1, 1]", "repeat one"),
        ("seeds=[-1]", "seeds.0: Input should be greater than or equal to 0"),
        ("grid={seed: [1, 2]}", "seed is no field to sweep"),
        ("grid={grad_clip: [1, 1.0]}", "two points of the sweep are the same"),
        ("points=" + str([{"grad_clip": 1 + n / 1e4} for n in range(10_000)]), "trials are more than 10000"),
        ("grid={}", "nothing is varied"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(fails: Fails, data: Path, change: str, problem: str) -> None:
    fails(2, problem, "sweep", "rates.yaml", "--data", data, "--out", "out", "--set", change)


def test_a_target_that_nothing_measures_is_refused(fails: Fails, data: Path) -> None:
    fails(3, "target is 'books', which nothing measures; there is: mean, code, web, train",
          "sweep", "rates.yaml", "--data", data, "--out", "out", "--set", "target=books")  # fmt: skip
