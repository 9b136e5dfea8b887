"""Text statistics: every number that a heuristic rule looks at, for a column of texts, in one compiled pass.

The one choice that matters: kernels read the UTF-8 buffers of the Arrow column and words are split once per document,
so that all rule sets together cost little more than one; parts that no chosen rule looks at are left out. Ratios whose
denominator is zero are 0.
Source of the definitions: Gopher (arXiv:2112.11446), C4 (JMLR 21/20-074), FineWeb (arXiv:2406.17557), StarCoder
(arXiv:2305.06161) for code. Words: see `word_split.py`.

Legend: `cps` uint32 code points of one document, `cls` uint32 their flags (`characters.py`).
"""

from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa

from filters import code_stats as code
from filters import ngram_stats as ng
from filters.characters import ALPHA, CJK, CLUSTER, DIGIT, MARK, PUNCTUATION, SPACE, TERMINAL
from filters.chinese_stats import chinese_document
from filters.line_stats import ELLIPSIS, WORD_ENDS, WORD_MARKS, c4_document, gopher_lines, line_lengths
from filters.math_stats import math_marks
from filters.text_memory import MAX_BYTES, NO_LANGUAGE, Languages, Lexicon, buffers_of, decode, lexicon, scratch
from filters.word_split import DOT, hash_span, split_words
from pipelines.compiled import kernel

JOINED = 4  # no stop word of a script without spaces is longer, counted in letters with their marks
_NGRAMS = ("top_2_gram", "top_3_gram", "top_4_gram", *(f"dup_{n}_gram" for n in range(5, 11)))
PARTS: Mapping[str, tuple[str, ...]] = {
    "characters": ("chars", "alphanumeric", "letters", "cjk", "spaces"),
    "lines": ("bullet_lines", "ellipsis_lines", "lines", "line_punct", "short_lines", "longest_line", "mean_line",
              "third_longest_line", "fineweb_line_chars"),
    "words": ("words", "word_length", "hashes", "ellipses", "alpha_words", "stop_words", "newlines"),
    "sentences": ("sentences", "lorem_ipsum", "curly_bracket", "lines_left_out", "terminal_sentences",
                  "terminal_lorem_ipsum", "terminal_curly_bracket", "terminal_lines_left_out"),
    "repetition": ("paragraph_frac", "paragraph_chars", "line_frac", "line_chars", *_NGRAMS),
    "covered": ("covered_line_frac", "covered_line_chars", "covered_paragraph_frac", "covered_paragraph_chars",
                *(f"covered_{name}" for name in _NGRAMS)),
    "language": ("language_words", "language_word_length", "language_alpha_words", "language_stop_words",
                 "language_newlines", *(f"language_{name}" for name in _NGRAMS)),
    "code": ("comment_chars", "encoded_chars", "longest_encoded", "generated_marks"),
    "math": ("formulas", "formula_chars", "latex_commands", "math_chars"),
    "chinese": ("zh_sentences", "zh_boilerplate_lines", "zh_stop_words"),
}  # fmt: skip
"""Statistics by the part of the pass that computes them; `docs/filters.md` defines each."""
STATS = tuple(name for names in PARTS.values() for name in names)
"""Names of the columns that `text_stats` returns; `rule_tables.py` says what each is compared with."""
_AT = {part: STATS.index(names[0]) for part, names in PARTS.items()}
CHARACTERS, LINES, WORDS, SENTENCES = (_AT[part] for part in ("characters", "lines", "words", "sentences"))
REPETITION, COVERED, LANGUAGE, CODE, MATH, CHINESE = (_AT[part] for part in list(PARTS)[4:])
_PART_OF = {name: part for part, names in PARTS.items() for name in names}
_BIT = {part: 1 << bit for bit, part in enumerate(PARTS)}
_LINES, _WORDS, _SENTENCES, _REPETITION, _COVERED, _LANGUAGE, _CODE, _MATH, _CHINESE = (
    _BIT[part] for part in list(PARTS)[1:]
)


def text_stats(
    texts: pa.Array | pa.ChunkedArray,
    words: Lexicon | None = None,
    wanted: Collection[str] = STATS,
    languages: Languages = NO_LANGUAGE,
    language_N: np.ndarray | None = None,
) -> Mapping[str, np.ndarray]:
    """Compute statistics of every text.

    Args:
        texts: string column of N texts.
        words: lookup arrays, built when not given.
        wanted: names in `STATS`; what shares a part with one of them is computed too.
        languages: L languages, for the statistics named `language_...`.
        language_N: int64 (N,), the language of each text, all 0 when not given.

    Returns:
        name -> float64 (N,), for every statistic of the parts that were asked for.
    """
    data, offsets = buffers_of(texts)
    rows = len(offsets) - 1
    parts = [part for part in PARTS if any(_PART_OF[name] == part for name in wanted)]
    values = np.zeros((rows, len(STATS)))
    if rows:
        longest = int(min(MAX_BYTES, np.diff(offsets).max()))
        language_N = np.zeros(rows, np.int64) if language_N is None else language_N
        chosen = sum(_BIT[part] for part in parts)
        _measure(data, offsets, values, words or lexicon(), languages, language_N, chosen, scratch(longest))
    return {name: values[:, column] for column, name in enumerate(STATS) if _PART_OF[name] in parts}


