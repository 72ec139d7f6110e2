"""How a consumer waits for a request that others drive.

A wait sleeps on the job's own waiter and looks up now and then (`LOOK_S`), for four things that wake
nobody: a driver thread that died is revived; the total time-out; an interrupt that must reach reads on
Arrow's threads (`drivers.interrupts`); that this is a forked child, where nobody else reads.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Any

from headrace.drivers import interrupts
from headrace.errors import ReadTimeoutError
from headrace.redact import redact_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.drivers.job import Job

LOOK_S = 0.25
"""A signal that comes just before a wait does not end it: this is the longest until it is handled."""

TOLD_CHARACTERS = 400
"""A store may answer with a page of text."""


def _never() -> bool:
    return False


def _nothing() -> None:
    return None


def late(job: Job, when: str) -> ReadTimeoutError:
    """Return the error of a job that was not over in time; if an attempt failed, it tells with what."""
    error = ReadTimeoutError(f"{job.request.label or 'read'}: not finished {when}")
    if job.fault:
        # Cut afterwards: half a signed URL may not look like one. It need not be why: others went well since.
        error.add_note(f"an attempt had failed with: {redact_text(job.fault)[:TOLD_CHARACTERS]}")
    return error


def check_caller(job: Job, loop: Any = None) -> None:
    """Refuse, as fsspec does, to wait on the very loop that reads, or may have to: neither would go on.

    Parameters
    ----------
    loop
        The driver's, if it has one. Another may be the backend's.

    Raises
    ------
    NotImplementedError
        This thread runs it.
    """
    running = asyncio._get_running_loop()  # noqa: SLF001
    if running is None or job.request.is_over:
        return
    if running is loop or running is job.backend.asked_loop:
        msg = "a sync read was called from within the event loop that reads; await its async twin"
        raise NotImplementedError(msg)


def announce(job: Job) -> None:
    """Tell the scheduler that somebody waits: a request that is waited for may pass the budget (I2)."""
    if not job.request.is_awaited:
        with job.engine.lock, job.engine:
            job.scheduler.note_awaited(job.request)


def deadline(timeout_s: float | None) -> float | None:
    """Return when so many seconds will be over, on the clock of `perf_counter`."""
    return None if timeout_s is None else perf_counter() + timeout_s


def wait_until_over(
    job: Job,
    timeout_s: float | None = None,
    *,
    until: Callable[[], bool] = _never,
    revive: Callable[[], object] = _nothing,
    until_s: float | None = None,
) -> None:
    """Sleep until the request is over or `until` holds.

    Parameters
    ----------
    until_s
        When `timeout_s` is over, on the clock of `perf_counter`, of a read that waits several times.

    Raises
    ------
    ReadTimeoutError
        `timeout_s` seconds went by. The request is as it was: cancelling is the caller's choice.
    """
    announce(job)
    if until_s is None:
        until_s = deadline(timeout_s)
    # What need not wait is not watched, unless it is to end at once.
    if interrupts.is_watched() and (interrupts.is_aftermath() or not until()):
        with interrupts.watched(job):
            _sleep(job, timeout_s, until_s, until, revive)
    else:
        _sleep(job, timeout_s, until_s, until, revive)


def _sleep(
    job: Job,
    timeout_s: float | None,
    until_s: float | None,
    until: Callable[[], bool],
    revive: Callable[[], object],
) -> None:
    request = job.request
    while not (request.is_over or until()):
        left = LOOK_S if until_s is None else min(LOOK_S, until_s - perf_counter())
        if left <= 0:
            raise late(job, f"within {timeout_s} s")
        if not job.waiter.wait(left):
            job.engine.check_process()
            revive()
            job.engine.catch_up()
    if request.is_over:
        # Threads may share one read: each that wakes wakes the next.
        job.waiter.wake()
