"""PPL-pass items: does a model prefer a right chain of thought to the same chain with one thing wrong?

Each question gives up to three items of two choices, the chain and a copy that is corrupted in one way; an item is
passed when the right chain has the lower perplexity (`acc_ppl` of `loam eval`). Unlike answers, preferences change long
before a small model can reason (CCI4.0, arXiv:2506.07463, table 5; its corrupted chains are a model's, these are made
by rule, so that what was changed is known).
"""

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash
from pydantic import Field

from pipelines.errors import DataError
from pipelines.recipe import Section
from pipelines.store import Outcome
from trainer.eval_items import ANSWER, EvalItem, write_items

QUESTIONS = ("question", "query", "problem", "context")
CHAINS = ("chain", "chain_of_thought", "solution", "answer")
PREFIX = "pplpass_"  # of such benchmarks' names; what tells them from questions with answers
CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K's annotations: they repeat each result
NUMBER = re.compile(r"\d+(?:\.\d+)?")
OPERATOR = re.compile(r"(?<=[\w)\]}$ ])([+\-*/×÷])(?=[\w(\[{$ ])")
RESULT = re.compile(r"=\s*[\\$({]*(\d+(?:\.\d+)?)")
OPPOSITE = {"+": "-", "-": "+", "*": "/", "/": "*", "×": "÷", "÷": "×"}


class ChainSettings(Section):
    """Which chains, and how many.

    Attributes:
        files: name -> JSON Lines (.gz too) of questions and chains: `question`, `query`, `problem` or `context`, and
            `chain`, `chain_of_thought`, `solution` or `answer`, the first of each that is there.
        items: questions per file, drawn by hash; null takes all.
        seed: of the draw and of what is corrupted.
    """

    files: dict[str, str] = Field(default_factory=dict)
    items: int | None = Field(default=500, ge=1)
    seed: int = 0


def make_chain_items(files: Mapping[str, Path], work: Path, settings: ChainSettings) -> Outcome:
    """Write `items/pplpass_<name>_<corruption>.jsonl` for the corruptions `number`, `operator` and `order`.

    Args:
        files: as `settings.files`, resolved.
        work: folder to fill.
        settings: how many.

    Returns:
        As metrics, for every benchmark its items, and the rows of each file that were of no use.

    Raises:
        DataError: a file is unreadable, or not one item could be made of it.
    """
    metrics: dict[str, Any] = {}
    for name, file in files.items():
        items, unused = chain_items(file, name, settings)
        if not items:
            raise DataError(f"{file}: no PPL-pass item ({dict(unused)}); expected lines with a question and a chain "
                            f"of several steps, under keys such as question and chain")  # fmt: skip
        for benchmark, group in items.items():
            write_items(work / "items" / f"{benchmark}.jsonl", group)
            metrics[benchmark] = {"items": len(group), "unused": dict(sorted(unused.items()))}
    return Outcome(metrics=metrics)


def chain_items(file: Path, name: str, settings: ChainSettings) -> tuple[dict[str, list[EvalItem]], Counter[str]]:
    """The items of one file by benchmark, and why rows were of no use."""
    unused: Counter[str] = Counter()
    drawn: list[tuple[int, str, str, str]] = []
    for number, row in _rows(file):
        pair = _pair(row)
        if pair is None:
            unused["no_question_or_chain"] += 1
            continue
        identity = f"{name}:{number}"
        drawn.append((xxhash.xxh3_64_intdigest(identity.encode(), seed=settings.seed), identity, *pair))
    items: dict[str, list[EvalItem]] = {}
    for rank, identity, question, chain in sorted(drawn)[: settings.items]:
        query, right = f"Question: {question}\n{ANSWER}", f" {chain}"
        made = 0
        for kind, corrupt in CORRUPTIONS.items():
            wrong = corrupt(chain, rank)
            if wrong is not None and wrong != chain:
                gold = rank >> 7 & 1
                choices = (right, f" {wrong}") if gold == 0 else (f" {wrong}", right)
                benchmark = f"{PREFIX}{name}_{kind}"
                items.setdefault(benchmark, []).append(EvalItem(identity, benchmark, query, choices, gold))
                made += 1
        unused["nothing_to_corrupt"] += not made
    return items, +unused


def wrong_number(chain: str, rank: int) -> str | None:
    """One result, a number after an equals sign, is another number from there on.

    It keeps its number of digits, so that length betrays nothing.
    """
    found = list(RESULT.finditer(chain))
    if not found:
        return None
    chosen = found[rank % len(found)]
    old, start = chosen.group(1), chosen.start(1)
    rest = re.sub(rf"(?<![\d.]){re.escape(old)}(?!\d|\.\d)", _other_digits(old, rank), chain[start:])
    return chain[:start] + rest


def wrong_operator(chain: str, rank: int) -> str | None:
    """One sign of arithmetic, before an equals sign of its line, is its opposite."""
    found = [match for match in OPERATOR.finditer(chain) if _is_arithmetic(chain, match)]
    if not found:
        return None
    chosen = found[rank % len(found)]
    return chain[: chosen.start()] + OPPOSITE[chosen.group()] + chain[chosen.end() :]


def wrong_order(chain: str, rank: int) -> str | None:
    """Two lines have changed places, of which the later one uses a result of the earlier; never the last line."""
    lines = chain.split("\n")
    results = [{match.group(1) for match in RESULT.finditer(line)} for line in lines]
    pairs = [
        (a, b)
        for a in range(len(lines) - 1)
        for b in range(a + 1, len(lines) - 1)
        if results[a] & (set(NUMBER.findall(lines[b])) - results[b])
    ]
    if not pairs:
        return None
    first, second = pairs[rank % len(pairs)]
    lines[first], lines[second] = lines[second], lines[first]
    return "\n".join(lines)


CORRUPTIONS: dict[str, Callable[[str, int], str | None]] = {
    "number": wrong_number, "operator": wrong_operator, "order": wrong_order,
}  # fmt: skip


def _other_digits(number: str, rank: int) -> str:
    """Another number of the same form: the first digit moves by 1 to 8 within 1 to 9, zero within 0 to 9."""
    at = next((i for i, digit in enumerate(number) if digit in "123456789"), None)
    if at is None:
        return f"{1 + rank % 9}{number[1:]}"
    moved = 1 + (int(number[at]) - 1 + 1 + rank // 9 % 8) % 9
    return f"{number[:at]}{moved}{number[at + 1 :]}"


def _is_arithmetic(chain: str, match: re.Match[str]) -> bool:
    """Whether numbers stand on both sides and an equals sign later in the line: not `2020 / 21`, not `well-known`."""
    left, right = chain[: match.start()].rstrip(" )]}$"), chain[match.end() :].lstrip(" ([{$\\")
    return left[-1:].isdigit() and right[:1].isdigit() and "=" in right.partition("\n")[0]


def _pair(row: Any) -> tuple[str, str] | None:
    """Question and chain of a row."""
    if not isinstance(row, dict):
        return None
    question, chain = (next((row[key] for key in keys if isinstance(row.get(key), str)), "")
                       for keys in (QUESTIONS, CHAINS))  # fmt: skip
    chain = CALCULATOR.sub("", chain).strip()
    return (question.strip(), chain) if question.strip() and chain else None


def _rows(file: Path) -> Iterator[tuple[int, Any]]:
    """Number (from 1) and value of every line; None for one that is not JSON."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except ValueError:
                        yield number, None
    except (OSError, EOFError) as error:
        raise DataError(f"{file} cannot be read as questions with chains: {error}") from None
