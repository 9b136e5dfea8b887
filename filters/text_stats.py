"""Text statistics: every number that a heuristic rule looks at, for a column of texts, in one compiled pass.

The one choice that matters: kernels read the UTF-8 buffers of the Arrow column and words are split once per document,
so that all rule sets together cost little more than one. Ratios whose denominator is zero are 0.
Source of the definitions: Gopher (arXiv:2112.11446), C4 (JMLR 21/20-074), FineWeb (arXiv:2406.17557), StarCoder
(arXiv:2305.06161) for code. Words: see `word_split.py`.

Legend: `cps` uint32 code points of one document, `cls` uint16 their flags (`characters.py`).
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters import ngram_stats as ng
from filters.characters import ALPHA, CJK, DIGIT, MARK, PUNCTUATION, TABLE_SIZE, TERMINAL, character_table
from filters.line_stats import (
    ELLIPSIS,
    WORD_ENDS,
    WORD_MARKS,
    c4_document,
    gopher_lines,
    line_lengths,
    phrase_table,
    third_longest_line,
)
from filters.word_split import ABBREVIATIONS, DOT, UNITS, hash_span, hashes_of, split_words
from pipelines.compiled import kernel

STATS = (
    "chars", "lines", "words", "word_length", "hashes", "ellipses", "bullet_lines", "ellipsis_lines", "alpha_words",
    "stop_words", "paragraph_frac", "paragraph_chars", "line_frac", "line_chars", "top_2_gram", "top_3_gram",
    "top_4_gram", "dup_5_gram", "dup_6_gram", "dup_7_gram", "dup_8_gram", "dup_9_gram", "dup_10_gram", "line_punct",
    "short_lines", "fineweb_line_chars", "newlines", "sentences", "lorem_ipsum", "curly_bracket", "lines_left_out",
    "terminal_sentences", "terminal_lorem_ipsum", "terminal_curly_bracket", "terminal_lines_left_out",
    "third_longest_line", "longest_line", "mean_line", "alphanumeric", "cjk",
)  # fmt: skip
"""Names of the columns that `text_stats` returns; `rules.py` says what each is compared with."""
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Gopher, section A1.1
MAX_BYTES = 4 << 20
"""A longer text is measured by its first 4 MiB: memory stays bounded, and Gopher drops such texts anyway."""
(
    CHARS, LINES, WORDS, WORD_LENGTH, HASHES, ELLIPSES, BULLETS, ELLIPSIS_LINES, ALPHA_WORDS, STOPS, PARA_FRAC,
    PARA_CHARS, LINE_FRAC, LINE_CHARS, TOP_2, _TOP_3, _TOP_4, DUP_5, _DUP_6, _DUP_7, _DUP_8, _DUP_9, _DUP_10,
    LINE_PUNCT, SHORT_LINES, FINEWEB_CHARS, NEWLINES, SENTENCES, _LOREM, _CURLY, _LEFT, TERMINALS, _TLOREM, _TCURLY,
    _TLEFT, THIRD_LINE, LONGEST_LINE, MEAN_LINE, ALNUM, HAN,
) = range(len(STATS))  # fmt: skip


class Lexicon(NamedTuple):
    """Constant arrays that kernels look things up in."""

    table: np.ndarray
    abbreviations: np.ndarray
    units: np.ndarray
    stop_words: np.ndarray
    phrases: np.ndarray
    phrase_lengths: np.ndarray


class Scratch(NamedTuple):
    """Arrays of the longest document's size, reused for every document."""

    cps: np.ndarray
    cls: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    hashes: np.ndarray
    lengths: np.ndarray
    marks: np.ndarray
    keys: np.ndarray
    counts: np.ndarray
    firsts: np.ndarray


def lexicon() -> Lexicon:
    """Build the lookup arrays (a tenth of a second; keep the result)."""
    hashes = (hashes_of(ABBREVIATIONS), hashes_of(UNITS), hashes_of(list(STOP_WORDS)))
    return Lexicon(character_table(), *hashes, *phrase_table())


