"""Scores of documents, gathered from the files that any number of scorers left behind.

The one choice that matters: a scorer is a column and the identity of what filled it (a model's digest, a policy), read
from the file itself, so that scores of two models never pass for one another. Files without an identity are told apart
by their name alone. Sources of scores: `loam quality score`, `loam perplexity`, `loam filter`, or any table with ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq

from filters.quality import SCORER_KEY, SIZE
from filters.score_table import POLICY_KEY
from pipelines.errors import DataError
from pipelines.files import expand_inputs

WEIGHTS = ("tokens", "token_count", "n_tokens", "scored_tokens", SIZE, "bytes", "chars", "length")
"""Columns that tell the size of a document, the best first."""
PERPLEXITY = "nats_per_token"
_NO_SCORES = {*WEIGHTS, "id", "windows", "row", "label", "bucket"}
MOST_COLUMNS = 6
"""A file with more columns of numbers holds values of rules: which of them are scores must be said."""


@dataclass(frozen=True)
class Column:
    """Scores of one scorer.

    Attributes:
        name: of the column, or `nats_per_token` for perplexities.
        identity: of what filled it; empty where the file does not say.
        higher_is_better: false for perplexities.
        scores: id, score (float64; null or NaN where there is none), and size where the file tells it.
        weight: name of the column that gives the size; None where there is none.
        origin: the input, for messages.
    """

    name: str
    identity: str
    higher_is_better: bool
    scores: pl.DataFrame
    weight: str | None
    origin: str


def gather(inputs: Sequence[str], wanted: Sequence[str], lower: Sequence[str], weight: str | None) -> list[Column]:
    """Read all scores.

    Args:
        inputs: paths, folders or globs; a folder that a verb wrote means its scores, not its documents.
        wanted: columns that are scores; empty: whatever is a number and no size.
        lower: columns whose lower values are better (perplexities are known).
        weight: column of sizes; None: the best that a file has.

    Returns:
        scorers in the order in which they occur; parts of one scorer are put together.

    Raises:
        DataError: a file has no ids or scores, or a document has two scores of one scorer.
    """
    found: dict[tuple[str, str], list[Column]] = {}
    for given in inputs:
        for file in score_files(given):
            for column in _columns(file, given, wanted, lower, weight):
                found.setdefault((column.name, column.identity), []).append(column)
    columns = [merged for parts in found.values() for merged in _merged(parts)]
    missing = sorted({*wanted, *lower} - {column.name for column in columns})
    if missing:
        raise DataError(f"no file has a column {missing[0]!r}; there are: {', '.join(c.name for c in columns)}")
    if not columns:
        raise DataError(
            f"no column of scores in {', '.join(inputs)}; `loam quality score` and `loam perplexity` write them"
        )
    return columns


def score_files(given: str) -> list[Path]:
    """Files of scores that one input means."""
    folder = Path(given)
    for below in ("scores", "attributes"):
        if (folder / below).is_dir():
            return expand_inputs([folder / below])
    return expand_inputs([given])


def read_table_of(file: Path) -> pa.Table:
    """A table from Parquet or JSON lines (.gz, .zst).

    Raises:
        DataError: it cannot be read.
    """
    try:
        if ".json" in file.name:
            with pa.input_stream(str(file), compression="detect") as stream:
                return pyarrow.json.read_json(stream)
        return pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} is not readable Parquet or JSON lines: {str(error).splitlines()[0]}") from None


def _columns(file: Path, given: str, wanted: Sequence[str], lower: Sequence[str], weight: str | None) -> list[Column]:
    table = read_table_of(file)
    if "id" not in table.column_names:
        raise DataError(f"{file} has no column 'id'; found: {', '.join(table.column_names)}")
    if weight is not None and weight not in table.column_names:
        raise DataError(
            f"{file} has no column {weight!r} to weigh documents by; found: {', '.join(table.column_names)}"
        )
    size = weight or next((name for name in WEIGHTS if name in table.column_names), None)
    frame = pl.DataFrame({"id": table["id"].cast(pa.string())})
    if size is not None:
        frame = frame.with_columns(size=_numbers(table, size))
    policy = (table.schema.metadata or {}).get(POLICY_KEY)
    if policy is not None and not wanted:
        tokens = _numbers(table, "scored_tokens")
        nats = pl.Series(np.where(tokens > 0, _numbers(table, "sum_nll_nats") / np.maximum(tokens, 1), np.nan))
        scores = frame.with_columns(score=nats)
        return [Column(PERPLEXITY, f"policy:{policy.decode()}", False, scores, size, given)]
    names = [
        field.name for field in table.schema
        if (pa.types.is_floating(field.type) or pa.types.is_integer(field.type)) and field.name not in _NO_SCORES
    ]  # fmt: skip
    if not wanted and len(names) > MOST_COLUMNS:
        raise DataError(
            f"{file} has {len(names)} columns of numbers; say which are scores: --set 'columns=[{names[0]}]'"
        )
    return [
        Column(name, (table.schema.field(name).metadata or {}).get(SCORER_KEY, b"").decode(), name not in lower,
               frame.with_columns(score=_numbers(table, name)), size, given)
        for name in (wanted or names) if name in table.column_names
    ]  # fmt: skip


def _numbers(table: pa.Table, name: str) -> pl.Series:
    try:
        return pl.Series(np.asarray(table[name].cast(pa.float64()), dtype=np.float64))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(f"column {name!r} holds {table[name].type}, expected numbers") from None


def _merged(parts: list[Column]) -> list[Column]:
    """Parts of one scorer as one; the same column of several inputs without identity as several scorers."""
    by_input: dict[str, list[Column]] = {}
    for part in parts:
        by_input.setdefault(part.origin, []).append(part)
    whole = [_joined(group) for group in by_input.values()]
    if len(whole) > 1 and not whole[0].identity and _overlap([column.scores["id"] for column in whole]):
        return [
            Column(f"{column.name}@{_short(column.origin)}", "", column.higher_is_better, column.scores, column.weight,
                   column.origin) for column in whole
        ]  # fmt: skip
    return [_joined(whole)]


def _overlap(ids: list[pl.Series]) -> bool:
    return pl.concat(ids).n_unique() < sum(series.n_unique() for series in ids)


def _short(origin: str) -> str:
    return Path(origin.rstrip("/")).name.split(".")[0]


def _joined(parts: list[Column]) -> Column:
    first = parts[0]
    if len({part.weight for part in parts}) > 1:
        raise DataError(f"files of {first.name} tell sizes by different columns; say which: --set weight=NAME")
    scores = pl.concat([part.scores for part in parts])
    repeated = scores.filter(pl.col("id").is_duplicated())
    if repeated.height:
        raise DataError(f"document {repeated['id'][0]!r} has two scores of {first.name} in {first.origin}")
    return Column(first.name, first.identity, first.higher_is_better, scores, first.weight, first.origin)
