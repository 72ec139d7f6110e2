"""The driver of threaded backends: each op blocks a daemon worker, in lite as in standard.

Even in lite the consumer does not block in the storage's code itself: a read stuck there could not be
interrupted, and Ctrl-C would wait for it. The consumer waits on its own lock instead and can leave while
the op ends by itself; its reservation is released when the op has ended (I3, I9).

Ops of several files are performed side by side, those of one open file in order, by one worker at a time
(`ThreadedBackend.reads_in_order`): the others would wait for its handle, and whoever got it next would seek.

A nested read (one that runs inside an op of ours) is performed on the thread it came from: waiting for a
worker would wait for its own parent when the pool is full.
"""

from __future__ import annotations

from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.core.request import DONE
from headrace.drivers.inline import forfeit
from headrace.drivers.permit import Permit, call_permitted_in
from headrace.drivers.waiting import check_caller, wait_until_over
from headrace.drivers.workers import Workers
from headrace.errors import ShortReadError
from headrace.threads import call_if_free
from headrace.types import NOT_YET

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.backends.abc import Backend, ThreadedBackend
    from headrace.core.request import Grant, Request
    from headrace.drivers.job import Job
    from headrace.types import Ops

_MANY = 1024
"""Threads for nested reads that were launched, which must not wait for any pool of limited size."""

_MANY_OF_ONE = 64
"""Workers called for one of those, which is granted at once. They start under the lock of all reads."""


class ThreadedDriver:
    """Hands each op to a worker.

    Parameters
    ----------
    workers
        As many threads as ops may be in flight.
    """

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self._nested_workers = Workers(_MANY, "headrace-nested")

    def launch(self, job: Job) -> None:
        """Submit without waiting."""
        job.context = copy_context()
        job.request.on_wake = partial(self._wake, job, _is_in_order(job))
        job.submit()

    def run(self, job: Job, timeout_s: float | None = None) -> None:
        """Submit and return when the request is over."""
        check_caller(job)
        request = job.request
        request.is_awaited = True
        try:
            if request.is_nested:
                job.context = copy_context()
                request.on_wake = job.waiter.wake
                job.submit()
                self._perform_inbox(job)
            else:
                self._begin(job, timeout_s)
            self.wait(job, timeout_s)
        finally:
            if request.state not in DONE:
                job.cancel()

    def wait(self, job: Job, timeout_s: float | None = None) -> None:
        """Wait for what `launch` submitted."""
        check_caller(job)
        wait_until_over(job, timeout_s, revive=self._workers_of(job).start_needed)

    def _begin(self, job: Job, timeout_s: float | None) -> None:  # noqa: ARG002 - of use where it calls itself
        """Submit, on the thread that is going to wait."""
        self.launch(job)

    def _wake(self, job: Job, is_in_order: bool, request: Request) -> None:
        """Have what was granted performed."""
        perform: Callable[[Job], Any] = self._perform_in_order if is_in_order else self._perform_inbox
        for _ in range(_wanted(job, is_in_order)):
            self._workers_of(job).put(partial(perform, job))
        if request.is_over:
            job.notify()

    def _perform_in_order(self, job: Job) -> None:
        """Perform what is granted; who finds another at it leaves, and that one looks once more."""
        try:
            self._perform_turns(job)
        except BaseException as error:
            # Nobody was called for what was granted meanwhile; now somebody is, to give it back.
            job.fail(error)
            raise

    def _perform_turns(self, job: Job) -> None:
        while call_if_free(job.hands, self._perform_inbox, job) and job.request.inbox:
            pass

    def _workers_of(self, job: Job) -> Workers:
        return self._nested_workers if job.request.is_nested else self.workers

    def _perform_inbox(self, job: Job) -> bool:
        """Perform the grants in the job's inbox, and those that come meanwhile; True."""
        while (grant := job.take()) is not None:
            self._perform_grant(job, grant)
        return True

    def _perform_grant(self, job: Job, grant: Grant) -> None:
        if job.request.is_over:
            forfeit(job, grant)
        else:
            _perform(job, grant)


def _is_in_order(job: Job) -> bool:
    """Whether one op of a job is to be performed after the other."""
    backend: ThreadedBackend = job.backend  # type: ignore[assignment]
    return job.request.n_ops > 1 and backend.reads_in_order(job.ops)


def _wanted(job: Job, is_in_order: bool) -> int:
    """Count the workers to be called for what is in the inbox."""
    granted = len(job.request.inbox)
    if is_in_order and granted and not job.request.is_over:
        is_at_it = job.hands._is_owned()  # type: ignore[attr-defined]  # noqa: SLF001
        return 0 if is_at_it else 1  # this thread goes on with it itself
    return min(granted, _MANY_OF_ONE) if job.request.is_nested else granted


def _perform(job: Job, grant: Grant) -> None:
    backend: ThreadedBackend = job.backend  # type: ignore[assignment]
    for row in range(grant.lo, grant.hi):
        charged = grant.bytes_left if grant.ops_left == 1 else int(job.ops.length[row])
        try:
            call_permitted_in(job.context, permit_of(job, row), backend.read, job.ops, row)
        except BaseException as error:  # noqa: BLE001 - the op's own (I10)
            job.ops.fail(row, error)
        check_delivery(backend, job.ops, row)
        job.complete(grant, 1, charged)


def permit_of(job: Job, row: int) -> Permit:
    """Make the permit that the code of op `row` runs on."""
    ops = job.ops
    source = ops.sources[ops.file[row]]
    path = getattr(source, "path", source)
    return Permit(job.request.seq, str(path), int(ops.start[row]), int(ops.length[row]))


def check_delivery(backend: Backend, ops: Ops, row: int) -> None:
    """Fail an op that its backend left without an answer."""
    if ops.got[row] == NOT_YET and row not in ops.errors:
        ops.fail(row, ShortReadError(f"backend {type(backend).__name__} left op {row} without an answer"))
