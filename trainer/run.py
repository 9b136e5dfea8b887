"""A training run between two steps: what it is made of, how it is saved, and how it goes on after a kill.

All of it is a function of (recipe, blends, step) and of what observers decided at the ends of stages, which the
checkpoints hold. No random state is kept: after the first weights nothing draws a random number that is not seeded by
its place. Logs are cut to the checkpoint before a run goes on.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.errors import DataError
from pipelines.execute import SCRATCH
from pipelines.manifest import digest_of
from pipelines.shards import Blend
from trainer.checkpoint import Checkpoint, discard_after, read_checkpoints, tidy_checkpoints
from trainer.checkpoint_writer import CheckpointWriter
from trainer.device import choose_device
from trainer.expert_load import LoadLog
from trainer.hashed_log import HashedLog
from trainer.memory_account import require_memory
from trainer.metrics import line_of
from trainer.model import Decoder
from trainer.optimizer import MOMENTS, make_optimizer, optimizer_tensors, restore_optimizer
from trainer.recipe import TrainRecipe
from trainer.spike_guard import SpikeGuard
from trainer.stage_decision import StageDecision
from trainer.start import digest_of_start, first_model
from trainer.stream import TrainingData

METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
NO_BITS = {"checkpoint_every", "checkpoints_kept", "checkpoint_permanent"}  # may change while a run is interrupted


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
        guard: against spikes; None when every step is taken.
        decisions: what observers decided at the end of each stage, by its number.
        notes: JSON values that observers keep in the checkpoints, by name.
        extra: further tensors that its checkpoints hold, by name.
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
    guard: SpikeGuard | None = None
    decisions: dict[int, StageDecision] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def metrics(self) -> Path:
        """One JSON line per step or held-out measurement."""
        return self.work / METRICS

    @property
    def checkpoints(self) -> Path:
        """Folder of the newest checkpoints; not published."""
        return self.work / SCRATCH / CHECKPOINTS

    @property
    def stopped(self) -> bool:
        """Whether a decision ended the run before its last stage."""
        return any(decision.stop for decision in self.decisions.values())

    @cached_property
    def lines(self) -> HashedLog:
        """Writes `metrics.jsonl`."""
        return HashedLog(self.metrics)

    @property
    def logs(self) -> dict[str, HashedLog]:
        """What grows with every step, by its name in a checkpoint's note."""
        return {"metrics": self.lines} | ({} if self.loads is None else {"loads": self.loads.records})

    @cached_property
    def data(self) -> TrainingData:
        """The samples of every phase."""
        return TrainingData(self.recipe, self.blends)

    @cached_property
    def writer(self) -> CheckpointWriter:
        """Writes the checkpoints."""
        return CheckpointWriter(self.checkpoints, self.work / CHECKPOINTS, self.recipe.checkpoints_kept)

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to `metrics.jsonl`."""
        self.lines.append(line_of(line))

    def decide(self, stage: int, decision: StageDecision) -> None:
        """Let a decision hold from the next stage on."""
        self.decisions[stage] = decision
        if decision.replay is not None:
            for later in range(stage + 1, len(self.recipe.stages)):
                self.data.least_replay[later] = max(self.data.least_replay[later], decision.replay)

    def rate_factor(self, stage: int) -> float:
        """What decisions made of a stage's learning rate."""
        factor = 1.0
        for number in sorted(self.decisions):
            factor *= self.decisions[number].rate_factor if number < stage else 1.0
        return factor

    def tensors(self) -> dict[str, Tensor]:
        """The state that a checkpoint holds."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= optimizer_tensors(self.model, self.optimizer)
        return tensors | {f"extra.{name}": tensor for name, tensor in self.extra.items()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Stand where a checkpoint was written.

        Raises:
            DataError: its tensors are not those of this model and optimizer.
        """
        tensors, note = checkpoint.tensors, checkpoint.note
        self._check(checkpoint)
        self.model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
        restore_optimizer(self.model, self.optimizer, tensors)
        self.step = checkpoint.step
        self.extra = {n.removeprefix("extra."): t for n, t in tensors.items() if n.startswith("extra.")}
        self.notes = note["notes"]
        for stage, decision in note["decisions"].items():
            self.decide(int(stage), StageDecision(**decision))
        if self.guard is not None:
            self.guard.restore(note["guard"])

    def _check(self, checkpoint: Checkpoint) -> None:
        """Compare names and shapes: that a checkpoint is whole does not say that it fits, as after a change of code."""
        needed = {f"model.{name}": tensor.shape for name, tensor in self.model.state_dict().items()}
        moments = {f"{moment}.{n}": p.shape for n, p in self.model.named_parameters() for moment in MOMENTS}
        free = ("extra.", "step.")  # an observer's own, and counts
        held = {name: tensor.shape for name, tensor in checkpoint.tensors.items() if not name.startswith(free)}
        for name in sorted(needed.keys() | held.keys()):
            wanted, found = needed.get(name, moments.get(name)), held.get(name)
            if found != wanted:
                raise DataError(
                    f"{self.work}: the checkpoint of step {checkpoint.step} does not fit: {name} has shape "
                    f"{found and tuple(found)}, expected {wanted and tuple(wanted)}; give an empty folder"
                )


