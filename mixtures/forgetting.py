"""How far the last stage may shift to another mixture before protected losses rise: the critical ratio.

Between the earlier mixture (share 0) and the new one (share 1) the largest share is taken at which a fitted law
predicts no protected loss above its start plus what is allowed. For the exponential law of continual pretraining that
is the critical ratio ln((L0 - c) / k) / t of Data Mixing Laws (arXiv:2403.16952). By default only the last stage's
mixture counts (all before may be forgotten): right for laws of continued runs, the worst case for others.
P points, C protected losses, M metrics, D domains, R refits.
"""

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mixtures.bounds import Share, caps_by_name
from mixtures.fitting import MEAN, Fit
from mixtures.law_base import FittedLaw
from mixtures.mixture import Domains, EpochCap, check_same_names
from mixtures.schedule import ANNEAL, MAIN, Schedule, ScheduleStage
from mixtures.simplex import Simplex
from pipelines.errors import DataError
from pipelines.quantities import Tokens
from pipelines.recipe import Section

GRID, HALVINGS = 2001, 40
MARGIN = 1e-6  # nats; written weights are millionths


class ScheduleSettings(Section):
    """What a two-stage schedule must keep.

    Attributes:
        tokens: of both stages.
        share: of the tokens in the last stage.
        epoch_cap: how often a domain may be read, both stages together: one number, or domain or pattern -> number.
        replay: domain or pattern -> least share of the last stage; `*` means all domains of the main stage.
        protect: metric, pattern of metrics, or `mean` -> by how much its predicted loss may rise over the last stage.
        start: metric -> its measured loss before the last stage, in place of the law's prediction.
        retain: how much an earlier token counts beside one of the last stage: 0 forgets all, 1 nothing.
        confidence: share of refits to resampled swarms that must keep the constraint; the law alone when null.
        resamples: refits.
        seed: of the resamples.
        name: of the schedule.
    """

    tokens: Annotated[Tokens, Field(ge=2)]
    share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    epoch_cap: EpochCap | None = None
    replay: dict[str, Share] = Field(default_factory=dict)
    protect: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    start: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = Field(default_factory=dict)
    retain: Share = 0.0
    confidence: Annotated[float, Field(gt=0, lt=1)] | None = None
    resamples: Annotated[int, Field(ge=0)] = 32
    seed: int = 0
    name: str = "schedule"


class Kept(Section):
    """One protected loss: predicted or measured before the last stage, what is allowed, and predicted after it."""

    start: float
    allowed: float
    end: float


class Plan(Section):
    """A schedule and why it is as it is.

    Attributes:
        schedule: the stages.
        shift: share of the way from the earlier mixture to the new one; 1 is the new mixture as the caps allow it.
        held_back_by: the protected loss that allows no more; None when nothing does.
        protected: metric -> its bound.
        kept_in_refits: share of refits to resampled swarms that keep every bound; None without.
        predicted: metric -> predicted loss of each stage's mixture, with its 80% half width.
        bounds: stage -> domain -> `cap` or `floor`, where one holds it back.
        interpolates: whether the last mixture lies among combinations of the runs that the law was fitted to.
    """

    schedule: Schedule
    shift: float
    held_back_by: str | None
    protected: dict[str, Kept]
    kept_in_refits: float | None
    predicted: dict[str, dict[str, tuple[float, float]]]
    bounds: dict[str, dict[str, str]]
    interpolates: bool | None

    def summary(self) -> dict[str, Any]:
        """The plan in a line: for manifests."""
        return self.model_dump(mode="json", include={"shift", "held_back_by", "protected", "kept_in_refits"})


@dataclass(frozen=True, eq=False)
class Line:
    """Mixtures of the last stage between two ends, and what counts as read after it.

    Attributes:
        earlier_D: the main stage.
        from_D, to_D: the earlier and the new mixture inside the bounds of the last stage.
        earlier_share: weight of the main stage's tokens in what counts.
    """

    earlier_D: np.ndarray
    from_D: np.ndarray
    to_D: np.ndarray
    earlier_share: float

    def stage(self, share_P: np.ndarray) -> np.ndarray:
        """Weights of the last stage: (P, D)."""
        return (1 - share_P)[:, None] * self.from_D + share_P[:, None] * self.to_D

    def read(self, stage_PD: np.ndarray) -> np.ndarray:
        """The mixture that counts when such a stage has ended: (P, D)."""
        return self.earlier_share * self.earlier_D + (1 - self.earlier_share) * stage_PD


def largest_share(excess: Callable[[np.ndarray], np.ndarray]) -> float | None:
    """The largest share in [0, 1] at which a constraint holds; None when it holds at none.

    Args:
        excess: shares (P,) -> by how much the constraint is passed (P,); it holds where this is at most 0.
    """
    share_P = np.linspace(0, 1, GRID)
    holds_P = np.flatnonzero(excess(share_P) <= 0)
    if not len(holds_P):
        return None
    low = float(share_P[holds_P[-1]])
    if low == 1:
        return low
    high = float(share_P[holds_P[-1] + 1])
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(np.array([middle]))[0] <= 0 else (low, middle)
    return low


