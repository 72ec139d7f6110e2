"""The pool of daemon threads, in moments that an interrupt can bring about."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from headrace.drivers import workers as workers_
from headrace.drivers.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_thread_that_was_taken_for_dead_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one is whose start an interrupt held up, when a signal handler reads."""
    monkeypatch.setattr(workers_, "IDLE_S", 0.05)
    escaped: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: escaped.append(args.exc_value))
    before = set(threading.enumerate())
    pool = Workers(2, "test-worker")
    may_go, begun = threading.Event(), [threading.Event() for _ in range(2)]

    def work(number: int) -> None:
        begun[number].set()
        may_go.wait(10)

    pool.put(lambda: work(0))
    assert begun[0].wait(10)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "is_alive", lambda _thread: False)
        pool.put(lambda: work(1))
    assert begun[1].wait(10)
    may_go.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert set(threading.enumerate()) - before == set()
    assert escaped == []


def test_work_that_raises_leaves_the_thread_to_others(caplog: pytest.LogCaptureFixture) -> None:
    pool = Workers(1, "test-worker")
    done = threading.Event()

    def fails() -> None:
        message = "broken"
        raise ValueError(message)

    pool.put(fails)
    pool.put(done.set)
    assert done.wait(10)
    assert "an error escaped from a read" in caplog.text


def test_idle_threads_are_used_before_any_is_started(
    wait_until: Callable[[Callable[[], bool]], None],
) -> None:
    pool = Workers(8, "test-worker")
    names: list[str] = []
    together = threading.Barrier(4)

    def work() -> None:
        together.wait(10)
        names.append(threading.current_thread().name)
        together.wait(10)

    for _ in range(3):
        for _ in range(3):
            pool.put(work)
        together.wait(10)  # each of the three has a thread
        together.wait(10)
        wait_until(lambda: len(pool._idle) == 3)
    assert len(names) == 9
    assert len(set(names)) == 3


def test_no_thread_is_started_for_what_an_awake_one_will_take() -> None:
    pool = Workers(8, "test-worker")
    done = [threading.Event() for _ in range(3)]
    for event in done:
        pool.put(event.set, starts=False)
    assert pool._threads == []
    pool.start_needed()
    assert all(event.wait(10) for event in done)
    assert len(pool._threads) <= 3
