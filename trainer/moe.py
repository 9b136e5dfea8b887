"""The feed-forward half of a layer: one SwiGLU, or a mixture of SwiGLU experts with a shared one.

Balance is kept without a loss: a bias per expert, moved by the sign of its over- or underload after each step, decides
who is chosen but never how much they count (arXiv:2408.15664; as in DeepSeek-V3 and dots.llm1). Tokens are sorted by
expert, multiplied in groups and gathered back by the inverse permutation: no atomic addition, the same bits each time.

Legend: B batch, T positions, N tokens, D width, E experts, K experts per token, M = N * K, F expert width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.attention import Linear
from trainer.recipe import ModelSettings


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))` (arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, hidden)
        self.up_proj = Linear(width, hidden)
        self.down_proj = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    """Chooses experts by sigmoid score plus bias, and weighs them by score alone.

    Attributes:
        e_score_correction_bias: fp32 (E,), the balancing bias; saved with the model.
        load_E: int64 (E,), choices counted since the last `rebalance`; training passes only.
        aux_loss: the sequence-wise balance loss of the last training pass, or None when its coefficient is 0.
    """

    e_score_correction_bias: Tensor
    load_E: Tensor

    def __init__(self, model: ModelSettings) -> None:
        super().__init__()
        self.model = model
        self.weight = nn.Parameter(torch.empty(model.experts, model.width))
        self.register_buffer("e_score_correction_bias", torch.zeros(model.experts))
        self.register_buffer("load_E", torch.zeros(model.experts, dtype=torch.int64), persistent=False)
        self.aux_loss: Tensor | None = None

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Choose.

        Returns:
            Weights, fp32 (N, K), and chosen experts, int64 (N, K).
        """
        # fp32 router: in bf16 near ties fall differently from pass to pass
        scores_NE = F.linear(x_BTD.flatten(0, 1).float(), self.weight).sigmoid()
        with torch.no_grad():
            biased_NE = scores_NE + self.e_score_correction_bias
            chosen_NK = biased_NE.topk(self.model.experts_per_token, dim=-1).indices
        weights_NK = scores_NE.gather(1, chosen_NK)
        weights_NK = weights_NK / (weights_NK.sum(dim=-1, keepdim=True) + 1e-20) * self.model.routed_scaling
        if self.training:
            self.load_E += torch.bincount(chosen_NK.flatten(), minlength=self.model.experts)
            if self.model.aux_loss:
                self.aux_loss = self._sequence_balance(scores_NE, chosen_NK, x_BTD.shape[0])
        return weights_NK, chosen_NK

    def _sequence_balance(self, scores_NE: Tensor, chosen_NK: Tensor, batch: int) -> Tensor:
        """`E * sum_e share_e * mean normalized score_e` per sequence, averaged; 1 when balanced."""
        shares_NE = scores_NE / scores_NE.sum(dim=-1, keepdim=True)
        mean_BE = shares_NE.view(batch, -1, self.model.experts).mean(dim=1)
        chosen_BM = chosen_NK.view(batch, -1)
        ones_BM = torch.ones_like(chosen_BM, dtype=mean_BE.dtype)
        share_BE = torch.zeros_like(mean_BE).scatter_add_(1, chosen_BM, ones_BM) / chosen_BM.shape[1]
        return self.model.experts * (share_BE * mean_BE).sum(dim=-1).mean()

    def rebalance(self) -> Tensor:
        """Move the bias against the load counted since the last call, and start counting anew.

        Returns:
            int64 (E,): the load.
        """
        load_E = self.load_E.clone()
        if self.model.bias_update_rate:
            mean = load_E.sum() / self.model.experts
            self.e_score_correction_bias += self.model.bias_update_rate * torch.sign(mean - load_E)
        self.load_E.zero_()
        return load_E


class _Dispatch(torch.autograd.Function):
    """Copy each token K times and sort the copies by expert; the gradient sums the copies in a fixed order."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, order_M: Tensor, inverse_M: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_M)
        ctx.copies = order_M.numel() // x_ND.shape[0]
        return x_ND.index_select(0, order_M // ctx.copies)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse_M,) = ctx.saved_tensors
        back_MD = grads[0].index_select(0, inverse_M)
        return back_MD.view(-1, ctx.copies, back_MD.shape[-1]).sum(dim=1), None, None


class _Gather(torch.autograd.Function):
    """Undo the sort: a permutation, whose gradient is the inverse permutation."""

    @staticmethod
    def forward(ctx: Any, y_MD: Tensor, order_M: Tensor, inverse_M: Tensor) -> Tensor:
        ctx.save_for_backward(order_M)
        return y_MD.index_select(0, inverse_M)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (order_M,) = ctx.saved_tensors
        return grads[0].index_select(0, order_M), None, None


class Experts(nn.Module):
    """The routed experts, their weights stacked.

    Attributes:
        gate_up_proj: fp32 (E, 2F, D), gate above up.
        down_proj: fp32 (E, D, F).
    """

    def __init__(self, model: ModelSettings) -> None:
        super().__init__()
        self.experts = model.experts
        self.gate_up_proj = nn.Parameter(torch.empty(model.experts, 2 * model.expert_width, model.width))
        self.down_proj = nn.Parameter(torch.empty(model.experts, model.width, model.expert_width))

    def forward(self, x_ND: Tensor, weights_NK: Tensor, chosen_NK: Tensor) -> Tensor:
        """Weighted sum of the chosen experts' answers, (N, D)."""
        expert_M = chosen_NK.flatten()
        order_M = expert_M.argsort(stable=True)
        inverse_M = torch.empty_like(order_M).scatter_(0, order_M, torch.arange(len(order_M), device=order_M.device))
        ends_E = torch.bincount(expert_M, minlength=self.experts).cumsum(0).to(torch.int32)
        sorted_MD = _Dispatch.apply(x_ND, order_M, inverse_M)
        gate_up_E = self.gate_up_proj.to(x_ND.dtype).transpose(1, 2)
        down_E = self.down_proj.to(x_ND.dtype).transpose(1, 2)
        gate_MF, up_MF = F.grouped_mm(sorted_MD, gate_up_E, offs=ends_E).chunk(2, dim=-1)
        answer_MD = F.grouped_mm(F.silu(gate_MF) * up_MF, down_E, offs=ends_E)
        answer_NKD = _Gather.apply(answer_MD, order_M, inverse_M).view(*chosen_NK.shape, -1)
        return (weights_NK.to(x_ND.dtype).unsqueeze(-1) * answer_NKD).sum(dim=1)


class MixtureOfExperts(nn.Module):
    """Routed experts plus the shared one."""

    def __init__(self, model: ModelSettings) -> None:
        super().__init__()
        self.gate = Router(model)
        self.experts = Experts(model)
        self.shared_experts = SwiGLU(model.width, model.shared_experts * model.expert_width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        weights_NK, chosen_NK = self.gate(x_BTD)
        routed_ND = self.experts(x_BTD.flatten(0, 1), weights_NK, chosen_NK)
        return routed_ND.view_as(x_BTD) + self.shared_experts(x_BTD)
