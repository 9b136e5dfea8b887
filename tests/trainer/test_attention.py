"""Attention and positions: packed documents against documents alone, and against sums written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.attention import attend, separation
from trainer.model import new_model
from trainer.model_recipe import MlaSettings, ModelSettings, RopeSettings
from trainer.rope import positions_of, rotary_tables

GROUPED = ModelSettings(
    layers=2, width=32, heads=4, kv_heads=2, head_dim=8, ffn_width=48, vocab_size=61, max_sequence=32,
    rope=RopeSettings(kind="yarn", factor=4.0, original_positions=8),
)  # fmt: skip
LATENT = GROUPED.model_copy(
    update={"mla": MlaSettings(kv_rank=16, rope_dim=4, value_dim=6), "kv_heads": 4, "qk_norm": "none"}
)


def documents_of(rows: list[list[int]]) -> torch.Tensor:
    """Numbers of documents of these lengths, row by row."""
    return torch.stack([torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in rows])


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: torch.Tensor, scale: float) -> torch.Tensor:
    """Softmax over the allowed keys, position by position and head by head."""
    found = torch.zeros(*q.shape[:3], v.shape[-1])
    for b in range(q.shape[0]):
        for t in range(q.shape[1]):
            seen = [s for s in range(t + 1) if documents[b, s] == documents[b, t]]
            for h in range(q.shape[2]):
                g = h * k.shape[2] // q.shape[2]
                share = torch.softmax(torch.stack([q[b, t, h] @ k[b, s, g] for s in seen]) * scale, 0)
                found[b, t, h] = sum(w * v[b, s, g] for w, s in zip(share, seen, strict=True))
    return found


@pytest.mark.parametrize("value_dim", [8, 6, 13])
def test_attention_is_the_sum_written_out(value_dim: int):
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 9, h, c, generator=draw) for h, c in ((4, 8), (2, 8), (2, value_dim)))
    documents = documents_of([[4, 5], [1, 7, 1]])
    found = attend(q, k, v, separation(documents), torch.float32, 0.3)
    torch.testing.assert_close(found, plain(q, k, v, documents, 0.3))
    one = documents_of([[9], [9]])
    torch.testing.assert_close(attend(q, k, v, None, torch.float32, 0.3), plain(q, k, v, one, 0.3))


@pytest.mark.parametrize("shape", [GROUPED, LATENT], ids=["grouped", "latent"])
@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_a_packed_document_is_read_as_if_alone(shape: ModelSettings, lengths: list[int]):
    model = new_model(shape, 0).eval()
    tokens = torch.randint(0, 61, (1, sum(lengths)), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        packed = model.hidden(tokens, documents_of([lengths]))
        alone = [model.hidden(part) for part in tokens.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=1e-5, atol=1e-6)


def test_one_document_is_no_document():
    model = new_model(GROUPED, 0).eval()
    tokens = torch.randint(0, 61, (3, 20), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        told, untold = model.hidden(tokens, torch.full((3, 20), 7)), model.hidden(tokens)
    torch.testing.assert_close(told, untold)


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_positions_begin_anew(lengths: list[int]):
    assert positions_of(documents_of([lengths]))[0].tolist() == [p for length in lengths for p in range(length)]


def test_stretched_wavelengths_keep_the_short_and_stretch_the_long():
    plain_cos, _ = rotary_tables(2, 32, 1e4, None)
    cos, _ = rotary_tables(2, 32, 1e4, RopeSettings(kind="llama3", factor=8.0, original_positions=64))
    angle, stretched = plain_cos[1].acos(), cos[1].acos()
    assert stretched[0] == angle[0]  # turns about ten times within 64 positions
    assert stretched[15] == pytest.approx(float(angle[15]) / 8, rel=0.2)  # never turns once; acos of nearly 1 is rough
