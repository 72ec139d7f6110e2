"""Starting threads: where a signal handler may raise at any line, and without waiting for them."""

from __future__ import annotations

import _thread
import threading
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from headrace.drivers.interrupts import may_raise

if TYPE_CHECKING:
    from collections.abc import Callable


class Daemon(threading.Thread):
    """A daemon thread whose start does not wait until it runs.

    `Thread.start` returns when the new thread has had its first turn of the GIL, and the caller one more.
    Beside threads that compute, forty of them cost a tenth of a second so, where they can all begin at once.
    """

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)
        # What `Thread.start` waits for, and `Thread` else only looks at. Were it named differently by another
        # Python, starts would wait.
        self._started = _Unawaited()
        self._is_coming = False

    @override
    def start(self) -> None:
        """Have it run soon."""
        super().start()
        self._is_coming = True

    @override
    def join(self, timeout: float | None = None) -> None:
        """Wait for its end: first until it runs."""
        if not self._is_coming or threading.Event.wait(self._started, timeout):
            super().join(timeout)

    @override
    def is_alive(self) -> bool:
        """Whether it runs, or is about to."""
        # In this order: it may begin in between.
        return (self._is_coming and not self._started.is_set()) or super().is_alive()


class _Unawaited(threading.Event):
    @override
    def wait(self, timeout: float | None = None) -> bool:
        return True


def start_thread(thread: threading.Thread) -> None:
    """Start a thread; what a signal handler raises meanwhile comes out as it is, and the thread runs.

    Cut at one place or another, `Thread.start` has the new thread end at once, raises a KeyError, or puts an
    exception of a lock's own in the place of the handler's.

    Raises
    ------
    RuntimeError
        There can be no more threads, or the interpreter ends.
    """
    call_unbroken(_start, thread)


def call_unbroken(function: Callable[..., None], *args: Any) -> None:
    """Call what no signal handler may cut; on another thread where one may raise at any line of this one.

    No handler interrupts other threads than the main one.
    """
    if not may_raise():
        function(*args)
        return
    is_over = _thread.allocate_lock()
    is_over.acquire()
    errors: list[BaseException] = []

    def call() -> None:
        try:
            function(*args)
        except BaseException as error:  # noqa: BLE001 - the caller's
            errors.append(error)
        finally:
            is_over.release()

    _thread.start_new_thread(call, ())
    is_over.acquire()
    if errors:
        raise errors[0]


def _start(thread: threading.Thread) -> None:
    try:
        thread.start()
    except RuntimeError as error:
        raised = error.__context__  # a KeyboardInterrupt, where Python's own handler is the only one
        if raised is None or str(error) != "release unlocked lock":
            raise
    else:
        return
    raise raised
