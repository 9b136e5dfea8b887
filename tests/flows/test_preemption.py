"""A machine that is taken away while `loam train` works."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.indexed import IndexedWriter

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
kind: train
name: long
model: {layers: 1, width: 16, heads: 1, kv_heads: 1, head_dim: 16, ffn_width: 16, vocab_size: 32, max_sequence: 16}
stages: [{tokens: 12K, sequence_length: 16, batch_tokens: 64, learning_rate: 1e-3}]
checkpoint_every: 100000
device: cpu
"""


def start(recipe: Path, data: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flows.cli", "train", str(recipe), "--data", str(data), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_train_saves_and_ends_with_code_0_and_goes_on(tmp_path: Path, number: signal.Signals):
    with IndexedWriter(tmp_path / "data" / "a", 32) as writer:
        for document in range(40):
            writer.append(np.resize(np.arange(32), 50 + document), np.array([50 + document]))
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(RECIPE)
    child = start(recipe, tmp_path / "data", out)
    while child.poll() is None and not any(p.stat().st_size > 2000 for p in tmp_path.glob(".out.*.work/metrics.jsonl")):
        time.sleep(0.01)
    child.send_signal(number)
    told = child.communicate()[1]
    assert child.returncode == 0, told
    assert "saved after step" in told
    assert not out.exists()  # nothing unfinished is published
    [checkpoint] = tmp_path.glob(".out.*.work/.scratch/checkpoints/step-*")
    again = start(recipe, tmp_path / "data", out)
    told = again.communicate()[1]
    assert again.returncode == 0, told
    assert int(checkpoint.name[5:]) > 0
    assert (out / "final" / "model.safetensors").is_file()
