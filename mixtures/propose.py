"""Propose a mixture: the lowest predicted loss under bounds, with what speaks for and against it.

The proposal is always shown beside the prior and the best run that was really measured. When the law has learned no
more than the mean of the runs, or its optimum is not told from the prior, the prior is proposed and the proposal says
so. Where the optimum lies is asked of laws refitted to resampled swarms, too. D domains, M metrics, R resamples,
C candidates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field

from mixtures.bounds import Bounds
from mixtures.closed_forms import proportional, uniform, unimax
from mixtures.descent import Objective
from mixtures.fitting import LEVELS, MEAN, Fit, swarm_digest
from mixtures.guide import guides
from mixtures.law_base import FittedLaw
from mixtures.mixture import Domains, Mixture, check_same_names
from mixtures.optimum import Region, Support
from mixtures.prices import CapRow, Prices, cap_table, prices
from mixtures.proposal import BestRun, Estimate, Evidence, Proposal
from mixtures.risk import Risk, RiskKind
from mixtures.simplex import Simplex
from mixtures.stability import (
    FEW_RESAMPLES,
    NARROW,
    Standing,
    Steadied,
    resamples_of,
    smallest_told,
    standings,
    steadied,
    weight_intervals,
)
from mixtures.threads import single_threaded
from pipelines.errors import RecipeError

EPOCHS = 4.0  # of UniMax where no cap is given; returns vanish beyond, arXiv:2305.16264


class ProposeSettings(Bounds):
    """What to optimise, and within which bounds.

    Attributes:
        target: a metric, a glob of metrics, or `mean`.
        target_weights: metric -> weight of a weighted mean; replaces `target`.
        support: `hull` looks among the convex combinations of the mixtures that were tried, where the law
            interpolates; `free` looks everywhere within the bounds; `draws` takes the mean of the best 128 of 100,000
            draws around the prior, as RegMix does.
        kl: pull towards the prior, in units of the target per nat; not given, an optimum that is not stable is
            steadied, by a smoother law or a pull, at the cost of at most 15% of the improvement.
        risk: `mean` minimises the prediction, `lcb` its upper bound over resampled swarms, `cvar` the mean over the
            worst of them.
        level: of `lcb` and `cvar`.
        resamples: refits for intervals, stability and chances; 0 leaves these out.
        confidence: chance of beating the prior below which the prior is proposed.
        table_tokens: budgets of the table of caps; not given, the budget and twice the budget.
        seed: of resamples and draws.
        name: of the mixture.
    """

    target: str = MEAN
    target_weights: dict[str, float] = Field(default_factory=dict)
    support: Support = "hull"
    kl: Annotated[float, Field(ge=0)] | None = None
    risk: RiskKind = "mean"
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.9
    resamples: Annotated[int, Field(ge=0)] = 16
    confidence: Annotated[float, Field(ge=0, lt=1)] = 0.8
    table_tokens: tuple[Annotated[int, Field(gt=0)], ...] = ()
    seed: int = 0
    name: str = "proposal"


@dataclass(frozen=True, eq=False)
class Case:
    """The parts of a proposal, all in the order of the fit's domains."""

    fit: Fit
    domains: Domains
    settings: ProposeSettings
    region: Region
    objective: Objective
    counts_RP: np.ndarray
    laws: tuple[FittedLaw, ...]
    learned: bool

    @property
    def space(self) -> Simplex:
        """The feasible set."""
        return self.region.space


@single_threaded
def propose(fit: Fit, domains: Domains, settings: ProposeSettings | None = None) -> Proposal:
    """Find the mixture with the lowest predicted target in the feasible set.

    Args:
        fit: the law.
        domains: unique tokens of exactly the domains of the fit.
        settings: target and bounds.

    Raises:
        DataError: names differ, the target is unknown, or the bounds allow no mixture.
        RecipeError: a risk measure without resamples.
    """
    case = _case(fit, domains, settings or ProposeSettings())
    found = _found(case)
    prior_D = case.objective.prior_D
    optimum_D = case.space.written(found.weights_D) if case.learned else prior_D
    gains_N, told = _standings(case, found, optimum_D)
    p_better = float((gains_N > 0).mean()) if len(gains_N) and not np.array_equal(optimum_D, prior_D) else None
    evidence, reason = _evidence(case, found, optimum_D, p_better)
    if evidence == "distinguishable":
        reason += _better_rivals(told)
    weights_D = optimum_D if evidence == "distinguishable" else prior_D
    return _told(case, found, optimum_D, weights_D, p_better, gains_N, told, (evidence, reason))


