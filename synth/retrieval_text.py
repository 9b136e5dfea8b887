"""Passages of a text and the terms that they are found by, compiled.

A passage is whole sentences up to a bound of bytes, so that Latin and Chinese ones hold about as much and cost a prompt
about the same; its span counts characters of the document, so that `text[start:end]` is the passage. Terms are words
in lower case without diacritics, as in deduplication, and without an English plural's ending; in scripts without spaces
each character and each pair of neighbours, which needs no dictionary.

Legend of suffixes: B bytes, P passages, T terms of all passages, U words of a passage.
"""

import numpy as np
import pyarrow as pa

from pipelines.compiled import inlined, kernel
from pipelines.shingles import ALONE, GROWTH, code_points, decode, is_space, kind_of, simplify, utf8_buffers, xxh64

NO_END, SPACED_END, PLAIN_END = 0, 1, 2  # no sentence ends here; one does if white space follows; one does
TAIL = 4  # what is left behind a passage joins it if it is less than this part of the bound
VERSION = 1  # of passages and terms; part of an index's identity
_WORD_SEED, _PAIR_SEED = np.uint64(0), np.uint64(1)


@inlined
def _ending(code):
    """What a character says about the end of a sentence."""
    if code == 0x2E or code == 0x21 or code == 0x3F or code == 0x2026:  # . ! ? …
        return SPACED_END
    wide = code == 0x3002 or code == 0xFF01 or code == 0xFF1F or code == 0xFF61  # 。！？｡
    return PLAIN_END if wide or code == 0x0964 or code == 0x06D4 else NO_END  # Devanagari's and Urdu's full stops


@inlined
def _closes(code):
    """Whether a character closes what was quoted, and belongs to the sentence before it."""
    ascii_mark = code == 0x22 or code == 0x27 or code == 0x29 or code == 0x5D
    wide = code == 0x300D or code == 0x300F or code == 0x300B or code == 0x3011 or code == 0xFF09
    return ascii_mark or wide or code == 0x201D or code == 0x2019 or code == 0xBB


@inlined
def _first_solid(data_B, at, end, char):
    """The next character that is no white space: its byte and its number."""
    while at < end:
        code, size = decode(data_B, at, end)
        if not is_space(code):
            break
        at, char = at + size, char + 1
    return at, char


@kernel
def _passage_end(data_B, begin, char, end, bound):
    """Where the passage that begins at a byte ends, as byte and character: (byte, char).

    It is the last end of a sentence within the bound; else the last white space; else the bound itself.
    """
    border, border_char, space, space_char = begin, char, begin, char
    solid, solid_char, ending, at = begin, char, NO_END, begin
    while at < end:
        code, size = decode(data_B, at, end)
        blank = is_space(code)
        if not blank and at + size - begin > bound:
            break
        if solid > begin and (
            (blank and (ending != NO_END or code == 0x0A)) or (ending == PLAIN_END and not _closes(code))
        ):
            border, border_char = solid, solid_char
        if blank and solid > begin:
            space, space_char = solid, solid_char
        if not _closes(code) or blank:
            ending = _ending(code)
        at, char = at + size, char + 1
        if not blank:
            solid, solid_char = at, char
    if at >= end:
        return solid, solid_char
    if ending == PLAIN_END:
        code, _ = decode(data_B, at, end)
        if not _closes(code):
            return solid, solid_char
    if border > begin:
        return border, border_char
    if space > begin:
        return space, space_char
    return at, char


@kernel
def _passages(data_B, offsets_N, bound, out_P5):
    """Write (text, first byte, end byte, first character, end character) of every passage; return how many."""
    count = 0
    for n in range(len(offsets_N) - 1):
        end = offsets_N[n + 1]
        at, char = _first_solid(data_B, offsets_N[n], end, np.int64(0))
        while at < end:
            cut, cut_char = _passage_end(data_B, at, char, end, bound)
            if (end - cut) * TAIL < bound:
                cut, cut_char = _passage_end(data_B, at, char, end, end - at)
            if count < len(out_P5):
                out_P5[count] = (n, at, cut, char, cut_char)
            count += 1
            at, char = _first_solid(data_B, cut, end, cut_char)
    return count


