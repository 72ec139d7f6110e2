"""The drivers of inline backends: what they keep of a read, and for how long."""

from __future__ import annotations

import threading
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from headrace.backends.memory import MemoryBackend
from headrace.core.request import Request, State
from headrace.core.room import Limits
from headrace.drivers import inline, waiting
from headrace.drivers.engine import Engine
from headrace.drivers.inline import LiteDriver, LoopDriver, _finish_half, _shares, _start_granted
from headrace.drivers.job import Job
from headrace.drivers.loop import Dispatcher
from headrace.drivers.waiter import Waiter
from headrace.drivers.workers import Pools
from headrace.errors import ReadTimeoutError
from headrace.types import Ops

WAIT_S = 10.0


class Started:
    """A job whose consumer waits for the disk."""

    def __init__(self) -> None:
        self.backend = MemoryBackend(None)
        self.ops = None
        self.under_way = [(None, np.arange(3))]
        self.waiter = Waiter()


class Admitted:
    inbox = (None,)


def test_a_read_that_was_passed_over_is_not_kept() -> None:
    """Its consumer may start what was admitted itself; its files are to be closed when it is over."""
    driver, job, request = LiteDriver(None), Started(), Admitted()  # type: ignore[arg-type]
    untyped: Any = job
    driver._wake(untyped, request)  # type: ignore[arg-type]
    assert job.waiter.wait(0), "woken"
    gone = weakref.ref(job)
    del job, untyped
    assert gone() is None
    driver.start_for_others()


@pytest.mark.parametrize(("length", "shares"), [(4096, [[0, 1, 2]]), (1 << 20, [[0, 1], [2]])])
def test_workers_share_long_ops(length: int, shares: list[list[int]]) -> None:
    """One worker would copy them one after the other; more than two would keep others waiting."""
    job: Any = Started()
    job.ops = SimpleNamespace(length=np.full(3, length))
    assert [rows.tolist() for rows in _shares(job, np.arange(3))] == shares
    assert _shares(job, np.arange(0)) == []


class Grown:
    """A job of short reads of which a passer-by starts another one while half of them are finished."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.under_way: list[Any] = [("first", np.arange(20)), ("second", np.arange(20, 60))]
        self.request = SimpleNamespace(next_op=60, n_ops=100)
        self.finished = 0
        monkeypatch.setattr(inline, "_finish_some", self.finish_some)

    def finish_some(self, _job: Any, under_way: list[Any], least: int) -> list[Any]:
        self.finished = least
        self.under_way.append(("third", np.arange(60, 70)))
        assert [grant for grant, _ in under_way] == ["first", "second"]
        return [("second", np.arange(30, 60))]


def test_what_a_passer_by_starts_while_half_is_finished_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    job: Any = Grown(monkeypatch)
    _finish_half(job)
    assert job.finished == 30, "half of all, not of the first grant: slices would become ever smaller"
    assert [grant for grant, _ in job.under_way] == ["second", "third"]


def interrupted_start(backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the next start raise what a signal's handler does; the one after it finds all to be misses."""
    raised: list[bool] = []

    def start(_ops: Any, lo: int, hi: int) -> Any:
        if not raised:
            raised.append(True)
            raise KeyboardInterrupt
        return np.arange(lo, hi)

    monkeypatch.setattr(backend, "start", start, raising=False)


def granted(monkeypatch: pytest.MonkeyPatch) -> Job:
    """Return the job of a read whose ops were all granted."""
    engine = Engine(buffer_bytes=0, process_io_limit=0)
    backend = MemoryBackend(None)
    interrupted_start(backend, monkeypatch)
    column = np.arange(3, dtype=np.int64)
    ops = Ops.of([None], (column * 0, column, column * 0 + 1, column), np.zeros(3, np.uint8))
    job = Job(engine, engine.hub.scheduler("disk"), Request(ops.length, result_bytes=3), ops, backend)
    job.submit()
    return job


def test_a_passer_by_that_is_interrupted_leaves_the_grant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its consumer waits for it, and nobody else would start it."""
    job = granted(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        _start_granted(job)
    assert (len(job.request.inbox), job.under_way) == (1, [])
    for _ in range(2):
        _start_granted(job)
        assert (job.request.inbox, [rows.tolist() for _, rows in job.under_way]) == ([], [[0, 1, 2]])


def test_a_handler_that_passes_by_starts_nothing_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It interrupted the start of that very grant, and its own read passes by."""
    job, driver = granted(monkeypatch), LiteDriver(None)  # type: ignore[arg-type]
    started: list[int] = []

    def start(_ops: Any, lo: int, hi: int) -> Any:
        started.append(lo)
        if len(started) == 1:
            driver._passed_over.append(weakref.ref(job))
            driver.start_for_others()
        return np.arange(lo, hi)

    monkeypatch.setattr(job.backend, "start", start)
    _start_granted(job)
    assert started == [0]
    assert (job.request.inbox, len(job.under_way)) == ([], 1)
    assert job.waiter.wait(0), "its consumer looks for what came meanwhile"


