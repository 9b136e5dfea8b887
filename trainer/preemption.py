"""A machine that is taken away: SIGTERM, or the SIGUSR1 that Slurm sends before a job's time is up.

The signal sets a flag, which the loop reads between two steps: it saves and ends with code 0. A second signal ends at
once, as without this. Only the main thread of the main process listens: a worker of a pool must end when it is told.
"""

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preemption:
    """Whether the run was asked to end.

    Attributes:
        asked: True once a signal has come.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread() and multiprocessing.parent_process() is None:
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def forget(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True
        self.forget()


@contextlib.contextmanager
def preemption() -> Iterator[Preemption]:
    """Listen while the body runs."""
    listener = Preemption()
    listener.listen()
    try:
        yield listener
    finally:
        listener.forget()
