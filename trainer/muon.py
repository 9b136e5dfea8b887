"""Muon: momentum whose direction is made orthogonal, for the matrices within the layers (arXiv:2502.16982).

torch has a Muon for matrices; the experts' weights are stacks of them, which this one turns in one batched product. The
update is scaled by `0.2 * sqrt(larger side)`, so that its size is that of AdamW and one learning rate serves both (the
paper's section 2.2). What is no direction (embeddings, routers, norms) is AdamW's.

Legend: E matrices of a stack, M rows, N columns, M <= N.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Keller Jordan's: steepest at zero, singular values end in about [0.7, 1.2]
RMS_OF_ADAMW = 0.2


def orthogonalized(matrix: Tensor, steps: int, compute: torch.dtype) -> Tensor:
    """The nearest matrix with singular values near 1, by Newton and Schulz's iteration.

    Args:
        matrix: (rows, columns), or a stack (E, rows, columns).
        steps: of the iteration.
        compute: type of the products.
    """
    a, b, c = COEFFICIENTS
    x_EMN = matrix.to(compute)
    tall = matrix.shape[-2] > matrix.shape[-1]
    x_EMN = x_EMN.mT if tall else x_EMN
    x_EMN = x_EMN / x_EMN.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram_EMM = x_EMN @ x_EMN.mT
        x_EMN = a * x_EMN + (b * gram_EMM + c * (gram_EMM @ gram_EMM)) @ x_EMN
    return x_EMN.mT if tall else x_EMN


class Muon(torch.optim.Optimizer):
    """Muon for some matrices beside AdamW for everything else; one state, one list of groups.

    Args:
        matrices: parameters of two axes, or three with the first one counting matrices.
        adamw: optimizer of the others.
        momentum: Nesterov's.
        weight_decay: times the learning rate.
        steps: of the iteration.
    """

    def __init__(
        self, matrices: Sequence[Tensor], adamw: torch.optim.AdamW, momentum: float, weight_decay: float, steps: int
    ) -> None:
        super().__init__(matrices, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay, "steps": steps,
                                    "decays": True})  # fmt: skip
        self._adamw = adamw
        self.param_groups += adamw.param_groups
        adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None
        group = self.param_groups[0]
        for parameter in group["params"]:
            if parameter.grad is not None:
                self._turn(parameter, group)
        self._adamw.step()

    def _turn(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        held = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
        ahead = parameter.grad.lerp(held, group["momentum"])
        # bf16 is enough for the iteration, and fast on a GPU; few CPUs have it
        compute = torch.bfloat16 if parameter.is_cuda else torch.float32
        update = orthogonalized(ahead, group["steps"], compute)
        scale = RMS_OF_ADAMW * math.sqrt(max(parameter.shape[-2:]))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * scale)
