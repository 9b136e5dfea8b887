"""Repeated passages of at least L bytes, found exactly and without a suffix array.

Every window of L bytes holds an anchor: the leftmost of its least-hashed k-grams (winnowing: Schleimer et al. 2003,
doi:10.1145/872757.872770), which depends on the window's bytes alone. So two equal windows have the same anchor at the
same place, and it suffices to compare the surroundings of equal anchors, byte by byte: about 2 of (L - k + 2) positions
are ever sorted, where a suffix array sorts all of them, and nothing has to fit into memory. What is found is what
sorted suffixes with a common prefix of L bytes give (Lee et al. 2021, arXiv:2107.06499); tests hold it against them.
A window of one repeated byte (a ruled line) counts as no passage.

Legend of suffixes: B bytes, A anchors, M members of groups of equal anchors, G groups, E spans.
"""

from typing import NamedTuple

import numpy as np

from pipelines.compiled import inlined, kernel
from pipelines.shingles import xxh64

_BASE, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_WORST = np.uint64(0xFFFFFFFFFFFFFFFF)
MOST_LEADERS = 256  # a group of more different surroundings is sorted window by window instead


def gram_bytes(length: int) -> int:
    """Bytes of an anchor for passages of `length`: half, which balances anchors against chance repeats."""
    return length // 2


@inlined
def _mixed(value):
    value = (value ^ (value >> np.uint64(33))) * _MIX_1
    value = (value ^ (value >> np.uint64(33))) * _MIX_2
    return value ^ (value >> np.uint64(33))


@kernel
def _gram_hashes(data_B, first, end, gram, hashes_B):
    """Hash every k-gram of a text by rolling; those of one repeated byte get the worst hash."""
    power, rolling, run = np.uint64(1), np.uint64(0), 0
    for _ in range(gram):
        power = power * _BASE
    for at in range(first, end):
        rolling = rolling * _BASE + np.uint64(data_B[at]) + np.uint64(1)
        if at - first >= gram:
            rolling -= power * (np.uint64(data_B[at - gram]) + np.uint64(1))
        run = run + 1 if at > first and data_B[at] == data_B[at - 1] else 1
        if at - first >= gram - 1:
            hashes_B[at - first - gram + 1] = _WORST if run >= gram else _mixed(rolling)


@kernel
def anchors_of(data_B, offsets_N, length, gram):
    """The anchors of some texts.

    Args:
        data_B: uint8, the texts.
        offsets_N: int64, where each begins, and the end of the last.
        length: L.
        gram: k.

    Returns:
        int64 (A,) places in `data_B` and uint64 (A,) hashes.
    """
    longest = np.int64(0)
    for n in range(len(offsets_N) - 1):
        longest = max(longest, offsets_N[n + 1] - offsets_N[n])
    hashes_B, queue = np.empty(longest + 1, np.uint64), np.empty(longest + 1, np.int64)
    places_A, keys_A = np.empty(1024, np.int64), np.empty(1024, np.uint64)
    count, width = 0, length - gram + 1
    for n in range(len(offsets_N) - 1):
        first, end = offsets_N[n], offsets_N[n + 1]
        if end - first < length:
            continue
        _gram_hashes(data_B, first, end, gram, hashes_B)
        head, tail, last = 0, 0, np.int64(-1)
        for at in range(end - first - gram + 1):
            while tail > head and hashes_B[queue[tail - 1]] > hashes_B[at]:
                tail -= 1
            queue[tail] = at
            tail += 1
            if queue[head] <= at - width:
                head += 1
            least = queue[head]
            if at >= width - 1 and least != last and hashes_B[least] != _WORST:
                if count == len(places_A):
                    places_A = np.concatenate((places_A, np.empty(count, np.int64)))
                    keys_A = np.concatenate((keys_A, np.empty(count, np.uint64)))
                places_A[count], keys_A[count], last = first + least, hashes_B[least], least
                count += 1
    return places_A[:count], keys_A[:count]


class Surroundings(NamedTuple):
    """Where the texts of a corpus are, and what is asked of their passages.

    Attributes:
        text: uint8 (B,), all texts, one after another; may lie in a mapped file.
        offsets: int64 (N + 1,), where each begins.
        length: L.
        gram: k.
    """

    text: np.ndarray
    offsets: np.ndarray
    length: int
    gram: int


@kernel
def _reach(place, row, around):
    """How many bytes of a document lie within L - k before an anchor and behind it."""
    most = around.length - around.gram
    after = around.offsets[row + 1] - place - around.gram
    return min(most, place - around.offsets[row]), min(most, after)


@kernel
def _shared(one, one_row, other, other_row, around):
    """How many equal bytes surround two equal anchors on either side; -1 when the anchors differ after all."""
    text = around.text
    for i in range(around.gram):
        if text[one + i] != text[other + i]:
            return -1, -1
    one_before, one_after = _reach(one, one_row, around)
    other_before, other_after = _reach(other, other_row, around)
    before, after = 0, 0
    while before < min(one_before, other_before) and text[one - before - 1] == text[other - before - 1]:
        before += 1
    one_end, other_end = one + around.gram, other + around.gram
    while after < min(one_after, other_after) and text[one_end + after] == text[other_end + after]:
        after += 1
    return before, after


