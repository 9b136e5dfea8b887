"""Multiple-choice items: one line of JSON each, with the text that is scored written out in full.

A choice is stored as it continues the query, leading space or newline included, so that nothing is guessed when it is
scored. Local benchmark files in the form of llm-foundry (query, choices, gold) are brought to this form on loading.
"""

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import DataError

ANSWER = "Answer:"


@dataclass(frozen=True)
class EvalItem:
    """One question with its candidate continuations.

    Attributes:
        id: unique within its benchmark.
        benchmark: the set that it belongs to.
        query: the text before; never empty.
        choices: what may follow the query, leading white space included; two or more.
        gold: index of the right choice.
    """

    id: str
    benchmark: str
    query: str
    choices: tuple[str, ...]
    gold: int

    def to_json(self) -> str:
        """The item's line, without the line feed."""
        row = {"id": self.id, "benchmark": self.benchmark, "query": self.query,
               "choices": list(self.choices), "gold": self.gold}  # fmt: skip
        return json.dumps(row, ensure_ascii=False)


@dataclass(frozen=True)
class ItemSet:
    """What a list of item files gave.

    Attributes:
        items: the usable ones, in the order of the files.
        rejected: benchmark -> reason -> rows that could not be used.
    """

    items: tuple[EvalItem, ...]
    rejected: dict[str, dict[str, int]]

    def benchmarks(self) -> dict[str, list[EvalItem]]:
        """The items by benchmark, in order of first appearance."""
        groups: dict[str, list[EvalItem]] = {}
        for item in self.items:
            groups.setdefault(item.benchmark, []).append(item)
        return groups


def load_items(files: Sequence[Path]) -> ItemSet:
    """Read item files, `.jsonl` or `.jsonl.gz`; a bad row is counted, never raised.

    Args:
        files: rows have `query`, `choices`, `gold`, and optionally `id` and `benchmark`, which default to the line's
            number and the file's name.

    Raises:
        DataError: a file cannot be read, or no row of all files is usable.
    """
    items: list[EvalItem] = []
    rejected: dict[str, Counter[str]] = {}
    seen: set[tuple[str, str]] = set()
    for file in files:
        name = file.name.removesuffix(".gz").removesuffix(".jsonl")
        for number, line in _lines(file):
            found = _item_of(line, name, number)
            if isinstance(found, EvalItem) and (found.benchmark, found.id) in seen:
                found = "duplicate_id"
            if isinstance(found, str):
                rejected.setdefault(name, Counter())[found] += 1
                continue
            seen.add((found.benchmark, found.id))
            items.append(found)
    if files and not items:
        raise DataError(
            f"no usable item in {', '.join(f.name for f in files)}; expected lines with query, choices, gold"
        )
    return ItemSet(tuple(items), {name: dict(sorted(reasons.items())) for name, reasons in sorted(rejected.items())})


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of every line that is not blank."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError) as error:
        raise DataError(f"{file} cannot be read as items: {error}") from None


def _item_of(line: bytes, name: str, number: int) -> EvalItem | str:
    """The item in a line, or why there is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return "not_json"
    if not isinstance(row, dict) or not {"query", "choices", "gold"} <= row.keys():
        return "missing_field"
    query, choices, gold = row["query"], row["choices"], row["gold"]
    if (reason := _fault(query, choices, gold)) is not None:
        return reason
    if "benchmark" not in row:
        query, choices = _written_out(query, choices)
    return EvalItem(str(row.get("id", number)), str(row.get("benchmark", name)), query, tuple(choices), gold)


def _fault(query: Any, choices: Any, gold: Any) -> str | None:
    if not isinstance(query, str) or not query.strip():
        return "empty_query"
    if not isinstance(choices, list) or len(choices) < 2:
        return "fewer_than_two_choices"
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        return "empty_choice"
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(choices):
        return "gold_out_of_range"
    return None


def _written_out(query: str, choices: list[str]) -> tuple[str, list[str]]:
    """Give a bare question its `Answer:` and each choice the space before it, as the evaluation harnesses do."""
    query = query.rstrip()
    if not query.endswith(ANSWER):
        query = f"{query}\n{ANSWER}"
    return query, [f" {choice.strip()}" for choice in choices]
