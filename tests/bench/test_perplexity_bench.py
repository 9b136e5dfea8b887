import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from filters.nll import windows_nll_N

VOCABULARY = 8192


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.bench
@pytest.mark.parametrize("width", [96, 128], ids=["1.1M", "1.8M"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scoring_speed(width: int, dtype: str, one_thread: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Tokens per second of one thread, and what the fp32 matrix product of this machine would allow."""
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=width * 8 // 3, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval().to(getattr(torch, dtype))
    rng = np.random.default_rng(0)
    windows = [rng.integers(0, VOCABULARY, int(n)).tolist() for n in rng.integers(50, 513, 100)]
    windows_nll_N(model, windows[:5], 2048)
    started = time.perf_counter()
    windows_nll_N(model, windows, 2048)
    speed = sum(map(len, windows)) / (time.perf_counter() - started)
    parameters = sum(p.numel() for p in model.parameters())
    ceiling = product_flops() / (2 * parameters)
    with capsys.disabled():
        print(
            f"\n{parameters / 1e6:.2f} M parameters, {dtype}: {speed:,.0f} tokens/s; fp32 products alone {ceiling:,.0f}"
        )
    assert speed > 0


def product_flops() -> float:
    """Measured float32 multiply-adds times two per second, one thread."""
    a, b = torch.randn(2048, 128), torch.randn(128, VOCABULARY)
    a @ b
    started = time.perf_counter()
    for _ in range(5):
        a @ b
    return 5 * 2 * 2048 * 128 * VOCABULARY / (time.perf_counter() - started)


@pytest.mark.bench
def test_against_plain_loops(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Both cores: length-bucketed batches against plain loops with batch 1 and with batches of 16 as they come."""
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=344, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.6, 0.9, 200), 8, 512).astype(int)
    windows = [rng.integers(1, VOCABULARY, n).tolist() for n in lengths]
    loops = {
        "Loam": lambda: windows_nll_N(model, windows, 2048),
        "batch 1": lambda: np.concatenate([plain_nll(model, [window]) for window in windows]),
        "batches of 16": lambda: np.concatenate([plain_nll(model, windows[i : i + 16]) for i in range(0, 200, 16)]),
    }
    seconds, sums = dict.fromkeys(loops, 0.0), {}
    for _ in range(3):
        for name, loop in loops.items():
            started = time.perf_counter()
            sums[name] = loop()
            seconds[name] += time.perf_counter() - started
    for name in loops:
        np.testing.assert_allclose(sums[name], sums["Loam"], rtol=1e-4)
    with capsys.disabled():
        print()
        for name, spent in seconds.items():
            speed = 3 * int(lengths.sum()) / spent
            print(f"{name:>14}: {speed:8,.0f} tokens/s, Loam is {spent / seconds['Loam']:.2f}x as fast")


@torch.inference_mode()
def plain_nll(model: torch.nn.Module, windows: list[list[int]]) -> np.ndarray:
    """What a script would do: pad with an attention mask, take the log-softmax of all logits."""
    longest = max(map(len, windows))
    ids = torch.tensor([window + [0] * (longest - len(window)) for window in windows])
    mask = torch.tensor([[1] * len(window) + [0] * (longest - len(window)) for window in windows])
    logp = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits[:, :-1].float(), -1)
    nll = -logp.gather(2, ids[:, 1:, None])[..., 0] * mask[:, 1:]
    return nll.double().sum(1).numpy()
