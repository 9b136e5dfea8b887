"""What a training recipe may ask for beside its stages: recomputation, strictness, observers, guards."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from pipelines.errors import StepError
from pipelines.indexed import IndexedWriter, load_shards
from pipelines.shards import Blend
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.observer import Observer
from trainer.recipe import StageSettings, TrainRecipe
from trainer.run import Run
from trainer.stage_decision import StageDecision

STAGE = {"tokens": 512, "sequence_length": 16, "batch_tokens": 64, "learning_rate": 1e-2}
DENSE = {"layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn_width": 24, "vocab_size": 32,
         "max_sequence": 16}  # fmt: skip
EXPERTS = {**DENSE, "experts": 4, "expert_width": 8, "dense_layers": 1}


def recipe_of(**given: Any) -> TrainRecipe:
    return TrainRecipe.model_validate({
        "name": "tiny", "model": EXPERTS, "device": "cpu",
        "stages": [{"name": "one", **STAGE}, {"name": "two", **STAGE}], **given,
    })  # fmt: skip


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory) -> Blend:
    folder = tmp_path_factory.mktemp("shards")
    for name, first in (("even", 0), ("odd", 1)):
        with IndexedWriter(folder / name, 32) as writer:
            for document in range(30):
                writer.append(np.resize(np.roll(np.arange(first, 16, 2), document), 20 + document),
                              np.array([20 + document]))  # fmt: skip
    return Blend.of({"even": 0.5, "odd": 0.5}, load_shards(folder))


def lines_of(recipe: TrainRecipe, blend: Blend, work: Path, *observers: Observer) -> list[dict[str, Any]]:
    train(recipe, blend, work, None, observers)
    return read_metrics(work / "metrics.jsonl")


@pytest.mark.parametrize("option", ["recompute", "deterministic"])
def test_options_that_change_no_number(blend: Blend, tmp_path: Path, option: str):
    plain = lines_of(recipe_of(), blend, tmp_path / "plain")
    assert lines_of(recipe_of(**{option: True}), blend, tmp_path / option) == plain
    assert not torch.are_deterministic_algorithms_enabled()
    if option == "recompute":  # nothing is counted twice: 64 tokens choose two experts each
        loads = (tmp_path / option / ".scratch" / "expert_load.bin").read_bytes()
        assert np.frombuffer(loads, "<i4").sum() == 16 * 64 * 2


def test_separate_documents_train_another_model(blend: Blend, tmp_path: Path):
    apart = lines_of(recipe_of(separate_documents=True), blend, tmp_path / "apart")
    across = lines_of(recipe_of(), blend, tmp_path / "across")
    assert [line["loss"] for line in apart] != [line["loss"] for line in across]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # the compiler looks at gradients of what is no leaf
@pytest.mark.parametrize("model", [DENSE, EXPERTS], ids=["dense", "experts"])
def test_compiled_layers_compute_the_same(blend: Blend, tmp_path: Path, model: dict[str, Any]):
    given = {"model": model, "stages": [{**STAGE, "tokens": 128}], "recompute": True}
    plain = lines_of(recipe_of(**given), blend, tmp_path / "plain")
    compiled = lines_of(recipe_of(**given, compile=True), blend, tmp_path / "compiled")
    assert [line["loss"] for line in compiled] == pytest.approx([line["loss"] for line in plain], abs=1e-4)
    if model is EXPERTS:  # and a pass that is made again by compiled code is not counted again
        loads = (tmp_path / "compiled" / ".scratch" / "expert_load.bin").read_bytes()
        assert np.frombuffer(loads, "<i4").sum() == 2 * 64 * 2


@pytest.mark.parametrize("micro", [16, 48])  # 48: three rows, then one
def test_micro_batches_with_unequal_numbers_of_targets_sum_to_the_batch(blend: Blend, tmp_path: Path, micro: int):
    """Within documents of 20 to 49 tokens, rows of 16 have from 0 to 14 targets two places on."""
    given = {"model": {**DENSE, "mtp_layers": 2, "mtp_weight": 1.0}, "separate_documents": True}
    whole, parts = (
        lines_of(recipe_of(**given, micro_batch_tokens=tokens), blend, tmp_path / str(tokens)) for tokens in (0, micro)
    )
    for key in ("loss", "mtp", "total", "grad_norm"):
        assert [line[key] for line in parts] == pytest.approx([line[key] for line in whole], abs=2e-5), key


class Recorder(Observer):
    def __init__(self, decision: StageDecision | None = None) -> None:
        self.calls: list[str] = []
        self.decision = decision

    def on_start(self, run: Run) -> None:
        self.calls.append(f"start {run.step}")

    def on_step(self, step: int, values: Mapping[str, Any]) -> None:
        assert values["step"] == step
        self.calls.append(f"step {step}")

    def on_stage_end(self, stage: int, run: Run) -> StageDecision | None:
        self.calls.append(f"stage {stage} at {run.step}")
        return self.decision

    def on_end(self, run: Run) -> None:
        assert (run.work / "final" / "model.safetensors").is_file()
        self.calls.append("end")


def test_observers_are_called_in_order(blend: Blend, tmp_path: Path):
    recorder = Recorder()
    train(recipe_of(), blend, tmp_path, None, [recorder])
    steps = [f"step {n}" for n in range(1, 17)]
    assert recorder.calls == ["start 0", *steps[:8], "stage 0 at 8", *steps[8:], "stage 1 at 16", "end"]


def test_a_decision_may_stop_the_run(blend: Blend, tmp_path: Path):
    outcome = train(recipe_of(), blend, tmp_path, None, [Recorder(StageDecision(stop=True, reason="forgot all"))])
    assert (outcome.metrics["steps"], outcome.metrics["tokens"]) == (8, 512)
    assert [stage["name"] for stage in outcome.metrics["stages"]] == ["one"]
    assert outcome.metrics["decisions"]["one"]["reason"] == "forgot all"


def test_decisions_of_several_observers_are_joined(blend: Blend, tmp_path: Path):
    both = [Recorder(StageDecision(replay=0.1, rate_factor=0.5)), Recorder(StageDecision(replay=0.5, reason="x"))]
    lines = lines_of(recipe_of(), blend, tmp_path, *both)
    plain = recipe_of().stages[1].learning_rate_at(0)
    assert lines[8]["lr"] == pytest.approx(plain / 2)
    told = json.loads((tmp_path / "training.json").read_text())
    assert sum(entry["replayed"] for entry in told["stages"][1]["domains"].values()) == 256


def test_a_skipped_step_moves_nothing(blend: Blend, tmp_path: Path):
    """The second stage's rate would break the model; its spikes are skipped until the window knows them."""
    spikes = {"window": 16, "least": 4, "sigmas": 0.0001, "most_in_a_row": 99}

    class Weights(Observer):
        def on_start(self, run: Run) -> None:
            self.run, self.before, self.moved = run, run.model.state_dict(), []
            self.before = {name: tensor.clone() for name, tensor in self.before.items()}

        def on_step(self, step: int, values: Mapping[str, Any]) -> None:
            now = self.run.model.state_dict()
            self.moved.append(any(not torch.equal(now[name], old) for name, old in self.before.items()))
            self.before = {name: tensor.clone() for name, tensor in now.items()}

    weights = Weights()
    lines = lines_of(recipe_of(spikes=spikes), blend, tmp_path, weights)
    assert weights.moved == ["skipped" not in line for line in lines]
    assert not all(weights.moved)
    assert all(weights.moved[8:12])  # a stage begins with an empty window
    told = json.loads((tmp_path / "training.json").read_text())
    assert told["skipped_steps"] == weights.moved.count(False)
    ledger = json.loads((tmp_path / "training.json").read_text())["skipped"]
    skipped = [step for entry in ledger for step in range(entry["first_step"], entry["last_step"] + 1)]
    assert skipped == [line["step"] for line in lines if "skipped" in line]
    first = ledger[0]
    before = 8 * first["phase"]  # samples are counted within a phase, which here is a stage of 8 steps
    assert first["samples"] == [4 * (first["first_step"] - before - 1), 4 * (first["last_step"] - before) - 1]


