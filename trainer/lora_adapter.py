"""Low-rank updates on disk, in peft's format: `adapter_model.safetensors` and `adapter_config.json`.

Attention and dense layers are peft's `target_modules`; stacks of experts and routers its `target_parameters`, whose two
matrices lie flat, the experts innermost in one of them. So an adapter that was trained here is loaded by peft onto the
exported model, and one that peft trained is loaded here. Stacked experts need transformers 5, which stacks them too.

Legend: E experts, O rows, I columns, R rank.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.errors import DataError, RecipeError
from pipelines.files import write_atomically
from trainer.families.registry import family_of
from trainer.families.tensors import pieces_of
from trainer.lora import LowRank, add_lora, updates
from trainer.lora_settings import LoraSettings
from trainer.model import Decoder

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
NESTING = ("gate_up_proj", "down_proj")  # peft wraps the parameters of one module in the order that it meets them


def save_adapter(folder: Path, model: Decoder, base: str = "") -> dict[str, Any]:
    """Write the updates of a model.

    Args:
        folder: to fill.
        model: with updates (`trainer.lora.add_lora`).
        base: path of the exported model that they belong to, for peft.

    Returns:
        What `adapter_config.json` holds.
    """
    adapted = updates(model)
    assert adapted, "the model has no updates"
    first = next(iter(adapted.values()))
    rank = first.lora_A.shape[-2]
    tensors: dict[str, Tensor] = {}
    order = _rows_of(model)
    for name, update in adapted.items():
        place = _place(name, adapted, model)
        a, b = _flat(update)
        rows = order.get(name)
        tensors[f"{place}.lora_A.weight"] = a
        tensors[f"{place}.lora_B.weight"] = b if rows is None else b[torch.argsort(rows)]
    # in a model with experts peft takes modules called gate_proj for experts that transformers 4 did not stack
    parameters = [name for name in adapted if model.settings.experts and ".mlp." in name]
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
        "r": rank, "lora_alpha": first.scale * rank, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False,
        "target_modules": sorted(_module(name, model) for name in adapted if name not in parameters),
        "target_parameters": sorted(_module(name, model, whole=True) for name in parameters),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_atomically(folder / CONFIG, (json.dumps(config, indent=1, sort_keys=True) + "\n").encode())
    return config


def load_adapter(folder: Path, model: Decoder) -> Decoder:
    """Give a model the updates of a folder that `save_adapter` or peft wrote.

    Args:
        folder: with the two files.
        model: without updates; changed in place.

    Returns:
        The model.

    Raises:
        DataError: the folder is none, its updates are of another kind, or they do not fit the model.
    """
    config, tensors = _read(folder)
    names = _names_of(tensors, model, folder)
    try:
        settings = LoraSettings(targets=tuple(names), rank=config["r"], alpha=config["lora_alpha"])
    except (KeyError, ValidationError) as error:
        raise DataError(f"{folder / CONFIG}: {str(error).splitlines()[0]}") from None
    add_lora(model, settings, seed=0)
    adapted, order = updates(model), _rows_of(model)
    for name, update in adapted.items():
        place = _place(name, adapted, model)
        for which, parameter in (("lora_A", update.lora_A), ("lora_B", update.lora_B)):
            given = _stacked(which, tensors.pop(f"{place}.{which}.weight", None), update)
            if given is None or given.shape != parameter.shape:
                found = "none" if given is None else tuple(given.shape)
                raise DataError(
                    f"{folder}: {place}.{which}: expected {tuple(parameter.shape)}, found {found}; is it of this model?"
                )
            rows = order.get(name) if which == "lora_B" else None
            parameter.data.copy_(given if rows is None else given[rows])
    if tensors:
        raise DataError(f"{folder}: {min(tensors)} has no place in this model; is it of this model?")
    return model


def _read(folder: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    try:
        config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{folder} is no adapter ({CONFIG} and {WEIGHTS}): {error}") from None
    if not isinstance(config, dict):
        raise DataError(f"{folder / CONFIG} holds no mapping; is it an adapter's?")
    for key, wanted in {"peft_type": "LORA", "use_dora": False, "use_rslora": False, "bias": "none"}.items():
        if config.get(key, wanted) != wanted:
            raise DataError(f"{folder / CONFIG}: {key} is {config[key]!r}; expected {wanted!r}")
    for key in ("rank_pattern", "alpha_pattern"):
        if config.get(key):
            raise DataError(f"{folder / CONFIG}: {key} is set; expected one rank and one alpha for all")
    return config, tensors


def _names_of(tensors: Mapping[str, Tensor], model: Decoder, folder: Path) -> list[str]:
    """The model's parameters that tensors of a file belong to; stacks of one module are told apart by their sizes."""
    modules: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            modules.setdefault(_place(name, (), model), []).append(name)
    found = []
    for place in sorted({key.rpartition(".lora_")[0] for key in tensors}):
        names = modules.get(place.removesuffix(".base_layer"), [])
        ends = [tensors.get(f"{place}.{which}.weight") for which in ("lora_A", "lora_B")]
        whole = all(end is not None and end.dim() == 2 for end in ends)
        sizes = (ends[1].shape[0], ends[0].shape[-1]) if whole else None  # type: ignore[union-attr]
        fitting = [name for name in names if tuple(model.get_parameter(name).shape[-2:]) == sizes]
        if not fitting:
            raise DataError(f"{folder}: {place} of {sizes} has no place in this model; is it of this model?")
        found.append(fitting[0])
    return found


