"""Propose a mixture: the lowest predicted loss under caps, with what speaks for and against it.

The proposal is always shown beside the prior and the best run that was really measured. When the law has learned no
more than the mean of the runs, the prior is proposed and the proposal says so. P(better) comes from refits to resampled
swarms and from the law's held-out errors, since refits alone share the law's bias. D domains, M metrics, R resamples.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from mixtures.closed_forms import proportional
from mixtures.fitting import LEVELS, MEAN, Fit, swarm_digest
from mixtures.laws import FAMILIES
from mixtures.mixture import Domains, Mixture, check_same_names, in_millionths
from mixtures.optimum import Objective, lowest, lowest_in_hull
from mixtures.scores import half_width
from mixtures.simplex import Simplex
from pipelines.files import write_atomically
from pipelines.quantities import Tokens
from pipelines.recipe import Section

BILLION = 10**9
ERRORS = 100  # pairs of held-out errors drawn for each refit


class ProposeSettings(Section):
    """What to optimise, and within which bounds.

    Attributes:
        target: a metric, a glob of metrics, or `mean`.
        target_weights: metric -> weight of a weighted mean; replaces `target`.
        tokens: training budget T.
        epoch_cap: how often a domain may be read within T.
        floor: domain -> least weight.
        support: `hull` looks among the convex combinations of the mixtures that were tried, where the law
            interpolates; `free` looks everywhere within the bounds.
        kl: pull towards the prior, in units of the target per nat.
        resamples: refits for the probability of being better.
        seed: of resamples and draws.
        name: of the mixture.
    """

    target: str = MEAN
    target_weights: dict[str, float] = Field(default_factory=dict)
    tokens: Tokens | None = None
    epoch_cap: Annotated[float, Field(gt=0)] | None = None
    floor: dict[str, float] = Field(default_factory=dict)
    support: Literal["hull", "free"] = "hull"
    kl: Annotated[float, Field(ge=0)] = 0.0
    resamples: Annotated[int, Field(ge=0)] = 32
    seed: int = 0
    name: str = "proposal"


class Estimate(Section):
    """A predicted loss with its 80% and 95% interval for one new run at the swarm's scale."""

    loss: float
    lo80: float
    hi80: float
    lo95: float
    hi95: float


class BestRun(Section):
    """The run of the swarm with the lowest measured target.

    Attributes:
        id: of the run.
        measured: its target; the luckiest of many, so on average too low.
        predicted: what the law makes of it.
        allowed: whether caps and floors permit its mixture.
    """

    id: str
    measured: float
    predicted: float
    allowed: bool


class Proposal(Section):
    """A proposed mixture and the case for it.

    Attributes:
        mixture: what to train on.
        basis: `law`, or `prior` when nothing better is known; `reason` says why.
        target: what was optimised.
        predicted, prior_predicted: of the proposal and of the proportional prior inside the same bounds.
        prior: the prior's weights.
        p_better: chance that the proposal beats the prior, over refits to resampled swarms, each with held-out errors
            of the law added to both predictions; None without refits.
        improvement: prior minus proposal, predicted; with the 10% and 90% points over refits where there are any.
        best_observed: the best run of the swarm, whatever the caps say.
        epochs: how often each domain is read within the budget; empty without one.
        bounds: domain -> `cap` or `floor` where one holds the proposal back.
        price: domain -> predicted change of the target per extra billion unique tokens, for domains at their cap.
        law: family of the fit.
        provenance: hashes of the swarm and of the domains, scale label.
    """

    mixture: Mixture
    basis: str
    reason: str
    target: str
    predicted: Estimate
    prior_predicted: Estimate
    prior: dict[str, float]
    p_better: float | None
    improvement: dict[str, float]
    best_observed: BestRun
    epochs: dict[str, float]
    bounds: dict[str, str]
    price: dict[str, float]
    law: str
    provenance: dict[str, str | None]

    def write(self, folder: Path) -> None:
        """Write `mixture.yaml` and `proposal.json` into `folder`."""
        self.mixture.write(folder / "mixture.yaml")
        whole = {"weights": self.mixture.weights, **self.model_dump(mode="json")}
        text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(folder / "proposal.json", text.encode())

    def summary(self) -> dict[str, Any]:
        """The proposal in a line: for manifests."""
        return {
            "basis": self.basis,
            "law": self.law,
            "target": self.target,
            "predicted": self.predicted.loss,
            "prior_predicted": self.prior_predicted.loss,
            "p_better": self.p_better,
            "weights": self.mixture.weights,
        }


def propose(fit: Fit, domains: Domains, settings: ProposeSettings | None = None) -> Proposal:
    """Find the mixture with the lowest predicted target in the feasible set.

    Args:
        fit: the law.
        domains: unique tokens of exactly the domains of the fit.
        settings: target and bounds.

    Raises:
        DataError: names differ, the target is unknown, or the bounds allow no mixture.
    """
    settings = settings or ProposeSettings()
    check_same_names("the domains file", domains.names, "the domains of the fit", fit.domains)
    held = domains.unique_tokens
    domains = Domains.of({name: held[name] for name in fit.domains})
    space = Simplex.of(domains, settings.tokens, settings.epoch_cap, settings.floor)
    coefficient_M = fit.target(settings.target, settings.target_weights)
    prior_D = _written(space.project(np.array(list(proportional(domains).values()))[None])[0], space)
    objective = Objective(fit.law, coefficient_M, prior_D, settings.kl)
    weights_D, basis, reason = _choose(fit, objective, space, settings)
    mixture = Mixture(name=settings.name, weights=dict(zip(fit.domains, weights_D.tolist(), strict=True)),
                      tokens=settings.tokens, epoch_cap=settings.epoch_cap)  # fmt: skip
    p_better, improvement = _improvement(fit, objective, weights_D, settings)
    return Proposal(
        mixture=mixture, basis=basis, reason=reason,
        target="weighted mean" if settings.target_weights else settings.target,
        predicted=_estimate(fit, objective, weights_D), prior_predicted=_estimate(fit, objective, prior_D),
        prior=dict(zip(fit.domains, prior_D.tolist(), strict=True)), p_better=p_better, improvement=improvement,
        best_observed=_best_observed(fit, objective, space),
        epochs=mixture.epochs(domains) if settings.tokens else {}, bounds=space.reasons(weights_D),
        price=_prices(objective, space, weights_D, settings) if basis == "law" else {}, law=fit.chosen,
        provenance={"swarm": swarm_digest(fit.ratios, fit.metrics), "domains": domains.digest(),
                    "scale": fit.settings.scale},
    )  # fmt: skip


