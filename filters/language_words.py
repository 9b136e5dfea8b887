"""Languages: how their words are made, which are frequent, and FineWeb-2's thresholds for them.

The one choice that matters: the table is `fineweb2.md`, read by people and by this module, so that documentation and
behaviour cannot differ. A language that is not in it gets the medians of those that are, and no stop words.
Source: FineWeb-2 (arXiv:2506.20920), its published configurations.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filters.text_memory import Languages
from filters.word_split import hash_span

TABLE = Path(__file__).with_name("fineweb2.md")
ELISION = {"fra", "ita", "cat"}  # their stop words hold `l'` and `d'`: an apostrophe ends a word

Limits = tuple[float | None, float | None]


@dataclass(frozen=True)
class LanguageRow:
    """One line of the table.

    Attributes:
        codes: ISO 639-3, the first names the language.
        units: how many of our words make one of the language.
        limits: rule, without its group -> (low, high).
        stop_words: frequent words.
    """

    codes: tuple[str, ...]
    units: float
    limits: Mapping[str, Limits]
    stop_words: tuple[str, ...]


def _row(cells: list[str]) -> LanguageRow:
    codes, units, lines, top, duplicate, punctuated, length, alpha, newlines, stop_words = cells
    shortest, longest = map(float, length.split())
    limits: dict[str, Limits] = {
        "dup_line_frac": (None, float(lines)),
        **{f"top_{2 + n}_gram": (None, float(high)) for n, high in enumerate(top.split())},
        **{f"dup_{5 + n}_gram": (None, float(high)) for n, high in enumerate(duplicate.split())},
        "line_punct": (float(punctuated), None),
        "newlines": (None, float(newlines)),
        "word_length": (shortest, longest),
        "alpha_words": (float(alpha), None),
        "stop_words": (2 if stop_words else None, None),
    }
    return LanguageRow(tuple(codes.split()), float(units), limits, tuple(stop_words.split()))


@functools.cache
def language_rows() -> tuple[LanguageRow, ...]:
    """The table, the row for all other languages first."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    return tuple(_row([cell.strip() for cell in line.strip("|").split("|")]) for line in lines)


@functools.cache
def languages() -> Languages:
    """The table as arrays for the kernels, in its order."""
    rows = language_rows()
    hashes = [[hash_span(np.array([ord(c) for c in word], np.uint32), 0, len(word)) for word in row.stop_words]
              for row in rows]  # fmt: skip
    return Languages(
        np.array([value for row in hashes for value in row], np.uint64),
        np.cumsum([0, *map(len, hashes)]),
        np.array([row.units for row in rows]),
        np.array([row.codes[0] in ELISION for row in rows]),
    )


def rows_of(codes: pa.Array) -> np.ndarray:
    """Which row of the table each document falls under.

    Args:
        codes: string (N,), ISO 639-3, also with a script (`cmn_Hani`); null or unknown falls under the first row.

    Returns:
        int64 (N,).
    """
    names = [code for row in language_rows() for code in row.codes]
    numbers = np.array([number for number, row in enumerate(language_rows()) for _ in row.codes])
    plain = pc.replace_substring_regex(codes.cast(pa.string()), "_.*", "")
    at = pc.fill_null(pc.index_in(plain, pa.array(names)), 0)
    return numbers[np.asarray(at)].astype(np.int64)


def limits_by_row(rule: str) -> tuple[np.ndarray, np.ndarray]:
    """The limits of one of the table's rules.

    Returns:
        float64 (languages,) twice, low and high; NaN where that side is off.
    """
    pairs = [row.limits[rule] for row in language_rows()]
    low, high = (np.array([np.nan if side is None else side for side in sides]) for sides in zip(*pairs, strict=True))
    return low, high
