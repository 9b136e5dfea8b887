"""Design a swarm: which mixtures to train proxies on.

Candidates are drawn the way RegMix draws them (Dirichlet around a flattened prior, over many strengths, so that both
near-prior and near-vertex mixtures occur), moved into the feasible set, and thinned by a greedy D-optimal choice: on
RegMix's published runs 48 so chosen proxies predict as well as 512 random ones. The prior itself is always the first
run. A choice can be made from mixtures that exist, too. P candidates, D domains, F points of a reference measure.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from mixtures.bounds import Bounds
from mixtures.closed_forms import temperature
from mixtures.mixture import Domains, check_same_names
from mixtures.simplex import Simplex
from mixtures.tables import Ratios
from pipelines.errors import DataError, RecipeError

ANCHOR = "prior"
POOL_PER_RUN, POOL_LEAST, POOL_MOST = 30, 1000, 20_000
ROUNDS = 20  # how often drawing is repeated when too few distinct mixtures came out
STRENGTHS = 15  # RegMix draws from a geometric grid of so many strengths
REFERENCE = 512  # points that stand for the deployment region
NEGLIGIBLE = 1e-30  # of weight: below it nothing but overflow is to be had
NOISE = 1e-2  # of a run, against the kernel's variance of 1: the choice is not drawn to repeat what is known


class DesignSettings(Bounds):
    """How to draw a swarm, within the bounds that the final run must keep.

    Attributes:
        kind: `d-optimal` thins RegMix's candidates so that they lie as far apart as they go, `i-optimal` so that the
            reference is known best; `regmix` takes them as they come, `dirichlet` draws around the prior.
        seed: of the draws.
        prior_tau: temperature of the prior that anchors the swarm; 1 is token-proportional.
        flatten: RegMix's power of the prior in its Dirichlet.
        weakest, strongest: range of RegMix's strengths, a geometric grid.
        concentration: strength of `dirichlet`, and of the reference around the prior.
        most_usage: reject a candidate that gives a domain more than this many times its prior (RegMix: 15).
        least_weight: smaller weights become 0, and the others whole multiples of it (RegMix: 2e-4).
        reference: the deployment region that `i-optimal` wants to know: `candidates` is all that could be drawn,
            `prior` a Dirichlet around the prior inside the bounds.
        replicates: extra rows for further seeds, of the prior and of the mixture nearest to a vertex each, named
            `prior-seed1`: how much seeds differ is known from them.
    """

    kind: Literal["d-optimal", "i-optimal", "regmix", "dirichlet"] = "d-optimal"
    seed: int = 0
    prior_tau: Annotated[float, Field(gt=0)] = 1.0
    flatten: Annotated[float, Field(gt=0, le=1)] = 0.5
    weakest: Annotated[float, Field(gt=0)] = 0.1
    strongest: Annotated[float, Field(gt=0)] = 5.0
    concentration: Annotated[float, Field(gt=0)] = 16.0
    most_usage: Annotated[float, Field(gt=1)] = 15.0
    least_weight: Annotated[float, Field(ge=0, lt=1)] = 2e-4
    reference: Literal["prior", "candidates"] = "candidates"
    replicates: Annotated[int, Field(ge=0)] = 0

    @property
    def is_chosen(self) -> bool:
        """Whether the runs are chosen among candidates."""
        return self.kind in ("d-optimal", "i-optimal")


def design_swarm(
    domains: Domains, runs: int, settings: DesignSettings | None = None, pool: Ratios | None = None
) -> Ratios:
    """Draw the mixtures of a swarm, or choose them from mixtures that exist.

    Args:
        domains: what there is.
        runs: how many mixtures, the prior included and replicates not.
        settings: how to draw or choose them.
        pool: mixtures to choose from; they keep their ids, and the prior is not added.

    Returns:
        `runs` distinct mixtures, drawn ones in whole millionths; the first is the anchor: the prior, or the mixture of
        the pool nearest to it. Replicates follow. The order of the domains in their file changes the order of the
        columns and nothing else.

    Raises:
        DataError: no run is asked for, or the feasible set is empty or holds fewer distinct mixtures than asked for.
        RecipeError: a pool was given to a kind that only draws.
    """
    settings = settings or DesignSettings()
    if runs < 1:
        raise DataError(f"a swarm of {runs} mixtures was asked for; expected at least 1")
    by_name = Domains(domains=tuple(sorted(domains.domains, key=lambda domain: domain.name)))
    space = settings.space(by_name)
    weights = temperature(by_name, settings.prior_tau)
    prior_D = np.array([weights[name] for name in by_name.names])
    drawn = _drawn(space, prior_D, settings, runs) if pool is None else _existing(space, prior_D, settings, pool)
    if len(drawn.ids) < runs:
        raise DataError(
            f"{runs} distinct mixtures were asked for, but only {len(drawn.ids)} were found under these "
            "caps and floors; ask for fewer or loosen them"
        )
    chosen = _chosen(space, prior_D, settings, drawn.weights_PD, runs)
    ids = tuple(drawn.ids[row] for row in chosen) if pool else drawn.ids[:runs]
    swarm = Ratios(ids, by_name.names, drawn.weights_PD[chosen], drawn.rounded)
    return _replicated(swarm, settings.replicates).ordered(domains.names)


def _drawn(space: Simplex, prior_D: np.ndarray, settings: DesignSettings, runs: int) -> Ratios:
    """Distinct candidates, the prior first."""
    anchor_1D = space.written(space.project(prior_D[None]))
    size = max(runs, min(max(POOL_PER_RUN * runs, POOL_LEAST), POOL_MOST)) if settings.is_chosen else runs
    pool_PD = _distinct(np.concatenate([anchor_1D, candidates(space, prior_D, settings, size)]))
    ids = (ANCHOR, *(f"mix-{number:04d}" for number in range(1, len(pool_PD))))
    return Ratios(ids, space.names, pool_PD)


def _existing(space: Simplex, prior_D: np.ndarray, settings: DesignSettings, pool: Ratios) -> Ratios:
    """What the bounds allow of a pool, the mixture nearest to the prior first; equal mixtures count once."""
    if not settings.is_chosen:
        raise RecipeError(f"kind {settings.kind!r} draws mixtures; to choose from a table use d-optimal or i-optimal")
    check_same_names("the table of candidates", pool.domains, "the domains", space.names)
    order = sorted(range(len(pool.ids)), key=pool.ids.__getitem__)
    weights_PD = pool.ordered(space.names).weights_PD[order]
    rows = np.flatnonzero(space.contains(weights_PD))
    rows = rows[np.sort(np.unique(weights_PD[rows], axis=0, return_index=True)[1])]
    if len(rows):
        nearest = int(np.argmin(((np.sqrt(weights_PD[rows]) - np.sqrt(prior_D)) ** 2).sum(axis=1)))
        rows = np.concatenate([rows[[nearest]], np.delete(rows, nearest)])
    return Ratios(tuple(pool.ids[order[row]] for row in rows), space.names, weights_PD[rows], pool.rounded)


def _chosen(
    space: Simplex, prior_D: np.ndarray, settings: DesignSettings, pool_PD: np.ndarray, runs: int
) -> np.ndarray:
    if settings.kind == "d-optimal":
        return d_optimal(pool_PD, runs)
    if settings.kind == "i-optimal":
        return i_optimal(pool_PD, runs, _reference(space, prior_D, settings, pool_PD))
    return np.arange(runs)


def _reference(space: Simplex, prior_D: np.ndarray, settings: DesignSettings, pool_PD: np.ndarray) -> np.ndarray:
    if settings.reference == "candidates":
        return pool_PD
    random = np.random.default_rng(settings.seed)
    return space.project(dirichlet(random, np.tile(settings.concentration * prior_D, (REFERENCE, 1))))


def _replicated(swarm: Ratios, count: int) -> Ratios:
    """The swarm with further rows for seeds of its anchor and of the mixture with the largest single weight."""
    extreme = int(np.argmax(swarm.weights_PD.max(axis=1)))
    rows = [row for row in dict.fromkeys((0, extreme)) for _ in range(count)]
    ids = tuple(f"{swarm.ids[row]}-seed{turn % count + 1}" for turn, row in enumerate(rows))
    weights_PD = np.concatenate([swarm.weights_PD, swarm.weights_PD[rows]])
    return Ratios(swarm.ids + ids, swarm.domains, weights_PD, swarm.rounded)


def candidates(space: Simplex, prior_D: np.ndarray, settings: DesignSettings, wanted: int) -> np.ndarray:
    """Draw at least `wanted` distinct mixtures of the space, or as many as ROUNDS of drawing find: (P, D)."""
    random = np.random.default_rng(settings.seed)
    found_PD = np.empty((0, len(prior_D)))
    for _ in range(ROUNDS):
        drawn_PD = draw(random, prior_D, settings, 2 * wanted)
        allowed_PD = drawn_PD[(drawn_PD <= settings.most_usage * prior_D + 1e-9).all(axis=1)]
        inside_PD = space.written(space.project(quantised(allowed_PD, settings.least_weight)))
        found_PD = _distinct(np.concatenate([found_PD, inside_PD]))
        if len(found_PD) >= wanted:
            break
    return found_PD[: wanted + 1]  # one more: the anchor may be among them


def _distinct(rows_PD: np.ndarray) -> np.ndarray:
    return rows_PD[np.sort(np.unique(rows_PD, axis=0, return_index=True)[1])]


def quantised(weights_PD: np.ndarray, unit: float) -> np.ndarray:
    """Weights below `unit` become 0, the others whole multiples of it that still sum to 1, by largest remainder.

    Args:
        weights_PD: rows that sum to 1.
        unit: one over a whole number, or 0 to leave everything as it is.
    """
    if not unit or not len(weights_PD):
        return weights_PD
    whole = round(1 / unit)
    kept_PD = np.where(weights_PD < unit, 0.0, weights_PD)
    exact_PD = kept_PD / kept_PD.sum(axis=1, keepdims=True) * whole
    count_PD = np.floor(exact_PD + 1e-9)
    rank_PD = np.argsort(np.argsort(count_PD - exact_PD, axis=1, kind="stable"), axis=1, kind="stable")
    return (count_PD + (rank_PD < whole - count_PD.sum(axis=1, keepdims=True))) / whole


def draw(random: np.random.Generator, prior_D: np.ndarray, settings: DesignSettings, count: int) -> np.ndarray:
    """Dirichlet draws (P, D): RegMix's grid of strengths on the flattened prior, or one strength on the prior."""
    if settings.kind == "dirichlet":
        shape_PD = np.tile(settings.concentration * prior_D, (count, 1))
    else:
        flat_D = prior_D**settings.flatten
        strength_P = random.choice(np.geomspace(settings.weakest, settings.strongest, STRENGTHS), size=count)
        shape_PD = strength_P[:, None] * flat_D / flat_D.sum()
    return dirichlet(random, shape_PD)


