"""Matrix products on a CPU by oneDNN, which uses the widest vectors of any maker's processor.

torch sends fp32 products to MKL, which on processors other than its maker's keeps to half the vector width: on the AMD
machine of docs/benchmarks.md 88 GFLOP/s a core, where oneDNN reaches 180. bf16 products are oneDNN's anyway, those of
a GPU to its own library, so only fp32 on a CPU takes another way here; the operator is the one torch.compile emits.

Legend: R rows, I inputs, O outputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# the operator is torch's own, not part of its interface: where it is missing, products are MKL's as everywhere
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` over the last axis, differentiable once.

    Args:
        x: (..., I), fp32 or bf16.
        weight_OI: of the same type.
        bias_O: of the same type.

    Returns:
        (..., O), contiguous.
    """
    if not by_onednn(x):
        return F.linear(x, weight_OI, bias_O)
    y = _Linear.apply(x, weight_OI)
    return y if bias_O is None else y + bias_O


def by_onednn(x: Tensor) -> bool:
    """Whether products of `x` are oneDNN's; torch.compile takes products of its own."""
    if torch.compiler.is_compiling():
        return False
    return ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32


def product(x_RI: Tensor, weight_OI: Tensor, out_RO: Tensor | None = None) -> Tensor:
    """`x @ weight.T` without a gradient; any argument may be a transposed view.

    Args:
        x_RI: fp32 or bf16.
        weight_OI: of the same type.
        out_RO: where the result may be written; oneDNN takes fresh memory.

    Returns:
        (R, O).
    """
    if not by_onednn(x_RI):
        return torch.mm(x_RI, weight_OI.t(), out=out_RO)
    if not x_RI.numel():
        return x_RI.new_zeros(x_RI.shape[0], weight_OI.shape[0])  # oneDNN refuses empty sums
    return torch.ops.mkldnn._linear_pointwise(x_RI, weight_OI, None, "none", [], "")  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight_OI)
        return product(x.flatten(0, -2), weight_OI).view(*x.shape[:-1], weight_OI.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight_OI = ctx.saved_tensors
        grad_RO = grads[0].flatten(0, -2)
        wants_x, wants_weight = ctx.needs_input_grad
        grad_x = product(grad_RO, weight_OI.t()).view_as(x) if wants_x else None
        grad_weight_OI = product(grad_RO.t(), x.flatten(0, -2).t()) if wants_weight else None
        return grad_x, grad_weight_OI
