"""How many requests a server gets at once, and how long to wait after it failed.

Additive increase, multiplicative decrease, as TCP does it: every answer opens the window by one until the first sign of
strain, then by one per window of answers; a sign of strain halves it, once for all requests that were under way then.
Waits double with a random jitter, so that many requests do not return together. Neither changes an answer: what is
random here never reaches a byte.
"""

import math
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

FIRST = 8  # requests at once before a server has shown what it bears
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0


class Pace:
    """The window of requests under way.

    Args:
        ceiling: most at once.
    """

    def __init__(self, ceiling: int) -> None:
        self.ceiling = ceiling
        self.limit = float(min(FIRST, ceiling))
        self._threshold = float(ceiling)
        self._tickets = 0
        self._since = 0

    def launch(self) -> int:
        """A ticket for a request that is sent now."""
        self._tickets += 1
        return self._tickets

    def answered(self) -> None:
        """Open the window."""
        step = 1.0 if self.limit < self._threshold else 1.0 / self.limit
        self.limit = min(float(self.ceiling), self.limit + step)

    def strained(self, ticket: int) -> None:
        """Halve the window, unless the request was sent before it was last cut."""
        if ticket > self._since:
            self._cut(self.limit / 2)

    def broken(self) -> None:
        """One at a time: the server went down under some request, and the others should not suffer for it again."""
        self._cut(1.0)

    def _cut(self, limit: float) -> None:
        self.limit = max(1.0, limit)
        self._threshold = max(2.0, self.limit)
        self._since = self._tickets


def backoff_s(failures: int) -> float:
    """Seconds to wait after so many failures (from 1): doubling, between half and all of it."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(failures - 1, 16)) * random.uniform(0.5, 1.0)


def wish_of(header: str | None) -> float | None:
    """Seconds that a `Retry-After` header asks for, given in seconds or as a date; None where it says nothing."""
    if not header:
        return None
    try:
        seconds = float(header)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(header)
        return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):  # no date, or one beyond the calendar
        return None
