"""The watcher's bookkeeping; what an interrupt does to real reads is in ``tests/lifecycle``."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import io
import math
import resource
import signal
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

import headrace
from headrace.backends.fsspec_sync import instance_lock
from headrace.drivers import arrow_calls, interrupts
from headrace.drivers.interrupts import ECHO_S, _Watcher, call_holding
from headrace.threads import NOT_MINE


def test_an_error_of_the_same_interrupt_is_remembered() -> None:
    """Arrow's threads raise theirs as soon as they see that one came, before all waits are ended."""
    watcher = _Watcher()
    watcher.interrupted_s = monotonic()
    error = watcher.error()
    watcher._interrupt(came_after_s=-math.inf)
    assert error in watcher.errors


def test_errors_of_an_older_interrupt_are_forgotten() -> None:
    watcher = _Watcher()
    watcher.error()
    watcher.interrupted_s = monotonic() - ECHO_S
    watcher._interrupt(came_after_s=-math.inf)
    assert watcher.errors == []


def test_an_error_is_awaited_until_the_main_thread_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches before it may take longer to compute than any time that one could name."""
    watcher = _Watcher()
    watcher._interrupt(came_after_s=monotonic())
    monkeypatch.setattr(interrupts, "has_surfaced", lambda _error: True)
    monkeypatch.setattr(interrupts, "monotonic", lambda: monotonic() + 2 * ECHO_S)
    error = watcher.error()
    watcher._interrupt(came_after_s=monotonic())
    assert error in watcher.errors
    assert watcher.has_delivered()
    watcher.error()
    watcher.note_handled()
    monkeypatch.setattr(interrupts, "monotonic", lambda: monotonic() + 4 * ECHO_S)
    assert not watcher.has_delivered()


@pytest.mark.parametrize(
    ("module", "has_surfaced"),
    [("headrace.file", False), ("pyarrow.fs", False), ("pyarrow._fs", False), ("pyarrow._dataset", True)],
)
def test_an_error_surfaces_where_it_has_left_arrow(module: str, has_surfaced: bool) -> None:
    """What Arrow's callbacks pass it on by is of a module of Arrow's, too."""
    names: dict[str, Any] = {"__name__": module}
    exec("def fail():\n    raise KeyboardInterrupt", names)  # noqa: S102 - in a module of that name
    with pytest.raises(KeyboardInterrupt) as raised:
        names["fail"]()
    raised.value.__traceback__ = raised.traceback[-1]._rawentry
    assert arrow_calls.has_surfaced(raised.value) is has_surfaced


def test_what_a_call_of_arrows_raised_is_on_its_way_until_arrow_returns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """qsort(3) stands for Arrow: C that calls us several times, here with what to compare."""
    found: list[bool] = []

    def compare(_one: object, _other: object) -> int:
        if not found:
            found.append(interrupts.is_aftermath())
            interrupts._once(signal.SIGINT, sys._getframe())
        found.append(interrupts.is_aftermath())
        return 0

    monkeypatch.setattr(interrupts, "_watcher", _Watcher())
    monkeypatch.setattr(interrupts, "AFTERMATH_S", 0.0)
    monkeypatch.setattr(sys, "unraisablehook", lambda _raised: None)
    of_arrow = types.FunctionType(
        compare.__code__, {**globals(), "__name__": "pyarrow.fs"}, closure=compare.__closure__
    )
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    for _ in range(2):  # from the same place
        found.clear()
        ctypes.CDLL(None).qsort((ctypes.c_int * 4)(), 4, ctypes.sizeof(ctypes.c_int), kind(of_arrow))
        assert found[0] is False
        assert set(found[1:]) == {True}
        assert not interrupts.is_aftermath()


def test_nothing_is_collected_while_frames_are_looked_at() -> None:
    """Finalisers would run under a lock of the interpreter's."""
    during: list[str] = []

    def note(phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            during.append(sys._getframe(1).f_code.co_name)

    thresholds = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(1)
    try:
        frames = arrow_calls._top_frames()
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(note)
    assert threading.get_ident() in frames
    assert gc.isenabled()
    assert "_top_frames" not in during


class Waiting:
    """A job that is waited for."""

    def __init__(self) -> None:
        self.has_failed = threading.Event()

    def fail(self, error: BaseException) -> None:
        assert isinstance(error, KeyboardInterrupt)
        self.has_failed.set()


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Watcher]:
    """The one that this thread's waits are told to; signals are told by `tell`."""
    watcher = _Watcher()
    watcher.pair = pair = socket.socketpair()
    for end in pair:
        end.setblocking(False)
    monkeypatch.setattr(interrupts, "_watcher", watcher)
    monkeypatch.setattr(interrupts, "is_watched", lambda: True)
    yield watcher
    watcher.stop(pair)
    for end in pair:
        end.close()


