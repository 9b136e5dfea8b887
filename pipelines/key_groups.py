"""Rows that share a key, found in bounded memory.

The one choice that matters: where there are more keys than may be held at once, one pass over them puts each into the
file of its range, and the ranges are then sorted one by one: every key is read twice and written once, whatever their
number, and memory is that of one range (about 40 bytes for each of `MAX_RECORDS` keys). Groups come in the order of
their keys, which are hashes of content, so that neither the order of the documents nor their cut into files changes the
order of the groups.

Legend of suffixes: R rows scanned, M members of groups, G groups.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAX_RECORDS = 4_000_000
MAX_RANGES = 256  # files that are open at once; beyond a thousand million keys a range grows instead
Scan = Callable[[], Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]]
"""Yields row numbers, ascending, their keys (uint64), and 64 more bits of the keys or None; called once."""


class Groups(NamedTuple):
    """Groups of rows that share a key.

    Attributes:
        members: int64 (M,), group after group, ascending within one.
        sizes: int64 (G,), all at least 2.
    """

    members: np.ndarray
    sizes: np.ndarray


def key_groups(scan: Scan, records: int, scratch: Path, old: int = 0, most: int = MAX_RECORDS) -> Iterator[Groups]:
    """Find the groups of two and more, range by range.

    Args:
        scan: gives the keys.
        records: how many keys there are about.
        scratch: folder for the ranges, when there is more than one: 24 bytes for each key, gone at the end.
        old: rows below it are settled: a group of settled rows alone is left out.
        most: keys that may be held at once.
    """
    ranges = min(MAX_RANGES, -(-records // most))
    if ranges <= 1:
        if found := [[column for column in columns if column is not None] for columns in scan()]:
            yield _grouped([np.concatenate(column) for column in zip(*found, strict=True)], old)
        return
    with tempfile.TemporaryDirectory(prefix="keys-", dir=scratch) as folder:
        paths = [Path(folder) / str(part) for part in range(ranges)]
        width = _partition(scan, paths)
        for path in paths:
            table_RC = np.fromfile(path, np.uint64).reshape(-1, width)
            path.unlink()
            columns = [np.ascontiguousarray(table_RC[:, column]) for column in range(width)]
            del table_RC
            yield _grouped([columns[0].astype(np.int64), *columns[1:]], old)


def _partition(scan: Scan, paths: list[Path]) -> int:
    """Write the rows and keys of each range to its file, in the order of the scan; numbers for each row."""
    bounds = np.array([(part << 64) // len(paths) for part in range(1, len(paths))], np.uint64)
    width = 2
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for rows_R, *keys in scan():
            columns = [rows_R.astype(np.uint64), *(key for key in keys if key is not None)]
            part_R = np.searchsorted(bounds, columns[1], side="right")
            order_R = np.argsort(part_R, kind="stable")
            table_RC = np.stack([column[order_R] for column in columns], axis=1)
            width = table_RC.shape[1]
            ends = np.cumsum(np.bincount(part_R, minlength=len(paths)))
            for file, begin, end in zip(files, [0, *ends[:-1]], ends, strict=True):
                file.write(table_RC[begin:end].tobytes())
    return width


def _grouped(columns: list[np.ndarray], old: int) -> Groups:
    rows_R, keys = columns[0], columns[1:]
    order_R = np.argsort(keys[0], kind="stable") if len(keys) == 1 else np.lexsort((rows_R, keys[1], keys[0]))
    new_R = np.ones(len(order_R), bool)
    new_R[1:] = np.logical_or.reduce([key[order_R][1:] != key[order_R][:-1] for key in keys])
    starts_G = np.flatnonzero(new_R)
    sizes_G = np.diff(np.append(starts_G, len(order_R)))
    rows_R = rows_R[order_R]
    last_G = rows_R[starts_G + sizes_G - 1] if len(starts_G) else rows_R
    wanted_G = (sizes_G >= 2) & (last_G >= old)
    return Groups(rows_R[np.repeat(wanted_G, sizes_G)], sizes_G[wanted_G])
