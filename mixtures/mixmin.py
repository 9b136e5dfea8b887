"""MixMin: the mixture of per-domain models that explains held-out text best, and the same ensemble as a cheap feature.

With one model per domain, `min over w of -mean log sum_d w_d p_d(row)` is convex in the weights and needs no further
training (MixMin, Thudi et al., 2025). The choice that matters is what a row is: a document, as published, or a token,
as it ranks proxies best. It is solved by exponentiated gradient whose step doubles or halves with success, and stops on
a certificate: of a convex function, `gradient . w - least gradient` bounds how far the loss is from the least one. The
ensemble's loss under any weights is also a prediction of a proxy's loss (mixtures of data experts, arXiv:2502.15950).

Legend: N rows, D domains (components), M targets, P mixtures.
"""

import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from mixtures.mixture import check_same_names
from mixtures.tables import Metrics, Ratios
from pipelines.errors import DataError
from pipelines.files import write_atomically

TOLERANCE = 1e-6  # nats per token: far below what any held-out set resolves
ITERATIONS = 5000
FIELDS = ("components", "targets", "target", "tokens", "nll")


@dataclass(frozen=True, eq=False)
class ComponentScores:
    """Held-out text under one model per domain.

    Attributes:
        components: the domains that have a model, sorted.
        targets: the held-out sets, sorted.
        target_N: which of them a row is of.
        tokens_N: scored tokens of each row.
        nll_ND: negative log-likelihood of each row under each model, nats.
    """

    components: tuple[str, ...]
    targets: tuple[str, ...]
    target_N: np.ndarray
    tokens_N: np.ndarray
    nll_ND: np.ndarray

    @classmethod
    def of(cls, nll: Mapping[str, Mapping[str, np.ndarray]], tokens: Mapping[str, np.ndarray]) -> "ComponentScores":
        """From component -> target -> (rows,) nats, and target -> (rows,) tokens; the order of names is nothing."""
        components, targets = tuple(sorted(nll)), tuple(sorted(tokens))
        for name in components:
            check_same_names(f"component {name!r}", nll[name], "the held-out sets", targets)
        columns = [np.concatenate([np.asarray(nll[name][target], float) for target in targets]) for name in components]
        target_N = np.concatenate([np.full(len(tokens[target]), place) for place, target in enumerate(targets)])
        tokens_N = np.concatenate([np.asarray(tokens[target], np.int64) for target in targets])
        return cls(components, targets, target_N, tokens_N, np.stack(columns, axis=1)).checked("scores")

    @classmethod
    def read(cls, path: Path) -> "ComponentScores":
        """Read `scores.npz`.

        Raises:
            DataError: no such file, or not such a one.
        """
        try:
            with np.load(path, allow_pickle=False) as held:
                components, targets, target_N, tokens_N, nll_ND = (held[name] for name in FIELDS)
        except (OSError, KeyError, ValueError, EOFError, BadZipFile, zlib.error) as error:
            raise DataError(f"{path}: not the scores of `loam mix components`: {error}") from None
        scores = cls(tuple(map(str, components)), tuple(map(str, targets)), target_N, tokens_N, nll_ND)
        return scores.checked(str(path))

    def write(self, path: Path) -> None:
        """Write `scores.npz`, atomically; nothing in it is pickled."""
        held = (np.array(self.components), np.array(self.targets), self.target_N, self.tokens_N, self.nll_ND)
        stream = io.BytesIO()
        np.savez_compressed(stream, **dict(zip(FIELDS, held, strict=True)))
        write_atomically(path, stream.getvalue())

    def checked(self, where: str) -> "ComponentScores":
        """Itself.

        Raises:
            DataError: shapes disagree, a number is not finite, or a target has no token.
        """
        rows = len(self.nll_ND)
        if self.nll_ND.shape != (rows, len(self.components)) or len(self.tokens_N) != rows or not rows:
            raise DataError(f"{where}: {self.nll_ND.shape} numbers for {len(self.components)} components")
        if not np.isfinite(self.nll_ND).all():
            row, column = np.argwhere(~np.isfinite(self.nll_ND))[0]
            raise DataError(f"{where}: row {row} has no finite likelihood under {self.components[column]!r}")
        for place, name in enumerate(self.targets):
            if self.tokens_N[self.target_N == place].sum() <= 0:
                raise DataError(f"{where}: held-out set {name!r} has no scored token")
        return self

    def share_N(self, targets: Sequence[str]) -> np.ndarray:
        """What a row's nats count for in the mean loss per token over `targets`, each target alike."""
        check_same_names("the choice of targets", tuple(targets), "the scores", self.targets, subset=True)
        share_N = np.zeros(len(self.tokens_N))
        for name in targets:
            own_N = self.target_N == self.targets.index(name)
            share_N[own_N] = 1 / (len(targets) * self.tokens_N[own_N].sum())
        return share_N


@dataclass(frozen=True)
class MixMin:
    """A solved ensemble.

    Attributes:
        weights: domain -> weight.
        loss: of the ensemble, nats per token, mean over targets.
        gap: no weights have a loss lower by more than this.
        iterations: it took.
        single: loss of each domain's model alone.
        uniform: loss of the ensemble at equal weights.
    """

    weights: dict[str, float]
    loss: float
    gap: float
    iterations: int
    single: dict[str, float]
    uniform: float

    def summary(self) -> dict[str, Any]:
        """For a manifest and for people."""
        return {"loss": round(self.loss, 6), "gap": float(f"{self.gap:.2g}"), "iterations": self.iterations,
                "uniform": round(self.uniform, 6), "single": {k: round(v, 6) for k, v in self.single.items()},
                "weights": {k: round(v, 6) for k, v in self.weights.items()}}  # fmt: skip


