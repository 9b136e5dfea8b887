"""Fit runs of one scale or of several, and give the fit for any scale.

Each scale with enough runs has a fit of its own; scales with a few runs correct level and spread (`cross_scale`). A
ladder of one scale is that scale's fit, unchanged. Metrics that are noise are left before anything is fitted.
P runs, D domains, M metrics, K scales with a law, R reference mixtures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixtures.cross_scale import CrossScaleLaw, Place, Shape, calibrated, carried, shares
from mixtures.fitting import Fit, fit_laws
from mixtures.joint_fit import JointModel, fit_joint_model, fits_jointly
from mixtures.laws import BASELINE
from mixtures.noise import Noise, measure_noise, mixture_keys
from mixtures.runs import Runs, common_metrics
from mixtures.scale import Scale, axis_of, coordinate
from mixtures.scaled_fit import Drift, ScaledFit
from mixtures.tables import Ratios
from mixtures.validation import FitSettings
from pipelines.errors import DataError

CROSS_SCALE = "cross_scale"
MOST_SCALES = 6  # the largest ones; what is further away tells little
OUT_OF_LINE = math.log(1.5)  # tokens, from those that scales of the same parameters read
OWN_LAW_RUNS = 16  # distinct mixtures; with fewer, a law of the scale's own only adds noise to those of others


@dataclass(frozen=True, eq=False)
class Rung:
    """One scale.

    Attributes:
        runs: trained there.
        fit: their law; None where there are too few runs for one.
    """

    runs: Runs
    fit: Fit | None

    @property
    def scale(self) -> Scale:
        """Its scale; a ladder of several knows all of them."""
        assert self.runs.scale is not None
        return self.runs.scale


@dataclass(frozen=True, eq=False)
class Ladder:
    """Scales from small to large.

    Attributes:
        rungs: one per scale, at least one with a fit.
        noise: of each metric, from the largest scale with replicates.
        left: metrics that some scale lacks.
        joint: a law of all scales, where there are three or more.
        errors: kind of law -> mean relative error on the largest scale, predicted from those below, of new mixtures.
    """

    rungs: tuple[Rung, ...]
    noise: Noise
    left: tuple[str, ...] = ()
    joint: JointModel | None = None
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def scale(self) -> Scale | None:
        """The largest."""
        return self.rungs[-1].runs.scale

    @property
    def runs(self) -> tuple[Runs, ...]:
        """Of all scales."""
        return self.joint.runs if self.joint else tuple(rung.runs for rung in self.rungs)

    @property
    def settings(self) -> FitSettings:
        """How all of them were fitted."""
        return next(rung.fit.settings for rung in self.rungs if rung.fit is not None)

    def at(self, scale: Scale | None = None) -> Fit:
        """The fit at a scale, by default the largest one that was given.

        Raises:
            DataError: the scales differ in tokens alone and the target has none.
        """
        if self.joint is not None and self._is_for_joint(scale or self.rungs[-1].scale):
            return self.joint.at(scale or self.rungs[-1].scale, self.settings)
        if len(self.rungs) == 1:
            return _fit(self.rungs[0])
        return Climb.of(self.rungs, scale or self.rungs[-1].scale).fit()

    def _is_for_joint(self, target: Scale) -> bool:
        """Whether the joint law predicts a scale.

        Where a law was fitted, it must predict a scale that it did not see better than that law its own held-out
        runs; elsewhere its errors beyond decide. Laws of single scales are carried along one axis: of tokens that are
        out of line with it only the joint law knows, where its runs varied in them.
        """
        assert self.joint is not None
        if fits := [rung.fit for rung in self.rungs if rung.fit is not None and rung.scale == target]:
            own = float(np.mean(np.abs(fits[0].held_out_PM / fits[0].metrics.values_PM - 1)))
            return self.errors["joint"] < own
        known = [scale for rung in self.rungs if (scale := rung.scale).tokens]
        if self.joint.law.tokens_vary and target.tokens and axis_of(known) == "params":
            size_K, tokens_K = np.log([[scale.params, scale.tokens or 1] for scale in known]).T
            line = np.polynomial.Polynomial.fit(size_K, tokens_K, 1 if len(known) > 1 else 0)
            if abs(math.log(target.tokens) - line(math.log(target.params))) > OUT_OF_LINE:
                return True
        return self.errors["joint"] < self.errors.get(CROSS_SCALE, math.inf)


@dataclass(frozen=True, eq=False)
class Climb:
    """The way from all scales to one target.

    Attributes:
        laws: scales with a law.
        at_K: where they lie.
        near: the one nearest to the target.
        shapes: their shapes.
        share_K: weight of each shape.
        shape_PM: the shared shape of the runs of `near`, held out.
        places: level and spread at every scale, sorted.
        few: errors at the largest scale with a few runs, where there is one.
        target, at: the scale to predict, and where it lies.
    """

    laws: tuple[Rung, ...]
    at_K: tuple[float, ...]
    near: int
    shapes: tuple[Shape, ...]
    share_K: np.ndarray
    shape_PM: np.ndarray
    places: tuple[Place, ...]
    few: Drift | None
    target: Scale
    at: float

    @classmethod
    def of(cls, rungs: Sequence[Rung], target: Scale) -> "Climb":
        """Measure shapes, levels and spreads, and carry them."""
        axis = axis_of([rung.scale for rung in rungs])
        where = {rung.scale: coordinate(rung.scale, axis) for rung in rungs}
        at = coordinate(target, axis)
        laws = [rung for rung in rungs if rung.fit is not None]
        at_K = [where[rung.scale] for rung in laws]
        near = min(range(len(laws)), key=lambda place: (abs(at_K[place] - at), -at_K[place]))
        reference_RD = np.unique(np.concatenate([np.round(rung.runs.ratios.weights_PD, 6) for rung in rungs]), axis=0)
        shapes = [Shape.of(_fit(rung).law, reference_RD) for rung in laws]
        shape_KPM = held_out_shapes(laws, shapes, _fit(laws[near]).ratios)
        share_K = shares(shape_KPM, shapes[near].standardized(_fit(laws[near]).metrics.values_PM))
        shape_PM = np.tensordot(share_K, shape_KPM, axes=1)
        places = [own_place(laws, shapes, where[laws[0].scale], 0)]
        for place in range(1, len(laws)):
            places.append(own_place(laws, shapes, at_K[place], place, places))
        error = float(np.sqrt(np.mean((shapes[near].standardized(_fit(laws[near]).metrics.values_PM) - shape_PM) ** 2)))
        few = None
        for rung in (rung for rung in rungs if rung.fit is None):
            expected = carried(sorted(places, key=lambda one: one.at), where[rung.scale])
            seen_PM = np.tensordot(share_K, held_out_shapes(laws, shapes, rung.runs.ratios), axes=1)
            found = calibrated(expected, seen_PM, rung.runs.metrics.values_PM, error)
            places.append(found)
            few = _few_drift(found, seen_PM, rung.runs.metrics.values_PM, abs(where[rung.scale] - at_K[near]),
                             abs(at - at_K[near])) or few  # fmt: skip
        places.sort(key=lambda one: one.at)
        return cls(tuple(laws), tuple(at_K), near, tuple(shapes), share_K, shape_PM, tuple(places), few, target, at)

    def fit(self) -> ScaledFit:
        """The fit of the nearest scale with a law, carried to the target."""
        base, shape = _fit(self.laws[self.near]), self.shapes[self.near]
        there = carried(self.places, self.at)
        spreads_KM = np.stack([one.spread_M for one in self.shapes])
        flat_KM = np.stack([one.flat_M for one in self.shapes])
        factor_KM = np.where(flat_KM, 0.0, self.share_K[:, None] * there.spread_M / spreads_KM)
        shift_M = there.level_M - (factor_KM * np.stack([one.level_M for one in self.shapes])).sum(axis=0)
        law = CrossScaleLaw(tuple(one.law for one in self.shapes), factor_KM, shift_M)
        values_PM = there.level_M + there.spread_M * shape.standardized(base.metrics.values_PM)
        return ScaledFit.carry(
            base, law, values_PM, there.level_M + there.spread_M * self.shape_PM,
            target_place=there, base_spread_M=shape.spread_M, drift=self.drift(), extrapolation=self.extrapolation(),
        )  # fmt: skip

    def drift(self) -> Drift:
        """Errors of the other scales' shapes at the nearest one, or of the shared shape at a scale with few runs."""
        others = [place for place in range(len(self.laws)) if place != self.near]
        if self.few is not None or not others:
            return self.few or Drift(np.zeros((0, len(self.shapes[0].level_M))), 0.0)
        shape_KPM = held_out_shapes(self.laws, self.shapes, _fit(self.laws[self.near]).ratios)[others]
        measured_PM = self.shapes[self.near].standardized(_fit(self.laws[self.near]).metrics.values_PM)
        mixed_PM = np.tensordot(shares(shape_KPM, measured_PM), shape_KPM, axes=1)
        distance = min(abs(self.at_K[place] - self.at_K[self.near]) for place in others)
        return Drift(line_residual(mixed_PM, measured_PM), abs(self.at - self.at_K[self.near]) / distance)

    def extrapolation(self) -> dict[str, Any]:
        """Where the target lies among the scales, as JSON values."""
        known = [place.at for place in self.places]
        off = max(known[0] - self.at, self.at - known[-1], 0.0)
        exact = [rung for rung, at in zip(self.laws, self.at_K, strict=True) if abs(at - self.at) < 1e-9]
        if exact:
            trust = "fitted"
        elif any(abs(at - self.at) < 1e-9 for at in known):
            trust = "calibrated"
        else:
            trust = "interpolated" if not off else "extrapolated" if off <= known[-1] - known[0] else "far"
        trust = "one scale" if len(known) == 1 else trust
        return {
            "scale": str(self.target), "nearest_law": str(self.laws[self.near].scale), "trust": trust,
            "log_distance": off, "log_span": known[-1] - known[0],
            "shape_weights": {str(rung.scale): float(share)
                              for rung, share in zip(self.laws, self.share_K, strict=True)},
        }  # fmt: skip


