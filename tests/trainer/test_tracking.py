"""Telemetry, provenance and exporters: apart from what must be the same bytes, complete, and exported once."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import DataError
from pipelines.indexed import IndexedWriter, load_shards
from pipelines.journal import KEPT_JOURNAL
from pipelines.shards import Blend, ShardSet
from pipelines.store import perform
from trainer.accelerators import find_accelerator
from trainer.loop import train
from trainer.provenance import PROVENANCE, code_state, read_provenance
from trainer.recipe import TrainRecipe
from trainer.step import PARTS
from trainer.telemetry import TELEMETRY, Telemetry, read_telemetry
from trainer.tracking import LOSSES, read_tracked, training_folder

RECIPE = TrainRecipe.model_validate({
    "name": "tiny",
    "model": {
        "layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn_width": 24, "vocab_size": 32,
        "max_sequence": 16, "experts": 4, "expert_width": 8,
    },
    "stages": [
        {"name": "short", "tokens": 512, "sequence_length": 8, "batch_tokens": 64, "learning_rate": 1e-2},
        {"name": "long", "tokens": 512, "sequence_length": 16, "batch_tokens": 64, "learning_rate": 5e-3},
    ],
    "checkpoint_every": 5, "validate_every": 8, "validation_tokens": 100, "device": "cpu",
})  # fmt: skip


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    for name, first in (("even", 0), ("odd", 1)):
        with IndexedWriter(tmp_path / "shards" / name, 32) as writer:
            for document in range(20):
                writer.append(np.resize(np.roll(np.arange(first, 16, 2), document), 30), np.array([30]))
    return load_shards(tmp_path / "shards")


def trained(shards: ShardSet, out: Path) -> Path:
    blend = Blend.of({"even": 0.7, "odd": 0.3}, shards)
    perform("train", out, lambda work: train(RECIPE, blend, work, shards, [Telemetry(shards)]), {"a": 1}, {})
    return out


def test_what_a_clock_says_is_in_no_output(tmp_path: Path, shards: ShardSet):
    one, two = (trained(shards, tmp_path / name) for name in ("one", "two"))
    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()
    assert KEPT_JOURNAL not in (one / "manifest.json").read_text()
    assert len(read_provenance(one)) == 1


def test_telemetry_follows_its_formula(tmp_path: Path, shards: ShardSet):
    events = read_telemetry(trained(shards, tmp_path / "out"))
    start, *steps, end = events
    assert [event["step"] for event in steps] == list(range(1, 17))
    assert (start["event"], end["event"], end["step"]) == ("start", "end", 16)
    for event, length in ((steps[0], 8), (steps[-1], 16)):
        flops = RECIPE.model.flops_per_token(length)
        assert event["mfu"] == pytest.approx(event["tokens_per_s"] * flops / start["peak_flops"], rel=0.01, abs=1e-6)
        assert event["tokens_per_s"] == pytest.approx(64 / event["seconds"], rel=0.01)
    assert 0 < steps[0]["memory_bytes"] <= steps[0]["peak_memory_bytes"] * 1.5


def test_provenance_names_code_packages_data_and_seed(tmp_path: Path, shards: ShardSet):
    [found] = read_provenance(trained(shards, tmp_path / "out"))
    assert found["recipe"] == RECIPE.model_dump(mode="json")
    assert found["packages"]["torch"].startswith("2.")
    assert {one["name"]: one["sha256"] for one in found["data"]["held_out"]} == {
        s.name: s.sha256 for s in shards.shards
    }
    assert [part["weight"] for part in found["data"]["stages"][0]] == [0.7, 0.3]
    assert found["seed"] == 0
    assert found["machine"]["torch_threads"] == 1


def test_a_commit_and_what_differs_from_it(tmp_path: Path):
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words],
                              capture_output=True, text=True, check=True)  # fmt: skip
        return done.stdout.strip()

    assert code_state(tmp_path)["commit"] is None
    git("init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    git("add", "a.py")
    git("commit", "-qm", "one")
    clean = code_state(tmp_path)
    assert (clean["commit"], clean["dirty"], clean["dirty_sha256"]) == (git("rev-parse", "HEAD"), [], None)
    (tmp_path / "a.py").write_text("2\n")
    (tmp_path / "b.py").write_text("new\n")
    dirty = code_state(tmp_path)
    assert dirty["dirty"] == ["a.py", "b.py"]
    (tmp_path / "b.py").write_text("other\n")
    assert code_state(tmp_path)["dirty_sha256"] != dirty["dirty_sha256"]


@pytest.mark.parametrize(
    ("told", "name"), [("NVIDIA H200", "H200"), ("h100", "H100"), ("NVIDIA GH200 480GB", "GH200"), ("abacus", None)]
)
def test_a_device_is_found_by_what_the_driver_says(told: str, name: str | None):
    found = find_accelerator(told)
    assert (found and found.name) == name


def test_a_run_is_read_as_trackers_see_it(tmp_path: Path, shards: ShardSet):
    run = read_tracked(training_folder(trained(shards, tmp_path / "out")))
    assert run.finished
    assert run.parameters["stages.1.learning_rate"] == "0.005"
    assert run.tags["seed"] == "0"
    assert [point.step for point in run.points] == list(range(1, 17))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    assert [point.values["loss/ar"] for point in run.points] == losses
    assert {"speed/mfu", "experts/layer_1/cv", "optimizer/lr", "device/memory_bytes"} <= set(run.points[0].values)
    assert "held_out/even/loss" in run.points[7].values
    with pytest.raises(DataError, match="holds no training"):
        training_folder(tmp_path / "shards")


def unfinished(folder: Path, to: Path, steps: int) -> Path:
    """The same training as it stood after some steps."""
    to.mkdir()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (to / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= steps))
    (to / KEPT_JOURNAL).mkdir()
    for file in (folder / KEPT_JOURNAL).iterdir():
        (to / KEPT_JOURNAL / file.name).write_bytes(file.read_bytes())
    return to


def test_a_journal_that_a_kill_tore_is_gone_on_with(tmp_path: Path, shards: ShardSet):
    blend = Blend.of({"even": 0.7, "odd": 0.3}, shards)
    for _ in range(2):
        train(RECIPE, blend, tmp_path / "out", shards, [Telemetry(shards)])
        for name in (TELEMETRY, PROVENANCE):
            path = tmp_path / "out" / name
            path.write_bytes(path.read_bytes()[:-9])
    train(RECIPE, blend, tmp_path / "out", shards, [Telemetry(shards)])
    events = [event["event"] for event in read_telemetry(tmp_path / "out") if event["event"] != "step"]
    assert events == ["start", "start", "start", "end"]
    assert len(read_provenance(tmp_path / "out")) == 1  # the last one; the two before it were torn
    assert read_tracked(tmp_path / "out").tags["seed"] == "0"


def test_every_part_of_the_loss_is_tracked():
    assert {"loss" if part == "ar" else part for part in PARTS} == LOSSES.keys()


def test_a_line_that_is_just_written_is_left_for_later(tmp_path: Path, shards: ShardSet):
    live = unfinished(trained(shards, tmp_path / "out"), tmp_path / "live", 5)
    with (live / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 6, "lo')
    assert [point.step for point in read_tracked(live).points] == [1, 2, 3, 4, 5]


def test_mlflow_has_every_number_once(tmp_path: Path, shards: ShardSet):
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    from mlflow import MlflowClient

    from trainer.tracking_mlflow import export_mlflow

    whole = trained(shards, tmp_path / "out")
    early = read_tracked(unfinished(whole, tmp_path / "early", 8))
    run = read_tracked(whole)
    first = export_mlflow(early, tmp_path / "mlflow")
    done = export_mlflow(run, tmp_path / "mlflow")
    assert (first["added"], done["had"], done["added"]) == (8, 8, 8)
    again = export_mlflow(run, tmp_path / "mlflow")
    assert (again["run"], again["added"]) == (done["run"], 0)
    client = MlflowClient(tracking_uri=done["uri"])
    history = client.get_metric_history(done["run"], "loss/ar")
    assert [(one.step, one.value) for one in history] == [(p.step, p.values["loss/ar"]) for p in run.points]
    assert len(client.get_metric_history(done["run"], "held_out/even/loss")) == 2
    found = client.get_run(done["run"])
    assert found.info.status == "FINISHED"
    assert found.data.params == dict(run.parameters)
    assert found.data.tags["code_version"] == run.tags["code_version"]
    assert {"metrics.jsonl", "training.json"} <= {file.path for file in client.list_artifacts(done["run"])}
    group = client.get_experiment_by_name("loam")
    assert group is not None
    assert len(client.search_runs([group.experiment_id])) == 1


def records_of(log: bytes) -> list[bytes]:
    """The records of W&B's file: LevelDB's log format (blocks of 32 KiB, parts with checksum, length and type)."""
    found, part, at = [], b"", 7  # after W&B's own header
    while at + 7 <= len(log):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        part += log[at + 7 : at + 7 + length]
        if kind in (1, 4):  # whole, or the last part
            found.append(part)
            part = b""
        at += 7 + length
    return found


def test_wandb_offline_holds_the_run_and_is_written_once(tmp_path: Path, shards: ShardSet):
    pytest.importorskip("wandb", reason="needs the extra wandb")
    from wandb.proto import wandb_internal_pb2

    from trainer.tracking_wandb import export_wandb

    whole = trained(shards, tmp_path / "out")
    run = read_tracked(whole)
    export_wandb(read_tracked(unfinished(whole, tmp_path / "early", 8)), tmp_path / "wandb-runs")
    done = export_wandb(run, tmp_path / "wandb-runs")
    again = export_wandb(run, tmp_path / "wandb-runs")
    assert (done["added"], again["added"], again["folder"]) == (16, 0, done["folder"])
    assert len(list((tmp_path / "wandb-runs" / "wandb").glob("offline-run-*"))) == 1
    [file] = Path(done["folder"]).glob("run-*.wandb")
    losses = []
    for data in records_of(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        for item in record.history.item:
            if "loss/ar" in (item.key, *item.nested_key):
                losses.append(json.loads(item.value_json))
    assert losses == [point.values["loss/ar"] for point in run.points]
