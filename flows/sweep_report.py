"""What a sweep looks like: every field against the loss, pairs of fields as maps, curves, and the table, in one page.

It is drawn from `sweep.csv`, `sweep.json` and the trials' results alone, so that the same sweep gives the same page.
"""

import html
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flows.plots import COLOURS, drawing, new_figure
from flows.report_html import page, section, table
from pipelines.files import write_atomically

WIDE = 10  # largest over smallest value from which on an axis is logarithmic
MOST_MAPS = 6
MOST_CURVES = 24
MOST_PANELS = 4


def write_sweep_report(name: str, about: str, work: Path) -> None:
    """Draw `report.html` beside the results of a sweep.

    Args:
        name: of the sweep.
        about: one line for people.
        work: folder with `sweep.json` and `trials/`.
    """
    found = json.loads((work / "sweep.json").read_text(encoding="utf-8"))
    rows = [row for row in found["points"] if row["loss"] is not None]
    trials = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((work / "trials").glob("*.json"))]
    fields = [field for field in found["best"] if len({_key(row["values"].get(field)) for row in rows}) > 1]
    parts = [section("Verdict", _verdict(found))]
    if fields:
        parts.append(section("Each field", *(_lines(rows, fields[n : n + MOST_PANELS])
                                             for n in range(0, len(fields), MOST_PANELS))))  # fmt: skip
    if len(fields) > 1:
        parts.append(section("Pairs of fields", _maps(rows, list(itertools.combinations(fields, 2))[:MOST_MAPS])))
    parts.append(section("Learning curves", _curves(rows, trials)))
    parts.append(section("All points", _points(found["points"])))
    write_atomically(work / "report.html", page(name, about, "\n".join(parts)).encode())


def _verdict(found: Mapping[str, Any]) -> str:
    best = found["points"][0]
    tied = [row for row in found["points"][1:] if row["verdict"].startswith("not distinguishable")]
    lines = [f"best: {_told(found['best'])}, {best['loss']:.4f} nats per token ({found['target']})"]
    if best["seeds"] < 2:
        lines.append("one seed: what looks best may be chance; give seeds: [0, 1, 2]")
    elif tied:
        lines.append(f"{len(tied)} other points cannot be told from it with {best['seeds']} seeds")
    for field, edge in found["edges"].items():
        if edge["at"] == "inside":
            lowest = f"a parabola through {edge['best']:g} and its neighbours is lowest at {edge['lowest_point']:g}"
            lines.append(f"{field}: {lowest}")
        else:
            lines.append(f"{field}: the best value {edge['best']:g} is the {edge['at']} of those tried; widen the grid")
    return '<div class="verdict">' + "<br>".join(map(html.escape, lines)) + "</div>"


def _lines(rows: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> str:
    """Loss over each field: every point, and the best at each value."""
    figure, axes = new_figure(2.8, len(fields))
    for axis, field in zip(axes[0], fields, strict=True):
        places, labels = _axis([row["values"].get(field) for row in rows])
        losses = [row["loss"] for row in rows]
        axis.plot(places, losses, "o", color=COLOURS[0], markersize=3, alpha=0.6)
        lowest = {place: min(loss for own, loss in zip(places, losses, strict=True) if own == place)
                  for place in sorted(set(places))}  # fmt: skip
        axis.plot(list(lowest), list(lowest.values()), color=COLOURS[5], linewidth=1)
        _label(axis, places, labels)
        axis.set_xlabel(field)
    axes[0][0].set_ylabel("nats per token")
    return drawing(figure)


def _maps(rows: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[str, str]]) -> str:
    """The best loss at each pair of values."""
    parts = []
    for start in range(0, len(pairs), 2):
        shown = pairs[start : start + 2]
        figure, axes = new_figure(2.9, len(shown))
        for axis, (across, up) in zip(axes[0], shown, strict=True):
            columns = sorted({_key(row["values"].get(across)) for row in rows}, key=_order)
            lines = sorted({_key(row["values"].get(up)) for row in rows}, key=_order)
            best = np.full((len(lines), len(columns)), np.nan)
            for row in rows:
                at = lines.index(_key(row["values"].get(up))), columns.index(_key(row["values"].get(across)))
                best[at] = np.nanmin([best[at], row["loss"]])
            image = axis.imshow(best, aspect="auto", origin="lower", cmap="viridis_r", interpolation="nearest")
            for (y, x), loss in np.ndenumerate(best):
                if np.isfinite(loss):
                    axis.text(x, y, f"{loss:.3f}", ha="center", va="center", fontsize=7, color="white")
            axis.set_xticks(range(len(columns)), columns)
            axis.set_yticks(range(len(lines)), lines)
            axis.set_xlabel(across)
            axis.set_ylabel(up)
            figure.colorbar(image, ax=axis)
        parts.append(drawing(figure))
    return "\n".join(parts)


def _curves(rows: Sequence[Mapping[str, Any]], trials: Sequence[Mapping[str, Any]]) -> str:
    """Training losses of the best points, one line for each trial."""
    figure, axes = new_figure(3.2)
    axis = axes[0][0]
    shown = 0
    for number, row in enumerate(rows):
        for trial in trials:
            if trial["values"] == row["values"] and "curve" in trial and shown < MOST_CURVES:
                first = trial["seed"] == min(one["seed"] for one in trials)
                axis.plot(np.array(trial["curve"]["tokens"]) / 1e6, trial["curve"]["loss"], linewidth=1,
                          color=COLOURS[number % len(COLOURS)],
                          label=_told(row["values"]) if first and number < len(COLOURS) else None)  # fmt: skip
                shown += 1
    axis.set_xlabel("million tokens")
    axis.set_ylabel("nats per token")
    axis.legend(frameon=False, fontsize=7)
    return drawing(figure)


def _points(points: Sequence[Mapping[str, Any]]) -> str:
    fields = list(dict.fromkeys(field for row in points for field in row["values"]))
    head = (*fields, "loss", "deviation", "against the best", "from", "to", "verdict")
    rows = [(*(_key(row["values"].get(field)) for field in fields), row["loss"], row.get("deviation"),
             row.get("difference"), *row.get("interval", (None, None)), row["verdict"]) for row in points]  # fmt: skip
    return table(head, rows)


def _axis(values: Sequence[Any]) -> tuple[list[float], dict[float, str]]:
    """Where values stand on an axis, and the labels of those that are no numbers or lie far apart."""
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        if min(values) > 0 and max(values) / min(values) >= WIDE:
            return [float(np.log10(value)) for value in values], {float(np.log10(v)): f"{v:g}" for v in values}
        return [float(value) for value in values], {}
    names = sorted({_key(value) for value in values}, key=_order)
    return [float(names.index(_key(value))) for value in values], {float(n): name for n, name in enumerate(names)}


def _label(axis: Any, places: Sequence[float], labels: Mapping[float, str]) -> None:
    if labels:
        at = sorted(set(places))
        axis.set_xticks(at, [labels[place] for place in at])


def _key(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _order(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{field} {_key(value)}" for field, value in values.items())
