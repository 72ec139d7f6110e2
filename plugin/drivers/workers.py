"""A small pool of daemon threads, for what blocks.

Why not `concurrent.futures`: its threads are joined at interpreter exit, so a read stuck in storage would
hold the process; and they live as long as the pool. Ours are daemons, started on demand and gone after
`IDLE_S` without work. Work is a callable that handles its own errors.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

IDLE_S = 1.0
"""Seconds a thread waits for more work before it ends."""

_log = logging.getLogger("headrace")


class Workers:
    """Threads that take work in order of arrival.

    Parameters
    ----------
    most
        Threads at a time.
    name
        Prefix of the threads' names.
    idle_s
        Seconds a thread waits for more work before it ends.
    """

    def __init__(self, most: int, name: str, idle_s: float = IDLE_S) -> None:
        self._most = most
        self._name = name
        self._idle_s = idle_s
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.RLock()  # a signal handler may read, too
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._started = 0

    def put(self, work: Callable[[], None], *, starts: bool = True) -> None:
        """Have `work` called on one of the threads; never blocks.

        Without `starts` no thread is started for it: the caller does that soon, with `start_needed`.
        """
        self._work.put(work)
        if starts:
            self._start_one()

    def start_needed(self) -> None:
        """Start a thread for each work that no idle one will take.

        A start waits until the thread runs, and beside busy Python threads that takes milliseconds: not to be
        done while others wait for a lock.
        """
        for _ in range(self._work.qsize() - self._idle):
            self._start_one()

    def _start_one(self) -> None:
        with self._lock:
            if self._idle >= self._work.qsize():
                return
            # By what is alive, not by a count: an interrupt may cut a thread's start.
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if len(self._threads) >= self._most:
                return
            self._started += 1
            name = f"{self._name}-{self._started}"
            thread = threading.Thread(target=self._serve, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self) -> None:
        while self._next():
            pass

    def _next(self) -> bool:
        with self._lock:
            self._idle += 1
        try:
            work = self._work.get(timeout=self._idle_s)
        except queue.Empty:
            return not self._leave()
        with self._lock:
            self._idle -= 1
        try:
            work()
        except Exception:  # noqa: BLE001 - told; the thread serves others too
            _log.exception("an error escaped from a read")
        return True

    def _leave(self) -> bool:
        """End this thread, unless work came while it made up its mind."""
        with self._lock:
            self._idle -= 1
            if not self._work.empty():
                return False
            # It may have been taken for dead while an interrupt held up its start.
            leaving = threading.current_thread()
            self._threads = [thread for thread in self._threads if thread is not leaving]
            return True
