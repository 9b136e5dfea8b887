"""The mixing laws by name, from the simplest to the most flexible; ties in validation go to the simpler."""

from collections.abc import Mapping
from typing import Any

from mixtures.effective_data import ConcaveFamily, EffectiveDataFamily
from mixtures.exponential import ExponentialFamily
from mixtures.law_base import Family, FittedLaw
from mixtures.linear import ConstantFamily, RidgeFamily
from mixtures.trees import TreesFamily

BASELINE = "constant"
FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (ConstantFamily(), ExponentialFamily(), RidgeFamily(), EffectiveDataFamily(), ConcaveFamily(),
                   TreesFamily())
}  # fmt: skip


def law_from_json(saved: Mapping[str, Any]) -> FittedLaw:
    """A fitted law from its saved form."""
    return FAMILIES[saved["family"]].from_json(saved)
