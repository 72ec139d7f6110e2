"""What a signal's handler raises comes out of the read that it interrupted, and is no answer of a file's.

As an alarm's time-out, which is an OSError, or the soft time limit of a task queue, which is anything.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFile
from targets import at_rest

from headrace import HeadraceFileSystem
from headrace.backends import _files
from headrace.backends._ring import LinuxKernel
from headrace.backends._rings import probe
from headrace.backends.uring import FEW
from headrace.core.gather import void_view
from headrace.reader import LONG_BYTES
from headrace.single import CLIP_ABOVE_BYTES
from headrace.threads import raise_if_of_a_handler

CONTENT = bytes(range(256)) * 2_000
FILES = 3


class SoftLimitError(Exception):
    """Of a task queue's."""


ALARMS: dict[str, Callable[[], Exception]] = {
    "any": SoftLimitError,
    "unnumbered": lambda: TimeoutError("late"),
    "numbered": lambda: TimeoutError(errno.ETIMEDOUT, "late"),
}


@pytest.fixture(params=list(ALARMS))
def alarm(request: pytest.FixtureRequest) -> Iterator[Exception]:
    """What a signal's handler raises."""
    error = ALARMS[request.param]()

    def ring(*_: object) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, ring)
    yield error
    signal.signal(signal.SIGALRM, before)


