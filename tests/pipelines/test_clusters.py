import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.clusters import join_all, new_forest, rank_order, roots_of


def forest_of(count, pairs, settled=0):
    """A forest after joining (one, other, similarity)."""
    forest = new_forest(count)
    one, other, similarity = (np.array([pair[k] for pair in pairs]) for k in range(3))
    join_all(one.astype(np.int64), other.astype(np.int64), similarity.astype(np.float64), settled, forest)
    return forest


def test_components_are_named_by_their_lowest_rank():
    assert roots_of(forest_of(6, [(4, 5, 1), (1, 2, 1), (2, 4, 1)])).tolist() == [0, 1, 1, 3, 1, 1]


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19), st.just(1.0)), max_size=30))
def test_components_agree_with_flooding(pairs):
    names = list(range(20))
    for _ in range(20):
        for a, b, _ in pairs:
            names[a] = names[b] = min(names[a], names[b])
    assert roots_of(forest_of(20, pairs)).tolist() == names


def documents(rows):
    names = ("settled", "priority", "preference", "id", "key_0", "key_1", "tie")
    columns = dict(zip(names, zip(*((*row, 0)[:7] for row in rows), strict=True), strict=True))
    hashes = ("key_0", "key_1", "tie")
    return pa.table({n: pa.array(v, pa.uint64()) if n in hashes else list(v) for n, v in columns.items()})


def test_rank_is_settled_then_priority_then_preference_then_id_then_content():
    rows = [(False, 0, 0.5, "b", 0, 0), (False, 0, None, "a", 0, 0), (False, 0, 0.9, "c", 0, 2)]
    rows += [(False, 0, 0.9, "c", 0, 1), (False, 1, 1.0, "a", 0, 0), (True, 9, None, "z", 0, 0)]
    assert rank_order(documents(rows)).tolist() == [5, 3, 2, 0, 1, 4]
    unknown = [(False, 0, float("nan"), "a", 0, 0), (False, 0, 0.1, "b", 0, 0)]
    assert rank_order(documents(unknown)).tolist() == [1, 0]


@given(st.permutations([(False, 0, 0.5, "a", 1, 1, tie) for tie in (2**64 - 1, 3, 9, 7)]))
def test_documents_equal_in_all_else_are_ranked_by_their_tie(rows):
    assert [rows[n][6] for n in rank_order(documents(rows))] == [3, 7, 9, 2**64 - 1]


@settings(deadline=None)  # the first call compiles
@given(st.permutations([(0, 3, 0.8), (2, 3, 0.99), (1, 2, 0.9), (2, 4, 0.9)]))
def test_the_best_match_is_settled_then_most_similar_then_of_lowest_rank(pairs):
    forest = forest_of(6, pairs, settled=1)
    assert forest.matches.tolist() == [3, 2, 3, 0, 2, -1]
    assert forest.nearest.tolist() == [0.8, 0.9, 0.99, 0.8, 0.9, 0.0]


def test_many_documents_in_one_chain():
    count = 50_000
    assert set(roots_of(forest_of(count, [(n, n + 1, 1.0) for n in range(count - 1)])).tolist()) == {0}
    assert roots_of(forest_of(3, [])).tolist() == [0, 1, 2]
