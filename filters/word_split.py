"""Compiled word splitting: code points to words, one pass.

The one choice that matters: words are those of spaCy's English rules (quotes, brackets and final dots split off,
`don't` is `do` + `n't`, a hyphenated word is three words, a URL is one), because Gopher's and FineWeb's thresholds were
tuned on such words, and each Han or Kana character is a word. Rare special cases (emoticons, `gonna`) are left out:
decisions agree with datatrove's on more than 99 % of documents (tests/bench/test_filters_bench.py measures it).

Legend: `cps` uint32 code points of one document, `cls` uint32 their flags (`characters.py`), `starts`/`ends` int32.
"""

from collections.abc import Sequence

import numpy as np

from filters.characters import (
    AFFIX,
    ALPHA,
    BEFORE_DOT,
    CJK,
    CLUSTER,
    COMBINING,
    CURRENCY,
    DIGIT,
    HYPHEN,
    ICON,
    LOWER,
    QUOTE,
    SPACE,
    UPPER,
)
from pipelines.compiled import kernel

DOT, APOSTROPHE, CURLY_APOSTROPHE, PLUS, PERCENT, EQUALS, SECTION = 46, 39, 0x2019, 43, 37, 61, 0xA7
COLON, SLASH, AT, QUESTION, HASH, HYPHEN_MINUS, UNDERSCORE = 58, 47, 64, 63, 35, 45, 95
ASTERISK, CARET, LESS, GREATER, COMMA, ELLIPSIS = 42, 94, 60, 62, 44, 0x2026
ABBREVIATIONS = (
    "Mr. Mrs. Ms. Dr. Prof. St. Mt. Jr. Inc. Ltd. Co. co. Corp. Bros. Gen. Gov. Rep. Rev. Sen. Adm. Messrs. Mo. Md. vs."
    " a.m. p.m. e.g. E.g. i.e. I.e. v.s. Ph.D. Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec. Ala. Ariz."
    " Ark. Calif. Colo. Conn. Del. Fla. Ga. Ill. Ind. Kan. Ky. La. Mass. Mich. Minn. Miss. Neb. Nev. Okla. Ore. Pa."
    " Tenn. Va. Wash. Wis. " + " ".join(f"{letter}." for letter in "abcdefghijklmnopqrstuvwxyzг")
).split()
"""Words that keep their dot; a dot that stays does not end a sentence."""
_UNITS = "km m dm cm mm ha nm yd in ft kg g mg t lb oz kmh mph hPa Pa mbar mb MB kb KB gb GB tb TB T G M K am pm"
UNITS = _UNITS.split()
"""Split off after a digit: `10km` is two words."""


def hashes_of(words: Sequence[str]) -> np.ndarray:
    """The kernel's hash of each word, sorted: uint64 (len(words),)."""
    values = [hash_span(np.array([ord(c) for c in word], np.uint32), 0, len(word)) for word in words]
    return np.array(sorted(int(value) for value in values), np.uint64)


@kernel
def hash_span(cps, a, b):
    """64-bit hash of cps[a:b]: FNV-1a over code points, then a finalizer of murmur's kind."""
    h = np.uint64(0xCBF29CE484222325)
    for i in range(a, b):
        h = (h ^ np.uint64(cps[i])) * np.uint64(0x100000001B3)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    return h ^ (h >> np.uint64(29))


@kernel
def contains(sorted_hashes, value):
    """Whether a sorted array holds a value."""
    i = np.searchsorted(sorted_hashes, value)
    return i < len(sorted_hashes) and sorted_hashes[i] == value


@kernel
def _dots(cps, a, b):
    n = 0
    while a + n < b and cps[a + n] == DOT:
        n += 1
    return n


@kernel
def _prefix(cps, cls, a, b):
    c = cps[a]
    if cls[a] & (AFFIX | CURRENCY) or c in (PERCENT, EQUALS, SECTION):
        return 1
    if c == PLUS:
        return 0 if a + 1 < b and cls[a + 1] & DIGIT else 1
    if c == DOT:
        n = _dots(cps, a, b)
        return n if n >= 2 else 0
    return 0


