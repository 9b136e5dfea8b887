"""Rotary embeddings of latent attention (MLA) in vLLM's CPU build, which are right without its own kernel only.

The kernel of vLLM 0.32 for CPUs goes from position to position by the stride of the last axis but one. Latent attention
hands it a slice shaped (positions, heads, size), in which that is the stride of heads: all positions but the first are
rotated wrongly, without an error. torch's operations, which vLLM has too, are right. Every other attention that Loam
writes hands it (positions, heads * size), and the kernel is right.
"""

import json
from pathlib import Path
from typing import Any


def rotation_on_cpu(folder: Path) -> dict[str, Any]:
    """What vLLM's compilation settings must say for a model on a CPU.

    Args:
        folder: a model in Hugging Face format.

    Returns:
        Nothing, unless the model has latent attention.
    """
    latent = json.loads((folder / "config.json").read_bytes()).get("kv_lora_rank")
    return {"custom_ops": ["-rotary_embedding"]} if latent else {}
