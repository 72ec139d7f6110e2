"""How one thread sleeps until another wakes it.

A binary semaphore of one raw lock: waking twice is waking once, a wake before the wait is not lost, and it is
safe to wake from a finaliser or a signal handler (it never blocks).
"""

from __future__ import annotations

import _thread
import os

from headrace.errors import SchedulerClosedError

_AWAKE = "release unlocked"
"""What a raw lock says that nobody has."""


class Waiter:
    """Lets one thread sleep until another wakes it."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def wait(self, timeout_s: float = -1) -> bool:
        """Sleep until woken; False where the time ran out."""
        return self._lock.acquire(timeout=timeout_s)

    def wake(self, _request: object = None) -> None:
        """Wake the sleeper, or let its next `wait` return at once."""
        try:
            self._lock.release()
        except RuntimeError as error:
            if not str(error).startswith(_AWAKE):
                raise  # a signal handler's


def check_process(pid: int) -> None:
    """Refuse to wait in a process that was forked from `pid`: whoever would wake it stayed behind.

    A signal handler may fork in the middle of a call, and the child go on from there.

    Raises
    ------
    SchedulerClosedError
        It was.
    """
    if pid != os.getpid():
        msg = "this call was under way when the process was forked: the child has to begin its own"
        raise SchedulerClosedError(msg)
