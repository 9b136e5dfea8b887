"""Words and hashed shingles of a column of texts, compiled.

A table over code points says what becomes of each character, so that one pass over the UTF-8 bytes of an Arrow column
simplifies any script: lower case, numbers to "0", punctuation to spaces, diacritics off, as datatrove's `simplify_text`
does. A shingle's hash is xxh64 of `" ".join(words)`: equal to datatrove's wherever the words are equal (it splits words
with spaCy; here they end at spaces, and each character of a script without spaces is a word).

Legend of suffixes: B bytes of all texts, N documents, U units (words or characters) of a document, S shingles.
"""

import functools
import sys
import unicodedata
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.compiled import inlined, kernel

SEPARATOR, LETTER, DIGIT, IGNORED, ALONE = 0, 1, 2, 3, 4
TABLE_END = 0x20000  # what lies above are rare Han characters, and unassigned
HAN_END = 0x40000
GROWTH = 4  # bytes that one byte of text can grow to when simplified, the space before it included

# Scripts that write no spaces between words: Han with its radicals and compatibility forms, kana, bopomofo; Thai, Lao,
# Tibetan, Myanmar, Khmer. Hangul is written with spaces.
_ALONE_RANGES = (
    (0x0E01, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3005, 0x3007),
    (0x3021, 0x3029), (0x3040, 0x30FF), (0x3100, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F),
)  # fmt: skip
_SYMBOLS_THAT_SEPARATE = frozenset("∶～►")  # datatrove strips these; other symbols (№, ©, €) are parts of words


class CodePoints(NamedTuple):
    """What simplification makes of each code point below `TABLE_END`.

    Attributes:
        kind: uint8; separator, letter, digit, ignored, or a word alone.
        start: int32, one more than code points; the replacement is `pool[start[c]:start[c + 1]]`.
        pool: uint8, UTF-8 of the replacements.
    """

    kind: np.ndarray
    start: np.ndarray
    pool: np.ndarray


@functools.cache
def code_points() -> CodePoints:
    """The table, made from Python's Unicode database (0.2 s, once per process)."""
    kinds = np.zeros(TABLE_END, np.uint8)
    for first, last in _ALONE_RANGES:
        kinds[first : last + 1] = ALONE
    starts = np.zeros(TABLE_END + 1, np.int32)
    pool = bytearray()
    for code in range(TABLE_END):
        character = chr(code)
        kinds[code], replacement = _simplified(character, unicodedata.category(character), kinds[code] == ALONE)
        pool += replacement
        assert len(replacement) + 1 <= GROWTH * len(character.encode(errors="replace"))
        starts[code + 1] = len(pool)
    return CodePoints(kinds, starts, np.frombuffer(bytes(pool), np.uint8))


def _simplified(character: str, category: str, alone: bool) -> tuple[int, bytes]:
    if category[0] in "ZP" or category in ("Cc", "Cs", "Sk") or character in _SYMBOLS_THAT_SEPARATE:
        return SEPARATOR, b""
    if category[0] == "S" and character.isascii():
        return SEPARATOR, b""
    parts = unicodedata.normalize("NFD", character.lower())
    replacement = "".join(c for c in parts if unicodedata.category(c) != "Mn").encode()
    if category == "Cf" or not replacement:
        return IGNORED, b""
    if category == "Nd":
        return DIGIT, replacement
    return (ALONE if alone else LETTER), replacement


def utf8_buffers(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes and offsets of a string column, without a copy when it is one chunk.

    Args:
        column: strings; nulls count as empty.

    Returns:
        uint8 (B,) and int64 (N + 1,).
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    wide = array.cast(pa.large_string())
    _, offsets, data = wide.buffers()
    if offsets is None or not len(wide):
        return np.zeros(0, np.uint8), np.zeros(len(wide) + 1, np.int64)
    offsets_N = np.frombuffer(offsets, np.int64)[wide.offset : wide.offset + len(wide) + 1]
    return np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8), offsets_N


_PRIME_1 = np.uint64(0x9E3779B185EBCA87)
_PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME_3 = np.uint64(0x165667B19E3779F9)
_PRIME_4 = np.uint64(0x85EBCA77C2B2AE63)
_PRIME_5 = np.uint64(0x27D4EB2F165667C5)


@inlined
def _rotate(x, bits):
    return (x << np.uint64(bits)) | (x >> np.uint64(64 - bits))


