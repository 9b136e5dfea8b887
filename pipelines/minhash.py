"""MinHash signatures of texts, and the pairs of documents that they make candidates.

The permutations are datatrove's, `(h * a + b) mod (2^61 - 1)` in wrapping uint64 with `a, b` from `RandomState(seed)`,
so that signatures are equal to its signatures; a pair shares a band with probability `1 - (1 - s^rows)^bands`. A shared
band only proposes: each pair is decided by the Jaccard similarity of the two sets of shingles (Broder 1997,
doi:10.1109/SEQUEN.1997.666900; Lee et al. 2021, arXiv:2107.06499).

Legend of suffixes: B bytes, N documents, S shingles of all documents, P permutations, K bands, M members of groups, G
groups.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.clusters import Forest, join, root_of
from pipelines.compiled import kernel
from pipelines.shingles import GROWTH, characters, code_points, simplify, utf8_buffers, xxh64

PRIME = np.uint64((1 << 61) - 1)
_SHIFT, _ZERO, _ONE = np.uint64(61), np.uint64(0), np.uint64(1)
RELEASE_BYTES = 192 << 20  # of mapped files that are touched before they are let go
TOUCHED_BYTES = 64 << 10  # the system maps so much around each document that is read
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
def jaccard(one_S, other_S):
    """Jaccard similarity of two sets, 0..1; two empty sets have 0.

    Args:
        one_S: sorted distinct hashes.
        other_S: the same.
    """
    i, j, shared = 0, 0, 0
    while i < len(one_S) and j < len(other_S):
        if one_S[i] < other_S[j]:
            i += 1
        elif other_S[j] < one_S[i]:
            j += 1
        else:
            i, j, shared = i + 1, j + 1, shared + 1
    union = len(one_S) + len(other_S) - shared
    return shared / union if union else 0.0


class Shingled(NamedTuple):
    """Sets of shingles and bands of the documents that share a band with another, in order of rank.

    Attributes:
        shingles: uint32 (S,), upper halves of the hashes, ascending within each document; may lie in a mapped file. Two
            of n shingles share a half once in 2^33 / n^2 documents: a similarity is off by less than 1e-5.
        starts: int64 (N,), where a document's begin.
        sizes: int64 (N,), how many they are.
        bands: uint64 (K, N); may lie in a mapped file.
    """

    shingles: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    bands: np.ndarray


@kernel
def _similarity(one, other, sets):
    first, second = sets.starts[one], sets.starts[other]
    return jaccard(sets.shingles[first : first + sets.sizes[one]], sets.shingles[second : second + sets.sizes[other]])


@kernel
def _seen_before(one, other, band, sets):
    """Whether an earlier band put the two in one group."""
    for k in range(band):  # noqa: SIM110 - numba compiles no generator
        if sets.bands[k, one] == sets.bands[k, other]:
            return True
    return False


@kernel
def _compare_small(members_M, sizes_G, band, sets, settled, least, forest):
    """Compare the members of each group pair by pair, and join those that are similar."""
    begin = 0
    for g in range(len(sizes_G)):
        end = begin + sizes_G[g]
        for i in range(begin, end):
            for j in range(i + 1, end):
                one, other = members_M[i], members_M[j]
                if other < settled or _seen_before(one, other, band, sets):
                    continue
                forest.tally[0] += 1
                similarity = _similarity(one, other, sets)
                if similarity >= least:
                    join(one, other, similarity, settled, forest)
        begin = end


@kernel
def _follow(one, members_M, taken_M, sets, settled, least, forest):
    """Let one document take in those that are similar to it, or that are joined with it already."""
    for m in range(len(members_M)):
        other = members_M[m]
        if taken_M[m] or other < settled:
            continue
        taken_M[m] = root_of(forest.parents, one) == root_of(forest.parents, other)
        if taken_M[m]:
            continue
        forest.tally[0] += 1
        similarity = _similarity(one, other, sets)
        if similarity >= least:
            taken_M[m] = True
            join(one, other, similarity, settled, forest)


def _compare_large(
    members_M: np.ndarray, sets: Shingled, settled: int, least: float, forest: Forest, release: Callable[[], None]
) -> None:
    taken_M, at = np.zeros(len(members_M), bool), 0
    step = RELEASE_BYTES // TOUCHED_BYTES
    for _ in range(MAX_LEADERS):
        waiting = np.flatnonzero(~taken_M[at:])
        if not len(waiting) or members_M[-1] < settled:
            break
        at += int(waiting[0]) + 1
        for begin in range(at, len(members_M), step):
            some = slice(begin, begin + step)
            _follow(members_M[at - 1], members_M[some], taken_M[some], sets, settled, least, forest)
            release()
    forest.tally[2] += int((~taken_M[at:] & (members_M[at:] >= settled)).sum())


def _keep_mapped() -> None:
    """What is in memory anyway need not be let go."""


def compare_groups(
    members_M: np.ndarray,
    sizes_G: np.ndarray,
    band: int,
    sets: Shingled,
    least: float,
    forest: Forest,
    settled: int = 0,
    release: Callable[[], None] = _keep_mapped,
) -> None:
    """Join the similar among documents that share a band.

    A group of up to `ALL_PAIRS` documents is compared pair by pair. In a larger one the first document leads: those
    similar to it (or joined with it before) are taken in, the next that is left leads in its turn, up to `MAX_LEADERS`.
    So a group of m costs at most 64 m comparisons; what then remains is counted in `forest.tally[2]`.

    Args:
        members_M: int64, ranks, group after group, ascending within one: the result depends on ranks and on the order
            of the groups, not on the order of the input.
        sizes_G: int64, members of each group.
        band: which band they share.
        sets: of all documents.
        least: Jaccard similarity at which a pair counts.
        forest: changed in place.
        settled: ranks below it are not compared among themselves (they come from an index).
        release: called after each `RELEASE_BYTES` that were read: lets go of what mapped files hold in memory.
    """
    small_G = sizes_G <= ALL_PAIRS
    ends_G = np.cumsum(sizes_G)
    cost_G = np.cumsum(sizes_G * TOUCHED_BYTES)
    begin = 0
    while begin < len(sizes_G):
        if not small_G[begin]:
            members = members_M[ends_G[begin] - sizes_G[begin] : ends_G[begin]]
            _compare_large(members, sets, settled, least, forest, release)
            begin += 1
            continue
        spent = cost_G[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(cost_G, spent + RELEASE_BYTES)))
        large = np.flatnonzero(~small_G[begin:end])
        end = begin + int(large[0]) if len(large) else end
        members = members_M[ends_G[begin] - sizes_G[begin] : ends_G[end - 1]]
        _compare_small(members, sizes_G[begin:end], band, sets, settled, least, forest)
        release()
        begin = end