def fit_runs(runs: Sequence[Runs], settings: FitSettings | None = None) -> Ladder:
    """Fit the laws of one scale or several.

    Args:
        runs: from small to large, as `read_runs` gives them.
        settings: which laws, how many folds, which metrics are noise.

    Raises:
        DataError: no metric is common to all scales, or no scale has enough runs for a law.
    """
    settings = settings or FitSettings()
    left: list[str] = []
    if len(runs) > 1:
        names, left = common_metrics(runs)
        runs = [each.select(names) for each in runs]
    noise = _noise(runs, settings)
    kept = [name for name in runs[0].metrics.names if name not in noise.not_fitted]
    if not kept:  # nothing can be learned: the mean stands, and with it the prior
        settings = settings.model_copy(update={"laws": (BASELINE,)})
    elif len(kept) < len(runs[0].metrics.names):
        runs = [each.select(kept) for each in runs]
    rungs = _rungs(widest(runs), settings)
    if not kept or len(runs) == 1 or not fits_jointly(runs):
        return Ladder(tuple(rungs), noise, tuple(left))
    joint = fit_joint_model(runs)
    return Ladder(tuple(rungs), noise, tuple(left), joint, _largest_from_below(rungs, joint))


def _rungs(runs: Sequence[Runs], settings: FitSettings) -> list[Rung]:
    """Fit a law at every scale with enough runs; a scale where nothing was learned is one with few runs."""
    counts = [len(np.unique(np.round(each.ratios.weights_PD, 6), axis=0)) for each in runs]
    least = min(OWN_LAW_RUNS, max(counts))
    rungs = [Rung(each, _law(each, settings, len(runs) > 1) if count >= least else None)
             for each, count in zip(runs, counts, strict=True)]  # fmt: skip
    learned = [rung for rung in rungs if rung.fit is not None and rung.fit.chosen != BASELINE]
    return [rung if rung in learned or not learned else Rung(rung.runs, None) for rung in rungs]


