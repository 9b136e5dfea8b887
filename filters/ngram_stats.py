"""Compiled repetition statistics: duplicate lines and paragraphs, top n-grams, duplicate n-grams.

The one choice that matters: everything is compared by 64-bit hash in one open-addressing table, reused for all counts
of a document (an n-gram's hash is a polynomial of its words' hashes, rolled along the text): no string is built.
Source: Gopher (arXiv:2112.11446, table A1), which leaves details open: `duplicate_*` and `top_ngram` with first-seen
ties follow datatrove (its denominator is the characters of the whole text), `covered_*` and longest ties follow DCLM.

Legend: `keys` uint64 and `counts` int32 are the table (a power of two, count 0 is free); the rest as in `word_split`.
"""

import numpy as np

from filters.characters import LINE_BREAK, SPACE
from filters.word_split import hash_span
from pipelines.compiled import kernel

NEWLINE = 10
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplication by it loses no bit


@kernel
def _table_size(entries):
    size = 16
    while size < 2 * entries:
        size *= 2
    return size


@kernel
def _slot(keys, counts, mask, key):
    """Where a key lies in the table, or the free place for it."""
    slot = np.int64((key ^ (key >> np.uint64(32))) & np.uint64(mask))
    while counts[slot] and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@kernel
def _count(keys, counts, mask, key):
    """Add one to a key's count; returns the count before."""
    slot = _slot(keys, counts, mask, key)
    keys[slot] = key
    counts[slot] += 1
    return counts[slot] - 1


@kernel
def duplicate_lines(cps, n, breaks, skip_blank, cls, keys, counts):
    """Duplicates among the pieces of cps[:n] between runs of at least `breaks` newlines.

    Args:
        cps: code points.
        n: how many.
        breaks: newlines that separate: 1 for lines, 2 for paragraphs.
        skip_blank: pass over pieces of only spaces.
        cls: flags.
        keys: table.
        counts: table.

    Returns:
        (pieces, duplicate pieces, code points in duplicate pieces).
    """
    pieces = 2
    for i in range(n):
        pieces += cps[i] == NEWLINE
    mask = _table_size(pieces) - 1
    counts[: mask + 1] = 0
    total, duplicates, chars, begin, i = 0, 0, 0, 0, 0
    while i <= n:
        run = i
        while run < n and cps[run] == NEWLINE:
            run += 1
        if i < n and run - i < breaks:
            i = max(run, i + 1)
            continue
        blank = skip_blank
        if skip_blank:
            for j in range(begin, i):
                if not cls[j] & SPACE:
                    blank = False
                    break
        if not blank:
            total += 1
            if _count(keys, counts, mask, hash_span(cps, begin, i)):
                duplicates += 1
                chars += i - begin
        begin = i = max(run, i + 1)
        if run == n and i == n:  # the text ends with the separator: an empty last piece, as re.split gives
            if not skip_blank:
                total += 1
                duplicates += _count(keys, counts, mask, hash_span(cps, n, n)) > 0
            break
    return total, duplicates, chars


@kernel
def strip_span(cls, a, b):
    """Bounds of cps[a:b] without spaces around it."""
    while a < b and cls[a] & SPACE:
        a += 1
    while b > a and cls[b - 1] & SPACE:
        b -= 1
    return a, b


@kernel
def top_ngram(hashes, lengths, words, size, keys, counts, firsts, space, longest):
    """The most frequent n-gram.

    Args:
        hashes: of words.
        lengths: of words, in characters.
        words: how many.
        size: n.
        keys: table.
        counts: table.
        firsts: int32 (table,), takes the place of each n-gram's first occurrence.
        space: characters that stand between two words.
        longest: whether a tie goes to the longest n-gram (as in DCLM), not to the one seen first (as in datatrove).

    Returns:
        (how often it occurs, its characters); zeros with fewer than n words.
    """
    if words < size:
        return 0, 0
    mask = _table_size(words) - 1
    counts[: mask + 1] = 0
    lead = np.uint64(1)
    for _ in range(size - 1):
        lead *= BASE
    key, length, best, best_chars, best_first = np.uint64(0), (size - 1) * space, 0, 0, 0
    for i in range(words):
        if i >= size:
            key -= hashes[i - size] * lead
            length -= lengths[i - size]
        key = key * BASE + hashes[i]
        length += lengths[i]
        if i + 1 < size:
            continue
        slot = _slot(keys, counts, mask, key)
        if counts[slot] == 0:
            keys[slot], firsts[slot] = key, i
        counts[slot] += 1
        if counts[slot] < best:
            continue
        tie = length > best_chars if longest else firsts[slot] < best_first
        if counts[slot] > best or tie:
            best, best_chars, best_first = counts[slot], length, firsts[slot]
    return best, best_chars


