"""The two plain tables that a fit reads: ratios (runs x domains) and metrics (runs x losses).

The first column is the run's id and every other column is a name, so the tables of RegMix and olmix are read as they
are published. A row that misses 1 by no more than the rounding of its own decimals is divided by its sum and counted;
any other row is an error that names it. A table whose rows all sum to 100 is in percent. P runs, D domains, M metrics.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np

from mixtures.mixture import SUM_TOLERANCE, check_same_names
from pipelines.errors import DataError
from pipelines.files import write_atomically

IDENTITY = ("run", "name", "index")  # olmix repeats the run's identity in its first three columns
SCALE_COLUMNS = ("params", "tokens")  # the scale of a row, beside domains or metrics; `runs` reads them
NOT_MEASURED = ("", "nan", "na", "n/a", "null", "none")  # how tables write a metric that a run lacks
MOST_GAPS = 0.5  # of the runs may lack a metric; they are left out, beyond it the metric is
EXACT_DIGITS = 12  # a number written with more is one that a program printed in full, not one that was rounded
SEPARATORS = {";": "semicolon", "\t": "tab", "|": "bar"}  # of tables that are not this one's
FRACTION = re.compile(r"[-+]?[0-9]*\.[0-9]+([eE][-+]?[0-9]+)?")  # a column may be called 7, but hardly 0.25
LARGEST = 1e30  # of a measurement: squares of larger ones overflow


@dataclass(frozen=True, eq=False)
class Ratios:
    """The mixtures of a swarm.

    Attributes:
        ids: one per run.
        domains: names of the columns.
        weights_PD: float64 (runs, domains), rows sum to 1 within 1e-6.
        rounded: how many rows missed 1 by their written rounding and were divided by their sum.
    """

    ids: tuple[str, ...]
    domains: tuple[str, ...]
    weights_PD: np.ndarray
    rounded: int = 0

    def __post_init__(self) -> None:
        assert self.weights_PD.shape == (len(self.ids), len(self.domains))
        for run, row_D in zip(self.ids, self.weights_PD, strict=True):
            _check_row(run, row_D)

    @classmethod
    def of(cls, mixtures: Mapping[str, Mapping[str, float]]) -> "Ratios":
        """From run id -> domain -> weight; a domain that a run leaves out has weight 0."""
        domains = tuple(dict.fromkeys(name for weights in mixtures.values() for name in weights))
        rows = [[weights.get(name, 0.0) for name in domains] for weights in mixtures.values()]
        return cls(tuple(mixtures), domains, np.array(rows, float).reshape(len(rows), len(domains)))

    @classmethod
    def read_csv(cls, path: Path) -> "Ratios":
        """Read a table of mixtures.

        Raises:
            DataError: names the row and column of the first bad cell, or the first row that does not sum to 1.
        """
        ids, domains, cells = read_table(path)
        weights_PD = _numbers(path, ids, domains, cells)
        slack_P = np.array([_rounding(row) for row in cells])
        if len(ids) > 1 and (np.abs(weights_PD.sum(axis=1) - 100) <= np.maximum(slack_P, 100 * SUM_TOLERANCE)).all():
            weights_PD, slack_P = weights_PD / 100, slack_P / 100
        rounded = 0
        for row, run in enumerate(ids):
            miss = abs(weights_PD[row].sum() - 1)
            if SUM_TOLERANCE < miss <= slack_P[row] and (weights_PD[row] >= 0).all():
                weights_PD[row] /= weights_PD[row].sum()
                rounded += 1
            _check_row(run, weights_PD[row], path)
        return cls(ids, domains, weights_PD, rounded)

    def write_csv(self, path: Path) -> None:
        """Write a table that `read_csv` reads back equal; first column `id`."""
        write_table(path, self.ids, self.domains, self.weights_PD)

    def rows(self) -> list[tuple[str, dict[str, float]]]:
        """Run id and weights by domain, in order."""
        return [(run, dict(zip(self.domains, row, strict=True)))
                for run, row in zip(self.ids, self.weights_PD.tolist(), strict=True)]  # fmt: skip

    def ordered(self, domains: Sequence[str], what: str = "the ratios table",
                where: str = "the fitted domains") -> "Ratios":  # fmt: skip
        """The same mixtures with columns in the order of `domains`; `what` this is called, `where` those come from.

        Raises:
            DataError: the names differ.
        """
        check_same_names(what, self.domains, where, tuple(domains))
        places = [self.domains.index(name) for name in domains]
        return Ratios(self.ids, tuple(domains), np.ascontiguousarray(self.weights_PD[:, places]), self.rounded)


@dataclass(frozen=True, eq=False)
class Metrics:
    """What was measured: losses, lower is better.

    Attributes:
        ids: one per run.
        names: names of the metrics.
        values_PM: float64 (runs, metrics), finite; NaN only in a table that was read with its gaps.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    values_PM: np.ndarray

    def __post_init__(self) -> None:
        assert self.values_PM.shape == (len(self.ids), len(self.names))

    @classmethod
    def of(cls, runs: Mapping[str, Mapping[str, float]]) -> "Metrics":
        """From run id -> metric -> value; every run must have every metric."""
        names = tuple(next(iter(runs.values()), {}))
        for run, values in runs.items():
            check_same_names(f"run {run!r}", values, "the metrics of the first run", names)
        rows = [[values[name] for name in names] for values in runs.values()]
        return cls(tuple(runs), names, np.array(rows, float).reshape(len(rows), len(names)))

    @classmethod
    def read_csv(cls, path: Path, gaps: bool = False) -> "Metrics":
        """Read a table of measurements.

        Args:
            path: the table.
            gaps: an empty cell or `nan` is a metric that the run lacks, and not an error: NaN until `without_gaps`.

        Raises:
            DataError: names the row and column of the first cell that is not a finite number.
        """
        ids, names, cells = read_table(path)
        if not gaps:
            return cls(ids, names, _numbers(path, ids, names, cells))
        gap_PM = np.array([[cell.lower() in NOT_MEASURED for cell in row] for row in cells])
        filled = [["0" if gap else cell for cell, gap in zip(*pair, strict=True)]
                  for pair in zip(cells, gap_PM.tolist(), strict=True)]  # fmt: skip
        return cls(ids, names, np.where(gap_PM, np.nan, _numbers(path, ids, names, filled)))

    def without_gaps(self) -> "Metrics":
        """The runs that have every metric; a metric that most runs lack is left first. No number is made up.

        Raises:
            DataError: no run has all of them.
        """
        gap_PM = np.isnan(self.values_PM)
        if not gap_PM.any():
            return self
        columns = np.flatnonzero(gap_PM.mean(axis=0) <= MOST_GAPS).tolist()
        rows = np.flatnonzero(~gap_PM[:, columns].any(axis=1)).tolist()
        if not columns or not rows:
            raise DataError("no run has a value of every metric; leave the emptiest columns out of the metrics table")
        ids, names = tuple(self.ids[row] for row in rows), tuple(self.names[column] for column in columns)
        return Metrics(ids, names, np.ascontiguousarray(self.values_PM[np.ix_(rows, columns)]))

    def write_csv(self, path: Path) -> None:
        """Write a table that `read_csv` reads back equal; first column `id`."""
        write_table(path, self.ids, self.names, self.values_PM)

    def ordered(self, ids: Sequence[str], what: str = "the metrics table",
                where: str = "the runs of the ratios table") -> "Metrics":  # fmt: skip
        """Rows in the order of `ids`; `what` this table is called and `where` they come from.

        Raises:
            DataError: a run of one table is missing in the other.
        """
        check_same_names(what, self.ids, where, tuple(ids))
        place = {run: row for row, run in enumerate(self.ids)}
        return Metrics(tuple(ids), self.names, self.values_PM[[place[run] for run in ids]])

    def select(self, names: Sequence[str]) -> "Metrics":
        """The metrics called `names`."""
        check_same_names("the choice of metrics", tuple(names), "the table", self.names, subset=True)
        places = [self.names.index(name) for name in names]
        # in the layout of a table that was read: sums over another one differ in the last bit
        return Metrics(self.ids, tuple(names), np.ascontiguousarray(self.values_PM[:, places]))