@inlined
def _read(data_B, at, size):
    """`size` bytes as a little-endian number (LLVM makes one load of it)."""
    value = np.uint64(0)
    for i in range(size):
        value |= np.uint64(data_B[at + i]) << np.uint64(8 * i)
    return value


@inlined
def _round(lane, word):
    return _rotate(lane + word * _PRIME_2, 31) * _PRIME_1


@kernel
def _long_lanes(data_B, start, end, seed):
    one, two = seed + _PRIME_1 + _PRIME_2, seed + _PRIME_2
    three, four = seed, seed - _PRIME_1
    at = start
    while at + 32 <= end:
        one = _round(one, _read(data_B, at, 8))
        two = _round(two, _read(data_B, at + 8, 8))
        three = _round(three, _read(data_B, at + 16, 8))
        four = _round(four, _read(data_B, at + 24, 8))
        at += 32
    value = _rotate(one, 1) + _rotate(two, 7) + _rotate(three, 12) + _rotate(four, 18)
    for lane in (one, two, three, four):
        value = (value ^ _round(np.uint64(0), lane)) * _PRIME_1 + _PRIME_4
    return value


@kernel
def xxh64(data_B, start, end, seed):
    """xxh64 of `data_B[start:end]` (https://github.com/Cyan4973/xxHash, doc/xxhash_spec.md).

    Args:
        data_B: uint8 array.
        start: first byte.
        end: one past the last byte.
        seed: uint64.

    Returns:
        uint64, the same as the C library's.
    """
    value = _long_lanes(data_B, start, end, seed) if end - start >= 32 else seed + _PRIME_5
    value += np.uint64(end - start)
    at = start + (end - start) // 32 * 32
    while at + 8 <= end:
        value = _rotate(value ^ _round(np.uint64(0), _read(data_B, at, 8)), 27) * _PRIME_1 + _PRIME_4
        at += 8
    if at + 4 <= end:
        value = _rotate(value ^ (_read(data_B, at, 4) * _PRIME_1), 23) * _PRIME_2 + _PRIME_3
        at += 4
    while at < end:
        value = _rotate(value ^ (np.uint64(data_B[at]) * _PRIME_5), 11) * _PRIME_1
        at += 1
    value = (value ^ (value >> np.uint64(33))) * _PRIME_2
    value = (value ^ (value >> np.uint64(29))) * _PRIME_3
    return value ^ (value >> np.uint64(32))


@kernel
def decode(data_B, at, end):
    """The code point at a byte and its length; a broken sequence reads as NUL of one byte, a separator."""
    lead = np.int64(data_B[at])
    if lead < 0x80:
        return lead, 1
    size = 2 if lead >= 0xC2 and lead < 0xE0 else 3 if lead >= 0xE0 and lead < 0xF0 else 4 if lead < 0xF5 else 0
    if lead < 0xC2 or size == 0 or at + size > end:
        return np.int64(0), 1
    code = lead & (0x7F >> size)
    for i in range(1, size):
        follow = np.int64(data_B[at + i])
        if follow & 0xC0 != 0x80:
            return np.int64(0), 1
        code = (code << 6) | (follow & 0x3F)
    return (code, size) if code < 0x110000 else (np.int64(0), 1)


@inlined
def kind_of(kinds, code):
    """What a code point is, see `CodePoints.kind`."""
    if code < TABLE_END:
        return np.int64(kinds[code])
    return ALONE if code < HAN_END else LETTER


@kernel
def _number_end(data_B, at, end, kinds):
    """Where the number that begins at `at` ends: digits, then perhaps one decimal sign and digits."""
    signs = 0
    while at < end:
        code, size = decode(data_B, at, end)
        if kind_of(kinds, code) == DIGIT:
            at += size
        elif signs == 0 and (code == 0x2E or code == 0x2C or code == 0x60C or code == 0x66B) and at + size < end:
            follow, _ = decode(data_B, at + size, end)
            if kind_of(kinds, follow) != DIGIT:
                break
            at += size
            signs = 1
        else:
            break
    return at


