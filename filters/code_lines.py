"""Tells lines of program code from lines of prose: for documents that are code, and for prose with code in it.

The one choice that matters: a line is weighed by its signs (calls, assignments, braces, paths of names) against its
words, whatever the programming language is, so nothing is parsed and nothing learned; comments count for neither side,
formulas as prose. Long texts are looked at in windows spread over them. Source: own; checked on files of 20 languages,
books, papers, mathematics and web pages (docs/benchmarks.md).
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from filters.text_memory import buffers_of
from pipelines.compiled import inlined, kernel

WINDOWS, WINDOW_BYTES = 4, 768
"""A longer text is looked at in four places from its beginning to its end: a book costs no more than a page."""
LINE_BYTES = 400  # of a line that are weighed
CODE_SHARE = 0.5  # of the bytes of lines that are code or prose, from which a text is code
LEAST_SIGNS = 3  # clear ones
PUNCTUATION = (44, 46, 59, 58, 33, 63, 41, 40, 34, 39, 45)  # , . ; : ! ? ) ( " ' -
WORD_BYTES = 6  # of a script without spaces: two ideographs weigh like a word
KEYWORDS = (
    "import from def class return if else elif for while fn func let const var public private protected static package "
    "use using namespace struct enum impl match try except finally catch raise throw with end break continue switch "
    "case default pass begin module interface type mod print echo export object val override then fi done do"
)  # fmt: skip


class Windows(NamedTuple):
    """Where N texts are looked at, code left out.

    Attributes:
        texts: string (W,), what is not code in each window.
        rows: int64 (W,), the text that a window is of, ascending.
        code_share: float64 (N,), bytes of lines of code among those of code and prose, 0..1.
        is_code: bool (N,).
    """

    texts: pa.Array
    rows: np.ndarray
    code_share: np.ndarray
    is_code: np.ndarray


def windows_of(texts: pa.Array) -> Windows:
    """Look at texts.

    Args:
        texts: string (N,).
    """
    data_B, offsets_N = buffers_of(texts)
    lengths_N = np.diff(offsets_N)
    counts_N = np.where(lengths_N > WINDOWS * WINDOW_BYTES, WINDOWS, 1)
    rows_W = np.repeat(np.arange(len(counts_N)), counts_N)
    bounds_W2 = np.empty((len(rows_W), 2), np.int64)
    _place(data_B, offsets_N, counts_N, bounds_W2)
    out_B = np.empty(int((bounds_W2[:, 1] - bounds_W2[:, 0]).sum()), np.uint8)
    ends_W = np.empty(len(rows_W), np.int32)
    tally_N3 = np.zeros((len(counts_N), 3), np.int64)
    _part(data_B, bounds_W2, rows_W, _keywords(), out_B, ends_W, tally_N3)
    starts_W = np.concatenate([[0], ends_W]).astype(np.int32)
    prose = pa.Array.from_buffers(pa.string(), len(rows_W), [None, pa.py_buffer(starts_W), pa.py_buffer(out_B)])
    code_N, prose_N, signs_N = tally_N3.T
    share_N = np.divide(code_N, code_N + prose_N, out=np.zeros(len(code_N)), where=code_N > 0)
    return Windows(prose, rows_W, share_N, (share_N >= CODE_SHARE) & (signs_N >= LEAST_SIGNS))


def _keywords() -> np.ndarray:
    """The keywords as numbers of their (up to eight) letters, sorted: uint64."""
    return np.sort(np.array([int.from_bytes(word.encode()[:8], "big") for word in KEYWORDS.split()], np.uint64))


@kernel
def _place(data_B, offsets_N, counts_N, bounds_W2):
    """Spread the windows, at whole characters."""
    w = 0
    for n in range(len(counts_N)):
        begin, end = offsets_N[n], offsets_N[n + 1]
        for k in range(counts_N[n]):
            first, last = begin, end
            if counts_N[n] > 1:
                first = begin + (end - begin - WINDOW_BYTES) * k // (WINDOWS - 1)
                last = first + WINDOW_BYTES
            while first < last and data_B[first] & 0xC0 == 0x80:
                first += 1
            while last < end and data_B[last] & 0xC0 == 0x80:
                last += 1
            bounds_W2[w, 0], bounds_W2[w, 1] = first, last
            w += 1


@kernel
def _part(data_B, bounds_W2, rows_W, keywords, out_B, ends_W, tally_N3):
    """Weigh every line; copy those that are not code."""
    used = 0
    for w in range(len(rows_W)):
        at, end = bounds_W2[w]
        inside = 0  # a comment of several lines: what opened it
        while at < end:
            stop = at
            while stop < end and data_B[stop] != 10:
                stop += 1
            before = inside
            inside = _comment_after(data_B, at, stop, inside)
            kind, signs = (0, 0) if before or inside else weigh_line(data_B, at, stop, keywords)
            stop = min(stop + 1, end)
            if kind > 0:
                tally_N3[rows_W[w], 0] += stop - at
                tally_N3[rows_W[w], 2] += signs
            else:
                tally_N3[rows_W[w], 1] += (stop - at) if kind < 0 else 0
                out_B[used : used + stop - at] = data_B[at:stop]
                used += stop - at
            at = stop
        ends_W[w] = used


@kernel
def _comment_after(data_B, at, stop, inside):
    """Which comment or docstring is open behind a line: 0 none, else the quote or the star that opened it."""
    for i in range(at, stop):
        c = data_B[i]
        if (
            c in (34, 39)
            and i + 2 < stop
            and data_B[i + 1] == c
            and data_B[i + 2] == c
            and (i == at or data_B[i - 1] != c)
        ):
            inside = 0 if inside == c else c if inside == 0 else inside
        elif c == 42 and inside == 0 and i > at and data_B[i - 1] == 47 and (i < at + 2 or data_B[i - 2] != 47):
            inside = 42
        elif c == 47 and inside == 42 and i > at and data_B[i - 1] == 42:
            inside = 0
    return inside


@inlined
def _is_letter(c):
    return 97 <= (c | 32) <= 122 or c >= 128


@inlined
def _is_name(c):
    return 97 <= (c | 32) <= 122 or 48 <= c <= 57 or c == 95


@inlined
def _is_space(c):
    return c == 32 or c == 9 or c == 13


@kernel
def _sign(p, c, q, i, first, last):
    """How much c between p and q speaks for code: 2 for braces, `f(`, `a.b`, `x_y`, `::`, `->`; 1 for `=`, `a[`."""
    if c in (123, 125):  # {}
        return 2
    if c == 59:  # ;
        return 2 * (i == last)
    if c == 61:  # =
        return 1 * (p != 61)
    if c == 95:
        return 2 * (_is_name(p) and _is_name(q) and p != 95 and q != 95)
    if c == 40:  # (
        return 1 * _is_name(p) + (_is_name(p) and _is_name(q))
    if c == 91:  # [
        return 1 * _is_name(p)
    if c == 46:  # .
        return 2 * (97 <= (p | 32) <= 122 and 97 <= (q | 32) <= 122)
    if c == 58:  # : of a::b and "key":
        return 2 * (q == 58 or p == 34)
    if c == 62:  # > of -> and >>>
        return 2 * (p == 45 or i == first + 2)
    if c == 60:  # <
        return 1 * (97 <= (q | 32) <= 122 or q in (47, 33))
    if c in (38, 124):  # && ||
        return 1 * (p == c)
    if c == 36:  # $ of a shell
        return 2 * (q == 40 or (p in (34, 47, 61, 123) and _is_letter(q)) or (q == 123 and p != 36))
    return 2 * (c == 64 and i == first and _is_letter(q))  # @


@kernel
def weigh_line(data_B, first, end, keywords):
    """What a line is.

    Returns:
        1: code, -1: prose, 0: neither (blank, a comment, a formula, numbers); and how many clear signs of code it has.
    """
    while first < end and (_is_space(data_B[first]) or data_B[first] in (0xEF, 0xBB, 0xBF)):  # a byte order mark
        first += 1
    while end > first and _is_space(data_B[end - 1]):
        end -= 1
    last = end - 1
    if first >= end or _begins_comment(data_B[first], data_B[min(first + 1, last)]):
        return 0, 0
    end = min(end, first + LINE_BYTES)
    signs, clear, brackets, letters, foreign, dollars = 0, 0, 0, 0, 0, 0
    words, word, pure = 0, 0, True
    keyword, formula = False, False
    head, heads = np.uint64(0), 0
    for i in range(first, end + 1):
        c = np.uint8(32) if i == end else data_B[i]
        p = data_B[i - 1] if i > first else np.uint8(32)
        q = data_B[i + 1] if i + 1 < end else np.uint8(32)
        if _is_space(c):
            if i - first == heads:  # the first word, of letters alone
                at = np.searchsorted(keywords, head)
                keyword = at < len(keywords) and keywords[at] == head
            words += pure and word >= 2
            word, pure = 0, True
            if signs and q in (35, 47) and data_B[min(i + 2, last)] in (32, 47):
                break  # a comment behind code
            continue
        if _is_letter(c):
            foreign += c >= 128
            letters += c < 128
            if i - first == heads and heads < 8:
                head, heads = (head << np.uint64(8)) | np.uint64(c), heads + 1
            word += 1
            continue
        r = data_B[i - 2] if i > first + 1 else np.uint8(32)
        s = data_B[i + 2] if i + 2 < end else np.uint8(32)
        formula = formula or _is_formula(r, p, c, q, s)
        dollars += c == 36
        brackets += c in (40, 41, 91, 93, 123, 125, 59)
        pure = pure and c in PUNCTUATION and not (word and not _is_space(q) and c in (46, 59, 58, 33, 63, 40))
        weight = _sign(p, c, q, i, first, last)
        signs, clear = signs + (weight > 0), clear + (weight > 1)
    total = words + foreign / WORD_BYTES
    if keyword and total <= 3:
        signs, clear = signs + 1, clear + 1
    if letters + foreign == 0:
        return (1 if brackets and brackets == end - first else 0), 0
    if data_B[last] != 59 and (formula or (dollars and not clear)):
        return (-1 if formula or total >= 3 else 0), 0
    if signs and 2 * signs >= total:
        return 1, clear
    return (-1 if total else 0), 0


@inlined
def _is_formula(r, p, c, q, s):
    r"""TeX in five characters around c: \frac, \[, and \\ at the end; ^{ and _{, with a space or without; &=."""
    command = c == 92 and (q in (40, 91, 92) or (_is_letter(q) and _is_letter(s) and p != 34))
    return command or (c == 123 and (p in (94, 95) or (p == 32 and r in (94, 95)))) or (c == 38 and q == 61)


@inlined
def _begins_comment(c, q):
    """// /* * # % -- \"\"\" and the = of a heading."""
    begins = (c == 47 and q in (42, 47)) or (c == 42 and q in (32, 47, 42)) or (c == 35 and q in (32, 35))
    return begins or c == 37 or (c in (34, 39, 45) and q == c) or (c == 61 and q in (32, 61))
