"""All families, and which of them a configuration or a shape belongs to."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from pipelines.errors import DataError, RecipeError
from trainer.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from trainer.families.dense import LLAMA, QWEN2, QWEN3
from trainer.families.family import Family
from trainer.families.mixtures import DOTS1, MIXTRAL, OLMOE, QWEN2_MOE, QWEN3_MOE
from trainer.model_recipe import ModelSettings

FAMILIES = (QWEN3, QWEN2, LLAMA, MIXTRAL, OLMOE, QWEN2_MOE, QWEN3_MOE, DOTS1, DEEPSEEK_V2, DEEPSEEK_V3)
BY_TYPE = {family.model_type: family for family in FAMILIES}


def family_of(settings: ModelSettings) -> Family:
    """The family that computes a model of this shape.

    Raises:
        RecipeError: none does; the message names the nearest one and what differs.
    """
    misfits = {family.model_type: family.misfits(settings) for family in FAMILIES}
    for name, differing in misfits.items():
        if not differing:
            return BY_TYPE[name]
    nearest = min(misfits, key=lambda name: len(misfits[name]))
    differing = "; ".join(misfits[nearest])
    raise RecipeError(f"no model of transformers computes this shape; the nearest, {nearest}, differs in: {differing}")


def shape_of(config: Mapping[str, Any], where: str) -> tuple[Family, ModelSettings]:
    """Family and shape that a `config.json` describes.

    Args:
        config: parsed.
        where: named in errors.

    Raises:
        DataError: the architecture, or something that it switches on, has no counterpart here.
    """
    family = BY_TYPE.get(str(config.get("model_type")))
    if family is None:
        supported = ", ".join(f"{one.model_type} ({one.architecture})" for one in FAMILIES)
        raise DataError(f"{where}: model_type {config.get('model_type')!r} cannot be imported; supported: {supported}")
    if config.get("quantization_config"):
        raise DataError(f"{where}: quantized weights are not read; convert them to bf16 first")
    try:
        return family, family.shape_of(config)
    except KeyError as error:
        raise DataError(f"{where}: config.json has no {error.args[0]!r}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise DataError(f"{where}: {'.'.join(map(str, first['loc'])) or 'config.json'}: {first['msg']}") from None
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    except (TypeError, ZeroDivisionError) as error:
        raise DataError(f"{where}: config.json holds a value of the wrong kind: {error}") from None
