"""The driver of async backends: ops are coroutines on one owned event loop.

Who runs that loop is the only difference between the modes: in *standard* the background loop thread does,
always; in *lite* a waiter (`asynchronous_lite`). A filesystem bound to a foreign loop is awaited there, and
nobody needs to drive.

An op whose attempt failed in a way that another may cure is tried again, when the core says so
(`core.retry`). While it sleeps it keeps its reservation *and its place in the window*: in an outage nothing
new is started, and no more ops are burnt than were in flight. The price, with a few faults, is a place that
is idle for some milliseconds, and the window grows by it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING

from typing_extensions import override

from headrace.columns import ascending
from headrace.core.retry import Attempts
from headrace.drivers.driver import Driver
from headrace.drivers.hedged import hedged, read_op
from headrace.drivers.permit import permitted
from headrace.drivers.waiting import check_caller, wait_until_over
from headrace.errors import ReadTimeoutError
from headrace.types import TRY_TIMEOUT_S, UNKNOWN_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.backends.abc import AsyncBackend
    from headrace.core.request import Grant, Request
    from headrace.drivers.job import Job
    from headrace.drivers.loop import LoopThread

CLOSE_S = 1.0
"""The longest a session may take to close."""

_log = logging.getLogger("headrace")


class AsyncDriver(Driver):
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
        self.closed = threading.Event()
        backend.bind(self.loop)

    @override
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
        job.context = copy_context()
        job.request.on_wake = partial(self._wake, job, is_submitting)
        try:
            job.submit()
        finally:
            is_submitting.clear()

    @override
    def _abandon(self, job: Job) -> None:
        super()._abandon(job)
        self._tell_loop()

    @override
    def wait(self, job: Job, timeout_s: float | None = None) -> None:
        """Wait for what `launch` submitted."""
        check_caller(job, self.loop)
        wait_until_over(job, timeout_s, revive=partial(self._look, job))

    def _look(self, job: Job) -> None:
        self._revive()
        if self.loop.is_closed():
            self._granted.append(job)  # what is under way there stays where it is
        self._tell_loop()  # whoever was to do that may have been interrupted

    def _revive(self, *, is_waiting: bool = True) -> None:
        if self.backend.foreign_loop is None:
            (self.thread.ensure if is_waiting else self.thread.ensure_soon)()

    def close(self) -> None:
        """Have the backend's session closed on the loop, which sets `closed`.

        It never waits: finalisers call it, on any thread and at any line of it.

        Raises
        ------
        RuntimeError
            It takes a thread that cannot be started.
        """
        is_ours = self.backend.foreign_loop is None and os.getpid() == self._pid
        if is_ours and not self.loop.is_closed():
            self._start_closing()
        else:
            self.closed.set()

    def close_at_exit(self) -> None:
        """Do the same when the interpreter ends, and may start no thread any more."""
        try:
            self.close()
        except RuntimeError:
            self._close_here()

    def _start_closing(self) -> None:
        self.thread.call(self._begin_close)

    def _close_here(self) -> None:
        """Close what needs no thread: a loop that never ran has no session."""
        self.closed.set()

    def _begin_close(self) -> None:
        """Start closing; on the loop."""
        self.thread.finish_before_end(self._close()).add_done_callback(lambda _: self.closed.set())

    async def _close(self) -> None:
        """Close the session once nothing is in flight, `CLOSE_S` seconds at the most."""
        try:
            async with asyncio.timeout(CLOSE_S):
                while self.has_work():  # noqa: ASYNC110 - seldom, and its end wakes nobody else
                    await asyncio.sleep(CLOSE_S / 100)
                await self.backend.aclose()
        except Exception as error:  # noqa: BLE001 - nobody is left who could do anything about it
            _log.debug("a session was not closed: %r", error)

    def has_work(self) -> bool:
        """Whether anything is in flight or waits to be started on the loop."""
        return bool(self._granted or self._tasks)

    # -- under the hub's lock, on any thread

    def _wake(self, job: Job, is_submitting: list[bool], request: Request) -> None:
        is_given_up = job.is_left and request.is_over
        if (request.inbox or (request.is_over and job.tasks)) and not is_given_up:
            self._granted.append(job)
            if not is_submitting:
                self._tell_loop()
        if request.is_over:
            self._woken(job)

    def _woken(self, job: Job) -> None:
        job.notify()

    def _tell_loop(self) -> None:
        """Have the loop look at what was granted.

        Raises
        ------
        RuntimeError
            The loop is closed, by its owner: what was granted is given up.
        """
        if not self._granted:
            return
        if self._is_completing():
            self.loop.call_soon(self._take_all)  # inside a turn of the loop, which looks before it rests
            return
        try:
            self.loop.call_soon_threadsafe(self._take_all)
        except RuntimeError:
            if self.loop.is_closed():  # else it is a signal handler's
                self._give_up()
            raise
        self._revive(is_waiting=False)

    def _give_up(self) -> None:
        """Leave what was granted to the engine, which takes it back."""
        while self._granted:
            job = self._granted[0]
            job.is_left = True
            job.engine.lost.append(job)
            self._granted.popleft()
            job.engine.settle_lost()

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
                job.forfeit(grant)
            else:
                self._start(job, grant)
            job.request.inbox.pop(0)
        if job.request.is_over:
            for task in job.tasks or ():
                task.cancel()

    def _start(self, job: Job, grant: Grant, *, is_again: bool = False) -> None:
        ended = partial(self._ended, job, grant, is_again)
        # The task takes a copy of the context it is made in, else that of whoever admitted the op. By an
        # argument of `create_task` the loop's task factory would be given it, too, and may know none.
        task = job.context.run(self.loop.create_task, self._perform(job, grant, ended))
        task.add_done_callback(ended)  # first: it takes the task off these again
        if job.tasks is None:
            job.tasks = set()
        job.tasks.add(task)
        self._tasks.add(task)

    async def _perform(self, job: Job, grant: Grant, ended: Callable[[asyncio.Task[None]], object]) -> None:
        for row in range(grant.lo, grant.hi):
            await self._perform_row(job, row)
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
        attempts = Attempts()
        while True:
            attempts.begin()
            try:
                await self._try(job, row)
            except Exception as error:  # noqa: BLE001 - the op's own (I10)
                delay_s = job.next_delay(attempts, row, error)
                if delay_s is None:
                    job.ops.fail(row, error)
                    return
            else:
                return
            await asyncio.sleep(delay_s)

    async def _try(self, job: Job, row: int) -> None:
        # A whole file of unknown length may take as long as it takes: its client sees to stalls.
        is_whole = job.ops.length[row] == UNKNOWN_LENGTH
        limit_s = None if is_whole else self.try_timeout_s
        hedge = None if is_whole else job.scheduler.hedge
        limit = asyncio.timeout(limit_s)
        with permitted(job.permit(row)):
            try:
                async with limit:
                    if hedge is None:
                        await read_op(self.backend, job.ops, row)
                    else:
                        await hedged(self.backend, job, row, hedge)
            except TimeoutError as error:
                if limit.expired():
                    raise _took_longer(job, limit_s) from error
                raise
        if limit.expired() and job.ops.errors.pop(row, None) is not None:
            raise _took_longer(job, limit_s)  # its backend has stored that it was cancelled

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
        except BaseException as error:
            if not isinstance(error, Exception):  # an interrupt: the grant is still to be completed
                self.loop.call_soon(self._ended, job, grant, is_again, task)
            raise
        finally:
            self._tasks.discard(task)

    def _complete(self, job: Job, grant: Grant) -> None:
        try:
            self._completer_ident = threading.get_ident()
            job.complete_tried(grant, ascending(grant.lo, grant.hi), grant.bytes_left)
        finally:
            self._completer_ident = 0


def _took_longer(job: Job, limit_s: float | None) -> ReadTimeoutError:
    return ReadTimeoutError(f"{job.request.label}: an attempt took longer than {limit_s} s")


def _untie(job: Job, task: asyncio.Task[None]) -> None:
    if job.tasks is not None:
        job.tasks.discard(task)


def _was_interrupted(task: asyncio.Task[None]) -> bool:
    """Whether what ended a task ended its thread's turn of the loop: no error of its own, nor on purpose."""
    error = None if task.cancelled() else task.exception()
    return error is not None and not isinstance(error, Exception)
