"""What the kernels work on: texts as bytes, constant lookup arrays, and working memory.

The one choice that matters: everything is an array built once per process and passed in, so that kernels allocate
nothing per document. Source: own.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters.characters import TABLE_SIZE, character_table
from filters.chinese_stats import boilerplate_table, stop_characters
from filters.code_stats import generated_table
from filters.line_stats import phrase_table
from filters.word_split import ABBREVIATIONS, UNITS, hashes_of
from pipelines.compiled import kernel

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")  # Gopher, section A1.1
MAX_BYTES = 4 << 20
"""A longer text is measured by its first 4 MiB: memory stays bounded, and Gopher drops such texts anyway."""


class Lexicon(NamedTuple):
    """Constant arrays that kernels look things up in."""

    table: np.ndarray
    abbreviations: np.ndarray
    units: np.ndarray
    stop_words: np.ndarray
    phrases: np.ndarray
    phrase_lengths: np.ndarray
    generated: np.ndarray
    generated_lengths: np.ndarray
    boilerplate: np.ndarray
    boilerplate_lengths: np.ndarray
    stop_characters: np.ndarray


class Languages(NamedTuple):
    """How words of L languages are made and which are frequent; `language_words.py` builds it.

    Attributes:
        stop_words: uint64, hashes, sorted within each language.
        bounds: int64 (L + 1,), where each language's stop words begin.
        units: float64 (L,), how many of our words make one of the language (1 but for scripts without spaces).
        elision: bool (L,), whether an apostrophe ends a word.
    """

    stop_words: np.ndarray
    bounds: np.ndarray
    units: np.ndarray
    elision: np.ndarray


NO_LANGUAGE = Languages(np.zeros(0, np.uint64), np.zeros(2, np.int64), np.ones(1), np.zeros(1, np.bool_))
"""One language without stop words: what texts of unknown language get."""


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
    best: np.ndarray


def lexicon() -> Lexicon:
    """Build the lookup arrays (a tenth of a second; keep the result)."""
    hashes = (hashes_of(ABBREVIATIONS), hashes_of(UNITS), hashes_of(list(STOP_WORDS)))
    phrases = (phrase_table(), generated_table(), boilerplate_table())
    arrays = (*hashes, *(array for table in phrases for array in table), stop_characters())
    return Lexicon._make((character_table(), *arrays))


def scratch(longest_bytes: int) -> Scratch:
    """Working memory for texts of at most `longest_bytes` bytes."""
    size, table = longest_bytes + 2, 16
    while table < 2 * size:
        table *= 2
    kinds = (np.uint32, np.uint32, np.int32, np.int32, np.uint64, np.int64, np.uint8)
    arrays = [np.empty(size, kind) for kind in kinds]
    counts, firsts = np.zeros(table, np.int32), np.empty(table, np.int32)
    table_keys, best = np.empty(table, np.uint64), np.empty(3, np.int64)
    return Scratch._make((*arrays, table_keys, counts, firsts, best))


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
