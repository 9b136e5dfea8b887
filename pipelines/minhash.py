"""MinHash signatures of texts, and the pairs of documents that they make candidates.

The permutations are datatrove's, `(h * a + b) mod (2^61 - 1)` in wrapping uint64 with `a, b` from `RandomState(seed)`,
so that signatures are equal to its signatures; a pair shares a band with probability `1 - (1 - s^rows)^bands`. A shared
band only proposes: each pair is decided by the Jaccard similarity of the two sets of shingles (Broder 1997,
doi:10.1109/SEQUEN.1997.666900; Lee et al. 2021, arXiv:2107.06499).

Legend of suffixes: B bytes, N documents, S shingles of all documents, P permutations, K bands, E pairs.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.clusters import root_of
from pipelines.compiled import kernel
from pipelines.shingles import GROWTH, characters, code_points, simplify, utf8_buffers, xxh64

PRIME = np.uint64((1 << 61) - 1)
_SHIFT, _ZERO, _ONE = np.uint64(61), np.uint64(0), np.uint64(1)
ALL_PAIRS = 64  # a group that shares a band is compared pair by pair up to this size (2,016 pairs)
MAX_LEADERS = 64  # above it, members are compared with at most so many leaders


@dataclass(frozen=True)
class Shape:
    """What a signature is made of.

    Attributes:
        by_char: shingles of characters rather than words.
        ngram: words or characters of a shingle.
        bands: groups of hashes of which one must agree.
        rows: hashes of a band, which must all agree.
        seed: of the permutations.
    """

    by_char: bool = False
    ngram: int = 5
    bands: int = 14
    rows: int = 8
    seed: int = 1


class Signed(NamedTuple):
    """Signatures of N texts.

    Attributes:
        sizes: int64 (N,), distinct shingles; 0 when the text is too short for one: such a row has no signature.
        bands: uint64 (N, K), a hash of each band's rows.
        keys: uint64 (N, 2), 128 bits that two texts share when they are equal once simplified.
        shingles: uint64 (S,), sorted distinct hashes, document after document.
        minima: uint64 (N, P), the signature itself.
    """

    sizes: np.ndarray
    bands: np.ndarray
    keys: np.ndarray
    shingles: np.ndarray
    minima: np.ndarray


def permutations(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Factors and summands of the permutations, uint64 (P,) each; the same as datatrove's for the same seed."""
    generator = np.random.RandomState(shape.seed)
    count = shape.bands * shape.rows
    factors_P = generator.randint(1, int(PRIME), dtype=np.uint64, size=count)
    return factors_P, generator.randint(0, int(PRIME), dtype=np.uint64, size=count)


@kernel
def minima_of(shingles_S, factors_P, summands_P, minima_P):
    """Write the least value of each permutation over some shingles into `minima_P`."""
    minima_P[:] = PRIME
    for s in range(len(shingles_S)):
        shingle = shingles_S[s]
        for p in range(len(minima_P)):
            value = shingle * factors_P[p] + summands_P[p]
            value = (value & PRIME) + (value >> _SHIFT)
            value = value - PRIME if value >= PRIME else value
            minima_P[p] = min(minima_P[p], value)


@kernel
def _distinct(hashes_S):
    """Sort in place, move the distinct values to the front, return how many there are."""
    hashes_S.sort()
    count = 0
    for s in range(len(hashes_S)):
        if s == 0 or hashes_S[s] != hashes_S[count - 1]:
            hashes_S[count] = hashes_S[s]
            count += 1
    return count