@kernel
def simplify(data_B, start, end, table, split_alone, fold_numbers, out_B, units_U4):
    """Simplify one text and find its words.

    Args:
        data_B: uint8, UTF-8; invalid bytes separate words.
        start: first byte of the text.
        end: one past its last byte.
        table: `code_points()`.
        split_alone: whether each character of a script without spaces is a word.
        fold_numbers: whether every number becomes "0".
        out_B: uint8, at least `GROWTH * (end - start)`: receives the words, one space between them.
        units_U4: int64 (at least (end - start) // 2 + 1, 4): receives first and end byte of each word in `out_B`, then
            first and end byte in `data_B`.

    Returns:
        Bytes written, words written.
    """
    kinds, starts, pool = table.kind, table.start, table.pool
    used, words, inside, at = 0, 0, False, start
    while at < end:
        code, size = np.int64(data_B[at]), 1
        if code >= 128:
            code, size = decode(data_B, at, end)
        kind = kind_of(kinds, code)
        alone = kind == ALONE and split_alone
        if inside and (kind == SEPARATOR or alone):
            units_U4[words, 1], units_U4[words, 3] = used, at
            words, inside = words + 1, False
        if kind in (SEPARATOR, IGNORED):
            at += size
            continue
        if not inside:
            if words:
                out_B[used] = 32
                used += 1
            units_U4[words, 0], units_U4[words, 2], inside = used, at, True
        if kind == DIGIT and fold_numbers:
            out_B[used] = 48
            used, at = used + 1, _number_end(data_B, at, end, kinds)
            continue
        first, last, source = (starts[code], starts[code + 1], pool) if code < TABLE_END else (at, at + size, data_B)
        for i in range(first, last):
            out_B[used] = source[i]
            used += 1
        at += size
        if alone:
            units_U4[words, 1], units_U4[words, 3] = used, at
            words, inside = words + 1, False
    if inside:
        units_U4[words, 1], units_U4[words, 3] = used, end
        words += 1
    return used, words


@kernel
def characters(out_B, used):
    """First and end byte of every character of a simplified text: int64 (U, 2)."""
    spans_U2 = np.empty((used, 2), np.int64)
    count = 0
    for at in range(used):
        if out_B[at] & 0xC0 != 0x80:
            if count:
                spans_U2[count - 1, 1] = at
            spans_U2[count, 0] = at
            count += 1
    if count:
        spans_U2[count - 1, 1] = used
    return spans_U2[:count]


@kernel
def is_space(code):
    """Whether a code point is white space: what Python's `str.isspace` says."""
    if code < 128:
        return code == 32 or (code >= 9 and code <= 13) or (code >= 28 and code <= 31)
    if code < 0x1680:
        return code == 0x85 or code == 0xA0
    lines = code == 0x1680 or code == 0x2028 or code == 0x2029 or code == 0x202F or code == 0x205F or code == 0x3000
    return lines or (code >= 0x2000 and code <= 0x200A)


@kernel
def collapse(data_B, at, end, out_B, used):
    """Copy a text with every run of white space made one space to `out_B[used:]`; return the end of the copy."""
    begin, gap = used, False
    while at < end:
        code, size = decode(data_B, at, end)
        if is_space(code):
            gap = used > begin
        else:
            if gap:
                out_B[used] = 32
                used, gap = used + 1, False
            for i in range(size):
                out_B[used + i] = data_B[at + i]
            used += size
        at += size
    return used


@kernel
def _collapse(data_B, offsets_N):
    out_B = np.empty(offsets_N[-1] - offsets_N[0], np.uint8)
    ends_N = np.zeros(len(offsets_N), np.int64)
    used = 0
    for n in range(len(offsets_N) - 1):
        used = collapse(data_B, offsets_N[n], offsets_N[n + 1], out_B, used)
        ends_N[n + 1] = used
    return out_B, ends_N


def collapse_whitespace(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Texts with every run of whitespace made one space and none at the ends: `" ".join(text.split())`.

    Returns:
        uint8 (B,) and int64 offsets (N + 1,).
    """
    return _collapse(*utf8_buffers(column))


def words_of(text: str, fold_numbers: bool = True) -> list[str]:
    """The words of one text, as the kernels see them (for looking at; the kernels never call this)."""
    data_B = np.frombuffer(text.encode(), np.uint8)
    out_B = np.empty(GROWTH * len(data_B), np.uint8)
    units_U4 = np.empty((len(data_B) // 2 + 1, 4), np.int64)
    used, count = simplify(data_B, 0, len(data_B), code_points(), True, fold_numbers, out_B, units_U4)
    joined = out_B[:used].tobytes()
    return [joined[first:end].decode() for first, end in units_U4[:count, :2]]


assert sys.byteorder == "little", "hashes and signatures are defined on little-endian numbers"
