"""From losses to benchmarks: accuracy as a sigmoid of a loss, from chance to a ceiling, or the answer that it is none.

    accuracy = chance + (ceiling - chance) / (1 + exp(k (x - middle))),    x one loss, or a mean of standardized losses

Which x is used is chosen by leave-one-out error, and the error that is reported leaves out a run before x is chosen:
with ten runs and twenty losses the best of twenty looks good by luck. Accuracies at chance are no evidence, and a link
that predicts left-out runs no better than their mean is `not distinguishable`. P runs, M losses, B problems.
"""

import fnmatch
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mixtures.least_squares import Problems, minimise
from mixtures.noise import CHANCE_DISTANCE
from mixtures.scores import beats_mean, half_width
from mixtures.tables import Metrics, write_table
from pipelines.errors import DataError
from pipelines.recipe import Section

LEAST_RUNS = 5
MOST_FOLDS = 20  # up to twenty runs each is left out alone
TYPICAL_ERROR = 0.02  # of an accuracy: what the prior's precision is measured in
MEAN = "mean of standardized losses"
WEIGHTED = "weighted mean of losses"
CHANCE = {"mmlu": 0.25, "cmmlu": 0.25, "ceval": 0.25, "c-eval": 0.25, "hellaswag": 0.25, "arc": 0.25,
          "openbookqa": 0.25, "commonsenseqa": 0.2, "social": 1 / 3, "siqa": 1 / 3, "piqa": 0.5, "winogrande": 0.5,
          "boolq": 0.5, "copa": 0.5, "race": 0.25, "sciq": 0.25}  # fmt: skip


class LinkSettings(Section):
    """How losses are linked to benchmarks.

    Attributes:
        chance: benchmark or glob -> accuracy of guessing; well-known multiple-choice benchmarks have theirs, others 0.
        ceiling: the most that any accuracy can be.
        weights: loss -> weight of a weighted mean, used instead of choosing a loss.
    """

    chance: dict[str, float] = Field(default_factory=dict)
    ceiling: Annotated[float, Field(gt=0, le=1)] = 1.0
    weights: dict[str, float] = Field(default_factory=dict)


class Link(Section):
    """The link of one benchmark.

    Attributes:
        benchmark: its name.
        verdict: `linked`, `not distinguishable` from the mean of the runs, or `at chance`.
        predictor: which loss.
        chance, ceiling, middle, steepness: of the sigmoid; middle and steepness in standard deviations of the loss.
        error: root mean squared error on runs left out, in units of the benchmark.
        mean_error: the same of the mean of the other runs.
        half80, half95: half widths of intervals for a new run.
    """

    benchmark: str
    verdict: str
    predictor: str | None = None
    chance: float
    ceiling: float | None = None
    middle: float | None = None
    steepness: float | None = None
    error: float | None = None
    mean_error: float | None = None
    half80: float | None = None
    half95: float | None = None


