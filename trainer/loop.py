"""The training loop: a Blend goes in, a model and its curves come out. Read this file first.

A step is: the next samples by number, forward and backward, clip, AdamW, rebalance the experts. All of it is a function
of (recipe, blends, step), so a run killed at any step and started again writes the same bytes as one left alone:
checkpoints hold the step, and what was written after it is cut off.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.errors import DataError, StepError
from pipelines.execute import SCRATCH
from pipelines.files import write_atomically
from pipelines.journal import record
from pipelines.manifest import digest_of
from pipelines.progress import Tracker, track
from pipelines.shards import Blend, ShardSet
from pipelines.store import Outcome
from trainer.checkpoint import read_checkpoints, save_model, write_checkpoint
from trainer.expert_load import LoadLog, summarize_load
from trainer.model import Decoder, new_model
from trainer.optimizer import make_optimizer, optimizer_tensors, restore_optimizer, set_learning_rate
from trainer.recipe import StageSettings, TrainRecipe
from trainer.stream import BlendStream, blends_of_stages, check_epochs
from trainer.validation import held_out_losses

METRICS = "metrics.jsonl"
FINAL = "final"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Run:
    """A training run between two steps.

    Attributes:
        recipe: what was asked.
        blends: of each stage.
        work: folder that is filled.
        identity: digest of recipe and data; checkpoints of another run are refused.
        device: where the model lives.
        model: being trained.
        optimizer: its optimizer.
        step: optimizer steps done, all stages together.
        loads: counts of expert choices; None for a dense model.
        streams: of each stage, made when first drawn from.
        extra: further state that its checkpoints hold, by name.
    """

    recipe: TrainRecipe
    blends: list[Blend]
    work: Path
    identity: str
    device: torch.device
    model: Decoder
    optimizer: torch.optim.Optimizer
    step: int = 0
    loads: LoadLog | None = None
    streams: dict[int, BlendStream] = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def metrics(self) -> Path:
        """One JSON line per step or held-out measurement."""
        return self.work / METRICS

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints; not published."""
        return self.work / SCRATCH / "checkpoints"

    def stream(self, stage: int) -> BlendStream:
        """The samples of a stage."""
        if stage not in self.streams:
            settings = self.recipe.stages[stage]
            samples = settings.steps * settings.batch_samples
            seed, length = self.recipe.seed, settings.sequence_length
            self.streams[stage] = BlendStream(self.blends[stage], seed, stage, length, samples)
        return self.streams[stage]


