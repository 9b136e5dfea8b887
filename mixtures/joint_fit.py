"""Choose a joint law by predicting the largest scale from the others, and give its fit at any scale.

Joint laws need runs at three scales or more, such as the checkpoints of a few sizes. What they are for is to predict
beyond what was trained, so that form and penalty are judged there: on the largest size, and on the longest training,
each held out. The errors made there are the intervals beyond. P runs of all scales, M metrics, D domains, R resamples.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixtures.fitting import LEAST_RUNS, Fit
from mixtures.joint import HEAD, KINDS, JointAt, JointLaw, fit_joint
from mixtures.law_base import FittedLaw
from mixtures.runs import Runs
from mixtures.scale import Scale
from mixtures.scores import half_width, mean_over, score
from mixtures.tables import Metrics
from mixtures.validation import FitSettings, LawScore
from pipelines.errors import DataError

LEAST_SCALES = 3
LEAST_MIXTURES = 8  # at the largest scale: fewer do not tell which law predicts it
MOST_CELLS = 1_500_000  # rows x parameters x losses x folds
MOST_TOKENS = 6  # numbers of tokens of one size, evenly among all: checkpoints of one run tell much the same
LEAST_TOKENS = 2  # with one, nothing is known of tokens
FOLDS = 3  # of mixtures, which are held out with the largest scale: both must be new to what predicts them


@dataclass(frozen=True, eq=False)
class JointModel:
    """A joint law with the runs that it was fitted to.

    Attributes:
        runs: of all scales, sorted.
        law: fitted to all of them.
        penalty: chosen.
        errors: kind -> mean relative error on held-out largest scales, at its best penalty.
        beyond_PM: relative errors of the kept law on the largest scale, held out.
        within_PM: relative errors of the final fit, of the size that new runs would show.
    """

    runs: tuple[Runs, ...]
    law: JointLaw
    penalty: float
    errors: Mapping[str, float]
    beyond_PM: np.ndarray
    within_PM: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """All but the runs."""
        law = self.law
        return {
            "kind": law.kind, "theta": law.theta_BK.tolist(), "unit": law.unit_B.tolist(), "first": list(law.first),
            "tokens_vary": law.tokens_vary, "penalty": self.penalty, "errors": dict(self.errors),
            "beyond": self.beyond_PM.tolist(), "within": self.within_PM.tolist(),
        }  # fmt: skip

    @classmethod
    def from_json(cls, runs: Sequence[Runs], saved: Mapping[str, Any]) -> "JointModel":
        """Read back what `to_json` gave."""
        law = JointLaw(str(saved["kind"]), np.array(saved["theta"], float), np.array(saved["unit"], float),
                       (float(saved["first"][0]), float(saved["first"][1])), bool(saved["tokens_vary"]))  # fmt: skip
        return cls(tuple(runs), law, float(saved["penalty"]), dict(saved["errors"]),
                   np.array(saved["beyond"], float), np.array(saved["within"], float))  # fmt: skip

    def at(self, scale: Scale, settings: FitSettings) -> "JointFit":
        """The fit at a scale: runs of the largest scale, moved there by the law."""
        base = self.base()
        size, tokens = _where(scale, self.law)
        law = JointAt(self.law, size, tokens)
        ratios, values_PM = base.ratios, base.metrics.values_PM
        own = JointAt(self.law, *_where(base.scale, self.law)).predict(ratios.weights_PD)
        moved_PM = law.predict(ratios.weights_PD)
        metrics = Metrics(base.metrics.ids, base.metrics.names, moved_PM * values_PM / own)
        beyond = size > max(math.log(runs.scale.params) for runs in self.runs if runs.scale) + 1e-9 or (
            self.law.tokens_vary
            and tokens > max(math.log(runs.scale.tokens) for runs in self.runs if runs.scale and runs.scale.tokens)
        )
        error_PM = self.beyond_PM if beyond else self.within_PM
        rows = np.arange(len(ratios.ids)) % len(error_PM)
        held_out_PM = moved_PM if len(error_PM) < 2 else metrics.values_PM * (1 - error_PM[rows])
        each = dict(zip(metrics.names, (score(p, v) for p, v in zip(held_out_PM.T, metrics.values_PM.T, strict=True)),
                        strict=True))  # fmt: skip
        every = list(each.values())
        kept = LawScore(
            law=self.law.kind, penalty=self.penalty, metrics=each, learned=True, rmse=mean_over(every, "rmse"),
            relative=mean_over(every, "relative"), spearman=mean_over(every, "spearman"),
            regret=mean_over(every, "regret"),
        )  # fmt: skip
        extrapolation = {"scale": str(scale), "law": self.law.kind, "trust": "extrapolated" if beyond else "fitted",
                         "relative_error_beyond": float(np.mean(np.abs(self.beyond_PM))),
                         "relative_error_within": float(np.mean(np.abs(self.within_PM)))}  # fmt: skip
        plain = {each.name: each.default for each in dataclasses.fields(Fit) if each.default is not dataclasses.MISSING}
        label = settings.model_copy(update={"scale": str(scale)})
        return JointFit(
            **plain | {"ratios": ratios, "metrics": metrics, "settings": label, "scores": (kept,),
                       "chosen": self.law.kind, "penalty": self.penalty, "law": law, "held_out_PM": held_out_PM},
            model=self, error_PM=error_PM, extrapolation=extrapolation,
        )  # fmt: skip

    def base(self) -> "Runs":
        """The largest scale with enough mixtures to stand for a swarm, else the one with most."""
        enough = [runs for runs in self.runs if len(runs.ratios.ids) >= LEAST_RUNS]
        return (enough or sorted(self.runs, key=lambda runs: len(runs.ratios.ids)))[-1]


@dataclass(frozen=True, eq=False)
class JointFit(Fit):
    """A joint law's fit at one scale.

    Attributes:
        model: all scales.
        error_PM: relative errors that intervals come from.
        extrapolation: where the scale lies, and what the law's errors were.
    """

    model: JointModel = field(kw_only=True)
    error_PM: np.ndarray = field(kw_only=True)
    extrapolation: dict[str, Any] = field(kw_only=True)

    def half_widths(self, weights_PD: np.ndarray, coefficient_M: np.ndarray, level: float) -> np.ndarray:
        """Half widths (P,) from relative errors, as `Fit.half_widths`."""
        level_M = self.metrics.values_PM.mean(axis=0)
        return np.full(len(weights_PD), half_width(self.error_PM @ (coefficient_M * level_M), level))

    def contrast_widths(self, weights_PD: np.ndarray, coefficient_M: np.ndarray, level: float) -> np.ndarray:
        """The same without the error that all mixtures share."""
        shared_PM = self.error_PM - self.error_PM.mean(axis=0)
        level_M = self.metrics.values_PM.mean(axis=0)
        return np.full(len(weights_PD), half_width(shared_PM @ (coefficient_M * level_M), level))

    def refit(self, counts_RP: np.ndarray) -> tuple[FittedLaw, ...]:
        """The joint law fitted anew; mixtures of the base scale are resampled with all runs of theirs."""
        table, law = stacked(self.model.runs), self.law
        assert isinstance(law, JointAt)
        drawn = {row.tobytes(): counts_R for row, counts_R in zip(_keys(self.ratios.weights_PD), counts_RP.T,
                                                                  strict=True)}  # fmt: skip
        count = len(self.metrics.names)
        every_R = np.ones(len(counts_RP))
        counts_RN = np.stack([drawn.get(row.tobytes(), every_R) for row in _keys(table.weights_PD)], axis=1)
        values_BP = np.tile(table.values_PM.T, (len(counts_RP), 1))
        found = fit_joint(law.law.kind, table.weights_PD, table.size_P, table.tokens_P, values_BP,
                          np.repeat(counts_RN, count, axis=0), (self.penalty,))[self.penalty]  # fmt: skip
        whole = JointAt(found, law.size, law.tokens)
        return tuple(whole.take(range(turn * count, (turn + 1) * count)) for turn in range(len(counts_RP)))

    def report(self) -> dict[str, Any]:
        """As of a fit, with the errors of all joint laws on held-out largest scales."""
        return super().report() | {"extrapolation": self.extrapolation, "joint_errors": dict(self.model.errors)}


@dataclass(frozen=True, eq=False)
class Table:
    """Runs of all scales in one table: weights (P, D), log N and log D (P,), losses (P, M)."""

    weights_PD: np.ndarray
    size_P: np.ndarray
    tokens_P: np.ndarray
    values_PM: np.ndarray


def stacked(runs: Sequence[Runs]) -> Table:
    """All runs in one table; unknown tokens count as one."""
    size_P = np.concatenate([np.full(len(each.ratios.ids), math.log(each.scale.params)) for each in runs if each.scale])
    tokens_P = np.concatenate([np.full(len(each.ratios.ids), math.log(each.scale.tokens or 1)) for each in runs
                               if each.scale])  # fmt: skip
    return Table(np.concatenate([each.ratios.weights_PD for each in runs]), size_P, tokens_P,
                 np.concatenate([each.metrics.values_PM for each in runs]))  # fmt: skip


def fits_jointly(runs: Sequence[Runs]) -> bool:
    """Whether a joint law can be fitted and judged.

    That takes three scales, eight mixtures at the largest, tokens known of all or of none, positive losses, and a table
    that is fitted in about a minute.
    """
    known = {each.scale.tokens is not None for each in runs if each.scale}
    if len(runs) < LEAST_SCALES or len(known) > 1 or len(runs[-1].ratios.ids) < LEAST_MIXTURES:
        return False
    kept = thinned(runs)
    positive = all((each.metrics.values_PM > 0).all() for each in runs)
    rows = sum(len(each.ratios.ids) for each in kept)
    return positive and rows >= 2 * runs[0].ratios.weights_PD.shape[1] and _cells(kept) <= MOST_CELLS


def thinned(runs: Sequence[Runs]) -> list[Runs]:
    """At most six numbers of tokens of each size, the most among them; down to two where the table is very large."""
    sizes: dict[int, list[Runs]] = {}
    for each in runs:
        if each.scale:
            sizes.setdefault(each.scale.params, []).append(each)
    kept: list[Runs] = []
    for most in range(MOST_TOKENS, LEAST_TOKENS - 1, -1):
        kept = []
        for same in sizes.values():
            places = np.unique(np.round(np.linspace(0, len(same) - 1, min(len(same), most))).astype(int))
            kept += [same[place] for place in places]
        if _cells(kept) <= MOST_CELLS:
            break
    return kept


def _cells(runs: Sequence[Runs]) -> int:
    """Numbers in the Jacobian of all folds and losses, which is what a fit takes time for."""
    rows = sum(len(each.ratios.ids) for each in runs)
    domains, count = runs[0].ratios.weights_PD.shape[1], len(runs[0].metrics.names)
    return rows * (len(HEAD) + 4 * domains) * count * FOLDS


def largest_held_out(table: Table) -> list[np.ndarray]:
    """Rows (P,) of the largest size; with fewer than three sizes also, or instead, of the longest training."""
    axes = [table.size_P] if len(np.unique(table.size_P)) >= LEAST_SCALES else [table.size_P, table.tokens_P]
    found = []
    for axis_P in axes:
        top_P = axis_P >= axis_P.max() - 1e-9
        if np.ptp(axis_P) > 0 and (~top_P).sum() >= LEAST_RUNS:
            found.append(top_P)
    return found


def fit_joint_model(runs: Sequence[Runs]) -> JointModel:
    """Try all joint laws, keep the one that predicts held-out largest scales best, and fit it to all runs."""
    runs = thinned(runs)
    table = stacked(runs)
    _, mixture_P = np.unique(_keys(table.weights_PD), axis=0, return_inverse=True)
    fold_P = mixture_P.ravel() % FOLDS if mixture_P.max() >= 2 * FOLDS else np.full(len(mixture_P), -1)
    splits = largest_held_out(table)
    found = {key: errors for kind in KINDS for key, errors in _held_out_errors(kind, table, splits, fold_P).items()}
    means = {key: float(np.mean([np.abs(part_PM).mean() for part_PM in parts])) for key, parts in found.items()}
    best = min(means, key=lambda key: (means[key], KINDS.index(key[0]), -key[1]))
    whole = np.ones((table.values_PM.shape[1], len(table.size_P)))
    law = fit_joint(best[0], table.weights_PD, table.size_P, table.tokens_P, table.values_PM.T, whole)[best[1]]
    within_PM = 1 - law.losses(table.weights_PD, table.size_P, table.tokens_P) / table.values_PM
    free = len(table.size_P) / max(len(table.size_P) - 2 * table.weights_PD.shape[1] - 7, 1)
    each = {kind: min(mean for (name, _), mean in means.items() if name == kind) for kind in KINDS}
    return JointModel(tuple(runs), law, best[1], each, found[best][0], within_PM * math.sqrt(min(free, 4.0)))


def _held_out_errors(
    kind: str, table: Table, splits: Sequence[np.ndarray], fold_P: np.ndarray
) -> dict[tuple[str, float], list[np.ndarray]]:
    """Relative errors on each held-out set of rows, by kind and penalty."""
    count, folds = table.values_PM.shape[1], np.unique(fold_P)
    errors: dict[tuple[str, float], list[np.ndarray]] = {}
    for top_P in splits:
        new_FP = (fold_P == folds[:, None]) & (len(folds) > 1)
        counts_BP = np.repeat((~top_P & ~new_FP).astype(float), count, axis=0)
        values_BP = np.tile(table.values_PM.T, (len(folds), 1))
        laws = fit_joint(kind, table.weights_PD, table.size_P, table.tokens_P, values_BP, counts_BP)
        for penalty, law in laws.items():
            losses_PB = law.losses(table.weights_PD, table.size_P, table.tokens_P)
            own_P = np.searchsorted(folds, fold_P)
            losses_PFM = losses_PB.reshape(len(fold_P), len(folds), count)
            error_PM = 1 - losses_PFM[np.arange(len(fold_P)), own_P] / table.values_PM
            errors.setdefault((kind, penalty), []).append(error_PM[top_P])
    return errors


def _where(scale: Scale | None, law: JointLaw) -> tuple[float, float]:
    assert scale is not None
    if law.tokens_vary and scale.tokens is None:
        raise DataError(f"scale {scale}: the law knows tokens; write {scale}/25B")
    return math.log(scale.params), math.log(scale.tokens) if scale.tokens and law.tokens_vary else law.first[1]


def _keys(weights_PD: np.ndarray) -> np.ndarray:
    return np.round(weights_PD, 6) + 0.0
