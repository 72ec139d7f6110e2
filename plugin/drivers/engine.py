"""A hub behind its lock: the only way in which threads change the scheduler core.

``with engine.lock, engine as hub:`` is one *section*. Leaving it, the thread settles what the hub owes
(finalisers' drops, admissions, wake-ups). An exception that arrived inside, at whatever line, makes it
restore the hub's derived numbers first (`Hub.recover`), so that an interrupt in one thread never costs
another its read (I5).

The lock is named beside the engine because a signal may be handled on entry to any Python function,
`__exit__` included: only a lock of C is let go whatever happens (bpo-29988). A section whose `__exit__`
was cut is mended by the next one; whoever waits looks up now and then and makes one (`catch_up`).

Re-entrancy. The lock is an `RLock` only so that a thread can ask whether it is inside already: a signal
handler or a finaliser that reads through headrace may interrupt the section itself. Such a read must not
wait for its own thread and runs unscheduled (`jobs.run_unscheduled`); that it took the result of another is
noted when the section ends (`taken`). Finalisers of abandoned reads take no lock: they append to a queue
which the lock's holder drains, then *try* the lock (I3).

Many threads. A thread that waits for a lock gets it before it gets the GIL, and beside threads that compute
the GIL takes a turn or two: meanwhile the others wait for the lock, and each in turn has it so. 64 threads
that read had 60 to 200 reads a second then, and 1,000 to 1,300 without. So hardly anybody waits for the lock
itself: `lock` is handed out once it is free, and who finds it held stands by until a section ends.
"""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from headrace.core.hub import Hub
from headrace.drivers.waiter import Waiter, check_process
from headrace.threads import call_locked, raise_if_of_a_handler

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from headrace.core.request import Request
    from headrace.core.scheduler import Scheduler


STAND_BY_S = 0.005
"""Seconds after which a thread that stands by looks by itself: who only looked at the lock tells nobody."""

MOST_LOOKS = 100
"""Then it waits for the lock like any other."""

_FOUND = object
"""Called with the lock, says that it was free."""


class Engine:
    """Owner of a hub's lock.

    Parameters
    ----------
    buffer_bytes, process_io_limit
        See `Hub`.
    """

    def __init__(self, *, buffer_bytes: int, process_io_limit: int) -> None:
        self.hub = Hub(
            buffer_bytes=buffer_bytes, process_io_limit=process_io_limit, is_of_a_handler=_is_of_a_handler
        )
        self.lost: deque[Any] = deque()
        """What nobody wants any more, and the next section cancels: jobs, weak references to dropped reads.

        Each knows its scheduler and request. To append is one step of C's, which no signal's handler cuts;
        `settle_lost` comes after it.
        """
        self.taken: deque[Callable[[], object]] = deque()
        """What a section's end, or the next one, is to note, each by a call that may be made twice.

        Results that were taken inside a section which was interrupted, and writes that are over.
        """
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._is_mine = self._lock._is_owned  # type: ignore[attr-defined]  # noqa: SLF001
        self._acquire = partial(self._lock.acquire, blocking=False)
        self._is_open = False
        # No deque: where `remove` finds nothing, CPython 3.11 loses what a signal's handler raises meanwhile.
        self._standing_by: dict[Waiter, bool] = {}

    @property
    def lock(self) -> Any:
        """The lock, as soon as nobody else has it: see the module's text."""
        if not (self._is_mine() or self._is_free()):
            self._stand_by()
        return self._lock

    def _stand_by(self) -> None:
        waiter = Waiter()
        for _ in range(MOST_LOOKS):
            self._standing_by[waiter] = True
            if not self._is_free():  # a section that ended before that line told nobody
                waiter.wait(STAND_BY_S)
            self._standing_by.pop(waiter, False)  # unless it was told
            if self._is_free():
                return
        self.check_process()

    def check_process(self) -> None:
        """Refuse to wait in a forked child for what its parent's threads have, or do."""
        check_process(self._pid)

    def _tell_them(self) -> None:
        """Wake those who stand by now; who comes meanwhile looks by himself."""
        for waiter in list(self._standing_by):
            if self._standing_by.pop(waiter, False):  # else another thread told it, or a handler's section
                waiter.wake()

    def is_inside(self) -> bool:
        """Whether this thread is in a section already, interrupted by what it runs now."""
        return bool(self._is_mine())

    def __enter__(self) -> Hub:
        if self._is_open:
            self._check_not_nested()
            self.hub.recover(perf_counter())
        self._is_open = True
        return self.hub

    def _check_not_nested(self) -> None:
        """Tell a section that was cut, and is to be mended, from one that is interrupted and goes on."""
        held = re.search(r"count=(\d+)", repr(self._lock))  # the only way to ask
        if held is not None and int(held[1]) > 1:
            msg = "a signal handler or finaliser that interrupted headrace cannot use its scheduler"
            raise RuntimeError(msg)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.hub.recover(perf_counter())
        self._settle()
        self._is_open = False
        # They need the GIL first, and this thread has it until it let go of the lock.
        self._tell_them()

    def _settle(self) -> None:
        while self.taken:  # first: what was taken is not lost, even if its owner is gone by now
            self.taken[0]()
            self.taken.popleft()
        while self.lost:
            lost = self.lost[0]
            request = getattr(lost, "request", None)
            if request is not None:  # else the read was cut while it was made, and submitted nothing
                self.hub.drop(lost.scheduler, request, is_left=getattr(lost, "is_left", False))
            self.lost.popleft()
        try:
            self.hub.settle(perf_counter())
        except BaseException:
            # Interrupted between two wake-ups or in an admission: mend, and finish what is owed.
            self.hub.recover(perf_counter())
            self.hub.settle(perf_counter())
            raise

    def drop(self, scheduler: Scheduler, request: Request) -> None:
        """Abandon a request from a finaliser, which may run at any line of any thread."""
        self.hub.drop(scheduler, request)
        self.drain_dropped()

    def drain_dropped(self) -> None:
        """Settle drops, unless a thread holds the lock: it will, or the next section does.

        Who had the lock without a section calls this after it: nobody has been told that it is free.
        """
        self._tell_them()
        while self._owes() and not self.is_inside() and self._has_settled():
            pass

    def settle_lost(self) -> None:
        """Cancel what is `lost`, before this returns; in a section that was interrupted its end does."""
        if self.lost and not self.is_inside():
            with self.lock, self:
                pass

    def catch_up(self) -> None:
        """Settle what a section that was cut, or a holder that looked too early, left behind."""
        if self._is_open or self._owes():
            self._has_settled()

    def _owes(self) -> bool:
        return bool(self.hub.dropped or self.lost or self.taken)

    def _is_free(self) -> bool:
        """Whether nobody has the lock."""
        return call_locked(self._lock, self._acquire, _FOUND) is not None

    def _has_settled(self) -> bool:
        """Make an empty section, if the lock is free."""
        return call_locked(self._lock, self._acquire, self._be_inside) is not None

    def _be_inside(self) -> object:
        with self:
            return _FOUND()


def _is_of_a_handler(error: Exception) -> bool:
    try:
        raise_if_of_a_handler(error)
    except Exception as raised:
        if raised is not error:  # another signal's, meanwhile
            raise
        return True
    return False
