"""Compiled repetition statistics: duplicate lines and paragraphs, top n-grams, duplicate n-grams.

The one choice that matters: everything is compared by 64-bit hash in one open-addressing table, reused for all counts
of a document (an n-gram's hash is a polynomial of its words' hashes, rolled along the text): no string is built.
Source: Gopher (arXiv:2112.11446, table A1); among n-grams of equal count the first seen is the top one, as in
datatrove, whose words and denominators (characters of the whole text) these are.

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
    pieces = 1
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
            total += not skip_blank
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
def top_ngram_chars(hashes, lengths, words, size, keys, counts, firsts):
    """Characters of the most frequent n-gram (words joined by one space) times its count; 0 with fewer than n words.

    `firsts` int32 (table,) takes the place of each n-gram's first occurrence, which decides ties.
    """
    if words < size:
        return 0
    mask = _table_size(words) - 1
    counts[: mask + 1] = 0
    lead = np.uint64(1)
    for _ in range(size - 1):
        lead *= BASE
    key, length, best, best_chars, best_first = np.uint64(0), size - 1, 0, 0, 0
    for i in range(words):
        if i >= size:
            key -= hashes[i - size] * lead
            length -= lengths[i - size]
        key = key * BASE + hashes[i]
        length += lengths[i]
        if i + 1 >= size:
            slot = _slot(keys, counts, mask, key)
            if counts[slot] == 0:
                keys[slot], firsts[slot] = key, i
            counts[slot] += 1
            if counts[slot] > best or (counts[slot] == best and firsts[slot] < best_first):
                best, best_chars, best_first = counts[slot], length, firsts[slot]
    return best * best_chars


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
def next_line(cls, cps, a, n):
    """End of the line that begins at a, and where the next one begins, as str.splitlines does."""
    i = a
    while i < n and not cls[i] & LINE_BREAK:
        i += 1
    if i + 1 < n and cps[i] == 13 and cps[i + 1] == NEWLINE:
        return i, i + 2
    return i, min(i + 1, n)
