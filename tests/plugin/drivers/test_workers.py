"""The pool of daemon threads, in moments that an interrupt can bring about."""

from __future__ import annotations

import _thread
import gc
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from headrace.drivers import starting
from headrace.drivers import workers as workers_
from headrace.drivers.starting import Daemon, start_thread
from headrace.drivers.waiter import Waiter
from headrace.drivers.workers import Pools, Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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


def test_a_thread_that_rests_again_is_not_struck_off(
    monkeypatch: pytest.MonkeyPatch, wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    """By one who found it idle, and gets the GIL again when it has done that work and rests once more."""
    pool = Workers(1, "test-worker", idle_s=60)
    first, second, third = (threading.Event() for _ in range(3))
    pool.put(first.set)
    assert first.wait(10)
    wait_until(lambda: bool(pool._idle))
    wake = Waiter.wake

    def wake_late(waiter: Waiter) -> None:
        wake(waiter)
        if not second.is_set():
            assert second.wait(10)
            wait_until(lambda: bool(pool._idle))

    with monkeypatch.context() as patch:
        patch.setattr(Waiter, "wake", wake_late)
        pool.put(second.set)
    pool.put(third.set, starts=False)
    pool.start_needed()
    assert third.wait(10)


def test_no_thread_is_started_for_what_an_awake_one_will_take() -> None:
    pool = Workers(8, "test-worker")
    done = [threading.Event() for _ in range(3)]
    for event in done:
        pool.put(event.set, starts=False)
    assert pool._threads == []
    pool.start_needed()
    assert all(event.wait(10) for event in done)
    assert len(pool._threads) <= 3


class RaisedError(Exception):
    """What a signal handler raises."""


def _cut_in_its_wait(thread: threading.Thread) -> None:
    """Have a handler raise where `thread`'s start has let go of a lock, and not yet waited."""
    condition = thread._started._cond  # type: ignore[attr-defined]

    def release_and_raise() -> None:
        condition._lock.release()
        raise RaisedError

    def wait(_timeout: float | None = None) -> None:
        """Wait even if the thread runs by now."""
        with condition:
            condition.wait()

    condition._release_save = release_and_raise
    thread._started.wait = wait  # type: ignore[attr-defined]


@pytest.fixture
def a_handler() -> Iterator[None]:
    """Have a handler of the program's own, which may raise at any line of the main thread."""
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def no_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have none but Python's own for SIGINT."""
    monkeypatch.setattr(starting, "may_raise", lambda: False)


@pytest.mark.usefixtures("no_handler")
def test_what_a_signal_handler_raises_comes_out_of_a_start() -> None:
    """And not what `threading` makes of it there: a RuntimeError."""
    is_run = threading.Event()
    thread = threading.Thread(target=is_run.set)
    _cut_in_its_wait(thread)
    with pytest.raises(RaisedError):
        start_thread(thread)
    assert is_run.wait(10)


@pytest.mark.usefixtures("a_handler")
def test_a_handler_cannot_end_the_thread_that_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised on the way out of the call that starts it: `Thread.start` takes that for failed."""

    def cutting(start_one: Callable[..., Any]) -> Callable[..., Any]:
        def cut(*args: Any, **options: Any) -> Any:
            started = start_one(*args, **options)
            if threading.current_thread() is threading.main_thread():
                raise RaisedError
            return started

        return cut

    is_joinable = hasattr(threading, "_start_joinable_thread")  # from Python 3.13 on
    name = "_start_joinable_thread" if is_joinable else "_start_new_thread"
    is_run = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(_thread, "start_new_thread", cutting(_thread.start_new_thread))
        patch.setattr(threading, name, cutting(getattr(threading, name)))
        with pytest.raises(RaisedError):
            start_thread(threading.Thread(target=is_run.set))
        assert is_run.wait(10)


@pytest.mark.parametrize("has_handler", [False, True])
def test_threads_that_cannot_start_say_so(has_handler: bool, request: pytest.FixtureRequest) -> None:
    if has_handler:
        request.getfixturevalue("a_handler")
    thread = threading.Thread(target=int)
    start_thread(thread)
    with pytest.raises(RuntimeError, match="once"):
        start_thread(thread)
    thread.join()


@pytest.mark.usefixtures("no_handler")
def test_a_start_that_is_cut_costs_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Workers(1, "test-worker", idle_s=0.05)
    done = [threading.Event() for _ in range(2)]

    def cut(thread: threading.Thread) -> None:
        threading.Thread.start(thread)
        raise RaisedError

    with monkeypatch.context() as patch:
        patch.setattr(Daemon, "start", cut)
        with pytest.raises(RaisedError):
            pool.put(done[0].set)
    pool.put(done[1].set)
    assert all(one.wait(10) for one in done)


@pytest.mark.parametrize("has_handler", [False, True])
def test_threads_are_started_without_waiting_for_any(
    has_handler: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them has begun to run when all are on their way, and they count as alive."""
    if has_handler:
        request.getfixturevalue("a_handler")
    may_begin, done = threading.Event(), threading.Semaphore(0)
    bootstrap = threading.Thread._bootstrap  # type: ignore[attr-defined]

    def hold(thread: threading.Thread) -> None:
        may_begin.wait(10)
        bootstrap(thread)

    monkeypatch.setattr(Daemon, "_bootstrap", hold, raising=False)
    pool = Workers(8, "test-worker")
    for _ in range(8):
        pool.put(done.release, starts=False)
    pool.start_needed()
    assert len(pool._threads) == 8
    assert all(thread.is_alive() and thread.ident is None for thread in pool._threads)
    pool.start_needed()
    assert len(pool._threads) == 8
    may_begin.set()
    assert all(done.acquire(timeout=10) for _ in range(8))


def test_a_thread_that_died_is_not_counted_on() -> None:
    """As one does that an exception meets before it serves."""
    pool = Workers(1, "test-worker")
    dead = threading.Thread(target=int)
    dead.start()
    dead.join()
    pool._threads.append(dead)
    done = threading.Event()
    pool.put(done.set, starts=False)
    pool.start_needed()
    assert done.wait(10)


def test_where_no_thread_can_be_started_those_who_live_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where nobody lives the error is the caller's."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool = Workers(4, "test-worker")
    may_go, done = threading.Event(), threading.Event()
    pool.put(lambda: may_go.wait(10))
    monkeypatch.setattr(workers_, "start_thread", refuse)
    pool.put(done.set)
    pool.start_needed()
    may_go.set()
    assert done.wait(10)
    with pytest.raises(RuntimeError, match="can't start"):
        Workers(4, "test-worker").put(done.set)


@pytest.mark.usefixtures("a_handler")
def test_nobody_waits_for_who_was_interrupted_with_the_lock() -> None:
    """His handler may read, and starts threads on another one."""
    pool = Workers(4, "test-worker")
    done = threading.Event()
    with pool._lock:
        pool.put(done.set)
        pool.start_needed()
    assert pool._threads == []
    pool.start_needed()
    assert done.wait(10)


class Device:
    """Has workers."""


def test_each_thing_has_workers_of_its_own_for_as_long_as_it_is_there() -> None:
    pools = Pools(2, "test-pool")
    kept, gone = Device(), Device()
    workers = pools.of(kept)
    assert pools.of(kept) is workers
    assert pools.of(gone) is not workers
    del gone
    gc.collect()
    assert [known for known, _ in pools._pools.values()] == [workers]
