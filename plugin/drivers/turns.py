"""Turns of the GIL: shorter ones of others while reads go through headrace.

Whoever comes back from storage must win the GIL, and a thread that computes in Python gives it up only when
it was asked to for a whole switch interval (`sys.setswitchinterval`, 5 ms by default). A scan comes back a
hundred times. So while something is read the interval is shorter, and afterwards what it was. The first read
does not wait for that: its own thread makes it shorter, and another gives it back.

It is the process's, so it is handled as a guest does:

* It is never made longer than the program's, and what the program sets meanwhile stands.
* A thread that no interrupt reaches gives it back when nobody has read for `KEEP_S` seconds. It is on its way
  before anything is set, and makes the interval shorter itself where the reader was interrupted. There is no
  count of who reads, which an interrupt could falsify. Of filesystems with different intervals the first
  one's holds until then.
"""

from __future__ import annotations

import _thread
import sys
import threading
from time import monotonic, perf_counter, sleep
from typing import TYPE_CHECKING

from headrace.threads import call_if_free

if TYPE_CHECKING:
    from collections.abc import Callable

KEEP_S = 1.0
"""Seconds without a read after which the interval is what it was: scans pause to decode."""

ALONE_S = 0.001
"""For so long a thread may have the GIL again and again, each time before who waits for it has woken up."""

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
        self._programs_us: int | None = None
        """The program's interval, in microseconds, while ours is in force."""
        self._ours_us = 0
        """What is in force, or about to be: anything else is the program's."""
        self._is_kept = threading.Lock()
        self._setting = threading.RLock()
        self._asked_s = -KEEP_S
        self._let_in_s = 0.0

    def let_others_in(self) -> None:
        """Let another thread have the GIL, if none was let in for a while; of who has just waited for a disk.

        A fast one takes less time than a thread needs to wake up. Who waits for the GIL is told when it is
        let go of, finds it taken again, begins his interval anew, and so never asks for it: a thread that
        read one block after the other kept others from it for 6 to 13 ms at a time.
        """
        now_s = perf_counter()
        if now_s - self._let_in_s > ALONE_S:
            sleep(NAP_S)
            self._let_in_s = perf_counter()

    def shorten(self, interval_s: float) -> None:
        """Have turns of `interval_s` seconds for now; 0 asks for nothing."""
        if not interval_s:
            return
        self._is_wanted = True
        if self._programs_us is None and interval_s < sys.getswitchinterval():
            self._begin(interval_s)

    def give_back(self) -> None:
        """Set the interval to what the program had, unless it has set another one since."""
        if self._programs_us is not None and _now_us() == self._ours_us:
            _set_us(self._programs_us)
        self._programs_us = None

    def forget(self) -> None:
        """Give it back in a forked child, where no keeper is, and nobody frees a lock that was held."""
        self._is_kept = threading.Lock()
        self._setting = threading.RLock()
        self._asked_s = -KEEP_S
        self.give_back()

    def _begin(self, interval_s: float) -> None:
        """Start the keeper, and do not wait for it: beside busy threads it takes 10 ms and more."""
        asked_s = monotonic()
        if self._is_kept.locked() or asked_s - self._asked_s < KEEP_S:
            return
        self._asked_s = asked_s
        try:
            _thread.start_new_thread(self._keep, (interval_s,))
        except RuntimeError as error:
            if not str(error).startswith("can't"):
                raise  # a signal handler's
            return  # no more threads, or the interpreter ends: turns stay as they are
        call_if_free(self._setting, self._set_early, interval_s, asked_s)

    def _set_early(self, interval_s: float, asked_s: float) -> None:
        """Shorten while the keeper, who stays for `KEEP_S` seconds, is there or to come."""
        if monotonic() - asked_s < KEEP_S:
            self._set(interval_s)

    def _set(self, interval_s: float) -> None:
        """Shorten, unless that was done; with the lock."""
        if self._programs_us is not None:
            return
        try:
            self._programs_us = _now_us()
            self._ours_us = min(round(interval_s * 1e6), self._programs_us)
            _set_us(self._ours_us)
        except BaseException:
            self.give_back()
            raise

    def _keep(self, interval_s: float) -> None:
        if not self._is_kept.acquire(blocking=False):
            return
        try:
            with self._setting:
                self._is_wanted = True  # whatever it was when this thread was asked for: it stays a while
                self._set(interval_s)
            self._wait_until_unwanted()
        finally:
            with self._setting:
                self.give_back()
            self._is_kept.release()

    def _wait_until_unwanted(self) -> None:
        while self._is_wanted or self._is_reading():
            self._is_wanted = False
            sleep(KEEP_S)


def _now_us() -> int:
    return round(sys.getswitchinterval() * 1e6)


def _set_us(micros: int) -> None:
    sys.setswitchinterval((micros + 0.5) / 1e6)  # it is cut to whole microseconds