@kernel
def duplicate_ngram_chars(hashes, lengths, words, size, keys, counts):
    """Characters of words inside n-grams seen before, each word counted once (after a hit the scan jumps past it)."""
    mask = _table_size(words) - 1
    counts[: mask + 1] = 0
    lead = np.uint64(1)
    for _ in range(size - 1):
        lead *= BASE
    key, length, filled, chars = np.uint64(0), 0, 0, 0
    for i in range(words):
        if filled == size:
            key -= hashes[i - size] * lead
            length -= lengths[i - size]
            filled -= 1
        key = key * BASE + hashes[i]
        length += lengths[i]
        filled += 1
        if filled == size and _count(keys, counts, mask, key):
            chars += length
            key, length, filled = np.uint64(0), 0, 0
    return chars


@kernel
def repetition(hashes, lengths, words, units, keys, counts, firsts, out):
    """Gopher's nine fractions, times the characters of the text.

    Args:
        hashes: of words.
        lengths: of words.
        words: how many.
        units: how many of them make a word of the language; n-grams are as many times longer.
        keys: table.
        counts: table.
        firsts: table.
        out: (9,); takes count times characters of the top 2- to 4-gram, characters in duplicate 5- to 10-grams.
    """
    out[:] = 0
    for k in range(3):
        count, chars = top_ngram(hashes, lengths, words, round(units * (2 + k)), keys, counts, firsts, 1, False)
        out[k] = count * chars
    for k in range(6):
        out[3 + k] = duplicate_ngram_chars(hashes, lengths, words, round(units * (5 + k)), keys, counts)
        if out[3 + k] == 0:
            break  # what no n-gram repeats, no longer one does


@kernel
def covered_ngram_chars(hashes, lengths, words, size, keys, counts):
    """Characters of words inside any n-gram that occurs twice or more, its first occurrence too, each word once."""
    if words < size:
        return 0
    mask = _table_size(words) - 1
    counts[: mask + 1] = 0
    lead = np.uint64(1)
    for _ in range(size - 1):
        lead *= BASE
    chars, covered = 0, 0
    for again in range(2):
        key = np.uint64(0)
        for i in range(words):
            if i >= size:
                key -= hashes[i - size] * lead
            key = key * BASE + hashes[i]
            if i + 1 < size:
                continue
            if again == 0:
                _count(keys, counts, mask, key)
            elif counts[_slot(keys, counts, mask, key)] > 1:
                for w in range(max(covered, i + 1 - size), i + 1):
                    chars += lengths[w]
                covered = i + 1
    return chars


@kernel
def covered_lines(cps, n, breaks, cls, keys, counts):
    """Shares of repeated pieces between runs of at least `breaks` newlines, first occurrences too, empty ones aside.

    Returns:
        (pieces, pieces that occur twice or more, characters in pieces, characters in those).
    """
    pieces = 1
    for i in range(n):
        pieces += cps[i] == NEWLINE
    mask = _table_size(pieces) - 1
    counts[: mask + 1] = 0
    total, repeated, chars, repeated_chars = 0, 0, 0, 0
    for again in range(2):
        begin = 0
        while begin < n:
            end = begin
            while end < n and not _breaks(cps, end, n, breaks):
                end += 1
            lo, hi = strip_span(cls, begin, end)
            if lo < hi and again == 0:
                total += 1
                chars += hi - lo
                _count(keys, counts, mask, hash_span(cps, lo, hi))
            elif lo < hi and counts[_slot(keys, counts, mask, hash_span(cps, lo, hi))] > 1:
                repeated += 1
                repeated_chars += hi - lo
            begin = end
            while begin < n and cps[begin] == NEWLINE:
                begin += 1
    return total, repeated, chars, repeated_chars


@kernel
def _breaks(cps, i, n, breaks):
    run = 0
    while i + run < n and run < breaks and cps[i + run] == NEWLINE:
        run += 1
    return run == breaks


@kernel
def next_line(cls, cps, a, n):
    """End of the line that begins at a, and where the next one begins, as str.splitlines does."""
    i = a
    while i < n and not cls[i] & LINE_BREAK:
        i += 1
    if i + 1 < n and cps[i] == 13 and cps[i + 1] == NEWLINE:
        return i, i + 2
    return i, min(i + 1, n)