def ringing(at: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a signal come in the call of that number."""
    calls: list[bool] = []

    def call(*args: Any, **options: Any) -> Any:
        calls.append(True)
        if len(calls) == at + 1:
            signal.raise_signal(signal.SIGALRM)
        return function(*args, **options)

    return call


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{number}.bin" for number in range(FILES)]
    for path in paths:
        path.write_bytes(CONTENT)
    return list(map(str, paths))


def batch(fs: Any, paths: list[str]) -> list[bytes]:
    return fs.read_ranges(paths, [0] * FILES, [10] * FILES).to_pylist(on_error="return")  # type: ignore[no-any-return]


def few(fs: Any, paths: list[str]) -> list[bytes]:
    return fs.cat_ranges(paths, [0] * FILES, [10] * FILES)  # type: ignore[no-any-return]


def long(fs: Any, paths: list[str]) -> list[bytes]:
    return [one[:10] for one in fs.cat_ranges(paths, [0] * FILES, [LONG_BYTES] * FILES)]


def odd(fs: Any, paths: list[str]) -> list[bytes]:
    return fs.cat_ranges(paths, [None] * FILES, [10] * FILES)  # type: ignore[no-any-return]


def endless(fs: Any, paths: list[str]) -> list[bytes]:
    ends = [CLIP_ABOVE_BYTES + 1] * FILES
    return [bytes(one[:10]) for one in fs.read_ranges(paths, [0] * FILES, ends)]


def short(fs: Any, paths: list[str]) -> list[bytes]:
    return [fs.cat_file(path, 0, 10) for path in paths]


def whole(fs: Any, paths: list[str]) -> list[bytes]:
    return [fs.cat_file(path)[:10] for path in paths]


def opened(fs: Any, paths: list[str]) -> list[bytes]:
    found = []
    for path in paths:
        with fs.open(path) as file:
            found.append(file.read()[:10])
    return found


def long_batch(fs: Any, paths: list[str]) -> list[bytes]:
    answers = fs.read_ranges(paths, [0] * FILES, [LONG_BYTES] * FILES).to_pylist(on_error="return")
    return [one if isinstance(one, Exception) else one[:10] for one in answers]


def many(fs: Any, paths: list[str]) -> list[bytes]:
    """So many short ranges that they are worth a ring."""
    starts = np.arange(FEW) * 10 % len(CONTENT) // 256 * 256
    starts[:FILES] = 0
    files = np.resize(paths, FEW).tolist()
    return fs.read_ranges(files, starts, starts + 10).to_pylist(on_error="return")[:FILES]  # type: ignore[no-any-return]


def comes_out(fs: Any, read: Callable[[], list[bytes]], alarm: Exception) -> None:
    with pytest.raises(type(alarm)) as raised:
        read()
    assert raised.value is alarm
    assert at_rest(fs)
    assert read() == [CONTENT[:10]] * FILES, "and is forgotten"


@pytest.mark.parametrize(
    ("read", "method", "at"),
    [
        (batch, "open", 0),
        (batch, "open", FILES - 1),
        (batch, "open", FILES),
        (few, "open", 1),
        (long, "open", 1),
        (odd, "open", 1),
        (endless, "size", 1),
    ],
)
def test_it_comes_out_of_an_opening(
    read: Callable[..., list[bytes]],
    method: str,
    at: int,
    paths: list[str],
    alarm: Exception,
    scheduled_mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fs = HeadraceFileSystem(fs=LocalFileSystem(), scheduler=scheduled_mode)
    backend = fs.channel.backend
    monkeypatch.setattr(backend, "probe_rows", lambda *_given, **_how: False)  # then they are opened again
    monkeypatch.setattr(backend, method, ringing(at, getattr(backend, method)))
    comes_out(fs, partial(read, fs, paths), alarm)


@pytest.mark.parametrize("name", ["pread", "auto"])
@pytest.mark.parametrize("read", [batch, long])
@pytest.mark.parametrize("method", ["start", "finish_some"])
def test_it_comes_out_of_a_read(
    read: Callable[..., list[bytes]],
    method: str,
    name: str,
    paths: list[str],
    alarm: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fs = HeadraceFileSystem(fs=LocalFileSystem(), scheduler="lite", local_backend=name)
    backend = fs.channel.backend
    monkeypatch.setattr(backend, "probe_rows", lambda *_given, **_how: False)
    monkeypatch.setattr(backend, "are_whole", lambda _ops, rows: rows < 0)
    monkeypatch.setattr("headrace.backends._linux.HAS_NOWAIT", False)  # nothing is there at once
    monkeypatch.setattr(backend, method, ringing(0, getattr(backend, method)))
    comes_out(fs, partial(read, fs, paths), alarm)


def test_it_comes_out_of_a_read_of_one_row(
    paths: list[str], alarm: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose own errors are kept by its row."""
    fs = HeadraceFileSystem(fs=LocalFileSystem(), scheduler="lite", local_backend="pread")
    monkeypatch.setattr(fs.channel.backend, "probe_rows", lambda *_given, **_how: False)
    monkeypatch.setattr("headrace.backends._linux.HAS_NOWAIT", False)
    monkeypatch.setattr(_files, "_read_rest", ringing(1, _files._read_rest))
    comes_out(fs, partial(batch, fs, paths), alarm)


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="no such system call here")
@pytest.mark.parametrize("name", ["pread", "auto"])
@pytest.mark.parametrize("read", [whole, opened, long, long_batch])
@pytest.mark.parametrize("at", [0, 1])
def test_it_comes_out_of_a_system_call(
    at: int,
    read: Callable[..., list[bytes]],
    name: str,
    paths: list[str],
    alarm: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fs = HeadraceFileSystem(fs=LocalFileSystem(), scheduler="lite", local_backend=name)
    monkeypatch.setattr(os, "preadv", ringing(at, os.preadv))
    comes_out(fs, partial(read, fs, paths), alarm)


@pytest.mark.skipif(not hasattr(os, "pread"), reason="no such system call here")
@pytest.mark.parametrize("read", [short, few])
def test_it_comes_out_of_a_short_read_that_waits(
    read: Callable[..., list[bytes]],
    paths: list[str],
    alarm: Exception,
    scheduled_mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fs = HeadraceFileSystem(fs=LocalFileSystem(), scheduler=scheduled_mode)
    monkeypatch.setattr(fs.channel.backend, "probe", lambda *_given: None)
    monkeypatch.setattr(os, "pread", ringing(1, os.pread))
    comes_out(fs, partial(read, fs, paths), alarm)


@pytest.mark.skipif(probe() is not None, reason="the kernel, or a sandbox, has no io_uring")
@pytest.mark.parametrize("read", [many, long, long_batch])
def test_it_comes_out_of_a_ring(
    read: Callable[..., list[bytes]], paths: list[str], alarm: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is as good as before."""
    fs = HeadraceFileSystem(fs=LocalFileSystem(), scheduler="lite", local_backend="uring")
    monkeypatch.setattr("headrace.backends._linux.is_cached", lambda *_given: False)
    monkeypatch.setattr(LinuxKernel, "enter", ringing(0, LinuxKernel.enter))
    comes_out(fs, partial(read, fs, paths), alarm)
    ring = fs.channel.backend._rings.mine()
    assert ring is not None
    assert not ring.is_broken


def test_it_comes_out_of_a_read_of_memory(
    tmp_path: Path, alarm: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = HeadraceFileSystem(target_protocol="memory")
    paths = [f"{tmp_path}/{number}" for number in range(FILES)]
    for path in paths:
        fs.pipe_file(path, CONTENT)
    monkeypatch.setattr(MemoryFile, "getbuffer", ringing(1, MemoryFile.getbuffer), raising=False)
    comes_out(fs, partial(long, fs, paths), alarm)


def test_bytes_are_made_without_python_of_numpys() -> None:
    """It forgets what is raised there."""
    called: list[str] = []

    def note(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    void_view(np.zeros(9, np.uint8), 3)
    sys.setprofile(before)
    assert called == ["void_view"]


# -- how it is told


class Handlers:
    """Some of the forms a handler may have."""

    def method(self, *_: object) -> None:
        raise SoftLimitError

    def __call__(self, *_: object) -> None:
        raise SoftLimitError

    @staticmethod
    def part(_given: int, *_: object) -> None:
        raise SoftLimitError


@pytest.mark.parametrize("handler", [Handlers().method, Handlers(), partial(Handlers.part, 1)])
def test_a_handler_may_be_anything_that_is_called(handler: Any) -> None:
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(SoftLimitError):
            told(partial(signal.raise_signal, signal.SIGALRM))
    finally:
        signal.signal(signal.SIGALRM, before)


def test_whatever_else_was_raised_is_an_answer(alarm: Exception) -> None:
    def fail() -> None:
        raise alarm

    assert told(fail) is alarm


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Stand for a decorator of the program's: whatever is behind it shares a code."""

    def call(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    return call


def forgets(number: int, frame: FrameType | None) -> None:
    del number, frame  # as linters want
    raise SoftLimitError


@pytest.mark.parametrize(
    "handler", [counted(Handlers().method), forgets, counted(forgets)], ids=["method", "plain", "decorated"]
)
def test_a_handler_behind_a_decorator_is_told_from_others_behind_it(handler: Any) -> None:
    """By what it is given."""

    @counted
    def fail(*_: object) -> None:
        raise SoftLimitError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(SoftLimitError):
            told(partial(signal.raise_signal, signal.SIGALRM))
        assert isinstance(told(partial(fail, "path", 0, 14)), SoftLimitError)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_what_a_handler_reads_has_answers_of_its_own(tmp_path: Path) -> None:
    """The handler's frame is above them."""
    found: list[Any] = []

    def look(*_: object) -> None:
        found.append(told((tmp_path / "missing").read_bytes))

    before = signal.signal(signal.SIGALRM, look)
    try:
        signal.raise_signal(signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [type(error) for error in found] == [FileNotFoundError]


def told(function: Callable[[], object]) -> Exception | None:
    """Return what it raises, unless a handler did."""
    try:
        function()
    except Exception as error:  # noqa: BLE001
        raise_if_of_a_handler(error)
        return error
    return None
