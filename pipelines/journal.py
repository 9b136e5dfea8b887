"""The journal of a run: what took how long, and how fast; one JSON line per event.

Everything that a clock or a machine decides is written here and nowhere else, so that manifests and outputs are the
same bytes on every run. Nothing reads it to decide anything; `loam show` prints it.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEPT_JOURNAL = ".journal"
"""Folder within a step's own for what a clock or a machine decides; published with it, neither hashed nor listed."""

_path: Path | None = None


@contextlib.contextmanager
def journal_to(path: Path) -> Iterator[None]:
    """Send events of this process to `path` while the body runs."""
    global _path
    end_torn_line(path)
    before, _path = _path, path
    try:
        yield
    finally:
        _path = before


def record(event: str, **fields: Any) -> None:
    """Append an event; does nothing when no journal is open."""
    if _path is not None:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **fields}, ensure_ascii=False)
        with _path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def end_torn_line(path: Path) -> None:
    """Give a line that a kill cut short an end of its own, so that the next event stands on a line of its own."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All whole events, oldest first (a line cut by a kill is passed over)."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return events
