"""Families with routed experts over grouped-query attention: Mixtral, OLMoE, Qwen2-MoE, Qwen3-MoE and dots.llm1."""

from typing import Any

from trainer.families.dense import (
    HEADS,
    NO_WINDOW,
    SILU,
    SIZED_HEADS,
    divided_heads,
    full_attention,
    refuse_windows,
    whole_heads,
)
from trainer.families.family import Config, Family
from trainer.model_recipe import ModelSettings

NO_SHARED = {"shared_experts": 0, "shared_gate": False}
SOFTMAX = {"router.score": "softmax", "router.bias_update_rate": 0.0}
BASE = {"mla": None, "qkv_bias": False, "mtp_layers": 0}
EVERY_LAYER = {"dense_layers": 0, "expert_every": 1}


def _only_experts(read: Any) -> Any:
    """`intermediate_size` is the experts' width, and there is no dense layer that it could be of."""
    return lambda config: read(config) | {"ffn_width": config["intermediate_size"]}


def _qwen_layers(config: Config) -> dict[str, Any]:
    """Which layers are dense; those before the first with experts may be listed one by one.

    Raises:
        ValueError: a later layer is listed.
    """
    refuse_windows(config)
    dense = list(config.get("mlp_only_layers") or [])
    if dense != list(range(len(dense))):
        raise ValueError(f"mlp_only_layers={dense} is not supported; expected the first layers, [0, 1, ...]")
    return {"dense_layers": len(dense), "expert_every": config.get("decoder_sparse_step", 1)}


def _write_qwen_layers(settings: ModelSettings) -> dict[str, Any]:
    every = {"decoder_sparse_step": settings.expert_every, "mlp_only_layers": list(range(settings.dense_layers))}
    return every | full_attention(settings)


def _shared_of_one_width(settings: ModelSettings) -> dict[str, Any]:
    return {"shared_expert_intermediate_size": settings.shared_hidden, **_write_qwen_layers(settings)}


def _dots1(config: Config) -> dict[str, Any]:
    refuse_windows(config)
    if not config.get("n_shared_experts"):
        raise ValueError("n_shared_experts must be 1 or more")
    return divided_heads(config)


MIXTRAL = Family(
    "mixtral", "MixtralForCausalLM",
    {"num_key_value_heads": "kv_heads", "head_dim": "head_dim", "intermediate_size": "expert_width",
     "num_local_experts": "experts", "num_experts_per_tok": "experts_per_token"},
    {**BASE, **EVERY_LAYER, **NO_SHARED, "qk_norm": "none", "router.score": "softmax_chosen"},
    constants={**SILU, "sliding_window": (None,)},
    absent={"head_dim": 0, "num_key_value_heads": 0}, theta=1e6,
    read=_only_experts(divided_heads),
    renames=(("mlp.gate.", "block_sparse_moe.gate."),),
    experts=("block_sparse_moe.experts", "w1", "w3", "w2"),
)  # fmt: skip
OLMOE = Family(
    "olmoe", "OlmoeForCausalLM",
    {"num_key_value_heads": "kv_heads", "intermediate_size": "expert_width", "num_experts": "experts",
     "num_experts_per_tok": "experts_per_token", "norm_topk_prob": "router.normalize"},
    {**BASE, **EVERY_LAYER, **NO_SHARED, **SOFTMAX, "qk_norm": "full"},
    constants={**SILU, "attention_bias": (False, None), "clip_qkv": (None,)},
    absent={"num_key_value_heads": 0, "norm_topk_prob": False},
    read=_only_experts(whole_heads),
    ties=False,
)  # fmt: skip
QWEN2_MOE = Family(
    "qwen2_moe", "Qwen2MoeForCausalLM",
    {**HEADS, "num_experts": "experts", "num_experts_per_tok": "experts_per_token",
     "moe_intermediate_size": "expert_width", "norm_topk_prob": "router.normalize", "qkv_bias": "qkv_bias"},
    {**BASE, **SOFTMAX, "shared_experts": 1, "shared_gate": True, "qk_norm": "none"},
    constants=NO_WINDOW,
    absent={"num_key_value_heads": 0, "norm_topk_prob": False, "qkv_bias": True},
    read=lambda config: {**whole_heads(config), **_qwen_layers(config),
                         "shared_width": config["shared_expert_intermediate_size"]},
    write=_shared_of_one_width,
    renames=(("mlp.shared_experts.", "mlp.shared_expert."),),
)  # fmt: skip
QWEN3_MOE = Family(
    "qwen3_moe", "Qwen3MoeForCausalLM",
    {**SIZED_HEADS, "num_experts": "experts", "num_experts_per_tok": "experts_per_token",
     "moe_intermediate_size": "expert_width", "norm_topk_prob": "router.normalize"},
    {**BASE, **NO_SHARED, **SOFTMAX, "qk_norm": "head"},
    constants={**NO_WINDOW, "attention_bias": (False, None)},
    absent={"head_dim": 0, "num_key_value_heads": 0, "norm_topk_prob": False},
    read=lambda config: {**divided_heads(config), **_qwen_layers(config)},
    write=_write_qwen_layers,
)  # fmt: skip
DOTS1 = Family(
    "dots1", "Dots1ForCausalLM",
    {**SIZED_HEADS, "n_routed_experts": "experts", "num_experts_per_tok": "experts_per_token",
     "moe_intermediate_size": "expert_width", "n_shared_experts": "shared_experts",
     "first_k_dense_replace": "dense_layers", "routed_scaling_factor": "router.scaling",
     "norm_topk_prob": "router.normalize", "n_group": "router.groups", "topk_group": "router.groups_per_token"},
    {**BASE, "qk_norm": "head", "shared_gate": False, "router.score": "sigmoid", "router.scores_per_group": 2},
    # the last three: transformers does without them, vLLM asks for them
    constants={**NO_WINDOW, "attention_bias": (False, None), "moe_layer_freq": (1, None),
               "scoring_func": ("sigmoid", None), "topk_method": ("noaux_tc", None)},
    absent={"head_dim": 0, "num_key_value_heads": 0, "first_k_dense_replace": 0, "routed_scaling_factor": 1.0,
            "n_group": 1, "topk_group": 1, "norm_topk_prob": False},
    read=_dots1, write=full_attention,
    ties=False,
)  # fmt: skip