def plan_schedule(
    main: Mapping[str, float], late: Mapping[str, float], domains: Domains, settings: ScheduleSettings,
    fit: Fit | None = None,
) -> Plan:  # fmt: skip
    """A main stage and a last one that shifts as far to `late` as caps, replay and protected losses allow.

    Args:
        main: weights of the main stage; moved to the nearest mixture that the caps allow.
        late: weights that the last stage should come near to.
        domains: unique tokens.
        settings: budget and bounds.
        fit: the law that predicts losses; needed where metrics are protected.

    Raises:
        DataError: names differ, no mixture fits the bounds, or no share of the new mixture keeps a protected loss; says
            which and by how much.
    """
    if fit is None and settings.protect:
        raise DataError(f"protecting {', '.join(settings.protect)} needs a fitted law: give --fit")
    if fit is not None:
        check_same_names("the domains file", domains.names, "the domains of the fit", fit.domains)
    names = tuple(sorted(domains.names))
    domains = domains.ordered(names)
    check_same_names("the main mixture", main, "the domains", names, subset=True)
    short = min(max(1, round(settings.share * settings.tokens)), settings.tokens - 1)
    long = settings.tokens - short
    caps = caps_by_name(settings.epoch_cap, names)
    Simplex.of(domains, settings.tokens if caps else None, caps or None)  # says what is missing over both stages
    first_space = Simplex.of(domains, long if caps else None, caps or None)
    main_D = first_space.written(first_space.project(np.array([[main.get(name, 0.0) for name in names]]))[0])
    first = Schedule(name=settings.name, epoch_cap=settings.epoch_cap,
                     stages=(_stage(MAIN, long, names, main_D),))  # fmt: skip
    space, late_D = first.next_space(ANNEAL, short, late, settings.replay, domains)
    counted = settings.retain * long
    path = Line(main_D, space.project(main_D[None])[0], late_D, counted / (counted + short))
    guard = None if fit is None or not settings.protect else _Guard.of(fit, settings, path)
    share = 1.0 if guard is None else guard.largest(space)
    stage_D = space.written(path.stage(np.array([share]))[0])
    return _plan(first.followed_by(_stage(ANNEAL, short, names, stage_D)), share, path, guard, fit,
                 {MAIN: first_space.reasons(main_D), ANNEAL: space.reasons(stage_D)})  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Guard:
    """The forgetting constraint along a path.

    Attributes:
        names: of the protected losses.
        coefficient_CM: their weights of metrics.
        start_C: measured losses before the last stage; nan where the law says.
        rise_C: what is allowed on top.
        path: of mixtures.
        laws: the fitted law, then its refits.
        confidence: share of the refits that must hold; None takes the law alone.
    """

    names: tuple[str, ...]
    coefficient_CM: np.ndarray
    start_C: np.ndarray
    rise_C: np.ndarray
    path: Line
    laws: tuple[FittedLaw, ...]
    confidence: float | None

    @classmethod
    def of(cls, fit: Fit, settings: ScheduleSettings, path: Line) -> "_Guard":
        rises = _protected(fit, settings.protect)
        if unknown := sorted(set(settings.start) - set(rises)):
            raise DataError(f"start names {unknown[0]!r}, which is not protected; protected: {', '.join(rises)}")
        runs = len(fit.ratios.ids)
        random = np.random.default_rng(settings.seed)
        counts_RP = random.multinomial(runs, np.full(runs, 1 / runs), size=settings.resamples).astype(float)
        refits = fit.refit(counts_RP) if settings.resamples else ()
        if settings.confidence and not refits:
            raise DataError("a confidence needs refits: set resamples above 0")
        return cls(tuple(rises), np.stack([fit.target(name) for name in rises]),
                   np.array([settings.start.get(name, np.nan) for name in rises]), np.array(list(rises.values())),
                   path, (fit.law, *refits), settings.confidence)  # fmt: skip

    def losses(self, law: FittedLaw, weights_PD: np.ndarray) -> np.ndarray:
        """Predicted protected losses (P, C)."""
        return law.predict(weights_PD) @ self.coefficient_CM.T

    def allowed(self, law: FittedLaw) -> np.ndarray:
        """The largest protected losses (C,)."""
        predicted_C = self.losses(law, self.path.earlier_D[None])[0]
        return np.where(np.isnan(self.start_C), predicted_C, self.start_C) + self.rise_C

    def excess(self, law: FittedLaw, share_P: np.ndarray) -> np.ndarray:
        """By how much the losses pass what is allowed (P, C)."""
        return self.losses(law, self.path.read(self.path.stage(share_P))) - self.allowed(law) - MARGIN

    def worst(self, share_P: np.ndarray) -> np.ndarray:
        """The largest excess (P,), of the law or at the confidence over refits."""
        if self.confidence is None:
            return self.excess(self.laws[0], share_P).max(axis=1)
        excess_RP = np.stack([self.excess(law, share_P).max(axis=1) for law in self.laws[1:]])
        return np.quantile(excess_RP, self.confidence, axis=0, method="higher")

    def largest(self, space: Simplex) -> float:
        """The largest share that keeps all.

        Raises:
            DataError: none does.
        """
        found = largest_share(self.worst)
        if found is not None:
            return found
        share_P = np.linspace(0, 1, GRID)
        best = int(np.argmin(self.worst(share_P)))
        over_C = self.excess(self.laws[0], share_P[[best]])[0]
        place = int(np.argmax(over_C))
        held = space.reasons(self.path.from_D)
        why = (
            f"; {', '.join(f'the {word} of {name!r}' for name, word in held.items())} keeps it from the earlier mixture"
        )
        sure = "" if self.confidence is None else f" in {self.confidence:.0%} of refits"
        allowed = float(self.allowed(self.laws[0])[place])
        raise DataError(
            f"no share of the new mixture keeps {self.names[place]!r}{sure}: at best (share {share_P[best]:.3f}) it "
            f"ends at {allowed + float(over_C[place]):.4f}, allowed is {allowed:.4f}{why if held else ''}; allow a "
            "rise, replay more, or shorten the last stage"
        )

    def bounds(self, stage_D: np.ndarray) -> dict[str, Kept]:
        """Start, bound and end of every protected loss."""
        law = self.laws[0]
        allowed_C, end_C = self.allowed(law), self.losses(law, self.path.read(stage_D[None]))[0]
        rows = zip(self.names, allowed_C.tolist(), self.rise_C.tolist(), end_C.tolist(), strict=True)
        return {name: Kept(start=allowed - rise, allowed=allowed, end=end) for name, allowed, rise, end in rows}

    def kept_in_refits(self, share: float) -> float | None:
        """Share of refits in which nothing passes its bound."""
        if len(self.laws) < 2:
            return None
        return float(np.mean([self.excess(law, np.array([share])).max() <= 0 for law in self.laws[1:]]))


