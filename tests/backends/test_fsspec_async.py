"""Async filesystems on the fsspec engine: which loop they are read on, and of which store their files are."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import botocore
import fsspec
import pytest
from aiobotocore.session import AioSession
from fsspec.asyn import AsyncFileSystem, get_loop, sync
from fsspec.implementations.http import HTTPFileSystem
from google.oauth2.credentials import Credentials
from plain_http import PlainServer, ranged

import headrace
from headrace.backends.fsspec_async import AsyncFsspecBackend

NAMES = [f"{number}.bin" for number in range(20)]


class BusyFileSystem(AsyncFileSystem):
    """Files of one byte; it notes how many were being read at once."""

    protocol = "busystore"
    cachable = False

    def __init__(self, store: Any = "one", **options: Any) -> None:
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


class Session:
    """Something that is asked by awaiting it."""

    async def ask(self) -> None: ...


@pytest.mark.parametrize(
    "given",
    [Session(), {"in": [{"a": (1, Session())}]}, asyncio.Lock(), AioSession()],
    ids=["object", "nested", "lock", "session"],
)
@pytest.mark.parametrize("is_by_position", [False, True])
def test_what_may_belong_to_a_loop_is_used_on_no_other(given: Any, is_by_position: bool) -> None:
    store = BusyFileSystem(given) if is_by_position else BusyFileSystem(more=given)
    backend = AsyncFsspecBackend(store)
    assert backend.foreign_loop is get_loop()
    assert headrace.wrap(store, scheduler="lite").cat_file("a.bin") == b"x"


@pytest.mark.parametrize(
    "given",
    [
        {"a": [1, 2.0, "x", b"x", None, True], "b": Path("x")},
        aiohttp.ClientTimeout(total=3),
        ssl.create_default_context(),
        Credentials("a-token"),
        botocore.UNSIGNED,
        AioSession,
        fsspec.filesystem,
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_belongs_to_no_loop_leaves_reads_on_ours(given: Any) -> None:
    assert AsyncFsspecBackend(BusyFileSystem(more=given)).foreign_loop is None


def test_a_loop_that_was_given_is_only_said_to_be_its_own() -> None:
    assert AsyncFsspecBackend(BusyFileSystem(loop=get_loop())).foreign_loop is None


@pytest.mark.parametrize("make", [folder, lambda store: store])
def test_a_sync_read_on_the_loop_that_reads_is_refused(make: Any, scheduled_mode: str) -> None:
    """As fsspec refuses it: it would wait for ever. The async twin can be awaited there."""
    fs = headrace.wrap(make(BusyFileSystem(Session())), scheduler=scheduled_mode)
    assert fs.channel.backend.foreign_loop is get_loop()

    async def called() -> tuple[bytes, bytes]:
        over = fs.submit_ranges("a", [0], [1])
        while not over.done():  # noqa: ASYNC110 - reads go on meanwhile
            await asyncio.sleep(0)
        with pytest.raises(NotImplementedError, match="async twin"):
            fs.cat_file("a")
        with pytest.raises(NotImplementedError, match="async twin"):
            file.read(1)
        return over.result()[0].tobytes(), await fs._cat_file("a")

    with fs.open("a", "rb", cache_type="none") as file:
        assert sync(get_loop(), called) == (b"x", b"x")
        assert file.read(1) == b"x"


def test_http_by_a_connector(scheduled_mode: str) -> None:
    data = bytes(range(100))

    async def connector() -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(limit=4)

    with PlainServer(lambda asked: ranged(asked, data, ETag='"one"')) as server:
        client = {"connector": sync(get_loop(), connector)}
        target = HTTPFileSystem(client_kwargs=client, skip_instance_cache=True)
        fs = headrace.wrap(target, scheduler=scheduled_mode, retries=0)
        assert fs.cat_file(f"{server.url}/a", 3, 9) == data[3:9]
        assert target.cat_file(f"{server.url}/a", 3, 9) == data[3:9]


class ChangedFileSystem(AsyncFileSystem):
    """A file of which other bytes are there than its size says."""

    protocol = "changed"
    cachable = False

    def __init__(self, first: int, last: int, **options: Any) -> None:
        super().__init__(first=first, last=last, **options)
        self.missing = range(first, last)

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": 100, "type": "file"}

    async def _cat_file(self, path: str, start: int = 0, end: int = 100, **_: Any) -> bytes:
        return bytes(place for place in range(start, end) if place not in self.missing)


def test_what_is_missing_in_the_middle_of_a_file_is_no_end_of_it(scheduled_mode: str) -> None:
    """Of its ops the last ones bring what they should; a file that is shorter now is read to its end."""

    def read(first: int, last: int) -> bytes:
        fs = headrace.wrap(ChangedFileSystem(first, last), scheduler=scheduled_mode, max_op_bytes=20)
        found: bytes = fs.open("a").read()
        return found

    assert read(55, 100) == bytes(range(55))
    with pytest.raises(OSError, match="less of the middle"):
        read(55, 60)