def test_spikes_that_do_not_end_stop_the_run(blend: Blend, tmp_path: Path):
    spikes = {"window": 16, "least": 2, "sigmas": 1e-9, "most_in_a_row": 1}
    with pytest.raises(StepError, match=r"in a row at step \d+ \(stage \w+\): 1, the last: "):
        train(recipe_of(spikes=spikes), blend, tmp_path)


def test_the_batch_of_a_step_that_is_not_finite_is_kept(blend: Blend, tmp_path: Path):
    stages = [{"name": "one", **STAGE, "learning_rate": 1e30, "warmup": 0.0}]
    with pytest.raises(StepError, match=r"has loss .*; its batch is in .*not-finite-step-000000002"):
        train(recipe_of(stages=stages), blend, tmp_path)
    folder = tmp_path / ".scratch" / "not-finite-step-000000002"
    about = json.loads((folder / "about.json").read_text())
    assert (about["step"], len(about["domains"])) == (2, 4)
    assert "embed_tokens.weight" in about["gradients_not_finite"]
    inputs = load_file(folder / "batch.safetensors")["inputs"]
    assert inputs.shape == (4, 16)
    assert int(inputs.max()) < 16


def test_bf16_keeps_fp32_masters_and_state(blend: Blend, tmp_path: Path):
    class Types(Observer):
        def on_end(self, run: Run) -> None:
            self.types = {tensor.dtype for name, tensor in run.tensors().items() if not name.endswith("load_E")}

    types = Types()
    lines = lines_of(recipe_of(model=DENSE, precision="bf16"), blend, tmp_path, types)
    assert types.types == {torch.float32}
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear"])
def test_every_optimizer_and_schedule_learns(blend: Blend, tmp_path: Path, optimizer: str, schedule: str):
    stages = [{**STAGE, "tokens": 1536, "schedule": schedule}]
    lines = lines_of(recipe_of(stages=stages, optimizer={"name": optimizer}), blend, tmp_path)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.3


