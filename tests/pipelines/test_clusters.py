import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.clusters import best_matches, components, equal_pairs, rank_order


def ends(pairs):
    return np.array([a for a, _ in pairs], np.int64), np.array([b for _, b in pairs], np.int64)


def test_components_are_named_by_their_lowest_rank():
    assert components(6, *ends([(4, 5), (1, 2), (2, 4)])).tolist() == [0, 1, 1, 3, 1, 1]


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_components_agree_with_flooding(pairs):
    names = list(range(20))
    for _ in range(20):
        for a, b in pairs:
            names[a] = names[b] = min(names[a], names[b])
    assert components(20, *ends(pairs)).tolist() == names


def documents(rows):
    names = ("settled", "preference", "id", "key_0", "key_1")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    return pa.table({n: pa.array(v, pa.uint64()) if n[:3] == "key" else list(v) for n, v in columns.items()})


def test_rank_is_settled_then_preference_then_id_then_content():
    rows = [(False, 0.5, "b", 0, 0), (False, None, "a", 0, 0), (False, 0.9, "c", 0, 2), (False, 0.9, "c", 0, 1)]
    assert rank_order(documents([*rows, (True, None, "z", 0, 0)])).tolist() == [4, 3, 2, 0, 1]
    assert rank_order(documents([(False, float("nan"), "a", 0, 0), (False, 0.1, "b", 0, 0)])).tolist() == [1, 0]


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_equal_pairs_point_to_the_first_of_each_key(keys):
    leaders, members = equal_pairs(np.array(keys, np.uint64))
    expected = {n: keys.index(key) for n, key in enumerate(keys) if keys.index(key) != n}
    assert dict(zip(members.tolist(), leaders.tolist(), strict=True)) == expected


def test_the_best_match_is_settled_then_most_similar_then_of_lowest_rank():
    one, other = ends([(0, 3), (2, 3), (1, 2), (2, 4)])
    matches, similar = best_matches(6, one, other, np.array([0.8, 0.99, 0.9, 0.9]), settled=1)
    assert matches.tolist() == [3, 2, 3, 0, 2, -1]
    assert similar.tolist() == [0.8, 0.9, 0.99, 0.8, 0.9, 0.0]


def test_many_documents_in_one_chain():
    count = 50_000
    assert set(components(count, np.arange(count - 1), np.arange(1, count)).tolist()) == {0}
    assert components(count, np.arange(0), np.arange(0)).tolist() == list(range(count))
