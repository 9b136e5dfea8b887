"""Rule sets: which statistic is compared with which threshold, in which order.

The one choice that matters: a rule is data, so that a rule set is a table that can be read, changed by recipe and cut
again later from the stored values; evaluation is a comparison of columns. Every threshold stands beside its source.
Values outside [low, high] fail; the first failing rule names the reason, in the order of datatrove's blocks.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from filters.verdict import first_failure
from pipelines.errors import RecipeError


@dataclass(frozen=True)
class Rule:
    """One comparison.

    Attributes:
        name: `<group>.<rule>`: the reason, and the attribute column that holds the value.
        stat: which statistic (`text_stats.STATS`) is looked at.
        low: smallest value that passes, or None.
        high: largest value that passes, or None.
    """

    name: str
    stat: str
    low: float | None = None
    high: float | None = None

    def fails(self, values_N: np.ndarray) -> np.ndarray:
        """Bool (N,): where a value lies outside [low, high]."""
        fails_N = np.zeros(len(values_N), bool)
        if self.low is not None:
            fails_N |= values_N < self.low
        if self.high is not None:
            fails_N |= values_N > self.high
        return fails_N


def _group(name: str, *rules: tuple[str, str, float | None, float | None]) -> tuple[Rule, ...]:
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
)


def _relaxed(
    rules: tuple[Rule, ...], group: str, without: tuple[str, ...] = (), times: float = 1.0,
    limits: Mapping[str, tuple[float | None, float | None]] = MappingProxyType({}),
) -> tuple[Rule, ...]:  # fmt: skip
    """A copy of a group under another name: some rules left out, some limits replaced, upper limits multiplied."""
    changed = []
    for rule in rules:
        short = rule.name.split(".")[1]
        high = round(rule.high * times, 4) if rule.high is not None else None
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

RULE_SETS: Mapping[str, tuple[Rule, ...]] = {
    "none": (),
    "gopher_quality": GOPHER_QUALITY,
    "gopher_repetition": GOPHER_REPETITION,
    "c4": C4,
    "c4_fineweb": C4_FINEWEB,
    "c4_paragraph": C4_PARAGRAPH,
    "fineweb": FINEWEB,
    "code": CODE,
    "web_en": (*GOPHER_REPETITION, *GOPHER_QUALITY, *C4_FINEWEB, *FINEWEB),  # the order of FineWeb's own pipeline
    "web_zh": WEB_ZH,
    "reference": REFERENCE,
    "prose": PROSE,
}
"""Every rule set by the name that recipes and the command line use."""


def rule_set(name: str, thresholds: Mapping[str, float | None] | None = None) -> tuple[Rule, ...]:
    """A rule set, with thresholds changed.

    Args:
        name: key of `RULE_SETS`.
        thresholds: `<group>.<rule>.low` or `.high` -> value; None switches that side off.

    Raises:
        RecipeError: unknown rule set or threshold; names the nearest ones.
    """
    if name not in RULE_SETS:
        raise RecipeError(f"no rule set {name!r}; {_nearest(name, RULE_SETS)}")
    rules = {rule.name: rule for rule in RULE_SETS[name]}
    for key, value in (thresholds or {}).items():
        rule, _, side = key.rpartition(".")
        if rule not in rules or side not in ("low", "high"):
            valid = [f"{r}.{s}" for r in rules for s in ("low", "high")]
            raise RecipeError(f"rule set {name!r} has no threshold {key!r}; {_nearest(key, valid)}")
        rules[rule] = replace(rules[rule], low=value) if side == "low" else replace(rules[rule], high=value)
    return tuple(rules.values())


def _nearest(name: str, valid: Mapping | list[str]) -> str:
    near = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(sorted(valid))}"


def judge(rules: tuple[Rule, ...], stats: Mapping[str, np.ndarray], rows: int) -> pa.Array:
    """Apply rules in order.

    Args:
        rules: of one rule set.
        stats: name -> float64 (rows,), from `text_stats`.
        rows: number of documents.

    Returns:
        string (rows,): null keeps, else the name of the first failing rule.
    """
    return first_failure([rule.fails(stats[rule.stat]) for rule in rules], [rule.name for rule in rules], rows)
