"""Checkpoints written beside the loop: it stops for a copy, a thread does the rest.

The copy goes into memory that is kept from one checkpoint to the next: fresh memory is paged in at a thirtieth of the
speed of a copy (docs/benchmarks.md). One checkpoint is under way at a time; the next one waits for it, and an error is
raised there. safetensors and hashlib let go of the interpreter while they work, so that the loop goes on.
"""

import copy
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from pipelines.errors import StepError
from pipelines.journal import record
from trainer.checkpoint import write_checkpoint


class CheckpointWriter:
    """Writes the checkpoints of a run.

    Args:
        rolling: folder of which the newest are kept.
        permanent: folder of which all are kept.
        kept: how many are kept in `rolling`.

    Attributes:
        prepared: whether `prepare` was called.
    """

    def __init__(self, rolling: Path, permanent: Path, kept: int) -> None:
        self._rolling, self._permanent, self._kept = rolling, permanent, kept
        self._copies: dict[str, Tensor] = {}
        self.prepared = False
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], note: Mapping[str, Any], stays: bool) -> None:
        """Copy the state and begin to write it.

        Args:
            step: optimizer steps done.
            tensors: the state; may change as soon as this returns.
            note: JSON values; may change, too.
            stays: for good, instead of as one of the newest.

        Raises:
            StepError: the checkpoint before this one could not be written.
        """
        self.wait()
        began = time.perf_counter()
        held = {name: tensor.detach() for name, tensor in tensors.items()}
        for name, tensor in held.items():
            mine = self._copies.get(name)
            if mine is None or mine.shape != tensor.shape or mine.dtype != tensor.dtype:
                self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._copies[name].copy_(tensor, non_blocking=tensor.is_cuda)
        if any(tensor.is_cuda for tensor in held.values()):
            torch.cuda.synchronize()
        copies = {name: self._copies[name] for name in held}
        folder, kept = (self._permanent, None) if stays else (self._rolling, self._kept)
        size = sum(mine.nbytes for mine in copies.values())
        record("checkpoint", step=step, mb=round(size / 1e6, 1), stopped_s=round(time.perf_counter() - began, 4))
        self._pending = self._thread.submit(write_checkpoint, folder, step, copies, copy.deepcopy(dict(note)), kept)

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Page in the memory for a state in the background, before the first checkpoint needs it."""
        self.prepared = True
        self.wait()
        self._pending = self._thread.submit(self._make_room, {name: t.detach() for name, t in tensors.items()})

    def _make_room(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda).zero_()

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is under way."""
        return self._pending is not None and not self._pending.done()

    def wait(self) -> None:
        """Return when the checkpoint under way is on disk.

        Raises:
            StepError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            try:
                pending.result()
            except (OSError, SafetensorError) as error:  # the second when the disk is full
                raise StepError(
                    f"a checkpoint could not be written to {self._rolling}: {error}; make room and run again to resume"
                ) from error

    def close(self) -> None:
        """Let the thread end, when what it does is done; what it met does not hide a first error."""
        self._thread.shutdown()
