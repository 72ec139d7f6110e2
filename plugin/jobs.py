"""Jobs: what every read has in common, from its ops to the bytes in the caller's hands.

A `JobMaker` binds ops to a request, a scheduler and a backend, and runs them; the functions below it say how
a request's end is told to the caller, and how its reservation ends (I2, I3).

Nested and re-entrant reads are recognised here: inside an op of ours a read runs on its parent's permit
(I1); inside a section of the engine, which a signal handler or finaliser interrupted, it runs unscheduled.
"""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from typing_extensions import override

from headrace.backends.abc import InlineBackend
from headrace.core.request import Request, State
from headrace.core.series import series_ops
from headrace.drivers.job import Job
from headrace.drivers.patience import Patience
from headrace.drivers.permit import current_permit
from headrace.drivers.waiting import deadline, late
from headrace.errors import ReadTimeoutError, SchedulerClosedError
from headrace.redact import redact_url
from headrace.types import UNKNOWN_LENGTH, Ops, Priority

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from headrace.core.plan import Plan
    from headrace.drivers.driver import Driver
    from headrace.runtime import Channel


_DEFAULT_PRIORITY = Priority()


class Urgency(NamedTuple):
    """How urgent a read is, and which scan it belongs to.

    Attributes
    ----------
    priority
        Lower is more urgent.
    scan
        Scans of equal base priority take turns (I4).
    """

    priority: Priority = _DEFAULT_PRIORITY
    scan: Hashable = None

    def base(self) -> int:
        """Return the base priority."""
        return self.priority.base

    def with_base(self, base: int) -> Urgency:
        """Return the same with another base priority."""
        return self._replace(priority=Priority(base, self.priority.position))

    def at(self, offset: int) -> Urgency:
        """Return the urgency of a read `offset` bytes further on."""
        base, position = self.priority
        return Urgency(Priority(base, position + offset), self.scan)


class OpRange(NamedTuple):
    """What one op reads: bytes ``[start, end)`` of a file; to the file's end where `end` is None."""

    path: str
    start: int
    end: int | None


class Places:
    """The label of a traced request: a file's name to errors, and where each op reads to the trace."""

    __slots__ = ("_file", "_length", "_name", "_paths", "_start")

    def __init__(self, name: str, ops: Ops) -> None:
        self._name = name
        # Not the ops: their buffer would live as long as the trace.
        self._paths = [redact_url(str(getattr(source, "path", name))) for source in ops.sources]
        self._file, self._start, self._length = ops.file, ops.start, ops.length

    @override
    def __str__(self) -> str:
        return self._name

    def ranges(self, lo: int, hi: int) -> tuple[OpRange, ...]:
        """Return what the ops ``[lo, hi)`` read."""
        columns = (self._file[lo:hi], self._start[lo:hi], self._length[lo:hi])
        return tuple(
            OpRange(self._paths[file], start, None if length == UNKNOWN_LENGTH else start + length)
            for file, start, length in zip(*(column.tolist() for column in columns), strict=True)
        )


