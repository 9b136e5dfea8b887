"""Rules: which statistic is compared with which threshold, in which order.

The one choice that matters: a rule is data, so that rule sets are tables (`rule_tables.py`) that can be read, changed
by recipe and cut again later from the stored values; evaluation is a comparison of columns.
Values outside [low, high] fail; the first failing rule names the reason, in the order of datatrove's blocks.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from filters.verdict import first_failure
from pipelines.errors import RecipeError

BY_LANGUAGE = "language"
Limit = float | str | None
"""A number, no limit on that side, or what `fineweb2.md` says for the document's language."""


@dataclass(frozen=True)
class Rule:
    """One comparison.

    Attributes:
        name: `<group>.<rule>`: the reason, and the attribute column that holds the value.
        stat: which statistic (`text_stats.STATS`) is looked at.
        low: smallest value that passes.
        high: largest value that passes.
    """

    name: str
    stat: str
    low: Limit = None
    high: Limit = None

    @property
    def needs_language(self) -> bool:
        """Whether its value or a limit depends on the document's language."""
        return BY_LANGUAGE in (self.low, self.high) or self.stat.startswith("language_")

    def fails(self, values_N: np.ndarray, language_N: np.ndarray | None = None) -> np.ndarray:
        """Where a value lies outside [low, high].

        Args:
            values_N: float64 (N,); NaN (not measured) passes.
            language_N: int64 (N,), row of each document's language (`language_words.rows_of`).

        Returns:
            bool (N,).
        """
        low, high = (self._side(side, language_N) for side in (0, 1))
        fails_N = np.zeros(len(values_N), bool)
        if low is not None:
            fails_N |= values_N < low
        if high is not None:
            fails_N |= values_N > high
        return fails_N

    def _side(self, side: int, language_N: np.ndarray | None) -> float | np.ndarray | None:
        """A limit as something to compare with; NaN, where a language has none, fails nothing."""
        limit = (self.low, self.high)[side]
        if not isinstance(limit, str):
            return limit
        from filters.language_words import limits_by_row

        by_row = limits_by_row(self.name.split(".")[1])[side]
        return by_row[0] if language_N is None else by_row[language_N]


def rule_set(names: str | Sequence[str], thresholds: Mapping[str, float | None] | None = None) -> tuple[Rule, ...]:
    """One rule set or several, one after the other, with thresholds changed.

    Args:
        names: keys of `RULE_SETS`; a rule that is in several is asked once.
        thresholds: `<group>.<rule>.low` or `.high` -> value; None switches that side off.

    Raises:
        RecipeError: unknown rule set or threshold; names the nearest ones.
    """
    from filters.rule_tables import RULE_SETS

    names = [names] if isinstance(names, str) else names
    rules: dict[str, Rule] = {}
    for name in names:
        if name not in RULE_SETS:
            raise RecipeError(f"no rule set {name!r}; {_nearest(name, RULE_SETS)}")
        rules |= {rule.name: rule for rule in RULE_SETS[name] if rule.name not in rules}
    for key, value in (thresholds or {}).items():
        rule, _, side = key.rpartition(".")
        if rule not in rules or side not in ("low", "high"):
            valid = [f"{r}.{s}" for r in rules for s in ("low", "high")]
            raise RecipeError(f"rule set {' + '.join(names)!r} has no threshold {key!r}; {_nearest(key, valid)}")
        rules[rule] = replace(rules[rule], low=value) if side == "low" else replace(rules[rule], high=value)
    return tuple(rules.values())


def _nearest(name: str, valid: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(valid), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(sorted(valid))}"


def failures_of(
    rules: Sequence[Rule], values: Mapping[str, np.ndarray], rows: int, language_N: np.ndarray | None = None
) -> list[np.ndarray]:
    """Apply rules: values to failures, without a look at the text.

    Args:
        rules: of one rule set or several.
        values: rule's name -> float64 (rows,).
        rows: number of documents.
        language_N: int64 (rows,), row of each document's language.

    Returns:
        per rule, bool (rows,).
    """
    found = [rule.fails(values[rule.name], language_N) for rule in rules]
    assert all(len(fails_N) == rows for fails_N in found)
    return found


def judge(
    rules: Sequence[Rule], stats: Mapping[str, np.ndarray], rows: int, language_N: np.ndarray | None = None
) -> pa.Array:
    """Judge by statistics.

    Args:
        rules: in the order in which they are asked.
        stats: statistic -> float64 (rows,), from `text_stats`.
        rows: number of documents.
        language_N: int64 (rows,), row of each document's language.

    Returns:
        string (rows,): null keeps, else the name of the first failing rule.
    """
    values = {rule.name: stats[rule.stat] for rule in rules}
    return first_failure(failures_of(rules, values, rows, language_N), [rule.name for rule in rules], rows)
