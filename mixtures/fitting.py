"""Fit mixing laws to a swarm, keep the best, predict with intervals, save and load.

Everything inside is in the order of names, so a table with its columns or rows permuted gives the same fit bit for
bit. Intervals come from the residuals of held-out runs (split conformal), so they hold for mixtures drawn like the
swarm's and trained at its scale. P mixtures, D domains, M metrics.
"""

import difflib
import fnmatch
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixtures.intervals import Intervals, sound_runs
from mixtures.law_base import FittedLaw
from mixtures.laws import BASELINE, FAMILIES, law_from_json
from mixtures.repetition import RepeatedLaw, Repetition
from mixtures.scores import beats_mean, score
from mixtures.tables import Metrics, Ratios, write_table
from mixtures.threads import single_threaded
from mixtures.validation import FitSettings, LawScore, held_out_means, left_out, left_out_share, seen_weights, validate
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.manifest import MANIFEST, check_outputs, read_manifest

LEVELS = (0.80, 0.95)
LEAST_RUNS = 4
MEAN = "mean"
RATIOS, METRICS, HELD_OUT, LAW, REPORT = "ratios.csv", "metrics.csv", "held_out.csv", "law.json", "report.json"


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted losses with intervals.

    Attributes:
        ids, names: of rows and metrics.
        values_PM: predictions, in the units of the metrics.
        half_PM: level -> half width of the interval of each mixture and metric.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    values_PM: np.ndarray
    half_PM: Mapping[float, np.ndarray]

    def write(self, path: Path) -> None:
        """Write `id`, each metric, and its bounds `_lo80`, `_hi80`, `_lo95`, `_hi95`."""
        names, columns = list(self.names), list(self.values_PM.T)
        for place, name in enumerate(self.names):
            for level, half_PM in self.half_PM.items():
                percent = round(100 * level)
                names += [f"{name}_lo{percent}", f"{name}_hi{percent}"]
                columns += [self.values_PM[:, place] - half_PM[:, place], self.values_PM[:, place] + half_PM[:, place]]
        write_table(path, self.ids, names, np.stack(columns, axis=1))


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law with the swarm that it was fitted to.

    Attributes:
        ratios, metrics: the swarm, rows and domains sorted by name.
        settings: how it was fitted.
        scores: held-out quality of every family.
        chosen, penalty: the family kept and its strength.
        law: its fit to all runs, one problem per metric.
        held_out_PM: prediction of each run by folds that did not see it.
    """

    ratios: Ratios
    metrics: Metrics
    settings: FitSettings
    scores: tuple[LawScore, ...]
    chosen: str
    penalty: float
    law: FittedLaw
    held_out_PM: np.ndarray

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that the law knows, sorted."""
        return self.ratios.domains

    @single_threaded
    def predict(self, ratios: Ratios) -> Prediction:
        """Predict every metric of new mixtures, matched by domain name.

        Raises:
            DataError: the domains are not those of the fit.
        """
        weights_PD = ratios.ordered(self.domains).weights_PD
        each_M = np.eye(len(self.metrics.names))
        half_PM = {
            level: np.stack([self.half_widths(weights_PD, one_M, level) for one_M in each_M], axis=1)
            for level in LEVELS
        }
        return Prediction(ratios.ids, self.metrics.names, self.law.predict(weights_PD), half_PM)

    def half_widths(self, weights_PD: np.ndarray, coefficient_M: np.ndarray, level: float) -> np.ndarray:
        """Half widths (P,) of the intervals of an objective, such as `target` gives.

        Args:
            weights_PD: mixtures, domains in the order of the fit.
            coefficient_M: weight of each metric.
            level: how many new runs the interval should cover, 0.8 for 80%.
        """
        return self.intervals(coefficient_M).half(weights_PD, level)[:, 0]

    def intervals(self, coefficient_M: np.ndarray) -> Intervals:
        """Intervals of an objective, for many calls with the same one."""
        # fits to fewer runs err more: at a rate between that of noise, which stays, and n^-1/2
        fewer = (1 - left_out_share(len(self.ratios.ids), self.settings)) ** (1 / 3)
        residual_PM = fewer * (self.metrics.values_PM - self.held_out_PM)
        return Intervals(self.ratios.weights_PD, (residual_PM @ coefficient_M)[:, None], self._sound_P)

    @cached_property
    def _sound_P(self) -> np.ndarray:
        return sound_runs(self.ratios.weights_PD, self.metrics.values_PM - self.held_out_PM)

    def contrast_widths(self, weights_PD: np.ndarray, coefficient_M: np.ndarray, level: float) -> np.ndarray:
        """The same without errors that all mixtures share, which cancel when mixtures are compared."""
        return self.half_widths(weights_PD, coefficient_M, level)

    @single_threaded
    def refit(self, counts_RP: np.ndarray) -> tuple[FittedLaw, ...]:
        """The chosen law fitted anew to resampled swarms, a law of all metrics for each resample.

        Args:
            counts_RP: how often each run counts in each resample; 0 leaves it out.
        """
        resamples, count = len(counts_RP), len(self.metrics.names)
        values_BP = np.tile(self.metrics.values_PM.T, (resamples, 1))
        counts_BP = np.repeat(np.asarray(counts_RP, float), count, axis=0)
        inner = self.law.law if isinstance(self.law, RepeatedLaw) else self.law
        started = inner.take(list(range(count)) * resamples)
        weights_PD = seen_weights(self.ratios, self.settings)
        law = FAMILIES[self.chosen].refit(started, weights_PD, values_BP, counts_BP, self.penalty)
        laws = (law.take(range(turn * count, (turn + 1) * count)) for turn in range(resamples))
        return tuple(RepeatedLaw(each, self.law.discount) if isinstance(self.law, RepeatedLaw) else each
                     for each in laws)  # fmt: skip

    def at_horizon(self, repetition: Repetition) -> "Fit":
        """The same fit for runs that repeat their data differently, such as a final run with a longer horizon."""
        inner = self.law.law if isinstance(self.law, RepeatedLaw) else self.law
        return replace(self, law=RepeatedLaw(inner, repetition.discount(self.domains)))

    def target(self, target: str = MEAN, weights: Mapping[str, float] | None = None) -> np.ndarray:
        """Coefficients (M,) of an objective: one metric, the mean, a glob's mean, or a weighted mean; they sum to 1.

        Raises:
            DataError: no metric has that name, or the weights are not positive.
        """
        names = self.metrics.names
        if weights:
            unknown = [name for name in weights if name not in names]
            if unknown or min(weights.values()) < 0 or sum(weights.values()) <= 0:
                raise DataError(
                    f"target weights need known metrics and positive sums; unknown: {', '.join(unknown) or 'none'}"
                )
            coefficient_M = np.array([weights.get(name, 0.0) for name in names], float)
            return coefficient_M / coefficient_M.sum()
        hits = [name == target or fnmatch.fnmatchcase(name, target) for name in names]
        hits = [True] * len(names) if target == MEAN and MEAN not in names else hits
        if not any(hits):
            near = difflib.get_close_matches(target, names, n=2) or list(names[:3])
            raise DataError(f"no metric {target!r} was fitted; did you mean {' or '.join(near)}, or `mean`?")
        return np.array(hits, float) / sum(hits)

    def learned(self, coefficient_M: np.ndarray) -> bool:
        """Whether held-out predictions of this objective clearly beat the mean of the runs."""
        mean_PM = held_out_means(self.ratios, self.metrics, self.settings)
        sides = (self.held_out_PM, mean_PM, self.metrics.values_PM)
        return self.chosen != BASELINE and beats_mean(*((side @ coefficient_M)[:, None] for side in sides))

    def report(self) -> dict[str, Any]:
        """Held-out quality of all laws and what was chosen, as JSON values."""
        return {
            "scale": self.settings.scale,
            "runs": len(self.ratios.ids),
            "domains": list(self.domains),
            "metrics": list(self.metrics.names),
            "rows_divided_by_their_rounded_sum": self.ratios.rounded,
            "chosen": self.chosen,
            "penalty": self.penalty,
            "learned": self.chosen != BASELINE,
            "laws": [each.model_dump(mode="json") for each in self.scores],
            "mean_of_metrics": score(self.held_out_PM.mean(axis=1), self.metrics.values_PM.mean(axis=1)).model_dump(),
        }

    def write(self, folder: Path) -> None:
        """Write the swarm, held-out predictions, the law and the report into `folder`."""
        self.ratios.write_csv(folder / RATIOS)
        self.metrics.write_csv(folder / METRICS)
        write_table(folder / HELD_OUT, self.ratios.ids, self.metrics.names, self.held_out_PM)
        law = {
            "version": 1,
            "settings": self.settings.model_dump(mode="json"),
            "penalty": self.penalty,
            "domains": list(self.domains),
            "metrics": list(self.metrics.names),
            "swarm": swarm_digest(self.ratios, self.metrics),
            "scores": [each.model_dump(mode="json") for each in self.scores],
            "law": self.law.to_json(),
        }
        write_atomically(folder / LAW, _json(law))
        write_atomically(folder / REPORT, _json(self.report()))


