"""Negative log-likelihood of token sequences under a causal language model: sums in nats, nothing else.

A document is cut into windows, each one context token followed by the tokens that it scores, so that every token is
scored once and the windows of a document add up to it. Windows of like length share a batch, padded on the right, where
causal attention cannot look. Oracles: a zeroed head gives ln V per token; a float64 loop over single sequences.

Legend: N windows, B windows of one batch, L tokens of its longest, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch

CHUNK_TOKENS = 256  # rows of V float32 logits that stay in cache; the softmax is bound by memory


def windows_of(tokens: Sequence[int], prefix: int | None, max_tokens: int, whole: bool) -> list[Sequence[int]]:
    """Cut a document into windows of at most `max_tokens` scored tokens.

    Args:
        tokens: the document.
        prefix: token id put before the first token; None leaves the first token unscored.
        max_tokens: tokens scored per window, which is also what the model sees at once.
        whole: every window; otherwise the first only.

    Returns:
        Windows: the first token is context (the prefix, or the last token of the window before), the rest are scored.
    """
    sequence = [*([] if prefix is None else [prefix]), *tokens]
    starts = range(0, len(sequence) - 1, max_tokens)
    return [sequence[start : start + max_tokens + 1] for start in (starts if whole else starts[:1])]


def batches_of(lengths_N: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Group windows of like length, at most `batch_tokens` tokens in each batch, padding included.

    Args:
        lengths_N: tokens of each window.
        batch_tokens: budget; a longer window is alone in its batch.

    Returns:
        Indices of each batch, longest windows first.
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    batches, at = [], 0
    while at < len(order_N):
        size = max(1, batch_tokens // int(lengths_N[order_N[at]]))
        batches.append(order_N[at : at + size])
        at += size
    return batches


def windows_nll_N(model: torch.nn.Module, windows: Sequence[Sequence[int]], batch_tokens: int) -> np.ndarray:
    """Score windows.

    Args:
        model: maps ids (B, L) to an object with `logits` (B, L, V); in eval mode.
        windows: at least two tokens each; the first is context.
        batch_tokens: tokens per forward pass, padding included.

    Returns:
        float64 (N,): minus the log-probability of each window's scored tokens, in nats.
    """
    sums_N = np.zeros(len(windows))
    for batch_B in batches_of(np.array([len(window) - 1 for window in windows], dtype=np.int64), batch_tokens):
        sums_N[batch_B] = _batch_nll_B(model, [windows[i] for i in batch_B])
    return sums_N


@torch.inference_mode()
def _batch_nll_B(model: torch.nn.Module, windows: list[Sequence[int]]) -> np.ndarray:
    device = next(model.parameters()).device
    longest = max(map(len, windows))
    ids_BL = np.zeros((len(windows), longest), dtype=np.int64)
    for row, window in enumerate(windows):
        ids_BL[row, : len(window)] = window
    lengths_B = torch.tensor([len(window) - 1 for window in windows], device=device)
    ids = torch.from_numpy(ids_BL).to(device)
    # no attention mask: padding stands to the right of every scored token, and without a mask attention is fastest
    logits_TV = model(input_ids=ids[:, :-1], use_cache=False).logits.flatten(0, 1)
    nll_BL = _token_nll_T(logits_TV, ids[:, 1:].flatten()).view(len(windows), longest - 1)
    scored_BL = torch.arange(longest - 1, device=device) < lengths_B[:, None]
    return torch.where(scored_BL, nll_BL, 0).double().sum(1).cpu().numpy()


def _token_nll_T(logits_TV: torch.Tensor, targets_T: torch.Tensor) -> torch.Tensor:
    """Float32 cross-entropy per token, in chunks: whole batches in float32 would double the memory of the logits."""
    chunk = CHUNK_TOKENS if logits_TV.device.type == "cpu" else 16 * CHUNK_TOKENS
    parts = [
        torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        for logits, targets in zip(logits_TV.split(chunk), targets_T.split(chunk), strict=True)
    ]
    return torch.cat(parts)
