"""Limits on the rows of a function that calls out: how many at a time, and how many a second."""

from __future__ import annotations

import math
import threading
import time


class RowLimit:
    """At most ``concurrency`` rows at the same time, and a row at most every ``1 / per_second`` seconds.

    It is kept in the process of the pool, which starts rows in whichever child: children that are replaced, or added
    for slow rows, change nothing. Rows are spaced evenly, so that no second sees more than ``per_second`` of them, and
    the first one waits a full interval: a pool that is started again does not begin with a burst. Safe for threads.

    Args:
        concurrency: 0 = no limit.
        per_second: 0 = no limit.
    """

    def __init__(self, concurrency: int = 0, per_second: float = 0.0) -> None:
        self._lock = threading.Lock()
        self._places = concurrency or math.inf
        self._interval_s = 1.0 / per_second if per_second else 0.0
        self._next_at = time.monotonic() + self._interval_s

    def delay_s(self) -> float:
        """Seconds until a row may start; infinite while all places are taken, 0 when it may now."""
        with self._lock:
            return self._delay_s()

    def take(self) -> bool:
        """Start a row, if one may start now; it must be given back when it is over."""
        with self._lock:
            if self._delay_s() > 0:
                return False
            self._places -= 1
            self._next_at = time.monotonic() + self._interval_s
            return True

    def give_back(self) -> None:
        with self._lock:
            self._places += 1

    def _delay_s(self) -> float:
        return max(0.0, self._next_at - time.monotonic()) if self._places > 0 else math.inf