@kernel
def _grown(spans_E4, count):
    if count < len(spans_E4):
        return spans_E4
    wider_E4 = np.empty((2 * len(spans_E4), 4), np.int64)
    wider_E4[:count] = spans_E4
    return wider_E4


@kernel
def _put(spans_E4, count, row, start, end, source_start, source, around):
    """Append a span; of one that overlaps its source only what lies behind the first L bytes of that is a copy."""
    if source == row:
        start = max(start, source_start + around.length)
    if start < end:
        begin = around.offsets[row]
        spans_E4[count, 0], spans_E4[count, 1], spans_E4[count, 2] = row, start - begin, end - begin
        spans_E4[count, 3] = source
        count += 1
    return count


@kernel
def match_leaders(places_M, rows_M, sizes_G, around):
    """Find the spans around equal anchors that an earlier one has, too.

    Each anchor is compared with the leaders of its group; one whose surroundings no single leader has whole becomes a
    leader. So the first copy of every window belongs to a leader, and no pair of equal windows is missed.

    Args:
        places_M: int64, places of anchors, group after group, in order of rank within one.
        rows_M: int64, document of each.
        sizes_G: int64, members of each group.
        around: the texts.

    Returns:
        int64 (E, 4): document, first and end byte in its text, document of the copy that stays.
    """
    spans_E4, count, begin = np.empty((1024, 4), np.int64), 0, 0
    leaders = np.empty(max(sizes_G) if len(sizes_G) else 1, np.int64)
    for g in range(len(sizes_G)):
        led = 0
        for m in range(begin, begin + sizes_G[g]):
            place, row, covered = places_M[m], rows_M[m], False
            full_before, full_after = _reach(place, row, around)
            for i in range(led):
                lead, source = places_M[leaders[i]], rows_M[leaders[i]]
                before, after = _shared(lead, source, place, row, around)
                if before < 0 or before + after + around.gram < around.length:
                    continue
                spans_E4 = _grown(spans_E4, count)
                end = place + around.gram + after
                count = _put(spans_E4, count, row, place - before, end, lead - before, source, around)
                covered = before == full_before and after == full_after
                if covered:
                    break
            if not covered:
                leaders[led] = m
                led += 1
        begin += sizes_G[g]
    return spans_E4[:count]


@kernel
def _surrounding_keys(places_M, rows_M, around):
    keys_M = np.empty(len(places_M), np.uint64)
    for m in range(len(places_M)):
        before, after = _reach(places_M[m], rows_M[m], around)
        start, end = places_M[m] - before, places_M[m] + around.gram + after
        keys_M[m] = xxh64(around.text, start, end, np.uint64(before))
    return keys_M


@kernel
def _window_keys(places_M, rows_M, offset, around):
    """Hash the window that begins `offset` bytes before each anchor; 0 where the document has none."""
    keys_M = np.zeros(len(places_M), np.uint64)
    for m in range(len(places_M)):
        before, after = _reach(places_M[m], rows_M[m], around)
        if offset <= before and around.length - around.gram - offset <= after:
            start = places_M[m] - offset
            keys_M[m] = xxh64(around.text, start, start + around.length, np.uint64(0))
    return keys_M


@kernel
def _spans_of_windows(places_M, rows_M, firsts_M, before_M, after_M, around):
    spans_E4, count = np.empty((len(places_M), 4), np.int64), 0
    for m in range(len(places_M)):
        lead = firsts_M[m]
        if lead >= 0 and lead != m:
            start, end = places_M[m] - before_M[m], places_M[m] + around.gram + after_M[m]
            count = _put(
                spans_E4, count, rows_M[m], start, end, places_M[lead] - before_M[m], rows_M[lead], around
            )  # fmt: skip
    return spans_E4[:count]


def _firsts(keys_M: np.ndarray) -> np.ndarray:
    """The first member that has each one's key, -1 where the key is 0."""
    _, first, back = np.unique(keys_M, return_index=True, return_inverse=True)
    return np.where(keys_M == 0, -1, first[back])


def match_large(places_M: np.ndarray, rows_M: np.ndarray, around: Surroundings) -> np.ndarray:
    """The same as `match_leaders` for one group of many anchors, at a cost that grows with m and not with its square.

    Anchors whose surroundings an earlier one has whole are matched with that. If many are left, their windows are
    grouped by hash, one place of the window after another.
    """
    firsts_M = _firsts(_surrounding_keys(places_M, rows_M, around))
    reach = np.array([_reach(place, row, around) for place, row in zip(places_M, rows_M, strict=True)])
    found = [_spans_of_windows(places_M, rows_M, firsts_M, reach[:, 0], reach[:, 1], around)]
    own = (firsts_M == np.arange(len(firsts_M))) | (firsts_M < 0)
    places_M, rows_M = places_M[own], rows_M[own]
    if len(places_M) <= MOST_LEADERS:
        return np.concatenate([*found, match_leaders(places_M, rows_M, np.array([len(places_M)]), around)])
    for offset in range(around.length - around.gram + 1):
        firsts_M = _firsts(_window_keys(places_M, rows_M, offset, around))
        before, after = np.full(len(places_M), offset), np.full(len(places_M), around.length - around.gram - offset)
        found.append(_spans_of_windows(places_M, rows_M, firsts_M, before, after, around))
    return np.concatenate(found)
