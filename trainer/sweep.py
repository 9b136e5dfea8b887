"""Train every trial of a sweep, put their losses into one table, and say which point is best and how surely.

A trial's result is one file, written when it is whole, so that a killed sweep goes on where it was and never trains a
trial twice. Points are compared with the best one in pairs of one seed, at a level that allows for their number; a best
point at the edge of its grid is said to be there, since the optimum may lie beyond.
"""

import csv
import io
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import DataError
from pipelines.execute import SCRATCH
from pipelines.files import write_atomically
from pipelines.manifest import digest_of
from pipelines.shards import Blend, ShardSet
from pipelines.store import Outcome
from trainer.job_results import JobResults
from trainer.loop import train
from trainer.metrics import read_metrics
from trainer.pool import local_workers, perform_jobs, perform_on_cluster
from trainer.proxies import absolute, absolute_blend
from trainer.recipe import TrainRecipe
from trainer.step import DivergedError
from trainer.sweep_recipe import SweepRecipe, Trial

LEVEL = 0.95  # of all intervals of a sweep together
CURVE_POINTS = 100  # of a trial's learning curve in its result
TRAINING = "train"  # as a target: the mean loss of the last twentieth of the steps


@dataclass(frozen=True)
class SweepData(JobResults[Trial]):
    """What every trial reads.

    Attributes:
        blends: by the name that stages give, or one for all.
        validation: held-out shards, one per domain.
        work: folder to fill.
    """

    blends: Mapping[str, Blend] | Blend
    validation: ShardSet | None
    work: Path

    @property
    def folder(self) -> Path:
        """Where trials' results are written."""
        return self.work / "trials"

    def identity(self, job: Trial) -> str:
        """Digest of all that a trial's result depends on."""
        blends = {"": self.blends} if isinstance(self.blends, Blend) else self.blends
        read = {name: blend.identity for name, blend in blends.items()}
        held_out = self.validation.identity if self.validation else []
        return digest_of({"recipe": job.recipe.model_dump(mode="json"), "blends": read, "held_out": held_out})

    def elsewhere(self) -> "SweepData":
        """The same with absolute paths, for a task of a cluster."""
        blends = self.blends
        moved = (absolute_blend(blends) if isinstance(blends, Blend)
                 else {name: absolute_blend(blend) for name, blend in blends.items()})  # fmt: skip
        held_out = self.validation and ShardSet(tuple(absolute(shard) for shard in self.validation.shards))
        return replace(self, blends=moved, validation=held_out, work=self.work.resolve())