def write_table(path: Path, ids: Sequence[str], names: Sequence[str], values: np.ndarray, key: str = "id") -> None:
    """Write ids and numbers as CSV, atomically; floats in the shortest form that reads back equal."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([key, *names])
    writer.writerows([run, *map(repr, row)] for run, row in zip(ids, values.tolist(), strict=True))
    write_atomically(path, stream.getvalue().encode())


def read_table(path: Path) -> tuple[tuple[str, ...], tuple[str, ...], list[list[str]]]:
    """Ids, names of the other columns, and cells as they are written.

    Raises:
        DataError: no such table, a name or id twice, or a row of another length.
    """
    try:
        rows = [row for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from None
    _check_shape(path, rows)
    first = next((place for place, name in enumerate(rows[0]) if place and name.strip() not in IDENTITY), len(rows[0]))
    header = [name.strip() for name in rows[0]]
    aside = SCALE_COLUMNS if "params" in header else ()
    kept = [place for place in range(first, len(header)) if header[place] not in aside]
    names = tuple(header[place] for place in kept)
    ids = tuple(row[0].strip() for row in rows[1:])
    for kind, found in (("column", names), ("id", ids)):
        _check_written(path, kind, found)
        if repeated := [name for name, count in Counter(found).items() if count > 1]:
            raise DataError(f"{path}: {kind} {repeated[0]!r} appears twice")
    for run, row in zip(ids, rows[1:], strict=True):
        if len(row) != len(rows[0]):
            raise DataError(f"{path}: row {run!r} has {len(row)} cells, the header has {len(rows[0])}")
    return ids, names, [[row[place].strip() for place in kept] for row in rows[1:]]


def _check_shape(path: Path, rows: list[list[str]]) -> None:
    """Say what a table is when it has no columns or no rows: one of another separator looks like a single column."""
    if rows and len(rows[0]) < 2:
        other = next((name for sign, name in SEPARATORS.items() if sign in rows[0][0]), None)
        found = f"columns are separated by {other}s" if other else f"the first line is {rows[0][0][:40]!r}"
        raise DataError(f"{path}: {found}; expected a header of an id, then names, separated by commas")
    if len(rows) < 2:
        raise DataError(f"{path}: expected a header (id, then names) and at least one row; found {len(rows)} lines")


def _check_written(path: Path, kind: str, found: Sequence[str]) -> None:
    """Every column that counts has a name and every row an id, and none holds a sign that nobody can see."""
    for place, name in enumerate(found, 1):
        if not name:
            raise DataError(f"{path}: {kind} {place} of {len(found)} is empty; name it, or take it out of the table")
        if not name.isprintable():
            raise DataError(f"{path}: {kind} {name[:40]!r} holds a line break or another control character; "
                            "look for a quote that is not closed")  # fmt: skip


def _check_named(path: Path, names: Sequence[str]) -> None:
    """A table without a header would lose its first run and take numbers for names."""
    if all(FRACTION.fullmatch(name) for name in names):
        raise DataError(f"{path}: the first line holds numbers ({names[0]}); expected a header of an id, then names")


def _numbers(path: Path, ids: Sequence[str], names: Sequence[str], cells: list[list[str]]) -> np.ndarray:
    _check_named(path, names)
    values = np.empty((len(ids), len(names)))
    for row, run in enumerate(ids):
        for column, name in enumerate(names):
            values[row, column] = number_in(cells[row][column])
            if not np.isfinite(values[row, column]):
                raise DataError(
                    f"{path}: row {run!r}, column {name!r}: {cells[row][column]!r} is not a finite number; "
                    "fill it or remove the run from both tables"
                )
            if abs(values[row, column]) > LARGEST:
                raise DataError(f"{path}: row {run!r}, column {name!r}: {cells[row][column]} is beyond {LARGEST:g}; "
                                "a run that diverged is left out of both tables")  # fmt: skip
    return values


def number_in(cell: str) -> float:
    """The number that a cell holds; not a number where it holds something else, such as `1_000`."""
    try:
        return float(cell) if cell.isascii() and "_" not in cell else np.nan
    except ValueError:
        return np.nan


def _rounding(cells: Sequence[str]) -> float:
    """The most that a sum can be off when each cell was rounded to the decimals it is written with."""
    decimals = max(_decimals(cell) for cell in cells)
    return len(cells) * 0.5 * 10.0**-decimals + 1e-12 if decimals >= 2 else 0.0


def _decimals(cell: str) -> int:
    """Decimals that a number is written with: 0.250 -> 3, 5e-05 -> 5; of 0.30000000000000004 only those that count."""
    try:
        number = Decimal(cell)
        if len(number.as_tuple().digits) > EXACT_DIGITS:
            number = Decimal(f"{number:.{EXACT_DIGITS}g}").normalize()
    except ArithmeticError:
        return 0
    exponent = number.as_tuple().exponent
    return max(-exponent, 0) if isinstance(exponent, int) else 0


def _check_row(run: str, weights_D: np.ndarray, path: Path | None = None) -> None:
    where = f"{path}: " if path else ""
    if not np.isfinite(weights_D).all() or (weights_D < 0).any():
        raise DataError(f"{where}row {run!r} holds a weight below 0 or not finite")
    total = weights_D.sum()
    if abs(total - 1) > SUM_TOLERANCE:
        hint = "; these look like percentages: divide by 100" if abs(total - 100) < 1 else ""
        raise DataError(f"{where}row {run!r} sums to {total:.6g}, expected 1{hint}")
