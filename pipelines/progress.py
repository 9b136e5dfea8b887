"""Progress of long work: bars on a terminal, silence in a pipe. All of it goes to stderr."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

console = Console(stderr=True)


class Tracker:
    """What a piece of long work reports to.

    Attributes:
        task: rich's task id, or None when nobody looks.
    """

    def __init__(self, progress: Progress | None, task: object = None) -> None:
        self._progress = progress
        self._task = task

    def update(self, done: float, note: str = "") -> None:
        """Say how much is done in total, and a short note such as `loss 3.41`."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, note=note)  # type: ignore[arg-type]


@contextlib.contextmanager
def track(label: str, total: float | None, unit: str) -> Iterator[Tracker]:
    """Show a bar while the body runs.

    Args:
        label: what is being done.
        total: amount of work, or None when unknown.
        unit: what is counted: `docs`, `tokens`, `steps`.
    """
    if not console.is_terminal:
        yield Tracker(None)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TextColumn(unit), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        yield Tracker(progress, progress.add_task(label, total=total, note=""))


@contextlib.contextmanager
def watch_counts(folder: Path, label: str) -> Iterator[None]:
    """Show the sum of the numbers in the files of `folder` while the body runs (documents done, one file per task)."""
    stop = threading.Event()

    def poll(tracker: Tracker) -> None:
        while not stop.wait(0.5):
            with contextlib.suppress(OSError, ValueError):
                tracker.update(sum(int(path.read_text() or 0) for path in folder.glob("[0-9]*")))

    with track(label, None, "docs") as tracker:
        thread = threading.Thread(target=poll, args=(tracker,), daemon=True)
        if console.is_terminal:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if thread.ident is not None:
                thread.join()
