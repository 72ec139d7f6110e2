"""The driver of bulk backends: whose thread makes which call, and what happens when calls fail."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from targets import at_rest

import headrace.runtime
from headrace.backends import registry
from headrace.backends.abc import BulkBackend, Defaults, PathSource, Verdict
from headrace.drivers import workers
from headrace.drivers.bulk import MOST_CALLS, BulkDriver
from headrace.errors import ReadTimeoutError, SchedulerClosedError
from headrace.filesystem import HeadraceFileSystem

DATA = np.random.default_rng(1).bytes(2 << 20)
WAIT_S = 30.0
RETRYABLE = Verdict(is_retryable=True)


class Panic(BaseException):
    """What a native engine may raise."""


class UntoldError(ConnectionError):
    """It says nothing of itself."""

    def __str__(self) -> str:
        raise AttributeError("no words")


class RecordingBackend(BulkBackend):
    """Serves `DATA`, and notes who called for what."""

    name = "recording-bulk"
    defaults = Defaults("standard", max_gap_bytes=0, max_op_bytes=512 << 10, io_parallelism=400)

    def __init__(self, target: Any) -> None:
        super().__init__(target)
        self.calls: list[tuple[str, list[int]]] = []
        self.failures: list[BaseException] = []
        self.row_failures: dict[int, list[Exception]] = {}
        self.gate: threading.Event | None = None
        self.has_begun = threading.Event()

    @classmethod
    def serves(cls, target: Any) -> bool:
        return True

    def device(self, path: str) -> str:
        return "bulk"

    def open(self, path: str, **options: Any) -> PathSource:
        options.pop("as_file", None)
        return PathSource(path, **options)

    def verdict(self, error: BaseException) -> Verdict:
        return RETRYABLE if isinstance(error, ConnectionError) else Verdict(is_retryable=False)

    def perform(self, ops: Any, rows: Any) -> None:
        self.calls.append((threading.current_thread().name, rows.tolist()))
        self.has_begun.set()
        if self.gate is not None:
            assert self.gate.wait(WAIT_S)
        if self.failures:
            raise self.failures.pop(0)
        for row in rows.tolist():
            if self.row_failures.get(row):
                ops.fail(row, self.row_failures[row].pop(0))
                continue
            start = int(ops.start[row])
            ops.deliver(row, DATA[start : start + int(ops.length[row])])


@pytest.fixture
def backend() -> RecordingBackend:
    return RecordingBackend(MemoryFileSystem())


@pytest.fixture(params=["lite", "standard"])
def fs(
    request: pytest.FixtureRequest, backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HeadraceFileSystem]:
    own = headrace.runtime.Runtime()
    monkeypatch.setattr(headrace.runtime, "_current", own)
    monkeypatch.setattr(registry, "backend_for", lambda *_, **__: backend)
    fs = HeadraceFileSystem(fs=backend.target, scheduler=request.param, skip_instance_cache=True)
    yield fs
    own.close(SchedulerClosedError("the test is over"))


def in_thread(function: Any) -> Any:
    """Call it on a thread of its own, and return what it returned."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()), name="waiter")
    thread.start()
    thread.join(WAIT_S)
    return found[0]


def scattered(n: int, length: int = 100) -> tuple[list[int], list[int]]:
    starts = [2000 * k for k in range(n)]
    return starts, [start + length for start in starts]


def expect(fs: HeadraceFileSystem, n: int, length: int = 100) -> None:
    starts, ends = scattered(n, length)
    answers = fs.read_ranges("x", starts, ends).to_pylist()
    assert answers == [DATA[a:b] for a, b in zip(starts, ends, strict=True)]


def test_short_ops_share_calls(fs: HeadraceFileSystem, backend: RecordingBackend) -> None:
    expect(fs, 95)
    rows = [rows for _, rows in backend.calls]
    assert sorted(row for some in rows for row in some) == list(range(95))
    assert max(map(len, rows)) == backend.least_call_ops
    assert len(rows) <= 14


@pytest.mark.parametrize(
    ("n", "limit", "calls", "longest"),
    [(1000, 460, 40, 25), (1000, 160, 21, 48), (60, 460, 6, 10), (4000, 460, 84, 48)],
)
def test_many_ops_make_longer_calls_and_not_more_of_them(
    fs: HeadraceFileSystem, backend: RecordingBackend, n: int, limit: int, calls: int, longest: int
) -> None:
    """Each call costs a turn of the GIL; but one call has only so many ops under way at once."""
    backend.defaults = replace(RecordingBackend.defaults, io_parallelism=limit)  # type: ignore[misc]
    expect(fs, n)
    rows = [rows for _, rows in backend.calls]
    assert sorted(row for some in rows for row in some) == list(range(n))
    assert max(map(len, rows)) == longest
    assert len(rows) == calls


