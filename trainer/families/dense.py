"""Dense families: Llama, Qwen2 and Qwen3, which differ in biases and in norms of queries and keys."""

from typing import Any

from trainer.families.family import DENSE, Config, Family
from trainer.model_recipe import ModelSettings

HEADS = {"num_key_value_heads": "kv_heads", "intermediate_size": "ffn_width"}
SIZED_HEADS = {**HEADS, "head_dim": "head_dim"}
SILU = {"hidden_act": ("silu",)}
NO_WINDOW = {**SILU, "use_sliding_window": (False, None)}


def divided_heads(config: Config) -> dict[str, Any]:
    """Fields of a configuration that leaves key/value heads or the size of a head to the width."""
    heads = config["num_attention_heads"]
    return {
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
    }


def whole_heads(config: Config) -> dict[str, Any]:
    """Fields of a configuration whose heads always divide the width."""
    return divided_heads({**config, "head_dim": None})


def full_attention(settings: ModelSettings) -> dict[str, Any]:
    """Keys that say that no layer has a window."""
    return {"sliding_window": None, "max_window_layers": settings.layers}


def refuse_windows(config: Config) -> None:
    """Refuse layers that see a window only.

    Raises:
        ValueError: there are some.
    """
    if "sliding_attention" in (config.get("layer_types") or ()):
        raise ValueError("sliding-window attention is not supported; expected full attention in every layer")


def _qwen2(config: Config) -> dict[str, Any]:
    refuse_windows(config)
    return whole_heads(config)


def _qwen3(config: Config) -> dict[str, Any]:
    refuse_windows(config)
    return divided_heads({"head_dim": 128, **config})


LLAMA = Family(
    "llama", "LlamaForCausalLM", SIZED_HEADS, DENSE,
    constants={**SILU, "attention_bias": (False, None), "mlp_bias": (False, None)},
    absent={"head_dim": 0, "num_key_value_heads": 0}, read=divided_heads,
)  # fmt: skip
QWEN2 = Family(
    "qwen2", "Qwen2ForCausalLM", HEADS, {**DENSE, "qkv_bias": True},
    constants=NO_WINDOW, absent={"num_key_value_heads": 0}, read=_qwen2, write=full_attention,
)  # fmt: skip
QWEN3 = Family(
    "qwen3", "Qwen3ForCausalLM", SIZED_HEADS, {**DENSE, "qk_norm": "head"},
    constants={**NO_WINDOW, "attention_bias": (False, None)},
    absent={"head_dim": 0, "num_key_value_heads": 0}, read=_qwen3, write=full_attention,
)  # fmt: skip