def _rows_of(model: Decoder) -> dict[str, Tensor]:
    """Rows of a file's tensor that ours are, of the tensors whose rows change place (DeepSeek's rotary ones)."""
    try:
        family = family_of(model.settings)
    except RecipeError:
        return {}  # no model of transformers: the adapter is for this one alone
    pieces = pieces_of(model.settings, family, family.neighbours)
    return {piece.name: piece.rows for piece in pieces if piece.rows is not None}


def _module(name: str, model: Decoder, whole: bool = False) -> str:
    """A weight's module in transformers, or the weight itself there."""
    if model.settings.shared_gate:  # Qwen2-MoE's name
        name = name.replace(".mlp.shared_experts.", ".mlp.shared_expert.")
    place = name if name.startswith("lm_head") else f"model.{name}"
    return place if whole else place.removesuffix(".weight")


def _place(name: str, among: Collection[str], model: Decoder) -> str:
    """Where peft keeps the update of a weight: the last wrapped of a module's parameters is the outermost."""
    if ".mlp.experts." not in name:
        return PREFIX + _module(name, model)
    module, _, attribute = name.rpartition(".")
    later = [f"{module}.{other}" for other in NESTING[NESTING.index(attribute) + 1 :]]
    return PREFIX + _module(module, model) + ".base_layer" * sum(other in among for other in later)


def _flat(update: LowRank) -> tuple[Tensor, Tensor]:
    """Both matrices as peft keeps them: (E * R, I), and (O, R * E) with the experts innermost."""
    a, b = update.lora_A.detach().cpu(), update.lora_B.detach().cpu()
    if a.dim() == 2:
        return a.contiguous(), b.contiguous()
    return a.flatten(0, 1).contiguous(), b.permute(1, 2, 0).flatten(1).contiguous()


def _stacked(which: str, flat: Tensor | None, update: LowRank) -> Tensor | None:
    """The inverse of `_flat` for one of the two; None where the sizes do not divide."""
    if flat is None or update.lora_A.dim() == 2:
        return flat
    experts, rank, columns = update.lora_A.shape
    if flat.dim() != 2 or flat.numel() != (update.lora_A if which == "lora_A" else update.lora_B).numel():
        return flat
    if which == "lora_A":
        return flat.view(experts, rank, columns)
    return flat.view(flat.shape[0], rank, experts).permute(2, 0, 1).contiguous()
