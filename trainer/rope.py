"""Rotary positions: wavelengths, stretched where a model reads beyond its first context, and the rotation itself.

Pairs lie half a head apart (`x[c]` with `x[c + C/2]`), as in transformers' `rotate_half`; DeepSeek's files, whose pairs
are neighbours, are permuted when they are read (`trainer/families/`), so that one layout is computed. In a packed row
positions begin anew at each document.

Legend: B batch, T positions, H heads, C rotated numbers of a head.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.model_recipe import RopeSettings


@dataclass(frozen=True)
class Context:
    """What all layers share of a pass.

    Attributes:
        cos: fp32 (T, C), or (B, T, C) where rows hold several documents.
        sin: likewise.
        documents: `trainer.attention.separation` of the rows; None where each is one document.
        real: bool (B, T), False for padding, whose document number is negative; None where there is none.
    """

    cos: Tensor
    sin: Tensor
    documents: Any = None
    real: Tensor | None = None


def rotary_tables(positions: int, head_dim: int, theta: float, rope: RopeSettings | None) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles.

    Args:
        positions: how many.
        head_dim: rotated numbers of a head.
        theta: base of the wavelengths.
        rope: how they are stretched; None leaves them.

    Returns:
        Two fp32 tensors (positions, head_dim); the second half of the last axis repeats the first.
    """
    frequencies_C = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    scale = 1.0
    if rope is not None:
        frequencies_C = _stretched(frequencies_C, theta, rope)
        scale = _table_factor(rope)
    angles_TC = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies_C).repeat(1, 2)
    return angles_TC.cos() * scale, angles_TC.sin() * scale


def logit_factor(rope: RopeSettings | None) -> float:
    """DeepSeek's factor on the logits of latent attention under YaRN; 1 without `mscale_all_dim`."""
    if rope is None or rope.kind != "yarn" or not rope.mscale_all_dim:
        return 1.0
    return _mscale(rope.factor, rope.mscale_all_dim) ** 2


def _mscale(factor: float, weight: float = 1.0) -> float:
    """`0.1 * weight * ln(factor) + 1` (arXiv:2309.00071, eq. 22)."""
    return 0.1 * weight * math.log(factor) + 1.0


def _table_factor(rope: RopeSettings) -> float:
    if rope.kind != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _mscale(rope.factor, rope.mscale) / _mscale(rope.factor, rope.mscale_all_dim)
    return _mscale(rope.factor)


def _stretched(frequencies_C: Tensor, theta: float, rope: RopeSettings) -> Tensor:
    """Frequencies after stretching, fp32 (C / 2)."""
    if rope.kind == "linear":
        return frequencies_C / rope.factor
    if rope.kind == "llama3":
        # turns within the original context decide; between the two bounds the stretching fades in
        turns_C = rope.original_positions * frequencies_C / (2 * math.pi)
        kept_C = (turns_C - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    else:
        pairs = len(frequencies_C)
        low, high = (_dimension_of(turns, 2 * pairs, theta, rope) for turns in (rope.beta_fast, rope.beta_slow))
        if rope.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        kept_C = 1 - (torch.arange(pairs, dtype=torch.float32) - low) / max(high - low, 1e-3)
    kept_C = kept_C.clamp(0, 1)
    return frequencies_C / rope.factor * (1 - kept_C) + frequencies_C * kept_C


def _dimension_of(turns: float, head_dim: int, theta: float, rope: RopeSettings) -> float:
    """The pair whose wavelength turns this often within the original context (arXiv:2309.00071, section 3.2)."""
    return head_dim * math.log(rope.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))


def positions_of(documents_BT: Tensor) -> Tensor:
    """Position of each token within its document, int64 (B, T)."""
    index_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    begins_BT = torch.zeros_like(documents_BT)
    new_BT = documents_BT[:, 1:] != documents_BT[:, :-1]
    begins_BT[:, 1:] = torch.where(new_BT, index_T[1:], 0)
    return index_T - begins_BT.cummax(dim=1).values


def rotate(x_BTHC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair `(x[c], x[c + C/2])` by its position's angle; heads lie on the third axis."""
    first, second = x_BTHC.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x_BTHC * cos.unsqueeze(-2) + turned * sin.unsqueeze(-2)
