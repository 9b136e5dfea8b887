"""The training loop: a Blend goes in, a model and its curves come out. Read this file first.

A run is stages, a stage is phases of one shape, a phase is steps (`step.py`). All of it is a function of (recipe,
blends, step), so that a run killed at any step and started again writes the same bytes as one left alone: checkpoints
hold the step, and what was written after it is cut off (`run.py`).
"""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.execute import SCRATCH
from pipelines.journal import record
from pipelines.manifest import digest_of
from pipelines.progress import Tracker, track
from pipelines.shards import Blend, ShardSet
from pipelines.store import Outcome
from trainer.checkpoint import save_model
from trainer.device import determinism, torch_threads
from trainer.gates import gates_of
from trainer.metrics import read_metrics
from trainer.observer import Observer
from trainer.preemption import Preemption, preemption
from trainer.recipe import Phase, TrainRecipe
from trainer.run import Run, begin_run, save_state
from trainer.stage_decision import StageDecision
from trainer.start import finished_model
from trainer.step import train_step
from trainer.stream import blends_of_stages, check_cut_domains, check_epochs
from trainer.summary import SUMMARY, write_summary
from trainer.validation import check_held_out, held_out_losses

FINAL = "final"


def train(
    recipe: TrainRecipe,
    blends: Mapping[str, Blend] | Blend,
    work: Path,
    validation: ShardSet | None = None,
    observers: Sequence[Observer] = (),
    start: Path | None = None,
) -> Outcome:
    """Train a model.

    Writes `metrics.jsonl`, `training.json`, `final/` (a model that `trainer.checkpoint.load_model` reads), permanent
    checkpoints if the recipe asks for them, `adapter/` for a recipe with `lora` (`final/` then holds the merged model),
    `flow_head.safetensors` for one with `flow_matching` and, for a model with experts, `expert_load.parquet`. May be
    called again on the same folder after a kill. SIGTERM saves and ends the process with code 0.

    Args:
        recipe: model, stages, seed.
        blends: by name, or one for all stages.
        work: folder to fill.
        validation: held-out shards, one per domain.
        observers: called in this order, after the metrics are written.
        start: checkpoint of a finished model to go on from; fresh weights without one.

    Returns:
        Metrics: parameters, steps, tokens, first and last loss and the domains of each stage, held-out losses; what
        `training.json` holds.

    Raises:
        RecipeError: the vocabulary's size is not set, or a field cannot be had together with another.
        DataError: a shard is damaged, a domain would be repeated beyond the cap, or `work` holds another run.
        StepError: the loss or the gradient is not finite, spikes do not end, or a checkpoint could not be written.
    """
    recipe.require_vocabulary()
    stage_blends = blends_of_stages(recipe.stages, blends)
    check_epochs(recipe.stages, stage_blends, recipe.epoch_cap)
    check_cut_domains(recipe.stages, stage_blends)
    if validation is not None:
        check_held_out(validation, recipe.model.vocab_size, recipe.validation_tokens)
    watching = [*gates_of(recipe.gates, validation), *observers]
    with torch_threads(recipe.threads), determinism(recipe.deterministic), preemption() as ending:
        run = begin_run(recipe, stage_blends, work, {"held_out": validation.identity if validation else []}, start)
        with contextlib.closing(run.writer), track(f"train {recipe.name}", recipe.tokens, "tokens") as tracker:
            for observer in watching:
                observer.on_start(run)
            for stage, _ in enumerate(recipe.stages):
                if not run.stopped:
                    _train_stage(run, stage, validation, watching, tracker, ending)
            run.writer.wait()
        return _finish(run, validation, watching)


def trained_once(recipe: TrainRecipe, blend: Blend, work: Path, name: str) -> Path:
    """A model that a larger work needs, trained in its scratch unless it is there.

    Args:
        recipe: what to train.
        blend: for all stages.
        work: folder of the larger work.
        name: what the model is there.

    Returns:
        Its `final/`.
    """
    digest = digest_of({"recipe": recipe.model_dump(mode="json"), "blend": blend.identity})
    folder = work / SCRATCH / f"{name}-{digest[:16]}"
    if not (folder / SUMMARY).is_file():
        train(recipe, blend, folder)
    return folder / FINAL


