"""A stack: for each metric a weighted mean of other laws, with weights that held-out runs justify.

Weights are positive and sum to 1. They minimise the squared error of held-out predictions, drawn towards the laws'
precisions: a law's first claim is the inverse square of its error, pooled over metrics, and it takes runs to move it.
With few runs or much noise this is close to a plain average, which carries over to other scales better than any single
law does; with many runs the best law of each metric wins. P mixtures, M metrics, S members, B problems, D domains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixtures.law_base import Family, FittedLaw

CLAIM = 20.0  # runs that the first claim is worth


@dataclass(frozen=True, eq=False)
class Stack:
    """Fitted members and their weights.

    Attributes:
        members: one law each, all of the same problems.
        penalties: strength that each member was fitted at.
        share_BS: weight of each member in each problem.
    """

    members: tuple[FittedLaw, ...]
    penalties: tuple[float, ...]
    share_BS: np.ndarray
    family: str = "stack"

    def predict(self, weights_PD: np.ndarray) -> np.ndarray:
        """Losses (P, B)."""
        parts = (law.predict(weights_PD) * share_B for law, share_B in zip(self.members, self.share_BS.T, strict=True))
        return np.sum(list(parts), axis=0)

    def gradient(self, weights_D: np.ndarray) -> np.ndarray | None:
        """Derivatives (B, D); None when a member has none."""
        slopes = [law.gradient(weights_D) for law in self.members]
        known = [slope_BD for slope_BD in slopes if slope_BD is not None]
        if len(known) < len(slopes):
            return None
        return np.einsum("sbd,bs->bd", np.stack(known), self.share_BS)

    def take(self, problems: Sequence[int]) -> "Stack":
        """The stack of some of the problems."""
        rows = list(problems)
        return Stack(tuple(law.take(rows) for law in self.members), self.penalties, self.share_BS[rows])

    def to_json(self) -> dict[str, Any]:
        """Members, their penalties and shares."""
        return {
            "family": self.family,
            "members": [law.to_json() for law in self.members],
            "penalties": list(self.penalties),
            "share": self.share_BS.tolist(),
        }


def shares(held_out_SPM: np.ndarray, measured_PM: np.ndarray) -> np.ndarray:
    """Weights of the members for each metric.

    Args:
        held_out_SPM: predictions of runs that the member's fit has not seen.
        measured_PM: what was measured.

    Returns:
        (M, S), positive, rows sum to 1.
    """
    from scipy.optimize import nnls  # here, so that reading a recipe does not load SciPy

    runs = len(measured_PM)
    spread_M = np.maximum(measured_PM.std(axis=0), 1e-12 * np.maximum(np.abs(measured_PM).max(axis=0), 1e-12))
    error_SPM = (held_out_SPM - measured_PM) / spread_M
    mean_S = np.maximum((error_SPM**2).mean(axis=(1, 2)), 1e-12)
    claim_S = (mean_S.min() / mean_S) ** 2
    claim_S /= claim_S.sum()
    # a claim is judged in the units of the best law's error: the same whether losses are noisy or exact
    unit_M = np.sqrt(np.maximum((error_SPM**2).mean(axis=1).min(axis=0), 1e-12))
    pull = np.sqrt(CLAIM / runs) * np.eye(len(mean_S))
    out_MS = np.empty((measured_PM.shape[1], len(mean_S)))
    for metric, unit in enumerate(unit_M):
        left = np.concatenate([error_SPM[:, :, metric].T / (unit * np.sqrt(runs)), pull, np.full((1, len(pull)), 1e4)])
        right = np.concatenate([np.zeros(runs), pull @ claim_S, [1e4]])
        found_S = nnls(left, right)[0]
        out_MS[metric] = found_S / found_S.sum()
    return out_MS


class StackFamily:
    """Reads a stack back and fits it to resamples; stacks are put together by `validation`, which has the folds."""

    name: str = "stack"
    penalties: tuple[float, ...] = (1.0,)
    least_runs: int = 4

    def __init__(self, families: Mapping[str, Family]) -> None:
        """Args: families: what members may be."""
        self.families = families

    def fit_path(self, weights_PD: np.ndarray, values_BP: np.ndarray, counts_BP: np.ndarray) -> Mapping[float, Stack]:
        """The one fit there is."""
        return {1.0: self.fit(weights_PD, values_BP, counts_BP, 1.0)}

    def fit(self, weights_PD: np.ndarray, values_BP: np.ndarray, counts_BP: np.ndarray, penalty: float) -> Stack:
        """Equal shares of every family with a gradient at its weakest penalty: what a stack is without validation."""
        members = tuple(family.fit(weights_PD, values_BP, counts_BP, family.penalties[-1]) for family in self._smooth())
        weakest = tuple(family.penalties[-1] for family in self._smooth())
        return Stack(members, weakest, np.full((len(values_BP), len(members)), 1 / len(members)))

    def refit(
        self, law: FittedLaw, weights_PD: np.ndarray, values_BP: np.ndarray, counts_BP: np.ndarray, penalty: float
    ) -> Stack:
        """Every member fitted anew, shares kept."""
        assert isinstance(law, Stack)
        members = tuple(
            self.families[member.family].refit(member, weights_PD, values_BP, counts_BP, strength)
            for member, strength in zip(law.members, law.penalties, strict=True)
        )
        return Stack(members, law.penalties, law.share_BS)

    def from_json(self, saved: Mapping[str, Any]) -> Stack:
        """Read back the members."""
        members = tuple(self.families[each["family"]].from_json(each) for each in saved["members"])
        return Stack(members, tuple(saved["penalties"]), np.array(saved["share"], float))

    def _smooth(self) -> list[Family]:
        return [family for family in self.families.values() if family.name != "trees"]
