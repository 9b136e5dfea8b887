"""Lists of words and phrases, found in texts of any script by one compiled pass.

The one choice that matters: a word begins and ends where a reader sees it begin and end: not inside other letters
("Scunthorpe" holds no bad word), but anywhere beside a character of a script that writes no spaces, and a sign of Hindi
or Arabic that marks a vowel is part of its word. Entries are a trie over bytes that is walked from every beginning.
Source of the semantics: the bad-words filter of C4 (JMLR 21/20-074), without its matches inside words.

Legend of suffixes: B bytes, N texts, S states of the trie.
"""

import functools
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.compiled import inlined, kernel
from pipelines.shingles import decode, utf8_buffers

SEPARATOR, SPACED, ALONE = 0, 1, 2
TABLE_END = 0x20000
_ALONE_RANGES = (
    (0x0E01, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3005, 0x3007),
    (0x3021, 0x3029), (0x3040, 0x30FF), (0x3100, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F),
)  # fmt: skip
"""Thai, Lao, Tibetan, Myanmar, Khmer, Han and its forms, kana, bopomofo."""


@functools.cache
def word_characters(underscore: bool = True) -> np.ndarray:
    """What each code point below `TABLE_END` is to a word: uint8, separator, spaced or alone.

    Args:
        underscore: whether an underscore joins words, as it does in texts and not in addresses.
    """
    kinds = np.zeros(TABLE_END, np.uint8)
    for code in range(TABLE_END):
        char = chr(code)
        if char.isalnum() or unicodedata.category(char) in ("Mn", "Mc"):
            kinds[code] = SPACED
    kinds[ord("_")] = SPACED if underscore else SEPARATOR
    for first, last in _ALONE_RANGES:
        kinds[first : last + 1] = ALONE
    kinds.setflags(write=False)
    return kinds


class Trie(NamedTuple):
    """A compiled list of words.

    Attributes:
        next_S: int32 (S, 256), the state after a byte; 0 where there is none (state 0 is the root).
        word_S: int32 (S,), the number of the entry that ends here; -1 where none does.
    """

    next_S: np.ndarray
    word_S: np.ndarray


def compile_words(words: Sequence[str]) -> Trie:
    """Compile entries: lower case, Unicode's composed form, one space for any run of spaces.

    Args:
        words: entries; empty ones are left out.
    """
    rows: list[dict[int, int]] = [{}]
    ends = [-1]
    for number, word in enumerate(words):
        state = 0
        for byte in " ".join(unicodedata.normalize("NFC", word.lower()).split()).encode():
            if byte not in rows[state]:
                rows[state][byte] = len(rows)
                rows.append({})
                ends.append(-1)
            state = rows[state][byte]
        if state and ends[state] < 0:
            ends[state] = number
    next_S = np.zeros((len(rows), 256), np.int32)
    for state, row in enumerate(rows):
        for byte, after in row.items():
            next_S[state, byte] = after
    return Trie(next_S, np.array(ends, np.int32))


@inlined
def _kind_of(code, kinds):
    return kinds[code] if code < TABLE_END else ALONE


@inlined
def _is_space(code):
    return code == 32 or 9 <= code <= 13


@kernel
def _longest(data_B, at, end, kinds, next_S, word_S, anywhere):
    """The longest entry that begins at a byte and ends at the end of a word: its number and end, or -1 and the byte."""
    found, found_end, state, last = -1, at, 0, np.int64(SEPARATOR)
    begin = at
    while at < end:
        code = np.int64(data_B[at])
        space = _is_space(code)
        state = next_S[state, 32 if space else code]
        if state == 0:
            break
        at += 1
        while space and at < end and _is_space(data_B[at]):
            at += 1
        if word_S[state] >= 0:
            if anywhere:
                found, found_end = word_S[state], at
                continue
            back = at - 1
            while back > begin and data_B[back] & 0xC0 == 0x80:
                back -= 1
            last = np.int64(_kind_of(decode(data_B, back, at)[0], kinds))
            follow = np.int64(SEPARATOR)
            if at < end:
                follow = np.int64(_kind_of(decode(data_B, at, end)[0], kinds))
            if last != SPACED or follow != SPACED:
                found, found_end = word_S[state], at
    return found, found_end


@kernel
def _count(data_B, offsets_N, kinds, next_S, word_S, anywhere, count_N, first_N, found_M):
    filled = 0
    for n in range(len(offsets_N) - 1):
        at, end = offsets_N[n], offsets_N[n + 1]
        before = np.int64(SEPARATOR)
        count_N[n], first_N[n] = 0, -1
        while at < end:
            code = np.int64(data_B[at])
            if code < 128:
                size = 1
            else:
                code, size = decode(data_B, at, end)
            kind = np.int64(_kind_of(code, kinds))
            if (anywhere or kind != SPACED or before != SPACED) and next_S[0, data_B[at]]:
                word, stop = _longest(data_B, at, end, kinds, next_S, word_S, anywhere)
                if word >= 0:
                    if count_N[n] == 0:
                        first_N[n] = word
                    count_N[n] += 1
                    if filled < len(found_M):
                        found_M[filled] = word
                        filled += 1
                    back = stop - 1
                    while back > at and data_B[back] & 0xC0 == 0x80:
                        back -= 1
                    before = np.int64(_kind_of(decode(data_B, back, stop)[0], kinds))
                    at = stop
                    continue
            before = kind
            at += size


def count_words(
    texts: pa.Array | pa.ChunkedArray, trie: Trie, underscore: bool = True, anywhere: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Count the entries of a list in texts.

    Args:
        texts: string (N,), any case.
        trie: the list.
        underscore: whether an underscore joins words.
        anywhere: match inside words, too.

    Returns:
        int64 (N,) matches that do not overlap, the longest first from left to right, and int32 (N,) the number of the
        first entry, -1 where there is none.
    """
    return _counted(texts, trie, underscore, anywhere, np.zeros(0, np.int32))


def words_in(texts: pa.Array | pa.ChunkedArray, trie: Trie) -> list[frozenset[int]]:
    """Which entries of a list stand in each text, by their numbers; the matches are those of `count_words`."""
    count_N, _ = count_words(texts, trie)
    found_M = np.zeros(count_N.sum(), np.int32)
    _counted(texts, trie, True, False, found_M)
    return [frozenset(found.tolist()) for found in np.split(found_M, np.cumsum(count_N)[:-1])][: len(count_N)]


def _counted(
    texts: pa.Array | pa.ChunkedArray, trie: Trie, underscore: bool, anywhere: bool, found_M: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count, and write as many matches as there is room for, text after text."""
    data_B, offsets_N = utf8_buffers(pc.utf8_lower(pc.fill_null(texts, "")))
    count_N, first_N = np.zeros(len(offsets_N) - 1, np.int64), np.zeros(len(offsets_N) - 1, np.int32)
    kinds = word_characters(underscore)
    _count(data_B, offsets_N, kinds, trie.next_S, trie.word_S, anywhere, count_N, first_N, found_M)
    return count_N, first_N
