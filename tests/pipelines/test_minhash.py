import functools
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.text import ngrams
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.clusters import new_forest, roots_of
from pipelines.dedup_settings import PRESETS
from pipelines.key_groups import key_groups
from pipelines.minhash import Shape, Shingled, compare_groups, jaccard, minima_of, permutations, sign
from pipelines.shingles import words_of

LIFE = "Life, although it may only be an accumulation of anguish, is dear to me, and I will defend it."


def hashes_of(text, n=5):
    return {xxhash.xxh64_intdigest(" ".join(gram).encode()) for gram in ngrams(words_of(text), n)}


def test_permutations_are_datatroves():
    factors, summands = permutations(Shape())
    assert factors[:3].tolist() == [775169054918279404, 1758426461858698313, 2109959069025162]
    assert summands[:3].tolist() == [1062448801025099917, 1324811268927594100, 1217488311597731462]


def test_published_signature():
    signed = sign(pa.array([LIFE]), Shape())
    assert signed.sizes.tolist() == [15]
    assert 14063004348133954661 in signed.shingles
    assert signed.minima[0, :3].tolist() == [90854549700959228, 113335305715265010, 56950161378868219]


@pytest.mark.parametrize("shape", [Shape(), Shape(seed=7, bands=3, rows=5, ngram=2)])
def test_signatures_are_datatroves_on_the_same_words(shape, tmp_path):
    pytest.importorskip("spacy")
    config = MinhashConfig(n_grams=shape.ngram, num_buckets=shape.bands, hashes_per_bucket=shape.rows, seed=shape.seed)
    oracle = MinhashDedupSignature(str(tmp_path), config)
    oracle._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())  # xxhash 4 takes bytes only
    texts = [LIFE, "The soil held the water that fell on it in spring; by June (2019) the field was green.", LIFE * 40]
    ours = sign(pa.array(texts), shape)
    theirs = [np.concatenate(oracle.get_signature(oracle.get_shingles(text))) for text in texts]
    np.testing.assert_array_equal(ours.minima, theirs)


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=12), max_size=5))
def test_shingles_are_the_set_of_hashed_ngrams(documents):
    texts = [" ".join(words) for words in documents]
    signed = sign(pa.array(texts, pa.string()), Shape())
    ends = np.cumsum(signed.sizes)
    for text, size, end in zip(texts, signed.sizes, ends, strict=True):
        assert signed.shingles[end - size : end].tolist() == sorted(hashes_of(text))


def test_character_shingles_keep_scripts_without_spaces_together():
    signed = sign(pa.array(["中文测试法", "ab cd"]), Shape(by_char=True))
    assert signed.shingles.tolist() == [xxhash.xxh64_intdigest(text.encode()) for text in ("中文测试法", "ab cd")]


def test_too_short_has_no_signature():
    assert sign(pa.array(["one two three four", "", "—"]), Shape()).sizes.tolist() == [0, 0, 0]


def test_keys_are_equal_when_the_words_are():
    keys = sign(pa.array([LIFE, LIFE.upper() + "!", LIFE + " more"]), Shape()).keys
    assert (keys[0] == keys[1]).all()
    assert (keys[0] != keys[2]).all()


def test_detection_follows_the_closed_form_of_every_preset():
    # 1,000 pairs at each similarity; a proportion's standard error is at most 0.016
    generator = np.random.default_rng(5)
    for name, preset in PRESETS.items():
        bands, rows, pairs = preset["bands"], preset["rows"], 1000
        factors, summands = permutations(Shape(bands=bands, rows=rows))
        signatures = np.zeros((2, bands * rows), np.uint64)
        for shared in (60, 70, 80, 90):
            hits, apart = 0, 100 - shared
            for _ in range(pairs):
                values = generator.integers(0, 2**63, 100).astype(np.uint64)
                minima_of(values[: shared + apart // 2], factors, summands, signatures[0])
                minima_of(np.delete(values, np.s_[shared : shared + apart // 2]), factors, summands, signatures[1])
                hits += (signatures[0] == signatures[1]).reshape(bands, rows).all(axis=1).any()
            expected = 1 - (1 - (shared / 100) ** rows) ** bands
            error = np.sqrt(expected * (1 - expected) / pairs)
            assert abs(hits / pairs - expected) < 4 * error + 0.005, (name, shared, hits / pairs, expected)


SETS = st.sets(st.integers(0, 30), max_size=20)


@settings(deadline=None)  # the first call compiles
@given(SETS, SETS)
def test_jaccard_is_that_of_pythons_sets(one, other):
    arrays = [np.array(sorted(s), np.uint32) for s in (one, other)]
    assert jaccard(*arrays) == (len(one & other) / len(one | other) if one | other else 0)


def found_in(bands, sets, least=0.8, settled=0):
    """The forest of documents with these bands (one row each) and sets of shingles, every band compared."""
    sizes = np.array([len(s) for s in sets], np.int64)
    flat = np.array([value for s in sets for value in sorted(s)], np.uint32)
    bands = np.array(bands, np.uint64)
    shingled = Shingled(flat, np.cumsum(sizes) - sizes, sizes, np.ascontiguousarray(bands.T))
    forest = new_forest(len(sets))
    for k in range(bands.shape[1]):
        scan = functools.partial(lambda k: iter([(np.arange(len(bands)), bands[:, k], None)]), k)
        for groups in key_groups(scan, len(bands), Path(), settled):
            compare_groups(groups.members, groups.sizes, k, shingled, least, forest, settled)
    return forest


def test_pairs_that_share_a_band_are_verified_once():
    forest = found_in([[1, 1], [1, 1], [1, 2], [9, 9]], [{1, 2, 3, 4}, {1, 2, 3, 4, 5}, {7, 8}, {1, 2, 3, 4}])
    assert roots_of(forest).tolist() == [0, 0, 2, 3]
    assert (forest.nearest[1], forest.tally.tolist()) == (0.8, [3, 1, 0])


def test_settled_documents_are_not_compared_among_themselves():
    forest = found_in([[1]] * 3, [{1, 2}] * 3, settled=2)
    assert (forest.tally[0], forest.matches.tolist()) == (2, [2, 2, 0])


def test_a_huge_group_of_one_kind_costs_one_comparison_each():
    count = 5000
    forest = found_in([[1] * 3] * count, [set(range(20)) | {1000 + n} for n in range(count)])
    assert forest.tally.tolist() == [count - 1, count - 1, 0]


def test_a_huge_group_of_strangers_is_bounded_and_counted():
    count = 500
    forest = found_in([[1]] * count, [{n} for n in range(count)])
    assert forest.tally.tolist() == [sum(count - 1 - leader for leader in range(64)), 0, count - 64]


def test_signatures_do_not_depend_on_the_batch():
    words = random.Random(3).choices([f"w{n}" for n in range(50)], k=900)
    texts = [" ".join(words[start : start + 60]) for start in range(0, 800, 40)]
    together = sign(pa.array(texts), Shape())
    alone = [sign(pa.array([text]), Shape()) for text in texts]
    np.testing.assert_array_equal(together.bands, np.concatenate([signed.bands for signed in alone]))
    np.testing.assert_array_equal(together.shingles, np.concatenate([signed.shingles for signed in alone]))
