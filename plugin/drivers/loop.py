"""The background loop thread of a process, and the keepers of owned loops.

* `LoopThread` runs an asyncio event loop, for async backends: sessions are bound to the loop object, which
  outlives its thread.
* `Dispatcher` runs a queue of calls, for inline backends: a hand-over through `queue.SimpleQueue` is one
  C lock, where waking an asyncio loop is a system call to its self-pipe, a select, and a pass of the loop
  (measured: 25 µs against 60 µs there and back).

Both are daemons, started when they are first called and, should they die, again (`ensure`).
"""

from __future__ import annotations

import abc
import asyncio
import logging
import queue
import threading
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from headrace.drivers.starting import start_thread
from headrace.threads import call_if_free

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_log = logging.getLogger("headrace")


class _OneThread(abc.ABC):
    """A daemon thread that serves until it is closed, and is started again should it die.

    Parameters
    ----------
    name
        Of the thread.
    """

    def __init__(self, name: str = "headrace-loop") -> None:
        self.name = name
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()  # a signal handler may read, too
        self._is_served = threading.Lock()
        self._ident = 0

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._is_served.locked()

    def is_current(self) -> bool:
        """Whether the calling thread is this one."""
        return self._ident == threading.get_ident()

    def ensure(self) -> None:
        """Start the thread, unless it runs."""
        if not self.is_alive:
            with self._lock:
                self._start()

    def ensure_soon(self) -> None:
        """Start the thread, unless it runs or somebody is about to start it.

        Who calls this may have the engine's lock, and that somebody be the main thread, below a signal
        handler that waits for that lock. Who waits for what the thread does ensures that it runs.
        """
        if not self.is_alive:
            call_if_free(self._lock, self._start)

    def _start(self) -> None:
        if not self.is_alive:
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            start_thread(self._thread)

    def _run(self) -> None:
        # An interrupt may cut the wait for a thread's start, and the next read starts a second.
        if not self._is_served.acquire(blocking=False):
            return
        is_cut = True
        try:
            self._ident = threading.get_ident()
            self._serve()
            is_cut = False
        finally:
            self._ident = 0
            self._is_served.release()
            if is_cut:  # others' reads are with it, and who awaits one on a loop cannot look after it
                self.ensure()

    @abc.abstractmethod
    def _serve(self) -> None:
        """Serve until the thread is closed."""


class LoopThread(_OneThread):
    """An event loop and the thread that runs it."""

    def __init__(self, name: str = "headrace-loop") -> None:
        super().__init__(name)
        self.loop = asyncio.new_event_loop()
        self._unfinished: set[asyncio.Task[None]] = set()

    @override
    def _start(self) -> None:
        if not self.loop.is_closed():
            super()._start()

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Have `function(*args)` called on the loop; never blocks."""
        self.loop.call_soon_threadsafe(function, *args)
        if not self.is_alive:
            self.ensure_soon()

    def finish_before_end(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine that `close` waits for; on the loop, which itself keeps no task alive."""
        task = self.loop.create_task(coroutine)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        return task

    def close(self, timeout_s: float = 1.0) -> None:
        """Stop and close the loop when it has finished what it must, but in so many seconds.

        What else is scheduled on it is dropped.
        """
        thread = self._thread
        if thread is not None and thread.is_alive() and not self.is_current():
            for stop in (self._stop, self.loop.stop):
                self.loop.call_soon_threadsafe(stop)
                thread.join(timeout_s)
                if not thread.is_alive():
                    break
        if not self.loop.is_running():
            self.loop.close()

    def _stop(self) -> None:
        if self._unfinished:
            next(iter(self._unfinished)).add_done_callback(lambda _: self._stop())
        else:
            self.loop.stop()

    @override
    def _serve(self) -> None:
        try:
            asyncio.set_event_loop(self.loop)
            self.loop.run_forever()
        except Exception:  # noqa: BLE001 - told, and mended by the next read
            _log.exception("the background loop stopped; it is started again by the next read")


class Dispatcher(_OneThread):
    """A thread that makes the calls it is given, in order."""

    def __init__(self, name: str = "headrace-loop") -> None:
        super().__init__(name)
        self._calls: queue.SimpleQueue[tuple[Callable[..., object], tuple[Any, ...]] | None]
        self._calls = queue.SimpleQueue()

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Have `function(*args)` called on the thread; never blocks."""
        self._calls.put((function, args))
        if not self.is_alive:
            self.ensure_soon()

    def close(self, timeout_s: float = 1.0) -> None:
        """End the thread after the calls it has."""
        thread = self._thread
        if thread is not None and thread.is_alive():
            self._calls.put(None)
            thread.join(timeout_s)

    @override
    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            function, args = call
            try:
                function(*args)
            except Exception:  # noqa: BLE001 - told; the loop serves others too
                _log.exception("an error escaped from the background loop")
            del call, function, args  # an idle loop must not keep the last read's buffers alive
