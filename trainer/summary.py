"""`training.json`: a run's own numbers, read back from its files, so that a resumed run gives the same."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.files import write_atomically
from trainer.metrics import read_metrics
from trainer.run import Run

SUMMARY = "training.json"


def write_summary(run: Run) -> dict[str, Any]:
    """Write `training.json`.

    Returns:
        What it holds: parameters, steps, tokens; of each stage its tokens, first and last loss and the tokens and
        passes of its domains; of the whole run the same by domain; skipped steps, decisions, last held-out losses.
    """
    lines = read_metrics(run.metrics)
    steps = [line for line in lines if line["kind"] == "step"]
    stages = [_stage(run, number, steps) for number in range(len(run.recipe.stages)) if _began(run, number, steps)]
    summary: dict[str, Any] = {
        "parameters": run.recipe.model.parameters(), "active_parameters": run.recipe.model.active_parameters(),
        "steps": run.step, "tokens": steps[-1]["tokens"], "last_loss": stages[-1]["last_loss"], "stages": stages,
        "domains": _totals(stages),
    }  # fmt: skip
    if "lora" in run.notes:
        summary["lora"] = run.notes["lora"]
    if skipped := skipped_ranges(steps):
        summary["skipped_steps"] = sum(one["last_step"] - one["first_step"] + 1 for one in skipped)
        summary["skipped"] = skipped
    if decisions := {number: decision for number, decision in run.decisions.items() if decision.reason}:
        summary["decisions"] = {run.recipe.stages[n].name: decision.as_note() for n, decision in decisions.items()}
    if held_out := [line for line in lines if line["kind"] == "held_out"]:
        summary["held_out"] = held_out[-1]["domains"]
    write_atomically(run.work / SUMMARY, (json.dumps(summary, indent=1, sort_keys=True) + "\n").encode())
    return summary


def _began(run: Run, number: int, steps: list[dict[str, Any]]) -> bool:
    return any(line["stage"] == run.recipe.stages[number].name for line in steps)


def _stage(run: Run, number: int, steps: list[dict[str, Any]]) -> dict[str, Any]:
    stage = run.recipe.stages[number]
    losses = [line["loss"] for line in steps if line["stage"] == stage.name]
    tail = losses[-max(1, len(losses) // 20) :]  # the last twentieth: one step is noise
    return {
        "name": stage.name, "steps": stage.steps, "tokens": stage.trained_tokens,
        "sequence_length": stage.sequence_length, "first_loss": losses[0],
        "last_loss": round(sum(tail) / len(tail), 6), "domains": run.data.ledger(number),
    }  # fmt: skip


def _totals(stages: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The ledger of all stages together."""
    totals: dict[str, dict[str, float]] = {}
    for stage in stages:
        for name, entry in stage["domains"].items():
            total = totals.setdefault(name, {})
            for key, value in entry.items():
                total[key] = round(total.get(key, 0) + value, 6)
    return totals


def skipped_ranges(steps: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ranges of skipped steps, with the numbers of the samples that were not learnt from.

    Args:
        steps: the lines of `metrics.jsonl` that are steps.
    """
    ranges: list[dict[str, Any]] = []
    for line in steps:
        if (skip := line.get("skipped")) is None:
            continue
        last = ranges[-1] if ranges else None
        if last and last["last_step"] == line["step"] - 1 and last.get("phase") == skip.get("phase"):
            last["last_step"] = line["step"]
            last["samples"][1] = skip["samples"][1]
        else:
            ranges.append({
                "stage": line["stage"], "first_step": line["step"], "last_step": line["step"],
                "phase": skip["phase"], "samples": list(skip["samples"]), "reason": skip["reason"],
            })  # fmt: skip
    return ranges
