"""`loam mix closed` and `loam mix convert` on real shards; what a trainer draws has the shares asked for."""

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from flows.ablate_show import find_mixture
from flows.cli import app
from mixtures.mixture import Domains, Mixture
from pipelines.errors import DataError
from pipelines.indexed import IndexedWriter
from trainer.stream import greedy_blend

LENGTHS = {"web/high": [40] * 50, "web/low": [20] * 100, "code": [200] * 10}  # 2000 tokens each


@pytest.fixture
def shards(tmp_path):
    for name, lengths in LENGTHS.items():
        (tmp_path / "shards" / name).parent.mkdir(parents=True, exist_ok=True)
        with IndexedWriter(tmp_path / "shards" / name, 60_000) as writer:
            writer.append(np.arange(sum(lengths)) % 50, np.array(lengths))
    return tmp_path / "shards"


def run(*words):
    result = CliRunner().invoke(app, ["mix", *map(str, words)])
    return result if result.exception is None or isinstance(result.exception, SystemExit) else result.exception


def rows_of(path):
    return list(csv.DictReader(path.open()))


def test_a_closed_form_becomes_a_blend_that_a_trainer_reads_as_asked(tmp_path, shards):
    Domains.of(dict.fromkeys(LENGTHS, 2000)).write(tmp_path / "domains.yaml")
    closed = ("closed", "--domains", tmp_path / "domains.yaml", "--kind", "uniform", "--tokens", "4000",
              "--epoch-cap", "2", "--set", "groups={web/*: [0, 0.5]}", "--out", tmp_path / "closed")  # fmt: skip
    numbers = json.loads(run(*closed, "--json").stdout)["metrics"]
    assert numbers["weights"] == pytest.approx({"web/high": 0.25, "web/low": 0.25, "code": 0.5})
    for samples in ("packed", "documents"):
        out = tmp_path / samples
        found = run("convert", tmp_path / "closed" / "mixture.yaml", "--to", "megatron", "--shards", shards,
                    "--set", f"samples={samples}", "--out", out)  # fmt: skip
        assert "most_epochs: 1" in found.stdout
        rows = rows_of(out / "blend.csv")
        weights_P = np.array([float(row["sample_weight"]) for row in rows])
        counts_P = np.bincount(greedy_blend(weights_P, 10_000)[0])  # Megatron's rule: which sample comes from where
        per_sample_P = [1 if samples == "packed" else LENGTHS[row["domain"]][0] for row in rows]
        tokens_P = counts_P * per_sample_P
        asked = [numbers["weights"][row["domain"]] for row in rows]
        assert (tokens_P / tokens_P.sum()).tolist() == pytest.approx(asked, abs=2e-3)


def test_oversampling_ends_in_one_line_and_leaves_nothing(tmp_path, shards):
    Mixture(name="m", weights={"code": 0.9, "web/low": 0.1}).write(tmp_path / "m.yaml")
    error = run("convert", tmp_path / "m.yaml", "--to", "energon", "--shards", shards, "--tokens", "10000",
                "--epoch-cap", "4", "--out", tmp_path / "out")  # fmt: skip
    assert isinstance(error, DataError)
    assert "'code' would be read 4.5 times in 10K tokens, its cap is 4" in str(error)
    assert not (tmp_path / "out").exists()


def test_the_same_words_give_the_same_bytes(tmp_path, shards):
    for out in ("one", "two"):
        run("convert", "openseek-pt-1.3t-v1.0-phi4", "--to", "megatron", "--out", tmp_path / out)
    first, second = ((tmp_path / out / "data_path.txt").read_bytes() for out in ("one", "two"))
    assert first == second
    assert len(first.splitlines()) == 38


def test_a_shipped_mixture_is_trained_on_by_its_name(tmp_path):
    assert Mixture.read(find_mixture("openseek-pt-8t", tmp_path)).tokens == 8 * 10**12
