"""The decoder: embedding, pre-normed layers of attention and feed-forward, norm, output projection.

Parameters carry the names that transformers gives them under `model.` (`layers.0.self_attn.q_proj.weight`), so that an
export is a rename and a stack of experts unstacked. What it computes for each form is what the class of transformers
named in `trainer/families/` computes.

Legend: B batch, T positions, N tokens, D width, C head size, V vocabulary.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.attention import Linear, RMSNorm, separation
from trainer.flow_matching import FlowHead
from trainer.layer import Layer
from trainer.loss import Losses, mean_cross_entropy, token_cross_entropies
from trainer.model_recipe import ModelSettings
from trainer.moe import MixtureOfExperts
from trainer.mtp import PredictionModule, has_target, shifted
from trainer.products import linear
from trainer.rope import Context, positions_of, rotary_tables
from trainer.router import Router


class Decoder(nn.Module):
    """A causal language model.

    Attributes:
        settings: its shape.
        compute: type of the matrix products, fp32 or bf16; weights are fp32 in either case.
        recompute: forget what happens within a layer and compute it again in the backward pass; the same numbers.
        flow: head of a second objective (`trainer/flow_matching.py`) while it is trained with; no part of the model.
    """

    cos_TC: Tensor
    sin_TC: Tensor

    def __init__(self, settings: ModelSettings, compute: torch.dtype = torch.float32) -> None:
        super().__init__()
        assert settings.vocab_size > 0
        self.settings = settings
        self.compute = compute
        self.recompute = False
        self.flow: FlowHead | None = None
        # its own empty weight: what fills it is drawn by `new_model` or read from a file
        self.embed_tokens = nn.Embedding(
            settings.vocab_size, settings.width, _weight=torch.empty(settings.vocab_size, settings.width)
        )
        self.layers = nn.ModuleList(Layer(settings, index) for index in range(settings.layers))
        self.norm = RMSNorm(settings.width, settings.norm_eps)
        self.lm_head = None if settings.tie_embeddings else Linear(settings.width, settings.vocab_size)
        self.mtp = nn.ModuleList(PredictionModule(settings, number) for number in range(settings.mtp_layers))
        rotated = settings.mla.rope_dim if settings.mla else settings.head_dim
        cos_TC, sin_TC = rotary_tables(settings.max_sequence, rotated, settings.rope_theta, settings.rope)
        self.register_buffer("cos_TC", cos_TC, persistent=False)
        self.register_buffer("sin_TC", sin_TC, persistent=False)

    @property
    def output_VD(self) -> Tensor:
        """Weight of the output projection, fp32 (V, D); the embedding's own when tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def hidden(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Last normed hidden states, `compute` (B, T, D).

        Args:
            tokens_BT: token ids, int64.
            documents_BT: int64, the document of each position of a packed row: positions begin anew at each, and
                attention does not cross; negative for padding, which no expert sees; None for rows of one document.
        """
        return self._hidden(tokens_BT, self._context(tokens_BT, documents_BT))

    def _context(self, tokens_BT: Tensor, documents_BT: Tensor | None) -> Context:
        positions = tokens_BT.shape[1]
        assert positions <= self.settings.max_sequence, "longer than model.max_sequence"
        if documents_BT is None:
            return Context(self.cos_TC[:positions], self.sin_TC[:positions])
        positions_BT = positions_of(documents_BT)
        real_BT = documents_BT >= 0
        padded = None if bool(real_BT.all()) else real_BT
        return Context(self.cos_TC[positions_BT], self.sin_TC[positions_BT], separation(documents_BT), padded)

    def _hidden(self, tokens_BT: Tensor, context: Context) -> Tensor:
        x_BTD = self.embed_tokens(tokens_BT)
        for layer in self.layers:
            x_BTD = self._pass(layer, x_BTD, context)
        return self.norm(x_BTD).to(self.compute)

    def _pass(self, layer: nn.Module, *inputs: Tensor | Context) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, self.compute, use_reentrant=False)  # type: ignore[no-any-return]
        return layer(*inputs, self.compute)

    def forward(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Logits, `compute` (B, T, V), of the token after each position; arguments as for `hidden`."""
        hidden_BTD = self.hidden(tokens_BT, documents_BT)
        return linear(hidden_BTD, self.output_VD.to(hidden_BTD.dtype))

    def loss(
        self, inputs_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None,
        further: Sequence[float] | None = None,
    ) -> Losses:  # fmt: skip
        """What training minimizes, and its parts.

        Args:
            inputs_BT: token ids, int64.
            targets_BT: the token after each, int64.
            documents_BT: as for `hidden`; padding is neither asked for nor asked.
            further: factor on the loss of each prediction module, where the rows are a part of a batch whose other
                parts have more or fewer targets (`mtp.shares_of_targets`); all 1 when not given.
        """
        context = self._context(inputs_BT, documents_BT)
        hidden_BTD = self._hidden(inputs_BT, context)
        hidden_ND, targets_N = hidden_BTD.flatten(0, 1), targets_BT.flatten()
        if context.real is not None:
            asked_N = (context.real & shifted(context.real, 1)).flatten()
            hidden_ND, targets_N = hidden_ND[asked_N], targets_N[asked_N]
        ar = mean_cross_entropy(hidden_ND, self.output_VD, targets_N)
        none = torch.zeros((), device=ar.device)
        mtp = none
        if self.mtp:
            each_D = self._further(hidden_BTD, targets_BT, documents_BT, context)
            mtp = (each_D if further is None else each_D * each_D.new_tensor(further)).mean()
        routers = self.routers().values()
        aux = [router.aux_loss for router in routers if router.aux_loss is not None]
        z = [router.z_loss for router in routers if router.z_loss is not None]
        parts = (torch.stack(aux).sum() if aux else none, torch.stack(z).sum() if z else none, mtp)
        total = ar + parts[0] + parts[1] + self.settings.mtp_weight * mtp
        if self.flow is None:
            return Losses(total, ar, *parts, none)
        flow = self.flow.next_embedding_loss(hidden_ND, targets_N, self.embed_tokens.weight)
        return Losses(total + self.flow.settings.weight * flow, ar, *parts, flow)

    def _further(self, hidden_BTD: Tensor, targets_BT: Tensor, documents_BT: Tensor | None, context: Context) -> Tensor:
        """Cross-entropy of each prediction module over the positions that have a target, fp32 (modules,)."""
        losses = []
        for depth, module in enumerate(self.mtp, 1):
            embedded_BTD = self.embed_tokens(shifted(targets_BT, depth - 1))
            hidden_BTD = self._pass(module, embedded_BTD, hidden_BTD, context)
            places_N = has_target(tuple(targets_BT.shape), depth, documents_BT).flatten().nonzero()[:, 0]  # type: ignore[arg-type]
            places_N = places_N.to(hidden_BTD.device)
            if len(places_N):
                targets_N = shifted(targets_BT, depth).flatten()[places_N]
                losses.append(mean_cross_entropy(hidden_BTD.flatten(0, 1)[places_N], self.output_VD, targets_N))
            else:
                losses.append(hidden_BTD.float().sum() * 0)  # every weight keeps a gradient
        return torch.stack(losses)

    def token_losses(self, inputs_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Cross-entropy of every target in nats, fp32 (B, T), without a gradient."""
        with torch.no_grad():
            hidden_ND = self.hidden(inputs_BT, documents_BT).flatten(0, 1)
            return token_cross_entropies(hidden_ND, self.output_VD, targets_BT.flatten()).view(targets_BT.shape)

    def routers(self) -> dict[int, Router]:
        """The router of each layer with experts, by layer number from 0; prediction modules go on after the last."""
        layers = [*self.layers, *(module.layer for module in self.mtp)]
        return {n: layer.mlp.gate for n, layer in enumerate(layers) if isinstance(layer.mlp, MixtureOfExperts)}  # type: ignore[union-attr]


def new_model(settings: ModelSettings, seed: int, compute: torch.dtype = torch.float32) -> Decoder:
    """A decoder with fresh weights: normal with std `initial_std`, over sqrt(2 * layers) where the residual is fed.

    The numbers depend on `settings` and `seed` alone: they are drawn on the CPU, one parameter after the other, from a
    generator of their own. Norms begin as ones, biases as zeros.
    """
    model = Decoder(settings, compute)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                continue
            feeds_residual = "o_proj" in name or "down_proj" in name
            std = settings.initial_std / math.sqrt(2 * settings.layers) if feeds_residual else settings.initial_std
            parameter.normal_(0.0, std, generator=generator)
    return model
