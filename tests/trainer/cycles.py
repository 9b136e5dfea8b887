"""Shards that a tiny model learns in a few steps."""

from pathlib import Path

import numpy as np

from pipelines.indexed import IndexedWriter, load_shards
from pipelines.shards import ShardSet


def shards_of(folder: Path) -> ShardSet:
    """Two domains without a token in common, 20 documents each: `even` and `odd` repeat a cycle of eight tokens."""
    for name, first in (("even", 0), ("odd", 1)):
        cycle = np.arange(first, 16, 2)
        with IndexedWriter(folder / name, 32) as writer:
            for document in range(20):
                writer.append(np.resize(np.roll(cycle, document), 25 + document), np.array([25 + document]))
    return load_shards(folder)
