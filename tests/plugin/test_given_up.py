"""Reads that were given up while storage was still at work: what they leave alone, and what goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from headrace import HeadraceFileSystem, ReadTimeoutError

Wait = Callable[[Callable[[], bool]], None]

DATA = bytes(range(256)) * 4
WAIT_S = 30.0
SOON_S = 0.05

may_go = threading.Event()
"""Until it is set, nothing but "free" is read."""


class Handle:
    """An open file, which waits for `may_go`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.at = 0
        self.size = len(DATA)
        self.closed = False

    def seek(self, at: int, whence: int = 0) -> int:
        self.at = at if whence == 0 else len(DATA) + at
        return self.at

    def read(self, length: int) -> bytes:
        if self.path != "free":
            assert may_go.wait(WAIT_S)
        data = DATA[self.at : self.at + length]
        self.at += len(data)
        return data

    def close(self) -> None:
        self.closed = True


class Held(AbstractFileSystem):
    """Serves `DATA` when it may."""

    protocol = "held"
    cachable = False

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(DATA), "type": "file"}

    def open(self, path: str, *_: Any, **__: Any) -> Any:
        return Handle(path)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        if path != "free":
            assert may_go.wait(WAIT_S)
        return DATA[start:end]


class HeldAsync(AsyncFileSystem):
    """The same with coroutines, one of which does not heed that it is cancelled."""

    protocol = "heldasync"
    cachable = False

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(DATA), "type": "file"}

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        waiting = asyncio.ensure_future(asyncio.to_thread(may_go.wait, WAIT_S))
        while not waiting.done():
            try:
                await asyncio.shield(waiting)
            except asyncio.CancelledError:
                continue
        return DATA[start:end]


@pytest.fixture(autouse=True)
def _held() -> Iterator[None]:
    may_go.clear()
    yield
    may_go.set()


KINDS = {"sync": Held, "async": HeldAsync}


@pytest.fixture(params=KINDS)
def fs(request: pytest.FixtureRequest, scheduled_mode: str) -> HeadraceFileSystem:
    return HeadraceFileSystem(fs=KINDS[request.param](), scheduler=scheduled_mode, timeout_s=SOON_S)


def into_a_file(fs: HeadraceFileSystem, out: bytearray) -> None:
    fs.open("a", cache_type="none").readinto(out)


def into_a_batch(fs: HeadraceFileSystem, out: bytearray) -> None:
    fs.read_ranges("a", [0, 10], [10, 20], out=out)


@pytest.mark.parametrize("read", [into_a_file, into_a_batch])
def test_the_callers_memory_is_his_again(
    fs: HeadraceFileSystem, read: Callable[[HeadraceFileSystem, bytearray], None], wait_until: Wait
) -> None:
    out = bytearray(20)
    with pytest.raises(ReadTimeoutError):
        read(fs, out)
    out[:] = b"mine" * 5
    may_go.set()
    wait_until(lambda: not fs.stats().in_flight_ops)
    assert out == b"mine" * 5
    assert fs.read_ranges("free", [5, 15], [15, 25], out=out).to_pylist() == [DATA[5:15], DATA[15:25]]
    assert out == DATA[5:25]


def test_a_file_that_is_closed_with_a_read_on_its_way_holds_up_nobody(
    scheduled_mode: str, wait_until: Wait
) -> None:
    """That read waits for the filesystem, which another thread's read has; then it needs the file."""
    fs = HeadraceFileSystem(fs=Held(), scheduler=scheduled_mode, timeout_s=SOON_S)
    others, mine = (fs.open(path, cache_type="none") for path in ("other", "mine"))
    with pytest.raises(ReadTimeoutError):
        others.read(5)
    with pytest.raises(ReadTimeoutError):
        mine.read(5)
    mine.close()
    may_go.set()
    wait_until(lambda: not fs.stats().in_flight_ops)
    assert fs.cat_file("free", 0, 5) == DATA[:5]
    assert fs.info("mine")["size"] == len(DATA)


def test_a_local_file_in_standard_mode(tmp_path: Any) -> None:
    """Where it is read into the caller's memory by way of our own."""
    path = tmp_path / "data.bin"
    path.write_bytes(DATA * 1000)
    fs = HeadraceFileSystem(fs=LocalFileSystem(), scheduler="standard", timeout_s=WAIT_S)
    out = bytearray(len(DATA) * 900)
    with fs.open(path, cache_type="none") as file:
        assert file.readinto(out) == len(out)
    assert out == (DATA * 1000)[: len(out)]
