"""Shards small enough that a verb trains on them in a second."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipelines.indexed import IndexedWriter


def write_small_shards(folder: Path, domains: Iterable[str]) -> Path:
    """`train/` (30 documents of 40 tokens a domain) and `validation/` (6), 16 tokens of its own for each domain."""
    random, domains = np.random.default_rng(0), list(domains)
    for part, documents in (("train", 30), ("validation", 6)):
        for number, name in enumerate(domains):
            with IndexedWriter(folder / part / name, 64) as writer:
                for _ in range(documents):
                    writer.append(np.resize(random.permutation(16) + 16 * number, 40), np.array([40]))
    return folder
