"""Memory of large results is used again, once nobody can see it any more, and within its limit."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import recording  # noqa: F401 - registers its filesystems
from hypothesis import given
from hypothesis import strategies as st

import headrace
from headrace import arenas as arenas_
from headrace import memory
from headrace.arenas import Arenas
from headrace.memory import MAPPED_BYTES, pooled_buffer, result_buffer, scattered_bytes, writable_bytes
from headrace.testing import Fault, ObjectServer

MIB = 1 << 20
SIZE = 4 * MIB


@pytest.fixture
def arenas(monkeypatch: pytest.MonkeyPatch) -> Arenas:
    """Arenas of this test's own, also for reads."""
    mine = Arenas()
    for module in ("headrace.cached", "headrace.reader"):
        monkeypatch.setattr(f"{module}.arenas", mine)
    assert memory.on_no_room == [arenas_.arenas.give_up]
    monkeypatch.setattr(memory, "on_no_room", [mine.give_up])
    return mine


def address(array: object) -> int:
    return np.frombuffer(array, np.uint8).ctypes.data  # type: ignore[call-overload, no-any-return]


def test_what_is_gone_is_handed_out_again(arenas: Arenas) -> None:
    first = arenas.take(SIZE, 64 * MIB)
    at = first.ctypes.data
    second = arenas.take(SIZE, 64 * MIB)
    assert second.ctypes.data != at
    assert (arenas.out_bytes, arenas.idle_bytes) == (2 * SIZE, 0)
    del first
    assert (arenas.out_bytes, arenas.idle_bytes) == (SIZE, SIZE)
    third = arenas.take(SIZE - 5, 64 * MIB)
    assert (third.ctypes.data, len(third)) == (at, SIZE - 5)


class NoRoom:
    """Takes the place of what makes memory, `mmap` of results or another: so many times it is refused."""

    def __init__(
        self,
        times: int,
        error: Exception,
        monkeypatch: pytest.MonkeyPatch,
        kind: Any = None,
        name: str = "mmap",
    ) -> None:
        self.left = times
        if kind is None:
            kind = SimpleNamespace(mmap=mmap.mmap)
            monkeypatch.setattr(memory, "mmap", kind)
        self._error = error
        self._make = getattr(kind, name)
        monkeypatch.setattr(kind, name, self)

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left >= 0:
            raise type(self._error)(*self._error.args)  # a kept one would keep what its frames hold
        return self._make(*args, **options)


NO_MEMORY = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def test_what_is_idle_is_given_up_for_what_there_is_no_room_for(
    arenas: Arenas, monkeypatch: pytest.MonkeyPatch
) -> None:
    arenas.take(SIZE, 64 * MIB)
    assert arenas.idle_bytes == SIZE
    refusals = NoRoom(1, NO_MEMORY, monkeypatch)
    taken = arenas.take(5 * SIZE, 64 * MIB)
    assert (len(taken), arenas.out_bytes, arenas.idle_bytes) == (5 * SIZE, 5 * SIZE, 0)
    assert refusals.left == -1
    del taken
    NoRoom(1, PermissionError(), monkeypatch)
    with pytest.raises(PermissionError):
        arenas.take(SIZE, 64 * MIB)
    assert arenas.idle_bytes == 5 * SIZE


@pytest.mark.parametrize(
    ("make", "refusal"),
    [
        (lambda arenas: arenas.take(65 * MIB, 64 * MIB), (NO_MEMORY,)),
        (lambda _: result_buffer(SIZE), (NO_MEMORY,)),
        (lambda _: pooled_buffer(SIZE), (MemoryError(), pa, "allocate_buffer")),
        (lambda _: writable_bytes(SIZE)[0], (MemoryError(), memory, "_new_bytes")),
        (lambda _: scattered_bytes([SIZE])[0][0], (MemoryError(), memory, "_new_bytes")),
    ],
    ids=["above the limit", "submitted", "pooled", "bytes", "several bytes"],
)
def test_what_is_idle_is_given_up_for_other_results_too(
    arenas: Arenas, monkeypatch: pytest.MonkeyPatch, make: Any, refusal: Any
) -> None:
    def refuse(times: int) -> NoRoom:
        error, *where = refusal
        return NoRoom(times, error, monkeypatch, *where)

    arenas.take(SIZE, 64 * MIB)
    refusals = refuse(1)
    assert len(make(arenas)) >= SIZE
    assert (refusals.left, arenas.idle_bytes) == (-1, 0)
    arenas.take(SIZE, 64 * MIB)
    refuse(2)
    with pytest.raises(MemoryError):
        make(arenas)
    refusals = refuse(1)
    with pytest.raises(MemoryError):
        make(arenas)
    assert refusals.left == 0, "nothing was idle, so it was not tried again"


