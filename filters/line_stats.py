"""Compiled statistics of lines: bullets, ellipses, terminal punctuation, and C4's rules about lines and sentences.

The one choice that matters: a sentence is counted as spaCy's sentencizer does, from the words already split (it ends
at a word that is a lone sentence mark, and the next begins at the next word that is not punctuation).
Source: Gopher (arXiv:2112.11446), C4 (JMLR 21/20-074 and its reference code), FineWeb (arXiv:2406.17557).
"""

import numpy as np

from filters.characters import SPACE, TERMINAL
from filters.ngram_stats import NEWLINE, next_line, strip_span
from filters.word_split import DOT
from pipelines.compiled import inlined, kernel

BULLET, DASH, ELLIPSIS, CURLY, OPEN, CLOSE = 0x2022, 45, 0x2026, 123, 91, 93
C4_MIN_WORDS = 3  # words in a line, by spaces
C4_MAX_WORD = 1000  # characters
FINEWEB_SHORT_LINE = 30  # characters
WORD_ENDS, WORD_MARKS = 1, 2
"""Flags of a word: it is a lone sentence mark; it is all punctuation."""
LOREM, JAVASCRIPT = "lorem ipsum", "javascript"
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def phrase_table() -> tuple[np.ndarray, np.ndarray]:
    """C4's phrases as code points: uint32 (phrases, longest), zero padded, and int64 lengths."""
    phrases = (LOREM, JAVASCRIPT, *POLICIES)
    table = np.zeros((len(phrases), max(map(len, phrases))), np.uint32)
    for row, phrase in enumerate(phrases):
        table[row, : len(phrase)] = [ord(c) for c in phrase]
    return table, np.array([len(phrase) for phrase in phrases])


@kernel
def _may_begin(c, d):
    """Whether the two letters (in lower case) begin one of the phrases: lo ja te pr co us."""
    if c == 108 or c == 99:
        return d == 111
    if c == 106:
        return d == 97
    if c == 116:
        return d == 101
    return (c == 112 and d == 114) or (c == 117 and d == 115)


@inlined
def phrase_at(cps, i, phrase, size):
    """Whether the phrase, in lower case, stands at i, ASCII case ignored."""
    for j in range(size):
        c = cps[i + j]
        if 65 <= c <= 90:
            c |= 32
        if c != phrase[j]:
            return False
    return True


@kernel
def _find_phrases(cps, a, b, phrases, lengths):
    """Bit mask of the phrases that occur in cps[a:b], ASCII case ignored."""
    found = 0
    for i in range(a, b - 1):
        if not _may_begin(cps[i] | 32, cps[i + 1] | 32):
            continue
        for row in range(len(lengths)):
            size = lengths[row]
            if i + size > b or found >> row & 1:
                continue
            if phrase_at(cps, i, phrases[row], size):
                found |= 1 << row
    return found


@kernel
def _ends_with_ellipsis(cps, a, b):
    if b > a and cps[b - 1] == ELLIPSIS:
        return True
    return b - a >= 3 and cps[b - 1] == DOT and cps[b - 2] == DOT and cps[b - 3] == DOT


@kernel
def gopher_lines(cps, cls, n):
    """(lines, lines that begin with a bullet, lines that end in an ellipsis)."""
    lines, bullets, ellipses, a = 0, 0, 0, 0
    while a < n:
        end, following = next_line(cls, cps, a, n)
        lo, hi = strip_span(cls, a, end)
        lines += 1
        bullets += lo < hi and (cps[lo] == BULLET or cps[lo] == DASH)
        ellipses += _ends_with_ellipsis(cps, lo, hi)
        a = following
    return lines, bullets, ellipses


@kernel
def line_lengths(cps, cls, n, best):
    """Of the lines between newlines.

    Args:
        cps: code points.
        cls: flags.
        n: how many.
        best: int64 (3,), takes the lengths of the three longest lines, the longest first.

    Returns:
        (non-blank lines, those that end in terminal punctuation, those of at most 30 characters, longest line,
        characters in all non-blank lines, newlines).
    """
    lines, punctuated, short, longest, total, newlines, a = 0, 0, 0, 0, 0, 0, 0
    best[:] = 0
    for i in range(n + 1):
        if i < n and cps[i] != NEWLINE:
            continue
        newlines += i < n
        size = i - a
        if size > best[2]:
            _insert(best, size)
        lo, hi = strip_span(cls, a, i)
        if lo < hi:
            lines += 1
            punctuated += cls[i - 1] & TERMINAL != 0
            short += size <= FINEWEB_SHORT_LINE
            longest = max(longest, size)
            total += size
        a = i + 1
    return lines, punctuated, short, longest, total, newlines


