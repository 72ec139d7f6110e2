"""Who finds the engine's lock held stands by: nobody waits for the lock itself, and for the GIL with it."""

from __future__ import annotations

import signal
import threading
import time
import types
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from headrace.core.request import Request, State
from headrace.drivers import engine as engine_
from headrace.drivers.engine import Engine
from headrace.drivers.job import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headrace.core.hedge import Hedge

WAIT_S = 10.0


class Lock:
    """The engine's, which tells of those who wait for it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.waited = threading.Event()
        self._is_owned = self._lock._is_owned  # type: ignore[attr-defined]
        self.release = self._lock.release

    def acquire(self, *, blocking: bool = True) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        if blocking:
            self.waited.set()
            return self._lock.acquire()
        return False

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@pytest.fixture
def lock() -> Lock:
    return Lock()


@pytest.fixture
def engine(lock: Lock) -> Engine:
    made = Engine(buffer_bytes=0, process_io_limit=0)
    give(made, lock)
    return made


def give(engine: Engine, lock: Lock) -> None:
    engine._lock = lock  # type: ignore[assignment]
    engine._is_mine = lock._is_owned
    engine._acquire = partial(lock.acquire, blocking=False)


@pytest.fixture
def in_thread() -> Iterator[Callable[[Callable[[], object]], threading.Thread]]:
    """Start threads, which have ended when the test has."""
    threads = []

    def start(function: Callable[[], object]) -> threading.Thread:
        threads.append(threading.Thread(target=function, daemon=True))
        threads[-1].start()
        return threads[-1]

    yield start
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()


class Sections:
    """Sections of some threads, one after the other."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.made = 0

    def make(self) -> None:
        with self.engine.lock, self.engine:
            self.made += 1


def stand_by(engine: Engine, count: int) -> None:
    """Return when so many threads stand by."""
    deadline = threading.Event()
    timer = threading.Timer(WAIT_S, deadline.set)
    timer.daemon = True
    timer.start()
    while len(engine._standing_by) < count:
        assert not deadline.is_set()
    timer.cancel()


