"""Open local files: their descriptors, whatever cuts a finaliser."""

from __future__ import annotations

import contextlib
import copy
import errno
import gc
import io
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

import headrace
from headrace.backends import _linux
from headrace.backends._files import FileBackend, LocalSource

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what is open")


def count_open(path: Path) -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):  # that of the listing itself
            found += os.readlink(f"/proc/self/fd/{name}") == str(path)  # noqa: PTH115
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data.bin").write_bytes(bytes(5000))
    return tmp_path / "data.bin"


def opened(path: Path, *, is_direct: bool = False) -> LocalSource:
    source = FileBackend(LocalFileSystem()).open(str(path))
    if is_direct:
        source.open_directly()
    return source


@pytest.mark.parametrize("is_direct", [False, True])
def test_the_last_reference_closes(path: Path, *, is_direct: bool) -> None:
    source = opened(path, is_direct=is_direct)
    assert count_open(path) == 1 + (source.direct_fd >= 0)
    del source
    assert count_open(path) == 0


class Cut(KeyboardInterrupt):
    pass


class Cutter:
    """Raises at the n-th place where CPython looks for signals: a function's start, and the end of a call."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, _frame: FrameType, event: str, _arg: object) -> None:
        if event in {"call", "c_return"}:
            self.left -= 1
            if self.left == -1:
                raise Cut


@pytest.mark.parametrize("is_served", [False, True])
@pytest.mark.parametrize("is_direct", [False, True])
def test_an_opening_that_is_cut_anywhere_leaves_nothing_open(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, is_direct: bool, is_served: bool
) -> None:
    monkeypatch.setattr(_linux, "is_served", lambda _device: is_served)
    backend = FileBackend(LocalFileSystem())
    backend.device(str(path))
    before = sys.getprofile()
    for at in range(100):
        cutter = Cutter(at)
        try:
            sys.setprofile(cutter)
            source = backend.open(str(path))
            if is_direct:
                source.open_directly()
            sys.setprofile(before)
            break
        except Cut:
            sys.setprofile(before)
            source = None
        assert count_open(path) == 0
    assert 3 < at < 99
    assert source is not None


def test_nothing_can_cut_what_closes(path: Path) -> None:
    """A signal's handler may raise at a function's first line, and Python goes on without a finaliser."""
    calls: list[str] = []

    def note(frame: FrameType, event: str, _arg: object) -> None:
        if event in {"call", "c_return"}:
            calls.append(frame.f_code.co_name)

    held = [opened(path, is_direct=True)]
    before = sys.getprofile()
    gc.disable()  # other finalisers may run Python
    sys.setprofile(note)
    del held[0]
    sys.setprofile(before)
    gc.enable()
    assert (count_open(path), calls) == (0, [])


def test_a_source_that_was_not_made_to_its_end_has_nothing_to_close() -> None:
    LocalSource.__new__(LocalSource)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_open_file_has_no_duplicate(path: Path, duplicate: Callable[[object], object]) -> None:
    """Both would close the same descriptors."""
    with pytest.raises(TypeError, match="cannot be pickled"):
        duplicate(opened(path))
    assert count_open(path) == 0


def test_a_cycle_is_no_hiding_place(path: Path) -> None:
    cycle: list[Any] = [opened(path)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert count_open(path) == 0


def test_what_the_collector_closes_it_closes_once(path: Path) -> None:
    """Another finaliser of the same garbage may open a file in between: none is closed twice."""

    class Opens:
        def __del__(self) -> None:
            found.append(opened(path))

    found: list[LocalSource] = []
    cycle: list[Any] = [Opens(), opened(path), Opens()]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert [os.fstat(source.fd).st_size for source in found] == [5000, 5000]
    assert count_open(path) == 2
    found.clear()
    assert count_open(path) == 0


def test_a_name_is_no_shorter_than_it_says(path: Path) -> None:
    """C ends it at a NUL, and would open another file."""
    with pytest.raises(ValueError, match="null"):
        _linux.open_cached(f"{path}\0.parquet", [])
    fs = headrace.HeadraceFileSystem(target_protocol="file")
    asked = [f"{path}\0.parquet"] * 30, [0] * 30, [1] * 30
    for call in (fs.open, fs.cat_file):
        with pytest.raises(ValueError, match="null"):
            call(asked[0][0])
    for count in (1, 30):
        answers = fs.cat_ranges(*(column[:count] for column in asked))
        assert [type(answer) for answer in answers] == [ValueError] * count


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are of POSIX")
@pytest.mark.timeout(60, method="thread")
def test_a_pipe_is_waited_for_with_the_gil_let_go(tmp_path: Path) -> None:
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    opening = threading.Event()

    def write() -> None:
        assert opening.wait(30)
        with contextlib.suppress(BrokenPipeError), Path(pipe).open("wb") as file:
            file.write(b"x")

    writer = threading.Thread(target=write)
    writer.start()
    fs = headrace.HeadraceFileSystem(target_protocol="file")
    assert isinstance(fs.cat_ranges([pipe], [0], [1])[0], OSError)  # nobody writes yet
    opening.set()
    with pytest.raises(OSError, match="seek"):  # as the plain filesystem says
        fs.open(pipe)
    writer.join(30)
    assert not writer.is_alive()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are of POSIX")
@pytest.mark.timeout(60, method="thread")
@pytest.mark.parametrize(
    "read",
    [
        lambda fs, pipe: fs.cat_file(pipe),
        lambda fs, pipe: fs.cat_file(pipe, -3),
        lambda fs, pipe: fs.cat([pipe], on_error="return")[pipe],
        lambda fs, pipe: fs.cat_file(pipe, 0, 5),
        lambda fs, pipe: fs.cat_ranges([pipe] * 3, [0] * 3, [5] * 3)[1],
        lambda fs, pipe: fs.cat_ranges([pipe] * 20, [0] * 20, [5] * 20)[7],
    ],
    ids=["whole", "end", "cat", "range", "few", "ranges"],
)
@pytest.mark.parametrize(
    ("has_own_numbers", "is_direct"),
    [(True, False), (False, False), (True, True)],
    ids=["", "path", "direct"],
)
def test_a_pipe_is_refused_and_its_writer_is_not_waited_for(
    tmp_path: Path,
    scheduled_mode: str,
    read: Any,
    monkeypatch: pytest.MonkeyPatch,
    *,
    has_own_numbers: bool,
    is_direct: bool,
) -> None:
    """He may be gone: a first opening lets him go, and ranges are opened twice where it is not quick."""
    monkeypatch.setattr(_linux, "_has_own_numbers", has_own_numbers and _linux._has_own_numbers)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode, uring_direct=is_direct)
    try:
        answer = read(fs, str(pipe))
    except OSError as error:
        answer = error
    assert isinstance(answer, io.UnsupportedOperation)
    assert (answer.errno, answer.filename) == (errno.ESPIPE, str(pipe))


def test_whoever_has_a_lease_on_a_file_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl  # Windows has none

    monkeypatch.setattr(_linux, "_has_own_numbers", False)  # else it is told in vain once more
    told: list[int] = []
    with path.open("r+b") as leased:

        def give_up(number: int, _frame: FrameType | None) -> None:
            told.append(number)
            fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_UNLCK)

        before = signal.signal(signal.SIGIO, give_up)
        try:
            fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            source = opened(path)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            pytest.skip("no leases on this filesystem")
        finally:
            signal.signal(signal.SIGIO, before)
    assert told == [signal.SIGIO]
    assert source.size() == 5000


@pytest.mark.parametrize("kind", ["nfs4", "fuse.sshfs", "ext4"])
def test_a_file_that_a_server_opens_is_waited_for_with_the_gil_let_go(
    path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a program of this very process that answers."""
    device = path.stat().st_dev
    mounts = "22 27 0:21 / /proc rw - proc proc rw\n"
    mounts += f"31 27 {os.major(device)}:{os.minor(device)} / /data rw shared:1 - {kind} server:/data rw\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: mounts)
    plain: list[str] = []
    open_plainly = _linux.open_plainly

    def note(name: str, fds: list[int]) -> None:
        plain.append(name)
        open_plainly(name, fds)

    monkeypatch.setattr(_linux, "open_plainly", note)
    _linux.is_served.cache_clear()
    try:
        source = FileBackend(LocalFileSystem()).open(str(path))
        assert plain == ([] if kind == "ext4" else [str(path)])
        del source
    finally:
        _linux.is_served.cache_clear()


def test_a_file_that_is_replaced_while_it_is_opened_is_read_as_one(path: Path) -> None:
    """Opened around the page cache by its path, it would be another one there."""
    other = path.with_suffix(".new")
    source = opened(path)
    other.write_bytes(b"other")
    other.replace(path)
    source.open_directly()
    assert source.direct_fd == -1
    assert count_open(path) == 0
    assert len(source.fds) == 1