@dataclass(frozen=True, eq=False)
class Sigmoid:
    """The form at given values of x; parameters log steepness, middle, ceiling."""

    x_P: np.ndarray
    chance: float
    most: float
    precision_K: np.ndarray

    @property
    def prior_K(self) -> np.ndarray:
        """Half a unit of the logit per standard deviation, the middle at the mean, the ceiling near the most."""
        return np.array([np.log(0.5), 0.0, 0.9 * self.most + 0.1 * self.chance])

    @property
    def lower_K(self) -> np.ndarray:
        """Always falling in the loss."""
        return np.array([-5.0, -20.0, self.chance + 0.05 * (self.most - self.chance)])

    @property
    def upper_K(self) -> np.ndarray:
        """Not a step."""
        return np.array([2.5, 20.0, self.most])

    def values(self, theta_BK: np.ndarray) -> np.ndarray:
        """Accuracies (B, P)."""
        return self.jacobian(theta_BK)[0]

    def jacobian(self, theta_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Accuracies (B, P) and derivatives (B, P, 3)."""
        steep_B1, away_BP = np.exp(theta_BK[:, :1]), self.x_P - theta_BK[:, 1:2]
        share_BP = 1 / (1 + np.exp(np.clip(steep_B1 * away_BP, -60, 60)))
        height_B1 = theta_BK[:, 2:] - self.chance
        bend_BP = -height_B1 * share_BP * (1 - share_BP) * steep_B1
        slopes = [bend_BP * away_BP, -bend_BP, share_BP]
        return self.chance + height_B1 * share_BP, np.stack(slopes, axis=2)


def link_benchmarks(losses: Metrics, benchmarks: Metrics, settings: LinkSettings | None = None) -> list[Link]:
    """Fit a link for every benchmark.

    Args:
        losses: of the runs, lower is better.
        benchmarks: accuracies of the same runs, as shares or in percent.
        settings: chance levels, ceiling, weights.

    Raises:
        DataError: runs differ, there are fewer than five, or a weight names no loss.
    """
    settings = settings or LinkSettings()
    ids = sorted(losses.ids)
    losses = losses.ordered(ids).select(sorted(losses.names))
    benchmarks = benchmarks.ordered(ids, "the benchmarks table", "the runs of the metrics table")
    for glob in settings.chance:
        if glob not in benchmarks.names and not fnmatch.filter(benchmarks.names, glob):
            raise DataError(f"chance: {glob!r} means no benchmark; there are {', '.join(sorted(benchmarks.names)[:4])}")
    if len(ids) < LEAST_RUNS:
        raise DataError(f"{len(ids)} runs cannot support a link from losses to benchmarks; give at least {LEAST_RUNS}")
    predictors = _predictors(losses, settings)
    return [_link(name, column_P, predictors, settings)
            for name, column_P in zip(benchmarks.names, benchmarks.values_PM.T, strict=True)]  # fmt: skip


def chance_of(benchmark: str, settings: LinkSettings) -> float:
    """Accuracy of guessing: as set, as known, or 0."""
    for glob, level in settings.chance.items():
        if benchmark == glob or fnmatch.fnmatchcase(benchmark, glob):
            return level
    known = [name for name in CHANCE if name in benchmark.lower()]
    return CHANCE[max(known, key=len)] if known else 0.0


def _predictors(losses: Metrics, settings: LinkSettings) -> dict[str, np.ndarray]:
    """Values of x, standardized over the runs: of the mean of all first, so that ties go to it."""
    values_PM = losses.values_PM
    spread_M = values_PM.std(axis=0)
    varied = spread_M > 1e-12 * np.maximum(np.abs(values_PM).max(axis=0), 1.0)
    if settings.weights:
        unknown = sorted(set(settings.weights) - set(losses.names))
        if unknown or min(settings.weights.values()) < 0 or sum(settings.weights.values()) <= 0:
            raise DataError(f"weights need known losses and a positive sum; unknown: {', '.join(unknown) or 'none'}")
        weight_M = np.array([settings.weights.get(name, 0.0) for name in losses.names])
        return {WEIGHTED: _standardized(values_PM @ weight_M)}
    found = {name: _standardized(values_PM[:, place]) for place, name in enumerate(losses.names) if varied[place]}
    if not found:
        raise DataError("no loss differs between the runs: nothing can be linked to a benchmark")
    return ({MEAN: _standardized(np.mean(list(found.values()), axis=0))} if len(found) > 1 else {}) | found


def _standardized(values_P: np.ndarray) -> np.ndarray:
    return (values_P - values_P.mean()) / max(float(values_P.std()), 1e-12)


def _link(name: str, measured_P: np.ndarray, predictors: Mapping[str, np.ndarray], settings: LinkSettings) -> Link:
    chance = chance_of(name, settings)
    unit = 100.0 if measured_P.max() > 1.5 else 1.0  # percent
    measured_P = measured_P / unit
    near = chance > 0 and measured_P.mean() - chance <= CHANCE_DISTANCE * measured_P.std()
    if near or measured_P.std() < 1e-9:
        return Link(benchmark=name, verdict="at chance", chance=chance * unit)
    count, fold_P = len(measured_P), np.arange(len(measured_P)) % min(len(measured_P), MOST_FOLDS)
    left, weights_BP = _without(fold_P)
    fits = {key: _fit(x_P, chance, settings.ceiling, measured_P, weights_BP) for key, x_P in predictors.items()}
    squares = {key: (values_BP - measured_P) ** 2 for key, (_, values_BP) in fits.items()}

    def error_without(key: str, out: int | None) -> float:
        """Squared error of an x on folds left out, none of it from fold `out`."""
        folds = [fold for fold in range(fold_P.max() + 1) if fold != out]
        rows = [left[frozenset({fold} if out is None else {fold, out})] for fold in folds]
        return sum(float(squares[key][row, fold_P == fold].sum()) for row, fold in zip(rows, folds, strict=True))

    held_out_P = np.empty(count)
    for fold in range(fold_P.max() + 1):
        best = min(predictors, key=lambda key: error_without(key, fold))
        held_out_P[fold_P == fold] = fits[best][1][left[frozenset({fold})], fold_P == fold]
    chosen = min(predictors, key=lambda key: error_without(key, None))
    theta_K = fits[chosen][0][0]
    mean_P = (measured_P.sum() - measured_P) / (count - 1)
    residual_P = (measured_P - held_out_P) * unit
    told = beats_mean(held_out_P[:, None], mean_P[:, None], measured_P[:, None])
    return Link(
        benchmark=name, predictor=chosen,
        verdict="linked" if told else "not distinguishable",
        chance=chance * unit, ceiling=float(theta_K[2]) * unit, middle=float(theta_K[1]),
        steepness=float(np.exp(theta_K[0])), error=float(np.sqrt(np.mean(residual_P**2))),
        mean_error=float(np.sqrt(np.mean((measured_P - mean_P) ** 2))) * unit,
        half80=half_width(residual_P, 0.80), half95=half_width(residual_P, 0.95),
    )  # fmt: skip


def _without(fold_P: np.ndarray) -> tuple[dict[frozenset[int], int], np.ndarray]:
    """Weights (B, P) of all runs, without each fold and without each pair of folds, and where to find which."""
    folds = range(int(fold_P.max()) + 1)
    sets = [frozenset(left) for size in range(3) for left in itertools.combinations(folds, size)]
    weights_BP = np.array([[0.0 if fold in left else 1.0 for fold in fold_P.tolist()] for left in sets])
    return {left: row for row, left in enumerate(sets)}, weights_BP


def _fit(
    x_P: np.ndarray, chance: float, most: float, measured_P: np.ndarray, folds_BP: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (B, 3) and predictions of all runs (B, P) of every fold."""
    form = Sigmoid(x_P, chance, most, np.array([1.0, 0.1, 4.0]))
    share_BP = folds_BP / folds_BP.sum(axis=1, keepdims=True)
    targets_BP = np.tile(measured_P, (len(folds_BP), 1))
    problems = Problems(targets_BP, share_BP, TYPICAL_ERROR**2 / folds_BP.sum(axis=1))
    fits = [minimise(form, problems, np.tile(start_K, (len(folds_BP), 1)))
            for start_K in form.prior_K + np.array([[0.0, 0.0, 0.0], [0.7, -1.0, 0.0], [0.0, 2.0, 0.0]])]  # fmt: skip
    best_B = np.argmin(np.stack([cost_B for _, cost_B in fits]), axis=0)
    theta_BK = np.stack([theta for theta, _ in fits])[best_B, np.arange(len(folds_BP))]
    return theta_BK, form.values(theta_BK)


def write_links(links: Sequence[Link], folder: Path) -> dict[str, Any]:
    """Write `links.csv` with the numbers of benchmarks that were fitted, and return the report as JSON values."""
    columns = ("chance", "ceiling", "middle", "steepness", "error", "mean_error", "half80", "half95")
    fitted = [link for link in links if link.error is not None]
    rows = np.array([[getattr(link, name) for name in columns] for link in fitted], float)
    write_table(folder / "links.csv", [link.benchmark for link in fitted], columns, rows.reshape(-1, len(columns)),
                key="benchmark")  # fmt: skip
    counts = {verdict: sum(link.verdict == verdict for link in links)
              for verdict in ("linked", "not distinguishable", "at chance")}  # fmt: skip
    return {"links": [link.model_dump(mode="json") for link in links], "verdicts": counts}