def test_that_there_is_no_room_keeps_nothing_of_who_asked(
    arenas: Arenas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or who asks for less then would find the room still taken."""
    NoRoom(1, NO_MEMORY, monkeypatch)

    def ask() -> weakref.ref[Any]:
        held = np.zeros(1)
        with pytest.raises(MemoryError):
            result_buffer(SIZE)
        return weakref.ref(held)

    gc.disable()
    try:
        assert ask()() is None
    finally:
        gc.enable()


def test_what_is_given_up_while_an_arena_is_looked_for(
    arenas: Arenas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a signal handler, or by a thread that does not wait for the lock."""
    arenas.take(SIZE, 64 * MIB)
    fitting: list[int] = []

    def given_up(*args: Any, **options: Any) -> Any:
        assert arenas.give_up()
        fitting.append(min(*args, **options))
        return fitting[-1]

    monkeypatch.setattr(arenas_, "min", given_up, raising=False)
    assert len(arenas.take(SIZE, 64 * MIB)) == SIZE
    assert (fitting, arenas.idle_bytes) == ([0], SIZE)


@pytest.mark.parametrize("read", ["read_ranges", "submit_ranges", "cat_ranges"])
def test_no_memory_is_no_error_of_the_storages(
    arenas: Arenas, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheduled_mode: str, read: str
) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(SIZE))
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)
    refusals = NoRoom(9, NO_MEMORY, monkeypatch)
    with pytest.raises(MemoryError, match="no room for a mapping of"):
        getattr(fs, read)([str(path)] * 20, list(range(20)), [100] * 19 + [SIZE])
    refusals.left = 0
    assert fs.read_ranges(str(path), [0], [SIZE]).to_pylist() == [bytes(SIZE)]
    assert arenas.out_bytes == 0


@pytest.mark.parametrize("nbytes", [0, 1, MAPPED_BYTES - 1, 65 * MIB])
def test_small_ones_and_those_above_the_limit_are_not_kept(arenas: Arenas, nbytes: int) -> None:
    taken = arenas.take(nbytes, 64 * MIB)
    assert len(taken) == nbytes
    del taken
    assert (arenas.out_bytes, arenas.idle_bytes) == (0, 0)


@given(
    st.lists(st.tuples(st.integers(MAPPED_BYTES, 16 * MIB), st.integers(0, 5)), max_size=30),
    st.integers(8 * MIB, 40 * MIB),
)
def test_idle_and_out_stay_within_the_limit(steps: list[tuple[int, int]], limit: int) -> None:
    """Whatever is taken and let go of; what is out by itself may be more."""
    arenas = Arenas()
    held: list[np.ndarray] = []
    for nbytes, keep in steps:
        held.append(arenas.take(nbytes, limit))
        places = [array.ctypes.data for array in held]
        assert len(set(places)) == len(places)
        del held[: -keep or None]
        assert arenas.idle_bytes <= max(0, limit - arenas.out_bytes)


def test_a_finaliser_that_comes_while_the_lock_is_held_waits_for_nobody(arenas: Arenas) -> None:
    taken = arenas.take(SIZE, 64 * MIB)
    with arenas._lock:
        del taken
        extra = arenas.take(SIZE, 64 * MIB)  # as a signal handler would
        assert len(extra) == SIZE
    assert arenas.idle_bytes == SIZE
    assert arenas.take(SIZE, 64 * MIB).ctypes.data


@pytest.mark.parametrize("protocol", ["memory", "recording", "arecording", "s3"])
def test_a_kept_error_keeps_no_memory_of_its_read(
    arenas: Arenas, tmp_path: Path, protocol: str, scheduled_mode: str, wait_until: Any
) -> None:
    """Nor does an error of a read that is gone, until a collection."""
    with ObjectServer() as server:
        target = fsspec.filesystem(protocol, **(server.storage_options() if protocol == "s3" else {}))
        server.put("bucket", "there", bytes(SIZE))
        (tmp_path / "there").write_bytes(bytes(SIZE))
        if protocol == "memory":
            target.pipe_file(f"{tmp_path}/there", bytes(SIZE))
        fs = headrace.wrap(target, scheduler=scheduled_mode, cloud_engine="obstore")
        folder = "bucket" if protocol == "s3" else str(tmp_path)
        paths, ends = [f"{folder}/there", f"{folder}/gone"], [SIZE, 10]
        gc.collect()
        gc.disable()
        try:
            whole, error = fs.cat_ranges(paths, [0, 0], ends, max_gap=0)
            assert whole == bytes(SIZE)
            del whole
            (another,) = fs.cat([paths[1]], on_error="return").values()
            assert (type(another), another.__traceback__) == (type(error), None)
            wait_until(lambda: not arenas.out_bytes)  # a worker may be about to let go of it
        finally:
            gc.enable()
    assert isinstance(error, FileNotFoundError)
    assert any(note.startswith("raised in ") for note in error.__notes__)
    with pytest.raises(FileNotFoundError):
        raise error


