"""Which proxies to train next: mixtures and scales, by how much regret a FLOP is expected to save.

Candidates are mixtures drawn as for a swarm, the optima of laws refitted to resampled swarms, and points between. Each
is valued by the knowledge gradient of `posterior`, divided by the FLOPs of its run, or by its share of a budget that
the batch would not use up; after each choice the belief is
updated as if it had been run, so that a batch does not ask the same question twice. What counts is the loss at the
largest scale: runs at a smaller one tell less of what changes on the way. The search says when to stop. X mixtures,
C choices, D domains.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from mixtures.bounds import Bounds
from mixtures.closed_forms import proportional
from mixtures.cost import flops_of
from mixtures.descent import Objective
from mixtures.design import DesignSettings, candidates
from mixtures.fitting import MEAN, Fit
from mixtures.mixture import Domains, check_same_names
from mixtures.optimum import Region
from mixtures.posterior import Posterior, Witness
from mixtures.scale import Scale
from mixtures.stability import optima, resamples_of
from mixtures.tables import Ratios
from mixtures.threads import single_threaded
from pipelines.errors import DataError
from pipelines.files import write_atomically
from pipelines.recipe import Section

DRIFT = 0.016  # share of the variance between mixtures that changes with an e-fold of parameters: RegMix, 1M and 60M
OPTIMA = 16  # refits whose optima are candidates
LEAST_REGRET = 0.1  # of the held-out error: what no confirmation with a few seeds could see


class SuggestSettings(Bounds):
    """What the next runs are for, and what they may cost.

    Attributes:
        target, target_weights: as for a proposal.
        budget_flops: of the batch, counted as 6 N D; not given, only the number of runs is limited.
        batch: at most so many runs.
        scales: scales to choose from, `60M/1.2B`; not given, the scale of the fit.
        regret: expected regret at which the search stops, in units of the target; not given, a tenth of the law's
            held-out error.
        pool: how many mixtures are drawn as candidates.
        resamples: refits for the belief.
        seed: of draws and refits.
    """

    target: str = MEAN
    target_weights: dict[str, float] = Field(default_factory=dict)
    budget_flops: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    batch: Annotated[int, Field(ge=1, le=1000)] = 8
    scales: tuple[str, ...] = ()
    regret: Annotated[float, Field(ge=0)] | None = None
    pool: Annotated[int, Field(ge=8)] = 256
    resamples: Annotated[int, Field(ge=2)] = 32
    seed: int = 0


class NextRun(Section):
    """A run that is suggested.

    Attributes:
        id: a name for it.
        scale: of the run; None where the fit names none.
        flops: what it costs, 6 N D; 0 where no scale is known.
        gain: how much it is expected to lower the loss of the mixture that is chosen in the end.
        weights: domain -> weight.
    """

    id: str
    scale: str | None
    flops: float
    gain: float
    weights: dict[str, float]


class Suggestion(Section):
    """The next batch, or the advice to stop.

    Attributes:
        stop: whether to stop; `reason` says why or why not.
        expected_regret: of choosing now; `expected_after` of choosing after the batch.
        tolerance: regret that is small enough.
        choose_now: the mixture that would be chosen now.
        flops: of the batch.
        runs: in the order of their choice; empty when stopping.
    """

    stop: bool
    reason: str
    expected_regret: float
    expected_after: float
    tolerance: float
    choose_now: dict[str, float]
    flops: float
    runs: list[NextRun]

    def write(self, folder: Path) -> None:
        """Write `suggest.json`, and for the runs `ratios.csv` and `runs.csv` (id, scale, flops, gain)."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(folder / "suggest.json", text.encode())
        if self.runs:
            Ratios.of({run.id: run.weights for run in self.runs}).write_csv(folder / "ratios.csv")
            stream = io.StringIO()
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerows([("id", "scale", "flops", "gain"), *((r.id, r.scale, r.flops, r.gain) for r in self.runs)])
            write_atomically(folder / "runs.csv", stream.getvalue().encode())

    def summary(self) -> dict[str, Any]:
        """The advice in a few lines: for manifests and people."""
        runs = {run.id: {"scale": run.scale, "flops": run.flops, "gain": run.gain} for run in self.runs}
        return {"stop": self.stop, "reason": self.reason, "expected_regret": self.expected_regret,
                "expected_after": self.expected_after, "tolerance": self.tolerance, "flops": self.flops,
                "runs": runs or None}  # fmt: skip


