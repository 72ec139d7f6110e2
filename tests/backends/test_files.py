"""Open local files: their descriptors, whatever cuts a finaliser."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

import headrace
from headrace.backends import _linux
from headrace.backends._direct import direct_source
from headrace.backends._files import FileBackend, LocalSource, _End, _note_lost
from headrace.backends._linux import open_cached

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
    make = direct_source if is_direct else LocalSource
    return make(str(path), open_cached(str(path)))


@pytest.mark.parametrize("is_direct", [False, True])
def test_the_last_reference_closes(path: Path, *, is_direct: bool) -> None:
    source = opened(path, is_direct=is_direct)
    assert count_open(path) == 1 + (source.direct_fd >= 0)
    del source
    assert count_open(path) == 0


@pytest.mark.parametrize("is_direct", [False, True])
def test_the_next_opening_closes_what_a_cut_finaliser_left(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, is_direct: bool
) -> None:
    """As by a signal handler that raises at its first line."""
    with monkeypatch.context() as patched:
        patched.setattr(LocalSource, "__del__", lambda _source: None)
        sources = [opened(path, is_direct=is_direct) for _ in range(3)]
        left = count_open(path)
        assert left >= 3
        del sources
        assert count_open(path) == left
    source = opened(path)
    assert count_open(path) == 1
    del source


def test_a_finaliser_that_is_cut_later_closes_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first descriptor is closed: another file may have its number by then."""
    closed: list[int] = []

    def close(fd: int) -> None:
        os.close(fd)
        closed.append(fd)
        if len(closed) == 1:
            raise KeyboardInterrupt

    source = direct_source(str(path), open_cached(str(path)))
    fds = {source.fd, source.direct_fd} - {-1}
    monkeypatch.setattr("headrace.backends._linux.close", close)
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: unraisable.append(found.exc_type))
    del source
    other = opened(path)
    assert unraisable == [KeyboardInterrupt]
    assert sorted(closed) == sorted(fds)
    assert count_open(path) == 1
    del other


def test_an_opening_that_was_cut_closes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there was an end to close it."""

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("headrace.backends._files._End", cut)
    with pytest.raises(KeyboardInterrupt):
        opened(path)
    assert count_open(path) == 0


def test_an_opening_that_was_cut_later_is_closed_by_the_next(path: Path) -> None:
    """Before its end was listed with the others."""
    end = _End(LocalSource.__new__(LocalSource), _note_lost)
    end.fd = open_cached(str(path))  # it is listed already: its object was gone at once
    source = opened(path)
    assert (end.fd, count_open(path)) == (-1, 1)
    del source


def test_the_next_opening_goes_on_where_another_was_cut(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a signal handler that raises after the first of two descriptors is closed."""
    end = _End(LocalSource.__new__(LocalSource), _note_lost)
    end.fd, end.direct_fd = open_cached(str(path)), open_cached(str(path))  # it is listed already

    def close(fd: int) -> None:
        os.close(fd)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("headrace.backends._linux.close", close)
        patched.setattr(sys, "unraisablehook", lambda _found: None)
        with pytest.raises(KeyboardInterrupt):
            opened(path)
    source = opened(path)
    assert count_open(path) == 1
    del source


def test_a_cycle_is_no_hiding_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector calls no weak reference that is garbage itself."""
    with monkeypatch.context() as patched:
        patched.setattr(LocalSource, "__del__", lambda _source: None)
        cycle: list[Any] = [opened(path)]
        cycle.append(cycle)
        del cycle
        gc.collect()
    assert count_open(path) == 1
    source = opened(path)
    assert count_open(path) == 1
    del source


def test_the_collector_tells_of_a_source_before_it_is_finalised(path: Path) -> None:
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


def test_what_cannot_be_opened_directly_leaves_nothing_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    fd = open_cached(str(path))
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", interrupted)
        with pytest.raises(KeyboardInterrupt):
            direct_source(str(path), fd)
    gc.collect()
    assert count_open(path) == 0


def test_a_name_is_no_shorter_than_it_says(path: Path) -> None:
    """C ends it at a NUL, and would open another file."""
    with pytest.raises(ValueError, match="null"):
        open_cached(f"{path}\0.parquet")
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
    monkeypatch.setattr(_linux, "open_plainly", lambda name: plain.append(name) or os.open(name, os.O_RDONLY))
    _linux.is_served.cache_clear()
    try:
        source = FileBackend(LocalFileSystem()).open(str(path))
        assert plain == ([] if kind == "ext4" and _linux._has_own_numbers else [str(path)])
        del source
    finally:
        _linux.is_served.cache_clear()


def test_a_file_that_is_replaced_while_it_is_opened_is_read_as_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened around the page cache by its path, it would be another one there."""
    other = path.with_suffix(".new")
    other.write_bytes(b"other")
    fd = open_cached(str(path))
    other.replace(path)
    source = direct_source(str(path), fd)
    assert source.direct_fd == -1
    assert count_open(path) == 0
    del source
