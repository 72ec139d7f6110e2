"""The driver of threaded backends: each op blocks a daemon worker, in lite as in standard.

Even in lite the consumer does not block in the storage's code itself: a read stuck there could not be
interrupted, and Ctrl-C would wait for it. The consumer waits on its own lock instead and can leave while
the op ends by itself; its reservation is released when the op has ended (I3, I9).

Ops of several files are performed side by side, those of one read of an open file in order, by one worker at
a time (`ThreadedBackend.reads_in_order`): the others would wait for its handle, and whoever got it next would
seek.

A nested read (one that runs inside an op of ours) is performed on the thread it came from: waiting for a
worker would wait for its own parent when the pool is full.
"""

from __future__ import annotations

from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from headrace.drivers.driver import Driver
from headrace.drivers.job import check_delivery
from headrace.drivers.permit import call_permitted_in
from headrace.drivers.waiting import check_caller, wait_until_over
from headrace.drivers.workers import Workers
from headrace.threads import call_if_free

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.backends.abc import ThreadedBackend
    from headrace.core.request import Grant, Request
    from headrace.drivers.job import Job

_MANY = 1024
"""Threads for nested reads that were launched, which must not wait for any pool of limited size."""

_MANY_OF_ONE = 64
"""Workers called for one of those, which is granted at once. They start under the lock of all reads."""


class ThreadedDriver(Driver):
    """Hands each op to a worker.

    Parameters
    ----------
    workers
        As many threads as ops may be in flight.
    """

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self._nested_workers = Workers(_MANY, "headrace-nested")

    @override
    def launch(self, job: Job) -> None:
        """Submit without waiting."""
        job.context = copy_context()
        job.request.on_wake = partial(self._wake, job, _is_in_order(job))
        job.submit()

    @override
    def run(self, job: Job, timeout_s: float | None = None) -> None:
        """Submit and return when the request is over."""
        check_caller(job)
        super().run(job, timeout_s)

    @override
    def wait(self, job: Job, timeout_s: float | None = None) -> None:
        """Wait for what `launch` submitted."""
        check_caller(job)
        wait_until_over(job, timeout_s, revive=self._workers_of(job).start_needed)

    @override
    def _begin(self, job: Job, timeout_s: float | None) -> None:
        if not job.request.is_nested:
            super()._begin(job, timeout_s)
            return
        job.context = copy_context()
        job.request.on_wake = job.waiter.wake
        job.submit()
        self._perform_inbox(job)

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
            job.forfeit(grant)
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
            call_permitted_in(job.context, job.permit(row), backend.read, job.ops, row)
        except BaseException as error:  # noqa: BLE001 - the op's own (I10)
            job.ops.fail(row, error)
        check_delivery(backend, job.ops, row)
        job.complete(grant, 1, charged)
