"""The drivers of async backends: who wakes the event loop when, and whose op survives whose interrupt."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fsspec.asyn import AsyncFileSystem

from headrace.core.hub import Hub
from headrace.core.request import Grant
from headrace.drivers.asynchronous import AsyncDriver
from headrace.drivers.asynchronous_lite import LiteAsyncDriver
from headrace.drivers.engine import Engine
from headrace.drivers.job import Job
from headrace.drivers.loop import LoopThread
from headrace.errors import ReadTimeoutError
from headrace.filesystem import HeadraceFileSystem
from headrace.types import Ops

DATA = bytes(range(256)) * 16
WAIT_S = 30.0


class Interrupt(KeyboardInterrupt):
    """Stands for whatever ends a thread's turn of the loop."""


class UntoldError(Exception):
    """It says nothing of itself."""

    def __str__(self) -> str:
        raise AttributeError("no words")


class Store(AsyncFileSystem):
    """Serves `DATA`, but for "untold"; what reads "a" is interrupted so many times."""

    protocol = "teststore"
    cachable = False
    interrupts = 0
    asked = 0
    gate: threading.Event | None = None

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_kwargs: Any
    ) -> bytes:
        Store.asked += 1
        await asyncio.sleep(0)
        if path.endswith("slow") and Store.gate is not None:
            await asyncio.to_thread(Store.gate.wait, WAIT_S)
        if Store.interrupts and path.endswith("a"):
            Store.interrupts -= 1
            raise Interrupt
        if path.endswith("untold"):
            raise UntoldError
        return DATA[start:end]


@pytest.fixture(autouse=True)
def _untouched() -> Iterator[None]:
    Store.interrupts = Store.asked = 0
    yield
    Store.interrupts = 0


def driver_of(fs: HeadraceFileSystem) -> AsyncDriver:
    driver = fs.channel.driver
    assert isinstance(driver, AsyncDriver)
    return driver


@pytest.mark.parametrize("mode", ["lite", "standard"])
def test_an_error_that_cannot_be_printed_is_an_error(mode: str) -> None:
    fs = HeadraceFileSystem(fs=Store(), scheduler=mode)
    found = fs.cat_ranges(["untold", "b"], [0, 0], [4, 4], on_error="return")
    assert isinstance(found[0], UntoldError)
    assert found[1] == DATA[:4]


