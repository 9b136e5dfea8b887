"""A file that only grows and knows its own hash, so that a checkpoint can say what stood in it."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

READ_AT_ONCE = 1 << 22  # bytes


class HashedLog:
    """The file behind `metrics.jsonl` and behind the counts of expert choices.

    Args:
        path: of the file; made when something is added.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._digest = path, hashlib.sha256()

    def append(self, data: bytes) -> None:
        """Add to its end."""
        with self.path.open("ab") as file:
            file.write(data)
        self._digest.update(data)

    def state(self) -> dict[str, Any]:
        """Bytes so far and their sha256, for a checkpoint; what is told of is on disk."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return {"bytes": self.path.stat().st_size, "sha256": self._digest.hexdigest()}

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Forget what came after `state`; False when the file does not begin with what stood there then."""
        if not self.path.is_file():
            return False
        digest, left = hashlib.sha256(), state["bytes"]
        with self.path.open("rb") as file:
            while chunk := file.read(min(left, READ_AT_ONCE)):
                digest.update(chunk)
                left -= len(chunk)
        if digest.hexdigest() != state["sha256"]:
            return False
        self._digest = digest
        os.truncate(self.path, state["bytes"])
        return True

    def clear(self) -> None:
        """Begin anew."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(b"")
        self._digest = hashlib.sha256()