def test_what_was_forfeited_meanwhile_is_not_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a consumer that was interrupted twice, while a passer-by was starting it."""
    job = granted(monkeypatch)
    (grant,) = job.request.grants
    job.is_left = True
    job.engine.lost.append(job)
    job.engine.settle_lost()
    assert job.request.state is State.RETIRED
    job.complete(grant, 3, 3, is_hit=True)
    job.engine.hub.validate()


class Slow(MemoryBackend):
    """Takes a second for each op, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(None)
        self.now_s = 100.0
        for module in (inline, waiting):
            monkeypatch.setattr(module, "perf_counter", lambda: self.now_s)

    def start(self, _ops: Ops, lo: int, hi: int) -> Any:
        return np.arange(lo, hi)

    def finish_some(self, ops: Ops, rows: Any, _least: int) -> Any:
        self.now_s += len(rows)
        ops.got[rows] = ops.length[rows]
        return np.ones(len(rows), np.bool_)


def one_by_one(backend: MemoryBackend) -> Job:
    """Return the job of ten long ops, of which one is under way at a time."""
    engine = Engine(buffer_bytes=0, process_io_limit=0)
    column, length = np.arange(10, dtype=np.int64), np.full(10, 1 << 20)
    ops = Ops.of([None], (column * 0, column * 0, length, column * 0), np.zeros(1 << 20, np.uint8))
    scheduler = engine.hub.scheduler("disk", Limits(max_in_flight_ops=1))
    return Job(engine, scheduler, Request(length, result_bytes=1 << 20), ops, backend)


def test_the_time_out_is_of_all_that_a_read_performs(monkeypatch: pytest.MonkeyPatch) -> None:
    job = one_by_one(Slow(monkeypatch))
    with pytest.raises(ReadTimeoutError, match=r"within 2\.5 s"):
        LiteDriver(None).run(job, 2.5)  # type: ignore[arg-type]
    assert (job.ops.got >= 0).sum() == 3
    assert job.request.state is State.RETIRED
    job.engine.hub.validate()


def test_the_time_out_is_of_all_that_a_read_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time another read has the device."""
    backend = Slow(monkeypatch)
    job, until = one_by_one(backend), list[float]()
    other = Request([1], result_bytes=1)
    with job.engine.lock, job.engine:
        job.scheduler.submit(other, 0.0)

    def wait(*_: Any, until_s: float, **__: Any) -> None:
        until.append(until_s)
        backend.now_s += 2
        if len(until) == 3:
            with job.engine.lock, job.engine:
                job.scheduler.complete(other.inbox.pop(), 1, 1, 0.0)

    monkeypatch.setattr(inline, "wait_until_over", wait)
    LiteDriver(None).run(job, 60)  # type: ignore[arg-type]
    assert until == [160.0] * 3


def test_a_worker_finishes_its_rows_beside_a_read_that_cannot_be_woken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each completion admits the other one, and nobody else has the rest of these rows."""

    def refuse(_request: Request) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    job = one_by_one(Slow(monkeypatch))
    job.scheduler.room.max_in_flight_ops = 10
    job.submit()
    (grant,) = job.request.grants
    other = Request([1], result_bytes=1, on_wake=refuse)
    with job.engine.lock, job.engine:
        job.scheduler.submit(other, 0.0)
    assert not other.is_over, "it waits for room"
    inline._finish_share(job, grant, np.arange(10))
    assert job.request.state is State.COMPLETE
    assert isinstance(other.error, RuntimeError)


class Hanging(MemoryBackend):
    """Hangs where a device does, until it is let go."""

    def __init__(self) -> None:
        super().__init__(None)
        self.gate = threading.Event()

    def start(self, _ops: Ops, lo: int, hi: int) -> Any:
        return np.arange(lo, hi)

    def finish(self, ops: Ops, rows: Any) -> None:
        if ops.sources[0] == "hung":
            assert self.gate.wait(WAIT_S)
        ops.got[rows] = ops.length[rows]


def test_a_device_that_hangs_takes_no_thread_from_another() -> None:
    """As a network mount does whose server is gone."""
    backend, engine = Hanging(), Engine(buffer_bytes=0, process_io_limit=0)
    thread = Dispatcher("test-loop")
    driver = LoopDriver(thread, Pools(2, "test-disk"))
    zero, one = np.zeros(1, np.int64), np.ones(1, np.int64)

    def job(device: str) -> Job:
        ops = Ops.of([device], (zero, zero, one, zero), np.zeros(1, np.uint8))
        return Job(engine, engine.hub.scheduler(device), Request(one, result_bytes=1), ops, backend)

    hung = [job("hung") for _ in range(4)]
    for one_of_them in hung:
        driver.launch(one_of_them)
    sound = job("sound")
    driver.run(sound, WAIT_S)
    assert sound.request.state is State.COMPLETE
    backend.gate.set()
    for one_of_them in hung:
        driver.wait(one_of_them, WAIT_S)
        assert one_of_them.request.state is State.COMPLETE
    thread.close()
