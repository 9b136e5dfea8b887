"""`metrics.jsonl`: one line per optimizer step, held-out measurement or decision, and nothing that a clock says."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

READ_AT_ONCE = 1 << 22  # bytes


class MetricsLog:
    """A `metrics.jsonl` that knows its own hash, so that a checkpoint can say what stood in it.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._digest = path, hashlib.sha256()

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line."""
        text = (json.dumps(line) + "\n").encode()
        with self._path.open("ab") as file:
            file.write(text)
        self._digest.update(text)

    def state(self) -> dict[str, Any]:
        """Bytes so far and their sha256, for a checkpoint; what is told of is on disk."""
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        return {"bytes": self._path.stat().st_size, "sha256": self._digest.hexdigest()}

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Forget what came after `state`; False when the file does not begin with what stood there then."""
        digest, left = hashlib.sha256(), state["bytes"]
        with self._path.open("rb") as file:
            while chunk := file.read(min(left, READ_AT_ONCE)):
                digest.update(chunk)
                left -= len(chunk)
        if digest.hexdigest() != state["sha256"]:
            return False
        self._digest = digest
        os.truncate(self._path, state["bytes"])
        return True

    def clear(self) -> None:
        """Begin anew."""
        self._path.write_bytes(b"")
        self._digest = hashlib.sha256()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, but for one that a run is just writing."""
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]