@kernel
def _suffix(cps, cls, a, b, units):
    if a >= b:
        return 0
    last, before = cps[b - 1], b - 2
    if cls[b - 1] & AFFIX:
        return 1
    if before < a:
        return 0
    if last == DOT:
        n = 1
        while b - n - 1 >= a and cps[b - n - 1] == DOT:
            n += 1
        if n >= 2:
            return n
        doubled = before > a and cls[before] & UPPER and cls[before - 1] & UPPER
        return 1 if cls[before] & BEFORE_DOT or doubled else 0
    if (last == 115 or last == 83) and (cps[before] == APOSTROPHE or cps[before] == CURLY_APOSTROPHE):
        return 2
    if cls[before] & DIGIT and (cls[b - 1] & CURRENCY or last in (PLUS, PERCENT)):
        return 1
    n = 0
    while n < 5 and b - n - 1 >= a and cls[b - n - 1] & ALPHA:
        n += 1
    if 0 < n < 5 and b - n - 1 >= a and cls[b - n - 1] & DIGIT and contains(units, hash_span(cps, b - n, b)):
        return n
    return 0


@kernel
def _contraction(cps, cls, a, b):
    """Length of `n't`, `'ll`, `'ve`, `'re`, `'d`, `'m` at the end of a word, else 0."""
    for back in (2, 3):
        at = b - back
        if at <= a or (cps[at] != APOSTROPHE and cps[at] != CURLY_APOSTROPHE) or not cls[at - 1] & ALPHA:
            continue
        one, two = cps[at + 1], cps[b - 1]
        if back == 2 and one == 116 and cps[at - 1] == 110 and at - 1 > a:
            return 3
        if back == 2 and (one == 100 or one == 109):
            return 2
        if back == 3 and ((one == 108 and two == 108) or ((one == 118 or one == 114) and two == 101)):
            return 3
    return 0


@kernel
def _is_url(cps, cls, a, b):
    """Whether a chunk reads [scheme://][user@]host.tld[:port][/path]: such a chunk is one word."""
    host = a
    for i in range(a, b - 2):
        if cps[i] == COLON and cps[i + 1] == SLASH and cps[i + 2] == SLASH:
            host = i + 3
            break
    for i in range(host, b):
        if cps[i] == AT:
            host = i + 1
        elif cps[i] == SLASH:
            break
    end, dot = host, -1
    while end < b and cps[end] != SLASH and cps[end] != COLON and cps[end] != QUESTION and cps[end] != HASH:
        if cps[end] == DOT:
            if end == host or cps[end - 1] == DOT:
                return False
            dot = end
        elif not (cls[end] & (ALPHA | DIGIT) or cps[end] == HYPHEN_MINUS or cps[end] == UNDERSCORE):
            return False
        end += 1
    if dot < 0 or end - dot < 3:
        return False
    lower = LOWER
    for i in range(dot + 1, end):
        lower &= cls[i]
    return lower != 0


@kernel
def _infix(cps, cls, a, i, b):
    """Length of the separator at i inside the word [a, b), else 0."""
    c = cps[i]
    if c == DOT:
        n = _dots(cps, i, b)
        if n >= 2:
            return n
    if c == ELLIPSIS or cls[i] & ICON:
        return 1
    if i == a or i + 1 >= b:
        return 0
    left, right = cls[i - 1], cls[i + 1]
    if c == DOT:
        return 1 if left & (LOWER | QUOTE) and right & (UPPER | QUOTE) else 0
    if c == COMMA:
        return 1 if left & ALPHA and right & ALPHA else 0
    if cls[i] & HYPHEN and left & (ALPHA | DIGIT):
        n = 1
        while n < 3 and i + n < b and cps[i + n] == c and c != 0x2013:
            n += 1
        if i + n < b and cls[i + n] & ALPHA:
            return n
    if c in (PLUS, HYPHEN_MINUS, ASTERISK, CARET) and left & DIGIT:
        return 1 if right & DIGIT or cps[i + 1] == HYPHEN_MINUS else 0
    if c in (COLON, SLASH, EQUALS, LESS, GREATER) and left & (ALPHA | DIGIT) and right & ALPHA:
        return 1
    return 0


@kernel
def _put(starts, ends, w, a, b):
    if b > a:
        starts[w] = a
        ends[w] = b
        return w + 1
    return w


