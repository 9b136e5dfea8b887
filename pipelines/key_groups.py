"""Rows that share a key, found in bounded memory.

The one choice that matters: the space of keys is cut into ranges and the keys are scanned once for each range, rather
than sorted as a whole or held in a table: memory is that of one range (about 40 bytes for each of `MAX_RECORDS` keys),
whatever the number of documents. Groups come in the order of their keys, which are hashes of content, so that neither
the order of the documents nor their cut into files changes the order of the groups.

Legend of suffixes: R rows scanned, M members of groups, G groups.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

MAX_RECORDS = 4_000_000
Scan = Callable[[], Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]]
"""Yields row numbers, ascending, their keys (uint64), and 64 more bits of the keys or None; called once per range."""


class Groups(NamedTuple):
    """Groups of rows that share a key.

    Attributes:
        members: int64 (M,), group after group, ascending within one.
        sizes: int64 (G,), all at least 2.
    """

    members: np.ndarray
    sizes: np.ndarray


def key_groups(scan: Scan, records: int, old: int = 0, most: int = MAX_RECORDS) -> Iterator[Groups]:
    """Find the groups of two and more, range by range.

    Args:
        scan: gives the keys.
        records: how many keys there are about.
        old: rows below it are settled: a group of settled rows alone is left out.
        most: keys that may be held at once.
    """
    ranges = max(1, -(-records // most))
    bounds = [(part << 64) // ranges for part in range(ranges + 1)]
    for first, end in itertools.pairwise(bounds):
        found: list[tuple[np.ndarray, ...]] = []
        for rows_R, keys_R, more_R in scan():
            inside = (keys_R >= np.uint64(first)) & (keys_R <= np.uint64(end - 1))
            chosen = [rows_R[inside], keys_R[inside]] + ([] if more_R is None else [more_R[inside]])
            found.append(tuple(chosen))
        if found:
            yield _grouped([np.concatenate(column) for column in zip(*found, strict=True)], old)


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