def test_a_read_that_was_refused_twice_keeps_no_memory(
    arenas: Arenas, scheduled_mode: str, wait_until: Any
) -> None:
    """Nor do the errors of the attempts that failed, until a collection."""
    refusals = [Fault("slow_down")] * 4
    with ObjectServer() as server:
        target = fsspec.filesystem("s3", **server.storage_options())
        server.put("bucket", "there", bytes(SIZE))
        fs = headrace.wrap(target, scheduler=scheduled_mode, cloud_engine="obstore")
        assert fs.cat_file("bucket/there", start=0, end=10) == bytes(10)
        server.script = lambda _request: refusals.pop() if refusals else None
        gc.collect()
        gc.disable()
        try:
            (whole,) = fs.cat_ranges(["bucket/there"], [0], [SIZE], max_gap=0)
            assert (whole, refusals) == (bytes(SIZE), [])
            del whole
            wait_until(lambda: not arenas.out_bytes)  # a worker may be about to let go of it
        finally:
            gc.enable()


def batch_of(fs: headrace.HeadraceFileSystem, path: Path, seed: int) -> tuple[Any, list[bytes]]:
    content = path.read_bytes()
    starts = np.random.default_rng(seed).integers(0, len(content) - 4096, 1000)
    batch = fs.read_ranges(str(path), starts, starts + 4096)
    return batch, [content[at : at + 4096] for at in starts.tolist()]


@pytest.mark.parametrize(
    "view_of",
    [
        lambda batch: batch[500],
        lambda batch: batch.buffer,
        lambda batch: batch.to_arrow(),
        lambda batch: pa.table({"rows": batch.to_arrow()}),
        lambda batch: np.frombuffer(batch.buffer, np.uint8)[500 * 4096 :],
    ],
    ids=["memoryview", "buffer", "array", "table", "numpy"],
)
def test_a_view_keeps_its_bytes_while_the_arenas_are_busy(
    arenas: Arenas, tmp_path: Path, view_of: object, scheduled_mode: str
) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(np.random.default_rng(0).bytes(2 * MIB))
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)
    batch, expected = batch_of(fs, path, 1)
    view = view_of(batch)  # type: ignore[operator]
    del batch
    gc.collect()

    def busy(seed: int) -> None:
        for round_ in range(5):
            others, wanted = batch_of(fs, path, 100 * seed + round_)
            assert others.to_pylist() == wanted

    threads = [threading.Thread(target=busy, args=(seed,)) for seed in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if isinstance(view, pa.Table):
        assert view["rows"].to_pylist() == expected
    elif isinstance(view, pa.LargeBinaryArray):
        assert view.to_pylist() == expected
    else:
        everything = b"".join(expected)
        assert bytes(view) in (everything, everything[500 * 4096 :], expected[500])  # type: ignore[call-overload]
    assert arenas.out_bytes >= 4 * MIB
    del view
    gc.collect()
    assert arenas.out_bytes == 0
    assert arenas.idle_bytes > 0


def test_arenas_come_back_in_a_forked_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody in the parent was inside, and is not in the child."""
    pool = arenas_.arenas
    with pool._lock:
        pid = os.fork()
        if not pid:
            taken = pool.take(SIZE, 64 * MIB)
            del taken
            os._exit(0 if pool.idle_bytes >= SIZE else 1)
    assert os.waitpid(pid, 0)[1] == 0


class CutError(Exception):
    """Stands for what a signal's handler raises."""


class Interrupted:
    """A lock after whose acquisition a signal is handled, before the caller has seen it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.is_cut = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lock, name)

    def acquire(self, *, blocking: bool) -> bool:
        is_mine = self.lock.acquire(blocking=blocking)
        if self.is_cut:
            raise CutError
        return is_mine


def test_an_interrupt_leaves_the_lock_free(arenas: Arenas, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would ever have an arena again."""
    lock = Interrupted()
    monkeypatch.setattr(arenas, "_lock", lock)
    with pytest.raises(CutError):
        arenas.take(SIZE, 64 * MIB)
    lock.is_cut = False
    assert not lock._is_owned()
    held = arenas.take(SIZE, 64 * MIB)
    assert arenas.out_bytes == SIZE
    del held
    assert arenas.idle_bytes == SIZE


def test_a_return_that_is_interrupted_costs_nothing_of_the_limit(
    arenas: Arenas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python goes on without what a finaliser was about to do."""

    def interrupted(*_: object) -> None:
        raise CutError

    cut: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: cut.append(what.exc_type))
    first, second = (arenas.take(SIZE, 8 * MIB) for _ in range(2))
    with monkeypatch.context() as patched:
        patched.setattr(arenas, "_give_back", interrupted)
        del first
    assert cut == [CutError]
    del second
    assert (arenas.out_bytes, arenas.idle_bytes) == (0, SIZE)
