"""Starting threads where a signal handler may raise at any line."""

from __future__ import annotations

import _thread
from typing import TYPE_CHECKING

from headrace.drivers.interrupts import may_raise

if TYPE_CHECKING:
    import threading


def start_thread(thread: threading.Thread) -> None:
    """Start a thread; what a signal handler raises meanwhile comes out as it is, and the thread runs.

    Cut at one place or another, `Thread.start` has the new thread end at once, raises a KeyError, or puts an
    exception of a lock's own in the place of the handler's. No handler interrupts other threads than the main
    one, so one of them starts it where that may come.

    Raises
    ------
    RuntimeError
        There can be no more threads, or the interpreter ends.
    """
    if may_raise():
        _start_apart(thread)
        return
    try:
        thread.start()
    except RuntimeError as error:
        raised = error.__context__  # a KeyboardInterrupt, where Python's own handler is the only one
        if raised is None or str(error) != "release unlocked lock":
            raise
    else:
        return
    raise raised


def _start_apart(thread: threading.Thread) -> None:
    is_started = _thread.allocate_lock()
    is_started.acquire()
    errors: list[BaseException] = []

    def start() -> None:
        try:
            thread.start()
        except BaseException as error:  # noqa: BLE001 - the caller's
            errors.append(error)
        finally:
            is_started.release()

    _thread.start_new_thread(start, ())
    is_started.acquire()
    if errors:
        raise errors[0]
