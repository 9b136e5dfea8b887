"""Which models are rotated without vLLM's kernel; that it takes that: `tests/synth/test_engine_vllm.py`, slow."""

import json
from pathlib import Path

import pytest

from pipelines.vllm_rotation import rotation_on_cpu


@pytest.mark.parametrize(("config", "expected"), [
    ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, {"custom_ops": ["-rotary_embedding"]}),
    ({"head_dim": 64}, {}),
])  # fmt: skip
def test_latent_attention_is_rotated_by_torch(tmp_path: Path, config: dict[str, int], expected: dict[str, list[str]]):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert rotation_on_cpu(tmp_path) == expected
