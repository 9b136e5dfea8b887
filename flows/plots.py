"""The drawings of a report, as SVG text.

The same numbers give the same bytes: element ids are salted with a constant, and no date is written. Colours are the
Okabe-Ito set, which people with any colour vision can tell apart.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixtures.tables import Metrics

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
INCH_WIDE = 8.5


def new_figure(height: float, columns: int = 1, rows: int = 1) -> tuple[Any, Any]:
    """A figure and its axes; matplotlib is imported here, since only reports need it."""
    import matplotlib

    matplotlib.use("svg")
    from cycler import cycler
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "loam", "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif",
                            "axes.spines.top": False, "axes.spines.right": False, "axes.prop_cycle":
                            cycler(color=COLOURS)})  # fmt: skip
    return pyplot.subplots(rows, columns, figsize=(INCH_WIDE, height), squeeze=False, layout="constrained")


def drawing(figure: Any) -> str:
    """A figure as SVG text, and the figure closed."""
    from matplotlib import pyplot

    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    text = stream.getvalue()
    return text[text.index("<svg") :]


def funnel(stages: Sequence[str], counts: Mapping[str, Sequence[int]]) -> str:
    """Documents that are left after each stage, stacked by domain.

    Args:
        stages: names of the stages.
        counts: domain -> documents after each stage.
    """
    figure, axes = new_figure(0.42 * len(stages) + 0.8)
    axis, left = axes[0][0], np.zeros(len(stages))
    places = np.arange(len(stages))[::-1]
    for domain, values in counts.items():
        axis.barh(places, values, left=left, label=domain, height=0.7)
        left += np.asarray(values, float)
    for place, total in zip(places, left, strict=True):
        axis.text(total, place, f" {total:,.0f}", va="center")
    axis.set_yticks(places, stages)
    axis.set_xlabel("documents")
    axis.legend(frameon=False, fontsize=8)
    return drawing(figure)


def histograms(values: Mapping[str, np.ndarray], cuts: Mapping[str, Sequence[float]], label: str) -> str:
    """One histogram for each group, with its cut-offs as lines.

    Args:
        values: group -> numbers.
        cuts: group -> cut-offs.
        label: of the horizontal axis.
    """
    figure, axes = new_figure(2.3, len(values))
    for axis, (group, numbers) in zip(axes[0], values.items(), strict=True):
        axis.hist(numbers, bins=40, color=COLOURS[0])
        for cut in cuts.get(group, ()):
            axis.axvline(cut, color=COLOURS[5], linewidth=1)
        axis.set_title(group, fontsize=9)
        axis.set_xlabel(label)
    axes[0][0].set_ylabel("documents")
    return drawing(figure)


def agreement(left: Metrics, right: Metrics, labels: tuple[str, str], most: int = 4) -> str:
    """What two tables measured on the same runs, one panel for the mean and each of the first metrics.

    Args:
        left: measurements of the horizontal axis.
        right: of the vertical axis; runs that both hold are drawn.
        labels: of the axes.
        most: panels.
    """
    ids, names = (sorted(set(a) & set(b)) for a, b in ((left.ids, right.ids), (left.names, right.names)))
    sides = [table.select(names).values_PM[[table.ids.index(run) for run in ids]] for table in (left, right)]
    panels = {"mean": [values.mean(axis=1) for values in sides]} if len(names) > 1 else {}
    panels |= {name: [values[:, place] for values in sides] for place, name in enumerate(names)}
    shown = list(panels)[:most]
    figure, axes = new_figure(2.6, len(shown))
    for axis, name in zip(axes[0], shown, strict=True):
        axis.plot(*panels[name], "o", markersize=3, alpha=0.8)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(labels[0])
    axes[0][0].set_ylabel(labels[1])
    return drawing(figure)


def curves(lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], marks: Sequence[float], label: str) -> str:
    """Losses over tokens.

    Args:
        lines: name -> (tokens, loss).
        marks: tokens at which a stage ends.
        label: of the vertical axis.
    """
    figure, axes = new_figure(2.8)
    axis = axes[0][0]
    for name, (tokens, losses) in lines.items():
        axis.plot(np.asarray(tokens) / 1e6, losses, linewidth=1, label=name, marker="o" if len(tokens) < 12 else None,
                  markersize=3)  # fmt: skip
    for mark in marks:
        axis.axvline(mark / 1e6, color="#888888", linewidth=0.8, linestyle="--")
    axis.set_xlabel("million tokens")
    axis.set_ylabel(label)
    axis.legend(frameon=False, fontsize=8, ncols=3)
    return drawing(figure)


def differences(found: Mapping[str, tuple[float, float, float]], label: str) -> str:
    """Differences with their intervals, one line for each metric; a dot whose bar crosses 0 proves nothing.

    Args:
        found: metric -> (difference, low end, high end).
        label: of the horizontal axis.
    """
    figure, axes = new_figure(0.26 * len(found) + 0.8)
    axis = axes[0][0]
    for place, (middle, low, high) in enumerate(found.values()):
        colour = COLOURS[0] if low > 0 or high < 0 else "#888888"
        axis.plot([low, high], [-place, -place], color=colour, linewidth=2)
        axis.plot(middle, -place, "o", color=colour, markersize=4)
    axis.axvline(0, color="#888888", linewidth=0.8)
    axis.set_yticks([-place for place in range(len(found))], list(found))
    axis.set_xlabel(label)
    return drawing(figure)


def acceptance(stages: Sequence[tuple[str, int]], reasons: Sequence[tuple[str, int]]) -> str:
    """What synthesis let through, and why the rest was rejected, two panels.

    Args:
        stages: name and units that passed, in order.
        reasons: name and units, the most frequent first.
    """
    figure, axes = new_figure(0.3 * max(len(stages), len(reasons)) + 1.0, 2)
    for axis, rows, label, colour in zip(axes[0], (stages, reasons), ("units passed", "units rejected"),
                                         (COLOURS[2], COLOURS[5]), strict=True):  # fmt: skip
        places = np.arange(len(rows))[::-1]
        axis.barh(places, [number for _, number in rows], height=0.7, color=colour)
        axis.set_yticks(places, [name for name, _ in rows])
        axis.set_xlabel(label)
        for place, (_, number) in zip(places, rows, strict=True):
            axis.text(number, place, f" {number:,}", va="center", fontsize=8)
    return drawing(figure)


def expert_load(share: Mapping[str, np.ndarray]) -> str:
    """Share of each expert over training, one panel for each layer; an even load is one colour everywhere.

    Args:
        share: name of a layer -> float64 (experts, windows), shares of the layer's choices.
    """
    figure, axes = new_figure(2.4, len(share))
    image = None
    for axis, (name, values) in zip(axes[0], share.items(), strict=True):
        even = 1 / len(values)
        image = axis.imshow(values / even, aspect="auto", vmin=0, vmax=2, cmap="RdBu_r", interpolation="nearest")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("training")
        axis.set_xticks([])
    axes[0][0].set_ylabel("expert")
    figure.colorbar(image, ax=axes[0].tolist(), label="load / even load")
    return drawing(figure)
