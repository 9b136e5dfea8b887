"""The n-grams of evaluation items, and the search for them in documents, compiled.

Both sides are simplified by the same pass (case, punctuation and diacritics do not count). An n-gram of a document is
looked up three times, each time seldomer: a bitmap over the hashes of its first words, the sorted hashes of whole
n-grams, and at last the words themselves, so that a hit is never a collision.

Legend of suffixes: B bytes, G n-grams of the items, T texts of the items, U words, H hits.
"""

import functools
import unicodedata
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.compiled import kernel
from pipelines.shingles import (
    ALONE,
    GROWTH,
    LETTER,
    TABLE_END,
    CodePoints,
    code_points,
    decode,
    simplify,
    utf8_buffers,
    xxh64,
)

TEMPLATE_TEXTS = 10  # an n-gram of more texts of a benchmark than this is its form, not its content


class Reference(NamedTuple):
    """The n-grams of the items, in order of their hash.

    Attributes:
        hashes: uint64 (G,), of the words of an n-gram.
        texts: int64 (G,), number of the text that it is of.
        spans: int64 (G, 2), first and end byte of its words in `words`.
        words: uint8 (B,), the words of all texts, single spaces between.
        lengths: int64, the numbers of words that n-grams have, ascending.
        bitmap: uint64, one bit for each value of the low bits of the hash of an n-gram's first `prefix` words.
        prefix: words of the shortest n-gram.
    """

    hashes: np.ndarray
    texts: np.ndarray
    spans: np.ndarray
    words: np.ndarray
    lengths: np.ndarray
    bitmap: np.ndarray
    prefix: int


class Sizes(NamedTuple):
    """How long texts are when simplified.

    Attributes:
        words: int64 (T,).
        size: int64 (T,), bytes of the words with single spaces.
        alone: int64 (T,), words that are single characters of a script without spaces.
    """

    words: np.ndarray
    size: np.ndarray
    alone: np.ndarray


@functools.cache
def folded_points() -> CodePoints:
    """`code_points`, with every case of a letter made one: also those whose capitals come back as another letter.

    `µ` in capitals is the Greek `Μ`, `ß` is `SS`, `ı` is `I`: lower case alone would not find the small ones again.
    """
    table = code_points()
    pool, kept, starts = [], 0, table.start.copy()
    for code in range(TABLE_END):
        letter = chr(code)
        if table.kind[code] != LETTER or (folded := letter.upper().casefold()) == letter.lower():
            continue
        parts = unicodedata.normalize("NFD", folded)
        replacement = "".join(c for c in parts if unicodedata.category(c) != "Mn").encode()
        first, last = int(table.start[code]), int(table.start[code + 1])
        pool += [table.pool[kept:first], np.frombuffer(replacement, np.uint8)]
        starts[code + 1 :] += len(replacement) - (last - first)
        kept = last
    return CodePoints(table.kind, starts, np.concatenate([*pool, table.pool[kept:]]))