def _largest_from_below(rungs: Sequence[Rung], joint: JointModel) -> dict[str, float]:
    """Mean relative errors of joint laws and of laws across scales on the largest scale, which neither saw."""
    top = joint.runs[-1]
    errors = {"joint": float(np.mean(np.abs(joint.beyond_PM[-len(top.ratios.ids) :])))}
    below = rungs[:-1]
    if len(below) > 1 and any(rung.fit is not None for rung in below):
        climb = Climb.of(below, rungs[-1].scale)
        law = climb.fit().law
        assert isinstance(law, CrossScaleLaw)
        parts = [unseen(_fit(rung), top.ratios.weights_PD) for rung in climb.laws]  # as joint laws, new to mixtures
        predicted_PM = law.combined(parts)
        errors[CROSS_SCALE] = float(np.mean(np.abs(predicted_PM / top.metrics.values_PM - 1)))
    return errors


def widest(runs: Sequence[Runs]) -> list[Runs]:
    """Of scales with the same parameters only the one with most tokens, unless all have the same parameters."""
    if len(runs) == 1:
        return list(runs)
    scales = [each.scale for each in runs]
    if any(scale is None for scale in scales):
        raise DataError("one of the scales is not known: give --scale with each pair of tables")
    found = {scale.params: each for scale, each in zip(scales, runs, strict=True) if scale}
    return list(runs if len(found) == 1 else found.values())[-MOST_SCALES:]