@single_threaded
def fit_laws(ratios: Ratios, metrics: Metrics, settings: FitSettings | None = None) -> Fit:
    """Cross-validate the laws on a swarm and fit the best one to all of it.

    Args:
        ratios: the mixtures.
        metrics: their losses, lower is better; rows are matched by id.
        settings: which laws, how many folds.

    Raises:
        DataError: runs of the two tables differ, or there are fewer than four distinct mixtures.
    """
    settings = settings or FitSettings()
    ids = sorted(ratios.ids)
    metrics = metrics.ordered(ratios.ids).ordered(ids)
    rows = [ratios.ids.index(run) for run in ids]
    domains = sorted(ratios.domains)
    ratios = Ratios(tuple(ids), ratios.domains, ratios.weights_PD[rows], ratios.rounded).ordered(domains)
    distinct = len(np.unique(np.round(ratios.weights_PD, 6), axis=0))
    if distinct < LEAST_RUNS:
        raise DataError(f"{distinct} distinct mixtures cannot support a law; train at least {LEAST_RUNS}")
    found = validate(ratios, metrics, settings)
    law, penalty = found.fit(seen_weights(ratios, settings), metrics.values_PM), found.penalties[found.chosen]
    finer_PM = left_out(law, penalty, ratios, metrics, settings)
    if settings.repetition:
        law = RepeatedLaw(law, settings.repetition.discount(ratios.domains))
    held_out_PM = found.held_out_PM if finer_PM is None else finer_PM
    return Fit(ratios, metrics, settings, found.scores, found.chosen, penalty, law, held_out_PM)