def _choose(fit: Fit, objective: Objective, space: Simplex, settings: ProposeSettings) -> tuple[np.ndarray, str, str]:
    prior_D = objective.prior_D
    if not fit.learned(objective.coefficient_M):
        return prior_D, "prior", "no law predicts held-out runs better than their mean: the prior stands"
    measured_P = fit.metrics.values_PM @ objective.coefficient_M
    tried_PD = np.concatenate([prior_D[None], space.project(fit.ratios.weights_PD)])
    if settings.support == "hull":
        found_D = lowest_in_hull(objective, tried_PD, settings.seed)
    else:
        found_D = lowest(objective, space, tried_PD[[0, 1 + int(np.argmin(measured_P))]], settings.seed)
    found_D = _written(found_D, space)
    if objective.value(found_D) >= objective.value(prior_D):
        return prior_D, "prior", "no allowed mixture is predicted to be better than the prior"
    where = "among combinations of the mixtures tried" if settings.support == "hull" else "within the bounds"
    return found_D, "law", f"lowest loss predicted by the law {fit.chosen!r} {where}"


def _written(weights_D: np.ndarray, space: Simplex) -> np.ndarray:
    return np.array(in_millionths(weights_D.tolist(), space.upper_D.tolist()))


def _estimate(fit: Fit, objective: Objective, weights_D: np.ndarray) -> Estimate:
    loss = float(objective.loss(weights_D[None])[0])
    residual_P = (fit.metrics.values_PM - fit.held_out_PM) @ objective.coefficient_M
    narrow, wide = (half_width(residual_P, level) for level in LEVELS)
    return Estimate(loss=loss, lo80=loss - narrow, hi80=loss + narrow, lo95=loss - wide, hi95=loss + wide)


def _best_observed(fit: Fit, objective: Objective, space: Simplex) -> BestRun:
    measured_P = fit.metrics.values_PM @ objective.coefficient_M
    place = int(np.argmin(measured_P))
    row_1D = fit.ratios.weights_PD[[place]]
    return BestRun(id=fit.ratios.ids[place], measured=float(measured_P[place]),
                   predicted=float(objective.loss(row_1D)[0]), allowed=bool(space.contains(row_1D)[0]))  # fmt: skip


def _improvement(
    fit: Fit, objective: Objective, weights_D: np.ndarray, settings: ProposeSettings
) -> tuple[float | None, dict[str, float]]:
    """P(better than the prior), and the predicted improvement, by refitting to resampled runs."""
    pair_PD = np.stack([objective.prior_D, weights_D])
    prior, ours = objective.loss(pair_PD)
    improvement = {"predicted": float(prior - ours)}
    if not settings.resamples or np.array_equal(weights_D, objective.prior_D):
        return None, improvement
    used = np.flatnonzero(objective.coefficient_M)
    runs = len(fit.ratios.ids)
    random = np.random.default_rng(settings.seed)
    counts_RP = random.multinomial(runs, np.full(runs, 1 / runs), size=settings.resamples).astype(float)
    law = FAMILIES[fit.chosen].fit(
        fit.ratios.weights_PD, np.tile(fit.metrics.values_PM.T[used], (settings.resamples, 1)),
        np.repeat(counts_RP, len(used), axis=0), fit.penalty,
    )  # fmt: skip
    losses_PR = law.predict(pair_PD).reshape(2, settings.resamples, len(used)) @ objective.coefficient_M[used]
    gains_R = losses_PR[0] - losses_PR[1]
    improvement["lo80"], improvement["hi80"] = (float(point) for point in np.quantile(gains_R, [0.1, 0.9]))
    residual_P = (fit.metrics.values_PM - fit.held_out_PM) @ objective.coefficient_M
    error_2RE = residual_P[random.integers(runs, size=(2, settings.resamples, ERRORS))]
    return float(np.mean(gains_R[:, None] + error_2RE[0] - error_2RE[1] > 0)), improvement


def _prices(objective: Objective, space: Simplex, weights_D: np.ndarray, settings: ProposeSettings) -> dict[str, float]:
    """Shadow prices of caps: at the optimum every free domain has the same slope, and one at its cap a lower one."""
    slope_D = objective.slope(weights_D)
    if slope_D is None or not (settings.tokens and settings.epoch_cap):
        return {}
    at_cap_D = weights_D >= space.upper_D - 2e-6
    free_D = ~at_cap_D & (weights_D > space.lower_D + 1e-4)
    if not free_D.any():
        return {}
    level = float(np.average(slope_D[free_D], weights=weights_D[free_D]))
    per_billion = settings.epoch_cap * BILLION / settings.tokens
    rows = zip(space.names, slope_D, at_cap_D & (space.upper_D < 1), strict=True)
    return {name: min(0.0, float(slope - level)) * per_billion for name, slope, held in rows if held}
