"""Copies out of the page cache, and who has the GIL meanwhile.

A thread keeps the GIL for each: beside one that computes its next turn would come later than the copy's end.

* Others are let in now and then. Batch after batch keeps the GIL for nearly all of the time, and what little
  it is let go of only restarts the interval of those who wait: a thread that computed beside it had 1 to 9%
  of its rate.
* Threads that copy beside each other let go of it, and use as many processors as there are. Where one
  computes, too, each would get it back only after a turn of that, and so all keep it for a while; then one
  tries again.

What is noted here is of all threads and without a lock: an update that is lost costs a turn. A backend that
keeps the GIL anyway is none the worse for having been told that it need not.
"""

from __future__ import annotations

import sys
import threading
from time import perf_counter, sleep
from typing import NamedTuple

from headrace.drivers.turns import NAP_S

HELD = 4
"""The GIL is kept for so many switch intervals before others are let in: two of those have one each then."""

HELD_S = 0.004
"""And not for less than this."""

SEVERAL = 1.5
"""A copy that takes so many switch intervals has waited for more than one other's turn."""

TOGETHER_S = 0.01
"""Other threads copy, too, if one did so not longer ago than this."""

MOST_WAITS = 2
"""So many copies in a row that had to wait for somebody's turn are no accident."""

LEAST_KEPT_S, MOST_KEPT_S = 0.25, 1.0
"""For so long the GIL is kept then; twice as long each time."""


class Copy(NamedTuple):
    """A copy that is under way.

    Attributes
    ----------
    keeps_gil
        Whether the GIL is kept meanwhile.
    since_s
        When it began.
    before
        How many had ended by then, whichever thread's.
    """

    keeps_gil: bool
    since_s: float
    before: int


class Copies:
    """The process's copies out of the page cache."""

    def __init__(self) -> None:
        self._copier = 0
        """The thread that copied last."""
        self._began_s = self._last_s = 0.0
        """Since when others have had no turn, and when the last copy ended."""
        self._together_s = -TOGETHER_S
        """When a copy last followed another thread's."""
        self._count = 0
        self._usual_s = 0.0
        """What one takes: about the median, as some lose the GIL although it is kept."""
        self._waits = 0
        """Copies in a row, without the GIL, that had to wait for somebody's turn."""
        self._noted_s = 0.0
        """When the last of them ended: those that were under way then waited for the same turn."""
        self._kept_until_s = 0.0
        self._kept_s = LEAST_KEPT_S

    def begin(self, *, may_share: bool = True) -> Copy:
        """Say of the copy that begins now whether it is to keep the GIL."""
        me, now_s = threading.get_ident(), perf_counter()
        if me != self._copier:
            self._copier = me
            if now_s - self._last_s < TOGETHER_S:
                self._together_s = now_s
        is_together = may_share and now_s - self._together_s <= TOGETHER_S
        keeps_gil = not is_together or now_s < self._kept_until_s
        if not keeps_gil and self._waits >= MOST_WAITS:
            self._kept_until_s = now_s + self._kept_s  # this one tries, and the others wait for what it finds
        return Copy(keeps_gil, now_s, self._count)

    def end(self, copy: Copy) -> bool:
        """Note that it is over, and let others in, if they have had no turn for long.

        Returns whether several others have had one each meanwhile, though the GIL was kept: the more compute,
        the sooner after it is back the next one's interval is over, and turns should be shorter.
        """
        now_s, interval_s = perf_counter(), sys.getswitchinterval()
        before_s, self._last_s = self._last_s, now_s
        took_s = now_s - copy.since_s
        self._count += 1
        if took_s <= self._usual_s:
            self._usual_s *= 0.95
        elif copy.keeps_gil:  # else it may have waited
            self._usual_s = 1.05 * self._usual_s or took_s
        if not copy.keeps_gil and copy.since_s >= self._noted_s:
            explained_s = (self._count - copy.before) * self._usual_s
            self._note(now_s, is_wait=took_s - explained_s >= interval_s / 2)
        if now_s - before_s > max(interval_s, HELD_S / HELD):
            self._began_s = now_s  # somebody else had a turn
        if now_s - self._began_s > max(HELD * interval_s, HELD_S):
            sleep(NAP_S)
            self._began_s = self._last_s = perf_counter()
        return copy.keeps_gil and took_s > SEVERAL * interval_s

    def _note(self, now_s: float, *, is_wait: bool) -> None:
        """Note whether a copy waited for longer than others' copies explain: for a thread that computes."""
        if not is_wait:
            self._waits, self._kept_until_s, self._kept_s = 0, 0.0, LEAST_KEPT_S
            return
        self._noted_s = now_s
        self._waits += 1
        if self._waits >= MOST_WAITS:
            self._kept_until_s = now_s + self._kept_s
            self._kept_s = min(2 * self._kept_s, MOST_KEPT_S)
