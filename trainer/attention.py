"""Causal self-attention, grouped-query or latent, and the projections and norms that the whole model is made of.

Today's default normalizes heads before the rotation (Qwen3), which bounds the logits and lets small models take large
learning rates. Where a row is packed from several documents, no position sees another document: on a CPU each is
attended to alone (a mask costs up to twice the plain causal form, this a third of it at eight documents to a row); on a
GPU by FlexAttention, which skips blocks without a common document.

Legend: B batch, T positions, D width, H query heads, G key/value heads, C head size, V value size, R rotated numbers.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.model_recipe import LATENT_EPS, MlaSettings, ModelSettings
from trainer.products import linear
from trainer.rope import Context, logit_factor, rotate


class Linear(nn.Module):
    """A projection; weight and bias are fp32 and are cast to the type of what they multiply."""

    def __init__(self, wide_in: int, wide_out: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(wide_out, wide_in))
        self.bias = nn.Parameter(torch.zeros(wide_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Project the last axis: (..., in) to (..., out)."""
        return linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis, in fp32 (arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize; the result is fp32 whatever `x` is."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention (arXiv:2305.13245)."""

    def __init__(self, model: ModelSettings) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = model.heads, model.kv_heads, model.head_dim
        queries, keys = model.heads * model.head_dim, model.kv_heads * model.head_dim
        self.q_proj = Linear(model.width, queries, model.qkv_bias)
        self.k_proj = Linear(model.width, keys, model.qkv_bias)
        self.v_proj = Linear(model.width, keys, model.qkv_bias)
        self.o_proj = Linear(queries, model.width)
        self.full_norm = model.qk_norm == "full"
        if model.qk_norm == "none":
            self.q_norm = self.k_norm = None
        else:
            self.q_norm = RMSNorm(queries if self.full_norm else model.head_dim, model.norm_eps)
            self.k_norm = RMSNorm(keys if self.full_norm else model.head_dim, model.norm_eps)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """Attend; input and result are (B, T, D) of one type."""
        q_BTHC = self._heads(self.q_proj(x_BTD), self.heads, self.q_norm)
        k_BTGC = self._heads(self.k_proj(x_BTD), self.kv_heads, self.k_norm)
        v_BTGC = self.v_proj(x_BTD).unflatten(-1, (self.kv_heads, self.head_dim))
        q_BTHC, k_BTGC = (rotate(x, context.cos, context.sin) for x in (q_BTHC, k_BTGC))
        mixed_BTHV = attend(q_BTHC, k_BTGC, v_BTGC, context.documents, x_BTD.dtype)
        return self.o_proj(mixed_BTHV.flatten(-2))

    def _heads(self, x: Tensor, heads: int, norm: RMSNorm | None) -> Tensor:
        """Divide into heads, normed before (over the full width) or after."""
        if norm is None:
            return x.unflatten(-1, (heads, self.head_dim))
        if self.full_norm:
            return norm(x).unflatten(-1, (heads, self.head_dim))
        return norm(x.unflatten(-1, (heads, self.head_dim)))


class LatentAttention(nn.Module):
    """Multi-head latent attention (arXiv:2405.04434, section 2.1), expanded to heads as training does."""

    def __init__(self, model: ModelSettings, mla: MlaSettings) -> None:
        super().__init__()
        self.heads, self.head_dim, self.mla = model.heads, model.head_dim, mla
        self.plain_dim = model.head_dim - mla.rope_dim
        queries = model.heads * model.head_dim
        if mla.q_rank is None:
            self.q_proj = Linear(model.width, queries)
        else:
            self.q_a_proj = Linear(model.width, mla.q_rank)
            self.q_a_layernorm = RMSNorm(mla.q_rank, LATENT_EPS)
            self.q_b_proj = Linear(mla.q_rank, queries)
        self.kv_a_proj_with_mqa = Linear(model.width, mla.kv_rank + mla.rope_dim)
        self.kv_a_layernorm = RMSNorm(mla.kv_rank, LATENT_EPS)
        self.kv_b_proj = Linear(mla.kv_rank, model.heads * (self.plain_dim + mla.value_dim))
        self.o_proj = Linear(model.heads * mla.value_dim, model.width)
        self.scale = model.head_dim**-0.5 * logit_factor(model.rope)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        """Attend; input and result are (B, T, D) of one type."""
        q_BTHC = self._queries(x_BTD).unflatten(-1, (self.heads, self.head_dim))
        plain_BTHC, turned_BTHR = q_BTHC.split((self.plain_dim, self.mla.rope_dim), dim=-1)
        latent, key_BTR = self.kv_a_proj_with_mqa(x_BTD).split((self.mla.kv_rank, self.mla.rope_dim), dim=-1)
        expanded = self.kv_b_proj(self.kv_a_layernorm(latent).to(x_BTD.dtype)).unflatten(-1, (self.heads, -1))
        k_BTHC, v_BTHV = expanded.split((self.plain_dim, self.mla.value_dim), dim=-1)
        turned_BTHR = rotate(turned_BTHR, context.cos, context.sin).to(x_BTD.dtype)
        key_BT1R = rotate(key_BTR.unsqueeze(-2), context.cos, context.sin).to(x_BTD.dtype)
        q_BTHC = torch.cat((plain_BTHC, turned_BTHR), dim=-1)
        k_BTHC = torch.cat((k_BTHC, key_BT1R.expand(*k_BTHC.shape[:-1], -1)), dim=-1)
        mixed_BTHV = attend(q_BTHC, k_BTHC, v_BTHV, context.documents, x_BTD.dtype, self.scale)
        return self.o_proj(mixed_BTHV.flatten(-2))

    def _queries(self, x_BTD: Tensor) -> Tensor:
        if self.mla.q_rank is None:
            return self.q_proj(x_BTD)
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)).to(x_BTD.dtype))


