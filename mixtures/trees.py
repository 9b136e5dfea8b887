"""Gradient-boosted trees with RegMix's hyper-parameters (arXiv:2407.01492), one model per metric.

All 1,000 trees are grown: RegMix's notebook stops early on its own test set, which leaks. Trees cannot predict below
the lowest mean of a leaf, so their optimum is compared with the best observed run. LightGBM is imported at use; models
are saved as its own text. P mixtures, D domains, B problems.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mixtures.law_base import FittedLaw
from pipelines.errors import MissingExtra

if TYPE_CHECKING:
    from lightgbm import Booster

TREES = 1000
SETTINGS: Mapping[str, Any] = {
    "objective": "regression",
    "learning_rate": 1e-2,
    "num_leaves": 31,
    "min_data_in_leaf": 20,
    "seed": 42,
    "num_threads": 1,  # sums in one order: the same bytes on any machine with the same wheel
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


@dataclass(frozen=True, eq=False)
class Forest:
    """One booster per problem."""

    boosters: tuple["Booster", ...]
    family: str = "trees"

    def predict(self, weights_PD: np.ndarray) -> np.ndarray:
        """Losses (P, B)."""
        columns = [np.asarray(booster.predict(weights_PD, num_threads=1), float) for booster in self.boosters]
        return np.stack(columns, axis=1)

    def gradient(self, weights_D: np.ndarray) -> None:
        """Trees are flat almost everywhere."""

    def take(self, problems: Sequence[int]) -> "Forest":
        """The boosters of some of the problems."""
        return Forest(tuple(self.boosters[problem] for problem in problems))

    def to_json(self) -> dict[str, Any]:
        """LightGBM's text of each booster."""
        return {"family": self.family, "models": [booster.model_to_string() for booster in self.boosters]}


class TreesFamily:
    """Boosted trees on the raw weights."""

    name: str = "trees"
    penalties: tuple[float, ...] = (0.0,)
    least_runs: int = 50  # below 2 x min_data_in_leaf per fold no split is possible at all

    def fit_path(self, weights_PD: np.ndarray, values_BP: np.ndarray, counts_BP: np.ndarray) -> Mapping[float, Forest]:
        """The one fit there is."""
        return {0.0: self.fit(weights_PD, values_BP, counts_BP, 0.0)}

    def fit(self, weights_PD: np.ndarray, values_BP: np.ndarray, counts_BP: np.ndarray, penalty: float) -> Forest:
        """Grow all trees of every problem; `penalty` has no meaning here."""
        lightgbm = _lightgbm()
        boosters = []
        for values_P, counts_P in zip(values_BP, counts_BP, strict=True):
            rows = counts_P > 0
            data = lightgbm.Dataset(weights_PD[rows], label=values_P[rows], weight=counts_P[rows])
            boosters.append(lightgbm.train(dict(SETTINGS), data, num_boost_round=TREES))
        return Forest(tuple(boosters))

    def refit(
        self, law: FittedLaw, weights_PD: np.ndarray, values_BP: np.ndarray, counts_BP: np.ndarray, penalty: float
    ) -> Forest:
        """Grow all trees anew."""
        return self.fit(weights_PD, values_BP, counts_BP, penalty)

    def from_json(self, saved: Mapping[str, Any]) -> Forest:
        """Read back LightGBM's text."""
        return Forest(tuple(_lightgbm().Booster(model_str=text) for text in saved["models"]))


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError:
        raise MissingExtra("the law `trees` needs lightgbm: pip install lightgbm, or leave `trees` out") from None
    return lightgbm
