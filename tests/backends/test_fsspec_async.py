"""Async filesystems on the fsspec engine: which loop they are read on, and of which store their files are."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import botocore
import fsspec
import pytest
from aiobotocore.session import AioSession
from fsspec.asyn import AsyncFileSystem, get_loop, sync
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.http import HTTPFileSystem
from google.oauth2.credentials import Credentials
from plain_http import PlainServer, ranged

import headrace
from headrace.backends.fsspec_async import AsyncFsspecBackend

NAMES = [f"{number}.bin" for number in range(20)]


class BusyFileSystem(AsyncFileSystem):
    """Files of one byte; it is noted how many were being read at once."""

    protocol = "busystore"
    cachable = False
    now: ClassVar[int] = 0
    most: ClassVar[int] = 0
    """Of all instances: another one may read than the one that is wrapped."""

    def __init__(self, store: Any = "one", **options: Any) -> None:
        super().__init__(store=store, **options)

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": 1, "type": "file"}

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        kind = BusyFileSystem
        kind.now += 1
        kind.most = max(kind.most, kind.now)
        await asyncio.sleep(0)  # all that may begin have begun when the first goes on
        kind.now -= 1
        return b"x"[start:end]


def folder(fs: Any, path: str = "bucket/prefix") -> Any:
    return fsspec.filesystem("dir", path=path, fs=fs, skip_instance_cache=True)


def reference(fs: Any) -> Any:
    files = {name: [f"busystore://bucket/{name}"] for name in NAMES}
    return fsspec.filesystem("reference", fo=files, fs={"busystore": fs, None: fs}, skip_instance_cache=True)


@pytest.mark.parametrize("make", [folder, reference])
def test_a_limit_is_of_all_files(make: Any) -> None:
    BusyFileSystem.most = 0
    fs = headrace.wrap(make(BusyFileSystem()), scheduler="standard", io_parallelism=2)
    assert fs.backend_name == "fsspec-async"
    assert [bytes(one) for one in fs.cat_ranges(NAMES, 0, 1)] == [b"x"] * len(NAMES)
    assert BusyFileSystem.most == 2
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
        assert headrace.wrap(fs).channel.backend.device(path) == plain.device("bucket/a"), path
    other = headrace.wrap(folder(store, "other/prefix")).channel.backend
    assert other.device("a") == plain.device("other/a") != plain.device("bucket/a")


class Shouting(DirFileSystem):
    """A folder that reads in its own way."""

    async def _cat_file(self, path: str, *args: Any, **options: Any) -> bytes:
        found: bytes = await super()._cat_file(path, *args, **options)
        return found.upper()


def test_a_folder_that_reads_in_its_own_way_is_left_to_itself() -> None:
    inner = folder(Shouting(path="bucket", fs=BusyFileSystem(), skip_instance_cache=True), "/")
    assert headrace.wrap(inner).cat_file("a", 0, 1) == b"X"


def on_the_web(url: str, kind: str) -> Any:
    """Wrap an HTTP filesystem that is awaited by its program, and by nobody else."""
    fs = HTTPFileSystem(asynchronous=True, skip_instance_cache=True)
    more = {"asynchronous": True, "skip_instance_cache": True}
    if kind == "dir":
        return fs, DirFileSystem(path=url, fs=fs, **more)
    if kind == "reference":
        return fs, fsspec.filesystem("reference", fo={"a": [f"{url}/a"]}, fs=fs, **more)
    files = fsspec.filesystem("reference", fo={"a": [f"{url}/a"]}, fs=fs, **more)
    return fs, Shouting(path="/", fs=files, **more)


@pytest.mark.parametrize("kind", ["dir", "reference", "a wrapped wrapper"])
@pytest.mark.parametrize("who_first", ["program", "headrace"])
def test_what_is_awaited_by_its_program_is_read_beside_it(
    kind: str, who_first: str, scheduled_mode: str
) -> None:
    """Its session is of the program's loop: reads have one of their own."""
    data = b"ABCDEFGHIJ" * 10

    async def program(url: str) -> None:
        inner, target = on_the_web(url, kind)
        fs = headrace.HeadraceFileSystem(fs=target, asynchronous=True, scheduler=scheduled_mode, retries=0)
        if who_first == "program":
            assert await target._cat_file("a", 0, 10) == data[:10]
        assert await fs._cat_file("a", 0, 10) == data[:10]
        assert await fs._cat_ranges(["a"] * 2, [5, 50], [9, 59]) == [data[5:9], data[50:59]]
        assert (await fs._info("a"))["size"] == len(data)
        assert await target._cat_file("a", 3, 7) == data[3:7]
        await (await inner.set_session()).close()

    with PlainServer(lambda asked: ranged(asked, data, ETag='"one"')) as server:
        asyncio.run(program(server.url))


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


class WholeFileSystem(AsyncFileSystem):
    """It has no ranges, and says of none that it is not what was asked for."""

    protocol = "whole"
    cachable = False

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": 100, "type": "file"}

    async def _cat_file(self, path: str, **_: Any) -> bytes:
        return bytes(range(100))


def test_more_than_was_asked_for_is_no_range(scheduled_mode: str) -> None:
    """It is the beginning of the file; where that was asked for, it is as good."""
    fs = headrace.wrap(WholeFileSystem(), scheduler=scheduled_mode, retries=0)
    assert fs.cat_file("a") == bytes(range(100))
    assert fs.cat_file("a", 0, 10) == bytes(range(10))
    with fs.open("a", cache_type="none") as file:
        assert file.read() == bytes(range(100))
        assert file.seek(5) == 5
        with pytest.raises(OSError, match="returned 100 bytes for a range of 10"):
            file.read(10)
    with pytest.raises(OSError, match="returned 100 bytes"):
        fs.cat_file("a", 20, 30)
    with pytest.raises(OSError, match="returned 100 bytes for a range of 10"):
        fs.cat_file("a", 20, 30, an_option=1)
    assert fs.cat_file("a", 20, 20) == fs.cat_file("a", 20, 20, an_option=1) == b""
    for answers in (
        fs.cat(["a", "b"], start=20, end=30, on_error="return"),
        asyncio.run(fs._cat(["a", "b"], start=20, end=30, on_error="return")),
    ):
        assert [type(answer) for answer in answers.values()] == [OSError, OSError]
    assert fs.cat(["a", "b"], end=10) == {"a": bytes(range(10)), "b": bytes(range(10))}


def test_more_than_was_asked_for_is_no_part_of_a_file(scheduled_mode: str) -> None:
    """What a reference calls a file begins elsewhere than what is behind it."""
    target = fsspec.filesystem(
        "reference", fo={"a": ["whole://x", 20, 10]}, fs=WholeFileSystem(), skip_instance_cache=True
    )
    fs = headrace.wrap(target, scheduler=scheduled_mode, retries=0)
    for read in (
        lambda: fs.cat_file("a", 0, 10),
        lambda: fs.cat_file("a", end=10),
        lambda: fs.cat_ranges(["a"], [0], [10], on_error="raise"),
        lambda: fs.open("a").read(),
    ):
        with pytest.raises(OSError, match="returned 100 bytes for a range of 10"):
            read()


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