def test_long_ops_have_calls_of_their_own(fs: HeadraceFileSystem, backend: RecordingBackend) -> None:
    batch = fs.read_ranges("x", [0], [2 << 20])
    assert batch.to_pylist() == [DATA]
    assert sorted(len(rows) for _, rows in backend.calls) in ([1, 1, 1, 1], [1, 1, 2], [2, 2])
    assert all(len(rows) * (512 << 10) <= backend.max_call_bytes for _, rows in backend.calls)


@pytest.mark.parametrize("n", [1, 2])
def test_who_calls(fs: HeadraceFileSystem, backend: RecordingBackend, n: int) -> None:
    """The thread that waits, in lite or for a single op, but never the main one: it stays interruptible."""
    expect(fs, n)
    in_thread(lambda: expect(fs, n))
    main, waiter = (name for name, _ in backend.calls)
    assert main.startswith("headrace-read")
    assert waiter.startswith("waiter" if fs.mode == "lite" or n == 1 else "headrace-read")


def test_who_waits_for_a_turn_calls_when_it_comes(fs: HeadraceFileSystem, backend: RecordingBackend) -> None:
    backend.defaults = replace(RecordingBackend.defaults, io_parallelism=1)  # type: ignore[misc]
    backend.gate = threading.Event()
    threads = [threading.Thread(target=expect, args=(fs, 1), name=f"waiter-{k}") for k in range(3)]
    for thread in threads:
        thread.start()
    while sum(one.queued_requests for one in fs.stats().devices) < 2:
        assert all(thread.is_alive() for thread in threads)
    assert len(backend.calls) == 1
    backend.gate.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(name for name, _ in backend.calls) == ["waiter-0", "waiter-1", "waiter-2"]
    assert at_rest(fs)