def attention_of(model: ModelSettings) -> nn.Module:
    """The attention that a model's settings ask for."""
    return Attention(model) if model.mla is None else LatentAttention(model, model.mla)


def attend(
    q_BTHC: Tensor, k_BTGC: Tensor, v_BTGV: Tensor, documents: Any, dtype: torch.dtype, scale: float | None = None
) -> Tensor:  # fmt: skip
    """Causal attention within documents.

    Args:
        q_BTHC: queries.
        k_BTGC: keys; G divides H.
        v_BTGV: values.
        documents: of `separation`; None where a row is one document.
        dtype: of the products on a GPU, and of the result.
        scale: of the logits; None is `C ** -0.5`.

    Returns:
        `dtype` (B, T, H, V).
    """
    q, k, v = (x.to(inner_type(x.device, dtype)) for x in (q_BTHC, k_BTGC, v_BTGV))
    if isinstance(documents, list):
        return _one_by_one(q, k, v, documents, scale).to(dtype)
    if documents is None:
        return _causal(q, k, v, scale).to(dtype)
    heads = (x.transpose(1, 2) for x in (q, k, v))
    mixed = _flex()(*heads, block_mask=documents, scale=scale, enable_gqa=q.shape[2] != k.shape[2])
    return mixed.transpose(1, 2).to(dtype)


def inner_type(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Type of the attention kernel; fp32 on a CPU, whose bf16 form is exact too, but three times slower backward."""
    return torch.float32 if device.type == "cpu" else dtype


def _causal(q_BTHC: Tensor, k_BTGC: Tensor, v_BTGV: Tensor, scale: float | None) -> Tensor:
    """Plain causal attention, (B, T, H, V)."""
    q, k, v = (x.transpose(1, 2) for x in (q_BTHC, k_BTGC, v_BTGV))
    missing = q.shape[-1] - v.shape[-1]
    if missing > 0 and q.device.type == "cpu":
        v = F.pad(v, (0, missing))  # unequal sizes fall back to a form that holds all T * T weights
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return mixed[..., : v_BTGV.shape[-1]].transpose(1, 2)


@torch.compiler.disable()  # every batch cuts elsewhere, so that compiled code would never be used again
def _one_by_one(q_BTHC: Tensor, k_BTGC: Tensor, v_BTGV: Tensor, lengths: list[int], scale: float | None) -> Tensor:
    """Causal attention of each document alone, (B, T, H, V)."""
    cut = [x.flatten(0, 1).split(lengths) for x in (q_BTHC, k_BTGC, v_BTGV)]
    parts = [_causal(q_THC[None], k_TGC[None], v_TGV[None], scale) for q_THC, k_TGC, v_TGV in zip(*cut, strict=True)]
    return torch.cat(parts, dim=1).squeeze(0).unflatten(0, q_BTHC.shape[:2])


@cache
def _flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def separation(documents_BT: Tensor) -> Any:
    """Who may see whom: earlier positions of the same document.

    Args:
        documents_BT: int64, the document of each position, equal numbers side by side.

    Returns:
        On a CPU the lengths of the documents, row after row; on a GPU FlexAttention's BlockMask.
    """
    if documents_BT.device.type == "cpu":
        begins_BT = torch.ones_like(documents_BT, dtype=torch.bool)
        begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
        begins_N = begins_BT.flatten().nonzero()[:, 0]
        return begins_N.diff(append=torch.tensor([documents_BT.numel()])).tolist()
    from torch.nn.attention.flex_attention import create_block_mask

    def same_document(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (documents_BT[row, query] == documents_BT[row, key]) & (query >= key)

    batch, positions = documents_BT.shape
    return create_block_mask(same_document, batch, None, positions, positions, device=str(documents_BT.device))
