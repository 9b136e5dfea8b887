"""Drawings beside what `loam mix fit` and `loam mix propose` write, as SVG files.

Drawn from the files alone, so that a second call draws the same bytes.
"""

import json
from pathlib import Path

import numpy as np

from flows import ablate_plots
from mixtures.ladder_files import load_ladder
from pipelines.files import write_atomically

DRAWN = 40  # domains or metrics; more make no drawing


def draw_held_out(folder: Path) -> None:
    """Write `held_out.svg`: every run predicted by a law that has not seen it, against what was measured.

    Args:
        folder: of a fitted law; of several scales the largest is drawn.
    """
    fit = load_ladder(folder).at()
    if len(fit.metrics.names) > DRAWN:
        return
    half_PM = fit.predict(fit.ratios).half_PM[0.8]
    text = ablate_plots.predicted_against_measured(fit.metrics.names, fit.held_out_PM, half_PM, fit.metrics.values_PM)
    write_atomically(folder / "held_out.svg", text.encode())


def draw_weights(folder: Path) -> None:
    """Write `weights.svg`: prior and optimum by domain, and where resampled swarms have their optima.

    Args:
        folder: of a proposal.
    """
    found = json.loads((folder / "proposal.json").read_text(encoding="utf-8"))
    names = sorted(found["prior"], key=lambda name: (-found["optimum"][name], name))
    if len(names) > DRAWN:
        return
    arms = {arm: np.array([found[arm][name] for name in names]) for arm in ("prior", "optimum")}
    write_atomically(folder / "weights.svg", ablate_plots.weights(names, arms, found["intervals"]).encode())
