"""A run as trackers see it: parameters, series of numbers over steps, tags, files; read from what the run wrote.

Nothing is sent while a run trains: `metrics.jsonl` and the run's journal are the record, and an exporter reads them, of
a run that is over or of one that is still going. What it was given before is not given again, so that exporting twice
is exporting once.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.errors import DataError
from pipelines.manifest import digest_of
from trainer.metrics import read_metrics
from trainer.provenance import PROVENANCE, read_provenance
from trainer.telemetry import TELEMETRY, read_telemetry

LOSSES = {
    "loss": "loss/ar",
    "total": "loss/total",
    "aux": "loss/aux",
    "z": "loss/z",
    "mtp": "loss/mtp",
    "flow": "loss/flow",
}
RATES = {"lr": "optimizer/lr", "grad_norm": "optimizer/grad_norm", "tokens": "progress/tokens"}
SPEED = {
    "tokens_per_s": "speed/tokens_per_s", "flops_per_s": "speed/flops_per_s", "mfu": "speed/mfu",
    "seconds": "speed/step_seconds", "memory_bytes": "device/memory_bytes",
    "peak_memory_bytes": "device/peak_memory_bytes", "cores": "device/cores", "device_use": "device/use",
}  # fmt: skip
FILES = ("metrics.jsonl", "training.json", "final/recipe.json", PROVENANCE, TELEMETRY)


@dataclass(frozen=True)
class Point:
    """Numbers of one step.

    Attributes:
        step: optimizer steps done.
        time: seconds since 1970; 0 where no journal was kept.
        values: by name.
    """

    step: int
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """A run, ready to be exported.

    Attributes:
        name: of the model.
        key: twelve hex digits that are the same for the same recipe, data and code: the run's own identity.
        folder: where it lies.
        parameters: the recipe, flat, `stages.0.learning_rate`; values as JSON text or plain strings.
        tags: commit, versions, data hashes.
        points: rising in step.
        finished: whether the run is over.
        files: those to keep as artefacts, by their path in the run.
    """

    name: str
    key: str
    folder: Path
    parameters: Mapping[str, str]
    tags: Mapping[str, str]
    points: tuple[Point, ...]
    finished: bool
    files: Mapping[str, Path] = field(default_factory=dict)


def read_tracked(folder: Path) -> TrackedRun:
    """Read a training folder: one that is over, or the working folder of one that still goes.

    Args:
        folder: holds `metrics.jsonl`, and `.journal/` unless it was trained before there was one.

    Raises:
        DataError: no training is there.
    """
    if not (folder / "metrics.jsonl").is_file():
        raise DataError(f"{folder} holds no training (metrics.jsonl); give what `loam train` wrote")
    provenance = read_provenance(folder)
    recipe = _recipe(folder, provenance[-1] if provenance else None)
    lines, journal = read_metrics(folder / "metrics.jsonl"), read_telemetry(folder)
    key = provenance[-1]["run"] if provenance else digest_of({"recipe": recipe, "first": lines[:1]})
    return TrackedRun(
        name=str(recipe.get("name", folder.name)),
        key=key[:12],
        folder=folder,
        parameters=dict(_flat(recipe)),
        tags=_tags(provenance[-1] if provenance else {}, journal),
        points=tuple(_points(lines, journal)),
        finished=(folder / "training.json").is_file(),
        files={name: folder / name for name in FILES if (folder / name).is_file()},
    )


def training_folder(source: Path) -> Path:
    """Where a run's training lies: the run's step, the folder that `loam train` wrote or still works in, or itself.

    Raises:
        DataError: none is there.
    """
    at_work = sorted(source.parent.glob(f".{source.name}.*.work")) if source.name else []
    for folder in (source / "train", source, *at_work):
        if (folder / "metrics.jsonl").is_file():
            return folder
    raise DataError(f"{source} holds no training (metrics.jsonl); give a run, or what `loam train` wrote")


def _recipe(folder: Path, provenance: Mapping[str, Any] | None) -> dict[str, Any]:
    if provenance is not None:
        return provenance["recipe"]
    about = folder / "final" / "recipe.json"
    return (json.loads(about.read_text(encoding="utf-8")).get("recipe") or {}) if about.is_file() else {}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of a tree with its path, as text."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], (Mapping, list)):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{prefix}.{number}")
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def _tags(provenance: Mapping[str, Any], journal: list[dict[str, Any]]) -> dict[str, str]:
    start = next((event for event in reversed(journal) if event["event"] == "start"), {})
    tags = {"mfu_formula": start.get("mfu_formula"), "flops_formula": start.get("flops_formula"),
            "peak_flops": start.get("peak_flops"), "peak_source": start.get("peak_source"),
            "device": start.get("device")}  # fmt: skip
    if provenance:
        code, machine = provenance["code"], provenance["machine"]
        shards = {one["name"]: one["sha256"] for stage in provenance["data"]["stages"] for one in stage}
        tags |= {"git_commit": code["commit"], "git_branch": code["branch"], "git_dirty": bool(code["dirty"]),
                 "git_dirty_sha256": code["dirty_sha256"], "code_version": code["version"],
                 "seed": provenance["seed"], "python": machine["python"], "torch": machine["torch"],
                 "data_sha256": digest_of(shards)}  # fmt: skip
    return {name: str(value) for name, value in sorted(tags.items()) if value is not None}


def _points(lines: list[dict[str, Any]], journal: list[dict[str, Any]]) -> Iterator[Point]:
    """One point for each step that has numbers, those of the journal beside those of the metrics."""
    speed = {event["step"]: event for event in journal if event["event"] == "step"}
    values: dict[int, dict[str, float]] = {}
    for line in lines:
        found = values.setdefault(line["step"], {})
        if line["kind"] == "step":
            found |= _named(line, LOSSES | RATES)
            for layer, load in line.get("experts", {}).items():
                found |= _named(load, {name: f"experts/layer_{layer}/{name}" for name in load})
        elif line["kind"] == "held_out":
            found |= {f"held_out/{name}/loss": one["loss"] for name, one in line["domains"].items()}
        elif line["kind"] == "gate":
            found |= {f"gate/{name}/perplexity_ratio": one["perplexity_ratio"]
                      for name, one in line["sources"].items()}  # fmt: skip
    for step in sorted(values):
        event = speed.get(step, {})
        yield Point(step, event.get("time", 0.0), values[step] | _named(event, SPEED))


def _named(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    """The finite numbers among some values, under the names that trackers show."""
    found = {names[key]: values[key] for key in names if key in values}
    return {name: float(value) for name, value in found.items()
            if isinstance(value, (int, float)) and math.isfinite(value)}  # fmt: skip
