"""`metrics.jsonl`: one line per optimizer step, held-out measurement or decision, and nothing that a clock says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.observer import Observer

if TYPE_CHECKING:
    from trainer.run import Run


def append_line(metrics: Path, line: Mapping[str, Any]) -> None:
    """Add a line of metrics."""
    with metrics.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, but for one that a run is just writing."""
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


class MetricsWriter(Observer):
    """Writes a line for every step."""

    def on_start(self, run: "Run") -> None:
        """Remember where lines go."""
        self._run = run

    def on_step(self, step: int, values: Mapping[str, Any]) -> None:
        """Write the step's line."""
        self._run.log(values)
