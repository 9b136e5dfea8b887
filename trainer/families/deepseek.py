"""DeepSeek-V2 and -V3: latent attention, routed and shared experts, and in V3 modules that predict further tokens.

Their rotary pairs are neighbours in the file. V2 scores groups of experts by their best one, V3 by its best two.
"""

from typing import Any

from trainer.families.dense import SILU
from trainer.families.family import Config, Family
from trainer.model_recipe import ModelSettings

FIELDS = {
    "intermediate_size": "ffn_width",
    "kv_lora_rank": "mla.kv_rank",
    "qk_rope_head_dim": "mla.rope_dim",
    "v_head_dim": "mla.value_dim",
    "n_routed_experts": "experts",
    "num_experts_per_tok": "experts_per_token",
    "moe_intermediate_size": "expert_width",
    "n_shared_experts": "shared_experts",
    "first_k_dense_replace": "dense_layers",
    "routed_scaling_factor": "router.scaling",
}
FIXED = {"qk_norm": "none", "qkv_bias": False, "shared_gate": False}
CONSTANTS = {**SILU, "attention_bias": (False, None), "moe_layer_freq": (1, None)}
QUERY_RANK = 1536  # where a configuration does not name it; null projects queries directly


def _shared(config: Config) -> dict[str, Any]:
    if config.get("n_routed_experts") and not config.get("n_shared_experts"):
        raise ValueError("n_shared_experts must be 1 or more")
    return {
        "kv_heads": config["num_attention_heads"],
        "head_dim": config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
        "mla.q_rank": config.get("q_lora_rank", QUERY_RANK),
    }


def _write_shared(settings: ModelSettings) -> dict[str, Any]:
    mla = settings.mla
    if mla is None:
        raise ValueError("mla None, there latent attention")
    return {
        "num_key_value_heads": settings.heads,
        # without experts every layer is dense, whatever `dense_layers` says of those that have some
        "first_k_dense_replace": settings.dense_layers if settings.experts else settings.layers,
        "q_lora_rank": mla.q_rank,
        "qk_nope_head_dim": settings.head_dim - mla.rope_dim,
        "head_dim": mla.rope_dim,  # of the rotated part: what transformers' rotary tables are sized by
    }


def _v2(config: Config) -> dict[str, Any]:
    method = config.get("topk_method") or "greedy"
    if method not in ("greedy", "group_limited_greedy"):
        raise ValueError(f"topk_method={method!r} is not supported; expected greedy or group_limited_greedy")
    grouped = method == "group_limited_greedy"
    return {
        **_shared(config),
        "router.groups": config["n_group"] if grouped else 1,
        "router.groups_per_token": config["topk_group"] if grouped else 1,
    }


def _write_v2(settings: ModelSettings) -> dict[str, Any]:
    router = settings.router
    return {
        **_write_shared(settings),
        "n_group": router.groups,
        "topk_group": router.groups_per_token,
        "topk_method": "group_limited_greedy" if router.groups > 1 else "greedy",
        "scoring_func": "softmax",  # for vLLM
    }


DEEPSEEK_V2 = Family(
    "deepseek_v2", "DeepseekV2ForCausalLM",
    FIELDS,
    {**FIXED, "mtp_layers": 0, "router.score": "softmax", "router.bias_update_rate": 0.0, "router.normalize": False,
     "router.scores_per_group": 1},
    constants={**CONSTANTS, "norm_topk_prob": (False, None), "mlp_bias": (False, None)},
    absent={"first_k_dense_replace": 0, "routed_scaling_factor": 1.0}, read=_v2, write=_write_v2,
    neighbours=True, ties=False,
)  # fmt: skip
DEEPSEEK_V3 = Family(
    "deepseek_v3", "DeepseekV3ForCausalLM",
    {**FIELDS, "norm_topk_prob": "router.normalize", "n_group": "router.groups",
     "topk_group": "router.groups_per_token", "num_nextn_predict_layers": "mtp_layers"},
    {**FIXED, "router.score": "sigmoid", "router.scores_per_group": 2},
    constants={**CONSTANTS, "scoring_func": ("sigmoid", None), "topk_method": ("noaux_tc", None)},
    absent={"first_k_dense_replace": 3, "routed_scaling_factor": 2.5, "norm_topk_prob": True, "n_group": 8,
            "topk_group": 4, "num_nextn_predict_layers": 1},
    read=_shared, write=lambda settings: {**_write_shared(settings), "rope_interleave": True},
    neighbours=True, ties=False, copies=True,
)  # fmt: skip