@kernel
def _measure(data_B, offsets_T, table, fold_numbers):
    sizes_T3 = np.zeros((len(offsets_T) - 1, 3), np.int64)
    for t in range(len(offsets_T) - 1):
        size = offsets_T[t + 1] - offsets_T[t]
        out_B, units_U4 = np.empty(GROWTH * size, np.uint8), np.empty((size // 2 + 1, 4), np.int64)
        used, count = simplify(data_B, offsets_T[t], offsets_T[t + 1], table, True, fold_numbers, out_B, units_U4)
        sizes_T3[t, 0], sizes_T3[t, 1] = count, used
        for u in range(count):
            code, _ = decode(data_B, units_U4[u, 2], units_U4[u, 3])
            sizes_T3[t, 2] += code >= TABLE_END or table.kind[code] == ALONE
    return sizes_T3


def sizes_of(texts: pa.Array | pa.ChunkedArray, fold_numbers: bool) -> Sizes:
    """Measure texts (T,)."""
    sizes_T3 = _measure(*utf8_buffers(texts), folded_points(), fold_numbers)
    return Sizes(sizes_T3[:, 0], sizes_T3[:, 1], sizes_T3[:, 2])


@kernel
def _item_ngrams(data_B, offsets_T, table, ngram_T, fold_numbers):
    """Words of all texts end to end, and every n-gram: text, first byte, end byte, words, whether it says something."""
    texts = len(offsets_T) - 1
    words_B = np.empty(GROWTH * (offsets_T[-1] - offsets_T[0]), np.uint8)
    grams_G5 = np.empty(((offsets_T[-1] - offsets_T[0]) // 2 + texts, 5), np.int64)
    total, grams = 0, 0
    for t in range(texts):
        units_U4 = np.empty(((offsets_T[t + 1] - offsets_T[t]) // 2 + 1, 4), np.int64)
        used, count = simplify(
            data_B, offsets_T[t], offsets_T[t + 1], table, True, fold_numbers, words_B[total:], units_U4
        )
        length = min(ngram_T[t], count)
        hashes_U, worded_U = np.empty(count, np.uint64), np.empty(count, np.bool_)
        for u in range(count):
            first, end = total + units_U4[u, 0], total + units_U4[u, 1]
            hashes_U[u] = xxh64(words_B, first, end, np.uint64(0))
            lead = words_B[first]
            worded_U[u] = not (48 <= lead <= 57) and (end - first > 1)
        for u in range(count - length + 1 if length else 0):
            distinct, worded = 0, 0
            for i in range(u, u + length):
                worded += worded_U[i]
                new = True
                for j in range(u, i):
                    if hashes_U[j] == hashes_U[i]:
                        new = False
                        break
                distinct += new
            grams_G5[grams, 0], grams_G5[grams, 3] = t, length
            grams_G5[grams, 1], grams_G5[grams, 2] = total + units_U4[u, 0], total + units_U4[u + length - 1, 1]
            grams_G5[grams, 4] = 2 * distinct > length and 3 * worded > length
            grams += 1
        total += used
    return words_B[:total], grams_G5[:grams]


@kernel
def _hash_spans(words_B, spans_G2):
    hashes_G = np.empty(len(spans_G2), np.uint64)
    for g in range(len(spans_G2)):
        hashes_G[g] = xxh64(words_B, spans_G2[g, 0], spans_G2[g, 1], np.uint64(0))
    return hashes_G


@kernel
def _prefix_ends(words_B, spans_G2, prefix):
    """Where the first `prefix` words of each n-gram end."""
    ends_G = spans_G2[:, 1].copy()
    for g in range(len(spans_G2)):
        spaces = 0
        for at in range(spans_G2[g, 0], spans_G2[g, 1]):
            spaces += words_B[at] == 32
            if spaces == prefix:
                ends_G[g] = at
                break
    return ends_G


def build_reference(
    texts: pa.Array | pa.ChunkedArray, benchmark_T: np.ndarray, ngram_T: np.ndarray, fold_numbers: bool
) -> Reference:
    """Index the n-grams of the items' texts.

    Of a text that has others, these n-grams are left out: more than half numbers, signs and repeated words (a table, a
    formula), and those of more than `TEMPLATE_TEXTS` texts of the same benchmark. No text is left without any.

    Args:
        texts: strings (T,).
        benchmark_T: int64 (T,), number of the benchmark of each.
        ngram_T: int64 (T,), words of its n-grams; a text with fewer is one n-gram.
        fold_numbers: whether all numbers count as equal.
    """
    words_B, grams_G5 = _item_ngrams(*utf8_buffers(texts), folded_points(), ngram_T, fold_numbers)
    hashes_G = _hash_spans(words_B, grams_G5[:, 1:3])
    telling_G = (grams_G5[:, 4] == 1) & ~_templates(hashes_G, grams_G5[:, 0], benchmark_T)
    has_telling_T = np.zeros(len(texts), bool)
    has_telling_T[grams_G5[telling_G, 0]] = True
    kept_G = telling_G | ~has_telling_T[grams_G5[:, 0]]
    hashes_G, grams_G5 = hashes_G[kept_G], grams_G5[kept_G]
    return _reference(words_B, hashes_G, grams_G5)


def without(reference: Reference, common_G: np.ndarray) -> Reference:
    """The reference less some n-grams."""
    spans_G2, texts_G = reference.spans[~common_G], reference.texts[~common_G]
    spaces = np.concatenate([[0], np.cumsum(reference.words == 32)])
    lengths_G = spaces[spans_G2[:, 1]] - spaces[spans_G2[:, 0]] + 1
    return _reference(
        reference.words, reference.hashes[~common_G], np.column_stack([texts_G, spans_G2, lengths_G]).astype(np.int64)
    )


def _templates(hashes_G: np.ndarray, texts_G: np.ndarray, benchmark_T: np.ndarray) -> np.ndarray:
    """Bool (G,): whether more than `TEMPLATE_TEXTS` texts of its benchmark have the n-gram."""
    if not len(hashes_G):
        return np.zeros(0, bool)
    benchmark_G = benchmark_T[texts_G]
    order = np.lexsort([texts_G, benchmark_G, hashes_G])
    h, b, t = hashes_G[order], benchmark_G[order], texts_G[order]
    new_group = np.append(True, (h[1:] != h[:-1]) | (b[1:] != b[:-1]))
    new_text = new_group | np.append(True, t[1:] != t[:-1])
    group = np.cumsum(new_group) - 1
    often = np.bincount(group, new_text)[group] > TEMPLATE_TEXTS
    found = np.zeros(len(hashes_G), bool)
    found[order] = often
    return found


def _reference(words_B: np.ndarray, hashes_G: np.ndarray, grams_G: np.ndarray) -> Reference:
    order = np.argsort(hashes_G, kind="stable")
    grams_G = grams_G[order]
    lengths = np.unique(grams_G[:, 3])
    prefix = int(lengths[0]) if len(lengths) else 1
    spans_G2 = np.ascontiguousarray(grams_G[:, 1:3])
    starts = np.column_stack([spans_G2[:, 0], _prefix_ends(words_B, spans_G2, prefix)])
    bits = max(10, (64 * len(grams_G)).bit_length())  # at most one bit in 64 is set
    bitmap = np.zeros(1 << (bits - 6), np.uint64)
    slots = _hash_spans(words_B, starts) & np.uint64((1 << bits) - 1)
    np.bitwise_or.at(bitmap, (slots >> np.uint64(6)).astype(np.int64), np.uint64(1) << (slots & np.uint64(63)))
    texts_G = np.ascontiguousarray(grams_G[:, 0])
    return Reference(hashes_G[order], texts_G, spans_G2, words_B, lengths, bitmap, prefix)


@kernel
def _same(one_B, start, end, other_B, other_start, other_end):
    if end - start != other_end - other_start:
        return False
    for i in range(end - start):  # noqa: SIM110 - numba compiles no generator
        if one_B[start + i] != other_B[other_start + i]:
            return False
    return True


@kernel
def _find(data_B, offsets_N, table: CodePoints, fold_numbers, reference):
    longest = np.int64(0)
    for n in range(len(offsets_N) - 1):
        longest = max(longest, offsets_N[n + 1] - offsets_N[n])
    out_B, units_U4 = np.empty(GROWTH * longest, np.uint8), np.empty((longest // 2 + 1, 4), np.int64)
    bitmap, hashes_G, spans_G2, words_B = reference.bitmap, reference.hashes, reference.spans, reference.words
    mask, seed = np.uint64(64 * len(bitmap) - 1), np.uint64(0)
    hits_H4 = [(0, 0, 0, 0) for _ in range(0)]
    for n in range(len(offsets_N) - 1):
        _, count = simplify(data_B, offsets_N[n], offsets_N[n + 1], table, True, fold_numbers, out_B, units_U4)
        byte, character = offsets_N[n], 0
        for u in range(count - reference.prefix + 1):
            start = units_U4[u, 0]
            slot = xxh64(out_B, start, units_U4[u + reference.prefix - 1, 1], seed) & mask
            if not (bitmap[slot >> np.uint64(6)] >> (slot & np.uint64(63))) & np.uint64(1):
                continue
            while byte < units_U4[u, 2]:
                character += data_B[byte] & 0xC0 != 0x80
                byte += 1
            for length in reference.lengths:
                if u + length > count:
                    break
                end = units_U4[u + length - 1, 1]
                value = xxh64(out_B, start, end, seed)
                g = np.searchsorted(hashes_G, value)
                last = character - 1
                while g < len(hashes_G) and hashes_G[g] == value:
                    if _same(out_B, start, end, words_B, spans_G2[g, 0], spans_G2[g, 1]):
                        if last < character:
                            last = character
                            for at in range(units_U4[u, 2], units_U4[u + length - 1, 3]):
                                last += data_B[at] & 0xC0 != 0x80
                        hits_H4.append((n, g, character, last))
                    g += 1
    return hits_H4


def find(
    texts: pa.Array | pa.ChunkedArray, reference: Reference, fold_numbers: bool
) -> list[tuple[int, int, int, int]]:
    """Every n-gram of documents that the reference has.

    Args:
        texts: of the documents.
        reference: what to look for.
        fold_numbers: as it was built.

    Returns:
        Document, n-gram of the reference, first and end character (code points) in the document.
    """
    if not len(reference.hashes):
        return []
    return _find(*utf8_buffers(texts), folded_points(), fold_numbers, reference)
