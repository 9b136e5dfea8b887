"""Clusters of duplicates, and which document of a cluster stays.

Documents are first put in order of rank (preference, then id, then content), and everything after works on ranks: the
document that stays is the one of lowest rank, so that neither the order of the input nor the number of workers can
change the result. Clusters are the connected components of the pairs found (union-find: Tarjan 1975,
doi:10.1145/321879.321884).

Legend of suffixes: N documents in order of rank, E pairs.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.compiled import kernel


def rank_order(documents: pa.Table) -> np.ndarray:
    """Rows from the best to the worst to keep.

    Args:
        documents: columns `settled` (bool; settled documents come first), `preference` (float64, higher is better, null
            is worst), `id`, `key_0`, `key_1` (uint64; they decide between two documents of one id).

    Returns:
        int64 (N,) row numbers.
    """
    preference = pc.fill_null(documents["preference"], -np.inf)
    table = pa.table(
        {
            "unsettled": pc.invert(documents["settled"]).cast(pa.uint8()),
            "worse": pc.negate(pc.if_else(pc.is_nan(preference), -np.inf, preference)),
            **{name: documents[name] for name in ("id", "key_0", "key_1")},
        }
    )
    order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in table.column_names])
    return order.to_numpy().astype(np.int64)


@kernel
def root_of(parents_N, n):
    """The root of a document's tree; halves the path to it."""
    while parents_N[n] != n:
        parents_N[n] = parents_N[parents_N[n]]
        n = parents_N[n]
    return n


@kernel
def components(count, one_E, other_E):
    """The connected component of every document.

    Args:
        count: documents.
        one_E: int64, one end of each pair.
        other_E: int64, the other end.

    Returns:
        int64 (N,): the lowest rank in each document's component, its own when it is alone.
    """
    parents_N = np.arange(count)
    for e in range(len(one_E)):
        one, other = root_of(parents_N, one_E[e]), root_of(parents_N, other_E[e])
        parents_N[max(one, other)] = min(one, other)
    for n in range(count):
        parents_N[n] = root_of(parents_N, n)
    return parents_N


def equal_pairs(keys_N2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair each document with the first that has the same key.

    Args:
        keys_N2: uint64 (N, 2).

    Returns:
        The first of each group, repeated, and its other members: int64 (E,) each.
    """
    order_N = np.lexsort((keys_N2[:, 1], keys_N2[:, 0]))  # stable: ranks ascend within a group
    new_N = np.ones(len(order_N), bool)
    new_N[1:] = (keys_N2[order_N[1:]] != keys_N2[order_N[:-1]]).any(axis=1)
    leaders_N = order_N[new_N][np.cumsum(new_N) - 1]
    return leaders_N[~new_N], order_N[~new_N]


def best_matches(
    count: int, one_E: np.ndarray, other_E: np.ndarray, similarity_E: np.ndarray, settled: int
) -> tuple[np.ndarray, np.ndarray]:
    """The document that each document is most like, a settled one before all others.

    Args:
        count: documents.
        one_E: one end of each pair.
        other_E: the other end.
        similarity_E: float64, of each pair.
        settled: the first so many documents are settled.

    Returns:
        int64 (N,) the match, -1 when there is none; float64 (N,) the similarity to it.
    """
    node, match = np.concatenate([one_E, other_E]), np.concatenate([other_E, one_E])
    similarity = np.concatenate([similarity_E, similarity_E])
    order = np.lexsort((match, -similarity, match >= settled, node))
    nodes, first = np.unique(node[order], return_index=True)
    matches_N, similar_N = np.full(count, -1, np.int64), np.zeros(count)
    matches_N[nodes], similar_N[nodes] = match[order][first], similarity[order][first]
    return matches_N, similar_N
