"""The heuristic filter: Gopher, C4, FineWeb and code rules over a stream of documents.

The one choice that matters: all statistics of a batch come from one compiled pass, and every rule's value is stored
as an attribute `<group>.<rule>`, for kept and dropped documents alike, so that thresholds can be cut again without
reading the text. A filter decides on documents; C4's editing (leaving out lines) happens only where `clean_lines` asks.
Source: `rules.py` and `text_stats.py`.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from filters.by_domain import distinct, split_by_settings
from filters.rules import Rule, judge, rule_set
from pipelines.block import Block
from pipelines.document import DROPPED, with_column, with_fate
from pipelines.execute import transform
from pipelines.recipe import Section
from pipelines.store import Outcome

CITATIONS = r"\[\d*\]|\[edit\]|\[citation needed\]"  # C4's reference code removes them from the lines that it keeps


class FilterSettings(Section):
    """Which rules decide.

    Attributes:
        rules: name of a rule set (`rules.RULE_SETS`).
        thresholds: `<group>.<rule>.low` or `.high` -> value; null switches that side off.
        clean_lines: after C4's rules have judged, leave out the lines that they refuse (short ones, policy notices,
            javascript warnings); FineWeb's rules then judge what is left, as in its own pipeline.
    """

    rules: str
    thresholds: dict[str, float | None] = Field(default_factory=dict)
    clean_lines: bool = False

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return {"rules": value} if isinstance(value, str) else value

    def resolved(self) -> tuple[Rule, ...]:
        """The rules with their thresholds.

        Raises:
            RecipeError: unknown rule set or threshold.
        """
        return rule_set(self.rules, self.thresholds)


class _Measuring(Block):
    """A block that keeps the kernels' lookup arrays, built at the first batch and never pickled."""

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_lexicon"}

    def _words(self):
        from filters.text_stats import lexicon

        if "_lexicon" not in self.__dict__:
            self._lexicon = lexicon()
        return self._lexicon


class Heuristics(_Measuring):
    """Drop documents that fail a rule, with the rule's name as the reason; add every rule's value as an attribute.

    Args:
        settings: one for all documents, or by domain (`*`: the rest).

    Raises:
        RecipeError: unknown rule set or threshold.
    """

    name = "heuristics"

    def __init__(self, settings: FilterSettings | Mapping[str, FilterSettings]) -> None:
        super().__init__()
        self.settings = settings
        self.columns = list(dict.fromkeys(rule.name for one in distinct(settings) for rule in one.resolved()))

    def apply(self, batch: pa.Table) -> pa.Table:
        """Judge a batch."""
        values = {name: np.full(batch.num_rows, np.nan) for name in self.columns}
        reasons = np.full(batch.num_rows, None, object)
        text = batch["text"].combine_chunks()
        edits: list[tuple[pa.Array, pa.Array]] = []
        for settings, rows in split_by_settings(batch, self.settings):
            part = text.take(rows)
            part, verdicts = self._judge(part, settings, np.asarray(rows), values)
            reasons[np.asarray(rows)] = verdicts.to_numpy(zero_copy_only=False)
            if settings.clean_lines:
                edits.append((rows, part))
        for name, column in values.items():
            batch = with_column(batch, name, pa.array(column, pa.float64(), from_pandas=True))
        batch = with_fate(batch, DROPPED, pa.array(reasons, pa.string()))
        return _with_edits(batch, edits) if edits else batch

    def _judge(
        self, text: pa.Array, settings: FilterSettings, rows: np.ndarray, values: dict[str, np.ndarray]
    ) -> tuple[pa.Array, pa.Array]:
        """Judge texts by one rule set, writing values; returns the (cleaned) texts and the verdicts."""
        from filters.text_stats import text_stats

        verdicts = pa.nulls(len(text), pa.string())
        for cleaned, rules in groupby(settings.resolved(), lambda rule: settings.clean_lines and _after_c4(rule)):
            chosen = tuple(rules)
            if cleaned:
                text = clean_lines(text, self._words())
            stats = text_stats(text, self._words())
            for rule in chosen:
                values[rule.name][rows] = stats[rule.stat]
            verdicts = pc.coalesce(verdicts, judge(chosen, stats, len(text)))
        if settings.clean_lines and not any(map(_after_c4, settings.resolved())):
            text = clean_lines(text, self._words())
        return text, verdicts


def _after_c4(rule: Rule) -> bool:
    return rule.name.startswith("fineweb.")


def _with_edits(batch: pa.Table, edits: list[tuple[pa.Array, pa.Array]]) -> pa.Table:
    """Put cleaned texts into the rows that live; a dropped document keeps its own text."""
    text = np.array(batch["text"].to_pylist(), object)
    alive = np.asarray(pc.is_null(batch["fate"]))
    for rows, cleaned in edits:
        chosen = alive[np.asarray(rows)]
        text[np.asarray(rows)[chosen]] = np.array(cleaned.to_pylist(), object)[chosen]
    return with_column(batch, "text", pa.array(text, pa.string()))


def clean_lines(text: pa.Array, words=None, need_terminal: bool = False) -> pa.Array:
    """Leave out the lines that C4 refuses, and citations, from every text.

    Args:
        text: string (N,).
        words: lookup arrays (`text_stats.lexicon`), built when not given.
        need_terminal: also leave out lines that do not end in terminal punctuation.

    Returns:
        string (N,): kept lines without the spaces around them, joined by newlines.
    """
    from filters.line_cleaning import kept_lines
    from filters.text_stats import lexicon

    kept = kept_lines(text, words or lexicon(), need_terminal)
    without = pc.replace_substring_regex(kept, CITATIONS, "")
    return pc.utf8_trim_whitespace(without)


class CleanLines(_Measuring):
    """Edit documents as C4 does: leave out refused lines and citations.

    A document of which nothing is left is dropped with the reason `clean_lines.empty`.

    Args:
        need_terminal: also leave out lines without terminal punctuation (C4 does, FineWeb does not).
    """

    name = "clean lines"

    def __init__(self, need_terminal: bool = False) -> None:
        super().__init__()
        self.need_terminal = need_terminal

    def apply(self, batch: pa.Table) -> pa.Table:
        """Edit a batch."""
        cleaned = clean_lines(batch["text"].combine_chunks(), self._words(), self.need_terminal)
        empty = pc.equal(cleaned, "")
        batch = with_column(batch, "text", pc.if_else(empty, batch["text"].combine_chunks(), cleaned))
        reasons = pc.if_else(empty, pa.scalar("clean_lines.empty"), pa.scalar(None, pa.string()))
        return with_fate(batch, DROPPED, reasons)


def filter_documents(
    files: Sequence[Path],
    work: Path,
    settings: FilterSettings | Mapping[str, FilterSettings],
    workers: int = 1,
) -> Outcome:
    """Filter documents by heuristic rules.

    Args:
        files: Parquet documents.
        work: the step's folder; gets `kept/`, `dropped/` (with reason) and `attributes/` (every rule's value).
        settings: one for all documents, or by domain (`*`: the rest).
        workers: processes.

    Returns:
        counts of kept and dropped documents by reason.

    Raises:
        RecipeError: unknown rule set or threshold.
    """
    return Outcome(transform(files, [Heuristics(settings)], work, workers, "filter"))
