"""The driver of bulk backends: a blocking call of a native engine for several ops, from several threads.

A call takes the GIL once, however many ops it performs, so busy Python threads hardly slow it down. What
is to be kept from it is everything else that would take the GIL: hand-overs between threads above all.

* Workers (daemons) make the calls, one for each grant. A worker whose completions admit the next slice of the
  same request takes that itself: no hand-over.
* In lite the waiter makes the first call itself and goes on as long as its own completions admit more; what
  does not fit into its call is shared with the workers. A single op is called for by its waiter in standard,
  too: to a worker and back is two turns of the GIL more. But only where nobody needs to interrupt it: such a
  call returns when the storage answers and not before. The main thread (Ctrl-C), Arrow's threads while an
  interrupt may reach them, threads that run an event loop and reads with a time-out leave it to the workers.
* Every call ends by its own time-outs, so nothing in flight is left without a driver. A worker that dies
  is replaced by the next one.

What it has in common with the driver of single blocking reads, nested reads among it, is in
`drivers.threaded`.
"""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from time import perf_counter, sleep
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from headrace.columns import ZERO, ascending
from headrace.core.retry import Attempts
from headrace.drivers import interrupts
from headrace.drivers.job import check_delivery
from headrace.drivers.permit import permitted
from headrace.drivers.threaded import ThreadedDriver
from headrace.drivers.waiting import LOOK_S, wait_until_over
from headrace.types import NOT_YET

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.backends.abc import BulkBackend
    from headrace.core.request import Grant, Request
    from headrace.drivers.job import Job
    from headrace.drivers.workers import Workers
    from headrace.types import Int64Array

IDLE_S = 5.0
"""Seconds a worker stays."""

MOST_CALLS = 128
"""Calls of one device that are under way, at the most."""

MOST_THREADS = 8 * MOST_CALLS
"""Threads that make them, of all devices: one whose calls hang leaves enough for others.

More than there ordinarily are: they start when they are wanted, and `MOST_CALLS` bounds those of each device.
"""


class BulkDriver(ThreadedDriver):
    """Makes the calls, on workers or on the thread that waits.

    Parameters
    ----------
    workers
        As many threads as calls may be under way, of all devices.
    is_lite
        Whether a waiter makes calls itself.
    """

    def __init__(self, workers: Workers, *, is_lite: bool) -> None:
        super().__init__(workers)
        self._is_lite = is_lite
        self._mine = threading.local()

    @override
    def launch(self, job: Job) -> None:
        """Submit without waiting."""
        job.request.on_wake = partial(self._call_workers, job, set())
        mine = self._mine
        mine.is_launching = True
        try:
            job.submit()
        finally:
            mine.is_launching = False
            self._workers_of(job).start_needed()

    @override
    def _begin(self, job: Job, timeout_s: float | None) -> None:
        may_call = timeout_s is None and not job.request.is_nested and _may_block()
        if may_call and job.request.n_ops == 1:
            _call_in_turn(job)
        elif may_call and self._is_lite:
            self._perform_granted(job, partial(self.launch, job))
        else:
            super()._begin(job, timeout_s)

    def _call_workers(self, job: Job, called: set[object], request: Request) -> None:
        """Have what was granted performed; `called` has an item for each worker that is on its way."""
        mine = self._mine
        performed, held = getattr(mine, "at_leisure", None) or (None, [])
        if performed is job and not _left(held):
            # This thread performs the next one itself, before any worker is awake.
            job.take_into(held)
        while len(called) < len(request.inbox):
            one = object()
            try:
                called.add(one)
                starts = not getattr(mine, "is_launching", False)
                self._workers_of(job).put(partial(self._come, job, called, one), starts=starts)
            except BaseException:
                called.discard(one)  # nobody is on his way; or one is, and finds that another came
                raise
        if request.is_over:
            job.notify()

    def _come(self, job: Job, called: set[object], one: object) -> None:
        """Perform what is granted; on a worker."""
        called.discard(one)
        self._perform_granted(job)

    def _perform_granted(self, job: Job, begin: Callable[[], None] | None = None) -> None:
        """Perform what is granted, until there is no more.

        Whatever interrupts this thread, which is the consumer's in lite, ends the read.
        """
        held: list[Grant] = []
        try:
            if begin is not None:
                self._at_leisure(job, held, begin)
            self._perform_each(job, held)
        except BaseException as error:
            _give_up(job, held, error)
            raise

    def _perform_each(self, job: Job, held: list[Grant]) -> None:
        while (grant := _next(job, held)) is not None:
            self._perform_held(job, grant, held)

    @override
    def _perform_grant(self, job: Job, grant: Grant) -> None:
        # No grant is added to this list: it is of a nested read, which was granted whole.
        self._perform_held(job, grant, [grant])

    def _perform_held(self, job: Job, grant: Grant, held: list[Grant]) -> None:
        if job.request.is_over:
            job.forfeit(grant)
            return
        rows = ascending(grant.lo, grant.hi)
        attempt(job, rows)
        # Only now it is at leisure: what comes free while it tries again, or waits to, is for others.
        self._at_leisure(job, held, partial(job.complete_tried, grant, rows, grant.bytes_left))

    def _at_leisure(self, job: Job, held: list[Grant], function: Callable[[], None]) -> None:
        """Call what may have more granted, which this thread takes itself, unless it holds some."""
        mine = self._mine
        mine.at_leisure = job, held
        try:
            function()
        finally:
            mine.at_leisure = None


