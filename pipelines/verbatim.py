"""Short texts found letter for letter, where signs count: `Solve: $-57=-(-p+1)$` has few words and is unmistakable.

White space and the case of ASCII letters do not count, everything else does, and a match neither begins nor ends inside
a longer word (of any script that writes spaces) or number (`=5` is not in `=5.3`). One compiled pass: the hash of every
window as long as the shortest wanted text is looked up in a bitmap, then among the hashes of the texts' beginnings,
then compared.

Legend of suffixes: B bytes, V wanted texts, N documents.
"""

import functools
import unicodedata
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.compiled import inlined, kernel
from pipelines.shingles import ALONE, TABLE_END, code_points, utf8_buffers

_BASE = np.uint64(0x9E3779B97F4A7C15)


class Needles(NamedTuple):
    """Wanted texts, white space left out, in order of the hash of their first `window` bytes.

    Attributes:
        texts: int64 (V,), number of each as it was given.
        letters: uint8 (B,), all of them, end to end.
        ends: int64 (V,), where each ends in `letters`.
        hashes: uint64 (V,), of the first `window` bytes.
        bitmap: uint64, one bit for each value of the high bits of a hash.
        shift: to those bits.
        window: bytes of the shortest text.
    """

    texts: np.ndarray
    letters: np.ndarray
    ends: np.ndarray
    hashes: np.ndarray
    bitmap: np.ndarray
    shift: np.uint64
    window: int


@inlined
def _blank(data_B, at, end):
    """Bytes of the white space at a place; 0 where there is none."""
    byte = data_B[at]
    if byte == 32 or 9 <= byte <= 13:
        return 1
    if byte == 0xC2 and at + 1 < end and data_B[at + 1] == 0xA0:
        return 2
    if byte == 0xE3 and at + 2 < end and data_B[at + 1] == 0x80 and data_B[at + 2] == 0x80:
        return 3
    return 0


@kernel
def _squeeze(data_B, first, end, out_B, places_B):
    """Put a text without white space into `out_B`, ASCII letters small, and where each byte came from; how many."""
    used, at = 0, first
    while at < end:
        blank = _blank(data_B, at, end)
        if blank:
            at += blank
            continue
        byte = data_B[at]
        out_B[used] = byte + 32 if 65 <= byte <= 90 else byte
        places_B[used] = at
        used += 1
        at += 1
    return used


@kernel
def _window_hash(out_B, first, window):
    value = np.uint64(0)
    for i in range(window):
        value = value * _BASE + np.uint64(out_B[first + i]) + np.uint64(1)
    return value


def squeezed(text: str) -> str:
    """What counts of a text."""
    data_B, _ = utf8_buffers(pa.array([text], pa.large_string()))
    out_B, places_B = np.empty(len(data_B), np.uint8), np.empty(len(data_B), np.int64)
    return out_B[: _squeeze(data_B, 0, len(data_B), out_B, places_B)].tobytes().decode()


def build_needles(texts: list[str]) -> Needles:
    """Index wanted texts, none of which is empty.

    Args:
        texts: (V,).
    """
    small = [squeezed(text).encode() for text in texts]
    window = min(map(len, small), default=1)
    begin = np.frombuffer(b"".join(text[:window] for text in small), np.uint8)
    hashes_V = np.array([_window_hash(begin, v * window, window) for v in range(len(small))], np.uint64)
    order_V = np.argsort(hashes_V, kind="stable")
    bits = max(10, (64 * len(small)).bit_length())
    shift = np.uint64(64 - bits)
    bitmap = np.zeros(1 << (bits - 6), np.uint64)
    slots_V = hashes_V >> shift
    np.bitwise_or.at(bitmap, (slots_V >> np.uint64(6)).astype(np.int64), np.uint64(1) << (slots_V & np.uint64(63)))
    ordered = [small[v] for v in order_V]
    letters = np.frombuffer(b"".join(ordered), np.uint8)
    ends_V = np.cumsum(np.fromiter(map(len, ordered), np.int64, len(ordered)))
    return Needles(order_V.astype(np.int64), letters, ends_V, hashes_V[order_V], bitmap, shift, window)


