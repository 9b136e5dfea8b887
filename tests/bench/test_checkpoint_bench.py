"""What a checkpoint of 1 GB costs the loop: the stop for its copy, and slower steps while it is written beside it."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer.checkpoint import read_checkpoints, write_checkpoint
from trainer.checkpoint_writer import CheckpointWriter

pytestmark = pytest.mark.bench
TENSORS, NUMBERS = 16, 1 << 24  # 64 MB each


def wall(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def test_a_checkpoint_of_1_gb_beside_the_loop(tmp_path: Path):
    torch.set_num_threads(1)
    state = {f"model.{number}": torch.rand(NUMBERS) for number in range(TENSORS)}
    warm = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    weight, batch = torch.rand(512, 512), torch.rand(512, 512)

    def step() -> None:  # a loop's work that lets go of the interpreter as a loop does: many small operations
        for _ in range(5):
            torch.mm(weight, batch)

    def copy() -> None:
        for name, tensor in state.items():
            warm[name].copy_(tensor)

    writer = CheckpointWriter(tmp_path / "rolling", tmp_path / "stays", 2)
    writer.prepare(state)
    writer.wait()
    stops, copies, alone, beside, writes = [], [], [], [], []
    for number in range(1, 3):
        alone += [wall(step) for _ in range(40)]
        copies.append(wall(copy))
        began = time.perf_counter()
        stops.append(wall(lambda: writer.save(number, state, {}, stays=False)))  # noqa: B023
        while writer.busy:
            beside.append(wall(step))
        writer.wait()
        writes.append(time.perf_counter() - began)
    straight = wall(lambda: write_checkpoint(tmp_path / "straight", 1, state, {}))
    writer.close()
    size = sum(tensor.nbytes for tensor in state.values()) / 1e9
    print(
        f"\n{size:.2f} GB: plain copy {statistics.median(copies):.3f} s, stop {statistics.median(stops):.3f} s, "
        f"ratio of pairs {statistics.median(s / c for s, c in zip(stops, copies, strict=True)):.2f}; "
        f"written in {statistics.median(writes):.1f} s ({straight:.1f} s when the loop waits); a step takes "
        f"{statistics.median(alone) * 1e3:.1f} ms alone, {statistics.median(beside) * 1e3:.1f} ms beside the writer "
        f"({len(beside)} steps; 99th percentile {statistics.quantiles(beside, n=100)[-1] * 1e3:.0f} ms, longest "
        f"{max(beside) * 1e3:.0f} ms, alone {max(alone) * 1e3:.0f} ms)"
    )
    found = next(read_checkpoints(tmp_path / "rolling"))
    assert found.step == 2
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in state.items())