def tell(watcher: _Watcher) -> None:
    """Do as the interpreter does when SIGINT comes."""
    assert watcher.pair is not None
    watcher.pair[1].send(bytes([signal.SIGINT]))


def assert_handled(job: Waiting, watcher: _Watcher) -> None:
    """Have a job wait: the interrupt fails it, and is over."""
    with interrupts.watched(job):  # type: ignore[arg-type]
        assert job.has_failed.wait(10)
        assert not watcher.is_pending()


def have_handled(watcher: _Watcher) -> None:
    """Tell of one that the main thread handles at once."""
    tell(watcher)
    watcher.note_handled()


def test_a_watcher_whose_thread_could_not_start_gets_another(
    watcher: _Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Waiting()

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="start"), interrupts.watched(job):  # type: ignore[arg-type]
            pass
        with pytest.raises(RuntimeError, match="start"):
            interrupts._wait_for(lambda **_: True)
    assert not watcher.jobs
    with interrupts.watched(job):  # type: ignore[arg-type]
        tell(watcher)
        assert job.has_failed.wait(10)


def test_a_watcher_outlives_that_another_took_what_it_was_told(
    watcher: _Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the main thread does while it handles a signal."""
    job, wait, taken, waits_again = Waiting(), interrupts._is_readable, [], threading.Event()

    def late(*given: Any) -> bool:
        if taken:
            waits_again.set()
        found = wait(*given)
        if found and not taken:
            taken.append(watcher._take())
        return found

    monkeypatch.setattr(interrupts, "_is_readable", late)
    with interrupts.watched(job):  # type: ignore[arg-type]
        thread = watcher.thread
        tell(watcher)
        assert waits_again.wait(10)
        tell(watcher)
        assert job.has_failed.wait(10)
        assert watcher.thread is thread


def test_a_watcher_that_starts_is_left_what_it_was_told(
    watcher: _Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow's thread begins to wait while the main thread handles the signal."""
    job, start = Waiting(), threading.Thread.start

    def late(thread: threading.Thread) -> None:
        have_handled(watcher)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", late)
    assert_handled(job, watcher)


def test_an_interrupt_handled_while_a_watcher_stops_waiting_is_not_pending(
    watcher: _Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing had come when it looked, and it waits for the GIL."""
    job, wait, handled = Waiting(), interrupts._is_readable, []

    def late(*given: Any) -> bool:
        if handled:
            return wait(*given)
        handled.append(have_handled(watcher))
        return False

    monkeypatch.setattr(interrupts, "_is_readable", late)
    assert_handled(job, watcher)


def test_what_pythons_own_handler_had_is_over_once_there_is_another(
    watcher: _Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(interrupts, "AFTERMATH_S", 0.0)
    watcher._interrupt(came_after_s=monotonic())
    handled_by(monkeypatch, signal.default_int_handler)
    interrupts.deliver_once()
    handled_by(monkeypatch, interrupts._once)
    assert not interrupts.is_aftermath()


def test_what_tells_of_signals_is_there_once_it_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal's handler may raise while it is made."""

    class End:
        def setblocking(self, _flag: bool) -> None:
            raise KeyboardInterrupt

    watcher = _Watcher()
    monkeypatch.setattr(socket, "socketpair", lambda: (End(), End()))
    with pytest.raises(KeyboardInterrupt):
        watcher.arm()
    assert watcher.pair is None


def test_the_watcher_is_armed_for_arrow_and_else_now_and_then(
    watcher: _Watcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Asking the system gives the GIL up, and with it a turn."""
    handled_by(monkeypatch, interrupts._once)
    monkeypatch.setattr(interrupts, "ARMED_S", math.inf)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "file")
    path, fs = str(tmp_path / "file"), headrace.wrap(LocalFileSystem())

    def armed_by(call: Callable[..., Any], *given: Any, **options: Any) -> bool:
        with monkeypatch.context() as patch:
            asked: list[int] = []
            patch.setattr(signal, "set_wakeup_fd", lambda fd, **_: asked.append(fd) or -1)
            call(*given, **options)
            return bool(asked)

    def scan() -> None:
        ds.dataset(path, filesystem=fs)

    starts = [0] * 20
    reads: list[Callable[[], object]] = [
        lambda: fs.cat_file(path),
        lambda: fs.cat(path),
        lambda: fs.read_ranges(path, starts, 3),
        lambda: fs.cat_ranges([path] * 20, starts, 3),
        lambda: fs.open(path),
    ]
    for read in reads:
        watcher.armed_s = -math.inf
        assert armed_by(read)
        assert not any(map(armed_by, reads))
        assert armed_by(scan)


def test_a_watcher_that_gave_way_to_another_is_not_armed(
    watcher: _Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To asyncio's, say: as soon as that is gone it is armed by whoever comes."""
    given: list[int] = []
    in_force = [77]

    def set_wakeup_fd(fd: int, **_: Any) -> int:
        given.append(fd)
        in_force.append(fd)
        return in_force[-2]

    monkeypatch.setattr(signal, "set_wakeup_fd", set_wakeup_fd)
    watcher.arm()
    assert given[-1] == 77
    assert not watcher.is_armed_lately()
    in_force.append(-1)
    watcher.arm()
    assert given[-1] != 77
    assert watcher.is_armed_lately()


def test_who_begins_to_watch_finds_that_one_came_before_it_is_forgotten(
    watcher: _Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget, found = watcher.forget_handled, []

    def look() -> None:
        forget()
        found.append(interrupts.is_aftermath())

    monkeypatch.setattr(watcher, "forget_handled", look)
    watcher.jobs[0] = None
    tell(watcher)
    with pytest.raises(KeyboardInterrupt):
        interrupts._once(signal.SIGINT, None)
    assert found == [True]


def test_a_watcher_that_leaves_takes_what_the_main_thread_left_to_it(
    watcher: _Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next to be watched would take it for an interrupt of its own."""
    job, is_over = Waiting(), threading.Event()

    def late(*_given: Any) -> bool:
        is_over.wait(10)
        have_handled(watcher)
        return False

    monkeypatch.setattr(interrupts, "AFTERMATH_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(interrupts, "IDLE_S", 0.0)
        patch.setattr(interrupts, "_is_readable", late)
        with interrupts.watched(Waiting()):  # type: ignore[arg-type]
            thread = watcher.thread
        assert thread is not None
        is_over.set()
        thread.join(10)
    handled_by(monkeypatch, interrupts._once)
    with interrupts.watched(job):  # type: ignore[arg-type]
        assert watcher.thread is not thread
        assert not job.has_failed.is_set()


def handled_by(monkeypatch: pytest.MonkeyPatch, handler: object) -> None:
    """Have SIGINT seem to have this handler."""
    monkeypatch.setattr(interrupts._signal, "getsignal", lambda _number: handler)


def test_who_begins_to_watch_while_one_is_forgotten_is_told_anew(
    watcher: _Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = watcher._take

    def late() -> bool:
        is_taken = take()
        watcher.jobs[0] = None
        return is_taken

    tell(watcher)
    monkeypatch.setattr(watcher, "_take", late)
    with pytest.raises(KeyboardInterrupt):
        interrupts._once(signal.SIGINT, None)
    assert take()


def test_what_another_handler_had_fails_no_later_read(
    watcher: _Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program's own, while it was in force, told nobody."""
    job = Waiting()
    monkeypatch.setattr(signal, "set_wakeup_fd", lambda _fd, **_: -1)
    handled_by(monkeypatch, interrupts._once)
    tell(watcher)
    interrupts.arm(for_arrow=True)  # as the main thread's next call does
    with interrupts.watched(job):  # type: ignore[arg-type]
        assert not job.has_failed.is_set()


def test_an_interrupt_that_a_call_deferred_fails_no_later_read(
    watcher: _Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, noted = Waiting(), threading.Event()
    before_s = monotonic()
    handled_by(monkeypatch, interrupts._once)
    tell(watcher)
    interrupts.Deferred(noted.set)._come(signal.SIGINT, None)
    assert noted.is_set()
    assert watcher.handled_s >= before_s
    with interrupts.watched(job):  # type: ignore[arg-type]
        assert not job.has_failed.is_set()


def test_an_interrupt_that_a_call_defers_ends_what_arrow_waits_for(
    watcher: _Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    deferred, job = interrupts.Deferred(int), Waiting()
    handled_by(monkeypatch, deferred._come)
    with interrupts.watched(job):  # type: ignore[arg-type]
        tell(watcher)
        assert job.has_failed.wait(10)


def test_an_interrupt_that_a_call_of_arrows_defers_fails_its_other_reads(
    watcher: _Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the main thread is back in the frame that called Arrow."""
    deferred = interrupts.Deferred(int)
    monkeypatch.setattr(interrupts, "AFTERMATH_S", 0.0)
    found: list[bool] = []
    monkeypatch.setattr(watcher, "forget_handled", lambda: found.append(interrupts.is_aftermath()))
    names = {"__name__": "pyarrow.fs", "come": lambda: deferred._come(signal.SIGINT, sys._getframe())}
    exec("def open_input_file():\n    come()", names)  # noqa: S102 - in a module of that name
    names["open_input_file"]()  # type: ignore[operator]
    assert found == [True]
    assert not interrupts.is_aftermath()
    with pytest.raises(KeyboardInterrupt):
        deferred.__exit__()


def turns_of(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Return what is released whenever a watcher begins to wait."""
    turns, wait = threading.Semaphore(0), interrupts._is_readable

    def counted(*given: Any) -> bool:
        turns.release()
        return wait(*given)

    monkeypatch.setattr(interrupts, "_is_readable", counted)
    return turns


def test_a_handler_of_the_programs_own_may_want_reads_to_go_on(
    watcher: _Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, turns = Waiting(), turns_of(monkeypatch)
    monkeypatch.setattr(interrupts, "IDLE_S", 10.0)
    with interrupts.watched(job):  # type: ignore[arg-type]
        assert turns.acquire(timeout=10)
        with monkeypatch.context() as patch:
            handled_by(patch, lambda *_: None)
            tell(watcher)
            assert turns.acquire(timeout=10)
            assert not job.has_failed.is_set()
        tell(watcher)
        assert job.has_failed.wait(10)


def test_an_interrupt_soon_after_one_that_was_handled_is_pending(
    watcher: _Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the main thread, which is inside Arrow again, handles that one too."""
    turns = turns_of(monkeypatch)
    monkeypatch.setattr(interrupts, "IDLE_S", 10.0)
    with interrupts.watched(Waiting()):  # type: ignore[arg-type]
        assert turns.acquire(timeout=10)
    with pytest.raises(KeyboardInterrupt):
        interrupts._once(signal.SIGINT, None)
    assert turns.acquire(timeout=10)  # it looks once more
    assert not watcher.is_pending()
    tell(watcher)
    assert turns.acquire(timeout=10)
    assert watcher.is_pending()


@pytest.mark.skipif(
    0 <= resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2048, reason="no process has so many descriptors"
)
def test_a_watcher_waits_on_a_descriptor_of_any_number() -> None:
    """Of a server with thousands of connections."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    one, other = socket.socketpair()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 2048), limits[1]))
        with one, other, socket.socket(fileno=fcntl.fcntl(one, fcntl.F_DUPFD, 1024)) as far:
            assert not interrupts._is_readable(far, 0.0)
            other.send(b"\2")
            assert interrupts._is_readable(far, 10.0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_an_interrupt_ends_the_wait_for_a_length(
    watcher: _Watcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Arrow asks for it while it reads other files; their filesystem is for one thread at a time."""
    (tmp_path / "data").write_bytes(b"data")
    fs = headrace.HeadraceFileSystem(fs=DirFileSystem(str(tmp_path), fs=LocalFileSystem()))
    is_held, is_over = threading.Event(), threading.Event()

    def hold() -> None:
        with instance_lock(fs.target):
            is_held.set()
            is_over.wait(10)

    with fs.open("data") as file:
        thread = threading.Thread(target=hold)
        thread.start()
        is_held.wait()
        monkeypatch.setattr(interrupts, "AFTERMATH_S", math.inf)
        watcher.interrupted_s = monotonic()
        try:
            with pytest.raises(KeyboardInterrupt):
                file.seek(0, io.SEEK_END)
            assert not is_over.is_set()
        finally:
            watcher.interrupted_s = -math.inf
            is_over.set()
            thread.join()
        assert file.size == len(b"data")


class Handled:
    """A lock after whose release a signal's handler raises."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._is_owned = self.lock._is_owned  # type: ignore[attr-defined]
        self.acquire = self.lock.acquire

    def release(self) -> None:
        self.lock.release()
        raise RuntimeError("from a handler")


def test_what_a_handler_raised_is_not_taken_for_the_locks_own() -> None:
    guard = Handled()
    with pytest.raises(RuntimeError, match="handler"):
        call_holding(guard, int)
    assert not guard._is_owned()


def test_a_lock_that_was_let_go_meanwhile_is_no_error() -> None:
    guard = threading.RLock()
    assert call_holding(guard, guard.release) is None


def test_the_lock_says_whose_it_is_not() -> None:
    """What its text is compared with."""
    with pytest.raises(RuntimeError, match=f"^{NOT_MINE}"):
        threading.RLock().release()
