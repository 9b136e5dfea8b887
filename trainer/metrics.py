"""`metrics.jsonl`: one line per optimizer step, held-out measurement or decision, and nothing that a clock says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def line_of(values: Mapping[str, Any]) -> bytes:
    """A line, as it is written."""
    return (json.dumps(values) + "\n").encode()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, but for one that a run is just writing."""
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
