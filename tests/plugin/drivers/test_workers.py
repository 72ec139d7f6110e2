"""The pool of daemon threads, in moments that an interrupt can bring about."""

from __future__ import annotations

import threading

import pytest

from headrace.drivers import workers as workers_
from headrace.drivers.workers import Workers


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
