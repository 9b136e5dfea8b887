"""A run that is killed anywhere and started again writes the bytes of one that was left alone."""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.errors import DataError
from pipelines.shards import Blend, ShardSet
from tests.trainer.cycles import shards_of
from trainer.checkpoint import load_checkpoint, read_checkpoints, write_checkpoint
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.observer import Observer
from trainer.recipe import TrainRecipe
from trainer.run import Run
from trainer.stage_decision import StageDecision

RICH = TrainRecipe.model_validate({
    "name": "rich",
    "model": {
        "layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn_width": 24, "vocab_size": 32,
        "max_sequence": 16, "experts": 4, "expert_width": 8, "dense_layers": 1,
    },
    "stages": [
        {"name": "first", "tokens": 640, "sequence_length": 16, "batch_tokens": 64, "learning_rate": 1e-2,
         "blend": "most_even", "curriculum": [{"until": 0.4, "sequence_length": 8, "batch_tokens": 32}]},
        {"name": "second", "tokens": 640, "sequence_length": 12, "batch_tokens": 48, "learning_rate": 5e-3,
         "blend": "most_odd", "replay": 0.25, "schedule": "wsd",
         "fill_in_middle": {"share": 0.3, "prefix": 29, "suffix": 30, "middle": 31}},
        {"name": "third", "tokens": 384, "sequence_length": 16, "batch_tokens": 64, "learning_rate": 2e-3,
         "blend": "most_even", "replay": 0.4, "weight_decay": 0.01},
    ],
    "spikes": {"window": 8, "least": 4, "sigmas": 1.5, "most_in_a_row": 9}, "separate_documents": True,
    "checkpoint_every": 3, "checkpoint_permanent": 12, "validate_every": 7, "validation_tokens": 100,
    "micro_batch_tokens": 32, "device": "cpu",
})  # fmt: skip
MUON = RICH.model_copy(update={"optimizer": RICH.optimizer.model_copy(update={"name": "muon"}), "recompute": True})
EVERYTHING = TrainRecipe.model_validate({
    **RICH.model_dump(), "optimizer": {"name": "muon"}, "precision": "bf16", "recompute": True, "deterministic": True,
    "flow_matching": {"weight": 0.1, "width": 16, "layers": 1},
    "stages": [{**stage.model_dump(), "tokens": stage.tokens // 2} for stage in RICH.stages],
    "model": {
        **RICH.model.model_dump(), "layers": 2, "kv_heads": 2, "head_dim": 16, "qk_norm": "none",
        "mla": {"kv_rank": 8, "rope_dim": 8, "value_dim": 8}, "experts": 8, "mtp_layers": 2,
        "router": {"groups": 2, "groups_per_token": 1, "scores_per_group": 2, "sequence_aux_loss": 1e-3,
                   "global_aux_loss": 1e-2, "z_loss": 1e-3, "capacity_factor": 1.25},
    },
})  # fmt: skip


class Gate(Observer):
    """Decides by what it has seen, and keeps that in the checkpoints."""

    def on_start(self, run: Run) -> None:
        self._run = run

    def on_step(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.notes["losses"] = [*self._run.notes.get("losses", []), values["loss"]]

    def on_stage_end(self, stage: int, run: Run) -> StageDecision:
        mean = sum(run.notes["losses"]) / len(run.notes["losses"])
        run.log({"kind": "gate", "step": run.step, "mean": round(mean, 6)})
        return StageDecision(replay=0.5, rate_factor=1 / (1 + mean), reason=f"stage {stage}: mean {mean:.4f}")


class Killed(BaseException):
    """What a kill between two steps is to the code."""


class KillAt(Observer):
    def __init__(self, step: int) -> None:
        self.at = step

    def on_step(self, step: int, values: Mapping[str, Any]) -> None:
        if step == self.at:
            raise Killed


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return shards_of(tmp_path_factory.mktemp("shards"))


def blends_of(shards: ShardSet) -> dict[str, Blend]:
    return {"most_even": Blend.of({"even": 0.7, "odd": 0.3}, shards),
            "most_odd": Blend.of({"even": 0.1, "odd": 0.9}, shards)}  # fmt: skip


def run_on(recipe: TrainRecipe, shards: ShardSet, work: Path, *more: Observer) -> None:
    train(recipe, blends_of(shards), work, shards, [Gate(), *more])


def published(work: Path) -> dict[str, bytes]:
    files = (p for p in work.rglob("*") if p.is_file() and ".scratch" not in p.parts)
    return {p.relative_to(work).as_posix(): p.read_bytes() for p in files}


@pytest.fixture(scope="module", params=[RICH, MUON], ids=["adamw", "muon"])
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shards: ShardSet):
    work = tmp_path_factory.mktemp("undisturbed")
    run_on(request.param, shards, work)
    return request.param, published(work)


def test_the_rich_run_has_everything_that_a_resume_could_get_wrong(undisturbed: tuple[TrainRecipe, dict[str, bytes]]):
    recipe, files = undisturbed
    told = json.loads(files["training.json"])
    assert told["steps"] == sum(stage.steps for stage in recipe.stages)
    assert told["skipped_steps"] >= 2  # spikes were skipped
    assert told["decisions"].keys() == {"first", "second", "third"}
    assert told["domains"]["even"]["replayed"] > 0
    assert "checkpoints/step-000000012/state.safetensors" in files
    lines = [json.loads(line) for line in files["metrics.jsonl"].splitlines()]
    rates = [line["lr"] for line in lines if line.get("stage") == "third"]
    assert max(rates) < 2e-3 / 3  # two decisions lowered it
    assert {line["kind"] for line in lines} == {"step", "held_out", "gate"}
    assert lines[-1]["tokens" if lines[-1]["kind"] == "step" else "step"]


@pytest.mark.parametrize("seed", range(3))
def test_ended_between_any_two_steps(undisturbed, shards: ShardSet, tmp_path: Path, seed: int):
    recipe, files = undisturbed
    steps = sum(stage.steps for stage in recipe.stages)
    first = recipe.stages[0].steps
    random = np.random.default_rng(seed)
    ends = sorted({*random.integers(1, steps + 1, 3).tolist(), first + seed - 1})  # around a stage's boundary, too
    for step in ends:
        with pytest.raises(Killed):
            run_on(recipe, shards, tmp_path, KillAt(step))
    run_on(recipe, shards, tmp_path)
    assert published(tmp_path) == files


def test_everything_switched_on_goes_on_as_if_never_ended(shards: ShardSet, tmp_path: Path):
    """Latent attention, groups, capacity, three balance losses, further tokens, flow, bf16, Muon: all state is kept."""
    run_on(EVERYTHING, shards, tmp_path / "undisturbed")
    first = EVERYTHING.stages[0].steps
    for step in (first, first + 5):
        with pytest.raises(Killed):
            run_on(EVERYTHING, shards, tmp_path / "ended", KillAt(step))
    run_on(EVERYTHING, shards, tmp_path / "ended")
    found = published(tmp_path / "undisturbed")
    assert published(tmp_path / "ended") == found
    line = json.loads(found["metrics.jsonl"].splitlines()[-3])
    assert {"loss", "total", "aux", "z", "mtp", "flow", "experts"} <= line.keys()


def in_a_child(action: Callable[[], None]) -> int:
    """Fork; the child has torch loaded already."""
    if child := os.fork():
        return child
    code = 1
    try:
        action()
        code = 0
    except SystemExit as ended:
        code = int(str(ended.code))
    finally:
        os._exit(code)


def until(condition: Callable[[], bool], child: int) -> bool:
    """Wait for something, or for the child's end."""
    while not condition():
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.0005)
    return True


def lines_in(work: Path) -> int:
    path = work / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_sigkill_at_random_steps_changes_no_byte(undisturbed, shards: ShardSet, tmp_path: Path):
    recipe, files = undisturbed
    lines, random = files["metrics.jsonl"].count(b"\n"), np.random.default_rng(0)
    for target in sorted(random.integers(2, lines, 4).tolist()):
        child = in_a_child(lambda: run_on(recipe, shards, tmp_path))
        if until(lambda: lines_in(tmp_path) >= target, child):  # noqa: B023
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
    run_on(recipe, shards, tmp_path)
    assert published(tmp_path) == files


def test_sigkill_in_the_middle_of_a_checkpoint_changes_no_byte(undisturbed, shards: ShardSet, tmp_path: Path):
    recipe, files = undisturbed
    folder = tmp_path / ".scratch" / "checkpoints"
    hits = 0
    for _ in range(8):
        before = {path.name for path in folder.glob("step-*")}
        child = in_a_child(lambda: run_on(recipe, shards, tmp_path))
        # one whole checkpoint first, so that every attempt gets further
        done = until(lambda: {path.name for path in folder.glob("step-*")} - before != set(), child)  # noqa: B023
        if not done:
            break
        if until(lambda: any(folder.glob(".step-*.tmp")), child):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            hits += any(folder.glob(".step-*.tmp"))
    assert hits  # at least once it was caught while it wrote
    run_on(recipe, shards, tmp_path)
    assert published(tmp_path) == files


def test_sigterm_saves_and_ends_with_code_0(undisturbed, shards: ShardSet, tmp_path: Path):
    recipe, files = undisturbed
    child = in_a_child(lambda: run_on(recipe, shards, tmp_path))
    assert until(lambda: lines_in(tmp_path) >= 4, child)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    newest = next(read_checkpoints(tmp_path / ".scratch" / "checkpoints"))
    steps = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "step"]
    assert newest.step == len(steps) < sum(stage.steps for stage in recipe.stages)  # no step is lost
    run_on(recipe, shards, tmp_path)
    assert published(tmp_path) == files