def _case(fit: Fit, domains: Domains, settings: ProposeSettings) -> Case:
    check_same_names("the domains file", domains.names, "the domains of the fit", fit.domains)
    if settings.risk != "mean" and not settings.resamples:
        raise RecipeError(f"risk {settings.risk!r} is taken over resamples; found resamples: 0, expected at least 1")
    domains = domains.ordered(fit.domains)
    space = settings.space(domains)
    coefficient_M = fit.target(settings.target, settings.target_weights)
    prior_D = space.written(space.project(_row(proportional(domains), fit.domains)[None])[0])
    learned = fit.learned(coefficient_M)
    smooth = fit.law.gradient(prior_D) is not None and settings.support != "draws"
    count = settings.resamples if smooth else min(settings.resamples, FEW_RESAMPLES)
    counts_RP = resamples_of(fit, count if learned else 0, settings.seed)
    laws = fit.refit(counts_RP) if len(counts_RP) else ()
    risk = Risk(settings.risk, settings.level, laws, coefficient_M) if settings.risk != "mean" and laws else None
    tried_PD = np.concatenate([prior_D[None], fit.ratios.weights_PD])
    region = Region(space, tried_PD, settings.support, settings.seed)
    objective = Objective(fit.law, coefficient_M, prior_D, 0.0, risk)
    return Case(fit, domains, settings, region, objective, counts_RP, laws, learned)


def _found(case: Case) -> Steadied:
    """The optimum; where nothing was learned no search is made for a stable one."""
    fit, coefficient_M = case.fit, case.objective.coefficient_M
    error = float(np.sqrt(np.mean(((fit.metrics.values_PM - fit.held_out_PM) @ coefficient_M) ** 2)))
    steady = case.learned and case.settings.risk == "mean" and case.settings.support != "draws"
    return steadied(case.objective, case.region, guides(fit, case.laws, case.counts_RP, coefficient_M),
                    case.settings.kl if steady else case.settings.kl or 0.0, error)  # fmt: skip


def _row(weights: Mapping[str, float], names: Sequence[str]) -> np.ndarray:
    return np.array([weights[name] for name in names])


def _standings(case: Case, found: Steadied, optimum_D: np.ndarray) -> tuple[np.ndarray, dict[str, Standing]]:
    """Drawn improvements of the optimum over the prior, and how all candidates stand."""
    if not case.laws:
        return np.zeros(0), {}
    candidates = {"optimum": optimum_D, "prior": case.objective.prior_D, **_rivals(case)}
    points_CD = np.stack(list(candidates.values()))
    error_C = case.fit.contrast_widths(points_CD, case.objective.coefficient_M, LEVELS[0])
    choices_PD = np.concatenate([found.optima_RD, np.stack(list(candidates.values()))])
    best_R = [float((law.predict(choices_PD) @ case.objective.coefficient_M).min()) for law in case.laws]
    told, drawn_NC = standings(case.objective, case.laws, np.array(best_R), candidates, error_C / NARROW,
                               case.settings.seed)  # fmt: skip
    return drawn_NC[:, 1] - drawn_NC[:, 0], told


def _rivals(case: Case) -> dict[str, np.ndarray]:
    """Uniform and UniMax inside the bounds, and the best run where the bounds permit it."""
    names, settings = case.fit.domains, case.settings
    rivals = {"uniform": uniform(case.domains)}
    if settings.tokens:
        epochs = settings.epoch_cap if isinstance(settings.epoch_cap, float) else EPOCHS
        rivals["unimax"] = unimax(case.domains, settings.tokens, epochs)
    found = {name: case.space.project(_row(weights, names)[None])[0] for name, weights in rivals.items()}
    best = _best_observed(case)
    row_D = case.fit.ratios.weights_PD[case.fit.ratios.ids.index(best.id)]
    return found | ({"best run": row_D} if best.allowed else {})


def _better_rivals(told: Mapping[str, Standing]) -> str:
    """What to say where a simple mixture is predicted to be better than the optimum of the region that was searched."""
    ours = told["optimum"].predicted if told else math.inf
    better = {name: ours - one.predicted for name, one in told.items() if one.predicted < ours - 1e-6}
    if not better:
        return ""
    name, gain = max(better.items(), key=lambda one: one[1])
    return f"; {name}, outside of what was searched, is predicted {gain:.3g} lower: test it too (--set support=free)"


def _evidence(case: Case, found: Steadied, optimum_D: np.ndarray, p_better: float | None) -> tuple[Evidence, str]:
    objective, settings = found.objective, case.settings
    if not case.learned:
        return "nothing learned", "no law predicts the target of held-out runs better than their mean: the prior stands"
    ours, prior = replace(case.objective, strength=objective.strength).values(np.stack([optimum_D, objective.prior_D]))
    if ours >= prior:
        return "not distinguishable from proportional", "no allowed mixture is predicted to be better than the prior"
    if p_better is not None and p_better < settings.confidence:
        gain = float(-np.diff(case.objective.loss(np.stack([objective.prior_D, optimum_D])))[0])
        return "not distinguishable from proportional", (
            f"not distinguishable from proportional: a gain of {gain:.4g} is predicted, but it beats the prior only "
            f"with chance {p_better:.2f}, below {settings.confidence:g}; the prior stands"
        )
    where = {"hull": "among combinations of the mixtures tried", "free": "within the bounds",
             "draws": "by the mean of the best draws around the prior"}[settings.support]  # fmt: skip
    feared = "" if settings.risk == "mean" else f"{settings.risk} at {settings.level:g} of the "
    guide = found.stability.guide
    steady = "" if guide == case.fit.chosen else f", searched by {guide!r}, whose optimum is more stable"
    return "distinguishable", f"lowest {feared}loss predicted by the law {case.fit.chosen!r} {where}{steady}"


