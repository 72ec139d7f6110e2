"""`Read`: a submitted read, as the caller holds it."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from headrace.core.request import State
from headrace.drivers.waiting import deadline, late
from headrace.errors import ReadCancelledError, ReadTimeoutError, SchedulerClosedError
from headrace.jobs import wait_for_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.batch import RangeBatch
    from headrace.core.plan import Plan
    from headrace.core.request import Request
    from headrace.core.scheduler import Scheduler
    from headrace.drivers.job import Job
    from headrace.ranges import Ranges
    from headrace.reader import Reader
    from headrace.types import Int64Array, UInt8Array


@dataclass(slots=True, eq=False)
class Part:
    """The ranges of a read that are on one device."""

    job: Job
    plan: Plan
    ranges: Int64Array | None
    """Which of the caller's ranges, or None for all of them."""

    @property
    def rows(self) -> Int64Array | slice:
        """Index of its ranges among the caller's."""
        return slice(None) if self.ranges is None else self.ranges


class _Lost(weakref.ref[Any]):
    """Tells the engine, from C and in one step, that the owner of a read is gone.

    A finaliser may be cut at its first line, by a signal handler that raises, and Python goes on without it.
    """

    __slots__ = ("request", "scheduler")

    request: Request
    scheduler: Scheduler


def tell_engine(owner: object, job: Job) -> None:
    """Have the engine cancel a job once its owner is gone; before the job is submitted."""
    lost = _Lost(owner, job.engine.lost.append)
    lost.scheduler = job.scheduler
    lost.request = job.request  # last: then it is whole
    job.lost = lost


class Read:
    """A submitted read: its result is asked for with `result`, once it is wanted.

    Dropping it without asking abandons the read and releases what it reserved.
    """

    # On the class: an interrupted constructor leaves a read that is finalised all the same.
    _parts: Sequence[Part] = ()
    _batch: RangeBatch | None = None
    _pid = 0

    def __init__(self, reader: Reader | None, ranges: Ranges, parts: list[Part], buffer: UInt8Array) -> None:
        self._reader = reader
        self._ranges = ranges
        self._parts = parts
        self._buffer = buffer
        self._is_cancelled = False
        self._pid = os.getpid()
        for part in parts:
            tell_engine(self, part.job)

    @classmethod
    def finished(cls, ranges: Ranges, batch: RangeBatch) -> Read:
        """Return a read that is done already."""
        read = cls(None, ranges, [], np.empty(0, np.uint8))
        read._batch = batch
        return read

    def done(self) -> bool:
        """Whether `result` would return, or raise, at once."""
        return self._is_of_another_process() or all(part.job.request.is_over for part in self._parts)

    def _is_of_another_process(self) -> bool:
        """Whether this one was forked since: the scheduler, and whoever holds its lock, stayed behind."""
        return self._pid != os.getpid()

    def cancel(self) -> bool:
        """Give the read up; False where it is done already."""
        if self.done():
            return False
        self._is_cancelled = True
        for part in self._parts:
            part.job.cancel(ReadCancelledError("the read was cancelled"))
        return True

    def cancelled(self) -> bool:
        """Whether `cancel` ended it."""
        return self._is_cancelled

    def result(self, timeout: float | None = None) -> RangeBatch:
        """Wait for the bytes and take them.

        Parameters
        ----------
        timeout
            Seconds; None waits as long as it takes.

        Raises
        ------
        ReadTimeoutError
            Not finished in time; the read goes on, and `result` may be called again.
        ReadCancelledError
            It was cancelled.
        SchedulerClosedError
            It was submitted before this process was forked, and its result not yet taken.
        """
        if self._batch is None:
            if self._is_of_another_process():
                msg = "this read was submitted before the process was forked: the child has to submit its own"
                raise SchedulerClosedError(msg)
            assert self._reader is not None  # noqa: S101
            parts = self._parts  # of threads that come at once each has the batch, and one lets go of these
            until_s = deadline(timeout)
            wait_for_all(self._reader.channel.driver, [part.job for part in parts], until_s, timeout)
            if self._batch is None:
                try:
                    self._batch = self._reader.collect(self._ranges, parts, self._buffer, until_s)
                except ReadTimeoutError:  # of what was asked once more
                    if timeout is None:
                        raise
                    raise late(parts[0].job, f"within {timeout} s") from None
                for part in parts:
                    part.job.lost = None  # it was taken
                self._parts = ()  # and with them of the files
                self._ranges.opened = self._ranges.source = None
        return self._batch

    def __del__(self) -> None:
        if self._batch is None and not self._is_of_another_process():
            for part in self._parts:
                if part.job.request.state is not State.RETIRED:
                    part.job.engine.drop(part.job.scheduler, part.job.request)
        for part in self._parts:
            part.job.lost = None  # it was told

    @override
    def __reduce__(self) -> str:
        msg = "a submitted read cannot be pickled, nor copied: its result() can"
        raise TypeError(msg)

    @override
    def __repr__(self) -> str:
        state = "done" if self.done() else "pending"
        return f"<headrace.Read of {len(self._ranges)} ranges, {state}>"
