"""The tables of rules: every rule set, each threshold beside its source.

The one choice that matters: a published set keeps its published numbers, and what is our own choice says so and why.
Source: beside each table; `docs/filters.md` lists them for readers.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from filters.rules import BY_LANGUAGE, Limit, Rule


def _group(name: str, *rules: tuple[str, str, Limit, Limit]) -> tuple[Rule, ...]:
    return tuple(Rule(f"{name}.{rule}", stat, low, high) for rule, stat, low, high in rules)


# Gopher, arXiv:2112.11446, section A1.1 (quality) and table A1 (repetition).
GOPHER_QUALITY = _group(
    "gopher_quality",
    ("word_count", "words", 50, 100_000),
    ("word_length", "word_length", 3, 10),
    ("hashes", "hashes", None, 0.1),
    ("ellipses", "ellipses", None, 0.1),
    ("bullet_lines", "bullet_lines", None, 0.9),
    ("ellipsis_lines", "ellipsis_lines", None, 0.3),
    ("alpha_words", "alpha_words", 0.8, None),
    ("stop_words", "stop_words", 2, None),
)
GOPHER_REPETITION = _group(
    "gopher_repetition",
    ("empty", "chars", 1, None),
    ("dup_para_frac", "paragraph_frac", None, 0.30),
    ("dup_para_char_frac", "paragraph_chars", None, 0.20),
    ("dup_line_frac", "line_frac", None, 0.30),
    ("dup_line_char_frac", "line_chars", None, 0.20),
    ("top_2_gram", "top_2_gram", None, 0.20),
    ("top_3_gram", "top_3_gram", None, 0.18),
    ("top_4_gram", "top_4_gram", None, 0.16),
    ("dup_5_gram", "dup_5_gram", None, 0.15),
    ("dup_6_gram", "dup_6_gram", None, 0.14),
    ("dup_7_gram", "dup_7_gram", None, 0.13),
    ("dup_8_gram", "dup_8_gram", None, 0.12),
    ("dup_9_gram", "dup_9_gram", None, 0.11),
    ("dup_10_gram", "dup_10_gram", None, 0.10),
)
# C4, JMLR 21/20-074 and its reference code: a page with lorem ipsum or a curly bracket in a line that the line rules
# keep is dropped, and so is one with fewer than five sentences in such lines.
C4 = _group(
    "c4",
    ("lorem_ipsum", "terminal_lorem_ipsum", None, 0),
    ("curly_bracket", "terminal_curly_bracket", None, 0),
    ("sentences", "terminal_sentences", 5, None),
)
# FineWeb, arXiv:2406.17557, ran C4 without the rule that a line must end in terminal punctuation.
C4_FINEWEB = _group(
    "c4_fineweb",
    ("lorem_ipsum", "lorem_ipsum", None, 0),
    ("curly_bracket", "curly_bracket", None, 0),
    ("sentences", "sentences", 5, None),
)
C4_PARAGRAPH = _group("c4_paragraph", ("long_lines", "third_longest_line", 200, None))  # mC4: 3 lines of 200 chars
FINEWEB = _group(
    "fineweb",
    ("empty", "lines", 1, None),
    ("line_punct", "line_punct", 0.12, None),
    ("short_lines", "short_lines", None, 0.67),
    ("line_chars", "fineweb_line_chars", None, 0.01),
    ("newlines", "newlines", None, 0.3),
)
# The Stack and StarCoder, arXiv:2305.06161, section 3.1: longest line 1000, mean line 100, a quarter alphanumeric.
CODE = _group(
    "code",
    ("empty", "lines", 1, None),
    ("longest_line", "longest_line", None, 1000),
    ("mean_line", "mean_line", None, 100),
    ("alphanumeric", "alphanumeric", 0.25, None),
    # The Stack v2, arXiv:2402.19173: 100,000 lines, a quarter letters, no generated files, half of a file or a run of
    # 1024 characters in base64 or hexadecimal; StarCoder: at most 80 % comments.
    ("lines", "lines", None, 100_000),
    ("letters", "letters", 0.25, None),
    ("generated", "generated_marks", None, 0),
    ("encoded", "encoded_chars", None, 0.5),
    ("longest_encoded", "longest_encoded", None, 1024),
    ("comments", "comment_chars", None, 0.8),
)


def _relaxed(
    rules: tuple[Rule, ...], group: str, without: tuple[str, ...] = (), times: float = 1.0,
    limits: Mapping[str, tuple[Limit, Limit]] = MappingProxyType({}),
) -> tuple[Rule, ...]:  # fmt: skip
    """A copy of a group under another name: some rules left out, some limits replaced, upper limits multiplied."""
    changed = []
    for rule in rules:
        short = rule.name.split(".")[1]
        high = rule.high if rule.high is None or isinstance(rule.high, str) else round(rule.high * times, 4)
        low, high = limits.get(short, (rule.low, high))
        if short not in without:
            changed.append(replace(rule, name=f"{group}.{short}", low=low, high=high))
    return tuple(changed)


# Reference pages are lists of signatures: short lines, many symbols and much repetition are their nature. Own choice:
# half of the words may lack letters, one stop word is enough, limits of repetition are half as high again,
# and lines may repeat (rules and headings do), as long as their characters do not.
REFERENCE = (
    *_relaxed(
        GOPHER_REPETITION,
        "reference",
        times=1.5,
        limits={"dup_line_frac": (None, 0.7), "dup_para_frac": (None, 0.7)},
    ),
    *_relaxed(
        GOPHER_QUALITY,
        "reference",
        without=("bullet_lines", "ellipses", "ellipsis_lines"),
        limits={
            "word_count": (30, 200_000),
            "word_length": (2, 15),
            "alpha_words": (0.5, None),
            "stop_words": (1, None),
        },
    ),
)
# Chinese: words are characters, so that ten of them are about six English words. Own choice: repetition is looked at
# from 8-grams on, with the limits that Gopher has for 5- to 7-grams of words, which are about as long; the most
# frequent n-gram counts its words with spaces between, which makes n characters 2n - 1, so its limits grow with that;
# half of the page must be Han or Kana.
WEB_ZH = (
    *_relaxed(
        GOPHER_REPETITION,
        "web_zh",
        without=("dup_5_gram", "dup_6_gram", "dup_7_gram"),
        limits={
            "top_2_gram": (None, 0.30),
            "top_3_gram": (None, 0.30),
            "top_4_gram": (None, 0.28),
            "dup_8_gram": (None, 0.15),
            "dup_9_gram": (None, 0.14),
            "dup_10_gram": (None, 0.13),
        },
    ),
    *_group(
        "web_zh",
        ("word_count", "words", 50, 100_000),
        ("hashes", "hashes", None, 0.1),
        ("ellipses", "ellipses", None, 0.1),
        ("bullet_lines", "bullet_lines", None, 0.9),
        ("ellipsis_lines", "ellipsis_lines", None, 0.3),
        ("alpha_words", "alpha_words", 0.6, None),
        ("cjk", "cjk", 0.5, None),
        ("lorem_ipsum", "lorem_ipsum", None, 0),
        ("line_punct", "line_punct", 0.12, None),
        ("line_chars", "fineweb_line_chars", None, 0.1),  # FineWeb-2's 0.1; its English value is 0.01
        ("newlines", "newlines", None, 0.3),
    ),
)
PROSE = (*GOPHER_REPETITION, *_relaxed(GOPHER_QUALITY, "gopher_quality", limits={"word_count": (50, None)}))

# Books: chapters of thousands of words, with tables of contents (dots) and page numbers. Own choice: 500 words at
# least, no upper limit, and verse repeats itself.
BOOKS = (
    *_relaxed(GOPHER_REPETITION, "books", times=1.25),
    *_relaxed(
        GOPHER_QUALITY,
        "books",
        limits={"word_count": (500, None), "alpha_words": (0.7, None)},
    ),
)
# Papers: formulas, citations and tables. Own choice: six words in ten hold a letter, phrases come back, longer words.
PAPERS = (
    *_relaxed(GOPHER_REPETITION, "papers", times=1.5),
    *_relaxed(
        GOPHER_QUALITY,
        "papers",
        without=("hashes",),
        limits={"word_count": (50, None), "word_length": (2.5, 12), "alpha_words": (0.6, None)},
    ),
)
# Mathematics, after OpenWebMath (arXiv:2310.06786) and FineMath: C4's curly brackets would drop LaTeX, so they are not
# looked at. Own choice: 3 % of the visible characters are in formulas, commands, digits or signs.
MATH = (
    *_relaxed(GOPHER_REPETITION, "math", times=1.5),
    *_group(
        "math",
        ("word_count", "words", 20, None),
        ("word_length", "word_length", 1.5, 12),
        ("alpha_words", "alpha_words", 0.4, None),
        ("stop_words", "stop_words", 1, None),
        ("density", "math_chars", 0.03, None),
    ),
)
# Gopher's repetition as DCLM (arXiv:2406.11794) reads the paper: first occurrences count as duplicates too, of equally
# frequent n-grams the longest is the top one, and fractions are of the characters in words.
DCLM_REPETITION = _group(
    "dclm_repetition",
    ("empty", "chars", 1, None),
    ("dup_line_frac", "covered_line_frac", None, 0.30),
    ("dup_para_frac", "covered_paragraph_frac", None, 0.30),
    ("dup_line_char_frac", "covered_line_chars", None, 0.20),
    ("dup_para_char_frac", "covered_paragraph_chars", None, 0.20),
    *((f"{name}_gram", f"covered_{name}_gram", None, high) for name, high in (
        ("top_2", 0.20), ("top_3", 0.18), ("top_4", 0.16), ("dup_5", 0.15), ("dup_6", 0.14), ("dup_7", 0.13),
        ("dup_8", 0.12), ("dup_9", 0.11), ("dup_10", 0.10))),
)  # fmt: skip
# FineWeb-2, arXiv:2506.20920: the order of its pipeline, thresholds and stop words of the document's language.
FINEWEB2 = _group(
    "fineweb2",
    ("empty", "chars", 1, None),
    ("dup_line_frac", "line_frac", None, BY_LANGUAGE),
    *((f"top_{n}_gram", f"language_top_{n}_gram", None, BY_LANGUAGE) for n in range(2, 5)),
    *((f"dup_{n}_gram", f"language_dup_{n}_gram", None, BY_LANGUAGE) for n in range(5, 11)),
    ("line_punct", "line_punct", BY_LANGUAGE, None),
    ("line_chars", "fineweb_line_chars", None, 0.1),  # 0.01 in FineWeb
    ("newlines", "language_newlines", None, BY_LANGUAGE),
    ("word_count", "language_words", 50, 100_000),
    ("word_length", "language_word_length", BY_LANGUAGE, BY_LANGUAGE),
    ("hashes", "hashes", None, 0.1),
    ("ellipses", "ellipses", None, 0.1),
    ("bullet_lines", "bullet_lines", None, 0.9),
    ("ellipsis_lines", "ellipsis_lines", None, 0.3),
    ("alpha_words", "language_alpha_words", BY_LANGUAGE, None),
    ("stop_words", "language_stop_words", BY_LANGUAGE, None),
)
# C4 for Chinese: lines hold no spaces, so that C4's three words are ten characters; sentences end in full-width marks.
# Own choice: half of the lines may be boilerplate.
C4_ZH = _group(
    "c4_zh",
    ("sentences", "zh_sentences", 5, None),
    ("boilerplate_lines", "zh_boilerplate_lines", None, 0.5),
    ("stop_words", "zh_stop_words", 2, None),
    ("lorem_ipsum", "lorem_ipsum", None, 0),
)

RULE_SETS: Mapping[str, tuple[Rule, ...]] = {
    "none": (),
    "gopher_quality": GOPHER_QUALITY,
    "gopher_repetition": GOPHER_REPETITION,
    "dclm_repetition": DCLM_REPETITION,
    "c4": C4,
    "c4_fineweb": C4_FINEWEB,
    "c4_paragraph": C4_PARAGRAPH,
    "c4_zh": C4_ZH,
    "fineweb": FINEWEB,
    "fineweb2": FINEWEB2,
    "code": CODE,
    "math": MATH,
    "books": BOOKS,
    "papers": PAPERS,
    "web_en": (*GOPHER_REPETITION, *GOPHER_QUALITY, *C4_FINEWEB, *FINEWEB),  # the order of FineWeb's own pipeline
    "web_zh": WEB_ZH,
    "reference": REFERENCE,
    "prose": PROSE,
}
"""Every rule set by the name that recipes and the command line use."""
