"""The experts' work: each token's SwiGLUs, multiplied expert by expert over tokens sorted by expert.

Forward and backward are written out, so that weights are applied where rows are narrow and only the first product is
kept for the backward pass. On a GPU, and in bf16, products are `torch.nn.functional.grouped_mm`. Its CPU form is a loop
over MKL in fp32; there each expert is taken through all its products by oneDNN (`trainer/products.py`), while its rows
lie in the cache. Sums over a token's experts run in a fixed order, without atomic additions: the same bits each time.

Traps of grouped_mm that are kept away from here: strides must be multiples of 16 bytes (`GROUPED_ALIGNMENT`), gradients
must be contiguous, and rows past the last offset are left as they were found, so they are set to 0.

Legend: N tokens, K choices per token, M = N * K choices sorted by expert, D width, E experts, F expert width, R choices
of one expert.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainer.eager import not_compiled
from trainer.products import by_onednn, product

BLOCK_ROWS = 256  # beyond, they leave the cache; below, small operations cost as much as products
ROWS = 16  # oneDNN builds code for each new number of rows, 0.3 ms: twice the product of 192 rows by 256 x 256


@not_compiled  # how many rows an expert has is known only when it runs
def mix_experts(
    x_ND: Tensor, weights_NK: Tensor, chosen_NK: Tensor, gate_up_E: Tensor, down_E: Tensor, whole: bool = True
) -> Tensor:
    """Weighted sum of the chosen experts' answers; differentiable once in all but the choices.

    Args:
        x_ND: fp32 or bf16.
        weights_NK: fp32.
        chosen_NK: int64 experts, E for none.
        gate_up_E: (E, 2F, D) of `x_ND`'s type, gate above up.
        down_E: (E, D, F) of the same type.
        whole: no choice is E.

    Returns:
        (N, D) of `x_ND`'s type.
    """
    if by_onednn(x_ND):
        return _ByExpert.apply(x_ND, weights_NK, gate_up_E, down_E, chosen_NK)  # type: ignore[no-any-return]
    return _ByGroup.apply(x_ND, weights_NK, gate_up_E, down_E, chosen_NK, whole)  # type: ignore[no-any-return]


class _ByGroup(torch.autograd.Function):
    """All experts in one call per product."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weights_NK: Tensor, gate_up_E: Tensor, down_E: Tensor, chosen_NK: Tensor, whole: bool
    ) -> Tensor:
        expert_M = chosen_NK.flatten()
        order_M = expert_M.argsort(stable=True)
        rows_M = torch.arange(len(order_M), device=order_M.device)
        place_NK = torch.empty_like(order_M).scatter_(0, order_M, rows_M).view_as(chosen_NK)
        ends_E = torch.bincount(expert_M, minlength=len(down_E))[: len(down_E)].cumsum(0).to(torch.int32)
        idle_M1 = None if whole else (rows_M >= ends_E[-1]).unsqueeze(1)
        x_MD = x_ND.index_select(0, order_M // place_NK.shape[1])
        gate_up_MF = _cleared(F.grouped_mm(x_MD, gate_up_E.transpose(1, 2), offs=ends_E), idle_M1)
        weight_M1 = weights_NK.flatten()[order_M].unsqueeze(1)
        answer_MF = _activated(gate_up_MF, weight_M1)
        answer_MD = _cleared(F.grouped_mm(answer_MF, down_E.transpose(1, 2), offs=ends_E), idle_M1)
        ctx.save_for_backward(x_ND, weight_M1, gate_up_E, down_E, gate_up_MF, order_M, place_NK, ends_E, idle_M1)
        return _summed(answer_MD, place_NK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_ND, weight_M1, gate_up_E, down_E, gate_up_MF, order_M, place_NK, ends_E, idle_M1 = ctx.saved_tensors
        token_M = order_M // place_NK.shape[1]
        grad_MD = grads[0].index_select(0, token_M)  # contiguous, whatever came in
        inner_MF = _cleared(F.grouped_mm(grad_MD, down_E, offs=ends_E), idle_M1)
        grad_gate_up_MF, answer_MF, grad_weight_M = _activated_backward(gate_up_MF, inner_MF, weight_M1)
        grad_gate_up_E = grad_down_E = None
        if ctx.needs_input_grad[2]:
            grad_gate_up_E = F.grouped_mm(grad_gate_up_MF.t(), x_ND.index_select(0, token_M), offs=ends_E)
        if ctx.needs_input_grad[3]:
            grad_down_E = F.grouped_mm(grad_MD.t(), answer_MF, offs=ends_E)
        grad_MD = _cleared(F.grouped_mm(grad_gate_up_MF, gate_up_E, offs=ends_E), idle_M1)
        return _summed(grad_MD, place_NK), grad_weight_M[place_NK], grad_gate_up_E, grad_down_E, None, None


class _Block(NamedTuple):
    """Experts that follow one another and whose rows, together, lie in the cache.

    Attributes:
        rows: all of them.
        experts: each expert's number, and its rows within the block.
    """

    rows: slice
    experts: list[tuple[int, slice]]


class _ByExpert(torch.autograd.Function):
    """Some experts after the others through all of their products."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weights_NK: Tensor, gate_up_E: Tensor, down_E: Tensor, chosen_NK: Tensor
    ) -> Tensor:  # fmt: skip
        place_NK, token_M, ends = _padded(chosen_NK, len(gate_up_E))
        weight_M1 = weights_NK.new_zeros(len(token_M), 1)
        weight_M1[place_NK.flatten(), 0] = weights_NK.flatten()
        answer_MD = x_ND.new_empty(len(token_M), x_ND.shape[1])
        ctx.blocks, kept = _blocks(ends), []
        for block in ctx.blocks:
            gate_up_RF = _products(x_ND.index_select(0, token_M[block.rows]), gate_up_E, block)
            kept.append(gate_up_RF)
            answer_MD[block.rows] = _products(_activated(gate_up_RF, weight_M1[block.rows]), down_E, block)
        answer_MD[-1] = 0  # of choices that visit nobody
        ctx.save_for_backward(x_ND, weight_M1, gate_up_E, down_E, token_M, place_NK, *kept)
        return _summed(answer_MD, place_NK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_ND, weight_M1, gate_up_E, down_E, token_M, place_NK, *kept = ctx.saved_tensors
        busy = [expert for block in ctx.blocks for expert, _ in block.experts]
        grad_gate_up_E = _gradient(gate_up_E, busy) if ctx.needs_input_grad[2] else None
        grad_down_E = _gradient(down_E, busy) if ctx.needs_input_grad[3] else None
        grad_MD = x_ND.new_empty(len(token_M), x_ND.shape[1])
        grad_MD[-1] = 0  # of choices that visit nobody
        grad_weight_M = weight_M1.new_zeros(len(token_M))
        for block, gate_up_RF in zip(ctx.blocks, kept, strict=True):
            token_R = token_M[block.rows]
            grad_RD = grads[0].index_select(0, token_R)
            inner_RF = _products(grad_RD, down_E.mT, block)
            grad_gate_up_RF, answer_RF, grad_weight_M[block.rows] = _activated_backward(
                gate_up_RF, inner_RF, weight_M1[block.rows]
            )
            if grad_down_E is not None:
                _outer(grad_down_E, grad_RD, answer_RF, block)
            if grad_gate_up_E is not None:
                _outer(grad_gate_up_E, grad_gate_up_RF, x_ND.index_select(0, token_R), block)
            grad_MD[block.rows] = _products(grad_gate_up_RF, gate_up_E.mT, block)
        return _summed(grad_MD, place_NK), grad_weight_M[place_NK], grad_gate_up_E, grad_down_E, None


def _blocks(ends: list[int]) -> list[_Block]:
    """Blocks of at most `BLOCK_ROWS` rows, or of one expert with more; experts without rows are in none."""
    found: list[_Block] = []
    for expert, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if start == end:
            continue
        if not found or end - found[-1].rows.start > BLOCK_ROWS:
            found.append(_Block(slice(start, end), []))
        first = found[-1].rows.start
        found[-1].experts.append((expert, slice(start - first, end - first)))
        found[-1] = found[-1]._replace(rows=slice(first, end))
    return found


def _gradient(weight_E: Tensor, busy: list[int]) -> Tensor:
    """Memory for the gradient of stacked weights, 0 for experts that had no row."""
    grad_E = torch.empty_like(weight_E)
    if idle := sorted(set(range(len(weight_E))).difference(busy)):
        grad_E[idle] = 0
    return grad_E


def _products(rows_RI: Tensor, weight_EOI: Tensor, block: _Block) -> Tensor:
    """Each row by its expert's weight, (R, O)."""
    if len(block.experts) == 1:
        return product(rows_RI, weight_EOI[block.experts[0][0]])
    out_RO = rows_RI.new_empty(len(rows_RI), weight_EOI.shape[1])
    for expert, rows in block.experts:
        out_RO[rows] = product(rows_RI[rows], weight_EOI[expert])
    return out_RO


def _outer(out_EOI: Tensor, grad_RO: Tensor, rows_RI: Tensor, block: _Block) -> None:
    """The gradient of each expert's weight."""
    grad_OR, rows_IR = grad_RO.t(), rows_RI.t()
    for expert, rows in block.experts:
        out_EOI[expert] = product(grad_OR[:, rows], rows_IR[:, rows])


def _padded(chosen_NK: Tensor, experts: int) -> tuple[Tensor, Tensor, list[int]]:
    """Lay choices out by expert, each expert's rows filled up to a multiple of `ROWS`, one row for nobody at the end.

    Returns:
        The row of each choice, (N, K); the token of each row, (M,), 0 where it is filling, whose weight is 0; and the
        row after each expert's last.
    """
    expert_M = chosen_NK.flatten()
    count_E = torch.bincount(expert_M, minlength=experts + 1)
    filled_E = (count_E + ROWS - 1) // ROWS * ROWS
    ends_E = filled_E[:experts].cumsum(0)
    begin_E = torch.cat((ends_E.new_zeros(1), ends_E))  # of those who visit nobody: the last row
    order_M = expert_M.argsort(stable=True)
    sorted_M = expert_M[order_M]
    rank_M = torch.arange(len(order_M)) - (count_E.cumsum(0) - count_E)[sorted_M]
    row_M = begin_E[sorted_M] + rank_M.masked_fill_(sorted_M == experts, 0)
    place_M = torch.empty_like(row_M).scatter_(0, order_M, row_M)
    token_M = row_M.new_zeros(int(ends_E[-1]) + 1)
    token_M[row_M] = order_M // chosen_NK.shape[1]
    return place_M.view_as(chosen_NK), token_M, ends_E.tolist()


def _cleared(rows_M: Tensor, idle_M1: Tensor | None) -> Tensor:
    """Rows that belong to no expert set to 0: grouped_mm leaves in them whatever lay there."""
    return rows_M if idle_M1 is None else rows_M.masked_fill_(idle_M1, 0)


def _summed(rows_MD: Tensor, place_NK: Tensor) -> Tensor:
    """Each token's sum over its K rows, in their order, (N, D), added up in fp32."""
    return F.embedding_bag(place_NK, rows_MD, mode="sum")


def _activated(gate_up_RF: Tensor, weight_R1: Tensor) -> Tensor:
    """`weight * silu(gate) * up`, (R, F) of gate's type."""
    gate_RF, up_RF = gate_up_RF.chunk(2, dim=1)
    return F.silu(gate_RF).mul_(up_RF).mul_(weight_R1)


def _activated_backward(
    gate_up_RF: Tensor, grad_RF: Tensor, weight_R1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients through `_activated`.

    Args:
        gate_up_RF: what it was given.
        grad_RF: of `_activated` before its weight; overwritten.
        weight_R1: its weight.

    Returns:
        Gradient of `gate_up_RF`, the answer of `_activated`, and the gradient of the weight, (R,).
    """
    gate_RF, up_RF = gate_up_RF.chunk(2, dim=1)
    silu_RF = F.silu(gate_RF)
    answer_RF = silu_RF * up_RF
    grad_weight_R = (grad_RF * answer_RF).sum(dim=1, dtype=weight_R1.dtype)
    grad_RF.mul_(weight_R1)
    grad_gate_up_RF = torch.empty_like(gate_up_RF)
    grad_gate_RF, grad_up_RF = grad_gate_up_RF.chunk(2, dim=1)
    torch.mul(grad_RF, silu_RF, out=grad_up_RF)
    torch.ops.aten.silu_backward.grad_input(grad_RF.mul_(up_RF), gate_RF, grad_input=grad_gate_RF)
    return grad_gate_up_RF, answer_RF.mul_(weight_R1), grad_weight_R