def test_a_damaged_newest_checkpoint_falls_back(undisturbed, shards: ShardSet, tmp_path: Path):
    recipe, files = undisturbed
    with pytest.raises(Killed):
        run_on(recipe, shards, tmp_path, KillAt(11))
    newest = max((tmp_path / ".scratch" / "checkpoints").glob("step-*"))
    (newest / "state.safetensors").write_bytes(b"torn")
    run_on(recipe, shards, tmp_path)
    assert published(tmp_path) == files


def test_what_comes_after_a_damaged_checkpoint_is_kept_though_one_alone_is(
    undisturbed, shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe, files = undisturbed
    alone = recipe.model_copy(update={"checkpoints_kept": 1})
    with pytest.raises(Killed):
        run_on(alone, shards, tmp_path, KillAt(11))
    folder = tmp_path / ".scratch" / "checkpoints"
    (folder / "step-000000009" / "state.safetensors").write_bytes(b"torn")
    with pytest.raises(Killed):
        run_on(alone, shards, tmp_path, KillAt(5))
    assert "loam: step-000000009 or the logs up to there are damaged; going on after step 0" in capsys.readouterr().err
    assert [checkpoint.step for checkpoint in read_checkpoints(folder)] == [3]
    run_on(alone, shards, tmp_path)
    assert published(tmp_path).keys() == files.keys()
    assert published(tmp_path)["metrics.jsonl"] == files["metrics.jsonl"]


@pytest.mark.parametrize(("edited", "goes_on"), [(0, 0), (6, 6)])  # a line of which step; with which checkpoint
def test_logs_that_were_edited_are_written_again(
    undisturbed, shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str], edited: int, goes_on: int
):
    recipe, files = undisturbed
    with pytest.raises(Killed):
        run_on(recipe, shards, tmp_path, KillAt(11))
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if json.loads(line)["step"] == edited + 1)
    lines[at] = lines[at].replace(b'"loss": ', b'"lOss": ')
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
    run_on(recipe, shards, tmp_path)
    assert published(tmp_path) == files
    assert f"going on after step {goes_on}" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_fit_is_refused(undisturbed, shards: ShardSet, tmp_path: Path):
    recipe, _ = undisturbed
    with pytest.raises(Killed):
        run_on(recipe, shards, tmp_path, KillAt(5))
    folder = tmp_path / ".scratch" / "checkpoints"
    [found] = read_checkpoints(folder)
    moment = next(name for name in found.tensors if name.startswith("exp_avg."))
    for name in ("model.norm.weight", moment, "model.stray.weight"):
        changed = {**found.tensors, name: torch.zeros(3)}
        write_checkpoint(folder, found.step, changed, found.note)
        with pytest.raises(DataError, match=rf"step 3 does not fit: {name} has shape .*, expected"):
            run_on(recipe, shards, tmp_path)