def held_out_shapes(laws: Sequence[Rung], shapes: Sequence[Shape], ratios: Ratios) -> np.ndarray:
    """Shapes (K, P, M) of mixtures by all laws, none of which has seen the mixture that it predicts."""
    pairs = zip(laws, shapes, strict=True)
    return np.stack([shape.standardized(unseen(_fit(rung), ratios.weights_PD)) for rung, shape in pairs])


def unseen(fit: Fit, weights_PD: np.ndarray) -> np.ndarray:
    """Predictions (P, M) of mixtures by fits that have not seen them: the held-out ones where the scale ran them.

    Swarms of several scales often share their mixtures. What a law says of those that it was fitted to is better than
    what it says of others, so that it would win against held-out predictions, and intervals would be too narrow.
    """
    predicted_PM = fit.law.predict(weights_PD)
    rows: dict[bytes, list[int]] = {}
    for row, key in enumerate(mixture_keys(fit.ratios.weights_PD)):
        rows.setdefault(key, []).append(row)
    for place, key in enumerate(mixture_keys(weights_PD)):
        if key in rows:
            predicted_PM[place] = fit.held_out_PM[rows[key]].mean(axis=0)
    return predicted_PM


def own_place(
    laws: Sequence[Rung], shapes: Sequence[Shape], at: float, place: int, before: Sequence[Place] = ()
) -> Place:
    """Level and spread of a scale by its own law, or by its runs where laws of other scales predict them better."""
    shape = shapes[place]
    zero_M = np.zeros(len(shape.level_M))
    own = Place(at, shape.level_M, shape.spread_M, zero_M, zero_M)
    if not before:
        return own
    shape_KPM = held_out_shapes(laws, shapes, _fit(laws[place]).ratios)
    measured_PM = _fit(laws[place]).metrics.values_PM
    wanted_PM = shape.standardized(measured_PM)
    share_K = shares(shape_KPM, wanted_PM)
    if share_K[place] >= 0.5:
        return own
    shape_PM = np.tensordot(share_K, shape_KPM, axes=1)
    error = float(np.sqrt(np.mean((wanted_PM - shape_PM) ** 2)))
    return calibrated(carried(before, at), shape_PM, measured_PM, error)


def line_residual(shape_PM: np.ndarray, measured_PM: np.ndarray) -> np.ndarray:
    """What a line for each metric leaves, of the size that new runs would show."""
    away_PM, wanted_PM = shape_PM - shape_PM.mean(axis=0), measured_PM - measured_PM.mean(axis=0)
    slope_M = (away_PM * wanted_PM).sum(axis=0) / np.maximum((away_PM**2).sum(axis=0), 1e-12)
    return (wanted_PM - slope_M * away_PM) * np.sqrt(len(shape_PM) / max(len(shape_PM) - 2, 1))


def _few_drift(place: Place, shape_PM: np.ndarray, measured_PM: np.ndarray, seen: float, wanted: float) -> Drift | None:
    if len(shape_PM) <= 2:
        return None
    residual_PM = (measured_PM - place.level_M) / place.spread_M - shape_PM
    freedom = np.sqrt(len(shape_PM) / (len(shape_PM) - 2))
    return Drift(residual_PM * freedom, wanted / seen if seen else 1.0)


def _fit(rung: Rung) -> Fit:
    assert rung.fit is not None
    return rung.fit


def _law(runs: Runs, settings: FitSettings, several: bool) -> Fit:
    label = str(runs.scale) if several else settings.scale
    return fit_laws(runs.ratios, runs.metrics, settings.model_copy(update={"scale": label}))


def _noise(runs: Sequence[Runs], settings: FitSettings) -> Noise:
    """Of the largest scale with replicates; without any, of the largest."""
    found = [measure_noise(each.ratios, each.metrics, settings.least_snr, settings.chance) for each in reversed(runs)]
    return next((noise for noise in found if noise.replicates), found[0])
