"""Two requests for one op: which of them is its answer."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from headrace.backends.abc import AsyncBackend
from headrace.core.hedge import Hedge
from headrace.drivers.hedged import hedged, read_op
from headrace.drivers.job import Job
from headrace.types import NOT_YET, Ops

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = b"abcdefgh"


class LateJob:
    """Of one op, which is late at once."""

    def __init__(self) -> None:
        zero = np.zeros(1, np.int64)
        self.ops = Ops.of(["path"], (zero, zero, zero + len(DATA), zero), np.zeros(len(DATA), np.uint8))

    def ask(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


class Always(Hedge):
    """Each op is late at once, and may be asked for again."""

    __slots__ = ()

    def delay_s(self, _length: int) -> float:
        return 0.0

    def may_send(self) -> bool:
        return True


class FailingBackend:
    """Its second request fails; so does the first, which ends after it, if `fails`."""

    def __init__(self, failure: BaseException | None, *, fails: bool) -> None:
        self.failure = failure
        self.fails = fails
        self.asked = 0
        self.has_failed = asyncio.Event()

    async def read(self, ops: Ops, row: int) -> None:
        self.asked += 1
        is_first = self.asked == 1
        if is_first:
            await self.has_failed.wait()
            for _ in range(10):  # turns of the loop, in which the second request's end is seen
                await asyncio.sleep(0)
        self.has_failed.set()
        if is_first and not self.fails:
            ops.deliver(row, DATA)
        elif self.failure is not None:
            ops.fail(row, self.failure)


def read(failure: BaseException | None, *, fails: bool = False) -> Ops:
    async def race() -> Ops:
        job: Any = LateJob()
        backend = FailingBackend(failure, fails=fails)
        await hedged(cast("AsyncBackend", backend), cast("Job", job), 0, Always())
        assert backend.asked == 2
        return cast("Ops", job.ops)

    return asyncio.run(race())


@pytest.mark.parametrize("failure", [OSError("503"), None])
def test_a_second_request_that_failed_does_not_win(failure: OSError | None) -> None:
    """Whether its backend says so or leaves the op without an answer."""
    ops = read(failure)
    assert ops.buffer.tobytes() == DATA
    assert (ops.got.tolist(), ops.errors) == ([len(DATA)], {})


def test_where_both_fail_the_op_does() -> None:
    failure = OSError("503")
    with pytest.raises(OSError, match="503"):
        read(failure, fails=True)


class CutBackend:
    """Stores whatever ends its first request; the second answers."""

    asked = 0

    async def read(self, ops: Ops, row: int) -> None:
        self.asked += 1
        if self.asked > 1:
            ops.deliver(row, DATA)
            return
        try:
            await asyncio.Event().wait()
        except BaseException as error:  # noqa: BLE001 - as a backend may that knows no better
            ops.fail(row, error)


def test_how_the_first_request_ends_that_lost_is_nobodys_error() -> None:
    job: Any = LateJob()
    asyncio.run(hedged(cast("AsyncBackend", CutBackend()), cast("Job", job), 0, Always()))
    assert job.ops.buffer.tobytes() == DATA
    assert (job.ops.got.tolist(), job.ops.errors) == ([len(DATA)], {})


class InterruptedBackend:
    """A signal's handler raises in its first two requests."""

    asked = 0

    async def read(self, ops: Ops, row: int) -> None:
        self.asked += 1
        if self.asked <= 2:
            await asyncio.sleep(0)
            raise KeyboardInterrupt
        ops.deliver(row, DATA)


def test_what_interrupts_requests_ends_the_turn_of_the_loop_and_not_the_op() -> None:
    """In lite it is for the thread that ran the loop, and the op may be another's (I5)."""
    job: Any = LateJob()
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        task = loop.create_task(
            hedged(cast("AsyncBackend", InterruptedBackend()), cast("Job", job), 0, Always())
        )
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                loop.run_until_complete(asyncio.shield(task))
        loop.run_until_complete(task)
    assert job.ops.buffer.tobytes() == DATA
    assert (job.ops.got.tolist(), job.ops.errors) == ([len(DATA)], {})


class RefusingBackend:
    """Notes an error for each op, and keeps none."""

    async def read(self, ops: Ops, row: int) -> None:
        ops.fail(row, OSError("503"))


def test_an_attempt_that_failed_keeps_no_memory() -> None:
    """Not even until a collection: the read may be tried again, and its memory be wanted by others."""
    ops = LateJob().ops
    memory = weakref.ref(ops.buffer)
    gc.disable()
    try:
        try:
            # Not by a task: that and its error keep each other.
            read_op(cast("AsyncBackend", RefusingBackend()), ops, 0).send(None)
        except OSError:
            assert (ops.got.tolist(), ops.errors) == ([NOT_YET], {})
        del ops
        assert memory() is None
    finally:
        gc.enable()
