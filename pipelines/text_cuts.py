"""Texts without some of their passages: what to take so that the rest reads on.

A cut never splits a word or a character, never joins two words, and takes the white space behind it along, so that
nothing is left of a passage.

Legend of suffixes: B bytes, N documents, E spans.
"""

import numpy as np
import pyarrow as pa

from pipelines.compiled import kernel
from pipelines.shingles import ALONE, DIGIT, IGNORED, LETTER, code_points, decode, is_space, kind_of, utf8_buffers


def cut_texts(texts: pa.ChunkedArray, spans: np.ndarray) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Cut spans out of texts.

    Args:
        texts: strings, N of them.
        spans: int64 (E, 4): text, first byte, end byte, source; in order.

    Returns:
        The texts without them; the spans as they were cut, in characters; and which texts have nothing left.
    """
    data_B, offsets_N = utf8_buffers(texts)
    out_B, ends_N = np.empty(int(offsets_N[-1] - offsets_N[0]), np.uint8), np.zeros_like(offsets_N)
    final = np.zeros_like(spans)
    made = _cut(data_B, offsets_N, spans, code_points().kind, out_B, ends_N, final)
    _in_characters(data_B, offsets_N, final[:made])
    cut = pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(ends_N), pa.py_buffer(out_B))
    return cut, final[:made], (np.diff(ends_N) == 0) & (np.diff(offsets_N) > 0)


@kernel
def _kind_before(data_B, at, first, kinds):
    """Kind of the character that ends at a byte; that of the first one reaches back to `first`."""
    back = at - 1
    while back > first and data_B[back] & 0xC0 == 0x80:
        back -= 1
    return kind_of(kinds, decode(data_B, back, at)[0])


@kernel
def _one_word(before, after):
    """Whether characters of these kinds, side by side, belong to one word."""
    if after == IGNORED:  # a mark belongs to the letter before it
        return before in (LETTER, DIGIT, ALONE, IGNORED)
    return before in (LETTER, DIGIT, IGNORED) and after in (LETTER, DIGIT)


@kernel
def _parts_a_word(data_B, at, first, end, kinds):
    """Whether a cut at a byte would split a character or a word."""
    if at <= first or at >= end:
        return False
    if data_B[at] & 0xC0 == 0x80:
        return True
    return _one_word(_kind_before(data_B, at, first, kinds), kind_of(kinds, decode(data_B, at, end)[0]))


@kernel
def _apart(data_B, low, high, first, end, kinds):
    """The cut, smaller by one character where what is left of it and right of it would become one word."""
    if first < low < high < end:
        before = _kind_before(data_B, low, first, kinds)
        if _one_word(before, kind_of(kinds, decode(data_B, high, end)[0])):
            if data_B[high - 1] == 32:
                high -= 1
            else:
                low += decode(data_B, low, high)[1]
    return low, high


@kernel
def _space_before(data_B, at, first):
    back = at - 1
    while back > first and data_B[back] & 0xC0 == 0x80:
        back -= 1
    return at <= first or is_space(decode(data_B, back, at)[0])


@kernel
def _past_space(data_B, at, end):
    while at < end:
        code, size = decode(data_B, at, end)
        if not is_space(code):
            break
        at += size
    return at


@kernel
def _cut(data_B, offsets_N, spans_E, kinds, out_B, ends_N, final_E):
    """Copy texts without their spans; write the spans as they were cut; return how many there are."""
    used, made, e = 0, 0, 0
    for n in range(len(offsets_N) - 1):
        first, end = offsets_N[n], offsets_N[n + 1]
        at, blank = first, True
        while e < len(spans_E) and spans_E[e, 0] == n:
            low, high, source = first + spans_E[e, 1], first + spans_E[e, 2], spans_E[e, 3]
            while e < len(spans_E) and spans_E[e, 0] == n and first + spans_E[e, 1] <= high:
                high = max(high, first + spans_E[e, 2])
                e += 1
            while low < high and _parts_a_word(data_B, low, first, end, kinds):
                low += 1
            while high > low and _parts_a_word(data_B, high, first, end, kinds):
                high -= 1
            if not _space_before(data_B, low, first):
                low = _past_space(data_B, low, high)
            if low < high and data_B[high - 1] != 10 and _space_before(data_B, low, first):
                high = _past_space(data_B, high, end)
            low, high = _apart(data_B, low, high, first, end, kinds)
            if low >= high or high <= at:
                continue
            low = max(low, at)
            for i in range(at, low):
                out_B[used] = data_B[i]
                used += 1
            final_E[made, 0], final_E[made, 1], final_E[made, 2] = n, low - first, high - first
            final_E[made, 3] = source
            made, at = made + 1, high
        changed = at > first
        for i in range(at, end):
            out_B[used] = data_B[i]
            used += 1
        begin = ends_N[n]
        while changed and used > begin and (out_B[used - 1] == 10 or out_B[used - 1] == 32) and at >= end:
            used -= 1
        if changed:
            for i in range(begin, used):
                blank = blank and (out_B[i] == 32 or (out_B[i] >= 9 and out_B[i] <= 13))
            used = begin if blank else used
        ends_N[n + 1] = used
    return made


@kernel
def _in_characters(data_B, offsets_N, final_E):
    """Turn byte offsets within documents into offsets in characters; spans ascend within a document."""
    row, at, count = np.int64(-1), 0, 0
    for e in range(len(final_E)):
        if final_E[e, 0] != row:
            row, at, count = final_E[e, 0], 0, 0
        for side in (1, 2):
            while at < final_E[e, side]:
                count += data_B[offsets_N[row] + at] & 0xC0 != 0x80
                at += 1
            final_E[e, side] = count
