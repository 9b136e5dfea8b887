"""What one training looks like, in one page: losses, rate, gradient, held-out text, experts, what was skipped, speed.

All but the speed is drawn from what the training wrote down for good (`metrics.jsonl`, `training.json`,
`expert_load.parquet`), and stands in the report of a run, too. Speed and provenance come from its journal, which a
clock and a machine decide: so the page lies in the journal's folder, which no manifest hashes.
"""

import html
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flows.experts_report import load_at_the_end, names_of_layers, training_drawings
from flows.plots import COLOURS, curves, drawing, new_figure
from flows.report_html import page, section, table
from flows.runner import RECIPE
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.journal import KEPT_JOURNAL
from pipelines.quantities import human, human_bytes
from trainer.metrics import read_metrics
from trainer.provenance import read_provenance
from trainer.summary import skipped_ranges
from trainer.telemetry import read_telemetry
from trainer.tracking import training_folder

PAGE = f"{KEPT_JOURNAL}/report.html"
MOST_POINTS = 1000  # of a curve; more cannot be told apart on a page
PARTS = {"aux": "balance", "z": "z", "mtp": "further tokens", "flow": "flow"}  # of the loss, beside the next token

PARAMETERS = {"all": "parameters", "active for a token": "active_parameters"}

Lines = Sequence[Mapping[str, Any]]


def write_training_report(training: Path, target: Path | None = None) -> Path:
    """Draw the page of a training that is over, or of one that still goes.

    Args:
        training: folder that `loam train` wrote or still writes.
        target: HTML file; `.journal/report.html` of the training when not given.

    Returns:
        Where the page is.
    """
    target = target or training / PAGE
    made = list(read_provenance(training))
    name = made[-1]["recipe"]["name"] if made else training.resolve().name
    lines = read_metrics(training / "metrics.jsonl")
    steps = _steps(lines)
    done = "" if (training / "training.json").is_file() else ", not over yet"
    about = f"{len(steps):,} steps, {human(steps[-1]['tokens']) if steps else 0} tokens{done}"
    journal = [event for event in read_telemetry(training) if event["event"] == "step"]
    parts = [*training_sections(training), _speed(journal), _made_with(made)]
    write_atomically(target, page(f"Training of {name}", about, "\n".join(filter(None, parts))).encode())
    return target


def training_of(source: Path) -> Path | None:
    """The training folder that is meant, the one in progress included; None when it is a run, or nothing known."""
    try:
        found = training_folder(source)
    except DataError:
        return None
    return None if (source / RECIPE).is_file() else found


def training_sections(training: Path) -> list[str]:
    """The sections of a training that are the same bytes wherever it is done.

    Args:
        training: its folder.
    """
    lines = read_metrics(training / "metrics.jsonl")
    if not _steps(lines):
        return []
    path = training / "training.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return [section("Loss", loss_drawing(lines), *_parts(lines), *_numbers(lines, summary)),
            section("Rate and gradient", _rate(lines)),
            _data(summary), experts_section(training), _decisions(lines),
            _skipped(lines)]  # fmt: skip


def loss_drawing(lines: Lines) -> str:
    """Training loss and the held-out loss of each domain over tokens.

    Args:
        lines: of `metrics.jsonl`.
    """
    steps = _steps(lines)
    drawn = {"training": (_tokens(steps), thinned([line["loss"] for line in steps]))}
    at = {line["step"]: line["tokens"] for line in steps}
    held_out = [line for line in lines if line["kind"] == "held_out" and line["step"] in at]
    for domain in dict.fromkeys(name for line in held_out for name in line["domains"]):
        known = [line for line in held_out if domain in line["domains"]]
        drawn[f"held out: {domain}"] = ([at[line["step"]] for line in known],
                                        [line["domains"][domain]["loss"] for line in known])  # fmt: skip
    return curves(drawn, _stage_ends(steps), "nats per token")


def experts_section(training: Path) -> str:
    """Load of the experts over training and at its end; nothing for a dense model.

    Args:
        training: its folder, with `expert_load.parquet`.
    """
    load, name = training / "expert_load.parquet", names_of_layers(training)
    if not load.is_file():
        return ""
    rows = [(name(layer), one["min"], one["max"], one["cv"], one["entropy"], len(one["dead"]))
            for layer, one in load_at_the_end(load).items()]  # fmt: skip
    head = ("in the last tenth", "least over even load", "most", "coefficient of variation", "entropy", "dead experts")
    return section("Expert load", *training_drawings(training), table(head, rows))


def thinned(values: Sequence[float], of_window: Callable[[np.ndarray], Any] = np.mean) -> list[float]:
    """At most `MOST_POINTS` values: one for each window of neighbours.

    Args:
        values: in order.
        of_window: makes one of many.
    """
    windows = np.array_split(np.asarray(values, float), min(MOST_POINTS, len(values)) or 1)
    return [float(of_window(window)) for window in windows if len(window)]


def _steps(lines: Lines) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["kind"] == "step"]


def _tokens(steps: Lines) -> list[float]:
    return thinned([line["tokens"] for line in steps], lambda window: window[-1])


def _stage_ends(steps: Lines) -> list[float]:
    """Tokens at which a stage ended and another began."""
    return [one["tokens"] for one, after in itertools.pairwise(steps) if one["stage"] != after["stage"]]


def _panels(across: Sequence[float], panels: Mapping[str, Sequence[float]], marks: Sequence[float], label: str) -> str:
    """Series over one axis, side by side."""
    figure, axes = new_figure(2.4, len(panels))
    for axis, (name, values) in zip(axes[0], panels.items(), strict=True):
        axis.plot(across, values, linewidth=1, color=COLOURS[0])
        for mark in marks:
            axis.axvline(mark, color="#888888", linewidth=0.8, linestyle="--")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(label)
        axis.locator_params(axis="x", nbins=5)
    return drawing(figure)


