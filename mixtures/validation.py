"""Choose a law by cross-validation on the fitting data alone.

Whole mixtures are held out, not rows, so that repeated seeds of one mixture cannot leak. Folds come from a hash of each
mixture by domain name: the order of rows and columns changes nothing. Law and penalty are chosen once for all metrics,
because with a few dozen runs a choice per metric is mostly noise. Penalties, and the shares of a stack, are chosen for
each fold by the others, so that a law's score has not seen what it is scored on. What counts is the error and what it
would cost to train what the law believes to be best. P runs, M metrics, F folds, S members, D domains.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import xxhash
from pydantic import Field, field_validator

from mixtures.law_base import FittedLaw
from mixtures.laws import BASELINE, FAMILIES, STACK
from mixtures.noise import LEAST_SNR
from mixtures.repetition import Repetition
from mixtures.scores import MetricScore, beats_mean, gain, mean_over, regret, score
from mixtures.stack import Stack, shares
from mixtures.tables import Metrics, Ratios
from pipelines.recipe import Section

REGRET = 0.25  # what a spread of regret counts against a spread of error: one lucky run decides a regret
DOUBT = 0.02  # benefit given to the stack: averages of laws carry over to other scales better than any one of them
MANY_FOLDS, MANY_UNTIL, FEW_FOLDS = 20, 128, 5  # a family is fitted along its penalties in every fold


class FitSettings(Section):
    """How to fit.

    Attributes:
        laws: families to try; the mean is always among them, and `stack` combines the others.
        folds: of the cross-validation; by default 20 (one per mixture up to 20) for up to 128 mixtures, then five.
        seed: of the folds.
        scale: label of the proxies' scale, `60M/1.2B`; carried into report and proposal.
        least_snr: metrics whose spread between mixtures is less than this many seed deviations are not fitted.
        repetition: unique tokens behind the runs; laws then see what repeated weights are worth.
        chance: metric or glob -> its value when nothing was learned; metrics that stay there are not fitted.
    """

    laws: tuple[str, ...] = ("exponential", "ridge", "effective_data", "concave", "gaussian", "stack")
    folds: Annotated[int, Field(ge=2)] | None = None
    seed: int = 0
    scale: str | None = None
    least_snr: Annotated[float, Field(ge=0)] = LEAST_SNR
    chance: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=dict)
    repetition: Repetition | None = None

    @field_validator("laws")
    @classmethod
    def _known(cls, laws: tuple[str, ...]) -> tuple[str, ...]:
        for name in laws:
            if name not in FAMILIES:
                raise ValueError(f"no law {name!r}; there are {', '.join(FAMILIES)}")
        if not set(laws) - {STACK}:
            raise ValueError(f"none to try, and {STACK} only combines others; such as [concave, gaussian, {STACK}]")
        return laws


class LawScore(Section):
    """How one family did on held-out runs.

    Attributes:
        law: the family.
        penalty: its chosen strength.
        rmse, relative, spearman, regret: means over metrics, see `MetricScore`.
        selection: what the choice minimises: `relative` plus a share of the regret in spreads, that of the mean of
            standardized metrics included.
        gain, gain_error: saved share of variance against the mean of the runs, and its standard error.
        learned: the gain is more than chance, see `scores.beats_mean`.
        shares: of a stack: member -> weight, mean over metrics.
        metrics: the same per metric.
        skipped: why the family was not tried, where it was not.
    """

    law: str
    penalty: float | None = None
    rmse: float | None = None
    relative: float | None = None
    spearman: float | None = None
    regret: float | None = None
    selection: float | None = None
    gain: float | None = None
    gain_error: float | None = None
    learned: bool = False
    shares: dict[str, float] = Field(default_factory=dict)
    metrics: dict[str, MetricScore] = Field(default_factory=dict)
    skipped: str | None = None


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Predictions of runs by fits that have not seen them.

    Attributes:
        penalty: chosen by all runs, for the fit to all of them.
        nested_PM: predictions at the penalty that the other folds choose.
        fold_PM: for each fold, predictions of all runs at the penalty that the other folds choose.
    """

    penalty: float
    nested_PM: np.ndarray
    fold_PM: Mapping[int, np.ndarray]