def test_all_who_stand_by_are_told_of_a_sections_end(
    engine: Engine, lock: Lock, in_thread: Callable[..., threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by another's end: by themselves they would look too late."""
    monkeypatch.setattr(engine_, "STAND_BY_S", 2 * WAIT_S)
    sections = Sections(engine)
    with engine.lock, engine:
        deadline_s = time.monotonic() + WAIT_S
        threads = [in_thread(sections.make) for _ in range(8)]
        stand_by(engine, 8)
        assert not sections.made
        assert not lock.waited.is_set()
    while (
        sections.made < 8
    ):  # one who came after the last was told, and before the lock was free, is told now
        engine.drain_dropped()
        threads[0].join(0.001)
        assert time.monotonic() < deadline_s
    assert not engine._standing_by


def test_who_had_it_without_a_section_tells_them_afterwards(
    engine: Engine, lock: Lock, in_thread: Callable[..., threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As small hot reads do."""
    monkeypatch.setattr(engine_, "STAND_BY_S", 2 * WAIT_S)
    sections = Sections(engine)
    with engine.lock:
        thread = in_thread(sections.make)
        stand_by(engine, 1)
    engine.drain_dropped()
    thread.join(WAIT_S)
    assert sections.made == 1
    assert not lock.waited.is_set()


class AskedHedge:
    """Somebody comes to stand by whenever it is asked for anything."""

    def __init__(self, come: Callable[[], None]) -> None:
        self._come = come

    def delay_s(self, _length: int) -> float:
        self._come()
        return 1.0

    def may_send(self) -> bool:
        self._come()
        return True

    def note(self, _length: int, _latency_s: float) -> None:
        self._come()


def hedge_of(job: Job) -> Hedge:
    assert job.scheduler.hedge is not None
    return job.scheduler.hedge


ASK: dict[str, Callable[[Job], object]] = {
    "when": lambda job: job.ask(hedge_of(job).delay_s, 1),
    "whether": lambda job: job.ask(hedge_of(job).may_send),
    "afterwards": lambda job: job.ask(hedge_of(job).note, 1, 0.1),
}


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
def test_who_asks_for_a_second_request_tells_them_afterwards(
    ask: Callable[[Job], object],
    engine: Engine,
    in_thread: Callable[..., threading.Thread],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_, "STAND_BY_S", 2 * WAIT_S)
    sections, threads = Sections(engine), []

    def come() -> None:
        threads.append(in_thread(sections.make))
        stand_by(engine, 1)

    scheduler: Any = types.SimpleNamespace(hedge=AskedHedge(come))
    nothing: Any = None
    ask(Job(engine, scheduler, nothing, nothing, nothing))
    threads[0].join(WAIT_S)
    assert sections.made == 1


def test_who_is_not_told_looks(
    engine: Engine, lock: Lock, in_thread: Callable[..., threading.Thread]
) -> None:
    sections = Sections(engine)
    with engine.lock:
        thread = in_thread(sections.make)
        stand_by(engine, 1)
    thread.join(WAIT_S)
    assert sections.made == 1
    assert not engine._standing_by


def test_nobody_stands_by_for_ever(
    engine: Engine, lock: Lock, in_thread: Callable[..., threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_, "STAND_BY_S", 0.0)
    monkeypatch.setattr(engine_, "MOST_LOOKS", 3)
    sections = Sections(engine)
    with engine.lock:
        thread = in_thread(sections.make)
        assert lock.waited.wait(WAIT_S)
        assert not engine._standing_by  # nothing is left behind
    thread.join(WAIT_S)
    assert sections.made == 1


def test_the_thread_that_has_it_does_not_wait_for_itself(engine: Engine, lock: Lock) -> None:
    with engine.lock, engine.lock:
        assert engine.is_inside()
    assert not engine.is_inside()
    assert not lock.waited.is_set()
    assert not engine._standing_by


def test_a_section_while_they_are_told_is_none_of_its_concern(engine: Engine) -> None:
    """A signal handler's, between two of them."""

    class Interrupted:
        woken = 0

        def wake(self) -> None:
            Interrupted.woken += 1
            with engine.lock, engine:
                pass

    engine._standing_by.update({Interrupted(): True for _ in range(3)})  # type: ignore[misc]
    with engine.lock, engine:
        pass
    assert Interrupted.woken == 3
    assert not engine._standing_by


def test_what_a_handler_raised_is_not_taken_for_the_locks_own(engine: Engine, lock: Lock) -> None:
    def release() -> None:
        lock._lock.release()
        raise RuntimeError("from a handler")

    lock.release = release  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="handler"):
        engine.lock  # noqa: B018
    assert not lock._is_owned()


def test_what_a_handler_raises_at_a_wake_up_is_no_fault_of_the_owners(engine: Engine) -> None:
    """As an alarm does. It comes out, and the read goes on."""

    def handle(_number: int, _frame: object) -> None:
        raise TimeoutError

    calls: list[Request] = []

    def wake(request: Request) -> None:
        calls.append(request)
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    request = Request([1], result_bytes=1, on_wake=wake)
    try:
        with pytest.raises(TimeoutError), engine.lock, engine as hub:
            hub.scheduler("disk").submit(request, 0.0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert calls
    assert (request.state, len(request.inbox)) == (State.RUNNING, 1)


@pytest.mark.parametrize("is_held", [False, True])
def test_an_interrupt_while_it_is_looked_at_leaves_it_free(engine: Engine, *, is_held: bool) -> None:
    """A signal is handled after the call that takes the lock, too."""

    class Interrupted(Lock):
        def acquire(self, *, blocking: bool = True) -> bool:
            if is_held:
                super().acquire(blocking=blocking)
            raise KeyboardInterrupt

    lock = Interrupted()
    give(engine, lock)
    with pytest.raises(KeyboardInterrupt):
        engine.lock  # noqa: B018
    assert not lock._is_owned()