def _parts(lines: Lines) -> list[str]:
    steps = _steps(lines)
    found = [key for key in PARTS if any(key in line for line in steps)]
    panels = {PARTS[key]: thinned([line.get(key, 0.0) for line in steps]) for key in found}
    millions = [tokens / 1e6 for tokens in _tokens(steps)]
    return [_panels(millions, panels, [end / 1e6 for end in _stage_ends(steps)], "million tokens")] if found else []


def _numbers(lines: Lines, summary: Mapping[str, Any]) -> list[str]:
    """Loss at the beginning and the end of each stage, what was held out, and how large the model is."""
    stages = summary.get("stages") or [
        {"name": name, "first_loss": losses[0], "last_loss": losses[-1]}
        for name in dict.fromkeys(line["stage"] for line in _steps(lines))
        if (losses := [line["loss"] for line in _steps(lines) if line["stage"] == name])
    ]
    rows = [(f"stage {one['name']}", one["first_loss"], one["last_loss"]) for one in stages]
    measured = [line["domains"] for line in lines if line["kind"] == "held_out"]
    for domain in measured[-1] if measured else ():
        known = [domains[domain]["loss"] for domains in measured if domain in domains]
        rows.append((f"held out: {domain}", known[0] if len(known) > 1 else None, known[-1]))
    note = '<p class="note">Last of a stage that is over: the mean of its last twentieth.</p>'
    tables = [table(("nats per token", "first", "last"), rows), note]
    if "parameters" in summary:
        sizes = [(name, summary[key]) for name, key in PARAMETERS.items()]
        tables.append(table(("parameters", ""), sizes))
    return tables


def _rate(lines: Lines) -> str:
    steps = _steps(lines)
    panels = {
        "learning rate": thinned([line["lr"] for line in steps]),
        "gradient norm, largest": thinned([line["grad_norm"] for line in steps], np.max),
    }
    millions = [tokens / 1e6 for tokens in _tokens(steps)]
    return _panels(millions, panels, [end / 1e6 for end in _stage_ends(steps)], "million tokens")


def _data(summary: Mapping[str, Any]) -> str:
    rows = [(stage["name"], name, one["tokens"], float(one["epochs"]), one.get("replayed", 0))
            for stage in summary.get("stages", ()) for name, one in stage["domains"].items()]  # fmt: skip
    return section("What it read", table(("stage", "domain", "tokens", "passes", "replayed"), rows)) if rows else ""


def _decisions(lines: Lines) -> str:
    rows = []
    for line in lines:
        if line["kind"] == "gate":
            reason = line.get("decision", {}).get("reason", "")
            rows += [(line["stage"], name, one["loss"], one["best"], one["bits_ratio"], one["perplexity_ratio"],
                      one["verdict"], reason) for name, one in line["sources"].items()]  # fmt: skip
    head = ("after stage", "source", "loss", "best", "bits over best", "perplexity over best", "verdict", "decision")
    return section("Gates", table(head, rows)) if rows else ""


def _skipped(lines: Lines) -> str:
    found = skipped_ranges(_steps(lines))
    rows = [(one["stage"], f"{one['first_step']} to {one['last_step']}", one["phase"],
             " to ".join(map(str, one["samples"])), one["reason"]) for one in found]  # fmt: skip
    head = ("stage", "steps", "phase", "samples", "why")
    return section("Skipped steps", table(head, rows)) if rows else ""


def _speed(journal: Lines) -> str:
    if not journal:
        return ""
    steps = thinned([event["step"] for event in journal], lambda window: window[-1])
    panels = {"tokens per second": "tokens_per_s", "share of the device's peak (MFU)": "mfu"}
    shown = {name: thinned([event[key] for event in journal], np.median) for name, key in panels.items()}
    uses = [event["device_use"] for event in journal if event.get("device_use") is not None]
    rows = [
        ("tokens per second, median", float(np.median([event["tokens_per_s"] for event in journal]))),
        ("MFU, median", float(np.median([event["mfu"] for event in journal]))),
        ("memory, largest", human_bytes(max(event["peak_memory_bytes"] for event in journal))),
        ("cores busy, median", float(np.median([event["cores"] for event in journal]))),
        *([("device in use, median", float(np.median(uses)))] if uses else []),
        ("seconds of all steps", float(sum(event["seconds"] for event in journal))),
    ]
    return section("Speed", _panels(steps, shown, (), "steps"), table(("", ""), rows))


def _made_with(made: Lines) -> str:
    if not made:
        return ""
    last = made[-1]
    code, machine = last["code"], last["machine"]
    changed = f", {len(code['dirty'])} files changed ({code['dirty_sha256'][:12]})" if code["dirty"] else ""
    rows = [
        ("commit", f"{code['commit'] or 'none'}{changed}"),
        ("python, torch", f"{machine['python']}, {machine['torch']}"),
        ("machine", machine.get("gpu", {}).get("name") or machine["processor"]),
        ("seed", str(last["seed"])),
        ("begun", "once" if len(made) == 1 else f"{len(made)} times, the last time at step {last['from_step']}"),
    ]
    shards = {one["name"]: one["sha256"] for stage in last["data"]["stages"] for one in stage}
    note = f'<p class="note">{html.escape("All of it: .journal/provenance.jsonl")}</p>'
    return section("Made with", table(("", ""), rows), "<br>", table(("shard", "sha256"), shards.items()), note)
