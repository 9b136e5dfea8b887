"""The mixing laws by name, from the simplest to the most flexible; ties in validation go to the simpler."""

from collections.abc import Mapping
from typing import Any

from mixtures.effective_data import ConcaveFamily, EffectiveDataFamily
from mixtures.exponential import ExponentialFamily
from mixtures.gaussian import GaussianFamily
from mixtures.law_base import Family, FittedLaw
from mixtures.linear import ConstantFamily, OlsFamily, RidgeFamily
from mixtures.repetition import RepeatedLaw, discount_from_json
from mixtures.stack import StackFamily
from mixtures.trees import TreesFamily

BASELINE = "constant"
STACK = "stack"
_SINGLE: Mapping[str, Family] = {
    family.name: family
    for family in (ConstantFamily(), OlsFamily(), ExponentialFamily(), RidgeFamily(), EffectiveDataFamily(),
                   ConcaveFamily(), GaussianFamily(), TreesFamily())
}  # fmt: skip
FAMILIES: Mapping[str, Family] = {**_SINGLE, STACK: StackFamily(_SINGLE)}


def law_from_json(saved: Mapping[str, Any]) -> FittedLaw:
    """A fitted law from its saved form."""
    if "repetition" in saved:
        return RepeatedLaw(law_from_json(saved["law"]), discount_from_json(saved["repetition"]))
    return FAMILIES[saved["family"]].from_json(saved)