def test_a_curriculum_says_length_batch_and_rate_by_share_of_tokens():
    part = {"until": 0.25, "sequence_length": 8, "batch_tokens": 32, "rate_factor": 0.5}
    stage = StageSettings.model_validate({**STAGE, "schedule": "constant", "warmup": 0.0, "curriculum": [part]})
    assert [(p.steps, p.sequence_length, p.batch_samples) for p in stage.phases] == [(4, 8, 4), (6, 16, 4)]
    assert (stage.steps, stage.trained_tokens, stage.longest) == (10, 512, 16)
    assert [stage.learning_rate_at(step) for step in (3, 4)] == [0.005, 0.01]


def test_a_forward_pass_holds_whole_samples_and_at_most_a_batch():
    stage = {**STAGE, "curriculum": [{"until": 0.5, "sequence_length": 8, "batch_tokens": 32}]}
    for micro, rows in ((0, [4, 4]), (16, [2, 1]), (20, [2, 1]), (4, [1, 1]), (999, [4, 4])):
        recipe = recipe_of(stages=[stage], micro_batch_tokens=micro)
        assert [phase.rows(micro) for phase in recipe.stages[0].phases] == rows
        assert recipe.pass_tokens == max(8 * rows[0], 16 * rows[1])


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear"])
@pytest.mark.parametrize(("warmup", "decay"), [(0.0, 1.0), (0.3, 0.7), (0.1, 0.2)])
def test_a_rate_rises_once_and_never_jumps(schedule: str, warmup: float, decay: float):
    stage = StageSettings.model_validate(
        {**STAGE, "tokens": 64 * 40, "schedule": schedule, "warmup": warmup, "decay": decay}
    )
    rates = [stage.learning_rate_at(step) / stage.learning_rate for step in range(40)]
    warm = round(warmup * 40)
    assert rates[:warm] == sorted(rates[:warm])
    assert rates[warm:] == sorted(rates[warm:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)
    steepest = 1 / (1 + min(warm or 40, decay * 40 if schedule == "wsd" else 40 - warm))
    assert max(abs(a - b) for a, b in zip(rates[1:], rates, strict=False)) < 2 * steepest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": [{**STAGE, "replay": 0.1}]}, "nothing that it could replay"),
        ({"model": {**EXPERTS, "mtp_layers": 16}}, r"mtp_layers \(16\) needs samples of more .* has 16"),
        ({"stages": [{**STAGE, "schedule": "wsd", "warmup": 0.5, "decay": 0.6}]}, "overlap: the rate would jump"),
        ({"checkpoint_every": 10, "checkpoint_permanent": 25}, "must be a multiple of checkpoint_every"),
        ({"stages": [{**STAGE, "curriculum": [{"until": 0.5}, {"until": 0.5}]}]}, "must be above the one before"),
        ({"stages": [{**STAGE, "curriculum": [{"until": 0.5, "sequence_length": 12}]}]}, r"multiple of .* \(12\)"),
        ({"stages": [{**STAGE, "curriculum": [{"until": 0.5, "sequence_length": 32}]}]}, "max_sequence 16"),
    ],
)  # fmt: skip
def test_what_a_recipe_refuses(change: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        recipe_of(**change)