def dirichlet(random: np.random.Generator, shape_PD: np.ndarray) -> np.ndarray:
    """One Dirichlet draw per row of shapes, in logs: shapes of 1e-3 would underflow as plain gamma draws."""
    uniform_PD = random.uniform(np.finfo(float).tiny, 1.0, shape_PD.shape)
    log_gamma_PD = np.log(random.standard_gamma(shape_PD + 1)) + np.log(uniform_PD) / shape_PD
    weights_PD = np.exp(log_gamma_PD - log_gamma_PD.max(axis=1, keepdims=True))
    weights_PD[weights_PD < NEGLIGIBLE] = 0
    return weights_PD / weights_PD.sum(axis=1, keepdims=True)


def kernel_of(pool_PD: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A Gaussian kernel on square roots of weights, where losses are close to linear; its width is the pool's."""
    roots_PD = np.sqrt(pool_PD)
    spread = float(((roots_PD - roots_PD.mean(axis=0)) ** 2).sum(axis=1).mean())
    width = max(2 * spread, 1e-12)  # mean squared distance of a pair

    def kernel(left_PD: np.ndarray, right_FD: np.ndarray) -> np.ndarray:
        left_PD, right_FD = np.sqrt(left_PD), np.sqrt(right_FD)
        norms_PF = (left_PD**2).sum(axis=1)[:, None] + (right_FD**2).sum(axis=1)
        return np.exp(-np.maximum(norms_PF - 2 * left_PD @ right_FD.T, 0) / width)

    return kernel


def d_optimal(pool_PD: np.ndarray, count: int) -> np.ndarray:
    """Choose rows greedily for the largest determinant, the first row being given.

    Each choice is the candidate with the largest posterior variance, which is a pivoted Cholesky factorization.

    Args:
        pool_PD: candidates.
        count: how many to choose.

    Returns:
        int (count,), indices in the order chosen.
    """
    kernel = kernel_of(pool_PD)
    variance_P, factor_PC = np.ones(len(pool_PD)), np.zeros((len(pool_PD), count))
    chosen = np.zeros(count, int)
    for turn in range(count):
        pick = 0 if turn == 0 else int(np.argmax(variance_P))
        column_P = kernel(pool_PD, pool_PD[[pick]])[:, 0] - factor_PC[:, :turn] @ factor_PC[pick, :turn]
        factor_PC[:, turn] = column_P / np.sqrt(max(variance_P[pick], 1e-12))
        variance_P = variance_P - factor_PC[:, turn] ** 2
        chosen[turn] = pick
        variance_P[chosen[: turn + 1]] = -np.inf
    return chosen


def i_optimal(pool_PD: np.ndarray, count: int, reference_FD: np.ndarray) -> np.ndarray:
    """Choose rows greedily for the least mean posterior variance over a reference, the first row being given.

    Args:
        pool_PD: candidates.
        count: how many to choose.
        reference_FD: mixtures that stand for where predictions are wanted: the deployment region.

    Returns:
        int (count,), indices in the order chosen.
    """
    kernel = kernel_of(pool_PD)
    cross_PF = kernel(pool_PD, reference_FD)
    variance_P, factor_PC = np.full(len(pool_PD), 1 + NOISE), np.zeros((len(pool_PD), count))
    chosen = np.zeros(count, int)
    for turn in range(count):
        saved_P = (cross_PF**2).sum(axis=1) / np.maximum(variance_P, NOISE)
        saved_P[chosen[:turn]] = -np.inf
        pick = 0 if turn == 0 else int(np.argmax(saved_P))
        column_P = kernel(pool_PD, pool_PD[[pick]])[:, 0] - factor_PC[:, :turn] @ factor_PC[pick, :turn]
        column_P[pick] += NOISE  # the run is measured with noise, other candidates share none of it
        deviation = np.sqrt(max(variance_P[pick], NOISE))
        factor_PC[:, turn] = column_P / deviation
        cross_PF = cross_PF - np.outer(factor_PC[:, turn], cross_PF[pick] / deviation)
        variance_P = variance_P - factor_PC[:, turn] ** 2
        chosen[turn] = pick
    return chosen