@kernel
def _find(data_B, offsets_N, needles, is_word):
    longest = np.int64(0)
    for n in range(len(offsets_N) - 1):
        longest = max(longest, offsets_N[n + 1] - offsets_N[n])
    out_B, places_B = np.empty(longest, np.uint8), np.empty(longest, np.int64)
    window, letters, power = needles.window, needles.letters, np.uint64(1)
    for _ in range(window):
        power = power * _BASE
    hits_H4 = [(0, 0, 0, 0) for _ in range(0)]
    for n in range(len(offsets_N) - 1):
        first, end = offsets_N[n], offsets_N[n + 1]
        used, value = _squeeze(data_B, first, end, out_B, places_B), np.uint64(0)
        byte, character = first, 0
        for last in range(used):
            value = value * _BASE + np.uint64(out_B[last]) + np.uint64(1)
            start = last - window + 1
            if start > 0:
                value -= power * (np.uint64(out_B[start - 1]) + np.uint64(1))
            slot = value >> needles.shift
            if start < 0 or not (needles.bitmap[slot >> np.uint64(6)] >> (slot & np.uint64(63))) & np.uint64(1):
                continue
            v = np.searchsorted(needles.hashes, value)
            while v < len(needles.hashes) and needles.hashes[v] == value:
                begin = needles.ends[v - 1] if v else 0
                size = needles.ends[v] - begin
                same = start + size <= used
                for i in range(size if same else 0):
                    if out_B[start + i] != letters[begin + i]:
                        same = False
                        break
                if same and not (
                    _within_word(data_B, first, end, places_B[start], is_word)
                    or _within_word(data_B, first, end, places_B[start + size - 1] + 1, is_word)
                ):
                    while byte < places_B[start]:
                        character += data_B[byte] & 0xC0 != 0x80
                        byte += 1
                    stop = character
                    for at in range(places_B[start], places_B[start + size - 1] + 1):
                        stop += data_B[at] & 0xC0 != 0x80
                    hits_H4.append((n, needles.texts[v], character, stop))
                v += 1
    return hits_H4


@functools.cache
def _word_points() -> np.ndarray:
    """Whether a code point is part of a longer word: letters with their marks and digits, of scripts with spaces."""
    kinds = code_points().kind
    words = (chr(code).isalnum() or unicodedata.category(chr(code))[0] == "M" for code in range(TABLE_END))
    return np.fromiter(words, np.bool_, TABLE_END) & (kinds != ALONE)


@inlined
def _code_point(data_B, at):
    """The code point whose first byte stands here."""
    lead = np.int64(data_B[at])
    if lead < 0x80:
        return lead
    more = 1 + (lead >= 0xE0) + (lead >= 0xF0)
    code = lead & (0x3F >> more)
    for i in range(1, more + 1):
        code = (code << 6) | np.int64(data_B[at + i] & 0x3F)
    return code


@inlined
def _digit(data_B, first, end, at):
    return first <= at < end and 48 <= data_B[at] <= 57


@kernel
def _within_word(data_B, first, end, at, is_word):
    """Whether the place before byte `at` lies inside a word or a number such as 5.3 and 1,000."""
    if at in (first, end):
        return False
    before = at - 1
    while before > first and data_B[before] & 0xC0 == 0x80:
        before -= 1
    left, right = _code_point(data_B, before), _code_point(data_B, at)
    if left < len(is_word) and right < len(is_word) and is_word[left] and is_word[right]:
        return True
    if left == 46 or left == 44:
        return _digit(data_B, first, end, before - 1) and _digit(data_B, first, end, at)
    return (right == 46 or right == 44) and _digit(data_B, first, end, before) and _digit(data_B, first, end, at + 1)


def find_verbatim(texts: pa.Array | pa.ChunkedArray, needles: Needles) -> list[tuple[int, int, int, int]]:
    """Every place of every wanted text.

    Args:
        texts: of the documents.
        needles: what to look for.

    Returns:
        Document, wanted text, first and end character (code points) in the document.
    """
    return _find(*utf8_buffers(texts), needles, _word_points()) if len(needles.texts) else []