@kernel
def _measure(data, offsets, values, words, languages, language_N, parts, memory):
    for row in range(len(offsets) - 1):
        a, out = offsets[row], values[row]
        n = decode(data, a, min(offsets[row + 1], a + MAX_BYTES), words.table, memory.cps, memory.cls)
        _character_stats(out[CHARACTERS:], n, memory)
        if parts & _LINES:
            _line_stats(out[LINES:], n, memory)
        if parts & (_WORDS | _SENTENCES | _REPETITION | _COVERED | _LANGUAGE):
            count = split_words(memory.cps, memory.cls, n, memory.starts, memory.ends, words.abbreviations, words.units)
            _word_stats(out[WORDS:], n, count, words, memory)
            if parts & _SENTENCES:
                c4_document(memory.cps, memory.cls, n, memory.starts, count, memory.marks, words.phrases,
                            words.phrase_lengths, out[SENTENCES : SENTENCES + 8])  # fmt: skip
            if parts & _REPETITION:
                _repetition_stats(out[REPETITION:], n, count, memory)
            if parts & _COVERED:
                _covered_stats(out[COVERED:], n, count, memory)
            if parts & _LANGUAGE:  # the last: it may split words anew
                _language_stats(out, n, count, words, languages, language_N[row], parts & _REPETITION != 0, memory)
        if parts & _CODE:
            _code_stats(out[CODE:], n, words, memory)
        if parts & _MATH:
            _math_stats(out[MATH:], n, n - round(out[CHARACTERS + 4] * n), memory)
        if parts & _CHINESE:
            sentences, share, stops = chinese_document(memory.cps, memory.cls, n, words.boilerplate,
                                                       words.boilerplate_lengths, words.stop_characters)  # fmt: skip
            out[CHINESE], out[CHINESE + 1], out[CHINESE + 2] = sentences, share, stops


@kernel
def _code_stats(out, n, words, memory):
    comments, total = code.comment_chars(memory.cps, memory.cls, n)
    encoded, longest = code.encoded_chars(memory.cps, memory.cls, n)
    out[0], out[1], out[2] = comments / max(total, 1), encoded / max(n, 1), longest
    out[3] = code.generated_marks(memory.cps, n, words.generated, words.generated_lengths)


@kernel
def _math_stats(out, n, visible, memory):
    formulas, inside, commands, signs = math_marks(memory.cps, memory.cls, n)
    out[0], out[1], out[2], out[3] = formulas, inside / max(visible, 1), commands, signs / max(visible, 1)


@kernel
def _character_stats(out, n, memory):
    letters, digits, han, spaces = 0, 0, 0, 0
    for i in range(n):
        flags = memory.cls[i]
        letters += flags & ALPHA != 0
        digits += flags & DIGIT != 0
        han += flags & CJK != 0
        spaces += flags & SPACE != 0
    out[0], out[1], out[2] = n, (letters + digits) / max(n, 1), letters / max(n, 1)
    out[3], out[4] = han / max(n - spaces, 1), spaces / max(n, 1)


@kernel
def _word_stats(out, n, count, words, memory):
    """Writes hashes, lengths and marks of the words, too."""
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
    hashes, ellipses, newlines, i = 0, 0, 0, 0
    while i < n:
        hashes += cps[i] == 35
        newlines += cps[i] == ng.NEWLINE
        ellipses += cps[i] == ELLIPSIS
        if cps[i] == DOT and i + 2 < n and cps[i + 1] == DOT and cps[i + 2] == DOT:
            ellipses += 1
            i += 2
        i += 1
    total = max(count, 1)
    out[0], out[1], out[2], out[3] = proper, letters / max(proper, 1), hashes / total, ellipses / total
    out[4], out[5], out[6] = alpha / total, _ones(stops), newlines / total


@kernel
def _ones(mask):
    count = 0
    while mask:
        count += mask & 1
        mask >>= 1
    return count