def train(
    recipe: TrainRecipe,
    blends: Mapping[str, Blend] | Blend,
    work: Path,
    validation: ShardSet | None = None,
) -> Outcome:
    """Train a model.

    Writes `metrics.jsonl`, `training.json`, `final/` (a model that `trainer.checkpoint.load_model` reads) and, for a
    model with experts, `expert_load.parquet`. May be called again on the same folder after a kill.

    Args:
        recipe: model, stages, seed.
        blends: by name, or one for all stages.
        work: folder to fill.
        validation: held-out shards, one per domain.

    Returns:
        Metrics: parameters, steps, tokens, first and last loss and the domains of each stage, held-out losses; what
        `training.json` holds.

    Raises:
        RecipeError: the vocabulary's size is not set.
        DataError: a shard is damaged, a domain would be repeated beyond the cap, or `work` holds another run.
        StepError: the loss or the gradient is not finite.
    """
    recipe.require_vocabulary()
    stage_blends = blends_of_stages(recipe.stages, blends)
    check_epochs(recipe.stages, stage_blends, recipe.epoch_cap)
    with torch_threads(recipe.threads):
        run = begin_run(recipe, stage_blends, work)
        with track(f"train {recipe.name}", recipe.tokens, "tokens") as tracker:
            for number, stage in enumerate(recipe.stages):
                _train_stage(run, number, stage, validation, tracker)
        if validation is not None and not _measured_at(run.metrics, run.step):
            append_line(run.metrics, _held_out_line(run, validation))
        save_model(work / FINAL, run.model, recipe)
        if run.loads is not None:
            run.loads.write_table(work / "expert_load.parquet")
        return Outcome(metrics=_summary(run, validation))


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Use this many torch threads while the body runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_device(wanted: str) -> torch.device:
    """Resolve `auto`, `cpu` or `cuda`.

    Raises:
        DataError: a GPU is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DataError("device is 'cuda', but torch finds no GPU here; set device to 'auto' or 'cpu'")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def begin_run(recipe: TrainRecipe, blends: list[Blend], work: Path, method: Mapping[str, Any] | None = None) -> Run:
    """A run at its last good checkpoint, or at step 0, with its logs cut to that step.

    Args:
        recipe: what to train.
        blends: of each stage.
        work: folder to fill; may hold the files of a killed run.
        method: what else the run's bytes depend on.

    Raises:
        DataError: `work` holds checkpoints of another run.
    """
    work.mkdir(parents=True, exist_ok=True)
    device = choose_device(recipe.device)
    model = new_model(recipe.model, recipe.seed, PRECISIONS[recipe.precision]).to(device).train()
    described = [[(weight, shard.name, shard.sha256) for weight, shard in blend.parts] for blend in blends]
    identity = digest_of({"recipe": recipe.model_dump(mode="json"), "blends": described, **(method or {})})
    run = Run(recipe, blends, work, identity, device, model, make_optimizer(model, recipe.optimizer))
    if layers := list(model.routers()):
        run.loads = LoadLog(work / SCRATCH / "expert_load.bin", layers, recipe.model.experts)
    for checkpoint in read_checkpoints(run.checkpoints):
        if checkpoint.note["run"] != identity:
            raise DataError(f"{work} holds checkpoints of another recipe or other data; give an empty folder")
        if _cut_logs(run, checkpoint.step, checkpoint.note["metrics_bytes"]):
            weights = {n.removeprefix("model."): t for n, t in checkpoint.tensors.items() if n.startswith("model.")}
            model.load_state_dict(weights)
            restore_optimizer(model, run.optimizer, checkpoint.tensors)
            run.step = checkpoint.step
            run.extra = {n.removeprefix("extra."): t for n, t in checkpoint.tensors.items() if n.startswith("extra.")}
            return run
    _cut_logs(run, 0, 0)
    return run


def _cut_logs(run: Run, step: int, metrics_bytes: int) -> bool:
    """Forget what was logged after `step`; False when the logs are shorter than that."""
    run.metrics.touch()
    if run.metrics.stat().st_size < metrics_bytes or (run.loads is not None and not run.loads.truncate(step)):
        return False
    os.truncate(run.metrics, metrics_bytes)
    return True


def _train_stage(run: Run, number: int, stage: StageSettings, validation: ShardSet | None, tracker: Tracker) -> None:
    """Train from wherever the run stands to the end of a stage."""
    begins = sum(before.steps for before in run.recipe.stages[:number])
    tokens_before = sum(before.steps * before.batch_tokens for before in run.recipe.stages[:number])
    started, first = time.perf_counter(), run.step
    while run.step < begins + stage.steps:
        local = run.step - begins
        line = _train_step(run, number, stage, local)
        line["tokens"] = tokens_before + (local + 1) * stage.batch_tokens
        append_line(run.metrics, line)
        tracker.update(line["tokens"], f"{stage.name} loss {line['loss']:.3f}")
        every = run.recipe.validate_every
        if validation is not None and every and run.step % every == 0:
            append_line(run.metrics, _held_out_line(run, validation))
        if run.step % run.recipe.checkpoint_every == 0:
            save_state(run)
    if (steps := run.step - first) > 0:
        seconds = time.perf_counter() - started
        rate = steps * stage.batch_tokens / seconds
        flops = rate * run.recipe.model.flops_per_token(stage.sequence_length)
        record("train", model=run.recipe.name, stage=stage.name, steps=steps, seconds=round(seconds, 3),
               tokens_per_s=round(rate), gflops=round(flops / 1e9, 1), device=run.device.type)  # fmt: skip


def _train_step(run: Run, number: int, stage: StageSettings, local: int) -> dict[str, Any]:
    """One optimizer step; gives its line of metrics."""
    samples_BS = torch.from_numpy(run.stream(number).batch(local * stage.batch_samples, stage.batch_samples))
    rate = stage.learning_rate_at(local)
    set_learning_rate(run.optimizer, rate)
    run.optimizer.zero_grad(set_to_none=True)
    rows = max(1, (run.recipe.micro_batch_tokens or stage.batch_tokens) // stage.sequence_length)
    losses = []
    for micro_BS in samples_BS.to(run.device).split(rows):
        loss = run.model.loss(micro_BS[:, :-1], micro_BS[:, 1:])
        share = len(micro_BS) / stage.batch_samples
        balance = run.model.aux_losses()
        whole = loss if balance is None else loss + run.recipe.model.aux_loss * balance
        (whole * share).backward()
        losses.append(loss.detach() * share)
    return finish_step(run, stage, rate, float(torch.stack(losses).sum()))


def finish_step(run: Run, stage: StageSettings, rate: float, mean_loss: float) -> dict[str, Any]:
    """Clip the gradients that lie in the model, let the optimizer move, rebalance the experts.

    Args:
        run: goes one step on.
        stage: that the step belongs to.
        rate: learning rate, already set.
        mean_loss: nats per token of the step.

    Returns:
        Its line of metrics.

    Raises:
        StepError: loss or gradient is not finite.
    """
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.recipe.grad_clip)
    grad_norm = float(norm)
    if not (math.isfinite(mean_loss) and math.isfinite(grad_norm)):
        raise StepError(
            f"training {run.recipe.name}: step {run.step + 1} (stage {stage.name}) has loss {mean_loss} and gradient "
            f"norm {grad_norm}; lower learning_rate or grad_clip, then run again"
        )
    run.optimizer.step()
    run.step += 1
    line = {"kind": "step", "step": run.step, "stage": stage.name, "loss": round(mean_loss, 6),
            "lr": float(f"{rate:.8g}"), "grad_norm": round(grad_norm, 6)}  # fmt: skip
    if run.loads is not None:
        line["experts"] = _rebalance(run.model, run.loads)
    return line


def _rebalance(model: Decoder, loads: LoadLog) -> dict[str, dict[str, float]]:
    """Move every router's bias, log the counts, and sum them up by layer."""
    load_LE = {layer: router.rebalance().cpu().numpy() for layer, router in model.routers().items()}
    loads.append(np.stack(list(load_LE.values())))
    return {str(layer): summarize_load(load_E) for layer, load_E in load_LE.items()}


