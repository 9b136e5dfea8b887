"""The correspondence between Loam's decoder and Hugging Face's: configuration and names of tensors, both ways.

The dense form is Qwen3 (`Qwen3ForCausalLM`), the form with experts dots.llm1 (`Dots1ForCausalLM`). On disk every expert
has tensors of its own, `mlp.experts.3.gate_proj.weight`: transformers 4 and 5 and vLLM read that, while stacked experts
are read by transformers 5 alone. What differs from name to name stands in this file and nowhere else.
"""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from pipelines.errors import DataError
from trainer.recipe import ModelSettings

ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "dots1": "Dots1ForCausalLM"}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def config_of(settings: ModelSettings, eos_id: int | None) -> dict[str, Any]:
    """The `config.json` of a model.

    Args:
        settings: its shape; `vocab_size` is the number of rows that are written.
        eos_id: end-of-text token, if known.
    """
    kind = "dots1" if settings.experts else "qwen3"
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[kind]],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "dtype": "float32",
        "eos_token_id": eos_id,
        "head_dim": settings.head_dim,
        "hidden_act": "silu",
        "hidden_size": settings.width,
        "intermediate_size": settings.ffn_width,
        "max_position_embeddings": settings.max_sequence,
        "max_window_layers": settings.layers,
        "model_type": kind,
        "num_attention_heads": settings.heads,
        "num_hidden_layers": settings.layers,
        "num_key_value_heads": settings.kv_heads,
        "rms_norm_eps": settings.norm_eps,
        "rope_parameters": {"rope_theta": settings.rope_theta, "rope_type": "default"},
        "rope_theta": settings.rope_theta,  # where transformers 4 looks
        "sliding_window": None,
        "tie_word_embeddings": writes_tied(settings),
        "use_cache": True,
        "vocab_size": settings.vocab_size,
    }
    if settings.experts:
        config |= _expert_config(settings)
    return config


def _expert_config(settings: ModelSettings) -> dict[str, Any]:
    return {
        "first_k_dense_replace": settings.dense_layers,
        "moe_intermediate_size": settings.expert_width,
        "moe_layer_freq": 1,  # this one and the last two: transformers does without them, vLLM asks for them
        "n_group": 1,
        "n_routed_experts": settings.experts,
        "n_shared_experts": settings.shared_experts,
        "norm_topk_prob": True,
        "num_experts_per_tok": settings.experts_per_token,
        "routed_scaling_factor": settings.routed_scaling,
        "scoring_func": "sigmoid",
        "topk_group": 1,
        "topk_method": "noaux_tc",
    }


def writes_tied(settings: ModelSettings) -> bool:
    """Whether the output projection is left out of the file; vLLM's own dots1 (up to 0.23) cannot tie, so it stays."""
    return settings.tie_embeddings and not settings.experts


