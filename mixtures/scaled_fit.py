"""A fit as it stands at another scale: predictions, runs and held-out errors in the units of the target scale.

It is a `Fit` like any other, so that whoever predicts or proposes need not know. Its intervals are those of the nearest
scale with a law, never narrower, widened by how far shapes were seen to move between scales (as a random walk in
log N) and by the doubt about an extrapolated level. P runs, M metrics, D domains, K scales with a law, R resamples.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mixtures.cross_scale import CrossScaleLaw, Place
from mixtures.fitting import Fit
from mixtures.law_base import FittedLaw
from mixtures.scores import half_width, student_quantile
from mixtures.tables import Metrics

UNSEEN_DRIFT = 1.0  # where no second scale shows how shapes move: as much variance again as on held-out runs


@dataclass(frozen=True, eq=False)
class Drift:
    """How wrong the shapes of other scales were at a scale where runs could tell.

    Attributes:
        residual_PM: errors there, in units of each metric's spread; none where nothing could tell.
        steps: distance to the target over the distance that these errors come from.
    """

    residual_PM: np.ndarray
    steps: float


@dataclass(frozen=True, eq=False)
class ScaledFit(Fit):
    """The fit of one scale, carried to another.

    Attributes:
        base: the nearest fit that is not carried.
        target_place: level and spread at the target.
        base_spread_M: spread where `base` was fitted.
        drift: errors between scales.
        extrapolation: where the target lies, and how far to trust it.
    """

    base: Fit = field(kw_only=True)
    target_place: Place = field(kw_only=True)
    base_spread_M: np.ndarray = field(kw_only=True)
    drift: Drift = field(kw_only=True)
    extrapolation: dict[str, Any] = field(kw_only=True)

    @classmethod
    def carry(
        cls, base: Fit, law: FittedLaw, values_PM: np.ndarray, held_out_PM: np.ndarray, **own: Any
    ) -> "ScaledFit":
        """The base fit with another law, its runs and their held-out predictions in the units of the target."""
        plain = {each.name: getattr(base, each.name) for each in dataclasses.fields(Fit)}
        metrics = Metrics(base.metrics.ids, base.metrics.names, values_PM)
        return cls(**plain | {"law": law, "metrics": metrics, "held_out_PM": held_out_PM}, base=base, **own)

    def half_widths(self, weights_PD: np.ndarray, coefficient_M: np.ndarray, level: float) -> np.ndarray:
        """Half widths (P,) of the intervals of an objective at the target scale, as `Fit.half_widths`."""
        # levels of metrics miss together, as all are carried along one axis
        miss = student_quantile(30, (1 + level) / 2) * float(np.abs(coefficient_M) @ self.target_place.error_M)
        return np.hypot(self.contrast_widths(weights_PD, coefficient_M, level), miss)

    def contrast_widths(self, weights_PD: np.ndarray, coefficient_M: np.ndarray, level: float) -> np.ndarray:
        """The same without the doubt about the level, which all mixtures share."""
        ratio_M = np.maximum(self.target_place.spread_M / self.base_spread_M, 1.0)
        base_P = self.base.half_widths(weights_PD, coefficient_M * ratio_M, level) * self._shared(coefficient_M)
        spread_M = coefficient_M * ratio_M * self.base_spread_M
        if self.extrapolation["trust"] == "fitted":
            return base_P
        if len(self.drift.residual_PM) > 2:
            across = half_width(self.drift.residual_PM @ spread_M, level)
            moved_P = np.maximum(across**2 - base_P**2, 0.0) * self.drift.steps
        else:
            moved_P = UNSEEN_DRIFT * base_P**2
        away_PM = np.abs(self.law.predict(weights_PD) - self.target_place.level_M)
        spread_P = student_quantile(30, (1 + level) / 2) * (away_PM * self.target_place.doubt_M) @ np.abs(coefficient_M)
        return np.sqrt(base_P**2 + moved_P + spread_P**2)

    def _shared(self, coefficient_M: np.ndarray) -> float:
        """Held-out error of the shared shape over that of the base alone: laws of other scales can only help."""
        ours = (self.metrics.values_PM - self.held_out_PM) @ (
            coefficient_M * self.base_spread_M / self.target_place.spread_M
        )
        alone = (self.base.metrics.values_PM - self.base.held_out_PM) @ coefficient_M
        return min(float(np.linalg.norm(ours) / max(np.linalg.norm(alone), 1e-12)), 1.0)

    def refit(self, counts_RP: np.ndarray) -> tuple[FittedLaw, ...]:
        """The base's law fitted anew to resampled runs and carried again; laws of other scales stay."""
        law = self.law
        assert isinstance(law, CrossScaleLaw)
        return tuple(
            CrossScaleLaw(tuple(new if old is self.base.law else old for old in law.laws), law.factor_KM, law.shift_M)
            for new in self.base.refit(counts_RP)
        )

    def report(self) -> dict[str, Any]:
        """As of a fit, with what was carried."""
        names = self.metrics.names
        carried = {
            "level": dict(zip(names, self.target_place.level_M.tolist(), strict=True)),
            "spread": dict(zip(names, self.target_place.spread_M.tolist(), strict=True)),
        }
        return super().report() | {"extrapolation": {**self.extrapolation, **carried}}