def test_who_is_interrupted_in_turn_leaves_nothing(
    fs: HeadraceFileSystem, backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its op was granted, and no worker knows of it."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def read() -> type[BaseException] | None:
        with monkeypatch.context() as patch:
            patch.setattr("headrace.drivers.bulk.wait_until_over", interrupted)
            try:
                fs.read_ranges("x", [0], [10])
            except KeyboardInterrupt as error:
                return type(error)
        return None

    assert in_thread(read) is KeyboardInterrupt
    assert not backend.calls
    assert at_rest(fs)
    expect(fs, 1)


def test_what_does_not_fit_one_call_is_shared(fs: HeadraceFileSystem, backend: RecordingBackend) -> None:
    backend.gate = threading.Event()
    waiter = threading.Thread(target=expect, args=(fs, 40), name="waiter")
    waiter.start()
    assert backend.has_begun.wait(WAIT_S)
    while len(backend.calls) < 4:
        assert waiter.is_alive()
        threading.Event().wait(0.001)
    backend.gate.set()
    waiter.join(WAIT_S)
    names = {name for name, _ in backend.calls}
    assert len(names) == 4
    assert ("waiter" in names) is (fs.mode == "lite")


def test_a_device_that_hangs_leaves_threads_to_others(
    fs: HeadraceFileSystem, backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch, wait_until: Any
) -> None:
    monkeypatch.setattr(headrace.runtime, "soft_limit", lambda _name: None)  # so many calls as there may be
    monkeypatch.setattr(backend, "device", lambda path: path)
    plain, gate = backend.perform, threading.Event()

    def perform(ops: Any, rows: Any) -> None:
        plain(ops, rows)
        if "hung" in ops.sources[0].path:
            assert gate.wait(WAIT_S)

    monkeypatch.setattr(backend, "perform", perform)
    hung = [fs.submit_ranges("hung", [0], [5]) for _ in range(MOST_CALLS + 20)]
    wait_until(lambda: len(backend.calls) == MOST_CALLS)
    try:
        assert fs.submit_ranges("other", [0], [5]).result(WAIT_S / 2).to_pylist() == [DATA[:5]]
        assert len(backend.calls) == MOST_CALLS + 1
    finally:
        gate.set()
    assert [read.result(WAIT_S).to_pylist() for read in hung] == [[DATA[:5]]] * len(hung)


def test_a_read_that_finds_no_thread_says_so(fs: HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody waits in a call of ours: the second try at waking its owner fails like the first."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    scheduler = fs.channel.scheduler("x")
    monkeypatch.setattr(workers, "start_thread", refuse)
    scheduler.room.max_in_flight_ops = 0
    scheduler.room.count(0, 1, 0)  # something is in flight, so that the read has to wait
    read = fs.submit_ranges("x", [0], [5])
    scheduler.room.max_in_flight_ops = 400
    with fs.channel.engine.lock, fs.channel.engine as hub:
        scheduler.room.count(0, -1, 0)
        hub.changed()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        read.result(WAIT_S)


class LineBomb:
    """Raises at the n-th line of the function that calls workers, as a signal's handler may."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.lines = 0

    def __call__(self, frame: Any, event: str, _arg: object) -> Any:
        if frame.f_code is not BulkDriver._call_workers.__code__:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                raise KeyboardInterrupt
        return self


def test_an_interrupt_of_who_calls_a_worker_costs_nobody_a_read(
    fs: HeadraceFileSystem, backend: RecordingBackend
) -> None:
    """At each line: a thread that reads nothing itself makes room for what another waits for."""
    room, engine = fs.channel.scheduler("x").room, fs.channel.engine

    def is_interrupted(bomb: LineBomb) -> bool:
        room.max_in_flight_ops = 0
        room.count(0, 1, 0)  # something is in flight, so that the read has to wait
        read = fs.submit_ranges("x", [0], [5])
        room.max_in_flight_ops = 400
        before = sys.gettrace()
        sys.settrace(bomb)
        try:
            with engine.lock, engine as hub:
                room.count(0, -1, 0)
                hub.changed()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
            assert read.result(WAIT_S).to_pylist() == [DATA[:5]]
            assert at_rest(fs)
        return False

    at = 1
    while is_interrupted(LineBomb(at)):
        at += 1
    assert at > 5
    assert len(backend.calls) == at


def test_what_comes_free_during_a_call_is_left_to_other_threads(
    fs: HeadraceFileSystem, backend: RecordingBackend
) -> None:
    """A call that is tried again may last for minutes."""
    backend.defaults = replace(RecordingBackend.defaults, io_parallelism=10)  # type: ignore[misc]
    plain, has_another_begun = backend.perform, threading.Event()

    def perform(ops: Any, rows: Any) -> None:
        if backend.calls:
            has_another_begun.set()
        plain(ops, rows)
        if len(backend.calls) == 1:
            fs.channel.scheduler("x").room.max_in_flight_ops = 20
            with fs.channel.engine.lock, fs.channel.engine as hub:
                hub.changed()
            assert has_another_begun.wait(WAIT_S)

    backend.perform = perform  # type: ignore[method-assign]
    in_thread(lambda: expect(fs, 60))
    assert [len(rows) for _, rows in backend.calls] == [48, 12]


def test_a_read_with_a_time_out_is_never_stuck_in_a_call(
    backend: RecordingBackend, fs: HeadraceFileSystem
) -> None:
    backend.gate = threading.Event()
    impatient = HeadraceFileSystem(
        fs=backend.target, scheduler=fs.mode, timeout_s=0.05, skip_instance_cache=True
    )

    def read() -> type[BaseException] | None:
        try:
            impatient.read_ranges("x", [0], [5])
        except ReadTimeoutError as error:
            return type(error)
        return None

    assert in_thread(read) is ReadTimeoutError
    backend.gate.set()


def test_failed_rows_are_tried_again_and_no_others(fs: HeadraceFileSystem, backend: RecordingBackend) -> None:
    backend.row_failures = {
        3: [ConnectionError("reset"), ConnectionError("reset")],
        7: [ConnectionError("x")],
    }
    expect(fs, 10)
    assert [rows for _, rows in backend.calls] == [list(range(10)), [3, 7], [3]]


def test_an_attempt_that_failed_in_one_call_ends_nothing_in_another(
    fs: HeadraceFileSystem, backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The op has its error while the rest of its call is under way, and others complete meanwhile."""
    plain, tried = backend.perform, []

    def perform(ops: Any, rows: Any) -> None:
        if 0 in rows and not tried:
            tried.append(rows)
            ops.fail(0, ConnectionError("reset"))
            while fs.stats().in_flight_ops > len(rows):
                threading.Event().wait(0.001)
            rows = rows[1:]
        plain(ops, rows)

    monkeypatch.setattr(backend, "perform", perform)
    with fs.open("x", size=len(DATA)) as file:
        assert file.read() == DATA
    assert len(tried) == 1


def test_a_call_that_fails_is_tried_again(fs: HeadraceFileSystem, backend: RecordingBackend) -> None:
    backend.failures = [ConnectionError("the engine lost its network")]
    expect(fs, 5)
    assert len(backend.calls) == 2


def test_what_no_attempt_cures_is_raised_at_once(fs: HeadraceFileSystem, backend: RecordingBackend) -> None:
    backend.row_failures = {1: [PermissionError("no")]}
    starts, ends = scattered(3)
    found = fs.read_ranges("x", starts, ends).to_pylist(on_error="return")
    assert isinstance(found[1], PermissionError)
    assert [found[0], found[2]] == [DATA[:100], DATA[4000:4100]]
    assert len(backend.calls) == 1


def test_a_panic_is_an_error_and_ends_no_thread(fs: HeadraceFileSystem, backend: RecordingBackend) -> None:
    backend.failures = [Panic("index out of bounds")]
    with pytest.raises(RuntimeError, match="index out of bounds"):
        fs.cat_file("x", start=0, end=5)
    expect(fs, 1)


def test_an_error_that_cannot_be_printed_is_an_error(
    fs: HeadraceFileSystem, backend: RecordingBackend
) -> None:
    backend.row_failures = {1: [UntoldError("reset")]}
    expect(fs, 3)
    backend.verdict = lambda _error: Verdict(is_retryable=False)  # type: ignore[method-assign]
    backend.failures = [UntoldError("reset")]
    with pytest.raises(UntoldError):
        fs.cat_file("x", start=0, end=5)
    assert at_rest(fs)


def test_a_verdict_that_fails_fails_the_rows_of_its_call(
    fs: HeadraceFileSystem, backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is raised beside a call ends no worker, and leaves nobody waiting."""
    monkeypatch.setattr(backend, "verdict", lambda error: {}[error])
    backend.row_failures = {1: [ConnectionError("reset")]}
    starts, ends = scattered(3)
    found = fs.submit_ranges("x", starts, ends).result(WAIT_S).to_pylist(on_error="return")
    assert isinstance(found[1], ConnectionError)
    assert [found[0], found[2]] == [DATA[:100], DATA[4000:4100]]
    assert at_rest(fs)


def test_a_time_out_tells_what_an_attempt_failed_with(
    fs: HeadraceFileSystem, backend: RecordingBackend, wait_until: Any
) -> None:
    """Without secrets, and not all of the page that a store may answer with."""
    gate = threading.Event()

    def verdict(_error: BaseException) -> Verdict:
        backend.gate = gate  # the next attempt waits
        return RETRYABLE

    backend.verdict = verdict  # type: ignore[method-assign]
    backend.row_failures = {0: [ConnectionError(f"https://host/key?sig=hunter2hunter2 {'page ' * 1000}")]}
    read = fs.submit_ranges("x", [0], [5])
    wait_until(lambda: fs._reader.channel.scheduler("x").retries.granted == 1)
    with pytest.raises(ReadTimeoutError) as raised:
        read.result(0)
    gate.set()
    (note,) = raised.value.__notes__
    assert note.startswith("an attempt had failed with: ConnectionError: https://host/key?sig=*** page")
    assert len(note) < 500
    assert read.result(WAIT_S).to_pylist() == [DATA[:5]]


def test_a_row_left_without_an_answer_fails(fs: HeadraceFileSystem, backend: RecordingBackend) -> None:
    backend.perform = lambda ops, rows: None  # type: ignore[method-assign]
    with pytest.raises(OSError, match="without an answer"):
        fs.cat_file("x", start=0, end=5)


def test_a_cancelled_read_is_not_tried_again(
    fs: HeadraceFileSystem, backend: RecordingBackend, wait_until: Any
) -> None:
    backend.gate = threading.Event()
    backend.row_failures = {0: [ConnectionError("reset")] * 100}
    read = fs.submit_ranges("x", [0], [5])
    assert backend.has_begun.wait(WAIT_S)
    read.cancel()
    backend.gate.set()
    wait_until(lambda: fs.stats().in_flight_ops == 0 and fs.stats().reserved_bytes == 0)
    assert len(backend.calls) == 1


def test_nested_reads_wait_for_nobodys_pool(backend: RecordingBackend, fs: HeadraceFileSystem) -> None:
    """A read inside an op of ours is performed by the thread that it came from."""
    narrow = HeadraceFileSystem(
        fs=backend.target, scheduler=fs.mode, io_parallelism=1, skip_instance_cache=True
    )
    plain = backend.perform
    answers: list[bytes] = []

    def perform(ops: Any, rows: Any) -> None:
        if int(ops.start[0]) == 0:
            answers.extend(narrow.read_ranges("inner", [50], [55]).to_pylist())
        plain(ops, rows)

    backend.perform = perform  # type: ignore[method-assign]
    assert narrow.read_ranges("outer", [0], [5]).to_pylist() == [DATA[:5]]
    assert answers == [DATA[50:55]]


async def test_an_async_caller(fs: HeadraceFileSystem, backend: RecordingBackend) -> None:
    batch = await fs._read_ranges("x", [0, 5000], [5, 5005])
    assert batch.to_pylist() == [DATA[:5], DATA[5000:5005]]
    assert {name.rpartition("-")[0] for name, _ in backend.calls} == {"headrace-read"}


def test_a_call_that_is_lost_is_one_retry(fs: HeadraceFileSystem, backend: RecordingBackend) -> None:
    """Or the calls under way when a store stumbles would use up the budget of all."""
    backend.failures = [ConnectionError("reset")]
    expect(fs, 10)
    assert len(backend.calls) == 2
    assert fs._reader.channel.scheduler("x").retries.granted == 1
