"""The feed-forward half of a layer: one SwiGLU, or a mixture of SwiGLU experts with or without a shared one.

Who visits whom is decided in `trainer/router.py`, and the routed experts are multiplied in `trainer/grouped.py`; here
stand the weights, under the names and in the layout that transformers gives them.

Legend: B batch, T positions, N tokens, D width, E experts, K experts per token, F expert width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.attention import Linear
from trainer.grouped import mix_experts
from trainer.model_recipe import ModelSettings
from trainer.router import Router


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


class Experts(nn.Module):
    """The routed experts, their weights stacked.

    Attributes:
        gate_up_proj: fp32 (E, 2F, D), gate above up.
        down_proj: fp32 (E, D, F).
    """

    def __init__(self, model: ModelSettings) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(model.experts, 2 * model.expert_width, model.width))
        self.down_proj = nn.Parameter(torch.empty(model.experts, model.width, model.expert_width))

    def forward(self, x_ND: Tensor, weights_NK: Tensor, chosen_NK: Tensor, whole: bool = True) -> Tensor:
        """Weighted sum of the chosen experts' answers, (N, D); arguments as for `trainer.grouped.mix_experts`."""
        gate_up_E, down_E = self.gate_up_proj.to(x_ND.dtype), self.down_proj.to(x_ND.dtype)
        return mix_experts(x_ND, weights_NK, chosen_NK, gate_up_E, down_E, whole)


class MixtureOfExperts(nn.Module):
    """Routed experts, plus the shared one where there is one.

    Attributes:
        gate: chooses.
        experts: the routed ones.
        shared_experts: the one that every token visits; None when there is none.
        shared_expert_gate: (1, D), whose sigmoid scales the shared expert's answer; None leaves it as it is.
    """

    def __init__(self, model: ModelSettings) -> None:
        super().__init__()
        self.gate = Router(model)
        self.experts = Experts(model)
        self.shared_experts = SwiGLU(model.width, model.shared_hidden) if model.shared_hidden else None
        self.shared_expert_gate = Linear(model.width, 1) if model.shared_gate else None

    def forward(self, x_BTD: Tensor, real_BT: Tensor | None = None) -> Tensor:
        """Map (B, T, D) to (B, T, D); `real_BT` is False for padding, None when there is none."""
        weights_NK, chosen_NK = self.gate(x_BTD, real_BT)
        whole = real_BT is None and self.gate.keeps_all
        mixed_BTD = self.experts(x_BTD.flatten(0, 1), weights_NK, chosen_NK, whole).view_as(x_BTD)
        if self.shared_experts is None:
            return mixed_BTD
        shared_BTD = self.shared_experts(x_BTD)
        if self.shared_expert_gate is not None:
            shared_BTD = self.shared_expert_gate(x_BTD).sigmoid() * shared_BTD
        return mixed_BTD + shared_BTD
