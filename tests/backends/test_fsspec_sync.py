"""Sync filesystems: who may be in one at a time, and how long their open files are."""

from __future__ import annotations

import asyncio
import gc
import gzip
import io
import os
import pickle
import tarfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.implementations.tar import TarFileSystem
from fsspec.implementations.zip import ZipFileSystem
from fsspec.spec import AbstractBufferedFile

import headrace
from headrace.backends import fsspec_sync
from headrace.backends.fsspec_sync import SyncBackend, instance_lock

WAIT_S = 10.0


def test_equal_filesystems_have_a_lock_each_for_as_long_as_they_are_there(tmp_path: Path) -> None:
    """The second keeps its own when the first is gone: its reads and everything else hold the same one."""
    path = tmp_path / "data.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("empty"), io.BytesIO())
    first, second = (TarFileSystem(str(path), skip_instance_cache=True) for _ in range(2))
    assert first == second
    lock = instance_lock(first)
    backend = SyncBackend(second)
    assert backend.guard() is not lock
    del first
    gc.collect()
    assert instance_lock(second) is backend.guard()


READS: dict[str, Callable[[Any], bytes]] = {
    "read": lambda file: file.read(),
    "read so many": lambda file: file.read(1 << 20),
    "read_buffer": lambda file: bytes(file.read_buffer(1 << 20)),
    "lines": b"".join,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("protocol", ["simplecache", "filecache"])
def test_a_file_is_as_long_as_its_handle_says(
    protocol: str, read: Callable[[Any], bytes], tmp_path: Path, scheduled_mode: str
) -> None:
    """Not as the filesystem says: a cache that decompresses says how long the compressed file is."""
    content = b"x,y\n" * 100_000
    (tmp_path / "table.csv.gz").write_bytes(gzip.compress(content))
    storage = str(tmp_path / "cache")
    target = fsspec.filesystem(protocol, target_protocol="file", compression="infer", cache_storage=storage)
    fs = headrace.HeadraceFileSystem(fs=target, scheduler=scheduled_mode)
    with fs.open(str(tmp_path / "table.csv.gz")) as file:
        assert read(file) == content
        assert file.size == file.seek(0, io.SEEK_END) == len(content)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_file_of_a_folder_grows(read: Callable[[Any], bytes], tmp_path: Path, scheduled_mode: str) -> None:
    target = DirFileSystem(str(tmp_path), fs=LocalFileSystem())
    fs = headrace.HeadraceFileSystem(fs=target, scheduler=scheduled_mode)
    (tmp_path / "log").write_bytes(b"one\n")
    with fs.open("log") as file:
        assert read(file) == b"one\n"
        with (tmp_path / "log").open("ab") as appended:
            appended.write(b"two\n")
        assert read(file) == b"two\n"
        assert file.size == len(b"one\ntwo\n")


def test_no_member_is_read_for_its_length(tmp_path: Path, scheduled_mode: str) -> None:
    """It is decompressed once, by who reads it."""
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("member", bytes(1 << 20))
    fs = headrace.HeadraceFileSystem(fs=ZipFileSystem(str(path)), scheduler=scheduled_mode)
    with fs.open("member") as file:
        assert file.size == 1 << 20
        assert file._source.handle.tell() == 0


def test_a_handler_while_a_lock_is_made_has_the_same_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a finaliser: it reads from the filesystem that this thread is about to use."""
    target, forget_with = MemoryFileSystem(), fsspec_sync.forget_with
    nested: list[object] = []

    def interrupted(thing: object, known: dict[int, object]) -> object:
        if not nested:
            nested.append(None)
            nested[0] = instance_lock(thing)
        return forget_with(thing, known)

    monkeypatch.setattr(fsspec_sync, "forget_with", interrupted)
    thread = threading.Thread(target=lambda: nested.append(instance_lock(target)), daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive(), "it waits for itself"
    assert nested[0] is nested[1] is instance_lock(target)


class ForwardFile(io.BytesIO):
    """Seeks forward, and not from its end, as decompressors do."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            raise io.UnsupportedOperation("seek from the end")
        return super().seek(offset, whence)


class ForwardFileSystem(MemoryFileSystem):  # type: ignore[misc]
    """Opens such files."""

    cachable = False

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        is_read = mode == "rb"
        return ForwardFile(self.store[path].getvalue()) if is_read else super()._open(path, mode, **options)


def test_a_handle_that_does_not_seek_from_its_end_is_as_long_as_the_filesystem_says(
    scheduled_mode: str,
) -> None:
    target = ForwardFileSystem()
    target.pipe_file("/forward", b"some bytes")
    fs = headrace.HeadraceFileSystem(fs=target, scheduler=scheduled_mode)
    with fs.open("/forward") as file:
        assert file.seek(0, io.SEEK_END) == 10
        file.seek(5)
        assert file.read() == b"bytes"
    target.rm_file("/forward")


LONG = bytes(1 << 20)


class Fetching(AbstractBufferedFile):  # type: ignore[misc]
    """Notes what its cache asks for."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fs.fetched.append((start, end))
        return LONG[start:end]


class FetchingFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Has one file, read by blocks as those of FTP and WebHDFS are."""

    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.fetched: list[tuple[int, int]] = []

    def info(self, path: str) -> dict[str, Any]:
        """Take no options: none of those below is about the file."""
        return {"name": path, "size": len(LONG), "type": "file"}

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        return Fetching(self, path, mode, block_size or "default", **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_type": "none"},
        {"block_size": 5000},
        {"cache_type": "bytes", "block_size": 5000},
    ],
    ids=str,
)
def test_a_handle_has_the_cache_that_is_asked_for(options: dict[str, Any], scheduled_mode: str) -> None:
    """Dask asks for none, and would else fetch five MiB for each footer."""
    plain = FetchingFileSystem()
    fs = headrace.HeadraceFileSystem(fs=FetchingFileSystem(), scheduler=scheduled_mode)
    with plain.open("x", **options) as expected, fs.open("x", **options) as file:
        for one in (expected, file):
            one.seek(100_000)
        pickled = pickle.dumps(file)
        assert file.read(10) == expected.read(10)
    assert fs.target.fetched == plain.fetched
    with pickle.loads(pickled) as again:
        again.read(10)
        assert again.fs.target.fetched == plain.fetched


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # fsspec leaves its cache open
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_block_cache_is_told_of_no_other(tmp_path: Path, is_folder: bool, scheduled_mode: str) -> None:
    """It asks for files without one itself, and fails where it is told the same."""
    cache = CachingFileSystem(fs=FetchingFileSystem(), cache_storage=str(tmp_path))
    target = DirFileSystem(path="folder", fs=cache) if is_folder else cache
    fs = headrace.HeadraceFileSystem(fs=target, scheduler=scheduled_mode)
    for _ in range(2):
        with fs.open("x", cache_type="none") as file:
            assert file.read(10) == LONG[:10]
    assert len(cache.fs.fetched) == 1
    gc.collect()  # of fsspec's files, which are in cycles, before the warnings of another test