@single_threaded
def suggest(
    fit: Fit, domains: Domains, settings: SuggestSettings | None = None, pool: Ratios | None = None
) -> Suggestion:
    """Choose the next runs.

    Args:
        fit: the law and the runs so far.
        domains: unique tokens of exactly the domains of the fit.
        settings: target, bounds, budget and scales.
        pool: mixtures to choose from, where not any may be run.

    Raises:
        DataError: names differ, the target is unknown, the bounds allow no mixture, or no run fits into the budget.
    """
    settings = settings or SuggestSettings()
    check_same_names("the domains file", domains.names, "the domains of the fit", fit.domains)
    coefficient_M = fit.target(settings.target, settings.target_weights)
    weights_XD, choices, runnable_X = _mixtures(fit, domains.ordered(fit.domains), settings, coefficient_M, pool)
    scales = _scales(fit, settings)
    witnesses, drift = _witnesses(fit, scales, float((fit.metrics.values_PM @ coefficient_M).var()))
    belief = Posterior.of(fit, coefficient_M, weights_XD, choices, drift, settings.resamples, settings.seed)
    tolerance = LEAST_REGRET * _held_out_error(fit, coefficient_M) if settings.regret is None else settings.regret
    regret = belief.expected_regret(settings.seed)
    chosen = dict(zip(fit.domains, weights_XD[belief.best].tolist(), strict=True))
    told = {"expected_regret": regret, "tolerance": tolerance, "choose_now": chosen}
    if regret <= tolerance:
        reason = f"choosing now is expected to cost {regret:.3g}, within the tolerance of {tolerance:.3g}"
        return Suggestion(stop=True, reason=reason, expected_after=regret, flops=0, runs=[], **told)
    runs, after = _batch(belief, weights_XD, runnable_X, list(zip(scales, witnesses, strict=True)), settings, fit)
    if not runs:
        reason = "no run that may be made is expected to lower the loss of what is chosen"
        return Suggestion(stop=True, reason=reason, expected_after=regret, flops=0, runs=[], **told)
    flops = sum(run.flops for run in runs)
    reason = f"choosing now is expected to cost {regret:.3g}, above the tolerance of {tolerance:.3g}"
    later = after.expected_regret(settings.seed)
    return Suggestion(stop=False, reason=reason, expected_after=later, flops=flops, runs=runs, **told)


def _held_out_error(fit: Fit, coefficient_M: np.ndarray) -> float:
    return float(np.sqrt(np.mean(((fit.metrics.values_PM - fit.held_out_PM) @ coefficient_M) ** 2)))