def _finish(run: Run, validation: ShardSet | None, watching: Sequence[Observer]) -> Outcome:
    """Write what a finished run leaves."""
    if validation is not None and not _measured_at(run.metrics, run.step):
        run.log(_held_out_line(run, validation))
    if (covered := finished_model(run.model, run.work)) is not None:
        run.notes["lora"] = covered
    save_model(run.work / FINAL, run.model, run.recipe)
    if run.loads is not None:
        run.loads.write_table(run.work / "expert_load.parquet")
    outcome = Outcome(metrics=write_summary(run))
    for observer in watching:
        observer.on_end(run)
    return outcome


def _steps_left(run: Run, stage: int) -> Iterator[tuple[int, Phase, int]]:
    """The steps of a stage that were not taken yet: number of the phase through all stages, phase, step within it."""
    before = run.recipe.stages[:stage]
    done = run.step - sum(each.steps for each in before)
    place = sum(len(each.phases) for each in before)
    for phase in run.recipe.stages[stage].phases:
        yield from ((place, phase, local) for local in range(max(0, done), phase.steps))
        done, place = done - phase.steps, place + 1


def _train_stage(
    run: Run, stage: int, validation: ShardSet | None, watching: Sequence[Observer], tracker: Tracker,
    ending: Preemption,
) -> None:  # fmt: skip
    """Train from wherever the run stands to the end of a stage."""
    recipe, settings = run.recipe, run.recipe.stages[stage]
    tokens = _tokens_done(run)
    if run.guard and run.step == sum(before.steps for before in recipe.stages[:stage]):
        run.guard.clear()
    started, steps, trained, flops = time.perf_counter(), 0, 0, 0.0
    for place, phase, local in _steps_left(run, stage):
        line = train_step(run, stage, place, phase, local)
        tokens += phase.batch_tokens
        line["tokens"] = tokens
        run.log(line)
        if "skipped" in line:
            print(f"loam: step {run.step} skipped: {line['skipped']['reason']}", file=sys.stderr, flush=True)
        for observer in watching:
            observer.on_step(run.step, line)
        tracker.update(tokens, f"{settings.name} loss {line['loss']:.3f}")
        if validation is not None and recipe.validate_every and run.step % recipe.validate_every == 0:
            run.log(_held_out_line(run, validation))
        if run.step % recipe.checkpoint_every == 0:
            save_state(run)
        if not trained and not run.writer.prepared:
            run.writer.prepare(run.tensors())  # the optimizer's moments are there now
        steps, trained = steps + 1, trained + phase.batch_tokens
        flops += phase.batch_tokens * recipe.model.flops_per_token(phase.sequence_length)
        if ending.asked:
            _save_and_exit(run)
    if steps:
        seconds = time.perf_counter() - started
        record(
            "train", model=recipe.name, stage=settings.name, steps=steps, seconds=round(seconds, 3),
            tokens_per_s=round(trained / seconds), gflops=round(flops / seconds / 1e9, 1), device=run.device.type,
        )  # fmt: skip
    _end_stage(run, stage, watching)


def _end_stage(run: Run, stage: int, watching: Sequence[Observer]) -> None:
    """Ask the observers what shall change, and save that; what was decided before a kill stands."""
    if stage in run.decisions:
        return
    decision = StageDecision()
    for observer in watching:
        decision = decision.and_then(observer.on_stage_end(stage, run) or StageDecision())
    run.decide(stage, decision)
    if stage + 1 < len(run.recipe.stages):
        save_state(run)


def _save_and_exit(run: Run) -> None:
    """End the process because it was asked to; what was done is kept.

    Raises:
        SystemExit: with code 0.
    """
    save_state(run)
    run.writer.wait()
    print(f"loam: saved after step {run.step}; run the same command again to go on", file=sys.stderr, flush=True)
    raise SystemExit(0)


def _tokens_done(run: Run) -> int:
    """Tokens of the steps that were taken, skipped ones included."""
    left, tokens = run.step, 0
    for phase in (phase for stage in run.recipe.stages for phase in stage.phases):
        tokens += min(left, phase.steps) * phase.batch_tokens
        left = max(0, left - phase.steps)
    return tokens


def _held_out_line(run: Run, validation: ShardSet) -> dict[str, Any]:
    recipe = run.recipe
    losses = held_out_losses(
        run.model, validation, recipe.longest_sample, recipe.validation_tokens, recipe.separate_documents
    )
    return {"kind": "held_out", "step": run.step, "domains": losses}


def _measured_at(metrics: Path, step: int) -> bool:
    """Whether the held-out losses after `step` are there."""
    return any(line["kind"] == "held_out" and line["step"] == step for line in read_metrics(metrics))
