"""Held-out loss per domain.

The loss is measured in fp32 over packed windows of the shard's own order, each token scored once with at most one
window of context, so that the number depends on the model and the shard alone. A model that was trained with documents
apart is measured with documents apart. Loss is nats per token; bits per byte
compares tokenizers.

Legend: B windows, S window length.
"""

from collections.abc import Iterable, Iterator
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from pipelines.errors import DataError
from pipelines.indexed import IndexedTokens
from pipelines.shards import Shard, ShardSet
from trainer.model import Decoder

BATCH_TOKENS = 8192


class HeldOut(TypedDict):
    """Mean loss in nats per token over `tokens` scored tokens."""

    loss: float
    tokens: int


@torch.no_grad()
def held_out_losses(
    model: Decoder, shards: ShardSet, sequence_length: int, max_tokens_per_domain: int, separate_documents: bool = False
) -> dict[str, HeldOut]:
    """Measure every shard.

    Args:
        model: left as it was found; measured in fp32 and in evaluation mode.
        shards: one per domain.
        sequence_length: window of context.
        max_tokens_per_domain: scored from the shard's beginning.
        separate_documents: attention and positions begin anew with every document.

    Raises:
        DataError: a shard holds fewer than two tokens.
    """
    was_training, compute = model.training, model.compute
    model.eval()
    model.compute = torch.float32
    try:
        return {
            shard.name: _mean(losses_of(model, shard, sequence_length, max_tokens_per_domain, separate_documents))
            for shard in shards.shards
        }
    finally:
        model.train(was_training)
        model.compute = compute


def _mean(batches: Iterable[Tensor]) -> HeldOut:
    total, scored = 0.0, 0
    for losses_BS in batches:
        total += float(losses_BS.double().sum())
        scored += losses_BS.numel()
    return {"loss": round(total / scored, 6), "tokens": scored}


@torch.no_grad()
def losses_of(
    model: Decoder, shard: Shard, sequence_length: int, max_tokens: int, separate_documents: bool = False
) -> Iterator[Tensor]:
    """The loss of every token but the first, in order, as batches of windows, fp32 (B, S).

    Args:
        model: in evaluation mode and fp32.
        shard: what is scored.
        sequence_length: window of context.
        max_tokens: scored from the shard's beginning.
        separate_documents: attention and positions begin anew with every document.

    Raises:
        DataError: the shard holds fewer than two tokens.
    """
    tokens = _first_tokens(shard, max_tokens)
    device = model.embed_tokens.weight.device
    numbers = _document_numbers(shard, len(tokens)) if separate_documents else tokens
    for windows_BS, documents_BS in zip(
        _windows(tokens, sequence_length), _windows(numbers, sequence_length), strict=True
    ):
        batch_BS = torch.from_numpy(windows_BS).to(device)
        apart_BS = torch.from_numpy(documents_BS[:, :-1]).to(device) if separate_documents else None
        yield model.token_losses(batch_BS[:, :-1], batch_BS[:, 1:], apart_BS)


def check_held_out(shards: ShardSet, vocabulary: int, max_tokens_per_domain: int) -> None:
    """Refuse what could not be measured, before a training begins.

    Args:
        shards: one per domain.
        vocabulary: tokens that the model knows.
        max_tokens_per_domain: scored from each shard's beginning.

    Raises:
        DataError: a shard holds fewer than two tokens, or one that the model does not know.
    """
    for shard in shards.shards:
        if (highest := int(_first_tokens(shard, max_tokens_per_domain).max())) >= vocabulary:
            raise DataError(
                f"held-out shard {shard.name} at {shard.prefix} has token {highest}, the model knows {vocabulary}: it "
                "is another tokenizer's; give its own, or set model.vocab_size"
            )


def _first_tokens(shard: Shard, most: int) -> np.ndarray:
    """Tokens of a shard's beginning, `most` and the one that they follow, int64."""
    tokens = np.asarray(IndexedTokens(shard.prefix).tokens)[: most + 1].astype(np.int64)
    if len(tokens) < 2:
        raise DataError(f"held-out shard {shard.name} at {shard.prefix} holds {len(tokens)} tokens, two are needed")
    return tokens


def _document_numbers(shard: Shard, count: int) -> np.ndarray:
    """The document of each of a shard's first `count` tokens, int64."""
    ends = np.cumsum(IndexedTokens(shard.prefix).lengths, dtype=np.int64)
    return np.searchsorted(ends, np.arange(count), side="right")


def _windows(tokens: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """Batches of whole windows of `length + 1` tokens, one token shared by neighbours, then the rest as one window."""
    whole = (len(tokens) - 1) // length
    rows = max(1, BATCH_TOKENS // length)
    for first in range(0, whole, rows):
        last = min(whole, first + rows)
        yield np.stack([tokens[row * length : (row + 1) * length + 1] for row in range(first, last)])
    if len(tokens) - 1 > whole * length:
        yield tokens[None, whole * length :]
