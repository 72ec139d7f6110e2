"""How a call waits for descriptors that other reads are about to close.

Nobody tells of that: a file is closed by a call of C's. So whoever waits tries again, after pauses that
become longer. Where the program itself holds all descriptors that ends soon, once for all files of a call,
and no later than the time-out of that.
"""

from __future__ import annotations

from math import inf
from time import perf_counter, sleep

PATIENCE_S = 1.0
"""In all: others' reads of a file or two take less, and more would be no answer where nobody closes any."""

FIRST_PAUSE_S = 0.001
LONGEST_PAUSE_S = 0.05


class Patience:
    """The pauses of one call.

    Parameters
    ----------
    until_s
        When its time-out is over, on the clock of `perf_counter`, if it has one.
    """

    def __init__(self, until_s: float | None = None) -> None:
        self._until_s = inf if until_s is None else until_s
        self._left_s = PATIENCE_S
        self._pause_s = FIRST_PAUSE_S

    def pause(self) -> bool:
        """Wait a little; False where nothing is left of it."""
        pause_s = min(self._pause_s, self._until_s - perf_counter())
        if min(self._left_s, pause_s) <= 0:
            return False
        self._left_s -= pause_s
        sleep(pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return True
