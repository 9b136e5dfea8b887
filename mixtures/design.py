"""Design a swarm: which mixtures to train proxies on.

Candidates are drawn the way RegMix draws them (Dirichlet around a flattened prior, over many strengths, so that both
near-prior and near-vertex mixtures occur), moved into the feasible set, and thinned by a greedy D-optimal choice: on
RegMix's published runs 48 so chosen proxies predict as well as 512 random ones. The prior itself is always the first
run. P candidates, D domains.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from mixtures.closed_forms import temperature
from mixtures.mixture import Domains, in_millionths
from mixtures.simplex import Simplex
from mixtures.tables import Ratios
from pipelines.errors import DataError
from pipelines.quantities import Tokens
from pipelines.recipe import Section

ANCHOR = "prior"
POOL_PER_RUN, POOL_LEAST, POOL_MOST = 30, 1000, 20_000
ROUNDS = 20  # how often drawing is repeated when too few distinct mixtures came out


class DesignSettings(Section):
    """How to draw a swarm.

    Attributes:
        kind: `d-optimal` thins RegMix's candidates, `regmix` takes them as they come, `dirichlet` draws around the
            prior.
        seed: of the draws.
        prior_tau: temperature of the prior that anchors the swarm; 1 is token-proportional.
        flatten: RegMix's power of the prior in its Dirichlet.
        weakest, strongest: range of RegMix's strengths, drawn log-uniformly.
        concentration: strength of `dirichlet`.
        most_usage: reject a candidate that gives a domain more than this many times its prior (RegMix: 15).
        least_weight: smaller weights become 0 (RegMix: 2e-4).
        tokens, epoch_cap, floor: the feasible set that the final run must keep.
    """

    kind: Literal["d-optimal", "regmix", "dirichlet"] = "d-optimal"
    seed: int = 0
    prior_tau: Annotated[float, Field(gt=0)] = 1.0
    flatten: Annotated[float, Field(gt=0, le=1)] = 0.5
    weakest: Annotated[float, Field(gt=0)] = 0.1
    strongest: Annotated[float, Field(gt=0)] = 5.0
    concentration: Annotated[float, Field(gt=0)] = 16.0
    most_usage: Annotated[float, Field(gt=1)] = 15.0
    least_weight: Annotated[float, Field(ge=0, lt=1)] = 2e-4
    tokens: Tokens | None = None
    epoch_cap: Annotated[float, Field(gt=0)] | None = None
    floor: dict[str, float] = Field(default_factory=dict)


def design_swarm(domains: Domains, runs: int, settings: DesignSettings | None = None) -> Ratios:
    """Draw the mixtures of a swarm.

    Args:
        domains: what there is.
        runs: how many mixtures, the prior included.
        settings: how to draw them.

    Returns:
        `runs` distinct mixtures in whole millionths; the first, `prior`, is the anchor. The order of the
        domains in their file changes the order of the columns and nothing else.

    Raises:
        DataError: no run is asked for, or the feasible set is empty or holds fewer distinct mixtures than asked for.
    """
    settings = settings or DesignSettings()
    if runs < 1:
        raise DataError(f"a swarm of {runs} mixtures was asked for; expected at least 1")
    by_name = Domains(domains=tuple(sorted(domains.domains, key=lambda domain: domain.name)))
    space = Simplex.of(by_name, settings.tokens, settings.epoch_cap, settings.floor)
    weights = temperature(by_name, settings.prior_tau)
    prior_D = np.array([weights[name] for name in by_name.names])
    anchor_1D = _written(space.project(prior_D[None]), space)
    pool_PD = np.concatenate([anchor_1D, candidates(space, prior_D, settings, _pool_size(runs, settings.kind))])
    pool_PD = pool_PD[np.sort(np.unique(pool_PD, axis=0, return_index=True)[1])]
    if len(pool_PD) < runs:
        raise DataError(
            f"{runs} distinct mixtures were asked for, but only {len(pool_PD)} were found under these "
            "caps and floors; ask for fewer or loosen them"
        )
    anchor = int(np.flatnonzero((pool_PD == anchor_1D).all(axis=1))[0])
    pool_PD = np.concatenate([anchor_1D, np.delete(pool_PD, anchor, axis=0)])
    chosen = d_optimal(pool_PD, runs) if settings.kind == "d-optimal" else np.arange(runs)
    ids = (ANCHOR, *(f"mix-{number:04d}" for number in range(1, runs)))
    return Ratios(ids, by_name.names, pool_PD[chosen]).ordered(domains.names)


def _pool_size(runs: int, kind: str) -> int:
    return runs if kind != "d-optimal" else max(runs, min(max(POOL_PER_RUN * runs, POOL_LEAST), POOL_MOST))


def candidates(space: Simplex, prior_D: np.ndarray, settings: DesignSettings, wanted: int) -> np.ndarray:
    """Draw at least `wanted` distinct mixtures of the space, or as many as ROUNDS of drawing find: (P, D)."""
    random = np.random.default_rng(settings.seed)
    found_PD = np.empty((0, len(prior_D)))
    for _ in range(ROUNDS):
        drawn_PD = draw(random, prior_D, settings, 2 * wanted)
        allowed_PD = drawn_PD[(drawn_PD <= settings.most_usage * prior_D + 1e-9).all(axis=1)]
        trimmed_PD = np.where(allowed_PD < settings.least_weight, 0.0, allowed_PD)
        inside_PD = _written(space.project(trimmed_PD), space)
        found_PD = np.concatenate([found_PD, inside_PD])
        found_PD = found_PD[np.sort(np.unique(found_PD, axis=0, return_index=True)[1])]
        if len(found_PD) >= wanted:
            break
    return found_PD[: wanted + 1]  # one more: the anchor may be among them


def draw(random: np.random.Generator, prior_D: np.ndarray, settings: DesignSettings, count: int) -> np.ndarray:
    """Dirichlet draws (P, D): RegMix's range of strengths on the flattened prior, or one strength on the prior."""
    if settings.kind == "dirichlet":
        shape_PD = np.tile(settings.concentration * prior_D, (count, 1))
    else:
        flat_D = prior_D**settings.flatten
        low, high = np.log(settings.weakest), np.log(settings.strongest)
        shape_PD = np.exp(random.uniform(low, high, count))[:, None] * flat_D / flat_D.sum()
    return dirichlet(random, shape_PD)