class JobMaker:
    """Makes and runs jobs on one channel.

    Parameters
    ----------
    until_s
        When the time-out of the call is over that all of them are of, on the clock of `perf_counter`.
    patience
        How long that call waits for descriptors; None: each job is a call of its own.
    """

    def __init__(
        self, channel: Channel, until_s: float | None = None, patience: Patience | None = None
    ) -> None:
        self.channel = channel
        self.until_s = until_s
        self.patience = patience

    def of_one_call(self) -> Self:
        """Return one whose jobs together last no longer than one may, and wait no longer for descriptors."""
        if self.patience is not None:
            return self
        until_s = deadline(self.channel.settings.timeout_s)
        return type(self)(self.channel, until_s, Patience(until_s))

    def may_try_again(self) -> bool:
        """Wait a little for descriptors that others close; False where the call waits no longer."""
        return self.patience is not None and self.patience.pause()

    def job(
        self,
        ops: Ops,
        path: str,
        result_bytes: int,
        urgency: Urgency,
        *,
        group: Hashable = None,
        fails_fast: bool = False,
        is_speculative: bool = False,
        unknown_bytes: int | None = None,
    ) -> Job:
        """Make the job of some ops on the device of `path`; an unknown length counts as `unknown_bytes`."""
        channel = self.channel
        request = self.request(
            ops.length,
            result_bytes,
            urgency,
            group=group,
            unknown_bytes=unknown_bytes or channel.max_op_bytes,
            series_ops=series_ops(ops.length, result_bytes, channel.series_limits),
            is_speculative=is_speculative,
            label=self.label(path, lambda: ops),
        )
        ops.series_ops = request.series_ops
        scheduler = channel.scheduler(path)
        return Job(channel.engine, scheduler, request, ops, channel.backend, fails_fast=fails_fast)

    def label(self, path: str, ops: Callable[[], Ops]) -> object:
        """Return what errors call a request; traces want the places of its ops besides."""
        name = redact_url(path)
        return name if self.channel.engine.hub.trace is None else Places(name, ops())

    def request(self, op_length: Any, result_bytes: int, urgency: Urgency, **options: Any) -> Request:
        """Make the request of ops of these lengths: nested inside an op of ours (I1)."""
        self.channel.shorten_turns()
        return Request(
            op_length,
            result_bytes=result_bytes,
            priority=urgency.priority,
            scan=urgency.scan,
            is_nested=current_permit() is not None,
            **options,
        )

    def run(self, job: Job, until_s: float | None = None) -> None:
        """Submit a job and return when its request is over: in time, or till then if it is part of a call."""
        timeout_s, until_s = self.channel.settings.timeout_s, until_s or self.until_s
        if job.engine.is_inside():
            run_unscheduled(job)
        elif until_s is None:
            self.channel.driver.run(job, timeout_s)
        else:
            call_until(self.channel.driver.run, job, until_s, timeout_s)


def run_unscheduled(job: Job) -> None:
    """Perform a job at once, outside of the scheduler.

    For a read that interrupted this thread inside the engine's section: waiting for the section to end
    would be waiting for itself.
    """
    backend = job.backend
    if isinstance(backend, InlineBackend):
        rows = backend.start(job.ops, 0, len(job.ops))
        backend.finish(job.ops, rows)
        job.request.state = State.RETIRED
        return
    msg = "a signal handler or finaliser that interrupted headrace cannot read from this filesystem"
    raise RuntimeError(msg)


def left_s(until_s: float | None) -> float | None:
    """Return how many seconds there are until then, or none any more."""
    return None if until_s is None else max(until_s - perf_counter(), 0.0)


def call_until(
    function: Callable[[Job, float | None], object],
    job: Job,
    until_s: float | None,
    timeout_s: float | None,
) -> None:
    """Have a driver run a job, or wait for one, until then; `timeout_s` is what the error tells."""
    try:
        function(job, left_s(until_s))
    except ReadTimeoutError:
        raise late(job, f"within {timeout_s} s") from None


def wait_for_all(driver: Driver, jobs: list[Job], until_s: float | None, timeout_s: float | None) -> None:
    """Wait for several that were launched, no longer together than for one."""
    for job in jobs:
        call_until(driver.wait, job, until_s, timeout_s)


def check_outcome(job: Job) -> None:
    """Raise what ended a request that has no result."""
    request = job.request
    if request.error is not None:
        raise request.error
    if request.state is State.CANCELLED or (
        request.state is State.RETIRED and request.ops_done < request.n_ops and job.ops.got.min() < 0
    ):
        msg = f"{request.label}: the read was abandoned"
        raise SchedulerClosedError(msg)


def hand_over(job: Job, plan: Plan | None, delivered: int) -> None:
    """Release the reservation: the caller has the bytes."""
    if job.request.state is State.RETIRED:
        return  # another thread has taken it, too, and was first
    if job.engine.is_inside():
        # Of a section, which may be in the middle of anything, or of who only looks: by the next end of one.
        job.engine.taken.append(partial(note_taken, job, plan, delivered))
        return
    with job.engine.lock, job.engine:
        note_taken(job, plan, delivered)


def note_taken(job: Job, plan: Plan | None, delivered: int) -> None:
    """Count what was handed over, and release its reservation; in a section."""
    request, counters = job.request, job.engine.hub.counters
    if request.state is State.RETIRED:
        return  # by another thread meanwhile
    counters.bytes_delivered += delivered
    asked = request.bytes_between(0, request.n_ops)
    if plan is not None:
        asked += plan.shared_bytes - plan.gap_bytes
        counters.bytes_gap += plan.gap_bytes
        counters.bytes_shared += plan.shared_bytes
    counters.bytes_short += asked - delivered
    counters.requests_consumed += 1
    job.scheduler.consume(request, perf_counter())
