"""One layer of the decoder: attention, then feed-forward, each added to the residual stream.

Legend: B batch, T positions, D width.
"""

import torch
from torch import Tensor, nn

from trainer.attention import RMSNorm, attention_of
from trainer.model_recipe import ModelSettings
from trainer.moe import MixtureOfExperts, SwiGLU
from trainer.rope import Context


class Layer(nn.Module):
    """Two residual steps: attention, then feed-forward; the residual stream is fp32."""

    def __init__(self, model: ModelSettings, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(model.width, model.norm_eps)
        self.self_attn = attention_of(model)
        self.post_attention_layernorm = RMSNorm(model.width, model.norm_eps)
        self.mlp = MixtureOfExperts(model) if model.has_experts(index) else SwiGLU(model.width, model.ffn_width)

    def forward(self, x_BTD: Tensor, context: Context, compute: torch.dtype) -> Tensor:
        """Map the residual stream (B, T, D) to itself; `compute` is the type of the matrix products."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD).to(compute), context)
        normed_BTD = self.post_attention_layernorm(x_BTD).to(compute)
        if isinstance(self.mlp, MixtureOfExperts):
            return x_BTD + self.mlp(normed_BTD, context.real)
        return x_BTD + self.mlp(normed_BTD)