def begin_run(
    recipe: TrainRecipe, blends: list[Blend], work: Path, method: Mapping[str, Any] | None = None,
    start: Path | None = None,
) -> Run:  # fmt: skip
    """A run at its last good checkpoint, or at step 0, with its logs cut to that step.

    Args:
        recipe: what to train.
        blends: of each stage.
        work: folder to fill; may hold the files of a killed run.
        method: what else the run's bytes depend on.
        start: checkpoint of a finished model to go on from; fresh weights without one.

    Raises:
        DataError: `work` holds checkpoints of another run, or `start` is damaged or of another shape.
        RecipeError: the recipe's updates do not fit the model, or the training not the device's memory.
    """
    work.mkdir(parents=True, exist_ok=True)
    device = choose_device(recipe.device)
    require_memory(recipe, device)
    model = first_model(recipe, PRECISIONS[recipe.precision], start).to(device).train()
    model.recompute = recipe.recompute
    read = [blend.identity for blend in blends]
    asked = recipe.model_dump(mode="json", exclude=NO_BITS)
    identity = digest_of({"recipe": asked, "blends": read, **(method or {}), **digest_of_start(start)})
    run = Run(recipe, blends, work, identity, device, model, make_optimizer(model, recipe.optimizer))
    if layers := list(model.routers()):
        run.loads = LoadLog(work / SCRATCH / "expert_load.bin", layers, recipe.model.experts)
    if recipe.spikes is not None:
        run.guard = SpikeGuard(recipe.spikes)
    _go_on(run)
    if recipe.compile:
        compile_layers(model)
    return run


def _go_on(run: Run) -> None:
    folders = run.checkpoints, run.work / CHECKPOINTS
    tidy_checkpoints(*folders)
    for checkpoint in read_checkpoints(*folders):
        if checkpoint.note["run"] != run.identity:
            raise DataError(f"{run.work} holds checkpoints of another recipe or other data; give an empty folder")
        if all(log.restore(checkpoint.note["logs"][name]) for name, log in run.logs.items()):
            run.restore(checkpoint)
            break
    else:
        for log in run.logs.values():
            log.clear()
    if useless := discard_after(run.step, *folders):
        names = ", ".join(sorted(path.name for path in useless))
        print(f"loam: {names} or the logs up to there are damaged; going on after step {run.step}", file=sys.stderr)


def compile_layers(model: Decoder) -> None:
    """Let torch compile each layer when it is first used; routers and routed experts run as they are."""
    for layer in model.layers:
        layer.compile()


def save_state(run: Run) -> None:
    """Begin to write a checkpoint from which `begin_run` goes on; returns when the state is copied."""
    note = {
        "run": run.identity, "logs": {name: log.state() for name, log in run.logs.items()}, "notes": run.notes,
        "decisions": {str(stage): decision.as_note() for stage, decision in run.decisions.items()},
        "guard": run.guard.state() if run.guard else None,
        "model": run.recipe.model.model_dump(mode="json"),
    }  # fmt: skip
    every = run.recipe.checkpoint_permanent
    run.writer.save(run.step, run.tensors(), note, stays=bool(every) and run.step % every == 0)
