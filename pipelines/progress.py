"""Progress of long work: bars on a terminal, a line now and then in a pipe or a log. All of it goes to stderr.

A line is due when `LOAM_PROGRESS` seconds (30; 0: never) have passed since the last one or since the program began, so
that what is quick says nothing, and a job's log shows where it is without being filled.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pipelines.quantities import human

console = Console(stderr=True)
LINE_SECONDS = 30.0
POLL_SECONDS = 0.5
_last_line = time.monotonic()


def line_seconds() -> float:
    """Seconds between lines where there is no terminal; 0: no lines."""
    try:
        return max(0.0, float(os.environ.get("LOAM_PROGRESS", LINE_SECONDS)))
    except ValueError:
        return LINE_SECONDS


def line_when_due(text: str) -> None:
    """Print a line on stderr, unless the last one is younger than `line_seconds` or there is a terminal."""
    global _last_line
    every, now = line_seconds(), time.monotonic()
    if every and not console.is_terminal and now - _last_line >= every:
        _last_line = now
        print(f"loam: {text}", file=sys.stderr, flush=True)


class Tracker:
    """What a piece of long work reports to.

    Attributes:
        label: what is being done.
        total: amount of work, or None when unknown.
        unit: what is counted.
    """

    def __init__(
        self, label: str, total: float | None, unit: str, progress: Progress | None = None, task: object = None
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self._progress = progress
        self._task = task
        self._began = time.monotonic()

    def update(self, done: float, note: str = "") -> None:
        """Say how much is done in total, and a short note such as `loss 3.41`."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, note=note)  # type: ignore[arg-type]
            return
        of = f" of {human(self.total)}" if self.total else ""
        seconds = time.monotonic() - self._began
        line_when_due(f"{self.label}: {human(done)}{of} {self.unit} in {seconds:.0f} s" + (f", {note}" if note else ""))


@contextlib.contextmanager
def track(label: str, total: float | None, unit: str) -> Iterator[Tracker]:
    """Show a bar, or lines where there is no terminal, while the body runs.

    Args:
        label: what is being done.
        total: amount of work, or None when unknown.
        unit: what is counted: `docs`, `tokens`, `steps`.
    """
    if not console.is_terminal:
        yield Tracker(label, total, unit)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TextColumn(unit), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        yield Tracker(label, total, unit, progress, progress.add_task(label, total=total, note=""))


@contextlib.contextmanager
def watch_counts(folder: Path, label: str) -> Iterator[None]:
    """Show the sum of the numbers in the files of `folder` while the body runs (documents done, one file per task)."""
    stop = threading.Event()

    def poll(tracker: Tracker) -> None:
        while not stop.wait(POLL_SECONDS):
            with contextlib.suppress(OSError, ValueError):
                tracker.update(sum(int(path.read_text() or 0) for path in folder.glob("[0-9]*")))

    with track(label, None, "docs") as tracker:
        thread = threading.Thread(target=poll, args=(tracker,), daemon=True)
        if console.is_terminal or line_seconds():
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if thread.ident is not None:
                thread.join()
