"""How benchmarks count time: CPU seconds, so that what else the machine does counts for neither side."""

import os
import time
from collections.abc import Callable


def cpu_seconds(action: Callable[[], object], rounds: int = 1) -> float:
    """The least of some runs, in the time of this process and of the children that ended in it."""
    return min(_once(action) for _ in range(rounds))


def _once(action: Callable[[], object]) -> float:
    before, began = os.times(), time.process_time()
    action()
    own, after = time.process_time() - began, os.times()
    return own + sum(after[2:4]) - sum(before[2:4])