@kernel
def _sign(data_B, offsets_N, table, by_char, ngram, bands, factors_P, summands_P):
    documents, rows = len(offsets_N) - 1, len(factors_P) // bands
    longest = np.int64(0)
    for n in range(documents):
        longest = max(longest, offsets_N[n + 1] - offsets_N[n])
    out_B = np.empty(GROWTH * longest, np.uint8)
    units_U4 = np.empty((longest // 2 + 1, 4), np.int64)
    sizes_N = np.zeros(documents, np.int64)
    bands_NK = np.zeros((documents, bands), np.uint64)
    keys_N2 = np.zeros((documents, 2), np.uint64)
    minima_NP = np.zeros((documents, len(factors_P)), np.uint64)
    shingles_S = np.empty((offsets_N[-1] - offsets_N[0]) // 4 + 1024, np.uint64)
    total = 0
    for n in range(documents):
        used, count = simplify(data_B, offsets_N[n], offsets_N[n + 1], table, not by_char, True, out_B, units_U4)
        spans = characters(out_B, used) if by_char else units_U4[:count, :2]
        grams = len(spans) - ngram + 1
        if grams < 1:
            continue
        if total + grams > len(shingles_S):
            wider_S = np.empty(2 * len(shingles_S) + grams, np.uint64)
            wider_S[:total] = shingles_S[:total]
            shingles_S = wider_S
        for g in range(grams):
            shingles_S[total + g] = xxh64(out_B, spans[g, 0], spans[g + ngram - 1, 1], _ZERO)
        sizes_N[n] = _distinct(shingles_S[total : total + grams])
        keys_N2[n, 0], keys_N2[n, 1] = xxh64(out_B, 0, used, _ZERO), xxh64(out_B, 0, used, _ONE)
        minima_of(shingles_S[total : total + sizes_N[n]], factors_P, summands_P, minima_NP[n])
        signature_B = minima_NP[n].view(np.uint8)
        for k in range(bands):
            bands_NK[n, k] = xxh64(signature_B, 8 * rows * k, 8 * rows * (k + 1), _ZERO)
        total += sizes_N[n]
    return sizes_N, bands_NK, keys_N2, shingles_S[:total], minima_NP


def sign(texts: pa.Array | pa.ChunkedArray, shape: Shape) -> Signed:
    """Sign texts, in one compiled pass.

    Args:
        texts: strings, N of them.
        shape: of the signatures.

    Returns:
        Their signatures. A text of fewer units than a shingle has size 0 and zeros.
    """
    factors_P, summands_P = permutations(shape)
    data_B, offsets_N = utf8_buffers(texts)
    return Signed(
        *_sign(data_B, offsets_N, code_points(), shape.by_char, shape.ngram, shape.bands, factors_P, summands_P)
    )


@kernel
def jaccard(one_S, other_S, limit):
    """Jaccard similarity of two sets.

    Args:
        one_S: sorted distinct uint64.
        other_S: the same.
        limit: how many of the smallest members of the union are looked at; with sets cut to their `limit` smallest
            members this estimates the similarity of the whole sets (standard error at most 1 / (2 sqrt(limit))).

    Returns:
        Shared members over members of the union, 0..1; two empty sets have 0.
    """
    i, j, shared, union = 0, 0, 0, 0
    while union < limit and (i < len(one_S) or j < len(other_S)):
        if j == len(other_S) or (i < len(one_S) and one_S[i] < other_S[j]):
            i += 1
        elif i == len(one_S) or other_S[j] < one_S[i]:
            j += 1
        else:
            i, j, shared = i + 1, j + 1, shared + 1
        union += 1
    return shared / union if union else 0.0


class Shingled(NamedTuple):
    """Sets of shingles of the documents that share a band with another.

    Attributes:
        shingles: uint64 (S,), sorted within each document; may lie in a memory map.
        starts: int64 (N,), where a document's begin.
        counts: int64 (N,), how many are stored.
        sizes: int64 (N,), how many the document has; more than stored when cut to the smallest.
    """

    shingles: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    sizes: np.ndarray


@kernel
def _similarity(one, other, sets):
    limit = np.int64(1 << 62)
    for n in (one, other):
        if sets.counts[n] < sets.sizes[n]:
            limit = min(limit, sets.counts[n])
    first, second = sets.starts[one], sets.starts[other]
    return jaccard(
        sets.shingles[first : first + sets.counts[one]], sets.shingles[second : second + sets.counts[other]], limit
    )


@kernel
def _seen_before(one, other, band, bands_NK):
    """Whether an earlier band put the two in one group."""
    for k in range(band):  # noqa: SIM110 - numba compiles no generator
        if bands_NK[one, k] == bands_NK[other, k]:
            return True
    return False


@kernel
def _compare_small(members, band, bands_NK, sets, settled, least, parents_N, found):
    """Compare the members of a group pair by pair; append those that are similar; return how many were compared."""
    compared = 0
    for i in range(len(members)):
        for j in range(i + 1, len(members)):
            one, other = members[i], members[j]
            if other < settled or _seen_before(one, other, band, bands_NK):
                continue
            compared += 1
            similarity = _similarity(one, other, sets)
            if similarity >= least:
                found.append((one, other, similarity))
                parents_N[root_of(parents_N, other)] = root_of(parents_N, one)
    return compared


@kernel
def _compare_large(members, sets, settled, least, max_leaders, parents_N, found):
    """Let leaders take in what is similar to them; return how many were compared and how many new ones are left."""
    compared, leaders, left, taken = 0, 0, 0, np.zeros(len(members), np.bool_)
    for i in range(len(members)):
        one = members[i]
        if taken[i]:
            continue
        if leaders == max_leaders:
            left += one >= settled
            continue
        leaders += 1
        for j in range(i + 1, len(members)):
            other = members[j]
            if taken[j] or other < settled:
                continue
            taken[j] = root_of(parents_N, one) == root_of(parents_N, other)
            if taken[j]:
                continue
            compared += 1
            similarity = _similarity(one, other, sets)
            if similarity >= least:
                taken[j] = True
                found.append((one, other, similarity))
                parents_N[root_of(parents_N, other)] = root_of(parents_N, one)
    return compared, left


@kernel
def _compare_band(order_N, band, bands_NK, sets, settled, least, all_pairs, max_leaders, parents_N):
    """Compare within the groups that share one band: similar pairs, how many compared, how many left."""
    found = [(np.int64(0), np.int64(0), 0.0) for _ in range(0)]
    compared, left, begin = 0, 0, 0
    while begin < len(order_N):
        end = begin + 1
        while end < len(order_N) and bands_NK[order_N[end], band] == bands_NK[order_N[begin], band]:
            end += 1
        members = order_N[begin:end]
        if end - begin <= all_pairs:
            compared += _compare_small(members, band, bands_NK, sets, settled, least, parents_N, found)
        else:
            counts = _compare_large(members, sets, settled, least, max_leaders, parents_N, found)
            compared, left = compared + counts[0], left + counts[1]
        begin = end
    return found, compared, left


class Pairs(NamedTuple):
    """Pairs of documents found similar.

    Attributes:
        one: int64 (E,), the document that ranks before.
        other: int64 (E,), the one that ranks behind.
        similarity: float64 (E,), Jaccard of their shingles.
        compared: pairs that shared a band and were compared.
        left: members of groups above `ALL_PAIRS` that no leader took in before `MAX_LEADERS` were tried.
    """

    one: np.ndarray
    other: np.ndarray
    similarity: np.ndarray
    compared: int
    left: int


def in_company(bands_NK: np.ndarray) -> np.ndarray:
    """Which documents share a band with another: bool (N,)."""
    found_N = np.zeros(len(bands_NK), bool)
    for k in range(bands_NK.shape[1]):
        order_N = np.argsort(bands_NK[:, k], kind="stable")
        column_N = bands_NK[order_N, k]
        equal_N = column_N[1:] == column_N[:-1]
        found_N[order_N[1:][equal_N]] = True
        found_N[order_N[:-1][equal_N]] = True
    return found_N


def similar_pairs(bands_NK: np.ndarray, sets: Shingled, least: float, settled: int = 0) -> Pairs:
    """Find the pairs that share a band and whose shingles overlap enough.

    A group of up to `ALL_PAIRS` documents that share a band is compared pair by pair. In a larger one the first
    document leads: those similar to it (or joined with it before) are taken in, the next that is left leads in its
    turn, up to `MAX_LEADERS`. So a group of m costs at most 64 m comparisons; what then remains is counted.

    Args:
        bands_NK: uint64, rows in order of rank: the result depends on ranks, not on the order of the input.
        sets: the shingles of the documents.
        least: Jaccard similarity at which a pair counts.
        settled: the first so many documents are not compared among themselves (they come from an index).

    Returns:
        The pairs, each once.
    """
    pairs = []
    parents_N = np.arange(len(bands_NK))
    compared, left = 0, 0
    for k in range(bands_NK.shape[1]):
        order_N = np.argsort(bands_NK[:, k], kind="stable")
        found, here, over = _compare_band(order_N, k, bands_NK, sets, settled, least, ALL_PAIRS, MAX_LEADERS, parents_N)
        pairs += found
        compared, left = compared + int(here), left + int(over)
    found_E3 = np.array(pairs, np.float64).reshape(-1, 3)  # exact for ranks below 2^53
    return Pairs(found_E3[:, 0].astype(np.int64), found_E3[:, 1].astype(np.int64), found_E3[:, 2], compared, left)