def scratch(longest_bytes: int) -> Scratch:
    """Working memory for texts of at most `longest_bytes` bytes."""
    size, table = longest_bytes + 1, 16
    while table < 2 * size:
        table *= 2
    kinds = (np.uint32, np.uint16, np.int32, np.int32, np.uint64, np.int64, np.uint8)
    arrays = [np.empty(size, kind) for kind in kinds]
    counts, firsts = np.zeros(table, np.int32), np.empty(table, np.int32)
    return Scratch(*arrays, keys=np.empty(table, np.uint64), counts=counts, firsts=firsts)


def buffers_of(texts: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes and offsets of a string column.

    Returns:
        uint8 (bytes,), int64 (rows + 1,); null reads as the empty text.
    """
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    if texts.null_count:
        texts = pc.fill_null(texts, "")
    texts = texts.cast(pa.large_string())
    if not len(texts):
        return np.zeros(1, np.uint8), np.zeros(1, np.int64)
    _, bounds, data = texts.buffers()
    offsets = np.frombuffer(bounds, np.int64)[texts.offset : texts.offset + len(texts) + 1]  # type: ignore[arg-type]
    return np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8), offsets


def text_stats(texts: pa.Array | pa.ChunkedArray, words: Lexicon | None = None) -> Mapping[str, np.ndarray]:
    """Compute all statistics of every text.

    Args:
        texts: string column of N texts.
        words: lookup arrays, built when not given.

    Returns:
        name in `STATS` -> float64 (N,).
    """
    data, offsets = buffers_of(texts)
    rows = len(offsets) - 1
    values = np.zeros((rows, len(STATS)))
    if rows:
        longest = int(min(MAX_BYTES, np.diff(offsets).max()))
        _measure(data, offsets, values, words or lexicon(), scratch(longest))
    return {name: values[:, column] for column, name in enumerate(STATS)}


@kernel
def decode(data, a, b, table, cps, cls):
    """UTF-8 bytes [a, b) to code points and flags; returns how many. A sequence cut by b is left out."""
    n = 0
    while a < b:
        byte = np.int64(data[a])
        if byte < 0x80:
            size, c = 1, byte
        elif byte < 0xE0:
            size, c = 2, byte & 0x1F
        elif byte < 0xF0:
            size, c = 3, byte & 0x0F
        else:
            size, c = 4, byte & 0x07
        if a + size > b:
            break
        for k in range(1, size):
            c = (c << 6) | np.int64(data[a + k] & 0x3F)
        cps[n] = c
        cls[n] = table[min(c, TABLE_SIZE - 1)]
        n += 1
        a += size
    return n


@kernel
def _measure(data, offsets, values, words, memory):
    for row in range(len(offsets) - 1):
        a = offsets[row]
        n = decode(data, a, min(offsets[row + 1], a + MAX_BYTES), words.table, memory.cps, memory.cls)
        count = split_words(memory.cps, memory.cls, n, memory.starts, memory.ends, words.abbreviations, words.units)
        out = values[row]
        out[CHARS] = n
        _word_stats(out, n, count, words, memory)
        _line_stats(out, n, count, words, memory)
        _repetition_stats(out, n, count, memory)
        _character_stats(out, n, memory)


@kernel
def _word_stats(out, n, count, words, memory):
    cps, cls = memory.cps, memory.cls
    proper, letters, alpha, stops = 0, 0, 0, 0
    for w in range(count):
        a, b = memory.starts[w], memory.ends[w]
        every, some = cls[a], cls[a]
        for i in range(a + 1, b):
            every &= cls[i]
            some |= cls[i]
        memory.hashes[w] = hash_span(cps, a, b)
        memory.lengths[w] = b - a
        alone = b - a == 1 and every & TERMINAL
        memory.marks[w] = (WORD_ENDS if alone else 0) | (WORD_MARKS if every & PUNCTUATION else 0)
        if not every & MARK:
            proper += 1
            letters += b - a
        alpha += some & ALPHA != 0
        if b - a <= 4:
            at = np.searchsorted(words.stop_words, memory.hashes[w])
            if at < len(words.stop_words) and words.stop_words[at] == memory.hashes[w]:
                stops |= 1 << at
    distinct = 0
    while stops:
        distinct += stops & 1
        stops >>= 1
    hashes, ellipses, i = 0, 0, 0
    while i < n:
        hashes += cps[i] == 35
        ellipses += cps[i] == ELLIPSIS
        if cps[i] == DOT and i + 2 < n and cps[i + 1] == DOT and cps[i + 2] == DOT:
            ellipses += 1
            i += 2
        i += 1
    total = max(count, 1)
    out[WORDS], out[WORD_LENGTH] = proper, letters / max(proper, 1)
    out[HASHES], out[ELLIPSES], out[ALPHA_WORDS], out[STOPS] = hashes / total, ellipses / total, alpha / total, distinct


@kernel
def _line_stats(out, n, count, words, memory):
    cps, cls = memory.cps, memory.cls
    lines, bullets, ellipses = gopher_lines(cps, cls, n)
    out[BULLETS], out[ELLIPSIS_LINES] = bullets / max(lines, 1), ellipses / max(lines, 1)
    lines, punctuated, short, longest, total, newlines = line_lengths(cps, cls, n)
    out[LINES], out[LONGEST_LINE], out[MEAN_LINE] = lines, longest, total / max(lines, 1)
    out[LINE_PUNCT], out[SHORT_LINES] = punctuated / max(lines, 1), short / max(lines, 1)
    out[NEWLINES] = newlines / max(count, 1)
    repeated = ng.duplicate_lines(cps, n, 1, True, cls, memory.keys, memory.counts)[2]
    out[FINEWEB_CHARS] = repeated / max(n - newlines, 1)
    for column, need_terminal in ((SENTENCES, False), (TERMINALS, True)):
        found = c4_document(cps, cls, n, memory.starts, count, memory.marks, need_terminal, words.phrases,
                            words.phrase_lengths)  # fmt: skip
        for k in range(4):
            out[column + k] = found[k]
    out[THIRD_LINE] = third_longest_line(cps, n)


@kernel
def _repetition_stats(out, n, count, memory):
    cps, cls, keys, counts = memory.cps, memory.cls, memory.keys, memory.counts
    chars = max(n, 1)
    lo, hi = ng.strip_span(cls, 0, n)
    total, duplicates, repeated = ng.duplicate_lines(cps[lo:hi], hi - lo, 2, False, cls, keys, counts)
    out[PARA_FRAC], out[PARA_CHARS] = duplicates / max(total, 1), repeated / chars
    total, duplicates, repeated = ng.duplicate_lines(cps, n, 1, False, cls, keys, counts)
    out[LINE_FRAC], out[LINE_CHARS] = duplicates / max(total, 1), repeated / chars
    for k in range(3):
        top = ng.top_ngram_chars(memory.hashes, memory.lengths, count, 2 + k, keys, counts, memory.firsts)
        out[TOP_2 + k] = top / chars
    for k in range(6):
        out[DUP_5 + k] = ng.duplicate_ngram_chars(memory.hashes, memory.lengths, count, 5 + k, keys, counts) / chars


@kernel
def _character_stats(out, n, memory):
    alphanumeric, han, visible = 0, 0, 0
    for i in range(n):
        flags = memory.cls[i]
        alphanumeric += flags & (ALPHA | DIGIT) != 0
        han += flags & CJK != 0
        visible += flags & 1 == 0  # not a space
    out[ALNUM], out[HAN] = alphanumeric / max(n, 1), han / max(visible, 1)
