"""Where torch computes, with how many threads, and how strictly."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from pipelines.errors import DataError


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Use this many torch threads while the body runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_device(wanted: str) -> torch.device:
    """Resolve `auto`, `cpu` or `cuda`.

    Raises:
        DataError: a GPU is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DataError("device is 'cuda', but torch finds no GPU here; set device to 'auto' or 'cpu'")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Refuse operations without a deterministic form while the body runs, if that is wanted.

    cuBLAS reads its setting when the first product runs: nothing may have used the GPU before. Untried on a GPU.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # nothing here reads memory before it is written
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fills
        torch.backends.cudnn.benchmark = benchmark