@kernel
def _line_stats(out, n, memory):
    cps, cls = memory.cps, memory.cls
    lines, bullets, ellipses = gopher_lines(cps, cls, n)
    out[0], out[1] = bullets / max(lines, 1), ellipses / max(lines, 1)
    lines, punctuated, short, longest, total, newlines = line_lengths(cps, cls, n, memory.best)
    out[2], out[3], out[4] = lines, punctuated / max(lines, 1), short / max(lines, 1)
    out[5], out[6], out[7] = longest, total / max(lines, 1), memory.best[2]
    out[8] = ng.duplicate_lines(cps, n, 1, True, cls, memory.keys, memory.counts)[2] / max(n - newlines, 1)


@kernel
def _repetition_stats(out, n, count, memory):
    cps, cls, keys, counts = memory.cps, memory.cls, memory.keys, memory.counts
    chars = max(n, 1)
    lo, hi = ng.strip_span(cls, 0, n)
    total, duplicates, repeated = ng.duplicate_lines(cps[lo:hi], hi - lo, 2, False, cls, keys, counts)
    out[0], out[1] = duplicates / max(total, 1), repeated / chars
    total, duplicates, repeated = ng.duplicate_lines(cps, n, 1, False, cls, keys, counts)
    out[2], out[3] = duplicates / max(total, 1), repeated / chars
    ng.repetition(memory.hashes, memory.lengths, count, 1.0, keys, counts, memory.firsts, out[4:13])
    out[4:13] /= chars


@kernel
def _stop_word(hashes, value):
    for k in range(len(hashes)):
        if hashes[k] == value:
            return 1 << k
    return 0


@kernel
def _language_stats(out, n, count, words, languages, row, measured, memory):
    """Words as the language makes them; their statistics."""
    at, keys, counts, newlines = LANGUAGE, memory.keys, memory.counts, out[WORDS + 6] * max(count, 1)
    units = languages.units[row]
    if languages.elision[row]:
        count = split_words(memory.cps, memory.cls, n, memory.starts, memory.ends, words.abbreviations, words.units,
                            True)  # fmt: skip
        measured = False
    stops, letters = 0, 0
    total, proper, alpha = 0.0, 0.0, 0.0
    first, last = languages.bounds[row], languages.bounds[row + 1]
    for w in range(count):
        a, b = memory.starts[w], memory.ends[w]
        every, some = memory.cls[a], memory.cls[a]
        for i in range(a + 1, b):
            every &= memory.cls[i]
            some |= memory.cls[i]
        memory.hashes[w], memory.lengths[w] = hash_span(memory.cps, a, b), b - a
        weight = 1 / units if memory.cls[a] & (CJK | CLUSTER) else 1.0
        total += weight
        alpha += weight if some & ALPHA else 0.0
        if not every & MARK:
            proper += weight
            letters += b - a
        joined = min(count, w + JOINED) if units > 1 else w + 1  # a stop word may be several of our words
        for end in range(w, joined):
            if end > w and memory.starts[end] != memory.ends[end - 1]:
                break
            stops |= _stop_word(languages.stop_words[first:last], hash_span(memory.cps, a, memory.ends[end]))
    per_word = 1 / total if total > 0 else 1.0
    out[at], out[at + 1], out[at + 2] = proper, letters / proper if proper > 0 else 0.0, alpha * per_word
    out[at + 3], out[at + 4] = _ones(stops), newlines * per_word
    if measured and units == 1:
        out[at + 5 : at + 14] = out[REPETITION + 4 : REPETITION + 13]
        return
    ng.repetition(memory.hashes, memory.lengths, count, units, keys, counts, memory.firsts, out[at + 5 : at + 14])
    out[at + 5 : at + 14] /= max(n, 1)


@kernel
def _covered_stats(out, n, count, memory):
    """Gopher's fractions as DCLM reads them: of the characters in words, first occurrences counted too."""
    keys, counts = memory.keys, memory.counts
    for k in range(2):
        total, repeated, chars, repeated_chars = ng.covered_lines(memory.cps, n, 1 + k, memory.cls, keys, counts)
        out[2 * k], out[2 * k + 1] = repeated / max(total, 1), repeated_chars / max(chars, 1)
    proper, chars = 0, 0
    for w in range(count):  # words of only punctuation move out
        if not memory.marks[w] & WORD_MARKS:
            memory.hashes[proper], memory.lengths[proper] = memory.hashes[w], memory.lengths[w]
            chars += memory.lengths[w]
            proper += 1
    for k in range(3):
        often, size = ng.top_ngram(memory.hashes, memory.lengths, proper, 2 + k, keys, counts, memory.firsts, 0, True)
        out[4 + k] = min(1.0, often * size / max(chars, 1)) if often > 1 else 0.0
    for k in range(6):
        covered = ng.covered_ngram_chars(memory.hashes, memory.lengths, proper, 5 + k, keys, counts)
        out[7 + k] = covered / max(chars, 1)
