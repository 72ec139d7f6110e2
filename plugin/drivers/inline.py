"""Drivers of inline backends: the consumer itself (lite), or the background loop (standard, keeper).

`LiteDriver.run` needs no other thread. The consumer submits, is admitted, and performs each slice:

1. `start` the slice: what the page cache holds is done, the misses are on their way;
2. while misses are on their way, complete the hits and take the next grant if there is one;
3. `finish` half of what is on its way, complete it, and start what that admits: the device stays busy while
   the first results are read.

It drains or forfeits all it took before it returns or raises, so nothing is in flight without a driver.

`LoopDriver` does step 1 on the loop thread, which never blocks, and step 3 on a few worker threads of each
device: one that hangs, as a network mount may, leaves the others theirs.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from typing_extensions import override

from headrace.columns import ascending
from headrace.core.request import DONE
from headrace.drivers.driver import Driver
from headrace.drivers.permit import perform_here
from headrace.drivers.waiter import Waiter, check_process
from headrace.drivers.waiting import LOOK_S, deadline, late, wait_until_over
from headrace.threads import raise_if_of_a_handler

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.backends.abc import InlineBackend
    from headrace.core.request import Grant, Request
    from headrace.drivers.job import Job
    from headrace.drivers.loop import Dispatcher
    from headrace.drivers.workers import Pools
    from headrace.types import Int64Array

T = TypeVar("T")

_LONG_BYTES = 64 << 10
"""Ops of at least this many bytes are completed one by one: that costs little beside reading them."""

_WAITED_FOR = 16
"""So many short reads are waited for together: with more of them the device idles between two turns, and a
small window looks as good as a larger one."""


def start(job: Job, grant: Grant) -> Int64Array:
    """Start a grant and complete its hits; returns the rows on their way."""
    backend: InlineBackend = job.backend  # type: ignore[assignment]
    ops = job.ops
    try:
        rows = backend.start(ops, grant.lo, grant.hi)
    except Exception as error:  # noqa: BLE001 - the error of every op of the grant (I10)
        raise_if_of_a_handler(error)
        rows = ascending(grant.lo, grant.hi)
        _fail(job, rows, error)
        return rows
    hits = grant.ops_left - len(rows)
    if hits and len(rows) and backend.is_bound(ops):
        # Completed with the others: one by one they would admit ever smaller slices, a system call for each.
        return ascending(grant.lo, grant.hi)
    if hits:
        nbytes = grant.bytes_left - (int(ops.length[rows].sum()) if len(rows) else 0)
        job.complete(grant, hits, nbytes, is_hit=True)
    return rows


def finish(job: Job, grant: Grant, rows: Int64Array) -> None:
    """Finish rows of a grant and complete them."""
    _finish_some(job, [(grant, rows)], len(rows))


def _finish_some(
    job: Job, under_way: list[tuple[Grant, Int64Array]], least: int
) -> list[tuple[Grant, Int64Array]]:
    """Finish at least so many rows of some grants and complete them; returns what is still on its way."""
    backend: InlineBackend = job.backend  # type: ignore[assignment]
    ops = job.ops
    rows = under_way[0][1] if len(under_way) == 1 else np.concatenate([rows for _, rows in under_way])
    is_done = np.ones(len(rows), np.bool_)
    try:
        if not ops.errors:
            is_done = backend.finish_some(ops, rows, least)
        else:
            left = rows[~np.isin(rows, list(ops.errors))]
            if len(left):
                backend.finish(ops, left)
    except Exception as error:  # noqa: BLE001 - whatever a backend raises is its ops' error (I10)
        raise_if_of_a_handler(error)
        _fail(job, rows, error)
    performed, left_over, at = [], [], 0
    for grant, its in under_way:
        mask = is_done[at : at + len(its)]
        at += len(its)
        done = its[mask]
        if len(done):
            # A single long op is the common case beside a scan: no array for its one length.
            nbytes = int(ops.length[done[0]]) if len(done) == 1 else int(ops.length[done].sum())
            performed.append((grant, len(done), nbytes))
        if len(done) < len(its):
            left_over.append((grant, its[~mask]))
    job.complete_all(performed)
    return left_over


def _fail(job: Job, rows: Int64Array, error: BaseException) -> None:
    backend: InlineBackend = job.backend  # type: ignore[assignment]
    for row in rows[~backend.are_whole(job.ops, rows)].tolist():
        job.ops.fail(row, error)


class LiteDriver(Driver):
    """The consumer performs its own I/O.

    Parameters
    ----------
    keeper
        Drives what outlives a call: reads that were submitted and not waited for.
    """

    is_drained = True

    def __init__(self, keeper: LoopDriver) -> None:
        self.keeper = keeper
        self._passed_over: deque[weakref.ref[Job]] = deque()

    @override
    def run(self, job: Job, timeout_s: float | None = None) -> None:
        """Submit, perform, and return when the request is over."""
        job.request.on_wake = partial(self._wake, job)
        job.request.is_awaited = True
        perform_here(str(job.request.label), self._submit_and_perform, job, timeout_s)

    def _wake(self, job: Job, request: Request) -> None:
        if request.inbox and job.under_way and not _is_bound(job):
            # Weakly: its consumer may start these itself, be over, and want its file closed.
            self._passed_over.append(weakref.ref(job))
        job.waiter.wake()

    def _submit_and_perform(self, job: Job, timeout_s: float | None) -> None:
        request = job.request
        try:
            job.submit()
            self._perform(job, timeout_s)
        finally:
            job.is_left = True
            if request.grants or request.state not in DONE:
                abandon(job)

    def _perform(self, job: Job, timeout_s: float | None) -> None:
        request = job.request
        until_s = deadline(timeout_s)
        while not request.is_over:
            _start_granted(job)
            if job.under_way:
                if job.meanwhile is not None:
                    job.meanwhile(min(int(rows[0]) for _, rows in job.under_way))
                (_finish_half if _are_short(job) else _finish_first)(job)
                self.start_for_others()
                if until_s is not None and perf_counter() >= until_s and not job.request.is_over:
                    raise late(job, f"within {timeout_s} s")
            elif not request.is_over:
                wait_until_over(job, timeout_s, until=partial(_has_work, job), until_s=until_s)

    @override
    def start_for_others(self) -> None:
        """Start what this thread's completions had admitted for consumers that are waiting for the disk.

        They would find it only when their own wait is over, and the device would idle meanwhile.
        """
        while self._passed_over:
            try:
                other = self._passed_over.popleft()()
            except IndexError:
                return
            if other is not None:
                # Not where this thread is about to, below a signal handler: it would start a grant twice.
                if not other.hands._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001
                    _start_granted(other)
                other.waiter.wake()

    @override
    def launch(self, job: Job) -> None:
        """Submit without waiting: the keeper drives it."""
        self.keeper.launch(job)

    @override
    def wait(self, job: Job, timeout_s: float | None = None) -> None:
        """Wait for what `launch` submitted."""
        self.keeper.wait(job, timeout_s)


def _has_work(job: Job) -> bool:
    return bool(job.request.inbox or job.under_way)


def _start_granted(job: Job) -> None:
    """Start every grant in the inbox; another thread may be doing so, which takes no time.

    A grant leaves the inbox last: where a passer-by is interrupted, its consumer finds it there.
    """
    with job.hands:
        _start_each(job)


def _start_each(job: Job) -> None:
    while not job.is_left and (grant := job.first()) is not None:
        is_started = any(grant is started for started, _ in job.under_way)
        if grant.ops_left and not is_started:
            rows = start(job, grant)
            if len(rows):
                job.under_way.append((grant, rows))
        job.request.inbox.pop(0)


def _are_short(job: Job) -> bool:
    """Whether what is under way is short, or on the ring of the thread that starts it, and no series."""
    is_long = not _is_bound(job) and job.ops.length[job.under_way[0][1][0]] >= _LONG_BYTES
    return job.ops.series_ops == 1 and not is_long


def _finish_first(job: Job) -> None:
    """Finish the first long op, whose completion lets another one start, or a round of series.

    The next round is admitted when that one is over.
    """
    grant, rows = job.under_way.pop(0)
    count = 1 if job.ops.series_ops == 1 else len(rows)
    job.under_way[:0] = _finish_some(job, [(grant, rows)], count)


def _finish_half(job: Job) -> None:
    """Finish half of all that is under way, whichever, or all where that is little or nothing comes after it.

    Completing some lets as many others start while the rest is waited for. A section, and a system call of a
    ring, cost as much as several reads, so what starts next should be many.
    """
    under_way, request = list(job.under_way), job.request
    count = sum(len(rows) for _, rows in under_way)
    is_last = request.next_op == request.n_ops and not job.scheduler.waiting
    least = count if is_last or count <= _WAITED_FOR else (count + 1) // 2
    # In place: a passer-by may start more meanwhile, behind these.
    job.under_way[: len(under_way)] = _finish_some(job, under_way, least)


def abandon(job: Job) -> None:
    """Leave nothing behind: nobody starts anything any more, and nothing is performed but by this thread."""
    job.is_left = True
    with job.hands:
        try:
            if _is_bound(job):
                job.backend.drain()  # type: ignore[attr-defined]
        finally:
            job.give_back()


def _is_bound(job: Job) -> bool:
    """Whether only the thread that starts its rows can finish them."""
    backend: InlineBackend = job.backend  # type: ignore[assignment]
    return backend.is_bound(job.ops)


class LoopDriver(Driver):
    """The background loop thread drives; consumers wait.

    Parameters
    ----------
    thread
        The process's loop thread.
    pools
        Threads for what must wait for a disk, those of each device by its scheduler.
    """

    waits_elsewhere = True

    def __init__(self, thread: Dispatcher, pools: Pools) -> None:
        self._pid = os.getpid()
        self.thread = thread
        self.pools = pools

    @override
    def launch(self, job: Job) -> None:
        """Submit without waiting."""
        job.request.on_wake = partial(self._wake, job)
        job.submit()

    @override
    def wait(self, job: Job, timeout_s: float | None = None) -> None:
        """Wait for what `launch` submitted."""
        wait_until_over(job, timeout_s, revive=partial(self._revive, job))

    def _revive(self, job: Job) -> None:
        self.thread.ensure()
        # A start may have failed, where there were too many threads for a moment.
        self.pools.of(job.scheduler).start_needed()

    @override
    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that does not block on the loop thread, and return what it returns."""
        if self.thread.is_current():
            return function(*args)
        call = _Call(function, args)
        self.thread.call(call.make)
        while not call.waiter.wait(LOOK_S):
            check_process(self._pid)
            self.thread.ensure()
        return call.outcome()

    def _wake(self, job: Job, request: Request) -> None:
        if request.inbox:
            self.thread.call(self._drive, job)
        if request.is_over:
            job.notify()

    def _drive(self, job: Job) -> None:
        """Take what was granted; on the loop thread, which does not wait."""
        workers = self.pools.of(job.scheduler)
        while (grant := job.take()) is not None:
            if job.request.is_over:
                job.forfeit(grant)
                continue
            if _is_bound(job):
                workers.put(partial(_perform, job, grant))
                continue
            for rows in _shares(job, start(job, grant)):
                workers.put(partial(_finish_share, job, grant, rows), starts=False)
            workers.start_needed()


