"""Cross-entropy over a vocabulary without ever holding all logits.

The loss and both gradients are computed chunk by chunk in the forward pass, while the logits lie in the cache: about a
third of the time of logits, log-softmax and backward one after the other, and a hundredth of the memory. The idea is
that of Liger's fused linear cross-entropy (arXiv:2410.10989).

Legend: N tokens, D width, V vocabulary, R rows of one chunk.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.products import product

CHUNK_LOGITS = 1 << 20  # logits of one chunk on a CPU: 4 MB in fp32, within the second and third level caches
CHUNK_LOGITS_GPU = 1 << 28


@dataclass(frozen=True)
class Losses:
    """What a training pass costs, fp32 scalars.

    Attributes:
        total: what is minimized: `ar + aux + z + mtp_weight * mtp + flow weight * flow`.
        ar: mean cross-entropy of the next token, nats.
        aux: balance losses of all routers, each weighted; 0 when there is none.
        z: their weighted z-losses.
        mtp: mean over prediction modules of their cross-entropies, nats.
        flow: mean squared error of the flow head's velocities; 0 when there is none.
    """

    total: Tensor
    ar: Tensor
    aux: Tensor
    z: Tensor
    mtp: Tensor
    flow: Tensor


def _rows(vocabulary: int, device: torch.device) -> int:
    return max(16, (CHUNK_LOGITS if device.type == "cpu" else CHUNK_LOGITS_GPU) // vocabulary)


def _to_gradient(product_RV: Tensor, logits_RV: Tensor, targets_R1: Tensor, tokens: int) -> Tensor:
    """Turn a chunk of logits into the gradient of the mean loss, in place.

    Args:
        product_RV: logits, overwritten by `(softmax - one-hot) / tokens`.
        logits_RV: fp32 space of the same shape; may be `product_RV` itself.
        targets_R1: the right tokens.
        tokens: over which the mean is taken.

    Returns:
        fp32 scalar: sum of the chunk's cross-entropies.
    """
    if logits_RV.dtype != product_RV.dtype:
        logits_RV.copy_(product_RV)
    chosen_R1 = logits_RV.gather(1, targets_R1)
    highest_R1 = logits_RV.amax(dim=1, keepdim=True)
    sums_R1 = logits_RV.sub_(highest_R1).exp_().sum(dim=1, keepdim=True)  # one exp for both loss and gradient
    logits_RV.mul_(1 / (sums_R1 * tokens))
    logits_RV.scatter_add_(1, targets_R1, torch.full_like(chosen_R1, -1 / tokens))
    if logits_RV.dtype != product_RV.dtype:
        product_RV.copy_(logits_RV)
    return (sums_R1.log() + highest_R1 - chosen_R1).sum()


class _MeanCrossEntropy(torch.autograd.Function):
    """Mean over tokens of `logsumexp(h W^T) - (h W^T)[target]`; gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, output_VD: Tensor, targets_N: Tensor) -> Tensor:
        tokens, device, compute = hidden_ND.shape[0], hidden_ND.device, hidden_ND.dtype
        rows = max(1, min(tokens, _rows(output_VD.shape[0], device)))
        weight_VD = output_VD.to(compute)
        learns = ctx.needs_input_grad[1]  # not where only low-rank updates are trained
        # buffers are made once: fresh ones of this size are page-faulted in for every chunk, a third of the time
        space_RV = torch.empty(rows, output_VD.shape[0], dtype=compute, device=device)
        grad_chunk_VD = torch.empty_like(weight_VD) if learns else None
        fp32_RV = None if compute == torch.float32 else torch.empty_like(space_RV, dtype=torch.float32)
        total = torch.zeros((), dtype=torch.float32, device=device)
        grad_hidden_ND = torch.empty_like(hidden_ND)
        grad_output_VD = torch.zeros_like(output_VD, dtype=torch.float32) if learns else None
        for start in range(0, tokens, rows):
            hidden_RD, targets_R1 = hidden_ND[start : start + rows], targets_N[start : start + rows, None]
            count = hidden_RD.shape[0]
            product_RV = product(hidden_RD, weight_VD, space_RV[:count])
            logits_RV = product_RV if fp32_RV is None else fp32_RV[:count]
            total += _to_gradient(product_RV, logits_RV, targets_R1, tokens)
            grad_hidden_ND[start : start + count] = product(product_RV, weight_VD.t())
            if grad_output_VD is not None:
                grad_output_VD += product(product_RV.t(), hidden_RD.t(), grad_chunk_VD)
        ctx.grads = grad_hidden_ND, grad_output_VD
        return total / max(1, tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        assert ctx.grads is not None, "backward runs once: the gradients made by the forward pass are scaled in place"
        (grad_hidden_ND, grad_output_VD), ctx.grads = ctx.grads, None
        scaled_VD = None if grad_output_VD is None else grad_output_VD.mul_(grads[0])
        return grad_hidden_ND.mul_(grads[0]), scaled_VD, None


def mean_cross_entropy(hidden_ND: Tensor, output_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean cross-entropy of `targets_N` under the logits `hidden_ND @ output_VD.T`.

    Args:
        hidden_ND: fp32 or bf16 (N, D).
        output_VD: fp32 (V, D).
        targets_N: int64 (N,).

    Returns:
        fp32 scalar, nats per token, 0 for none; differentiable once in the first two arguments.
    """
    return _MeanCrossEntropy.apply(hidden_ND, output_VD, targets_N)  # type: ignore[no-any-return]


@torch.no_grad()
def token_cross_entropies(hidden_ND: Tensor, output_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy of every target, fp32 (N,), nats; arguments as for `mean_cross_entropy`."""
    rows = _rows(output_VD.shape[0], hidden_ND.device)
    weight_VD = output_VD.to(hidden_ND.dtype)
    losses = []
    for start in range(0, hidden_ND.shape[0], rows):
        logits_RV = product(hidden_ND[start : start + rows], weight_VD).float()
        chosen_R = logits_RV.gather(1, targets_N[start : start + rows, None])[:, 0]
        losses.append(torch.logsumexp(logits_RV, dim=1) - chosen_R)
    return torch.cat(losses)