def test_a_handle_has_the_parts_of_its_file_that_are_given(scheduled_mode: str) -> None:
    """They are this one's: where it is opened again it has none."""
    fs = headrace.HeadraceFileSystem(fs=FetchingFileSystem(), scheduler=scheduled_mode)
    parts = {"data": {(100_000, 100_500): b"known" * 100}}
    with fs.open("x", cache_type="parts", cache_options=parts) as file:
        file.seek(100_000)
        pickled = pickle.dumps(file)
        assert file.read(10) == b"knownknown"
    assert not fs.target.fetched
    with pickle.loads(pickled) as again:
        assert again.read(10) == LONG[:10]


def one_of(name: str, path: Path) -> Any:
    """Make a filesystem of a class, and say where it has a file."""
    memory = MemoryFileSystem()
    memory.pipe_file("/safe.bin", path.read_bytes())
    made = {
        "LocalFileSystem": (LocalFileSystem, str(path)),
        "MemoryFileSystem": (MemoryFileSystem, "/safe.bin"),
        "HeadraceFileSystem": (partial(headrace.HeadraceFileSystem, fs=memory), "/safe.bin"),
    }
    make, where = made[name.rpartition(".")[2]]
    return make(skip_instance_cache=True), where


@pytest.mark.parametrize("name", sorted(fsspec_sync.THREAD_SAFE))
def test_a_class_that_needs_no_lock_is_read_by_threads_at_once(name: str, tmp_path: Path) -> None:
    data = np.random.default_rng(8).bytes(100_000)
    (tmp_path / "safe.bin").write_bytes(data)
    target, path = one_of(name, tmp_path / "safe.bin")
    backend, both = SyncBackend(target), threading.Barrier(2, timeout=WAIT_S)

    def meet() -> None:
        with backend.guard():
            both.wait()

    def read(seed: int) -> bool:
        start, end = 997 * seed, 997 * seed + 500
        with backend.guard(), target.open(path, "rb") as file:
            file.seek(start)
            is_right = file.read(500) == target.cat_file(path, start, end) == data[start:end]
        return bool(is_right)

    with ThreadPoolExecutor(8) as threads:
        for met in [threads.submit(meet) for _ in range(2)]:
            met.result()
        assert all(threads.map(read, range(80)))


async def test_nothing_is_read_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"data")
    fs = headrace.HeadraceFileSystem(fs=DirFileSystem(str(tmp_path), fs=LocalFileSystem()))
    assert len(await fs._read_ranges([], [], [])) == 0
    assert await fs._cat_ranges([], [], []) == []
    assert await fs._cat_ranges(["data", "data"], [None, -3], [None, None]) == [b"data", b"ata"]


async def test_a_length_that_must_be_waited_for_blocks_no_loop(tmp_path: Path) -> None:
    """What is asked for is more than there is memory for, and another thread has the filesystem."""
    (tmp_path / "data").write_bytes(b"data")
    fs = headrace.HeadraceFileSystem(fs=DirFileSystem(str(tmp_path), fs=LocalFileSystem()))
    is_held, may_go_on = threading.Event(), threading.Event()
    waited: list[bool] = []

    def hold() -> None:
        with instance_lock(fs.target):
            is_held.set()
            waited.append(may_go_on.wait(WAIT_S))

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    task = asyncio.create_task(fs._read_ranges("data", [0], [1 << 50]))
    await asyncio.sleep(0)
    may_go_on.set()
    batch = await task
    thread.join()
    assert waited == [True]
    assert batch[0] == b"data"
