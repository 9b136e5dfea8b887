"""Choose a law by cross-validation on the fitting data alone.

Whole mixtures are held out, not rows, so that repeated seeds of one mixture cannot leak. Folds come from a hash of each
mixture by domain name: the order of rows and columns changes nothing. Law and penalty are chosen once for all metrics,
because with a few dozen runs a choice per metric is mostly noise. P runs, M metrics, F folds, D domains.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import xxhash
from pydantic import Field, field_validator

from mixtures.laws import BASELINE, FAMILIES
from mixtures.scores import MetricScore, gain, mean_over, score
from mixtures.tables import Metrics, Ratios
from pipelines.recipe import Section

LEAVE_ONE_OUT_UNTIL, TEN_FOLDS_UNTIL = 16, 128  # parametric fits are cheap; trees on hundreds of runs are not


class FitSettings(Section):
    """How to fit.

    Attributes:
        laws: families to try; the mean is always among them.
        folds: of the cross-validation; by default one per mixture up to 16 mixtures, ten up to 128, then five.
        seed: of the folds.
        scale: label of the proxies' scale, `60M/1.2B`; carried into report and proposal.
    """

    laws: tuple[str, ...] = ("exponential", "ridge", "effective_data", "concave", "trees")
    folds: Annotated[int, Field(ge=2)] | None = None
    seed: int = 0
    scale: str | None = None

    @field_validator("laws")
    @classmethod
    def _known(cls, laws: tuple[str, ...]) -> tuple[str, ...]:
        for name in laws:
            if name not in FAMILIES:
                raise ValueError(f"no law {name!r}; there are {', '.join(FAMILIES)}")
        return laws


class LawScore(Section):
    """How one family did on held-out runs.

    Attributes:
        law: the family.
        penalty: its chosen strength.
        rmse, relative, spearman, regret: means over metrics, see `MetricScore`.
        gain, gain_error: saved share of variance against the mean of the runs, and its standard error.
        learned: the gain is above one standard error.
        metrics: the same per metric.
        skipped: why the family was not tried, where it was not.
    """

    law: str
    penalty: float | None = None
    rmse: float | None = None
    relative: float | None = None
    spearman: float | None = None
    regret: float | None = None
    gain: float | None = None
    gain_error: float | None = None
    learned: bool = False
    metrics: dict[str, MetricScore] = Field(default_factory=dict)
    skipped: str | None = None


@dataclass(frozen=True, eq=False)
class Validated:
    """The outcome of a cross-validation.

    Attributes:
        scores: one per family, in the order tried.
        chosen: the family with the least relative error among those that learned something, else the mean.
        penalty: its strength.
        held_out_PM: its prediction of each run by the folds that did not see it.
        mean_PM: the same for the mean.
    """

    scores: tuple[LawScore, ...]
    chosen: str
    penalty: float
    held_out_PM: np.ndarray
    mean_PM: np.ndarray


def fold_of_runs(ratios: Ratios, folds: int | None, seed: int) -> np.ndarray:
    """The fold that holds out each run: int (P,); equal mixtures share a fold and folds are balanced."""
    order = sorted(range(len(ratios.domains)), key=ratios.domains.__getitem__)
    names = [ratios.domains[place] for place in order]
    keys = []
    for row_D in np.round(ratios.weights_PD[:, order], 6).tolist():
        text = ";".join(f"{name}={weight:.6f}" for name, weight in zip(names, row_D, strict=True) if weight)
        keys.append(xxhash.xxh64_hexdigest(text.encode(), seed=seed))
    distinct = sorted(set(keys))
    fold_of = {key: place % fold_count(len(distinct), folds) for place, key in enumerate(distinct)}
    return np.array([fold_of[key] for key in keys])


def fold_count(mixtures: int, folds: int | None) -> int:
    """How many folds this many distinct mixtures get."""
    if folds is None:
        folds = mixtures if mixtures <= LEAVE_ONE_OUT_UNTIL else 10 if mixtures <= TEN_FOLDS_UNTIL else 5
    return min(folds, mixtures)


def validate(ratios: Ratios, metrics: Metrics, settings: FitSettings) -> Validated:
    """Cross-validate every family and choose one.

    Args:
        ratios: at least two distinct mixtures.
        metrics: rows as in `ratios`.
        settings: families and folds.
    """
    fold_P = fold_of_runs(ratios, settings.folds, settings.seed)
    held_out, scores = {}, []
    for name in dict.fromkeys((BASELINE, *settings.laws)):
        smallest = int(min((fold_P != fold).sum() for fold in np.unique(fold_P)))
        least = FAMILIES[name].least_runs
        if smallest < least and name != BASELINE:
            scores.append(LawScore(law=name, skipped=f"needs {least} runs in a fit, a fold leaves {smallest}"))
            continue
        penalty, held_out[name] = _held_out(name, ratios.weights_PD, metrics.values_PM, fold_P)
        scores.append(_law_score(name, penalty, held_out[name], held_out[BASELINE], metrics))
    learned = [each for each in scores if each.learned]
    chosen = min(learned, key=lambda each: each.relative or math.inf, default=scores[0])
    assert chosen.penalty is not None
    return Validated(tuple(scores), chosen.law, chosen.penalty, held_out[chosen.law], held_out[BASELINE])


def held_out_means(ratios: Ratios, metrics: Metrics, settings: FitSettings) -> np.ndarray:
    """Held-out predictions by the mean of the runs: (P, M)."""
    fold_P = fold_of_runs(ratios, settings.folds, settings.seed)
    return _held_out(BASELINE, ratios.weights_PD, metrics.values_PM, fold_P)[1]


def _held_out(name: str, weights_PD: np.ndarray, values_PM: np.ndarray, fold_P: np.ndarray) -> tuple[float, np.ndarray]:
    """Best penalty of a family, and its held-out predictions (P, M)."""
    folds, count = np.unique(fold_P), values_PM.shape[1]
    values_BP = np.tile(values_PM.T, (len(folds), 1))
    counts_BP = np.repeat((fold_P != folds[:, None]).astype(float), count, axis=0)
    predictions = {}
    for penalty, law in FAMILIES[name].fit_path(weights_PD, values_BP, counts_BP).items():
        predicted_PFM = law.predict(weights_PD).reshape(len(weights_PD), len(folds), count)
        predictions[penalty] = predicted_PFM[np.arange(len(weights_PD)), fold_P]
    errors = {penalty: np.mean([score(p, v).relative for p, v in zip(predicted_PM.T, values_PM.T, strict=True)])
              for penalty, predicted_PM in predictions.items()}  # fmt: skip
    best = min(errors, key=lambda penalty: (errors[penalty], -penalty))
    return best, predictions[best]


def _law_score(name: str, penalty: float, law_PM: np.ndarray, mean_PM: np.ndarray, metrics: Metrics) -> LawScore:
    columns = zip(law_PM.T, metrics.values_PM.T, strict=True)
    each = {metric: score(*pair) for metric, pair in zip(metrics.names, columns, strict=True)}
    if name == BASELINE:  # the mean of the others is anticorrelated with what was held out: an artefact, not a rank
        each = {metric: one.model_copy(update={"spearman": None}) for metric, one in each.items()}
    every = list(each.values())
    saved, error = gain(law_PM, mean_PM, metrics.values_PM)
    return LawScore(
        law=name, penalty=penalty, rmse=mean_over(every, "rmse"), relative=mean_over(every, "relative"),
        spearman=mean_over(every, "spearman"), regret=mean_over(every, "regret"), gain=saved,
        gain_error=error if math.isfinite(error) else None, learned=name != BASELINE and saved > error, metrics=each,
    )  # fmt: skip
