"""Seed noise from replicates: what differs between runs of one mixture, against what differs between mixtures.

A metric that seeds move as much as mixtures do is no target: a law of it would be a law of noise. Published tables put
MMLU of small models at a ratio of 1 and most losses above 5 (Marin, DataDecide), so that metrics below 2 are not
fitted. Rows with equal weights are replicates. P runs, M metrics.
"""

import fnmatch
import math
from collections.abc import Mapping

import numpy as np
from pydantic import Field

from mixtures.tables import Metrics, Ratios
from pipelines.recipe import Section

LEAST_SNR = 2.0
CHANCE_DISTANCE = 2.0  # standard deviations between the mean run and chance that count as evidence


class Noise(Section):
    """Noise of each metric.

    Attributes:
        replicates: id of the first run of each repeated mixture -> how often it was run.
        seed_sd: metric -> standard deviation between runs of one mixture, pooled over the repeated mixtures.
        by_mixture: the same for each repeated mixture: noise is largest near one-hot mixtures.
        snr: metric -> standard deviation between mixtures over `seed_sd`; empty without replicates.
        not_fitted: metric -> why it is not evidence, with its `snr` where known.
    """

    replicates: dict[str, int] = Field(default_factory=dict)
    seed_sd: dict[str, float] = Field(default_factory=dict)
    by_mixture: dict[str, dict[str, float]] = Field(default_factory=dict)
    snr: dict[str, float] = Field(default_factory=dict)
    not_fitted: dict[str, dict[str, str | float | None]] = Field(default_factory=dict)


def measure_noise(
    ratios: Ratios, metrics: Metrics, least_snr: float = LEAST_SNR, chance: Mapping[str, float] | None = None
) -> Noise:
    """Noise from rows with equal weights, and which metrics are not worth a law.

    Args:
        ratios: the mixtures.
        metrics: rows as in `ratios`.
        least_snr: below this a metric is not fitted; 0 fits all.
        chance: metric or glob -> its value when nothing was learned, such as an error of 0.75 for four choices.
    """
    groups = replicate_rows(ratios)
    values_PM = metrics.values_PM
    centre_GM = np.array([values_PM[rows].mean(axis=0) for rows in groups])
    repeated = [rows for rows in groups if len(rows) > 1]
    freedom = sum(len(rows) - 1 for rows in repeated)
    found = Noise()
    seed_M = None
    if freedom:
        within_M = sum(((values_PM[rows] - values_PM[rows].mean(axis=0)) ** 2).sum(axis=0) for rows in repeated)
        seed_M = np.sqrt(np.asarray(within_M) / freedom)
        across_M = centre_GM.std(axis=0, ddof=1) if len(groups) > 1 else np.zeros(len(seed_M))
        found = Noise(
            replicates={ratios.ids[rows[0]]: len(rows) for rows in repeated},
            seed_sd=_by_name(metrics, seed_M),
            by_mixture={ratios.ids[rows[0]]: _by_name(metrics, values_PM[rows].std(axis=0, ddof=1))
                        for rows in repeated},
            snr=_by_name(metrics, across_M / np.maximum(seed_M, 1e-12 * np.maximum(np.abs(values_PM).max(axis=0), 1))),
        )  # fmt: skip
    refused = {name: {"reason": f"signal-to-noise below {least_snr:g}", "snr": ratio}
               for name, ratio in found.snr.items() if ratio < least_snr}  # fmt: skip
    refused |= _at_chance(metrics, centre_GM, seed_M, chance or {}, found.snr)
    return found.model_copy(update={"not_fitted": refused})


def replicate_rows(ratios: Ratios) -> list[list[int]]:
    """Rows of each distinct mixture, equal to a millionth, in the order of first appearance."""
    order = sorted(range(len(ratios.domains)), key=ratios.domains.__getitem__)
    groups: dict[bytes, list[int]] = {}
    for row, key in enumerate(mixture_keys(ratios.weights_PD[:, order])):
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def mixture_keys(weights_PD: np.ndarray) -> list[bytes]:
    """A key for each row, the same for mixtures that are equal to a millionth; domains in one order."""
    return [row_D.tobytes() for row_D in np.round(weights_PD, 6) + 0.0]


def _at_chance(
    metrics: Metrics, centre_GM: np.ndarray, seed_M: np.ndarray | None, chance: Mapping[str, float],
    snr: Mapping[str, float],
) -> dict[str, dict[str, str | float | None]]:  # fmt: skip
    """Metrics whose mean over mixtures is not clearly better than chance, by the noise or, unknown, by the spread."""
    refused: dict[str, dict[str, str | float | None]] = {}
    for place, name in enumerate(metrics.names):
        level = next((value for glob, value in chance.items() if name == glob or fnmatch.fnmatchcase(name, glob)), None)
        if level is None:
            continue
        noise = float(seed_M[place]) if seed_M is not None else float(centre_GM[:, place].std())
        saved = level - float(centre_GM[:, place].mean())
        if not math.isfinite(saved) or saved <= CHANCE_DISTANCE * noise:
            refused[name] = {"reason": f"not better than chance, {level:g}", "snr": snr.get(name)}
    return refused


def _by_name(metrics: Metrics, values_M: np.ndarray) -> dict[str, float]:
    return dict(zip(metrics.names, values_M.tolist(), strict=True))
