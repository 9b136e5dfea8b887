"""Losses that keep a mixture of experts balanced, as pure functions of scores and choices.

All three balance losses are `E * sum_e share_e * score_e`: the share of choices that fell on an expert (no gradient)
times the mean normalized score that it got; 1 when balanced. transformers' `load_balancing_loss_func` is K times as
large, and mixes the layers. They differ in the tokens over which the two means are taken. Padding counts nowhere.

Legend: B batch, T positions, N = B * T tokens, E experts, K choices per token.
"""

import torch
from torch import Tensor


def balance_loss(share_NE: Tensor, chosen_E: Tensor, real_N: Tensor | None = None) -> Tensor:
    """Over all tokens at hand (arXiv:2101.03961, eq. 4).

    Args:
        share_NE: fp32 scores; rows sum to 1.
        chosen_E: int64, how often each expert was chosen, by these tokens or, for the global loss (arXiv:2501.11873),
            by all of the optimizer step so far.
        real_N: False for padding; None when there is none.

    Returns:
        fp32 scalar.
    """
    mean_E = share_NE.mean(dim=0) if real_N is None else _mean(share_NE, real_N.unsqueeze(1), 0)
    return share_NE.shape[1] * (chosen_E / chosen_E.sum().clamp(min=1) * mean_E).sum()


def sequence_balance_loss(share_NE: Tensor, chosen_NK: Tensor, batch: int, real_N: Tensor | None = None) -> Tensor:
    """Over each sequence alone, averaged over sequences (arXiv:2412.19437, eq. 17).

    Args:
        share_NE: fp32 scores; rows sum to 1.
        chosen_NK: int64 experts; any of `E` or more is no choice.
        batch: sequences.
        real_N: False for padding; None when there is none.

    Returns:
        fp32 scalar.
    """
    experts = share_NE.shape[1]
    share_BTE = share_NE.view(batch, -1, experts)
    chosen_BM = chosen_NK.view(batch, -1)
    count_BE = share_NE.new_zeros(batch, experts + 1)  # whole numbers: any order of addition gives the same
    count_BE = count_BE.scatter_add_(1, chosen_BM, torch.ones_like(chosen_BM, dtype=share_NE.dtype))[:, :experts]
    mean_BE = share_BTE.mean(dim=1) if real_N is None else _mean(share_BTE, real_N.view(batch, -1, 1), 1)
    return experts * (count_BE / count_BE.sum(dim=1, keepdim=True).clamp(min=1) * mean_BE).sum(dim=-1).mean()


def z_loss(logits_NE: Tensor, real_N: Tensor | None = None) -> Tensor:
    """Mean squared log-sum-exp of the router's logits, fp32 scalar (arXiv:2202.08906, eq. 5)."""
    squares_N = logits_NE.logsumexp(dim=-1).square()
    return squares_N.mean() if real_N is None else _mean(squares_N, real_N, 0)


def _mean(values: Tensor, real: Tensor, axis: int) -> Tensor:
    """Mean over what is real along an axis; 0 where nothing is."""
    return (values * real).sum(dim=axis) / real.sum(dim=axis).clamp(min=1)
