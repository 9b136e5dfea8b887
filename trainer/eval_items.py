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
from pipelines.files import write_atomically

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


def load_items(file: Path) -> tuple[list[EvalItem], dict[str, int]]:
    """Read an item file, `.jsonl` or `.jsonl.gz`; a bad row is counted, never raised.

    Args:
        file: rows have `query`, `choices`, `gold`, and optionally `id` and `benchmark`, which default to the line's
            number and the file's name. A row without `benchmark` is brought to the form with `Answer:`.

    Returns:
        The items, and reason -> rows that could not be used.

    Raises:
        DataError: the file cannot be read.
    """
    items: list[EvalItem] = []
    rejected: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    name = file.name.removesuffix(".gz").removesuffix(".jsonl")
    for number, line in _lines(file):
        found = _item_of(line, name, number)
        if isinstance(found, str):
            rejected[found] += 1
        elif (found.benchmark, found.id) in seen:
            rejected["duplicate_id"] += 1
        else:
            seen.add((found.benchmark, found.id))
            items.append(found)
    return items, dict(sorted(rejected.items()))


def load_benchmarks(files: Sequence[Path]) -> tuple[dict[str, list[EvalItem]], dict[str, dict[str, int]]]:
    """Read item files and group them.

    Returns:
        Benchmark -> items, and file name -> reason -> rows that could not be used.

    Raises:
        DataError: a file cannot be read or has no usable item.
    """
    groups: dict[str, list[EvalItem]] = {}
    rejected: dict[str, dict[str, int]] = {}
    for file in files:
        items, reasons = load_items(file)
        if not items:
            raise DataError(
                f"{file}: no usable item ({reasons or 'it is empty'}); expected lines with query, choices, gold"
            )
        if reasons:
            rejected[file.name] = reasons
        for item in items:
            groups.setdefault(item.benchmark, []).append(item)
    return groups, rejected


def write_items(file: Path, items: Sequence[EvalItem]) -> None:
    """Write items, one line each."""
    write_atomically(file, "".join(item.to_json() + "\n" for item in items).encode())


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