@dataclass(frozen=True, eq=False)
class Validated:
    """The outcome of a cross-validation.

    Attributes:
        scores: one per family, in the order tried.
        chosen: the family with the best selection score among those that learned something, else the mean.
        held_out_PM: its prediction of each run by the folds that did not see it.
        penalties: of every family that was fitted.
        share_MS: of the stack's members for each metric, in the order of `members`.
        members: of the stack.
    """

    scores: tuple[LawScore, ...]
    chosen: str
    held_out_PM: np.ndarray
    penalties: Mapping[str, float]
    share_MS: np.ndarray
    members: tuple[str, ...]

    def fit(self, weights_PD: np.ndarray, values_PM: np.ndarray) -> FittedLaw:
        """The chosen law fitted to all runs; members of a stack that no metric uses are left out."""
        values_BP, counts_BP = values_PM.T, np.ones_like(values_PM.T)
        if self.chosen != STACK:
            return FAMILIES[self.chosen].fit(weights_PD, values_BP, counts_BP, self.penalties[self.chosen])
        used = [place for place in range(len(self.members)) if (self.share_MS[:, place] > 0).any()]
        names = [self.members[place] for place in used]
        laws = tuple(FAMILIES[name].fit(weights_PD, values_BP, counts_BP, self.penalties[name]) for name in names)
        return Stack(laws, tuple(self.penalties[name] for name in names), self.share_MS[:, used])


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


def left_out_share(runs: int, settings: FitSettings) -> float:
    """Share of the runs that a held-out prediction's fit has not seen."""
    return 1 / min(settings.folds or MANY_FOLDS, runs)


def fold_count(mixtures: int, folds: int | None) -> int:
    """How many folds this many distinct mixtures get."""
    if folds is None:
        folds = MANY_FOLDS if mixtures <= MANY_UNTIL else FEW_FOLDS
    return min(folds, mixtures)


def validate(ratios: Ratios, metrics: Metrics, settings: FitSettings) -> Validated:
    """Cross-validate every family and choose one.

    Args:
        ratios: at least two distinct mixtures.
        metrics: rows as in `ratios`.
        settings: families and folds.
    """
    fold_P = fold_of_runs(ratios, settings.folds, settings.seed)
    weights_PD = seen_weights(ratios, settings)
    found: dict[str, HeldOut] = {}
    scores: dict[str, LawScore] = {}
    smallest = int(min((fold_P != fold).sum() for fold in np.unique(fold_P)))
    share_MS = np.ones((len(metrics.names), 1))
    singles = [name for name in settings.laws if name != STACK]
    for name in dict.fromkeys((BASELINE, *singles)):
        least = FAMILIES[name].least_runs
        if smallest < least and name != BASELINE:
            scores[name] = LawScore(law=name, skipped=f"needs {least} runs in a fit, a fold leaves {smallest}")
            continue
        found[name] = _held_out(name, weights_PD, metrics.values_PM, fold_P)
    members = tuple(found)
    if STACK in settings.laws:
        found[STACK], share_MS = _stacked(found, metrics.values_PM, fold_P)
    for name, held_out in found.items():
        scores[name] = _law_score(name, held_out, found[BASELINE].nested_PM, metrics)
    if STACK in found:
        mean_S = zip(members, share_MS.mean(axis=0).tolist(), strict=True)
        scores[STACK] = scores[STACK].model_copy(update={"shares": {name: round(s, 6) for name, s in mean_S}})
    learned = [each for each in scores.values() if each.learned]
    chosen = min(learned, key=_selected, default=scores[BASELINE]).law
    order = [name for name in dict.fromkeys((BASELINE, *settings.laws)) if name in scores]
    penalties = {name: held_out.penalty for name, held_out in found.items()}
    return Validated(tuple(scores[name] for name in order), chosen, found[chosen].nested_PM, penalties, share_MS,
                     members)  # fmt: skip


def seen_weights(ratios: Ratios, settings: FitSettings) -> np.ndarray:
    """What laws see of the mixtures (P, D): the weights, or what they are worth when domains are repeated."""
    if settings.repetition is None:
        return ratios.weights_PD
    return settings.repetition.discount(ratios.domains).worth(ratios.weights_PD)


def held_out_means(ratios: Ratios, metrics: Metrics, settings: FitSettings) -> np.ndarray:
    """Held-out predictions by the mean of the runs: (P, M)."""
    fold_P = fold_of_runs(ratios, settings.folds, settings.seed)
    return _held_out(BASELINE, ratios.weights_PD, metrics.values_PM, fold_P).nested_PM