def _mixtures(
    fit: Fit, domains: Domains, settings: SuggestSettings, coefficient_M: np.ndarray, pool: Ratios | None
) -> tuple[np.ndarray, int, np.ndarray]:
    """All mixtures (X, D), how many of the first may be chosen, and which may be run."""
    space = settings.space(domains)
    tried_PD = fit.ratios.weights_PD
    if pool is not None:
        rows_PD = pool.ordered(fit.domains).weights_PD
        rows_PD = rows_PD[space.contains(rows_PD)]
        if not len(rows_PD):
            raise DataError("no candidate lies within the bounds; loosen them or give other candidates")
        distance_P = np.abs(rows_PD[:, None] - tried_PD[None]).sum(axis=2).min(axis=1)
        return rows_PD, len(rows_PD), distance_P > 1e-9
    held = proportional(domains)
    prior_D = space.project(np.array([[held[name] for name in fit.domains]]))[0]
    region = Region(space, np.concatenate([prior_D[None], tried_PD]), "free", settings.seed)
    objective = Objective(fit.law, coefficient_M, prior_D)
    best_D = region.lowest(objective)
    laws = fit.refit(resamples_of(fit, OPTIMA, settings.seed)) if objective.slope(prior_D) is not None else ()
    optima_RD = optima(objective, laws, region, best_D) if laws else best_D[None]
    design = DesignSettings(seed=settings.seed)
    drawn_PD = candidates(space, prior_D, design, settings.pool)
    between_PD = (drawn_PD[: settings.pool // 2] + best_D) / 2
    rows_PD = np.concatenate([best_D[None], optima_RD, prior_D[None], drawn_PD, between_PD])
    rows_PD = space.written(space.project(rows_PD))
    rows_PD = rows_PD[np.sort(np.unique(rows_PD, axis=0, return_index=True)[1])]
    return rows_PD, len(rows_PD), np.ones(len(rows_PD), bool)


def _scales(fit: Fit, settings: SuggestSettings) -> list[Scale | None]:
    """Scales from the smallest to the largest; none is known where neither the settings nor the fit name one."""
    if settings.scales:
        scales = sorted((Scale.parse(text) for text in settings.scales), key=lambda scale: scale.order)
    else:
        scales = [scale] if (scale := Scale.of_label(fit.settings.scale)) else []
    if unknown := next((scale for scale in scales if scale.tokens is None), None):
        raise DataError(f"scale {unknown} names no tokens, so its cost is not known; write it as {unknown}/1B")
    if not scales and settings.budget_flops is not None:
        raise DataError("a budget of FLOPs needs the cost of a run: give --scales, such as --scales 1M/1B,60M/1.2B")
    return list(scales) or [None]


def _witnesses(fit: Fit, scales: Sequence[Scale | None], spread: float) -> tuple[list[Witness], float]:
    """What a run at each scale tells of the largest one, and the variance of what changes on the way there."""
    known = [scale for scale in scales if scale]
    if not known:
        return [Witness()], 0.0
    own = Scale.of_label(fit.settings.scale) or known[0]
    way = math.log(max(scale.params for scale in (*known, own)) / own.params)
    found = []
    for scale in known:
        gone = math.log(scale.params / own.params)
        found.append(Witness(max(gone, 0.0) / way if way else 1.0, spread * DRIFT * max(-gone, 0.0)))
    return found, spread * DRIFT * way


def _batch(
    belief: Posterior, weights_XD: np.ndarray, runnable_X: np.ndarray, kinds: Sequence[tuple[Scale | None, Witness]],
    settings: SuggestSettings, fit: Fit,
) -> tuple[list[NextRun], Posterior]:  # fmt: skip
    costs = [flops_of(scale) if scale else 1.0 for scale, _ in kinds]
    left = math.inf if settings.budget_flops is None else settings.budget_flops
    if min(costs) > left:
        raise DataError(f"the budget of {left:.3g} FLOPs buys no run: the cheapest costs {min(costs):.3g}")
    runs: list[NextRun] = []
    while len(runs) < settings.batch:
        share = 0.0 if math.isinf(left) else left / (settings.batch - len(runs))  # a run that costs less saves nothing
        offers = [(float(gain_X.max()) / max(cost, share), turn, int(np.argmax(gain_X)), float(gain_X.max()))
                  for turn, (cost, (_, witness)) in enumerate(zip(costs, kinds, strict=True)) if cost <= left
                  for gain_X in [np.where(runnable_X, belief.gains(witness), 0.0)]]  # fmt: skip
        if not offers or not max(offers)[0] > 0:
            break
        _, turn, pick, gain = max(offers, key=lambda offer: offer[0])
        scale, witness = kinds[turn]
        flops = costs[turn] if scale else 0.0
        weights = dict(zip(fit.domains, weights_XD[pick].tolist(), strict=True))
        named = str(scale) if scale else None
        runs.append(NextRun(id=_fresh(fit, len(runs)), scale=named, flops=flops, gain=gain, weights=weights))
        belief, left = belief.after(pick, witness), left - costs[turn]
        runnable_X = runnable_X & (np.arange(len(runnable_X)) != pick)
    return runs, belief


def _fresh(fit: Fit, turn: int) -> str:
    """An id that no run has: numbers go on where the swarm's end."""
    return f"next-{len(fit.ratios.ids) + turn + 1:04d}"
