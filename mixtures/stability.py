"""How sure a proposal is: the same search on laws that were refitted to resampled swarms.

A bootstrap draws the runs anew, with replacement; each resample has a law and an optimum of its own. How far these lie
apart is the stability of the optimum; their spread in each domain is its interval; and how often a mixture is the best
of all candidates is its chance of being so. Held-out errors of the law are added there, since refits share its bias.
An optimum that is not stable is steadied: a smoother law guides the search, and a pull towards the prior may help, as
long as the chosen law sees only a small part of the improvement lost. Averaging the optima over resamples does not
help (docs/proposals.md). R resamples, D domains, C candidates, E draws of errors, P runs.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mixtures.descent import Objective
from mixtures.fitting import Fit
from mixtures.guide import Guide
from mixtures.law_base import FittedLaw
from mixtures.optimum import Region
from pipelines.recipe import Section

STEADY = 0.05  # mean L1 distance between optima of two resamples that counts as stable
SHARE = 0.15  # of the improvement over the prior that steadying may cost at most
FEW_RESAMPLES = 8  # of laws without a gradient, whose fits and searches are slow
ERRORS = 100  # draws of held-out errors for each refit
NARROW = 1.2815515655446004  # the 80% interval of a normal error, in standard deviations
TOLD = 1.959963984540054 + 0.8416212335729143  # 95% level, 80% power


class Stability(Section):
    """How far the optima of resampled swarms lie apart.

    Attributes:
        distance: mean L1 distance between two of them, as proposed.
        plain: the same for the chosen law without any of this.
        guide: the law that the optimum was found by.
        pull: strength of the pull, in units of the target per nat of KL(w || prior).
        cost: what guide and pull add to the target that the chosen law predicts.
        resamples: how many swarms.
    """

    distance: float
    plain: float
    guide: str
    pull: float
    cost: float
    resamples: int


class Standing(Section):
    """How a candidate stands among the others.

    Attributes:
        predicted: its predicted target.
        p_best: chance that a new run of it is the best of a new run of each.
        expected_regret: mean over resamples of its loss minus the lowest that the resample's law allows.
    """

    predicted: float
    p_best: float
    expected_regret: float


@dataclass(frozen=True, eq=False)
class Steadied:
    """An optimum with those of the resamples.

    Attributes:
        objective: with the pull that was chosen.
        weights_D: its optimum by the law fitted to all runs.
        optima_RD: its optima by the resampled laws.
        stability: how far they lie apart.
    """

    objective: Objective
    weights_D: np.ndarray
    optima_RD: np.ndarray
    stability: Stability


def resamples_of(fit: Fit, count: int, seed: int) -> np.ndarray:
    """How often each run is in each of `count` swarms drawn with replacement from the runs: (R, P)."""
    runs = len(fit.ratios.ids)
    return np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=count).astype(float)


def pairwise_distance(optima_RD: np.ndarray) -> float:
    """Mean L1 distance between two rows."""
    rows, others = np.triu_indices(len(optima_RD), 1)
    return float(np.abs(optima_RD[rows] - optima_RD[others]).sum(axis=1).mean()) if len(rows) else 0.0


def optima(objective: Objective, laws: Sequence[FittedLaw], region: Region, near_D: np.ndarray) -> np.ndarray:
    """The optimum by each law (R, D), searched from `near_D`, without risk: a resample is one possible truth."""
    return np.stack([region.lowest(replace(objective, law=law, risk=None), near_D) for law in laws])


def steadied(
    objective: Objective, region: Region, found_by: Iterable[Guide], pull: float | None, allowance: float
) -> Steadied:
    """Find the optimum, steadied where the law's own is not stable.

    Args:
        objective: what to minimise; its own strength is not looked at.
        region: where.
        found_by: laws to search by, the chosen one first, with their refits.
        pull: strength of the pull towards the prior; None lets law and pull be found, else the chosen law is searched.
        allowance: how much of the predicted improvement over the prior steadying may cost.
    """
    plain = replace(objective, strength=pull or 0.0)
    start_D = region.lowest(plain)
    lowest, prior = plain.values(np.stack([start_D, plain.prior_D])).tolist()
    most = min(allowance, SHARE * (prior - lowest))
    best: Steadied | None = None
    for guide, strength in _options(found_by, most):
        coefficient_M = objective.coefficient_M[guide.metrics]
        by_guide = replace(plain, law=guide.law, coefficient_M=coefficient_M, strength=plain.strength + strength)
        weights_D = start_D if best is None else region.lowest(by_guide, start_D)
        cost = max(plain.value(weights_D) - lowest, 0.0)
        if best is not None and cost > most:
            continue
        found_RD = optima(by_guide, guide.laws, region, weights_D) if guide.laws else start_D[None][:0]
        distance = pairwise_distance(found_RD)
        told = Stability(distance=distance, plain=best.stability.plain if best else distance, guide=guide.name,
                         pull=by_guide.strength, cost=cost, resamples=len(guide.laws))  # fmt: skip
        if best is None or distance < best.stability.distance:
            best = Steadied(by_guide, weights_D, found_RD, told)
        if pull is not None or best.stability.distance <= STEADY:
            break
    assert best is not None
    return best


def _options(found_by: Iterable[Guide], pull: float) -> Iterator[tuple[Guide, float]]:
    """Every guide as it comes, then every one with a pull towards the prior: what is not asked for is not fitted."""
    seen: list[Guide] = []
    for guide in found_by:
        seen.append(guide)
        yield guide, 0.0
    yield from ((guide, pull) for guide in seen)


def standings(
    objective: Objective, laws: Sequence[FittedLaw], best_R: np.ndarray, candidates: Mapping[str, np.ndarray],
    error_C: np.ndarray, seed: int,
) -> tuple[dict[str, Standing], np.ndarray]:  # fmt: skip
    """Compare candidates over resampled laws and held-out errors.

    Args:
        objective: what counts.
        laws: of resampled swarms.
        best_R: the lowest loss that each allows.
        candidates: name -> weights; of equal ones only the first is named best.
        error_C: standard deviation of a new run's held-out error at each.
        seed: of the draws of errors.

    Returns:
        Standing by name, and the drawn losses (R x E, C).
    """
    weights_CD = np.stack(list(candidates.values()))
    loss_RC = np.stack([law.predict(weights_CD) @ objective.coefficient_M for law in laws])
    same_CC = np.abs(weights_CD[:, None] - weights_CD[None]).sum(axis=2) < 1e-9
    draw_REC = np.random.default_rng(seed).normal(size=(len(laws), ERRORS, len(weights_CD))) * error_C
    draw_REC = draw_REC[:, :, np.argmax(same_CC, axis=1)]  # equal mixtures are one
    drawn_NC = (loss_RC[:, None] + draw_REC).reshape(-1, len(weights_CD))
    wins_C = np.bincount(np.argmin(drawn_NC, axis=1), minlength=len(weights_CD)) / len(drawn_NC)
    regret_C = (loss_RC - best_R[:, None]).mean(axis=0)
    loss_C = objective.loss(weights_CD)
    rows = zip(candidates, loss_C.tolist(), wins_C.tolist(), regret_C.tolist(), strict=True)
    told = {name: Standing(predicted=loss, p_best=wins, expected_regret=max(regret, 0.0))
            for name, loss, wins, regret in rows}  # fmt: skip
    return told, drawn_NC


def smallest_told(gains_N: np.ndarray) -> float:
    """The least true improvement that such draws would tell from none: 95% level, 80% power."""
    return TOLD * float(gains_N.std())


def weight_intervals(names: Sequence[str], optima_RD: np.ndarray) -> dict[str, tuple[float, float]]:
    """The central 80% of each domain's weight over the optima of the resamples."""
    low_D, high_D = np.quantile(optima_RD, [0.1, 0.9], axis=0)
    return {name: (float(low), float(high)) for name, low, high in zip(names, low_D, high_D, strict=True)}