def _shares(job: Job, rows: Int64Array) -> list[Int64Array]:
    """Cut what is to be finished into the shares of workers: two of long ops, which take long to copy.

    No more: workers take what comes in its order, and somebody more urgent may come.
    """
    if not len(rows):
        return []
    return np.array_split(rows, 2) if len(rows) > 1 and _are_long(job, rows) else [rows]


def _are_long(job: Job, rows: Int64Array) -> bool:
    return int(job.ops.length[rows].min()) >= _LONG_BYTES


def _finish_share(job: Job, grant: Grant, rows: Int64Array) -> None:
    """Finish rows of a grant: long ones one by one, as each admits another one."""
    for some in np.split(rows, len(rows)) if _are_long(job, rows) else [rows]:
        finish(job, grant, some)


def _perform(job: Job, grant: Grant) -> None:
    """Start a grant and finish it, on one thread."""
    rows = start(job, grant)
    if len(rows):
        finish(job, grant, rows)


class _Call(Generic[T]):
    """A call handed over to the loop thread."""

    __slots__ = ("_args", "_error", "_function", "_result", "waiter")

    def __init__(self, function: Callable[..., T], args: tuple[Any, ...]) -> None:
        self._function = function
        self._args = args
        self._error: BaseException | None = None
        self._result: T | None = None
        self.waiter = Waiter()

    def make(self) -> None:
        try:
            self._result = self._function(*self._args)
        except BaseException as error:  # noqa: BLE001 - raised where it was asked for
            self._error = error
        finally:
            self.waiter.wake()

    def outcome(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]
