"""Perplexity against programs that others wrote: lm-evaluation-harness, and vLLM."""

import importlib
import importlib.util
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from filters.perplexity import PerplexitySettings, score_perplexity

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
TEXTS = [
    "Loam is a soil of sand, silt and clay.",
    "土壤是地球表面的疏松层。🌱",
    "abc " * 100,
    "one\r\n\r\ntwo",
    "x" * 300,
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 with one token per byte, and attention heads that vLLM's CPU build has a kernel for."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    config = Qwen2Config(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=128, initializer_range=0.2, bos_token_id=256, eos_token_id=256,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def latent_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random dense DeepSeek-V3, whose latent attention vLLM's CPU build rotates rightly without its kernel only."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("latent")
    config = DeepseekV3Config(
        vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, bos_token_id=256, eos_token_id=256,
        kv_lora_rank=512, q_lora_rank=None, qk_nope_head_dim=32, qk_rope_head_dim=64, v_head_dim=32,
        first_k_dense_replace=2,
    )  # fmt: skip
    DeepseekV3ForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)


def scores(model: Path, tmp_path: Path, name: str, **settings) -> pa.Table:
    file = tmp_path / "in" / "kept" / "web" / "part-00000.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": list(map(str, range(len(TEXTS)))), "text": TEXTS}), file)
    score_perplexity([file], tmp_path / name, PerplexitySettings(**settings), model)
    return pq.read_table(tmp_path / name / "scores" / "web" / "part-00000.parquet")


def test_sums_agree_with_lm_evaluation_harness(model: Path, tmp_path: Path):
    """No document here ends with a short window after others, which lm-eval alone would give more context."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    mine = scores(model, tmp_path, "w", long_documents="disjoint", max_tokens=100)
    harness = HFLM(
        pretrained=Qwen2ForCausalLM.from_pretrained(model), tokenizer=PreTrainedTokenizerFast.from_pretrained(model),
        max_length=100, batch_size=1,
    )  # fmt: skip
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in TEXTS]
    theirs = -np.array(harness.loglikelihood_rolling(requests, disable_tqdm=True))
    assert mine["scored_tokens"].to_pylist() == [len(text.encode()) for text in TEXTS]
    np.testing.assert_allclose(mine["sum_nll_nats"].to_numpy(), theirs, rtol=1e-4)


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("name", ["model", "latent_model"])
def test_sums_agree_with_vllm(name: str, tmp_path: Path, request: pytest.FixtureRequest):
    model = request.getfixturevalue(name)
    importlib.import_module("numba")  # as after kernels ran in this process, which vLLM's start must bear
    settings = {"long_documents": "disjoint", "max_tokens": 100}
    mine = scores(model, tmp_path, "transformers", **settings)
    theirs = scores(model, tmp_path, "vllm", scorer="vllm", **settings)
    assert mine["scored_tokens"] == theirs["scored_tokens"]
    np.testing.assert_allclose(mine["sum_nll_nats"].to_numpy(), theirs["sum_nll_nats"].to_numpy(), rtol=1e-4)
