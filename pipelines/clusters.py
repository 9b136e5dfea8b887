"""Clusters of duplicates, and which document of a cluster stays.

Documents are first put in order of rank (settled, priority, preference, id, content, then url and origin), and
everything after works on ranks: the document that stays is the one of lowest rank, so that neither the order of the
input nor the number of workers can change the result. Pairs are joined as they are found and never stored: a forest of
parents (union-find: Tarjan 1975, doi:10.1145/321879.321884) and each document's best match are all that is kept, 24
bytes a document.

Legend of suffixes: N documents in order of rank, E pairs.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.compiled import kernel


def rank_order(documents: pa.Table) -> np.ndarray:
    """Rows from the best to the worst to keep.

    Args:
        documents: columns `settled` (bool; settled documents come first), `priority` (int32, lower is better),
            `preference` (float64, higher is better, null is worst), `id`, `key_0`, `key_1` (uint64; they decide between
            two documents of one id), `tie` (uint64; decides between two that are equal in all of these).

    Returns:
        int64 (N,) row numbers.
    """
    preference = pc.fill_null(documents["preference"], -np.inf)
    table = pa.table(
        {
            "unsettled": pc.invert(documents["settled"]).cast(pa.uint8()),
            "priority": documents["priority"],
            "worse": pc.negate(pc.if_else(pc.is_nan(preference), -np.inf, preference)),
            **{name: documents[name] for name in ("id", "key_0", "key_1", "tie")},
        }
    )
    order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in table.column_names])
    return order.to_numpy().astype(np.int64)


class Forest(NamedTuple):
    """What is known of N documents while pairs are found.

    Attributes:
        parents: int64 (N,), union-find; a root is the lowest rank of its component.
        matches: int64 (N,), the document most like it, one below `settled` before all others; -1 for none.
        nearest: float64 (N,), the similarity to it.
        tally: int64 (3,): pairs compared, pairs similar, documents that were not compared with all (see `minhash`).
    """

    parents: np.ndarray
    matches: np.ndarray
    nearest: np.ndarray
    tally: np.ndarray


def new_forest(count: int) -> Forest:
    """`count` documents, each alone."""
    return Forest(np.arange(count), np.full(count, -1, np.int64), np.zeros(count), np.zeros(3, np.int64))


@kernel
def root_of(parents_N, n):
    """The root of a document's tree; halves the path to it."""
    while parents_N[n] != n:
        parents_N[n] = parents_N[parents_N[n]]
        n = parents_N[n]
    return n


@kernel
def _offer(node, match, similarity, settled, forest):
    """Take a match if it is better: settled, then most similar, then of lowest rank; so order does not matter."""
    held = forest.matches[node]
    better = held < 0
    if not better and (match < settled) != (held < settled):
        better = match < settled
    elif not better:
        nearest = forest.nearest[node]
        better = similarity > nearest or (similarity == nearest and match < held)
    if better:
        forest.matches[node], forest.nearest[node] = match, similarity


@kernel
def join(one, other, similarity, settled, forest):
    """Note that two documents are duplicates of each other.

    Args:
        one: a rank.
        other: another.
        similarity: of the two, 0..1.
        settled: ranks below it are settled.
        forest: of all documents; changed in place.
    """
    first, second = root_of(forest.parents, one), root_of(forest.parents, other)
    forest.parents[max(first, second)] = min(first, second)
    _offer(one, other, similarity, settled, forest)
    _offer(other, one, similarity, settled, forest)
    forest.tally[1] += 1


@kernel
def join_all(one_E, other_E, similarity_E, settled, forest):
    """`join` for arrays of pairs."""
    for e in range(len(one_E)):
        join(one_E[e], other_E[e], similarity_E[e], settled, forest)


@kernel
def roots_of(forest):
    """The lowest rank of each document's component, its own when it is alone: int64 (N,)."""
    for n in range(len(forest.parents)):
        forest.parents[n] = root_of(forest.parents, n)
    return forest.parents
