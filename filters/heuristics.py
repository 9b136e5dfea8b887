"""The heuristic filter: rules over a stream of documents, measured once or taken from values stored before.

The one choice that matters: all statistics of a batch come from one compiled pass, and every rule's value is stored
as an attribute `<group>.<rule>`, for kept and dropped documents alike, so that thresholds can be cut again without
reading the text. A filter decides on documents; C4's editing (leaving out lines) happens only where `clean_lines` asks.
Source: `rules.py`, `rule_tables.py` and `text_stats.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from filters.by_domain import REST, distinct, split_by_settings
from filters.rule_report import FAILED, LANGUAGE, rule_report
from filters.rules import Rule, failures_of, rule_set
from filters.stored_values import StoredValues
from filters.verdict import first_failure
from pipelines.block import Block
from pipelines.document import DROPPED, with_column, with_fate
from pipelines.errors import DataError
from pipelines.execute import parts_of, transform
from pipelines.recipe import Section
from pipelines.store import Outcome

CITATIONS = r"\[\d*\]|\[edit\]|\[citation needed\]"  # C4's reference code removes them from the lines that it keeps


class FilterSettings(Section):
    """Which rules decide.

    Attributes:
        rules: names of rule sets (`rule_tables.RULE_SETS`), asked one after the other: a name, names with commas, or a
            list.
        thresholds: `<group>.<rule>.low` or `.high` -> value; null switches that side off.
        clean_lines: after C4's rules have judged, leave out the lines that they refuse (short ones, policy notices,
            javascript warnings); FineWeb's rules then judge what is left, as in its own pipeline.
        measure: more rule sets whose values are stored, and which decide nothing.
    """

    rules: str | list[str]
    measure: str | list[str] = Field(default_factory=list)
    thresholds: dict[str, float | None] = Field(default_factory=dict)
    clean_lines: bool = False

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: object) -> object:
        return {"rules": value} if isinstance(value, (str, list)) else value

    @field_validator("rules", "measure", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, (list, tuple)):
            return value
        return [part.strip() for name in names for part in str(name).split(",") if part.strip()]

    @field_validator("thresholds", mode="before")
    @classmethod
    def _dotted(cls, value: object) -> object:
        """`--set thresholds.gopher_quality.word_count.low=20` arrives as sections within sections."""
        return _flat(value) if isinstance(value, Mapping) else value

    def resolved(self) -> tuple[Rule, ...]:
        """The rules with their thresholds, then those that are only measured.

        Raises:
            RecipeError: unknown rule set or threshold.
        """
        rules = rule_set(self.rules, self.thresholds)
        names = {rule.name for rule in rules}
        return (*rules, *(replace(r, low=None, high=None) for r in rule_set(self.measure) if r.name not in names))


class FilterVerbSettings(FilterSettings):
    """The same for a verb on files.

    Attributes:
        domains: domain (or its parent) -> other settings for its documents.
    """

    domains: dict[str, FilterSettings] = Field(default_factory=dict)

    def by_domain(self) -> FilterSettings | dict[str, FilterSettings]:
        """What `filter_documents` takes."""
        own = FilterSettings.model_validate(self.model_dump(exclude={"domains"}))
        return self.domains | {REST: own} if self.domains else own


def _flat(tree: Mapping, above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return flat


class _Measuring(Block):
    """A block that keeps the kernels' lookup arrays, built at the first batch and never pickled."""

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_lexicon"}

    def _words(self):
        from filters.text_memory import lexicon

        if "_lexicon" not in self.__dict__:
            self._lexicon = lexicon()
        return self._lexicon