def run_sweep(
    sweep: SweepRecipe, vocab_size: int | None, blends: Mapping[str, Blend] | Blend, validation: ShardSet | None,
    work: Path, workers: int = 1,
) -> Outcome:  # fmt: skip
    """Train every trial and compare them.

    Writes `trials/<id>.json` as they finish, then `sweep.csv` (one row per trial) and `sweep.json` (one entry per
    point). Trials run where `pipelines.executors` says: processes of this machine, a Slurm array, a Ray cluster.

    Args:
        sweep: what is varied.
        vocab_size: of the tokenizer; None where the recipe states it.
        blends: what is trained on.
        validation: held-out shards, one per domain.
        work: folder to fill; may hold results of a killed call.
        workers: processes; changes no byte.

    Returns:
        Metrics: trials, points, the best point with its loss, and the reason of each trial that failed.

    Raises:
        DataError: the target is not measured, every trial failed, or as for `trainer.loop.train`.
        DivergedError: a trial diverged and is not spared.
        StepError: a checkpoint could not be written.
    """
    _check_target(sweep.target, validation)
    trials = sweep.trials(vocab_size)
    data = SweepData(blends, validation, work)
    pending = [trial for trial in trials if not data.is_done(trial)]
    if (processes := local_workers(workers)) is not None:
        perform = partial(_train_trial, data=data, spare=sweep.spare)
        perform_jobs(pending, perform, len(trials) - len(pending), processes, "trials")
    elif pending:
        there = data.elsewhere()
        perform = partial(_train_trial, data=there, spare=sweep.spare)
        perform_on_cluster(trials, perform, [data.identity(trial) for trial in trials], there.work, "trials")
    results = [data.read(trial) for trial in trials]
    failed = {result["id"]: result["failed"] for result in results if "failed" in result}
    if len(failed) == len(results):
        raise DataError(f"all {len(failed)} trials failed; the first: {next(iter(failed.values()))}")
    write_atomically(work / "sweep.csv", _table(results, sweep.target).encode())
    found = compare(results, sweep.target)
    write_atomically(work / "sweep.json", (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
    told = {"trials": len(trials), "points": len(found["points"]), "target": sweep.target, "best": found["best"],
            "loss": found["points"][0]["loss"], "edges": found["edges"]}  # fmt: skip
    return Outcome(metrics={**told, "failed": failed})


def _check_target(target: str, validation: ShardSet | None) -> None:
    known = [shard.name for shard in validation.shards] if validation else []
    if target != TRAINING and target not in (["mean", *known] if known else []):
        there = ", ".join(["mean", *known, TRAINING]) if known else f"{TRAINING} (there are no held-out shards)"
        raise DataError(f"the sweep's target is {target!r}, which nothing measures; there is: {there}")


def _train_trial(trial: Trial, data: SweepData, spare: bool) -> None:
    """Train one trial and write its result, unless it is there."""
    if data.is_done(trial):
        return
    folder = data.work / SCRATCH / "trials" / trial.id
    result: dict[str, Any] = {"id": trial.id, "point": trial.point, "seed": trial.recipe.seed}
    result |= {"values": dict(trial.values), "job": data.identity(trial), **_sizes(trial.recipe)}
    try:
        outcome = train(trial.recipe, data.blends, folder, data.validation)
        stages = outcome.metrics["stages"]
        if spare and stages[-1]["last_loss"] >= stages[0]["first_loss"]:
            raise DivergedError(f"the loss began at {stages[0]['first_loss']} and ended at {stages[-1]['last_loss']}")
    except DivergedError as error:  # a full disk is no result: it ends the sweep, which goes on when there is room
        if not spare:
            raise
        result["failed"] = error.reason
    else:
        held_out = outcome.metrics.get("held_out", {})
        result |= {"train_loss": stages[-1]["last_loss"],
                   "held_out": {name: one["loss"] for name, one in held_out.items()},
                   "curve": _curve(folder / "metrics.jsonl")}  # fmt: skip
    write_atomically(data.path(trial), (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
    shutil.rmtree(folder, ignore_errors=True)


def _sizes(recipe: TrainRecipe) -> dict[str, Any]:
    return {"parameters": recipe.model.parameters(), "active_parameters": recipe.model.active_parameters(),
            "tokens": recipe.tokens, "training_flops": recipe.training_flops}  # fmt: skip


def _curve(metrics: Path) -> dict[str, list[float]]:
    """Losses over tokens, as means over at most CURVE_POINTS windows of steps."""
    steps = [line for line in read_metrics(metrics) if line["kind"] == "step"]
    windows = np.array_split(np.arange(len(steps)), min(CURVE_POINTS, len(steps)))
    return {"tokens": [steps[window[-1]]["tokens"] for window in windows],
            "loss": [round(float(np.mean([steps[n]["loss"] for n in window])), 6) for window in windows]}  # fmt: skip


def loss_of(result: Mapping[str, Any], target: str) -> float:
    """A trial's loss in nats per token; NaN where it failed."""
    if "failed" in result:
        return math.nan
    if target == TRAINING:
        return result["train_loss"]
    held_out = result["held_out"]
    return float(np.mean(list(held_out.values()))) if target == "mean" else held_out[target]


def _table(results: Sequence[Mapping[str, Any]], target: str) -> str:
    fields = list(dict.fromkeys(field for result in results for field in result["values"]))
    domains = list(dict.fromkeys(name for result in results for name in result.get("held_out", {})))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    sizes = ("parameters", "active_parameters", "tokens", "training_flops")
    writer.writerow(["id", "seed", *fields, *sizes, "train_loss", *domains, "target", "failed"])
    for result in results:
        values = [_cell(result["values"].get(field, "")) for field in fields]
        losses = [result.get("train_loss", ""), *(result.get("held_out", {}).get(name, "") for name in domains)]
        loss = loss_of(result, target)
        writer.writerow([result["id"], result["seed"], *values, *(f"{result[size]:.12g}" for size in sizes), *losses,
                         "" if math.isnan(loss) else f"{loss:.6f}", result.get("failed", "")])  # fmt: skip
    return stream.getvalue()


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def compare(results: Sequence[Mapping[str, Any]], target: str) -> dict[str, Any]:
    """Points from the best to the worst, each compared with the best in pairs of one seed.

    Args:
        results: of the trials; at least one did not fail.
        target: held-out domain, `mean`, or `train`.

    Returns:
        `points`: values, loss (mean over seeds), its standard deviation, and, against the best, the mean difference
        with an interval whose level holds for all points together, and a verdict; `best`: the first one's values;
        `edges`: for each field of numbers, whether the best value lies within its grid, and where a parabola through
        it and its neighbours has its lowest point.
    """
    by_point: dict[str, dict[int, float]] = {}
    values: dict[str, Mapping[str, Any]] = {}
    for result in results:
        by_point.setdefault(result["point"], {})[result["seed"]] = loss_of(result, target)
        values[result["point"]] = result["values"]
    whole = {point: seeds for point, seeds in by_point.items() if not any(map(math.isnan, seeds.values()))}
    if not whole:
        raise DataError("each point of the sweep failed with one of its seeds; lower learning_rate, or use fewer seeds")
    order = sorted(whole, key=lambda point: (float(np.mean(list(whole[point].values()))), point))
    best = whole[order[0]]
    rows = [_row(values[point], whole[point], best, point == order[0], len(order) - 1) for point in order]
    rows += [
        {"values": dict(values[point]), "verdict": "failed", "loss": None} for point in by_point if point not in whole
    ]
    means = {point: float(np.mean(list(whole[point].values()))) for point in order}
    return {"target": target, "best": dict(values[order[0]]), "points": rows,
            "edges": _edges(values, means, order[0])}  # fmt: skip


def _row(
    values: Mapping[str, Any], losses: Mapping[int, float], best: Mapping[int, float], is_best: bool, others: int
) -> dict[str, Any]:
    own = np.array(list(losses.values()))
    row: dict[str, Any] = {"values": dict(values), "loss": round(float(own.mean()), 6), "seeds": len(own)}
    if len(own) > 1:
        row["deviation"] = round(float(own.std(ddof=1)), 6)
    if is_best:
        return row | {"verdict": "best"}
    differences = own - np.array([best[seed] for seed in losses])
    row["difference"] = round(float(differences.mean()), 6)
    if len(own) < 2:
        return row | {"verdict": "one seed: no interval"}
    from scipy.stats import t

    width = float(t.ppf(1 - (1 - LEVEL) / 2 / others, len(own) - 1) * differences.std(ddof=1) / math.sqrt(len(own)))
    low, high = row["difference"] - width, row["difference"] + width
    verdict = "worse" if low > 0 else "not distinguishable from the best"
    return row | {"interval": [round(low, 6), round(high, 6)], "verdict": verdict}


def _edges(values: Mapping[str, Mapping[str, Any]], means: Mapping[str, float], best: str) -> dict[str, Any]:
    """For each field of three numbers or more: where the best value lies among those tried with the others the same."""
    found = {}
    for field, own in values[best].items():
        rest = {key: value for key, value in values[best].items() if key != field}
        line = {values[point][field]: loss for point, loss in means.items()
                if _is_number(values[point].get(field)) and
                {key: value for key, value in values[point].items() if key != field} == rest}  # fmt: skip
        if not _is_number(own) or len(line) < 3:
            continue
        tried = sorted(line)
        place = tried.index(own)
        if place in (0, len(tried) - 1):
            found[field] = {"best": own, "tried": tried, "at": "lowest" if place == 0 else "highest"}
        else:
            around = tried[place - 1 : place + 2]
            found[field] = {"best": own, "tried": tried, "at": "inside", "lowest_point": _vertex(around, line)}
    return found


def _vertex(tried: Sequence[float], losses: Mapping[float, float]) -> float:
    """Where the parabola through three points is lowest, in logarithms where all are above 0."""
    logarithmic = min(tried) > 0
    x_3 = np.log(tried) if logarithmic else np.array(tried, float)
    slope = np.polyfit(x_3 - x_3[1], [losses[value] for value in tried], 2)
    lowest = x_3[1] - slope[1] / (2 * slope[0]) if slope[0] > 0 else x_3[1]
    return float(f"{math.exp(lowest) if logarithmic else lowest:.4g}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