def _protected(fit: Fit, protect: Mapping[str, float]) -> dict[str, float]:
    """Rise allowed by metric, patterns resolved; a name beats a pattern."""
    rises: dict[str, float] = {}
    for key in sorted(protect, key=lambda key: (key in fit.metrics.names, key)):
        hits = [name for name in sorted(fit.metrics.names) if fnmatch.fnmatchcase(name, key)]
        if key == MEAN or not hits:
            fit.target(key)  # raises for a name that is no metric
        rises |= dict.fromkeys([key] if key == MEAN or key in fit.metrics.names else hits, protect[key])
    return rises


def _stage(name: str, tokens: int, names: tuple[str, ...], weights_D: np.ndarray) -> ScheduleStage:
    return ScheduleStage(name=name, tokens=tokens, weights=dict(zip(names, weights_D.tolist(), strict=True)))


def _plan(
    schedule: Schedule, share: float, path: Line, guard: _Guard | None, fit: Fit | None,
    bounds: dict[str, dict[str, str]],
) -> Plan:  # fmt: skip
    weights_SD = schedule.weights_SD(schedule.domains)
    held, predicted = None, {}
    if guard is not None and share < 1:
        held = guard.names[int(np.argmax(guard.excess(guard.laws[0], np.array([min(1.0, share + 1e-4)]))[0]))]
    if fit is not None:
        each_M = np.eye(len(fit.metrics.names))
        losses_SM = fit.law.predict(weights_SD)
        half_SM = np.stack([fit.half_widths(weights_SD, one_M, 0.8) for one_M in each_M], axis=1)
        predicted = {
            name: {stage.name: (float(losses_SM[row, column]), float(half_SM[row, column]))
                   for row, stage in enumerate(schedule.stages)}
            for column, name in enumerate(fit.metrics.names)
        }  # fmt: skip
    return Plan(
        schedule=schedule, shift=share, held_back_by=held,
        protected=guard.bounds(weights_SD[-1]) if guard else {},
        kept_in_refits=guard.kept_in_refits(share) if guard else None, predicted=predicted, bounds=bounds,
        interpolates=in_hull(path.read(weights_SD[-1:])[0], fit.ratios.weights_PD) if fit else None,
    )  # fmt: skip


def in_hull(weights_D: np.ndarray, tried_PD: np.ndarray, tolerance: float = 1e-4) -> bool:
    """Whether a mixture is a convex combination of others, within `tolerance` of each weight."""
    from scipy.optimize import linprog  # here, so that reading a recipe does not load SciPy

    runs, count = tried_PD.shape
    slack_D = np.eye(count)
    found = linprog(
        np.concatenate([np.zeros(runs), np.ones(2 * count)]),
        A_eq=np.block([[tried_PD.T, slack_D, -slack_D], [np.ones((1, runs)), np.zeros((1, 2 * count))]]),
        b_eq=np.append(weights_D, 1.0), bounds=(0, None), method="highs",
    )  # fmt: skip
    return bool(found.x[runs:].max() <= tolerance)