def _held_out_line(run: Run, validation: ShardSet) -> dict[str, Any]:
    length = max(stage.sequence_length for stage in run.recipe.stages)
    losses = held_out_losses(run.model, validation, length, run.recipe.validation_tokens)
    return {"kind": "held_out", "step": run.step, "domains": losses}


def _measured_at(metrics: Path, step: int) -> bool:
    """Whether the last line is the held-out loss after `step`."""
    lines = read_metrics(metrics)
    return bool(lines) and lines[-1]["kind"] == "held_out" and lines[-1]["step"] == step


def append_line(metrics: Path, line: Mapping[str, Any]) -> None:
    """Add a line of metrics."""
    with metrics.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def save_state(run: Run) -> None:
    """Write a checkpoint from which `begin_run` goes on."""
    with run.metrics.open("rb") as file:
        os.fsync(file.fileno())
    tensors = {f"model.{name}": tensor for name, tensor in run.model.state_dict().items()}
    tensors |= optimizer_tensors(run.model, run.optimizer)
    tensors |= {f"extra.{name}": tensor for name, tensor in run.extra.items()}
    note = {"run": run.identity, "metrics_bytes": run.metrics.stat().st_size}
    write_checkpoint(run.checkpoints, run.step, tensors, note)


def _summary(run: Run, validation: ShardSet | None) -> dict[str, Any]:
    """The run's own numbers, read back from its files, so that a resumed run gives the same."""
    lines = read_metrics(run.metrics)
    stages = []
    for number, stage in enumerate(run.recipe.stages):
        losses = [line["loss"] for line in lines if line["kind"] == "step" and line["stage"] == stage.name]
        tail = losses[-max(1, len(losses) // 20) :]  # the last twentieth: one step is noise
        stages.append({
            "name": stage.name, "steps": stage.steps, "tokens": stage.steps * stage.batch_tokens,
            "sequence_length": stage.sequence_length, "first_loss": losses[0],
            "last_loss": round(sum(tail) / len(tail), 6), "domains": run.stream(number).ledger(),
        })  # fmt: skip
    summary: dict[str, Any] = {
        "parameters": run.recipe.model.parameters(), "active_parameters": run.recipe.model.active_parameters(),
        "steps": run.step, "tokens": run.recipe.tokens, "stages": stages,
    }  # fmt: skip
    if validation is not None:
        summary["held_out"] = lines[-1]["domains"]
    write_atomically(run.work / "training.json", (json.dumps(summary, indent=1, sort_keys=True) + "\n").encode())
    return summary