def load_fit(folder: Path) -> Fit:
    """Read what `Fit.write` wrote.

    Raises:
        DataError: a file is missing or unreadable, or the tables are not those that the law was fitted to.
    """
    check_untouched(folder)
    path = folder / LAW
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        settings = FitSettings.model_validate(saved["settings"])
        scores = tuple(LawScore.model_validate(each) for each in saved["scores"])
        law = law_from_json(saved["law"])
        penalty, swarm = float(saved["penalty"]), str(saved["swarm"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a fitted law ({type(error).__name__}: {error}); run `loam mix fit`") from None
    ratios, metrics = Ratios.read_csv(folder / RATIOS), Metrics.read_csv(folder / METRICS)
    held_out = Metrics.read_csv(folder / HELD_OUT).ordered(ratios.ids, "the table of held-out predictions")
    if (found := swarm_digest(ratios, metrics)) != swarm:
        raise DataError(f"{folder}: the tables hash to {found[:12]}, the law was fitted to {swarm[:12]}; fit again")
    if held_out.names != metrics.names or not _predicts(law, ratios, metrics):
        raise DataError(f"{folder}: the law or its held-out predictions are not of the metrics fitted; fit again")
    return Fit(ratios, metrics, settings, scores, law.family, penalty, law, held_out.values_PM)


def check_untouched(folder: Path) -> None:
    """Compare a folder that a verb wrote with its manifest: a law that was edited would predict without a word.

    Raises:
        DataError: names the first file that differs.
    """
    if (folder / MANIFEST).is_file():
        check_outputs(folder, read_manifest(folder))


def _predicts(law: FittedLaw, ratios: Ratios, metrics: Metrics) -> bool:
    """Whether the arrays of a law that was read are of the shapes that these tables need."""
    try:
        found_1M = law.predict(ratios.weights_PD[:1])
    except (ValueError, IndexError, TypeError):
        return False
    return found_1M.shape == (1, len(metrics.names)) and bool(np.isfinite(found_1M).all())


def swarm_digest(ratios: Ratios, metrics: Metrics) -> str:
    """sha256 of names and numbers of both tables."""
    digest = hashlib.sha256(json.dumps([ratios.ids, ratios.domains, metrics.names]).encode())
    digest.update(np.ascontiguousarray(ratios.weights_PD, "<f8").tobytes())
    digest.update(np.ascontiguousarray(metrics.values_PM, "<f8").tobytes())
    return digest.hexdigest()


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()
