"""The drivers of inline backends: what they keep of a read, and for how long."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from headrace.backends.memory import MemoryBackend
from headrace.core.request import Request, State
from headrace.drivers import inline
from headrace.drivers.engine import Engine
from headrace.drivers.inline import LiteDriver, _finish_half, _shares, _start_granted
from headrace.drivers.job import Job
from headrace.drivers.waiter import Waiter
from headrace.types import Ops


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