def cut_passages(texts: pa.Array | pa.ChunkedArray, bound: int) -> np.ndarray:
    """Cut texts into passages.

    Args:
        texts: strings.
        bound: bytes of a passage, at least 64; one with what is left behind it may be a quarter longer.

    Returns:
        int64 (P, 5): number of the text, first and end byte in the column's buffer, first and end character in the
        text. Passages neither begin nor end with white space; what lies between them is white space.
    """
    data_B, offsets_N = utf8_buffers(texts)
    out_P5 = np.empty((int(offsets_N[-1] - offsets_N[0]) * 4 // bound + 2 * len(offsets_N), 5), np.int64)
    if (count := _passages(data_B, offsets_N, bound, out_P5)) > len(out_P5):
        out_P5 = np.empty((count, 5), np.int64)
        _passages(data_B, offsets_N, bound, out_P5)
    return out_P5[:count]


@kernel
def _is_alone(data_B, at, end, kinds):
    code, _ = decode(data_B, at, end)
    return kind_of(kinds, code) == ALONE


@kernel
def _stem_end(out_B, first, end):
    """Where a word without its English plural ends: stories and story are `stori`, tests and test are `test`."""
    if end - first > 3 and out_B[end - 1] == 0x73 and out_B[end - 2] != 0x73 and out_B[end - 2] != 0x75:  # s, ss, us
        end -= 2 if end - first > 4 and out_B[end - 2] == 0x65 and out_B[end - 3] == 0x69 else 1  # ies
    if end - first > 3 and out_B[end - 1] == 0x79:  # y
        out_B[end - 1] = 0x69
    return end


@kernel
def _terms(data_B, spans_P2, table, terms_T, sizes_P):
    longest = np.int64(0)
    for p in range(len(spans_P2)):
        longest = max(longest, spans_P2[p, 1] - spans_P2[p, 0])
    out_B = np.empty(GROWTH * longest, np.uint8)
    units_U4 = np.empty((longest // 2 + 1, 4), np.int64)
    total = 0
    for p in range(len(spans_P2)):
        begin, end = spans_P2[p, 0], spans_P2[p, 1]
        _, words = simplify(data_B, begin, end, table, True, False, out_B, units_U4)
        first, alone_before = total, False
        for u in range(words):
            stem_end = _stem_end(out_B, units_U4[u, 0], units_U4[u, 1])
            terms_T[total] = xxh64(out_B, units_U4[u, 0], stem_end, _WORD_SEED)
            total += 1
            alone = _is_alone(data_B, units_U4[u, 2], end, table.kind)
            if alone and alone_before and units_U4[u - 1, 3] == units_U4[u, 2]:
                terms_T[total] = xxh64(out_B, units_U4[u - 1, 0], units_U4[u, 1], _PAIR_SEED)
                total += 1
            alone_before = alone
        sizes_P[p] = total - first
    return total


def terms_of(data_B: np.ndarray, spans_P2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The terms of some passages.

    Args:
        data_B: uint8, UTF-8.
        spans_P2: int64, first and end byte of each.

    Returns:
        uint64 (T,) hashes, passage after passage, in order and with repeats, and int64 (P,) how many each has.
    """
    terms_T = np.empty(int((spans_P2[:, 1] - spans_P2[:, 0]).sum()) + len(spans_P2), np.uint64)
    sizes_P = np.zeros(len(spans_P2), np.int64)
    return terms_T[: _terms(data_B, np.ascontiguousarray(spans_P2), code_points(), terms_T, sizes_P)], sizes_P


def terms_of_text(text: str) -> np.ndarray:
    """The terms of one text: uint64 (T,)."""
    data_B = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
    return terms_of(data_B, np.array([[0, len(data_B)]]))[0]
