"""Async filesystems that wrap others: their files are of the stores behind them, and not of one each."""

from __future__ import annotations

import asyncio
from typing import Any

import fsspec
import pytest
from fsspec.asyn import AsyncFileSystem

import headrace
from headrace.backends.fsspec_async import AsyncFsspecBackend

NAMES = [f"{number}.bin" for number in range(20)]


class BusyFileSystem(AsyncFileSystem):
    """Files of one byte; it notes how many were being read at once."""

    protocol = "busystore"
    cachable = False

    def __init__(self, store: str = "one", **options: Any) -> None:
        super().__init__(store=store, **options)
        self.now = self.most = 0

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": 1, "type": "file"}

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)  # all that may begin have begun when the first goes on
        self.now -= 1
        return b"x"[start:end]


def folder(fs: Any, path: str = "bucket/prefix") -> Any:
    return fsspec.filesystem("dir", path=path, fs=fs, skip_instance_cache=True)


def reference(fs: Any) -> Any:
    files = {name: [f"busystore://bucket/{name}"] for name in NAMES}
    return fsspec.filesystem("reference", fo=files, fs={"busystore": fs, None: fs}, skip_instance_cache=True)


@pytest.mark.parametrize("make", [folder, reference])
def test_a_limit_is_of_all_files(make: Any) -> None:
    store = BusyFileSystem()
    fs = headrace.wrap(make(store), scheduler="standard", io_parallelism=2)
    assert fs.backend_name == "fsspec-async"
    assert [bytes(one) for one in fs.cat_ranges(NAMES, 0, 1)] == [b"x"] * len(NAMES)
    assert store.most <= 2
    devices = {fs.channel.backend.device(path) for path in NAMES}
    assert len(devices) == 1


def test_a_folder_is_of_the_bucket_that_it_is_in() -> None:
    store = BusyFileSystem()
    plain = AsyncFsspecBackend(store)
    for fs, path in [
        (folder(store), "a/b.bin"),
        (folder(store, "/"), "bucket/a"),
        (folder(folder(store)), "c"),
    ]:
        assert AsyncFsspecBackend(fs).device(path) == plain.device("bucket/a"), path
    other = folder(store, "other/prefix")
    assert AsyncFsspecBackend(other).device("a") == plain.device("other/a") != plain.device("bucket/a")


def test_references_are_of_the_stores_that_they_name() -> None:
    one, equal, other = (AsyncFsspecBackend(reference(BusyFileSystem(name))) for name in ("a", "a", "b"))
    assert one.device(NAMES[0]) == equal.device(NAMES[1]) != other.device(NAMES[0])
