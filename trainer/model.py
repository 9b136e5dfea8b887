"""The decoder: embedding, pre-normed layers of attention and feed-forward, norm, output projection.

Parameters carry the names that transformers gives them under `model.` (`layers.0.self_attn.q_proj.weight`), so that an
export is a rename and a stack of experts unstacked. The dense form computes what `Qwen3ForCausalLM` does, the form with
experts what `Dots1ForCausalLM` does.

Legend: B batch, T positions, N tokens, D width, C head size, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn

from trainer.attention import Attention, Linear, RMSNorm, rotary_tables
from trainer.loss import mean_cross_entropy, token_cross_entropies
from trainer.moe import MixtureOfExperts, Router, SwiGLU
from trainer.recipe import ModelSettings

INITIAL_STD = 0.02  # GPT-2's, arXiv:1909.08053 section 4


class Layer(nn.Module):
    """Two residual steps: attention, then feed-forward; the residual stream is fp32."""

    def __init__(self, model: ModelSettings, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(model.width, model.norm_eps)
        self.self_attn = Attention(model)
        self.post_attention_layernorm = RMSNorm(model.width, model.norm_eps)
        self.mlp = MixtureOfExperts(model) if model.has_experts(index) else SwiGLU(model.width, model.ffn_width)

    def forward(self, x_BTD: Tensor, cos_TC: Tensor, sin_TC: Tensor, compute: torch.dtype) -> Tensor:
        """Map the residual stream (B, T, D) to itself; `compute` is the type of the matrix products."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD).to(compute), cos_TC, sin_TC)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD).to(compute))


class Decoder(nn.Module):
    """A causal language model.

    Attributes:
        settings: its shape.
        compute: type of the matrix products, fp32 or bf16; weights are fp32 in either case.
    """

    cos_TC: Tensor
    sin_TC: Tensor

    def __init__(self, settings: ModelSettings, compute: torch.dtype = torch.float32) -> None:
        super().__init__()
        assert settings.vocab_size > 0
        self.settings = settings
        self.compute = compute
        self.embed_tokens = nn.Embedding(settings.vocab_size, settings.width)
        self.layers = nn.ModuleList(Layer(settings, index) for index in range(settings.layers))
        self.norm = RMSNorm(settings.width, settings.norm_eps)
        self.lm_head = None if settings.tie_embeddings else Linear(settings.width, settings.vocab_size)
        cos_TC, sin_TC = rotary_tables(settings.max_sequence, settings.head_dim, settings.rope_theta)
        self.register_buffer("cos_TC", cos_TC, persistent=False)
        self.register_buffer("sin_TC", sin_TC, persistent=False)

    @property
    def output_VD(self) -> Tensor:
        """Weight of the output projection, fp32 (V, D); the embedding's own when tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """Last normed hidden states, `compute` (B, T, D), of token ids, int64 (B, T)."""
        positions = tokens_BT.shape[1]
        assert positions <= self.settings.max_sequence, "longer than model.max_sequence"
        cos_TC, sin_TC = self.cos_TC[:positions], self.sin_TC[:positions]
        x_BTD = self.embed_tokens(tokens_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos_TC, sin_TC, self.compute)
        return self.norm(x_BTD).to(self.compute)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits, `compute` (B, T, V), of the token after each position."""
        hidden_BTD = self.hidden(tokens_BT)
        return nn.functional.linear(hidden_BTD, self.output_VD.to(hidden_BTD.dtype))

    def loss(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token, fp32 scalar; balance losses are apart (`aux_losses`)."""
        hidden_ND = self.hidden(inputs_BT).flatten(0, 1)
        return mean_cross_entropy(hidden_ND, self.output_VD, targets_BT.flatten())

    def token_losses(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Cross-entropy of every target in nats, fp32 (B, T), without a gradient."""
        with torch.no_grad():
            hidden_ND = self.hidden(inputs_BT).flatten(0, 1)
            return token_cross_entropies(hidden_ND, self.output_VD, targets_BT.flatten()).view(targets_BT.shape)

    def routers(self) -> dict[int, Router]:
        """The router of each layer with experts, by layer number from 0."""
        return {n: layer.mlp.gate for n, layer in enumerate(self.layers) if isinstance(layer.mlp, MixtureOfExperts)}  # type: ignore[union-attr]

    def aux_losses(self) -> Tensor | None:
        """Sum over layers of the balance losses of the last training pass; None when the model has none."""
        losses = [router.aux_loss for router in self.routers().values() if router.aux_loss is not None]
        return torch.stack(losses).sum() if losses else None


def new_model(settings: ModelSettings, seed: int, compute: torch.dtype = torch.float32) -> Decoder:
    """A decoder with fresh weights: normal with std 0.02, divided by sqrt(2 * layers) where the residual stream is fed.

    The numbers depend on `settings` and `seed` alone: they are drawn on the CPU, one parameter after the other, from a
    generator of their own.
    """
    model = Decoder(settings, compute)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                continue  # norms begin as ones
            feeds_residual = "o_proj" in name or "down_proj" in name
            std = INITIAL_STD / math.sqrt(2 * settings.layers) if feeds_residual else INITIAL_STD
            parameter.normal_(0.0, std, generator=generator)
    return model