@kernel
def _core(cps, cls, a, b, starts, ends, w):
    """A chunk without its affixes."""
    n = _contraction(cps, cls, a, b)
    if n:
        w = _put(starts, ends, w, a, b - n)
        return _put(starts, ends, w, b - n, b)
    plain = True
    for i in range(a, b):
        if not cls[i] & (ALPHA | DIGIT) or cls[i] & ICON:
            plain = False
            break
    if plain or _is_url(cps, cls, a, b):
        return _put(starts, ends, w, a, b)
    i, begin = a, a
    while i < b:
        n = _infix(cps, cls, a, i, b)
        if n:
            w = _put(starts, ends, w, begin, i)
            w = _put(starts, ends, w, i, i + n)
            i += n
            begin = i
        else:
            i += 1
    return _put(starts, ends, w, begin, b)


@kernel
def _keeps_dot(cps, a, b, abbreviations):
    return 2 <= b - a <= 7 and cps[b - 1] == DOT and contains(abbreviations, hash_span(cps, a, b))


@kernel
def _chunk(cps, cls, a, b, starts, ends, w, abbreviations, units):
    """A run without spaces and CJK characters: peel affixes, then split the core."""
    tail = b  # words of the tail are emitted last; their lengths are found again by peeling from the right
    while a < tail and not _keeps_dot(cps, a, tail, abbreviations):
        n = _prefix(cps, cls, a, tail)
        if n:
            w = _put(starts, ends, w, a, a + n)
            a += n
            if a < tail and _keeps_dot(cps, a, tail, abbreviations):
                break
        m = _suffix(cps, cls, a, tail, units)
        tail -= m
        if n == 0 and m == 0:
            break
    w = _core(cps, cls, a, tail, starts, ends, w)
    first = w
    while b > tail:  # written from the right, then turned round
        m = max(1, min(_suffix(cps, cls, a, b, units), b - tail))
        w = _put(starts, ends, w, b - m, b)
        b -= m
    lo, hi = first, w - 1
    while lo < hi:
        starts[lo], starts[hi] = starts[hi], starts[lo]
        ends[lo], ends[hi] = ends[hi], ends[lo]
        lo += 1
        hi -= 1
    return w


@kernel
def _elided(cps, cls, a, b, starts, ends, w):
    """Split after an apostrophe between letters: `l'homme` is `l'` + `homme`."""
    begin = a
    for i in range(a + 1, b - 1):
        if (cps[i] == APOSTROPHE or cps[i] == CURLY_APOSTROPHE) and cls[i - 1] & ALPHA and cls[i + 1] & ALPHA:
            w = _put(starts, ends, w, begin, i + 1)
            begin = i + 1
    return w, begin


@kernel
def _quick(cps, cls, a, b, every, starts, ends, w, abbreviations):
    """The usual chunks, letters and at most one mark behind them, without looking for affixes; -1: none of them.

    `every` holds the flags that all code points but the last share.
    """
    last = cls[b - 1]
    if not every & ALPHA or every & AFFIX:
        return -1
    if last & ALPHA:
        return -1 if last & AFFIX else _put(starts, ends, w, a, b)
    if cps[b - 1] == DOT and not _keeps_dot(cps, a, b, abbreviations):
        if not (cls[b - 2] & BEFORE_DOT or (b - a > 2 and cls[b - 2] & cls[b - 3] & UPPER)):
            return -1
    elif not last & AFFIX:
        return -1
    w = _put(starts, ends, w, a, b - 1)
    return _put(starts, ends, w, b - 1, b)


@kernel
def split_words(cps, cls, n, starts, ends, abbreviations, units, elision=False):
    """Split n code points into words; returns how many. `starts` and `ends` hold at least n entries.

    With `elision`, words are also split after an apostrophe, as French, Italian and Catalan want.
    """
    w, i = 0, 0
    while i < n:
        if cls[i] & SPACE:
            i += 1
        elif cls[i] & (CJK | CLUSTER):
            begin = i
            i += 1
            while i < n and cls[i] & COMBINING:
                i += 1
            w = _put(starts, ends, w, begin, i)
        else:
            begin, every, before = i, cls[i], cls[i]
            while i < n and not cls[i] & (SPACE | CJK | CLUSTER):
                every &= before
                before = cls[i]
                i += 1
            if i - begin == 1:
                w = _put(starts, ends, w, begin, i)
                continue
            done = _quick(cps, cls, begin, i, every, starts, ends, w, abbreviations)
            if done >= 0:
                w = done
                continue
            if elision:
                w, begin = _elided(cps, cls, begin, i, starts, ends, w)
            w = _chunk(cps, cls, begin, i, starts, ends, w, abbreviations, units)
    return w
