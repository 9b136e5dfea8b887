"""Runs: mixtures with what was measured on them, at one scale.

A pair of tables is one scale when it is given with a name, or many when the ratios table has columns `params` and
`tokens` beside the domains: then every row says its own. Metrics and domains are matched by name between scales.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixtures.mixture import check_same_names
from mixtures.scale import Scale, quantity
from mixtures.tables import SCALE_COLUMNS, Metrics, Ratios
from pipelines.errors import DataError


@dataclass(frozen=True, eq=False)
class Runs:
    """What was trained at one scale.

    Attributes:
        ratios: the mixtures; rows and domains sorted by name.
        metrics: their losses, rows as in `ratios`, metrics as they came.
        scale: of all of them; None when it is not known.
    """

    ratios: Ratios
    metrics: Metrics
    scale: Scale | None = None

    @classmethod
    def of(cls, ratios: Ratios, metrics: Metrics, scale: Scale | None = None) -> "Runs":
        """Match the two tables by run id and sort rows and domains.

        Raises:
            DataError: a run of one table is missing in the other.
        """
        metrics = metrics.ordered(ratios.ids)
        return cls(_rows(ratios, sorted(ratios.ids)).ordered(sorted(ratios.domains)),
                   metrics.ordered(sorted(ratios.ids)), scale)  # fmt: skip

    def select(self, names: Sequence[str]) -> "Runs":
        """The same runs with some of the metrics."""
        return Runs(self.ratios, self.metrics.select(names), self.scale)


def read_runs(ratios: Sequence[Path], metrics: Sequence[Path], scales: Sequence[str]) -> tuple[Runs, ...]:
    """Read pairs of tables, one pair per scale or one pair with columns of scales.

    Args:
        ratios: tables of mixtures.
        metrics: their tables of losses, in the same order.
        scales: one for each pair; for a single pair it may be absent, or any label.

    Returns:
        Runs from the smallest scale to the largest; pairs of one scale are joined. Runs that lack a metric are left,
        and so is a metric that most runs of a scale lack.

    Raises:
        DataError: the numbers of options differ, a scale cannot be read, or tables do not match.
    """
    if (
        len(ratios) != len(metrics)
        or (len(ratios) > 1 and len(scales) not in (0, len(ratios)))
        or len(scales) > max(len(ratios), 1)
    ):
        raise DataError(
            f"{len(ratios)} --ratios, {len(metrics)} --metrics and {len(scales)} --scale: give each table of ratios "
            "its metrics and its scale, in the same order"
        )
    found: list[Runs] = []
    for place, (left, right) in enumerate(zip(ratios, metrics, strict=True)):
        label = scales[place] if scales else None
        own = scale_rows(left)
        if own is None and len(ratios) > 1 and label is None:
            raise DataError(f"{left}: which scale? give --scale with each pair, or columns params and tokens")
        must_be_read = len(ratios) > 1 or "/" in (label or "")
        named = (Scale.parse(label) if must_be_read else Scale.of_label(label)) if label else None
        if own is None and scale_rows(right) is not None:
            raise DataError(f"{right}: columns of scales stand beside the domains; move params and tokens to {left}")
        mixtures = Ratios.read_csv(left)
        losses = Metrics.read_csv(right, gaps=True).ordered(mixtures.ids)
        if own is None:
            found.append(_measured(mixtures, losses, named))
        else:
            found += split(mixtures, losses, own)
    return joined(found)


def split(ratios: Ratios, metrics: Metrics, scales: Sequence[Scale]) -> list[Runs]:
    """One `Runs` per distinct scale of the rows, from small to large."""
    groups: dict[Scale, list[str]] = {}
    for run, scale in zip(ratios.ids, scales, strict=True):
        groups.setdefault(scale, []).append(run)
    ordered = sorted(groups, key=lambda scale: scale.order)
    return [_measured(_rows(ratios, groups[scale]), _picked(metrics, groups[scale]), scale) for scale in ordered]


def joined(found: Sequence[Runs]) -> tuple[Runs, ...]:
    """Runs of equal scale in one, sorted by scale.

    Raises:
        DataError: domains differ, or two runs of one scale share an id.
    """
    whole: dict[Scale | None, Runs] = {}
    for runs in found:
        check_same_names(f"the ratios at {runs.scale}", runs.ratios.domains, f"those at {found[0].scale}",
                         found[0].ratios.domains)  # fmt: skip
        whole[runs.scale] = _joined_pair(whole[runs.scale], runs) if runs.scale in whole else runs
    return tuple(sorted(whole.values(), key=lambda runs: runs.scale.order if runs.scale else (0, 0)))


def common_metrics(runs: Sequence[Runs]) -> tuple[list[str], list[str]]:
    """Metrics that every scale has, and those that were left, both sorted.

    Raises:
        DataError: there is none in common.
    """
    every = [set(each.metrics.names) for each in runs]
    shared = set.intersection(*every)
    if not shared:
        raise DataError(f"no metric is in all tables: {', '.join(sorted(every[0])[:3])} ... against "
                        f"{', '.join(sorted(every[-1])[:3])} ...")  # fmt: skip
    return sorted(shared), sorted(set.union(*every) - shared)


def scale_rows(path: Path) -> list[Scale] | None:
    """The scale of each row of a table of ratios; None when it has no column `params`.

    Raises:
        DataError: names the first row whose scale cannot be read.
    """
    try:
        rows = [row for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error):
        return None  # the reader of the table says what is wrong
    head = [name.strip() for name in rows[0]] if rows else []
    places = [head.index(name) if name in head else None for name in SCALE_COLUMNS]
    if places[0] is None:
        if places[1] is not None:
            raise DataError(f"{path}: a column `tokens` without `params`: add params, such as 60M")
        return None
    found = []
    for row in rows[1:]:
        cells = [row[place].strip() if place is not None and place < len(row) else "" for place in places]
        try:
            found.append(Scale(quantity(cells[0]), quantity(cells[1]) if cells[1] else None))
        except ValueError as error:
            raise DataError(f"{path}: row {row[0]!r}: scale {'/'.join(cells)!r}: {error}") from None
    return found


def _measured(ratios: Ratios, metrics: Metrics, scale: Scale | None) -> Runs:
    """The runs of one scale that have every metric which its runs have."""
    whole = metrics.without_gaps()
    return Runs.of(ratios if whole is metrics else _rows(ratios, whole.ids), whole, scale)


def _rows(ratios: Ratios, ids: Sequence[str]) -> Ratios:
    place = {run: row for row, run in enumerate(ratios.ids)}
    return Ratios(tuple(ids), ratios.domains, ratios.weights_PD[[place[run] for run in ids]], ratios.rounded)


def _picked(metrics: Metrics, ids: Sequence[str]) -> Metrics:
    place = {run: row for row, run in enumerate(metrics.ids)}
    return Metrics(tuple(ids), metrics.names, metrics.values_PM[[place[run] for run in ids]])


def _joined_pair(left: Runs, right: Runs) -> Runs:
    if both := sorted(set(left.ratios.ids) & set(right.ratios.ids)):
        raise DataError(f"run {both[0]!r} is in two tables of scale {left.scale}; ids must differ within a scale")
    names, _ = common_metrics([left, right])
    ids = (*left.ratios.ids, *right.ratios.ids)
    weights_PD = np.concatenate([left.ratios.weights_PD, right.ratios.weights_PD])
    values_PM = np.concatenate([left.metrics.select(names).values_PM, right.metrics.select(names).values_PM])
    rounded = left.ratios.rounded + right.ratios.rounded
    return Runs.of(Ratios(ids, left.ratios.domains, weights_PD, rounded), Metrics(ids, tuple(names), values_PM),
                   left.scale)  # fmt: skip
