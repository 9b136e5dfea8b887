"""From a token to its raw record: what `loam trace` does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.kinds import load_build
from flows.runner import RECIPE
from pipelines.tracing import read_origin, trace


def trace_sequence(prefix: Path, row: int, roots: Sequence[Path]) -> dict[str, Any]:
    """Walk one sequence of a shard back to the bytes that it came from.

    Args:
        prefix: of the shard, without suffix.
        row: number of the sequence, from 0.
        roots: more folders in which raw files may lie.

    Returns:
        What the origin sidecar says, and `bytes`, whose sha256 has been checked.

    Raises:
        DataError: no such row, a missing raw file, or bytes that are not what they were.
    """
    found = trace(prefix, row)
    return {**found, "bytes": read_origin(found["origin"], [*roots, *_roots_of_run(prefix)])}


def _roots_of_run(prefix: Path) -> list[Path]:
    """Where a run's raw files are: what it collected, and the root of its recipe."""
    for folder in prefix.resolve().parents:
        if (folder / RECIPE).is_file():
            recipe = load_build(str(folder / RECIPE))
            return [folder / "collect" / "raw", Path(recipe.root)]
    return [Path()]
