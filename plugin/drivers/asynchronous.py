"""Drivers of async backends: ops are coroutines on one owned event loop.

Who runs that loop is the only difference between the modes:

* *standard*: the background loop thread, always.
* *lite*: a waiter runs it on its own thread until its own request is over (9 µs to run a coroutine here,
  104 µs to hand it over and wait). One thread at a time holds the *baton*, the right to run the loop; a
  waiter that leaves offers it to another that waits (I5). Where nobody can poll (a read submitted and left,
  an async caller, a thread that runs a loop already) the *keeper* takes the baton, after `KEEPER_S`
  without anyone polling or at once, and keeps it until nothing is in flight, so no response is left half
  read and no time-out passes unseen.
* A filesystem bound to a foreign loop is awaited there, and nobody needs to drive.

An op whose attempt failed in a way that another may cure is tried again, when the core says so
(`core.retry`). While it sleeps it keeps its reservation *and its place in the window*: in an outage nothing
new is started, and no more ops are burnt than were in flight. The price, with a few faults, is a place that
is idle for some milliseconds, and the window grows by it.

The main thread defers SIGINT while it runs the loop: a KeyboardInterrupt raised inside a step of another's
task would end that task (I5). It is raised when the loop has stopped, which is at once. Where a program
handles other signals in Python, its main thread leaves the loop to the keeper: a handler that raises inside
asyncio's own code would lose what it was about to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections import deque
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from headrace.core.request import State
from headrace.drivers import interrupts
from headrace.drivers.hedged import hedged
from headrace.drivers.inline import forfeit
from headrace.drivers.job import Waiter
from headrace.drivers.permit import permitted
from headrace.drivers.threaded import check_delivery, permit_of
from headrace.drivers.waiting import LOOK_S, announce, wait_until_over
from headrace.errors import ReadTimeoutError
from headrace.types import TRY_TIMEOUT_S, UNKNOWN_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headrace.backends.abc import AsyncBackend
    from headrace.core.request import Grant, Request
    from headrace.drivers.job import Job
    from headrace.drivers.loop import LoopThread

KEEPER_S = 0.05
"""Seconds that an op in flight may go unpolled before the keeper takes over."""

CLOSE_S = 1.0
"""The longest a session may take to close."""

_log = logging.getLogger("headrace")


class AsyncDriver:
    """Performs ops on an event loop that a thread of headrace's, or a foreign one, always runs.

    Parameters
    ----------
    backend
        Bound to the loop here.
    thread
        The loop's thread.
    try_timeout_s
        Seconds for one attempt of an op; None: `TRY_TIMEOUT_S`.
    """

    def __init__(self, backend: AsyncBackend, thread: LoopThread, try_timeout_s: float | None = None) -> None:
        self.backend = backend
        self.try_timeout_s = try_timeout_s or TRY_TIMEOUT_S
        self.thread = thread
        self.loop: asyncio.AbstractEventLoop = backend.foreign_loop or thread.loop
        self._granted: deque[Job] = deque()  # whose grants, or whose end, the loop has not seen yet
        self._tasks: set[asyncio.Task[None]] = set()
        self._pid = os.getpid()  # a forked child must leave its parent's loop alone
        self._completer_ident = 0  # of the thread that runs the loop, while it completes an op
        self._closing: asyncio.Task[None] | None = None
        backend.bind(self.loop)

    def launch(self, job: Job) -> None:
        """Submit without waiting."""
        try:
            self._submit(job)
        finally:
            self._tell_loop()

    def _submit(self, job: Job) -> None:
        """Submit, and leave it to the caller to tell the loop.

        That gives up the GIL, and here the lock is held: beside a busy thread the loop's first turn would end
        at it, and both threads would wait for another.
        """
        is_submitting = [True]
        job.request.on_wake = partial(self._wake, job, is_submitting)
        try:
            job.submit()
        finally:
            is_submitting.clear()

    def run(self, job: Job, timeout_s: float | None = None) -> None:
        """Submit and return when the request is over."""
        job.request.is_awaited = True
        try:
            self._begin(job)
            self.wait(job, timeout_s)
        finally:
            if job.request.state is not State.COMPLETE:
                job.cancel()
                self._tell_loop()

    def _begin(self, job: Job) -> None:
        """Submit what this thread is about to wait for."""
        self.launch(job)

    def wait(self, job: Job, timeout_s: float | None = None) -> None:
        """Wait for what `launch` submitted."""
        wait_until_over(job, timeout_s, revive=self._look)

    def _look(self) -> None:
        self._revive()
        self._tell_loop()  # whoever was to do that may have been interrupted

    def _revive(self) -> None:
        if self.backend.foreign_loop is None:
            self.thread.ensure()

    def close(self, timeout_s: float = 0.0) -> None:
        """Have the backend's session closed on the loop, and wait so long for it.

        Finalisers call it too, on any thread and at any line of it: without `timeout_s` it never waits.
        """
        is_ours = self.backend.foreign_loop is None and os.getpid() == self._pid
        if not is_ours or self.loop.is_closed():
            return
        closed = threading.Event()
        self.thread.call(self._begin_close, closed)
        if timeout_s and not self.thread.is_current():
            closed.wait(timeout_s)

    def _begin_close(self, closed: threading.Event) -> None:
        """Start closing; on the loop, which keeps no strong reference to its tasks."""
        task = self.loop.create_task(self._close())
        self._closing = task
        task.add_done_callback(lambda _: closed.set())

    async def _close(self) -> None:
        """Close the session once nothing is in flight, `CLOSE_S` seconds at the most."""
        try:
            async with asyncio.timeout(CLOSE_S):
                while self.has_work():  # noqa: ASYNC110 - seldom, and its end wakes nobody else
                    await asyncio.sleep(KEEPER_S / 5)
                await self.backend.aclose()
        except Exception as error:  # noqa: BLE001 - nobody is left who could do anything about it
            _log.debug("a session was not closed: %r", error)

    def has_work(self) -> bool:
        """Whether anything is in flight or waits to be started on the loop."""
        return bool(self._granted or self._tasks)

    # -- under the hub's lock, on any thread

    def _wake(self, job: Job, is_submitting: list[bool], request: Request) -> None:
        if request.inbox or (request.is_over and job.tasks):
            self._granted.append(job)
            if not is_submitting:
                self._tell_loop()
        if request.is_over:
            self._woken(job)

    def _woken(self, job: Job) -> None:
        job.notify()

    def _tell_loop(self) -> None:
        """Have the loop look at what was granted."""
        if not self._granted:
            return
        if self._is_completing():
            self.loop.call_soon(self._take_all)  # inside a turn of the loop, which looks before it rests
            return
        self.loop.call_soon_threadsafe(self._take_all)
        self._revive()

    def _is_completing(self) -> bool:
        """Whether this thread is inside a turn of the loop, where it completes an op.

        It was interrupted there if the loop is another's by now, or nobody's, and its number may be as well.
        """
        is_here = self._completer_ident == threading.get_ident()
        return is_here and asyncio._get_running_loop() is self.loop  # noqa: SLF001

    # -- on the loop

    def _take_all(self) -> None:
        """Take what was granted; it leaves its queues last, so that it is there where this was cut."""
        while self._granted:
            try:
                self._take(self._granted[0])
            except Exception:  # noqa: BLE001 - another's, whom this could not wake; those behind go on
                _log.exception("an error escaped while reads were started")
            self._granted.popleft()

    def _take(self, job: Job) -> None:
        """Make a task of each op granted; cancel the tasks of a request that is over."""
        while (grant := job.first()) is not None:
            if job.request.is_over:
                forfeit(job, grant)
            else:
                self._start(job, grant)
            job.request.inbox.pop(0)
        if job.request.is_over:
            for task in job.tasks or ():
                task.cancel()

    def _start(self, job: Job, grant: Grant, *, is_again: bool = False) -> None:
        ended = partial(self._ended, job, grant, is_again)
        task = self.loop.create_task(self._perform(job, grant, ended))
        task.add_done_callback(ended)  # first: it takes the task off these again
        if job.tasks is None:
            job.tasks = set()
        job.tasks.add(task)
        self._tasks.add(task)

    async def _perform(self, job: Job, grant: Grant, ended: Callable[[asyncio.Task[None]], object]) -> None:
        for row in range(grant.lo, grant.hi):
            await self._perform_row(job, row)
            check_delivery(job, row)
        # Here, and not in the callback: a turn of the loop costs one of the GIL, too.
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is one
        _untie(job, task)  # a request that is over cancels what it finds
        if grant.ops_left:  # else it was given back, or performed twice: `_take` was cut
            self._complete(job, grant)
        self._tasks.discard(task)
        task.remove_done_callback(ended)  # it would keep the result until the loop runs again

    async def _perform_row(self, job: Job, row: int) -> None:
        """Try an op until it succeeds or is given up."""
        attempt = 1
        while True:
            try:
                await self._try(job, row)
            except Exception as error:  # noqa: BLE001 - the op's own (I10)
                delay_s = job.next_delay(attempt, self.backend.verdict(error))
                if delay_s is None:
                    job.ops.fail(row, error)
                    return
            else:
                return
            await asyncio.sleep(delay_s)
            attempt += 1

    async def _try(self, job: Job, row: int) -> None:
        # A whole file of unknown length may take as long as it takes: its client sees to stalls.
        limit_s = None if job.ops.length[row] == UNKNOWN_LENGTH else self.try_timeout_s
        limit = asyncio.timeout(limit_s)
        with permitted(permit_of(job, row)):
            try:
                async with limit:
                    await self._read(job, row)
            except TimeoutError as error:
                if limit.expired():
                    msg = f"{job.request.label}: an attempt took longer than {limit_s} s"
                    raise ReadTimeoutError(msg) from error
                raise

    async def _read(self, job: Job, row: int) -> None:
        if not job.is_hedged(row):
            await self.backend.read(job.ops, row)
            return
        began_s = perf_counter()
        await hedged(self.backend, job, row)
        job.note_latency(int(job.ops.length[row]), perf_counter() - began_s)

    def _ended(self, job: Job, grant: Grant, is_again: bool, task: asyncio.Task[None]) -> None:
        """Complete a grant whose task was cancelled, perhaps before it began, or broke down.

        One that was interrupted with the thread that ran the loop is performed again: its consumer may be
        another (I5).
        """
        _untie(job, task)
        try:
            if not grant.ops_left:
                return
            if _was_interrupted(task) and not (is_again or job.request.is_over):
                self._start(job, grant, is_again=True)
                return
            error = ConnectionAbortedError("the read was cancelled")
            for row in range(grant.lo, grant.hi):
                job.ops.fail(row, error)
            self._complete(job, grant)
        finally:
            self._tasks.discard(task)

    def _complete(self, job: Job, grant: Grant) -> None:
        try:
            self._completer_ident = threading.get_ident()
            job.complete_tried(grant, np.arange(grant.lo, grant.hi), grant.bytes_left)
        finally:
            self._completer_ident = 0


class LiteAsyncDriver(AsyncDriver):
    """The waiter runs the loop itself; see the module's text."""

    def __init__(self, backend: AsyncBackend, thread: LoopThread, try_timeout_s: float | None = None) -> None:
        super().__init__(backend, thread, try_timeout_s)
        self._baton = threading.RLock()
        self._parked: dict[int, Job] = {}
        self._driving: Job | None = None
        self._driver_ident = 0
        self._is_cut = False  # whoever ran the loop last was interrupted inside a turn of it
        self._keeper: threading.Thread | None = None
        self._keeper_lock = threading.RLock()  # a signal handler may read, too
        self._is_wanted = Waiter()

    @override
    def launch(self, job: Job) -> None:
        """Submit without waiting; the keeper polls it if nobody does."""
        super().launch(job)
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
    def _begin(self, job: Job) -> None:
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
            wait_until_over(job, timeout_s, revive=partial(self.keep, 0))
            return
        with interrupts.watched(job) if interrupts.is_watched() else contextlib.nullcontext():
            self._poll(job, timeout_s)

    def _poll(self, job: Job, timeout_s: float | None) -> None:
        announce(job)
        deadline = None if timeout_s is None else perf_counter() + timeout_s
        self._parked[id(job)] = job
        try:
            while not job.request.is_over:
                if not self._drive(job, deadline):
                    job.waiter.wait(LOOK_S if deadline is None else min(LOOK_S, timeout_s or 0))
                _check_deadline(job, deadline)
        finally:
            self._parked.pop(id(job), None)
            job.waiter.wake()  # threads may share one read: each that leaves wakes the next
            self._offer()

    def _drive(self, job: Job, deadline: float | None) -> bool:
        """Hold the baton until `job` is over, if it is free; returns whether it was."""
        try:
            is_free = self._baton.acquire(blocking=False)
            if is_free:
                self._run_for(job, deadline)
            else:
                self._tell_loop()
            return is_free  # no constant: CPython has those after the release, out of the reach of `finally`
        finally:
            # At once, and whatever we remember: a signal is handled after any call but this one.
            try:  # noqa: SIM105 - that would be a call before it
                self._baton.release()
            except RuntimeError:
                pass

    def _run_for(self, job: Job, deadline: float | None) -> None:
        timer = None
        try:
            with _deferred_sigint(self.loop):
                self._driving, self._driver_ident = job, threading.get_ident()
                if deadline is not None:
                    timer = self.loop.call_later(deadline - perf_counter(), self.loop.stop)
                if not job.request.is_over:
                    self._run_loop()
        finally:
            self._driving, self._driver_ident = None, 0
            if timer is not None:
                timer.cancel()

    def _run_loop(self) -> None:
        """Run it until it is stopped; this thread has the baton."""
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
    def close(self, timeout_s: float = 0.0) -> None:
        """Close the session and the loop, which is this driver's own, once nobody drives it."""
        if os.getpid() != self._pid or self.loop.is_closed():
            return
        closer = threading.Thread(target=self._close_loop, name="headrace-keeper", daemon=True)
        try:
            closer.start()
        except RuntimeError:  # the interpreter ends, and starts no thread any more
            return
        if timeout_s:
            closer.join(timeout_s)

    def _close_loop(self) -> None:
        with self._baton:
            if not self.loop.is_closed():
                self.loop.run_until_complete(self._close())
                self.loop.close()

    @override
    def _revive(self) -> None:
        """Nobody to revive: waiters drive, and `wait` offers the baton."""

    @override
    def _woken(self, job: Job) -> None:
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
        with self._keeper_lock:
            if self._keeper is None or not self._keeper.is_alive():
                self._keeper = threading.Thread(target=self._serve, name="headrace-keeper", daemon=True)
                self._keeper.start()

    def _serve(self) -> None:
        """Drive while there is work and nobody else does; end when there is none."""
        idle = 0
        while idle < 20:  # noqa: PLR2004
            self._is_wanted.wait(KEEPER_S)
            if not self.has_work():
                idle += 1
                continue
            idle = 0
            if self._baton.acquire(timeout=KEEPER_S):
                self._run_until_idle()

    def _run_until_idle(self) -> None:
        try:
            self._driver_ident = threading.get_ident()
            self.loop.call_soon(self._stop_when_idle)
            self._run_loop()
        finally:
            self._driver_ident = 0
            self._baton.release()
            self._offer()

    def _stop_when_idle(self) -> None:
        if self.has_work():
            self.loop.call_later(KEEPER_S / 5, self._stop_when_idle)
        else:
            self.loop.stop()


def _untie(job: Job, task: asyncio.Task[None]) -> None:
    if job.tasks is not None:
        job.tasks.discard(task)


def _was_interrupted(task: asyncio.Task[None]) -> bool:
    """Whether what ended a task ended its thread's turn of the loop: no error of its own, nor on purpose."""
    error = None if task.cancelled() else task.exception()
    return error is not None and not isinstance(error, Exception)


def _runs_a_loop() -> bool:
    """Whether this thread is inside a running event loop (Jupyter, an async caller's callback)."""
    return asyncio._get_running_loop() is not None  # noqa: SLF001


def _check_deadline(job: Job, deadline: float | None) -> None:
    if deadline is not None and not job.request.is_over and perf_counter() >= deadline:
        msg = f"{job.request.label or 'read'}: not finished in time"
        raise ReadTimeoutError(msg)


@contextlib.contextmanager
def _deferred_sigint(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Let SIGINT stop the loop, and raise KeyboardInterrupt only after it stopped."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.get_ident() != threading.main_thread().ident or not interrupts.is_pythons_own(handler):
        yield
        return
    came: list[int] = []

    def note(number: int, _frame: object) -> None:
        came.append(number)
        loop.call_soon_threadsafe(loop.stop)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt
