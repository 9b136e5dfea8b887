"""Do two tables of runs over the same mixtures agree: dense proxies with mixtures of experts, small runs with large?

One side chooses (`proxy`), the other decides whether the choice was right (`truth`). Mixtures, not runs, are what is
counted and resampled: seeds of one mixture are averaged, and their spread is the noise that every pair is held against,
so that a side may abstain. Decision accuracy follows DataDecide (arXiv:2504.11393). P mixtures, R resamples.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from mixtures.mixture import check_same_names
from mixtures.scores import spearman, student_quantile
from mixtures.tables import Metrics, Ratios
from pipelines.errors import DataError
from pipelines.recipe import Section

LEAST_MIXTURES = 4
MEAN = "mean"
SEED = re.compile(r"-seed\d+$")  # replicates of mixture `prior` are `prior-seed1`, `prior-seed2`


class AgreementSettings(Section):
    """How two tables are compared.

    Attributes:
        top: k of regret@k: the best of the k mixtures that the proxy ranks first.
        level: of the bootstrap intervals, and of the difference at which a side decides a pair.
        resamples: of the mixtures, for intervals.
        seed: of the resamples.
    """

    top: int = Field(default=5, ge=1)
    level: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=1000, ge=1)
    seed: int = 0


class Share(Section):
    """A number with its bootstrap interval over mixtures; None where it is undefined."""

    value: float | None
    lo: float | None
    hi: float | None


class SeedNoise(Section):
    """What seeds do to one side of one metric.

    Attributes:
        sd: standard deviation over seeds of one mixture, pooled; None without replicates.
        freedom: degrees of freedom of `sd`.
        signal_to_noise: standard deviation over mixtures divided by `sd`; below 2 a metric is no evidence.
        reliability: share of the variance over mixtures that is not seeds.
    """

    sd: float | None
    freedom: int
    signal_to_noise: float | None
    reliability: float | None


class ThreeWay(Section):
    """Pairs judged better, worse or undecided: a side abstains where the difference could be seeds.

    Attributes:
        accuracy: pairs on which both sides say the same of the three.
        proxy_decides, truth_decides: share of the pairs that each side decides.
        right_when_decided: of the pairs that the proxy decides, those that the truth's means order alike.
        contradicted: pairs that both decide, in opposite directions.
    """

    accuracy: Share
    proxy_decides: float
    truth_decides: float
    right_when_decided: Share
    contradicted: float


class MetricAgreement(Section):
    """How two sides agree on one metric.

    Attributes:
        spearman, kendall: rank correlation over mixtures (tau-b).
        decision_accuracy: pairs of mixtures that both order alike; a tie counts half.
        repeat_accuracy: what another run of the truth would reach were its measured differences exact: an upper bound.
        attainable_spearman: the correlation that seeds leave possible, root of the product of the reliabilities.
        regret: `1` and `k` -> truth of the best of the proxy's first k, minus the best truth; units of the metric.
        regret_in_noise: regret@1 in standard deviations of the truth over seeds.
        three_way: with abstention; None when a side has no replicates.
        chance: how often mixtures shuffled at random have a rank correlation as far from 0; guards few mixtures, whose
            resamples all agree.
        verdict: `agree` when Spearman's interval is above 0 and chance is ruled out at the level, `contradict` when it
            is below, else `not shown`.
    """

    spearman: Share
    kendall: Share
    decision_accuracy: Share
    repeat_accuracy: float | None
    attainable_spearman: float | None
    regret: dict[str, Share]
    regret_in_noise: float | None
    proxy_noise: SeedNoise
    truth_noise: SeedNoise
    three_way: ThreeWay | None
    chance: float
    verdict: str


class Agreement(Section):
    """What came out of a comparison.

    Attributes:
        mixtures: compared, replicates counted once.
        left_out: side -> mixtures that the other side lacks.
        level: of the intervals.
        metrics: by name; `mean` is the mean over the metrics when there are several.
        answer: the outcome in a sentence.
    """

    mixtures: int
    left_out: dict[str, int]
    level: float
    metrics: dict[str, MetricAgreement]
    answer: str


@dataclass(frozen=True, eq=False)
class Side:
    """One side, averaged over seeds.

    Attributes:
        means_PM: float64, mixtures and metrics sorted by name.
        runs_P: seeds of each mixture.
        sd_M: pooled standard deviation over seeds; nan without replicates.
        freedom: its degrees of freedom.
    """

    means_PM: np.ndarray
    runs_P: np.ndarray
    sd_M: np.ndarray
    freedom: int


def agree(
    proxy: Metrics, truth: Metrics, ratios: Ratios | None = None, settings: AgreementSettings | None = None
) -> Agreement:
    """Compare two tables of runs.

    Args:
        proxy: the runs that choose.
        truth: the runs that decide; lower is better on both sides.
        ratios: mixtures of all runs; equal ones are replicates. Without it `x-seed1` and `x-seed2` are.
        settings: levels, resamples.

    Raises:
        DataError: no metric is in both tables, a run has no mixture, or fewer than four mixtures are in both.
    """
    settings = settings or AgreementSettings()
    names = sorted(set(proxy.names) & set(truth.names))
    if not names:
        raise DataError(f"no metric is in both tables: {_few(proxy.names)} against {_few(truth.names)}")
    groups = [groups_of(side.ids, ratios) for side in (proxy, truth)]
    shared = sorted(set(groups[0]) & set(groups[1]))
    if len(shared) < LEAST_MIXTURES:
        raise DataError(
            f"{len(shared)} mixtures are in both tables, at least {LEAST_MIXTURES} are needed; ids must be equal, or "
            "--ratios must tell which runs read the same mixture"
        )
    left, right = (_side(side.select(names), group, shared) for side, group in zip((proxy, truth), groups, strict=True))
    counts_RP = _resamples(len(shared), settings)
    shown = [*names, MEAN] if len(names) > 1 and MEAN not in names else names
    metrics = {
        name: _compare(_pick(left, place), _pick(right, place), counts_RP, settings) for place, name in enumerate(shown)
    }
    left_out = {"proxy": len(groups[0]) - len(shared), "truth": len(groups[1]) - len(shared)}
    return Agreement(mixtures=len(shared), left_out=left_out, level=settings.level, metrics=metrics,
                     answer=_answer(metrics, settings.level))  # fmt: skip


def groups_of(ids: Sequence[str], ratios: Ratios | None) -> dict[str, list[int]]:
    """Rows by the mixture that they read; a mixture is called by the first of its ids in the alphabet.

    Raises:
        DataError: a run is not in `ratios`.
    """
    if ratios is None:
        key_of = {run: SEED.sub("", run) for run in ids}
    else:
        check_same_names("the metrics table", ids, "the runs of the ratios table", ratios.ids, subset=True)
        by_name = ratios.ordered(sorted(ratios.domains))
        rows = [tuple(row) for row in np.round(by_name.weights_PD, 6).tolist()]
        first: dict[tuple[float, ...], str] = {}
        for run, row in sorted(zip(by_name.ids, rows, strict=True)):
            first.setdefault(row, run)
        key_of = {run: first[row] for run, row in zip(by_name.ids, rows, strict=True)}
    groups: dict[str, list[int]] = {}
    for place, run in sorted(enumerate(ids), key=lambda pair: pair[1]):
        groups.setdefault(key_of[run], []).append(place)
    return groups


def _side(table: Metrics, groups: dict[str, list[int]], shared: Sequence[str]) -> Side:
    """Means over seeds, with a last column for the mean over metrics, and the noise that the seeds show."""
    values_PM = np.concatenate([table.values_PM, table.values_PM.mean(axis=1, keepdims=True)], axis=1)
    rows = [groups[name] for name in shared]
    means_PM = np.stack([values_PM[places].mean(axis=0) for places in rows])
    freedom = sum(len(places) - 1 for places in groups.values())
    squares_M = sum(((values_PM[p] - values_PM[p].mean(axis=0)) ** 2).sum(axis=0) for p in groups.values())
    sd_M = np.sqrt(squares_M / freedom) if freedom else np.full(means_PM.shape[1], np.nan)
    return Side(means_PM, np.array([len(places) for places in rows], float), np.asarray(sd_M), freedom)


def _pick(side: Side, metric: int) -> Side:
    return Side(side.means_PM[:, metric], side.runs_P, side.sd_M[metric], side.freedom)


def _resamples(mixtures: int, settings: AgreementSettings) -> np.ndarray:
    """How often each mixture counts: the first row is the data, the others resamples with two or more mixtures."""
    random = np.random.default_rng(settings.seed)
    counts_RP = random.multinomial(mixtures, np.full(mixtures, 1 / mixtures), size=settings.resamples)
    return np.concatenate([np.ones((1, mixtures), int), counts_RP[(counts_RP > 0).sum(axis=1) > 1]])


def _compare(left: Side, right: Side, counts_RP: np.ndarray, settings: AgreementSettings) -> MetricAgreement:
    """All numbers of one metric; the sides hold one column."""
    x_P, y_P = left.means_PM, right.means_PM
    rho_R = [spearman(np.repeat(x_P, counts_P), np.repeat(y_P, counts_P)) for counts_P in counts_RP]
    sign_x_PP, sign_y_PP = (np.sign(v_P[:, None] - v_P[None, :]) for v_P in (x_P, y_P))
    concord_R = pair_sums(sign_x_PP * sign_y_PP, counts_RP)
    norm_R = np.sqrt(pair_sums(sign_x_PP**2, counts_RP) * pair_sums(sign_y_PP**2, counts_RP))
    pairs_R = pair_sums(np.ones_like(sign_x_PP), counts_RP)
    regret = {str(k): _share(regret_R(x_P, y_P, counts_RP, k), settings) for k in sorted({1, settings.top})}
    noises = [_noise(side) for side in (left, right)]
    reliable = [noise.reliability for noise in noises if noise.reliability is not None]
    rho, sd, chance = _share(rho_R, settings), noises[1].sd, _chance(x_P, y_P, settings)
    return MetricAgreement(
        spearman=rho, kendall=_share(_ratio(concord_R, norm_R), settings),
        decision_accuracy=_share(0.5 + 0.5 * _ratio(concord_R, pairs_R), settings),
        repeat_accuracy=None if not sd else _repeat_accuracy(y_P, sd),
        attainable_spearman=float(np.sqrt(np.prod(reliable))) if len(reliable) == 2 else None, regret=regret,
        regret_in_noise=regret["1"].value / sd if sd and regret["1"].value is not None else None,
        proxy_noise=noises[0], truth_noise=noises[1], three_way=_three_way(left, right, counts_RP, settings),
        chance=chance, verdict=_verdict(rho, chance, settings.level),
    )  # fmt: skip


def pair_sums(value_PP: np.ndarray, counts_RP: np.ndarray) -> np.ndarray:
    """Sum over pairs of different mixtures, each as often as the resample holds it: (R,)."""
    upper_PP = np.triu(value_PP.astype(float), 1)
    return ((counts_RP @ upper_PP) * counts_RP).sum(axis=1)


def regret_R(x_P: np.ndarray, y_P: np.ndarray, counts_RP: np.ndarray, top: int) -> np.ndarray:
    """The best truth among the first `top` by the proxy, minus the best truth, among the mixtures of each resample."""
    order_P = np.argsort(x_P, kind="stable")
    there_RP = counts_RP[:, order_P] > 0
    taken_RP = there_RP & (np.cumsum(there_RP, axis=1) <= top)
    truth_P = y_P[order_P]
    best_of = [np.where(mask_RP, truth_P, np.inf).min(axis=1) for mask_RP in (taken_RP, there_RP)]
    return best_of[0] - best_of[1]


def _three_way(left: Side, right: Side, counts_RP: np.ndarray, settings: AgreementSettings) -> ThreeWay | None:
    if not (left.freedom and right.freedom):
        return None
    says_x_PP, says_y_PP = (_says(side, settings.level) for side in (left, right))
    sign_y_PP = np.sign(right.means_PM[:, None] - right.means_PM[None, :])
    pairs_R = pair_sums(np.ones_like(says_x_PP), counts_RP)
    decided_R = pair_sums(says_x_PP**2, counts_RP)
    right_R = pair_sums(says_x_PP**2 * (1 + says_x_PP * sign_y_PP) / 2, counts_RP)
    return ThreeWay(
        accuracy=_share(_ratio(pair_sums(says_x_PP == says_y_PP, counts_RP), pairs_R), settings),
        proxy_decides=float(decided_R[0] / pairs_R[0]),
        truth_decides=float(pair_sums(says_y_PP**2, counts_RP)[0] / pairs_R[0]),
        right_when_decided=_share(_ratio(right_R, decided_R), settings),
        contradicted=float(pair_sums(says_x_PP * says_y_PP < 0, counts_RP)[0] / pairs_R[0]),
    )


def _says(side: Side, level: float) -> np.ndarray:
    """+1, -1, or 0 where the difference of two mixtures could be seeds (Student's t, seeds independent): (P, P)."""
    gap_PP = side.means_PM[:, None] - side.means_PM[None, :]
    error_PP = side.sd_M * np.sqrt(1 / side.runs_P[:, None] + 1 / side.runs_P[None, :])
    return np.sign(gap_PP) * (np.abs(gap_PP) > student_quantile(side.freedom, (1 + level) / 2) * error_PP)


def _noise(side: Side) -> SeedNoise:
    if not side.freedom:
        return SeedNoise(sd=None, freedom=0, signal_to_noise=None, reliability=None)
    sd, spread = float(side.sd_M), float(side.means_PM.std(ddof=1))
    share = 1 - sd**2 * float((1 / side.runs_P).mean()) / spread**2 if spread > 0 else 0.0
    return SeedNoise(sd=sd, freedom=side.freedom, signal_to_noise=spread / sd if sd > 0 else None,
                 reliability=max(0.0, share))  # fmt: skip


def _chance(x_P: np.ndarray, y_P: np.ndarray, settings: AgreementSettings) -> float:
    """Two-sided p-value of a permutation test, the data's own order counted among the shuffled ones."""
    random, found = np.random.default_rng(settings.seed), abs(spearman(x_P, y_P) or 0.0)
    shuffled = (spearman(random.permutation(x_P), y_P) for _ in range(settings.resamples))
    return (1 + sum(abs(rho or 0.0) >= found - 1e-12 for rho in shuffled)) / (1 + settings.resamples)


def _verdict(rho: Share, chance: float, level: float) -> str:
    if rho.lo is None or rho.hi is None or rho.lo <= 0 <= rho.hi or chance > 1 - level:
        return "not shown"
    return "agree" if rho.lo > 0 else "contradict"


def _repeat_accuracy(y_P: np.ndarray, sd: float) -> float:
    from scipy.special import ndtr  # here, so that reading a recipe does not load SciPy

    gap_P = np.abs(y_P[:, None] - y_P[None, :])[np.triu_indices(len(y_P), 1)]
    return float(ndtr(gap_P / (sd * np.sqrt(2))).mean())


def _ratio(above_R: np.ndarray, below_R: np.ndarray) -> np.ndarray:
    return np.divide(above_R, below_R, out=np.full(len(above_R), np.nan), where=below_R > 0)


def _share(values_R: Sequence[float | None] | np.ndarray, settings: AgreementSettings) -> Share:
    """The first is the data's value, the others make its percentile interval."""
    value, *others = (np.nan if each is None else float(each) for each in values_R)
    finite = [each for each in others if np.isfinite(each)]
    if not np.isfinite(value) or not finite:
        return Share(value=float(value) if np.isfinite(value) else None, lo=None, hi=None)
    lo, hi = np.quantile(finite, [(1 - settings.level) / 2, (1 + settings.level) / 2])
    return Share(value=float(value), lo=float(lo), hi=float(hi))


def _answer(metrics: dict[str, MetricAgreement], level: float) -> str:
    """The outcome for the mean (or the only metric), in words."""
    name = MEAN if MEAN in metrics else next(iter(metrics))
    found = metrics[name]
    words = {"agree": "the proxy ranks the mixtures as the truth does", "not shown": "agreement is not shown",
             "contradict": "the proxy ranks the mixtures against the truth"}  # fmt: skip
    cost = "" if found.regret_in_noise is None else f", {found.regret_in_noise:.1f} standard deviations of its seeds"
    return (
        f"{name}: {words[found.verdict]}: Spearman {_shown(found.spearman)}, decision accuracy "
        f"{_shown(found.decision_accuracy)} ({100 * level:g}% intervals); choosing by the proxy costs "
        f"{found.regret['1'].value:.4g}{cost}"
    )


def _shown(share: Share) -> str:
    if share.value is None:
        return "undefined"
    return f"{share.value:.3f}" + ("" if share.lo is None else f" [{share.lo:.3f}, {share.hi:.3f}]")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
