"""Simulated epoching: a proxy repeats a domain as often as the full run would, because it is given less of it.

A full run of T tokens reads domain i `w_i T / U_i` times; a proxy of D tokens on all of it would read it D/T times as
often and never meet repetition. Limited to `U_i D / T` tokens it meets exactly the full run's epochs, at any weight.
The subset is a prefix of a seeded order of whole documents; only the last one is cut, so that the epochs are exact.
Idea: the repetition-aware swarms of olmix and Marin (docs/mixtures.md).
"""

import hashlib
from pathlib import Path

import numpy as np

from pipelines.errors import DataError
from pipelines.indexed import IndexedTokens, IndexedWriter, load_shard
from pipelines.shards import Shard, ShardSet

LEAST_TOKENS = 2  # one to read and one to predict


def simulate_epochs(shards: ShardSet, proxy_tokens: int, horizon: int, folder: Path, seed: int = 0) -> ShardSet:
    """Limit every shard to `tokens * proxy_tokens / horizon` tokens, rounded, at least one document of two.

    A subset depends on the shard, the budget and the seed alone, not on the others or their order; with a larger
    budget it holds the smaller one's documents.

    Args:
        shards: what the full run reads.
        proxy_tokens: that a proxy trains on.
        horizon: tokens of the full run.
        folder: where the subsets are written, each under its shard's name; scratch of the caller.
        seed: of the order in which documents are taken.

    Returns:
        Shards of the same names in the same order; `shards` itself when the proxy is as long as the full run.

    Raises:
        DataError: the counts are not positive, or a shard is damaged or empty.
    """
    if proxy_tokens < 1 or horizon < 1:
        raise DataError(f"simulated epochs need positive tokens; found proxy_tokens {proxy_tokens}, horizon {horizon}")
    if proxy_tokens >= horizon:
        return shards
    return ShardSet(tuple(_limited(shard, proxy_tokens, horizon, folder, seed) for shard in shards.shards))


def _limited(shard: Shard, proxy_tokens: int, horizon: int, folder: Path, seed: int) -> Shard:
    source = IndexedTokens(shard.prefix)
    budget = max(LEAST_TOKENS, (2 * shard.tokens * proxy_tokens + horizon) // (2 * horizon))
    if not shard.tokens:
        raise DataError(f"shard {shard.name} at {shard.prefix} holds no tokens; leave it out of the mixture")
    documents = [np.asarray(source[row]) for row in _chosen_rows(source, shard.name, budget, seed)]
    excess = sum(map(len, documents)) - budget
    if excess > 0:  # what is left of the last one keeps its end-of-document token
        last = documents[-1]
        documents[-1] = np.append(last[: len(last) - 1 - excess], last[-1:])
    tokens_T = np.concatenate(documents)
    prefix = folder / shard.name
    with IndexedWriter(prefix, int(tokens_T.max()) + 1) as writer:
        writer.append(tokens_T, np.array([len(document) for document in documents]))
    return load_shard(prefix, shard.name)


def _chosen_rows(source: IndexedTokens, name: str, budget: int, seed: int) -> list[int]:
    """The first documents of a seeded order that together hold `budget` tokens, or all of them."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    order_M = np.random.default_rng([seed, key]).permutation(len(source))
    order_M = order_M[np.asarray(source.lengths)[order_M] > 0]
    held_M = np.cumsum(np.asarray(source.lengths)[order_M], dtype=np.int64)
    return order_M[: int(np.searchsorted(held_M, budget)) + 1].tolist()