@kernel
def _insert(best, size):
    for k in range(len(best)):
        if size > best[k]:
            best[k], size = size, best[k]


@kernel
def _line_words(cls, a, b):
    """(words by spaces, longest word in characters)."""
    words, longest, run = 0, 0, 0
    for i in range(a, b):
        if cls[i] & SPACE:
            run = 0
        else:
            words += run == 0
            run += 1
            longest = max(longest, run)
    return words, longest


@kernel
def citation_length(cps, i, b):
    """Length of `[12]`, `[]`, `[edit]` or `[citation needed]` at i, else 0."""
    j = i + 1
    while j < b and 48 <= cps[j] <= 57:
        j += 1
    if j < b and cps[j] == CLOSE:
        return j + 1 - i
    if i + 6 <= b and cps[i + 5] == CLOSE and cps[i + 1] == 101 and cps[i + 2] == 100 and cps[i + 4] == 116:
        return 6
    if i + 17 <= b and cps[i + 16] == CLOSE and cps[i + 1] == 99 and cps[i + 9] == 32 and cps[i + 10] == 110:
        return 17
    return 0


@kernel
def _terminal(cps, a, b):
    """Whether C4 takes a line to be ended: . ? ! " ' and no ellipsis; citations at its end are looked past."""
    while b > a and cps[b - 1] == CLOSE:
        at = b - 1
        while at > a and b - at < 17 and cps[at] != OPEN:
            at -= 1
        if cps[at] != OPEN or citation_length(cps, at, b) != b - at:
            break
        b = at
    if b <= a or (_ends_with_ellipsis(cps, a, b) and cps[b - 1] == DOT):
        return False
    c = cps[b - 1]
    return c == 46 or c == 63 or c == 33 or c == 34 or c == 39


@kernel
def _c4_contents(cps, cls, a, b, phrases, lengths):
    """What C4 does with the line [a, b), its end aside: 0 keeps it, 1 leaves it out, 2 lorem ipsum, 3 curly bracket."""
    words, longest = _line_words(cls, a, b)
    if words < C4_MIN_WORDS or longest > C4_MAX_WORD:
        return 1
    found = _find_phrases(cps, a, b, phrases, lengths)
    if found & 1:
        return 2
    if found & 2:
        return 1
    for i in range(a, b):
        if cps[i] == CURLY:
            return 3
    return 1 if found else 0


@kernel
def c4_line(cps, cls, a, b, need_terminal, phrases, lengths):
    """The same, and with `need_terminal` a line that does not end in terminal punctuation is left out."""
    if need_terminal and not _terminal(cps, a, b):
        return 1
    return _c4_contents(cps, cls, a, b, phrases, lengths)


@kernel
def c4_document(cps, cls, n, starts, words, marks, phrases, lengths, out):
    """C4's counts over a document, by both of its readings.

    Args:
        cps: code points.
        cls: flags.
        n: how many.
        starts: of words.
        words: how many.
        marks: `WORD_ENDS` and `WORD_MARKS` of words.
        phrases: `phrase_table`.
        lengths: of phrases.
        out: (8,); takes sentences in lines that C4 keeps, lines with lorem ipsum, lines with a curly bracket and lines
            left out; then the same four where a line must end in terminal punctuation.
    """
    out[:] = 0
    a, w = 0, 0
    while a < n:
        end, following = next_line(cls, cps, a, n)
        lo, hi = strip_span(cls, a, end)
        verdict = _c4_contents(cps, cls, lo, hi, phrases, lengths)
        ended_line = verdict != 1 and _terminal(cps, lo, hi)
        while w < words and starts[w] < lo:
            w += 1
        first, ended, sentences = w, False, 0
        while w < words and starts[w] < hi:
            if ended and not marks[w]:
                sentences += 1
                ended = False
            elif marks[w] & WORD_ENDS:
                ended = True
            w += 1
        sentences += w > first
        if verdict:
            out[3 if verdict == 1 else verdict - 1] += 1
        else:
            out[0] += sentences
        if verdict == 1 or not ended_line:
            out[7] += 1
        elif verdict:
            out[verdict + 3] += 1
        else:
            out[4] += sentences
        a = following
