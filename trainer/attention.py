"""Grouped-query attention with normalized queries and keys, and the RMSNorm and rotary positions that it needs.

Heads are normalized before the rotation (Qwen3), which bounds the logits and lets small models take large learning
rates. The rotation is the half-split form of transformers (`rotate_half`), so that no weight is permuted on export.

Legend: B batch, T positions, D width, H query heads, G key/value heads, C head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.recipe import ModelSettings


class Linear(nn.Module):
    """A projection without bias; the weight is fp32 and is cast to the type of what it multiplies."""

    def __init__(self, wide_in: int, wide_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(wide_out, wide_in))

    def forward(self, x: Tensor) -> Tensor:
        """Project the last axis: (..., in) to (..., out)."""
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis, in fp32 (arXiv:1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize; the result is fp32 whatever `x` is."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


def rotary_tables(positions: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles.

    Returns:
        Two fp32 tensors (positions, head_dim); the second half of the last axis repeats the first.
    """
    frequencies_C = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles_TC = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies_C).repeat(1, 2)
    return angles_TC.cos(), angles_TC.sin()


def rotate(x_BTHC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Turn each pair `(x[c], x[c + C/2])` by its position's angle; heads lie on the third axis."""
    first, second = x_BTHC.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x_BTHC * cos_TC.unsqueeze(1) + turned * sin_TC.unsqueeze(1)


class Attention(nn.Module):
    """Causal self-attention over a whole sample.

    A sample is packed from several documents, and attention crosses their boundaries, as in Megatron's default;
    masking at document boundaries is not done.
    """

    def __init__(self, model: ModelSettings) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = model.heads, model.kv_heads, model.head_dim
        self.q_proj = Linear(model.width, model.heads * model.head_dim)
        self.k_proj = Linear(model.width, model.kv_heads * model.head_dim)
        self.v_proj = Linear(model.width, model.kv_heads * model.head_dim)
        self.o_proj = Linear(model.heads * model.head_dim, model.width)
        self.q_norm = RMSNorm(model.head_dim, model.norm_eps)
        self.k_norm = RMSNorm(model.head_dim, model.norm_eps)

    def forward(self, x_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
        """Attend; input and result are (B, T, D) of one type."""
        batch, positions, _ = x_BTD.shape
        q_BTHC = self.q_proj(x_BTD).view(batch, positions, self.heads, self.head_dim)
        k_BTGC = self.k_proj(x_BTD).view(batch, positions, self.kv_heads, self.head_dim)
        v_BTGC = self.v_proj(x_BTD).view(batch, positions, self.kv_heads, self.head_dim)
        # fp32 on a CPU: its bf16 attention is exact too, but three times slower backward
        inner = torch.float32 if x_BTD.device.type == "cpu" else x_BTD.dtype
        q_BTHC = rotate(self.q_norm(q_BTHC), cos_TC, sin_TC).to(inner)
        k_BTGC = rotate(self.k_norm(k_BTGC), cos_TC, sin_TC).to(inner)
        mixed_BHTC = F.scaled_dot_product_attention(
            q_BTHC.transpose(1, 2), k_BTGC.transpose(1, 2), v_BTGC.transpose(1, 2).to(inner),
            is_causal=True, enable_gqa=self.heads != self.kv_heads,
        )  # fmt: skip
        mixed_BTD = mixed_BHTC.transpose(1, 2).reshape(batch, positions, self.heads * self.head_dim)
        return self.o_proj(mixed_BTD.to(x_BTD.dtype))