def mixmin(scores: ComponentScores, targets: Sequence[str] = (), tolerance: float = TOLERANCE) -> MixMin:
    """The weights of least ensemble loss.

    Args:
        scores: held-out text under one model per domain.
        targets: held-out sets that count, each alike; all when empty.
        tolerance: nats per token; the loss is within it of the least one.

    Raises:
        DataError: an unknown target, or no certificate within ITERATIONS.
    """
    share_N = scores.share_N(targets or scores.targets)
    counted_N = share_N > 0
    share_N, nll_ND = share_N[counted_N], scores.nll_ND[counted_N]
    floor_N = nll_ND.min(axis=1)
    likelihood_ND = np.exp(floor_N[:, None] - nll_ND)  # of the best model: 1
    least = float(share_N @ floor_N)
    uniform_D = np.full(len(scores.components), 1 / len(scores.components))
    weights_D, gap, iterations = _descend(likelihood_ND, share_N, uniform_D, tolerance)
    if gap > tolerance:
        raise DataError(f"mixmin: after {iterations} iterations the loss may still be {gap:.2g} nats above the least")
    return MixMin(
        dict(zip(scores.components, weights_D.tolist(), strict=True)),
        least + _loss(likelihood_ND, share_N, weights_D), gap, iterations,
        dict(zip(scores.components, (share_N @ nll_ND).tolist(), strict=True)),
        least + _loss(likelihood_ND, share_N, uniform_D),
    )  # fmt: skip


def _loss(likelihood_ND: np.ndarray, share_N: np.ndarray, weights_D: np.ndarray) -> float:
    return -float(share_N @ np.log(np.maximum(likelihood_ND @ weights_D, np.finfo(float).tiny)))


def _descend(
    likelihood_ND: np.ndarray, share_N: np.ndarray, weights_D: np.ndarray, tolerance: float
) -> tuple[np.ndarray, float, int]:
    """Exponentiated gradient from inside the simplex; gives weights, duality gap and iterations."""
    total = float(share_N.sum())
    loss, step, gap = _loss(likelihood_ND, share_N, weights_D), 1.0, np.inf
    for iteration in range(ITERATIONS):
        gain_D = (share_N / (likelihood_ND @ weights_D)) @ likelihood_ND  # minus the gradient; its mean is `total`
        gap = float(gain_D.max()) - total
        if gap <= tolerance:
            return weights_D, max(gap, 0.0), iteration
        while step > 1e-12:
            raised_D = weights_D * np.exp(step * (gain_D - gain_D.max()) / total)
            raised_D /= raised_D.sum()
            found = _loss(likelihood_ND, share_N, raised_D)
            if found < loss:
                break
            step /= 2
        else:
            raised_D = weights_D * gain_D / total  # the step of expectation maximisation never ascends
            found, step = _loss(likelihood_ND, share_N, raised_D), 1.0
        weights_D, loss, step = raised_D, found, step * 2
    return weights_D, gap, ITERATIONS


def ensemble_losses(scores: ComponentScores, ratios: Ratios) -> Metrics:
    """The ensemble's loss under every mixture, per target: what a proxy of that mixture would be near.

    Args:
        scores: held-out text under one model per domain.
        ratios: mixtures of the same domains.

    Raises:
        DataError: the domains differ.
    """
    check_same_names("the ratios table", ratios.domains, "the components", scores.components)
    weights_PD = ratios.ordered(scores.components).weights_PD
    floor_N = scores.nll_ND.min(axis=1)
    likelihood_ND = np.exp(floor_N[:, None] - scores.nll_ND)
    shares = [scores.share_N([target]) for target in scores.targets]
    values = [[float(share_N @ floor_N) + _loss(likelihood_ND, share_N, weights_D) for share_N in shares]
              for weights_D in weights_PD]  # fmt: skip
    return Metrics(ratios.ids, scores.targets, np.array(values))


def agreement(ensemble: Metrics, measured: Metrics) -> dict[str, dict[str, float]]:
    """How well the ensemble's losses foretell measured ones, per target that both have.

    Returns:
        For each target: Spearman's rank correlation, and `relative`, the leave-one-out error of a straight line in the
        ensemble's loss over that of the mean (below 1: the feature tells something).

    Raises:
        DataError: runs differ, no target is in both, or there are fewer than four runs.
    """
    from scipy.stats import rankdata

    measured = measured.ordered(ensemble.ids)
    shared = [name for name in ensemble.names if name in measured.names]
    if not shared or len(ensemble.ids) < 4:
        raise DataError(f"found {len(shared)} targets in both tables and {len(ensemble.ids)} runs; it takes 1 and 4")
    found = {}
    for name in shared:
        x_P, y_P = (table.values_PM[:, table.names.index(name)] for table in (ensemble, measured))
        spread = (rankdata(x_P) - rankdata(x_P).mean()) @ (rankdata(y_P) - rankdata(y_P).mean())
        scale = np.sqrt(np.var(rankdata(x_P)) * np.var(rankdata(y_P))) * len(x_P)
        line_P2 = np.stack([np.ones(len(x_P)), x_P - x_P.mean()], axis=1)
        found[name] = {
            "spearman": round(float(spread / scale), 6) if scale > 0 else 0.0,
            "relative": round(_left_out(line_P2, y_P) / max(_left_out(line_P2[:, :1], y_P), 1e-300), 6),
        }
    return found


def _left_out(design_PK: np.ndarray, y_P: np.ndarray) -> float:
    """Root mean square of leave-one-out residuals of least squares, by the hat matrix."""
    hat_PP = design_PK @ np.linalg.pinv(design_PK)
    residual_P = (y_P - hat_PP @ y_P) / np.maximum(1 - np.diag(hat_PP), 1e-12)
    return float(np.sqrt(np.mean(residual_P**2)))