def left_out(
    law: FittedLaw, penalty: float, ratios: Ratios, metrics: Metrics, settings: FitSettings
) -> np.ndarray | None:
    """Held-out predictions (P, M) of the chosen law by more folds than the choice was made with.

    Five folds leave out a fifth of the runs, which makes residuals, and with them intervals, too wide by a tenth. So
    the chosen law is fitted again without a twentieth at a time, from the coefficients of the fit to all on; penalties,
    shares and length scales stay. None where folds are small or were asked for, or where a fit is slow (trees).
    """
    fold_P = fold_of_runs(ratios, MANY_FOLDS, settings.seed)
    weights_PD = seen_weights(ratios, settings)
    coarse = settings.folds is None and len(ratios.ids) > MANY_UNTIL
    if not coarse or law.gradient(weights_PD[0]) is None:
        return None
    folds, count = np.unique(fold_P), len(metrics.names)
    values_BP = np.tile(metrics.values_PM.T, (len(folds), 1))
    counts_BP = np.repeat((fold_P != folds[:, None]).astype(float), count, axis=0)
    started = law.take(list(range(count)) * len(folds))
    fitted = FAMILIES[law.family].refit(started, weights_PD, values_BP, counts_BP, penalty)
    predicted_PM = np.empty_like(metrics.values_PM)
    for turn, fold in enumerate(folds):
        rows_P = fold_P == fold
        predicted_PM[rows_P] = fitted.take(range(turn * count, (turn + 1) * count)).predict(weights_PD[rows_P])
    return predicted_PM


def _selected(each: LawScore) -> float:
    score = math.inf if each.selection is None else each.selection
    return score * (1 - DOUBT) if each.law == STACK else score


def _held_out(name: str, weights_PD: np.ndarray, values_PM: np.ndarray, fold_P: np.ndarray) -> HeldOut:
    """Fit a family along its penalties without each fold, and let the other folds choose the penalty of each."""
    folds, count = np.unique(fold_P), values_PM.shape[1]
    values_BP = np.tile(values_PM.T, (len(folds), 1))
    counts_BP = np.repeat((fold_P != folds[:, None]).astype(float), count, axis=0)
    predicted = {}
    for penalty, law in FAMILIES[name].fit_path(weights_PD, values_BP, counts_BP).items():
        predicted_PFM = law.predict(weights_PD).reshape(len(weights_PD), len(folds), count)
        place_P = np.searchsorted(folds, fold_P)
        predicted[penalty] = predicted_PFM[np.arange(len(weights_PD)), place_P]

    def best(rows_P: np.ndarray) -> float:
        errors = {penalty: _relative(value_PM[rows_P], values_PM[rows_P]) for penalty, value_PM in predicted.items()}
        return min(errors, key=lambda penalty: (errors[penalty], -penalty))

    fold_PM = {int(fold): predicted[best(fold_P != fold)] for fold in folds}
    nested_PM = np.stack([fold_PM[int(fold)][row] for row, fold in enumerate(fold_P)])
    return HeldOut(best(np.full(len(fold_P), True)), nested_PM, fold_PM)


def _stacked(found: Mapping[str, HeldOut], values_PM: np.ndarray, fold_P: np.ndarray) -> tuple[HeldOut, np.ndarray]:
    """Held-out predictions of the stack, its shares for each fold found by the others, and the shares by all runs."""
    nested_PM = np.empty_like(values_PM)
    for fold in np.unique(fold_P):
        seen_P = fold_P != fold
        members_SPM = np.stack([each.fold_PM[int(fold)] for each in found.values()])
        share_MS = shares(members_SPM[:, seen_P], values_PM[seen_P])
        nested_PM[~seen_P] = np.einsum("spm,ms->pm", members_SPM[:, ~seen_P], share_MS)
    share_MS = shares(np.stack([each.nested_PM for each in found.values()]), values_PM)
    return HeldOut(1.0, nested_PM, {}), share_MS


def _relative(predicted_PM: np.ndarray, values_PM: np.ndarray) -> float:
    pairs = zip(predicted_PM.T, values_PM.T, strict=True)
    return float(np.mean([score(predicted_P, values_P).relative for predicted_P, values_P in pairs]))


def _law_score(name: str, held_out: HeldOut, mean_PM: np.ndarray, metrics: Metrics) -> LawScore:
    law_PM, values_PM = held_out.nested_PM, metrics.values_PM
    columns = zip(law_PM.T, values_PM.T, strict=True)
    each = {metric: score(*pair) for metric, pair in zip(metrics.names, columns, strict=True)}
    if name == BASELINE:  # the mean of the others is anticorrelated with what was held out: an artefact, not a rank
        each = {metric: one.model_copy(update={"spearman": None}) for metric, one in each.items()}
    every = list(each.values())
    saved, error = gain(law_PM, mean_PM, values_PM)
    return LawScore(
        law=name, penalty=held_out.penalty, rmse=mean_over(every, "rmse"), relative=mean_over(every, "relative"),
        spearman=mean_over(every, "spearman"), regret=mean_over(every, "regret"),
        selection=_relative(law_PM, values_PM) + REGRET * regret(law_PM, values_PM), gain=saved,
        gain_error=error if math.isfinite(error) else None, metrics=each,
        learned=name != BASELINE and beats_mean(law_PM, mean_PM, values_PM),
    )  # fmt: skip