def dirichlet(random: np.random.Generator, shape_PD: np.ndarray) -> np.ndarray:
    """One Dirichlet draw per row of shapes, in logs: shapes of 1e-3 would underflow as plain gamma draws."""
    uniform_PD = random.uniform(np.finfo(float).tiny, 1.0, shape_PD.shape)
    log_gamma_PD = np.log(random.standard_gamma(shape_PD + 1)) + np.log(uniform_PD) / shape_PD
    weights_PD = np.exp(log_gamma_PD - log_gamma_PD.max(axis=1, keepdims=True))
    return weights_PD / weights_PD.sum(axis=1, keepdims=True)


def d_optimal(pool_PD: np.ndarray, count: int) -> np.ndarray:
    """Choose rows greedily for the largest determinant, the first row being given.

    The kernel is Gaussian on square roots of weights, where losses are close to linear; each choice is the candidate
    with the largest posterior variance, which is a pivoted Cholesky factorization.

    Args:
        pool_PD: candidates.
        count: how many to choose.

    Returns:
        int (count,), indices in the order chosen.
    """
    roots_PD = np.sqrt(pool_PD)
    norm_P = (roots_PD**2).sum(axis=1)
    middle_D = roots_PD.mean(axis=0)
    width = max(2 * float(((roots_PD - middle_D) ** 2).sum(axis=1).mean()), 1e-12)  # mean squared distance of a pair
    variance_P, factor_PC = np.ones(len(pool_PD)), np.zeros((len(pool_PD), count))
    chosen = np.zeros(count, int)
    for turn in range(count):
        pick = 0 if turn == 0 else int(np.argmax(variance_P))
        distance_P = np.maximum(norm_P + norm_P[pick] - 2 * roots_PD @ roots_PD[pick], 0)
        column_P = np.exp(-distance_P / width) - factor_PC[:, :turn] @ factor_PC[pick, :turn]
        factor_PC[:, turn] = column_P / np.sqrt(max(variance_P[pick], 1e-12))
        variance_P = variance_P - factor_PC[:, turn] ** 2
        chosen[turn] = pick
        variance_P[chosen[: turn + 1]] = -np.inf
    return chosen


def _written(weights_PD: np.ndarray, space: Simplex) -> np.ndarray:
    """Round rows to whole millionths inside the caps."""
    rows = [in_millionths(row, space.upper_D.tolist()) for row in weights_PD.tolist()]
    return np.array(rows, float).reshape(weights_PD.shape)