def _left(held: list[Grant]) -> list[Grant]:
    """Return what was not performed of what a thread took."""
    return [grant for grant in held if grant.ops_left]


def _next(job: Job, held: list[Grant]) -> Grant | None:
    held[:] = _left(held)
    return held[0] if held else job.take_into(held)


def _give_up(job: Job, held: list[Grant], error: BaseException) -> None:
    """End a request, and return what this thread took of it and did not perform; others perform theirs."""
    with job.engine.lock, job.engine:
        job.scheduler.fail(job.request, error)
        for grant in _left(held):
            job.scheduler.forfeit(grant)


def _call_in_turn(job: Job) -> None:
    """Wait for the turn of a request's only op and make its call: no worker has to be told of it."""
    request = job.request
    request.on_wake = job.waiter.wake
    try:
        job.submit()
        wait_until_over(job, until=lambda: bool(request.inbox))
        grant = job.take()
        if grant is not None:
            attempt(job, ZERO)
            job.complete_tried(grant, ZERO, grant.bytes_left)
    except BaseException:
        job.is_left = True  # nobody else performs what was granted
        job.engine.lost.append(job)
        job.engine.settle_lost()
        raise


def _may_block() -> bool:
    """Whether this thread may make a call that nothing can interrupt."""
    is_main = threading.get_ident() == threading.main_thread().ident
    runs_a_loop = asyncio._get_running_loop() is not None  # noqa: SLF001
    return not (is_main or runs_a_loop or interrupts.is_watched())


def attempt(job: Job, rows: Int64Array) -> None:
    """Perform rows of a grant to their end, trying again where that may help."""
    try:
        _call_until_answered(job, rows)
    except Exception as error:  # noqa: BLE001 - as of a verdict: nobody else completes them
        _fail(job, rows, error)
    # Rows that were to be tried again when the request ended.
    _fail(job, rows, ConnectionAbortedError("the read was cancelled"))


def _call_until_answered(job: Job, rows: Int64Array) -> None:
    attempts = Attempts()
    while len(rows) and not job.request.is_over:
        attempts.begin()
        _call(job, rows)
        rows, delay_s = _to_be_tried_again(job, rows, attempts)
        _pause(job, delay_s)


def _call(job: Job, rows: Int64Array) -> None:
    """Make the call; whatever it raises is the error of the ops it left without an answer (I10)."""
    backend: BulkBackend = job.backend  # type: ignore[assignment]
    try:
        with permitted(job.permit(int(rows[0]))):
            backend.perform(job.ops, rows)
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - its ops' error (I10)
        # Whatever a backend raises; an interrupt of a nested read, on the main thread, is its consumer's.
        _fail(job, rows, error)
    except BaseException as error:  # noqa: BLE001 - a panic of Rust's is no Exception, and ends nothing here
        _fail(job, rows, RuntimeError(f"the engine broke down: {error}"))
    for row in rows[job.ops.got[rows] == NOT_YET].tolist():
        check_delivery(backend, job.ops, row)


def _fail(job: Job, rows: Int64Array, error: BaseException) -> None:
    for row in rows[job.ops.got[rows] == NOT_YET].tolist():
        job.ops.fail(row, error)


def _to_be_tried_again(job: Job, rows: Int64Array, attempts: Attempts) -> tuple[Int64Array, float]:
    """Tell which of the rows that were called are to be called again, and in how many seconds.

    Rows that failed with the same exception were lost with one request of the call, and are one retry.
    """
    again, longest_s = [], 0.0
    delays: dict[int, float | None] = {}
    for row in rows.tolist() if job.ops.errors else ():
        error = job.ops.errors.get(row)
        if error is None:
            continue
        if id(error) not in delays:
            delays[id(error)] = job.next_delay(attempts, row, error)
        delay_s = delays[id(error)]
        if delay_s is not None:
            longest_s = max(longest_s, delay_s)
            del job.ops.errors[row]
            job.ops.got[row] = NOT_YET
            again.append(row)
    return np.array(again, np.int64), longest_s


def _pause(job: Job, delay_s: float) -> None:
    """Sleep, unless the request ends meanwhile: nobody needs its ops then."""
    until_s = perf_counter() + delay_s
    while not job.request.is_over and (left_s := until_s - perf_counter()) > 0:
        sleep(min(left_s, LOOK_S))
