"""Compiled line cleaning: the text of the lines that C4's line rules keep.

The one choice that matters: kept lines are copied from the code points back to UTF-8 in the kernel, so that a whole
column is edited without a Python string. Source: C4's reference code; `line_stats.c4_line` says which lines go.
"""

import numpy as np
import pyarrow as pa

from filters.line_stats import c4_line
from filters.ngram_stats import NEWLINE, next_line, strip_span
from filters.text_memory import Lexicon, Scratch, buffers_of, decode, scratch
from pipelines.compiled import kernel


def kept_lines(texts: pa.Array, words: Lexicon, need_terminal: bool) -> pa.Array:
    """Keep lines that C4 keeps; a line with lorem ipsum or a curly bracket stays (its page is judged, not edited).

    Args:
        texts: string (N,).
        words: lookup arrays.
        need_terminal: whether a line must end in terminal punctuation.

    Returns:
        string (N,).
    """
    data, offsets = buffers_of(texts)
    out = np.empty(int(offsets[-1] - offsets[0]) + len(offsets), np.uint8)
    new_offsets = np.zeros(len(offsets), np.int64)
    longest = int(np.diff(offsets).max()) if len(offsets) > 1 else 0
    _clean(data, offsets, words, scratch(longest), need_terminal, out, new_offsets)
    buffers = [None, pa.py_buffer(new_offsets), pa.py_buffer(out)]
    return pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers).cast(pa.string())


@kernel
def _encode(c, out, at):
    """Write one code point as UTF-8; returns the position after it."""
    if c < 0x80:
        out[at] = c
        return at + 1
    if c < 0x800:
        out[at], out[at + 1] = 0xC0 | c >> 6, 0x80 | c & 0x3F
        return at + 2
    if c < 0x10000:
        out[at], out[at + 1], out[at + 2] = 0xE0 | c >> 12, 0x80 | c >> 6 & 0x3F, 0x80 | c & 0x3F
        return at + 3
    out[at], out[at + 1] = 0xF0 | c >> 18, 0x80 | c >> 12 & 0x3F
    out[at + 2], out[at + 3] = 0x80 | c >> 6 & 0x3F, 0x80 | c & 0x3F
    return at + 4


@kernel
def _clean(data, offsets, words: Lexicon, memory: Scratch, need_terminal, out, new_offsets):
    cps, cls, at = memory.cps, memory.cls, 0
    for row in range(len(offsets) - 1):
        n = decode(data, offsets[row], offsets[row + 1], words.table, cps, cls)
        begin, a = at, 0
        while a < n:
            end, following = next_line(cls, cps, a, n)
            lo, hi = strip_span(cls, a, end)
            if c4_line(cps, cls, lo, hi, need_terminal, words.phrases, words.phrase_lengths) != 1:
                if at > begin:
                    out[at] = NEWLINE
                    at += 1
                for i in range(lo, hi):
                    at = _encode(np.int64(cps[i]), out, at)
            a = following
        new_offsets[row + 1] = at
