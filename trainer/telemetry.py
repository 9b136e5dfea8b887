"""How fast a run goes and what it takes of the machine: one JSON line per step in `.journal/journal.jsonl`.

Everything that a clock decides is here and not in `metrics.jsonl`, so that a run's outputs stay the same bytes. Model
FLOPs utilisation is tokens per second times the model's operations per token (`ModelSettings.flops_formula`), over the
device's peak (`accelerators.py`); operations that are done twice (recomputation) or for nothing (idle experts) do not
count. The clock of a step runs from the end of the one before it: reading data, measuring held-out loss and copying a
checkpoint are in it.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.journal import KEPT_JOURNAL, end_torn_line, read_journal
from pipelines.shards import ShardSet
from trainer.observer import Observer
from trainer.provenance import record_provenance

if TYPE_CHECKING:
    from trainer.run import Run

TELEMETRY = f"{KEPT_JOURNAL}/journal.jsonl"
MFU_FORMULA = "mfu = tokens_per_s * flops_per_token / peak_flops"


class Telemetry(Observer):
    """Writes the run's journal.

    Args:
        validation: held-out shards, for the provenance.
    """

    def __init__(self, validation: ShardSet | None = None) -> None:
        self._validation = validation

    def on_start(self, run: "Run") -> None:
        """Record the provenance, and how MFU is reckoned."""
        from trainer.accelerators import peak_flops

        found = record_provenance(run, self._validation)
        self._path, self._device = run.work / TELEMETRY, run.device
        end_torn_line(self._path)
        self._flops = list(_flops_of_steps(run))
        self._peak, source = peak_flops(run.device, run.recipe.precision)
        self._write(event="start", time=found["time"], step=run.step, commit=found["code"]["commit"],
                    dirty=bool(found["code"]["dirty"]), device=found["machine"].get("gpu", {}).get("name", "cpu"),
                    peak_flops=self._peak, peak_source=source, mfu_formula=MFU_FORMULA,
                    flops_formula=run.recipe.model.flops_formula())  # fmt: skip
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def on_step(self, step: int, values: Mapping[str, Any]) -> None:
        """Write what the step took."""
        wall, cpu = time.perf_counter(), time.process_time()
        seconds = max(wall - self._wall, 1e-9)
        tokens, flops = self._flops[step - 1]
        line = {
            "event": "step", "step": step, "time": round(time.time(), 3), "seconds": round(seconds, 6),
            "tokens_per_s": round(tokens / seconds, 1), "flops_per_s": round(tokens * flops / seconds),
            "mfu": round(tokens * flops / seconds / self._peak, 6),
            **device_state(self._device, (cpu - self._cpu) / seconds),
        }  # fmt: skip
        self._write(**line)
        self._wall, self._cpu = wall, cpu

    def on_end(self, run: "Run") -> None:
        """Say that it is over."""
        self._write(event="end", time=round(time.time(), 3), step=run.step)

    def _write(self, **fields: Any) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")


def _flops_of_steps(run: "Run") -> Iterator[tuple[int, float]]:
    """Tokens of each step of the run, and operations of one of them."""
    for stage in run.recipe.stages:
        for phase in stage.phases:
            flops = run.recipe.model.flops_per_token(phase.sequence_length)
            yield from ((phase.batch_tokens, flops) for _ in range(phase.steps))


def device_state(device: Any, cores: float) -> dict[str, Any]:
    """Memory and use of the device.

    Args:
        device: where the model is.
        cores: processor seconds per second.

    Returns:
        `memory_bytes` and `peak_memory_bytes` of the process or, on a GPU, of torch's tensors on it; `cores` busy; on
        a GPU `device_use`, the share of time that it was busy where the driver's library is there. Untried on a GPU.
    """
    if device.type != "cuda":
        return {"memory_bytes": _resident(), "peak_memory_bytes": _peak_resident(), "cores": round(cores, 3)}
    import torch

    state: dict[str, Any] = {"memory_bytes": torch.cuda.memory_allocated(device),
                             "peak_memory_bytes": torch.cuda.max_memory_allocated(device),
                             "cores": round(cores, 3)}  # fmt: skip
    try:
        state["device_use"] = torch.cuda.utilization(device) / 100
    except (ImportError, RuntimeError):  # nvidia-ml-py is not installed, or the driver does not tell
        state["device_use"] = None
    return state


def _resident() -> int:
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.is_file() else _peak_resident()


def _peak_resident() -> int:
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): KiB on Linux, bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def read_telemetry(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's journal, oldest first; a step that was repeated after a kill counts as it was last."""
    events = read_journal(folder / TELEMETRY)
    steps = {event["step"]: event for event in events if event["event"] == "step"}
    return [event for event in events if event["event"] != "step" or steps[event["step"]] is event]
