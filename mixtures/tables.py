"""The two plain tables that a fit reads: ratios (runs x domains) and metrics (runs x losses).

The first column is the run's id and every other column is a name, so the tables of RegMix and olmix are read as they
are published. A row that misses 1 by no more than the rounding of its own decimals is divided by its sum and counted;
any other row is an error that names it. P runs, D domains, M metrics.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixtures.mixture import SUM_TOLERANCE, check_same_names
from pipelines.errors import DataError
from pipelines.files import write_atomically

IDENTITY = ("run", "name", "index")  # olmix repeats the run's identity in its first three columns
SCALE_COLUMNS = ("params", "tokens")  # the scale of a row, beside domains or metrics; `runs` reads them


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
        rounded = 0
        for row, run in enumerate(ids):
            miss = abs(weights_PD[row].sum() - 1)
            if SUM_TOLERANCE < miss <= _rounding(cells[row]) and (weights_PD[row] >= 0).all():
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

    def ordered(self, domains: Sequence[str]) -> "Ratios":
        """The same mixtures with columns in the order of `domains`.

        Raises:
            DataError: the names differ.
        """
        check_same_names("the ratios table", self.domains, "the fitted domains", tuple(domains))
        places = [self.domains.index(name) for name in domains]
        return Ratios(self.ids, tuple(domains), np.ascontiguousarray(self.weights_PD[:, places]), self.rounded)


@dataclass(frozen=True, eq=False)
class Metrics:
    """What was measured: losses, lower is better.

    Attributes:
        ids: one per run.
        names: names of the metrics.
        values_PM: float64 (runs, metrics), finite.
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
    def read_csv(cls, path: Path) -> "Metrics":
        """Read a table of measurements.

        Raises:
            DataError: names the row and column of the first cell that is not a finite number.
        """
        ids, names, cells = read_table(path)
        return cls(ids, names, _numbers(path, ids, names, cells))

    def write_csv(self, path: Path) -> None:
        """Write a table that `read_csv` reads back equal; first column `id`."""
        write_table(path, self.ids, self.names, self.values_PM)

    def ordered(self, ids: Sequence[str]) -> "Metrics":
        """Rows in the order of `ids`.

        Raises:
            DataError: a run of one table is missing in the other.
        """
        check_same_names("the metrics table", self.ids, "the runs of the ratios table", tuple(ids))
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
    if len(rows) < 2 or len(rows[0]) < 2:
        raise DataError(f"{path}: expected a header (id, then names) and at least one row; found {len(rows)} lines")
    first = next((place for place, name in enumerate(rows[0]) if place and name.strip() not in IDENTITY), len(rows[0]))
    header = [name.strip() for name in rows[0]]
    aside = SCALE_COLUMNS if "params" in header else ()
    kept = [place for place in range(first, len(header)) if header[place] not in aside]
    names = tuple(header[place] for place in kept)
    ids = tuple(row[0].strip() for row in rows[1:])
    for kind, found in (("column", names), ("id", ids)):
        if repeated := [name for name, count in Counter(found).items() if count > 1]:
            raise DataError(f"{path}: {kind} {repeated[0]!r} appears twice")
    for run, row in zip(ids, rows[1:], strict=True):
        if len(row) != len(rows[0]):
            raise DataError(f"{path}: row {run!r} has {len(row)} cells, the header has {len(rows[0])}")
    return ids, names, [[row[place].strip() for place in kept] for row in rows[1:]]


def _numbers(path: Path, ids: Sequence[str], names: Sequence[str], cells: list[list[str]]) -> np.ndarray:
    values = np.empty((len(ids), len(names)))
    for row, run in enumerate(ids):
        for column, name in enumerate(names):
            try:
                values[row, column] = float(cells[row][column])
            except ValueError:
                values[row, column] = np.nan
            if not np.isfinite(values[row, column]):
                raise DataError(
                    f"{path}: row {run!r}, column {name!r}: {cells[row][column]!r} is not a finite number; "
                    "fill it or remove the run from both tables"
                )
    return values


def _rounding(cells: Sequence[str]) -> float:
    """The most that a sum can be off when each cell was rounded to the decimals it is written with."""
    if any("e" in cell.lower() for cell in cells):
        return 0.0
    decimals = max(len(cell.partition(".")[2]) for cell in cells)
    return len(cells) * 0.5 * 10.0**-decimals + 1e-12 if decimals >= 2 else 0.0


def _check_row(run: str, weights_D: np.ndarray, path: Path | None = None) -> None:
    where = f"{path}: " if path else ""
    if not np.isfinite(weights_D).all() or (weights_D < 0).any():
        raise DataError(f"{where}row {run!r} holds a weight below 0 or not finite")
    total = weights_D.sum()
    if abs(total - 1) > SUM_TOLERANCE:
        hint = "; these look like percentages: divide by 100" if abs(total - 100) < 1 else ""
        raise DataError(f"{where}row {run!r} sums to {total:.6g}, expected 1{hint}")
