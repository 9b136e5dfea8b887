"""How evenly a mixture of experts is used: counts per step, layer and expert, and the numbers that sum them up.

Counts of every step are appended to a file of fixed-size records, so that a resumed run cuts it at its step and goes
on; the table for reports adds them up over windows of steps. The summary follows NeMo Automodel's load metrics.

Legend: L layers with experts, E experts, S steps.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainer.hashed_log import HashedLog

WINDOWS = 200  # points of a curve; more cannot be told apart on a screen


class LoadLog:
    """Choices of every step, on disk.

    Args:
        path: of the file.
        layers: numbers of the layers with experts.
        experts: of each layer.

    Attributes:
        records: the file, step after step.
    """

    def __init__(self, path: Path, layers: Sequence[int], experts: int) -> None:
        self.records = HashedLog(path)
        self._layers = list(layers)
        self._experts = experts

    def append(self, load_LE: np.ndarray) -> None:
        """Add one step's counts, int64 (L, E)."""
        self.records.append(load_LE.astype("<i4").tobytes())

    def write_table(self, path: Path) -> None:
        """Write Parquet: step (last of its window), layer, expert, tokens, share of the layer's choices."""
        load_SLE = np.fromfile(self.records.path, "<i4").reshape(-1, len(self._layers), self._experts)
        steps = len(load_SLE)
        bounds = np.unique(np.linspace(0, steps, min(steps, WINDOWS) + 1).round().astype(int))
        load_WLE = np.add.reduceat(load_SLE, bounds[:-1], axis=0, dtype=np.int64)
        windows, layers, experts = load_WLE.shape
        share_WLE = load_WLE / load_WLE.sum(axis=2, keepdims=True)
        table = pa.table({
            "step": pa.array(np.repeat(bounds[1:], layers * experts), pa.int64()),
            "layer": pa.array(np.tile(np.repeat(self._layers, experts), windows), pa.int32()),
            "expert": pa.array(np.tile(np.arange(experts), windows * layers), pa.int32()),
            "tokens": pa.array(load_WLE.ravel(), pa.int64()),
            "share": pa.array(share_WLE.ravel(), pa.float64()),
        })  # fmt: skip
        pq.write_table(table, path, compression="zstd")


def summarize_load(load_E: np.ndarray) -> dict[str, float]:
    """How even the load of one layer is.

    Args:
        load_E: choices of each expert.

    Returns:
        `used`: share of experts chosen at all; `cv`: standard deviation over mean; `max`, `min`: over the mean.
    """
    mean = float(load_E.mean()) or 1.0
    return {
        "used": round(float((load_E > 0).mean()), 6),
        "cv": round(float(load_E.std()) / mean, 6),
        "max": round(float(load_E.max()) / mean, 6),
        "min": round(float(load_E.min()) / mean, 6),
    }
