"""Turns of the GIL: shorter ones of others while reads go through headrace, and none of ours without an end.

Whoever comes back from storage must win the GIL, and a thread that computes in Python gives it up only when
it was asked to for a whole switch interval (`sys.setswitchinterval`, 5 ms by default). A scan comes back a
hundred times. So while something is read the interval is shorter, and afterwards what it was.

It is the process's, so it is handled as a guest does:

* It is never made longer, and what the program sets meanwhile stands.
* A thread gives it back when nobody has read for `KEEP_S` seconds. There is no count of who reads, which an
  interrupt could falsify.

The other way round, a thread that copies batch after batch out of the page cache keeps the GIL for nearly all
of each, and what little it lets go of it only restarts the interval of those who wait: a thread that computed
beside it had 1 to 9% of its rate. So such a thread gets out of the way now and then (`let_others_in`).
"""

from __future__ import annotations

import contextlib
import sys
import threading
from time import perf_counter, sleep
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

KEEP_S = 1.0
"""Seconds without a read after which the interval is what it was: scans pause to decode."""

HELD_S = 0.002
"""The GIL is kept for two switch intervals, and not for less than this, before others are let in."""

NAP_S = 1e-5
"""As short as a sleep can be: who waits for the GIL wakes and has it."""


class Turns:
    """The process's switch interval, short while somebody reads.

    Parameters
    ----------
    is_reading
        Whether a read is under way, however long ago it began.
    """

    def __init__(self, is_reading: Callable[[], bool]) -> None:
        self._is_reading = is_reading
        self._is_wanted = False
        self._given: tuple[float, float] | None = None
        """What the program's interval was and ours is, in seconds; None while it is the program's."""
        self._began_s = self._last_s = 0.0
        self._lock = threading.RLock()  # a signal handler may read, too
        self._keeper: threading.Thread | None = None

    def shorten(self, interval_s: float) -> None:
        """Have turns of `interval_s` seconds at the most, for now; 0 leaves them as they are."""
        self._is_wanted = True
        if self._given is None and 0 < interval_s < sys.getswitchinterval():
            self._begin(interval_s)

    def give_back(self) -> None:
        """Set the interval to what the program had, unless it has set another one since."""
        given, self._given = self._given, None
        if given is not None and sys.getswitchinterval() == given[1]:
            sys.setswitchinterval(given[0])

    def let_others_in(self) -> None:
        """Let go of the GIL, if it was kept for long; to be called between two calls that keep it."""
        now_s, interval_s = perf_counter(), sys.getswitchinterval()
        if now_s - self._last_s > max(interval_s, HELD_S / 2):
            self._began_s = now_s  # somebody else had a turn
        self._last_s = now_s
        if now_s - self._began_s > max(2 * interval_s, HELD_S):
            sleep(NAP_S)
            self._began_s = self._last_s = perf_counter()

    def _begin(self, interval_s: float) -> None:
        with self._lock:
            if self._keeper is not None and self._keeper.is_alive():
                return
            self._keeper = threading.Thread(
                target=self._keep, args=(interval_s,), name="headrace-turns", daemon=True
            )
            with contextlib.suppress(RuntimeError):  # no more threads: turns stay as they are
                self._keeper.start()

    def _keep(self, interval_s: float) -> None:
        """Shorten, and give back: both on one thread, which no interrupt reaches in between."""
        found_s = sys.getswitchinterval()
        try:
            sys.setswitchinterval(interval_s)
            self._given = found_s, sys.getswitchinterval()  # in whole microseconds
            tick = threading.Event()
            while self._is_wanted or self._is_reading():
                self._is_wanted = False
                tick.wait(KEEP_S)
        finally:
            self.give_back()
