"""The driver of async backends in lite mode: whoever waits runs the event loop.

A waiter runs it on its own thread until its own request is over (9 µs to run a coroutine here, 104 µs to hand
it over and wait). One thread at a time holds the *baton*, the right to run the loop; a waiter that leaves
offers it to another that waits (I5). Where nobody can poll (a read submitted and left, an async caller, a
thread that runs a loop already) the *keeper* takes the baton, after `KEEPER_S` without anyone polling or at
once, and keeps it until nothing is in flight, so no response is left half read and no time-out passes unseen;
it stays as long as what was submitted is not over, for its grants may come late, by another's end.

The main thread defers SIGINT while it runs the loop: a KeyboardInterrupt raised inside a step of another's
task would end that task (I5). It is raised when the loop has stopped, which is at once. Where a program
handles other signals in Python, its main thread leaves the loop to the keeper: a handler that raises inside
asyncio's own code would lose what it was about to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from typing_extensions import override

from headrace.drivers import interrupts
from headrace.drivers.asynchronous import CLOSE_S, AsyncDriver
from headrace.drivers.starting import start_thread
from headrace.drivers.waiter import Waiter
from headrace.drivers.waiting import LOOK_S, announce, check_caller, deadline, late, wait_until_over
from headrace.threads import call_locked

if TYPE_CHECKING:
    from headrace.backends.abc import AsyncBackend
    from headrace.drivers.job import Job
    from headrace.drivers.loop import LoopThread

KEEPER_S = 0.05
"""Seconds that an op in flight may go unpolled before the keeper takes over."""


class LiteAsyncDriver(AsyncDriver):
    """The waiter runs the loop itself; arguments as `AsyncDriver`'s, whose thread is not started."""

    def __init__(self, backend: AsyncBackend, thread: LoopThread, try_timeout_s: float | None = None) -> None:
        super().__init__(backend, thread, try_timeout_s)
        self._baton = threading.RLock()
        self._take_baton = partial(self._baton.acquire, blocking=False)
        self._parked: dict[int, Job] = {}
        self._driving: Job | None = None
        self._driver_ident = 0
        self._left: dict[int, Job] = {}  # submitted, and not over: granted late, somebody has to drive them
        self._is_cut = False  # whoever ran the loop last was interrupted inside a turn of it
        self._keeper: threading.Thread | None = None
        self._keeper_lock = threading.RLock()  # a signal handler may read, too
        self._is_wanted = Waiter()

    @override
    def launch(self, job: Job) -> None:
        """Submit without waiting; the keeper polls it if nobody does."""
        self._left[id(job)] = job
        try:
            super().launch(job)
        except BaseException:
            self._left.pop(id(job), None)  # perhaps it was never submitted, and then never ends
            raise
        if not job.request.is_awaited:
            self.keep(KEEPER_S)

    @override
    def run(self, job: Job, timeout_s: float | None = None) -> None:
        """Submit, run the loop until the request is over, and leave nothing without a driver."""
        try:
            super().run(job, timeout_s)
        finally:
            if job.request.grants:
                self._offer()

    @override
    def launch_unpolled(self, job: Job) -> None:
        """Submit what nobody polls: the keeper drives at once."""
        self.launch(job)
        self.keep(0)

    @override
    def _begin(self, job: Job, timeout_s: float | None) -> None:
        self._submit(job)  # a loop that this thread is about to run need not be woken

    @override
    def wait(self, job: Job, timeout_s: float | None = None) -> None:
        """Run the loop until the request is over, or wait while another thread does."""
        if self._driver_ident == threading.get_ident():
            msg = "a signal handler that interrupted headrace's event loop cannot wait for that loop"
            raise RuntimeError(msg)
        if _runs_a_loop() or job.request.is_nested or interrupts.may_raise():
            self._tell_loop()
            self.keep(0)
            check_caller(job)
            wait_until_over(job, timeout_s, revive=partial(self.keep, 0))
            return
        with interrupts.watched(job) if interrupts.is_watched() else contextlib.nullcontext():
            self._poll(job, timeout_s)

    def _poll(self, job: Job, timeout_s: float | None) -> None:
        announce(job)
        until_s = deadline(timeout_s)
        self._parked[id(job)] = job
        try:
            self._drive_or_wait(job, until_s)
        finally:
            self._parked.pop(id(job), None)
            job.waiter.wake()  # threads may share one read: each that leaves wakes the next
            self._offer()

    def _drive_or_wait(self, job: Job, until_s: float | None) -> None:
        while not job.request.is_over:
            if not self._drive(job, until_s):
                left_s = LOOK_S if until_s is None else min(LOOK_S, until_s - perf_counter())
                if not job.waiter.wait(max(left_s, 0.0)):
                    job.engine.check_process()
            _check_deadline(job, until_s)

    def _drive(self, job: Job, until_s: float | None) -> bool:
        """Hold the baton until `job` is over, if it is free; returns whether it was."""
        was_free = call_locked(self._baton, self._take_baton, self._run_for, job, until_s)
        if not was_free:
            self._tell_loop()
        return bool(was_free)

    def _run_for(self, job: Job, until_s: float | None) -> bool:
        """Run the loop until `job` is over; this thread has the baton, and says so."""
        timer = None
        try:
            with interrupts.Deferred(partial(self.loop.call_soon_threadsafe, self.loop.stop)):
                self._driving, self._driver_ident = job, threading.get_ident()
                if until_s is not None:
                    timer = self.loop.call_later(until_s - perf_counter(), self.loop.stop)
                if not job.request.is_over:
                    self._run_loop()
        finally:
            self._driving, self._driver_ident = None, 0
            if timer is not None:
                timer.cancel()
        return True

    def _run_loop(self) -> None:
        """Run it until it is stopped."""
        try:
            self._is_cut = False
            if self._granted:
                self.loop.call_soon(self._take_all)
            self.loop.run_forever()
        except BaseException:
            self._is_cut = True
            raise

    @override
    def has_work(self) -> bool:
        """Whether the loop has to run: after an interrupt its callbacks wait, and hold what they are for."""
        return self._is_cut or super().has_work()

    def _offer(self) -> None:
        """Pass the baton: wake one that waits, or see that what is in flight has a keeper (I5)."""
        for parked in list(self._parked.values()):
            if not parked.request.is_over:
                parked.waiter.wake()
                return
        if self.has_work() and not self._driver_ident:
            self.keep(KEEPER_S)

    @override
    def _start_closing(self) -> None:
        """Close the session and the loop, which is this driver's own, once nobody drives it."""
        start_thread(threading.Thread(target=self._close_loop, name="headrace-keeper", daemon=True))

    @override
    def _close_here(self) -> None:
        """Do so on this thread, without a long wait for who drives it."""
        self._close_loop(CLOSE_S)

    def _close_loop(self, patience_s: float = -1) -> None:
        if not self._baton.acquire(timeout=patience_s):
            return
        try:
            if not self.loop.is_closed():
                self.loop.run_until_complete(self._close())
                self.loop.close()
        finally:
            self._baton.release()
            self.closed.set()

    @override
    def _revive(self, *, is_waiting: bool = True) -> None:
        """Nobody to revive: waiters drive, and `wait` offers the baton."""

    @override
    def _woken(self, job: Job) -> None:
        self._left.pop(id(job), None)
        job.notify()
        if self._driving is not job:
            return
        if self._is_completing():
            self.loop.stop()  # after this turn of the loop, which this thread is in
        else:
            self.loop.call_soon_threadsafe(self._stop_for, job)

    def _stop_for(self, job: Job) -> None:
        """Stop the loop if the thread that runs it still does so for `job`."""
        if self._driving is job:
            self.loop.stop()

    # -- the keeper

    def keep(self, after_s: float) -> None:
        """Have the keeper take the baton once nobody polled for `after_s` seconds."""
        if after_s == 0:
            self._is_wanted.wake()
        keeper = self._keeper
        # Not `current_thread`, which makes an object for each of Arrow's threads.
        if keeper is not None and keeper.ident == threading.get_ident() and keeper.is_alive():
            return  # it looks again by itself
        with self._keeper_lock:
            if self._keeper is None or not self._keeper.is_alive():
                keeper = threading.Thread(target=self._serve, name="headrace-keeper", daemon=True)
                self._keeper = keeper
                start_thread(keeper)

    def _serve(self) -> None:
        """Drive while there is work and nobody else does; end when there is none, and none can come."""
        idle = 0
        while idle < 20 or not self._has_left():  # noqa: PLR2004
            self._is_wanted.wait(KEEPER_S)
            if not self.has_work():
                idle = 0 if self._left else idle + 1
                continue
            idle = 0
            if self._baton.acquire(timeout=KEEPER_S):
                self._run_until_idle()

    def _has_left(self) -> bool:
        """End this thread, unless it is wanted: whoever wants a keeper asks, with the same lock, for another.

        An async caller asks once, and does not look after it. The lock is not waited for: the main thread may
        have it below a signal handler, which waits for what only this thread drives.
        """
        if not self._keeper_lock.acquire(blocking=False):
            return False
        try:
            if self._left or self.has_work() or self._is_wanted.wait(0):
                self._is_wanted.wake()  # it looks at once
                return False
            if self._keeper is threading.current_thread():
                self._keeper = None
            return True
        finally:
            self._keeper_lock.release()

    def _run_until_idle(self) -> None:
        try:
            self._driver_ident = threading.get_ident()
            self.loop.call_soon(self._stop_when_idle)
            self._run_loop()
        except BaseException as error:
            if not isinstance(error, Exception):  # of a task: asyncio hands it to who runs the loop
                self._keeper = None  # this one ends, and what else is on the loop needs another
            raise
        finally:
            self._driver_ident = 0
            self._baton.release()
            self._offer()

    def _stop_when_idle(self) -> None:
        if self.has_work():
            self.loop.call_later(KEEPER_S / 5, self._stop_when_idle)
        else:
            self.loop.stop()


def _runs_a_loop() -> bool:
    """Whether this thread is inside a running event loop (Jupyter, an async caller's callback)."""
    return asyncio._get_running_loop() is not None  # noqa: SLF001


def _check_deadline(job: Job, until_s: float | None) -> None:
    if until_s is not None and not job.request.is_over and perf_counter() >= until_s:
        raise late(job, "in time")