class Heuristics(_Measuring):
    """Drop documents that fail a rule, with the first such rule's name as the reason; add attributes.

    Attributes are every rule's value, `filter.failed` (all rules that fail) and, where a rule depends on it,
    `filter.language` (identified for documents that have none).

    Args:
        settings: one for all documents, or by domain (`*`: the rest).
        stored: take the values from columns that `StoredValues` added instead of measuring the text.

    Raises:
        RecipeError: unknown rule set or threshold.
    """

    name = "heuristics"

    def __init__(self, settings: FilterSettings | Mapping[str, FilterSettings], stored: bool = False) -> None:
        super().__init__()
        self.settings = settings
        self.stored = stored
        self.columns = list(dict.fromkeys(rule.name for one in distinct(settings) for rule in one.resolved()))
        self.needs_language = any(rule.needs_language for one in distinct(settings) for rule in one.resolved())

    def apply(self, batch: pa.Table) -> pa.Table:
        """Judge a batch."""
        rows_in = batch.num_rows
        if self.needs_language:
            batch = with_column(batch, LANGUAGE, _language(batch))
        values = {name: np.full(rows_in, np.nan) for name in self.columns}
        failed = {name: np.zeros(rows_in, bool) for name in self.columns}
        reasons = np.full(rows_in, None, object)
        edits: list[tuple[pa.Array, pa.Array]] = []
        for settings, rows in split_by_settings(batch, self.settings):
            part, at = batch.take(rows), np.asarray(rows)
            rules = settings.resolved()
            texts, found = self._stored(part, rules, settings) if self.stored else self._measured(part, rules, settings)
            failures = failures_of(rules, found, len(rows), _language_rows(part) if self.needs_language else None)
            for rule, fails in zip(rules, failures, strict=True):
                values[rule.name][at], failed[rule.name][at] = found[rule.name], fails
            reasons[at] = first_failure(failures, [rule.name for rule in rules], len(rows)).to_numpy(False)
            if settings.clean_lines:
                edits.append((rows, texts))
        for name, column in values.items():
            batch = with_column(batch, name, pa.array(column, pa.float64(), from_pandas=True))
        batch = with_column(batch, FAILED, _names_of(failed, rows_in))
        batch = with_fate(batch, DROPPED, pa.array(reasons, pa.string()))
        return _with_edits(batch, edits) if edits else batch

    def _measured(
        self, part: pa.Table, rules: Sequence[Rule], settings: FilterSettings
    ) -> tuple[pa.Array, dict[str, np.ndarray]]:
        """Measure what the rules look at; returns the (cleaned) texts and the values."""
        from filters.text_stats import text_stats

        text = part["text"].combine_chunks()
        found: dict[str, np.ndarray] = {}
        extra: dict[str, Any] = {}
        if any(rule.needs_language for rule in rules):
            from filters.language_words import languages

            extra = {"languages": languages(), "language_N": _language_rows(part)}
        cleaned = False
        for after, chosen in groupby(rules, lambda rule: settings.clean_lines and _after_c4(rule)):
            asked = tuple(chosen)
            if after and not cleaned:
                text, cleaned = clean_lines(text, self._words()), True
            stats = text_stats(text, self._words(), {rule.stat for rule in asked}, **extra)
            found |= {rule.name: stats[rule.stat] for rule in asked}
        if settings.clean_lines and not cleaned:
            text = clean_lines(text, self._words())
        return text, found

    def _stored(
        self, part: pa.Table, rules: Sequence[Rule], settings: FilterSettings
    ) -> tuple[pa.Array, dict[str, np.ndarray]]:
        """The same from columns."""
        found = {}
        for rule in rules:
            column = part[rule.name]
            if column.null_count:
                first = part["id"][pc.index(pc.is_null(column), True).as_py()].as_py()
                raise DataError(
                    f"document {first!r} has no value of {rule.name} in the attributes; "
                    "measure it: filter without --from-attributes"
                )
            found[rule.name] = column.to_numpy()
        text = part["text"].combine_chunks()
        return clean_lines(text, self._words()) if settings.clean_lines else text, found


def _language(batch: pa.Table) -> pa.Array:
    """The language of each document: its own, the one stored before, or identified."""
    stated = batch["language"].combine_chunks()
    if LANGUAGE in batch.column_names:
        stated = pc.coalesce(stated, batch[LANGUAGE].combine_chunks())
    if not stated.null_count:
        return stated
    from filters.language_model import identify

    unknown = pc.is_null(stated)
    found = identify(batch["text"].combine_chunks().filter(unknown))[0]
    return pc.replace_with_mask(stated, unknown, pa.array(found, pa.string()))


def _language_rows(part: pa.Table) -> np.ndarray:
    from filters.language_words import rows_of

    return rows_of(part[LANGUAGE].combine_chunks())


def _names_of(failed: Mapping[str, np.ndarray], rows: int) -> pa.Array:
    """Masks by name as one column of lists of names."""
    masks_NR = np.stack(list(failed.values()), axis=1) if failed else np.zeros((rows, 0), bool)
    offsets = np.concatenate([[0], np.cumsum(masks_NR.sum(1))]).astype(np.int32)
    names = pa.array(list(failed), pa.string()).take(pa.array(np.nonzero(masks_NR)[1]))
    return pa.ListArray.from_arrays(pa.array(offsets), names)


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
        words: lookup arrays (`text_memory.lexicon`), built when not given.
        need_terminal: also leave out lines that do not end in terminal punctuation.

    Returns:
        string (N,): kept lines without the spaces around them, joined by newlines.
    """
    from filters.line_cleaning import kept_lines
    from filters.text_memory import lexicon

    kept = kept_lines(text, words or lexicon(), need_terminal)
    without = pc.replace_substring_regex(kept, CITATIONS, "")
    return pc.utf8_trim_whitespace(without)


def attribute_files(folder: Path) -> list[Path]:
    """The attribute files of an earlier filter, given its folder or `attributes/` in it.

    Raises:
        DataError: there are none.
    """
    files = sorted((folder / "attributes").rglob("*.parquet")) or sorted(folder.rglob("*.parquet"))
    if not files:
        raise DataError(f"{folder} holds no attributes/*.parquet; expected the --out of an earlier `loam filter`")
    return files


def filter_documents(
    files: Sequence[Path],
    work: Path,
    settings: FilterSettings | Mapping[str, FilterSettings],
    workers: int = 1,
    attributes: Sequence[Path] = (),
) -> Outcome:
    """Filter documents by heuristic rules.

    Args:
        files: Parquet documents.
        work: the step's folder; gets `kept/`, `dropped/` (with reason), `attributes/` (every rule's value) and
            `report.md` (percentiles and drops of every rule).
        settings: one for all documents, or by domain (`*`: the rest).
        workers: processes.
        attributes: attribute files of an earlier filter over the same documents: their values are judged, and no text
            is measured.

    Returns:
        counts of kept and dropped documents by reason; per rule, how many fail and the percentiles of its values.

    Raises:
        RecipeError: unknown rule set or threshold.
        DataError: the attributes lack a rule or a document.
    """
    judge = Heuristics(settings, stored=bool(attributes))
    blocks: list[Block] = [judge]
    if attributes:
        extra = [LANGUAGE] if judge.needs_language else []
        blocks.insert(0, StoredValues(attributes, parts_of(files), [*extra, *judge.columns]))
    counts = transform(files, blocks, work, workers, "filter")
    return Outcome(counts, {"rules": rule_report(work, judge.columns, counts)})
