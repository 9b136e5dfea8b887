"""The drawings of a search for a mixture, as SVG text: the simplex, the weights, predictions with their intervals.

Three groups of domains fit a triangle; more are drawn as parallel lines. Colour is the measured target, dark is better.
P runs, D domains, M metrics.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flows.plots import COLOURS, drawing, new_figure

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
STEPS = 24  # of the grid on which a law is drawn
PANELS = 4  # in a row
MARKS = "DsP^X*"
MAP = "viridis"


def ternary(
    names: Sequence[str], swarm_P3: np.ndarray, target_P: np.ndarray, arms: Mapping[str, np.ndarray],
    law: Callable[[np.ndarray], np.ndarray] | None = None,
) -> str:  # fmt: skip
    """Mixtures of three groups in a triangle.

    Args:
        names: of the groups.
        swarm_P3: weights of the proxies' mixtures.
        target_P: their measured target, nats per token.
        arms: name -> weights (3,) of the mixtures that were compared.
        law: predicts the target of mixtures (P, 3), to be drawn as levels; None where groups hold several domains.
    """
    figure, axes = new_figure(4.2)
    axis = axes[0][0]
    axis.set_aspect("equal")
    axis.set_axis_off()
    axis.plot(*np.vstack([CORNERS, CORNERS[:1]]).T, color="#888888", linewidth=0.8)
    if law is not None:
        grid_P3 = np.array([(a, b, STEPS - a - b) for a in range(STEPS + 1) for b in range(STEPS + 1 - a)]) / STEPS
        levels = axis.tricontour(*(grid_P3 @ CORNERS).T, law(grid_P3), levels=8, cmap=MAP, linewidths=0.8)
        axis.clabel(levels, fontsize=7)
    dots = axis.scatter(*(swarm_P3 @ CORNERS).T, c=target_P, cmap=MAP, s=22, label="swarm", zorder=3)
    for place, (name, weights_3) in enumerate(arms.items()):
        axis.plot(*(weights_3 @ CORNERS), MARKS[place % len(MARKS)], color=COLOURS[5 - place % 6], markersize=9,
                  markeredgecolor="black", label=name, zorder=4)  # fmt: skip
    for name, corner, where in zip(names, CORNERS, ((-0.02, "right"), (0.02, "left"), (0.03, "left")), strict=True):
        axis.text(corner[0] + where[0], corner[1], name, ha=where[1], va="center")
    figure.colorbar(dots, ax=axis, label="target of the swarm, nats per token", shrink=0.7)
    axis.legend(frameon=False, fontsize=8, loc="upper left")
    return drawing(figure)


def parallel(
    names: Sequence[str], swarm_PD: np.ndarray, target_P: np.ndarray, arms: Mapping[str, np.ndarray]
) -> str:  # fmt: skip
    """Mixtures of many domains: one line for each, over the domains.

    Args:
        names: of the domains.
        swarm_PD: weights of the proxies' mixtures.
        target_P: their measured target, nats per token.
        arms: name -> weights (D,) of the mixtures that were compared.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    figure, axes = new_figure(3.4)
    axis, places = axes[0][0], np.arange(len(names))
    scale = ScalarMappable(Normalize(float(target_P.min()), float(target_P.max())), colormaps[MAP])
    for weights_D, colour in zip(swarm_PD, scale.to_rgba(target_P), strict=True):
        axis.plot(places, weights_D, color=colour, linewidth=0.7, alpha=0.6)
    for place, (name, weights_D) in enumerate(arms.items()):
        axis.plot(places, weights_D, marker=MARKS[place % len(MARKS)], color=COLOURS[5 - place % 6], linewidth=2,
                  markeredgecolor="black", label=name)  # fmt: skip
    axis.set_xticks(places, names, rotation=30, ha="right")
    axis.set_ylabel("share of tokens")
    figure.colorbar(scale, ax=axis, label="target, nats per token")
    axis.legend(frameon=False, fontsize=8)
    return drawing(figure)


def weights(
    domains: Sequence[str], arms: Mapping[str, np.ndarray], intervals: Mapping[str, tuple[float, float]]
) -> str:  # fmt: skip
    """Weights of the mixtures that were compared as bars; lines say where the optimum of resampled swarms lies.

    Args:
        domains: names.
        arms: mixture -> weight of each domain (D,).
        intervals: domain -> central 80% of its weight over the optima of resampled swarms.
    """
    figure, axes = new_figure(0.42 * len(domains) + 0.9)
    axis = axes[0][0]
    places = np.arange(len(domains))[::-1].astype(float)
    thick = 0.8 / len(arms)
    for number, (name, values_D) in enumerate(arms.items()):
        at = places + 0.4 - thick * (number + 0.5)
        axis.barh(at, values_D, height=thick, label=name, color=COLOURS[number])
        if name == "proposal":
            for place, domain in zip(at, domains, strict=True):
                axis.plot(intervals.get(domain, (np.nan, np.nan)), [place, place], color="#000000", linewidth=1.4)
    axis.set_yticks(places, domains)
    axis.set_xlabel("share of tokens; black: 80% of the optima of resampled swarms")
    axis.legend(frameon=False, fontsize=8)
    return drawing(figure)


def predicted_against_measured(
    names: Sequence[str], predicted_PM: np.ndarray, half_PM: np.ndarray, measured_PM: np.ndarray
) -> str:  # fmt: skip
    """Held-out predictions of the law against what the proxies measured, with 80% intervals.

    Args:
        names: of the metrics.
        predicted_PM: each predicted by a law that has not seen the run, nats per token.
        half_PM: half widths of the intervals.
        measured_PM: what was measured.
    """
    columns = min(PANELS, len(names))
    rows = -(-len(names) // columns)
    figure, axes = new_figure(2.6 * rows, columns, rows)
    for place, name in enumerate(_told_apart(names)):
        axis = axes[place // columns][place % columns]
        x, y = predicted_PM[:, place], measured_PM[:, place]
        axis.errorbar(x, y, xerr=half_PM[:, place], fmt="o", markersize=3, linewidth=0.5, alpha=0.8)
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axis.plot(ends, ends, color="#888888", linewidth=0.8)
        axis.set_title(name, fontsize=8)
        axis.set_xlabel("predicted")
    for row in axes:
        row[0].set_ylabel("measured")
    for spare in range(len(names), rows * columns):
        axes[spare // columns][spare % columns].set_axis_off()
    return drawing(figure)


def _told_apart(names: Sequence[str]) -> list[str]:
    """Names without what all of them begin and end with, which leaves no room for the rest."""
    begin, end = _shared(names), _shared([name[::-1] for name in names])
    short = [name[begin : len(name) - end] for name in names]
    return short if all(short) else list(names)


def _shared(names: Sequence[str]) -> int:
    """Letters that all names begin with."""
    same = (len(set(letters)) == 1 for letters in zip(*names, strict=False))
    return sum(1 for _ in itertools.takewhile(bool, same))