def _told(
    case: Case, found: Steadied, optimum_D: np.ndarray, weights_D: np.ndarray, p_better: float | None,
    gains_N: np.ndarray, standing: dict[str, Standing], why: tuple[Evidence, str],
) -> Proposal:  # fmt: skip
    fit, settings, objective, names = case.fit, case.settings, found.objective, case.fit.domains
    mixture = Mixture(name=settings.name, weights=dict(zip(names, weights_D.tolist(), strict=True)),
                      tokens=settings.tokens, epoch_cap=settings.epoch_cap)  # fmt: skip
    prior_D = objective.prior_D
    return Proposal(
        mixture=mixture, basis="law" if why[0] == "distinguishable" else "prior", reason=why[1], evidence=why[0],
        target="weighted mean" if settings.target_weights else settings.target,
        optimum=dict(zip(names, optimum_D.tolist(), strict=True)),
        predicted=_estimate(case, weights_D), prior_predicted=_estimate(case, prior_D),
        prior=dict(zip(names, prior_D.tolist(), strict=True)), p_better=p_better,
        improvement=_improvement(case, optimum_D),
        smallest_told=smallest_told(gains_N) if p_better is not None else None,
        intervals=weight_intervals(names, found.optima_RD) if len(found.optima_RD) else {},
        stability=found.stability, standings=standing, best_observed=_best_observed(case),
        epochs=mixture.epochs(case.domains) if settings.tokens else {},
        bounds=case.space.reasons(optimum_D), prices=_prices(case, found), caps=_caps(case, found),
        law=fit.chosen,
        provenance={"swarm": swarm_digest(fit.ratios, fit.metrics), "domains": case.domains.digest(),
                    "scale": fit.settings.scale},
    )  # fmt: skip


def _estimate(case: Case, weights_D: np.ndarray) -> Estimate:
    coefficient_M = case.objective.coefficient_M
    loss = float(case.objective.loss(weights_D[None])[0])
    narrow, wide = (float(case.fit.half_widths(weights_D[None], coefficient_M, level)[0]) for level in LEVELS)
    return Estimate(loss=loss, lo80=loss - narrow, hi80=loss + narrow, lo95=loss - wide, hi95=loss + wide)


def _best_observed(case: Case) -> BestRun:
    fit = case.fit
    measured_P = fit.metrics.values_PM @ case.objective.coefficient_M
    place = int(np.argmin(measured_P))
    row_1D = fit.ratios.weights_PD[[place]]
    predicted, allowed = float(case.objective.loss(row_1D)[0]), bool(case.space.contains(row_1D)[0])
    return BestRun(id=fit.ratios.ids[place], measured=float(measured_P[place]), predicted=predicted, allowed=allowed)


def _improvement(case: Case, optimum_D: np.ndarray) -> dict[str, float]:
    pair_PD = np.stack([case.objective.prior_D, optimum_D])
    prior, ours = case.objective.loss(pair_PD)
    improvement = {"predicted": float(prior - ours)}
    if case.laws:
        losses_RP = np.stack([law.predict(pair_PD) @ case.objective.coefficient_M for law in case.laws])
        points = np.quantile(losses_RP[:, 0] - losses_RP[:, 1], [0.1, 0.9])
        improvement |= {"lo80": float(points[0]), "hi80": float(points[1])}
    return improvement


def _prices(case: Case, found: Steadied) -> Prices:
    """Prices where a law was learned and has a slope; draws are too coarse for the differences."""
    objective = found.objective
    if not case.learned or case.settings.support == "draws" or objective.slope(objective.prior_D) is None:
        return Prices(cap={}, floor={}, group={})
    caps = case.settings.epoch_caps(case.domains) if case.settings.tokens else {}
    per_weight_D = np.array([(case.settings.tokens or 0) / caps.get(name, 0.0) if name in caps else np.inf
                             for name in case.fit.domains])  # fmt: skip
    return prices(objective, case.region, found.weights_D, per_weight_D)


def _caps(case: Case, found: Steadied) -> list[CapRow]:
    objective, settings = found.objective, case.settings
    if not case.learned or objective.slope(objective.prior_D) is None:
        return []
    tokens = settings.tokens or case.domains.total
    budgets = settings.table_tokens or (tokens, 2 * tokens)
    return cap_table(objective, case.objective, case.region, settings, case.domains, found.weights_D, budgets)
