import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2ForCausalLM

from filters.nll import batches_of, windows_nll_N, windows_of

VOCABULARY = 61


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def some_windows(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCABULARY, rng.integers(2, 40)).tolist() for _ in range(count)]


def by_hand(model: torch.nn.Module, window: list[int]) -> float:
    """One token at a time, float64, no batch, no padding."""
    exact = type(model)(model.config).double().eval()
    exact.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    total = 0.0
    for n in range(1, len(window)):
        logits = exact(input_ids=torch.tensor([window[:n]])).logits[0, -1]
        total -= float(torch.log_softmax(logits, -1)[window[n]].detach())
    return total


def test_windows_with_prefix_score_every_token():
    assert windows_of([5, 6, 7], 0, 10, True) == [[0, 5, 6, 7]]


def test_windows_without_prefix_leave_the_first_token():
    assert windows_of([5, 6, 7], None, 10, True) == [[5, 6, 7]]


def test_disjoint_windows_see_the_token_before():
    assert windows_of([5, 6, 7, 8, 9], 0, 2, True) == [[0, 5, 6], [6, 7, 8], [8, 9]]


def test_first_window_only():
    assert windows_of([5, 6, 7, 8, 9], 0, 2, False) == [[0, 5, 6]]


@given(st.lists(st.integers(1, 99)), st.sampled_from([None, 0]), st.integers(1, 9))
def test_every_token_is_scored_once(tokens: list[int], prefix: int | None, max_tokens: int):
    scored = [token for window in windows_of(tokens, prefix, max_tokens, True) for token in window[1:]]
    assert scored == (tokens if prefix is not None else tokens[1:])


@given(st.lists(st.integers(1, 50)), st.integers(1, 100))
def test_batches_cover_all_and_keep_the_budget(lengths: list[int], budget: int):
    batches = batches_of(np.array(lengths, dtype=np.int64), budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= budget for b in batches)


def test_zeroed_head_gives_ln_v(model: torch.nn.Module):
    flat = type(model)(model.config).eval()
    torch.nn.init.zeros_(flat.lm_head.weight)
    windows = some_windows(5)
    tokens = np.array([len(window) - 1 for window in windows])
    np.testing.assert_allclose(windows_nll_N(flat, windows, 64) / tokens, math.log(VOCABULARY), rtol=1e-6)


def test_agrees_with_a_float64_loop(model: torch.nn.Module):
    windows = some_windows(7)
    np.testing.assert_allclose(windows_nll_N(model, windows, 100), [by_hand(model, w) for w in windows], rtol=1e-5)


@pytest.mark.parametrize("budget", [1, 33, 10_000])
def test_batch_and_padding_do_not_matter(model: torch.nn.Module, budget: int):
    windows = some_windows(20)
    np.testing.assert_allclose(windows_nll_N(model, windows, budget), windows_nll_N(model, windows, 200), rtol=1e-5)


def test_order_does_not_matter(model: torch.nn.Module):
    windows = some_windows(20)
    np.testing.assert_allclose(
        windows_nll_N(model, windows[::-1], 80)[::-1], windows_nll_N(model, windows, 80), rtol=1e-5
    )


def test_windows_add_up(model: torch.nn.Module):
    document = some_windows(1, seed=3)[0] * 3
    windows = windows_of(document, 0, 16, True)
    apart = [float(windows_nll_N(model, [window], 64)[0]) for window in windows]
    assert math.fsum(apart) == pytest.approx(windows_nll_N(model, windows, 64).sum(), rel=1e-6)


def test_chunks_do_not_matter(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch):
    windows = some_windows(20)
    whole = windows_nll_N(model, windows, 10_000)
    monkeypatch.setattr("filters.nll.CHUNK_TOKENS", 3)
    np.testing.assert_allclose(windows_nll_N(model, windows, 10_000), whole, rtol=1e-6)