@pytest.mark.parametrize("is_raised", [False, True], ids=["stored", "stored and raised"])
@pytest.mark.parametrize("mode", ["lite", "standard"])
def test_what_a_backend_stores_is_tried_again_as_what_it_raises(
    mode: str, is_raised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = HeadraceFileSystem(fs=Store(), scheduler=mode)
    backend: Any = fs.channel.backend
    failures, read = [ConnectionResetError("once"), ConnectionResetError("twice")], backend.read

    async def failing(ops: Ops, row: int) -> None:
        if failures:
            ops.fail(row, failures.pop())
            if is_raised:
                raise ops.errors[row]
        else:
            await read(ops, row)

    monkeypatch.setattr(backend, "read", failing)
    monkeypatch.setattr("random.random", lambda: 0.0)  # no wait before another attempt
    assert fs.cat_file("a", start=4, end=8) == DATA[4:8]
    assert not failures


@pytest.mark.parametrize("mode", ["lite", "standard"])
def test_who_waits_for_one_op_need_not_come_back_to_say_that_he_has_it(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is submitted in one section, and complete and taken in another."""
    fs = HeadraceFileSystem(fs=Store(), scheduler=mode)
    engine, sections, enter = fs.channel.engine, list[None](), Engine.__enter__

    def counted(self: Engine) -> Hub:
        if self is engine:
            sections.append(None)
        return enter(self)

    fs.cat_file("a", start=0, end=4)  # which makes the scheduler
    before = engine.hub.counters.requests_consumed
    monkeypatch.setattr(Engine, "__enter__", counted)
    assert fs.cat_file("a", start=4, end=8) == DATA[4:8]
    counters = engine.hub.counters
    assert (len(sections), counters.requests_consumed - before) == (2, 1)
    assert not engine.hub.scheduler(fs.channel.backend.device("a")).requests


@pytest.mark.parametrize("mode", ["lite", "standard"])
def test_a_time_out_that_a_backend_stores_as_its_cancellation_is_one(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = HeadraceFileSystem(fs=Store(), scheduler=mode, try_timeout_s=0.01)
    backend: Any = fs.channel.backend
    asked, read = list[int](), backend.read

    async def hung_once(ops: Ops, row: int) -> None:
        asked.append(row)
        if len(asked) > 1:
            await read(ops, row)
            return
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            ops.fail(row, error)

    monkeypatch.setattr(backend, "read", hung_once)
    monkeypatch.setattr("random.random", lambda: 0.0)
    assert fs.cat_file("a", start=4, end=8) == DATA[4:8]
    assert asked == [0, 0]


@pytest.mark.parametrize("mode", ["lite", "standard"])
def test_the_loop_is_told_after_the_lock_was_let_go(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To wake it gives up the GIL: with the lock held the loop's first turn would end at that lock."""
    fs = HeadraceFileSystem(fs=Store(), scheduler=mode)
    assert fs.cat_file("a", start=0, end=4) == DATA[:4]  # its threads run
    told: list[bool] = []
    me, tell = threading.get_ident(), driver_of(fs).loop.call_soon_threadsafe

    def noting(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == me:
            told.append(fs.channel.engine.is_inside())
        return tell(*args, **kwargs)

    monkeypatch.setattr(driver_of(fs).loop, "call_soon_threadsafe", noting)
    assert fs.cat_file("a", start=4, end=8) == DATA[4:8]
    assert bytes(fs.submit_ranges("a", [8], [12]).result()[0]) == DATA[8:12]
    assert told
    assert not any(told)


def test_who_runs_the_loop_need_not_wake_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = HeadraceFileSystem(fs=Store(), scheduler="lite")
    driver = driver_of(fs)
    assert isinstance(driver, LiteAsyncDriver)
    told: list[object] = []
    monkeypatch.setattr(driver.loop, "call_soon_threadsafe", told.append)
    assert elsewhere(fs.cat_file, "a", start=4, end=8) == DATA[4:8]
    assert not told
    assert not driver.has_work()


def test_an_interrupt_of_who_runs_the_loop_fails_nobody_elses_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiteAsyncDriver, "keep", lambda _self, _after_s: None)  # waiters alone run it
    fs = HeadraceFileSystem(fs=Store(), scheduler="lite")
    theirs = fs.submit_ranges("a", [0], [4])
    Store.interrupts = 1
    assert isinstance(elsewhere(fs.cat_file, "b", start=8, end=12), Interrupt)
    assert bytes(elsewhere(theirs.result)[0]) == DATA[:4]
    assert (Store.interrupts, Store.asked) == (0, 3)
    assert elsewhere(fs.cat_file, "b", start=8, end=12) == DATA[8:12]
    assert fs.channel.engine.hub.in_flight_ops == 0
    assert not driver_of(fs).has_work()


def test_an_op_that_is_interrupted_twice_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backend may do that itself, and then it would be tried for ever."""
    monkeypatch.setattr(LiteAsyncDriver, "keep", lambda _self, _after_s: None)
    fs = HeadraceFileSystem(fs=Store(), scheduler="lite")
    theirs = fs.submit_ranges("a", [0], [4])
    Store.interrupts = 2
    assert isinstance(elsewhere(fs.cat_file, "b", start=8, end=12), Interrupt)
    assert isinstance(elsewhere(theirs.result), Interrupt)
    assert isinstance(elsewhere(lambda: theirs.result()[0]), ConnectionAbortedError)
    assert Store.interrupts == 0
    assert fs.channel.engine.hub.in_flight_ops == 0


def test_what_an_interrupted_turn_left_on_the_loop_is_seen_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The callback of a task that was interrupted after its op was complete holds the read."""
    kept: list[float] = []
    monkeypatch.setattr(LiteAsyncDriver, "keep", lambda _self, after_s: kept.append(after_s))
    fs = HeadraceFileSystem(fs=Store(), scheduler="lite")
    driver = driver_of(fs)
    monkeypatch.setattr(driver, "_tasks", Interrupting())
    assert isinstance(elsewhere(lambda: fs.submit_ranges("b", [0], [4]).result()[0]), Interrupt)
    kept.clear()
    gc.collect()
    assert fs.channel.engine.hub.budget.reserved_bytes == 4
    driver._offer()
    assert kept
    assert elsewhere(fs.cat_file, "b", start=8, end=12) == DATA[8:12]
    gc.collect()
    assert fs.channel.engine.hub.budget.reserved_bytes == 0
    assert not driver.has_work()


def test_an_interrupt_in_the_end_of_an_op_leaves_no_grant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiteAsyncDriver, "keep", lambda _self, _after_s: None)
    fs = HeadraceFileSystem(fs=Store(), scheduler="lite")
    driver, complete = driver_of(fs), AsyncDriver._complete

    def cut(driver: AsyncDriver, job: Job, grant: Grant) -> None:
        if job is theirs._parts[0].job:
            monkeypatch.setattr(AsyncDriver, "_complete", complete)
            raise Interrupt
        complete(driver, job, grant)

    theirs = fs.submit_ranges("a", [0], [4])
    Store.interrupts = 1
    assert isinstance(elsewhere(fs.cat_file, "b", start=8, end=12), Interrupt)
    Store.interrupts = 1
    monkeypatch.setattr(AsyncDriver, "_complete", cut)
    assert isinstance(elsewhere(theirs.result), Interrupt)  # of the op
    assert isinstance(elsewhere(theirs.result), Interrupt)  # of its end
    assert driver.has_work()
    assert isinstance(elsewhere(lambda: theirs.result()[0]), ConnectionAbortedError)
    assert fs.channel.engine.hub.in_flight_ops == 0
    assert not driver.has_work()


@pytest.mark.parametrize("mode", ["lite", "standard"])
def test_an_async_callers_read_survives_who_ran_the_loop(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It awaits its answer on its own loop, and cannot look after the other."""
    fs = HeadraceFileSystem(fs=Store(), scheduler=mode)
    died_of: queue.SimpleQueue[type[BaseException]] = queue.SimpleQueue()
    monkeypatch.setattr(threading, "excepthook", lambda end: died_of.put(end.exc_type))
    Store.interrupts = 1

    async def read() -> bytes:
        async with asyncio.timeout(WAIT_S):
            return bytes(await fs._cat_file("a", start=0, end=4))

    assert asyncio.run(read()) == DATA[:4]
    assert (Store.interrupts, Store.asked) == (0, 2)
    assert fs.channel.engine.hub.in_flight_ops == 0
    assert died_of.get(timeout=WAIT_S) is Interrupt  # perhaps after the read, which another finished


def test_who_waits_beside_another_that_runs_the_loop_waits_as_long_as_he_said() -> None:
    fs = HeadraceFileSystem(fs=Store(), scheduler="lite")
    driver = driver_of(fs)
    assert isinstance(driver, LiteAsyncDriver)
    with driver._baton:
        read = fs.submit_ranges("a", [0], [4])
        for timeout_s in (0, -0.01, -1, 0.3):
            began_s = time.monotonic()
            assert isinstance(elsewhere(read.result, timeout_s), ReadTimeoutError)
            assert time.monotonic() - began_s >= timeout_s
    assert bytes(elsewhere(read.result)[0]) == DATA[:4]


def test_what_is_granted_late_is_driven_though_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the end of another filesystem's read, when this one's keeper has long had nothing to do."""
    monkeypatch.setattr("headrace.drivers.asynchronous_lite.KEEPER_S", 0.001)
    first, second = (
        HeadraceFileSystem(fs=Store(skip_instance_cache=True), scheduler="lite", process_io_limit=1)
        for _ in range(2)
    )
    gate = threading.Event()
    monkeypatch.setattr(Store, "gate", gate)
    theirs = first.submit_ranges("slow", [0], [4])
    late = second.submit_ranges("a", [4], [8])
    over = threading.Event()
    late._parts[0].job.callbacks.append(over.set)
    driver = driver_of(second)
    assert isinstance(driver, LiteAsyncDriver)
    keeper = driver._keeper
    assert keeper is not None
    keeper.join(0.2)  # it stays, and looks
    assert not late.done()
    gate.set()
    assert over.wait(WAIT_S), "nobody drives it"
    assert bytes(late.result()[0]) == DATA[4:8]
    assert bytes(theirs.result()[0]) == DATA[:4]
    keeper.join(WAIT_S)
    assert not keeper.is_alive()


def test_a_keeper_that_leaves_is_not_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended, but for its thread: an async caller asks for a keeper once, and does not look after it."""
    monkeypatch.setattr("headrace.drivers.asynchronous_lite.KEEPER_S", 0.001)
    serve, left, may_end = LiteAsyncDriver._serve, threading.Event(), threading.Event()

    def linger(driver: LiteAsyncDriver) -> None:
        serve(driver)
        left.set()
        may_end.wait(WAIT_S)

    monkeypatch.setattr(LiteAsyncDriver, "_serve", linger)
    fs = HeadraceFileSystem(fs=Store(), scheduler="lite")

    async def read(start: int) -> bytes:
        async with asyncio.timeout(WAIT_S):
            return bytes(await fs._cat_file("a", start=start, end=start + 4))

    assert asyncio.run(read(0)) == DATA[:4]
    assert left.wait(WAIT_S)
    assert asyncio.run(read(4)) == DATA[4:8]
    may_end.set()


def test_a_keeper_that_is_wanted_while_it_makes_up_its_mind_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.drivers.asynchronous_lite.KEEPER_S", 0.001)
    me, leaving, may_leave = threading.get_ident(), threading.Event(), threading.Event()

    class Lock:
        lock = threading.RLock()

        def acquire(self, *, blocking: bool = True) -> bool:
            if threading.get_ident() != me:
                leaving.set()
                may_leave.wait(WAIT_S)
            return self.lock.acquire(blocking)

        def release(self) -> None:
            self.lock.release()

        def __enter__(self) -> None:
            self.acquire()

        def __exit__(self, *_: object) -> None:
            self.release()

    fs = HeadraceFileSystem(fs=Store(), scheduler="lite")
    driver = driver_of(fs)
    assert isinstance(driver, LiteAsyncDriver)
    driver._keeper_lock = Lock()  # type: ignore[assignment]
    driver.keep(0)
    assert leaving.wait(WAIT_S)
    keeper = driver._keeper
    read, over = fs.submit_ranges("a", [0], [4]), threading.Event()
    assert driver._keeper is keeper, "another one would do it"
    read._parts[0].job.callbacks.append(over.set)
    may_leave.set()
    assert over.wait(WAIT_S), "nobody drives it"


def test_a_keeper_waits_for_no_lock_that_a_handler_was_entered_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler reads, and on the main thread that has one only the keeper drives."""
    monkeypatch.setattr("headrace.drivers.asynchronous_lite.KEEPER_S", 0.001)
    monkeypatch.setattr("headrace.drivers.interrupts.may_raise", lambda: threading.get_ident() == me)
    me, has_left, is_leaving = threading.get_ident(), LiteAsyncDriver._has_left, threading.Event()

    def leave(driver: LiteAsyncDriver) -> bool:
        is_leaving.set()
        return has_left(driver)

    monkeypatch.setattr(LiteAsyncDriver, "_has_left", leave)
    fs = HeadraceFileSystem(fs=Store(), scheduler="lite")
    driver = driver_of(fs)
    assert isinstance(driver, LiteAsyncDriver)
    monkeypatch.setattr(Store, "gate", threading.Event())
    with driver._keeper_lock:
        driver.keep(0)
        assert is_leaving.wait(WAIT_S)
        read, has_asked = fs.submit_ranges("slow", [0], [4]), threading.Event()
        driver.loop.call_soon_threadsafe(driver.keep, 0)  # as where it offers the loop that it leaves
        driver.loop.call_soon_threadsafe(has_asked.set)
        assert has_asked.wait(WAIT_S)
        Store.gate.set()  # type: ignore[union-attr]
        assert bytes(read.result(WAIT_S)[0]) == DATA[:4]


def test_who_tells_the_loop_waits_for_nobody_that_is_about_to_start_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That may be the main thread, below a signal handler which waits for what the teller has."""
    fs = HeadraceFileSystem(fs=Store(), scheduler="standard")
    driver, thread = driver_of(fs), LoopThread()
    assert fs.cat_file("a", start=0, end=4) == DATA[:4]
    monkeypatch.setattr(driver, "thread", thread)
    with thread._lock:
        read = elsewhere(fs.submit_ranges, "a", [4], [8])
        assert not thread.is_alive
        driver._look(read._parts[0].job)
    assert thread.is_alive, "who waits for it ensures it"
    assert bytes(read.result()[0]) == DATA[4:8]
    thread.close(WAIT_S)


class OwnLoop:
    """A loop of the program's on a thread, and a store that is bound to it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        lock = asyncio.Lock()  # belongs to a loop
        self.fs = HeadraceFileSystem(fs=Store(lock=lock, loop=self.loop))
        assert driver_of(self.fs).loop is self.loop

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(WAIT_S)
        self.loop.close()


@pytest.fixture
def own_loop() -> Iterator[OwnLoop]:
    made = OwnLoop()
    yield made
    if not made.loop.is_closed():
        made.close()


def test_a_loop_that_its_owner_closed_fails_the_reads_that_want_it(own_loop: OwnLoop) -> None:
    """And none that do not, of whatever device."""
    fs = own_loop.fs
    assert fs.cat_file("a", start=0, end=4) == DATA[:4]
    own_loop.close()
    other = HeadraceFileSystem(fs=Store(), scheduler="lite")
    for _ in range(2):
        assert isinstance(elsewhere(fs.cat_file, "a", start=0, end=4), RuntimeError)
        assert isinstance(elsewhere(fs.submit_ranges, "a", [0], [4]), RuntimeError)
        assert elsewhere(other.cat_file, "a", start=0, end=4) == DATA[:4]
    assert not driver_of(fs).has_work()
    assert fs.channel.engine.hub.in_flight_ops == 0
    assert fs.channel.engine.hub.budget.reserved_bytes == 0


def test_nobody_waits_for_a_loop_that_was_closed_meanwhile(
    own_loop: OwnLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, asked = own_loop.fs, threading.Event()

    async def never(*_: Any, **__: Any) -> bytes:
        asked.set()
        await asyncio.Event().wait()
        return b""

    monkeypatch.setattr(Store, "_cat_file", never)
    read = fs.submit_ranges("a", [0], [4])
    assert asked.wait(WAIT_S)
    own_loop.close()
    assert isinstance(elsewhere(read.result), RuntimeError)
    del read
    assert fs.channel.engine.hub.in_flight_ops == 0


def test_what_is_granted_after_the_loop_was_closed_fails_in_nobody_elses_section(
    own_loop: OwnLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the end of another filesystem's read."""
    fs = HeadraceFileSystem(fs=own_loop.fs.target, process_io_limit=1)
    other = HeadraceFileSystem(fs=Store(skip_instance_cache=True), scheduler="lite", process_io_limit=1)
    gate = threading.Event()
    monkeypatch.setattr(Store, "gate", gate)
    theirs = other.submit_ranges("slow", [0], [4])
    late, over = fs.submit_ranges("a", [0], [4]), threading.Event()
    late._parts[0].job.callbacks.append(over.set)
    own_loop.close()
    gate.set()
    assert bytes(theirs.result()[0]) == DATA[:4]
    assert over.wait(WAIT_S), "who awaits it is told"
    assert isinstance(elsewhere(late.result), RuntimeError)
    assert elsewhere(other.cat_file, "b", start=0, end=4) == DATA[:4]
    assert fs.channel.engine is other.channel.engine
    assert fs.channel.engine.hub.in_flight_ops == 0


class Interrupting(set[Any]):
    """Raises once when something was discarded."""

    is_armed = True

    def discard(self, element: Any) -> None:
        super().discard(element)
        if self.is_armed:
            self.is_armed = False
            raise Interrupt


def elsewhere(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call it on another thread, which runs the loop itself, and return what it returns or raises."""
    found: list[Any] = []

    def call() -> None:
        try:
            found.append(function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is looked at
            found.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert found, "it hangs"
    return found[0]