def test_other_held_out_text_is_another_run(undisturbed, shards: ShardSet, tmp_path: Path):
    recipe, _ = undisturbed
    with pytest.raises(Killed):
        run_on(recipe, shards, tmp_path, KillAt(5))
    with pytest.raises(DataError, match="other data"):
        train(recipe, blends_of(shards), tmp_path, ShardSet(shards.shards[:1]), [Gate()])


def test_how_often_is_saved_may_change_while_a_run_is_interrupted(undisturbed, shards: ShardSet, tmp_path: Path):
    recipe, files = undisturbed
    with pytest.raises(Killed):
        run_on(recipe, shards, tmp_path, KillAt(8))
    run_on(recipe.model_copy(update={"checkpoint_every": 4, "checkpoints_kept": 1}), shards, tmp_path)
    found = published(tmp_path)
    assert {name: data for name, data in found.items() if name != "final/recipe.json"} == {
        name: data for name, data in files.items() if name != "final/recipe.json"
    }


def test_the_last_ones_and_every_twelfth_stay(undisturbed, shards: ShardSet, tmp_path: Path):
    recipe, _ = undisturbed
    run_on(recipe, shards, tmp_path)
    steps = sum(stage.steps for stage in recipe.stages)
    assert sorted(int(p.name[5:]) for p in (tmp_path / "checkpoints").iterdir()) == list(range(12, steps + 1, 12))
    rolling = sorted(int(p.name[5:]) for p in (tmp_path / ".scratch" / "checkpoints").glob("step-*"))
    assert len(rolling) == recipe.checkpoints_kept
    settings, tensors = load_checkpoint(tmp_path / "checkpoints" / "step-000000012")
    assert settings == recipe.model
    assert "embed_tokens.weight" in tensors