def settings_of(config: Mapping[str, Any], where: str) -> ModelSettings:
    """The shape that a `config.json` describes; training-only fields keep their defaults.

    Args:
        config: parsed.
        where: named in errors.

    Raises:
        DataError: the architecture, or something that it switches on, has no counterpart here.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        supported = ", ".join(f"{name} ({architecture})" for name, architecture in ARCHITECTURES.items())
        raise DataError(f"{where}: model_type {kind!r} cannot be imported; supported: {supported}")
    _refuse_unsupported(config, where)
    rope = config.get("rope_parameters") or {}
    try:
        shape = {
            "layers": config["num_hidden_layers"],
            "width": config["hidden_size"],
            "heads": config["num_attention_heads"],
            "kv_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
            "head_dim": config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
            "ffn_width": config["intermediate_size"],
            "vocab_size": config["vocab_size"],
            "max_sequence": config["max_position_embeddings"],
            "rope_theta": rope.get("rope_theta") or config.get("rope_theta") or 10_000.0,
            "norm_eps": config["rms_norm_eps"],
            "tie_embeddings": config.get("tie_word_embeddings", False),
        }
        if kind == "dots1":
            shape |= {
                "experts": config["n_routed_experts"],
                "experts_per_token": config["num_experts_per_tok"],
                "expert_width": config["moe_intermediate_size"],
                "shared_experts": config["n_shared_experts"],
                "dense_layers": config.get("first_k_dense_replace") or 0,
                "routed_scaling": config.get("routed_scaling_factor", 1.0),
            }
        return ModelSettings.model_validate(shape)
    except KeyError as error:
        raise DataError(f"{where}: config.json has no {error.args[0]!r}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise DataError(f"{where}: {'.'.join(map(str, first['loc'])) or 'config.json'}: {first['msg']}") from None


def _refuse_unsupported(config: Mapping[str, Any], where: str) -> None:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    wanted = {"hidden_act": ("silu",), "attention_bias": (False, None), "moe_layer_freq": (1, None)}
    if config["model_type"] == "dots1":
        wanted |= {"n_group": (1, None), "norm_topk_prob": (True,), "scoring_func": ("sigmoid", None)}
    found = {**config, "rope_type": rope.get("rope_type", rope.get("type"))}
    wanted["rope_type"] = ("default", None)
    for key, allowed in wanted.items():
        if found.get(key) not in allowed:
            raise DataError(f"{where}: {key}={found.get(key)!r} is not supported; expected {allowed[0]!r}")
    if "sliding_attention" in (config.get("layer_types") or ()) or config.get("use_sliding_window"):
        raise DataError(f"{where}: sliding-window attention is not supported; expected full attention in every layer")


def to_hf(tensors: Mapping[str, Tensor], settings: ModelSettings) -> dict[str, Tensor]:
    """Rename a decoder's tensors, cut its embedding to `settings.vocab_size` rows and unstack its experts.

    Args:
        tensors: `Decoder.state_dict()`.
        settings: the shape to write.

    Returns:
        Contiguous tensors, no two of which share memory.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        target = name if name == HEAD else f"model.{name}"
        if target in (EMBEDDING, HEAD):
            found[target] = tensor[: settings.vocab_size].contiguous()
        elif ".mlp.experts." in name:
            prefix = target.rpartition(".")[0]
            for expert, part in enumerate(tensor):
                for projection, weight in _projections(name, part).items():
                    found[f"{prefix}.{expert}.{projection}.weight"] = weight.clone(
                        memory_format=torch.contiguous_format
                    )
        else:
            found[target] = tensor.contiguous()
    if settings.tie_embeddings and not writes_tied(settings):
        found[HEAD] = found[EMBEDDING].clone()
    return found


def _projections(name: str, part: Tensor) -> dict[str, Tensor]:
    """One expert's weights by Hugging Face name; gate lies above up in the stacked tensor."""
    if name.endswith("gate_up_proj"):
        gate, up = part.chunk(2, dim=0)
        return {"gate_proj": gate, "up_proj": up}
    return {"down_proj": part}


def from_hf(
    tensors: Mapping[str, Tensor], settings: ModelSettings, where: str
) -> tuple[dict[str, Tensor], ModelSettings]:
    """The inverse of `to_hf`, in fp32.

    Args:
        tensors: of all files of a Hugging Face model.
        settings: what its config says.
        where: named in errors.

    Returns:
        Tensors for `Decoder.load_state_dict`, and the settings: with tied embeddings where the written output
        projection is the embedding, as `to_hf` writes it.

    Raises:
        DataError: an expert's tensor is missing.
    """
    if settings.experts and HEAD in tensors and torch.equal(tensors[HEAD], tensors[EMBEDDING]):
        settings = settings.model_copy(update={"tie_embeddings": True})
    left = {name: tensor.float() for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    if settings.tie_embeddings:
        left.pop(HEAD, None)
    found: dict[str, Tensor] = {}
    try:
        for layer in filter(settings.has_experts, range(settings.layers)):
            prefix = f"model.layers.{layer}.mlp.experts"
            gate, up, down = ([left.pop(f"{prefix}.{expert}.{projection}.weight") for expert in range(settings.experts)]
                              for projection in ("gate_proj", "up_proj", "down_proj"))  # fmt: skip
            stacked = f"layers.{layer}.mlp.experts"
            found[f"{stacked}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(gate, up, strict=True)])
            found[f"{stacked}.down_proj"] = torch.stack(down)
    except KeyError as error:
        raise DataError(f"{where}: tensor {error.args[0]} is missing") from None
    return found | {name.removeprefix("model."): tensor for name, tensor in left.items()}, settings
