"""Writes pass by the scheduler and count in their store's window while they are under way."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import threading
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest

import headrace
from headrace import uploads
from headrace.core.uploads import UPLOAD_BYTES
from headrace.drivers.engine import Engine
from headrace.testing import Fault, ObjectServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from headrace.testing import ServedRequest

WAIT_S = 30.0
PART_BYTES = 5 << 20  # S3's least
CONTENT = bytes(UPLOAD_BYTES + 1)


class HoldsWrites:
    """Has PUT wait at the server until it is let go."""

    def __init__(self, server: ObjectServer) -> None:
        self.has_come = threading.Event()
        self.may_go: Future[None] = Future()
        server.script = self

    def __call__(self, request: ServedRequest) -> Fault | None:
        if request.method != "PUT":
            return None
        self.has_come.set()
        return Fault(until=self.may_go)

    @contextlib.contextmanager
    def during(self, write: Callable[..., object], *args: object) -> Iterator[None]:
        """Write on a thread; the PUT waits inside, and is over behind."""
        writing = threading.Thread(target=write, args=args)
        writing.start()
        try:
            assert self.has_come.wait(WAIT_S)
            yield
        finally:
            self.may_go.set_result(None)
            writing.join()


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.put("bucket", "key", b"content")
        yield server


def filesystem(server: ObjectServer, mode: str, engine: str = "fsspec") -> headrace.HeadraceFileSystem:
    return headrace.HeadraceFileSystem(
        target_protocol="s3", target_options=server.storage_options(), scheduler=mode, cloud_engine=engine
    )


def uploading_ops(fs: headrace.HeadraceFileSystem) -> list[int]:
    return [store.uploading_ops for store in fs.stats().devices if store.uploading_ops]


def by_pipe_file(fs: Any, path: str, local: str) -> None:
    fs.pipe_file(path, CONTENT)


def by_name(fs: Any, path: str, local: str) -> None:
    fs.pipe_file(path=f"s3://{path}", data=CONTENT)


def by_pipe(fs: Any, path: str, local: str) -> None:
    fs.pipe({path: CONTENT})


def by_put(fs: Any, path: str, local: str) -> None:
    fs.put(local, path)


def by_put_file(fs: Any, path: str, local: str) -> None:
    fs.put_file(local, path)


def by_coroutine(fs: Any, path: str, local: str) -> None:
    asyncio.run(fs._pipe_file(path, CONTENT))


def by_open(fs: Any, path: str, local: str) -> None:
    with fs.open(path, "wb") as file:
        file.write(CONTENT)


def by_text(fs: Any, path: str, local: str) -> None:
    with fs.open(path, "w") as file:
        file.write(CONTENT.decode())


WAYS = [by_pipe_file, by_name, by_pipe, by_put, by_put_file, by_coroutine, by_open, by_text]


@pytest.mark.parametrize("way", WAYS)
def test_bytes_under_way_count(server: ObjectServer, tmp_path: Path, way: Callable[..., None]) -> None:
    fs = filesystem(server, "standard")
    local = tmp_path / "local"
    local.write_bytes(CONTENT)
    held = HoldsWrites(server)
    with held.during(way, fs, "bucket/new", str(local)):
        assert uploading_ops(fs) == [2]
        assert fs.cat_file("bucket/key", start=0, end=3) == b"con", "reads go on beside it"
    assert uploading_ops(fs) == []
    assert server.read("bucket", "new") == CONTENT


@pytest.mark.parametrize("engine", ["fsspec", "obstore"])
def test_on_both_engines_in_every_mode(server: ObjectServer, mode: str, engine: str) -> None:
    fs = filesystem(server, mode, engine)
    held = HoldsWrites(server)
    with held.during(fs.pipe_file, "bucket/new", CONTENT):
        assert uploading_ops(fs) == ([] if mode == "off" else [2])
    assert uploading_ops(fs) == []


def test_each_part_of_a_long_file_counts(server: ObjectServer) -> None:
    fs = filesystem(server, "standard")
    held = HoldsWrites(server)
    with fs.open("bucket/long", "wb", block_size=PART_BYTES) as file:
        assert uploading_ops(fs) == [], "an open file is no write"
        with held.during(file.write, bytes(PART_BYTES + 1)):
            assert uploading_ops(fs) == [1]
        assert uploading_ops(fs) == []
    assert len(server.read("bucket", "long")) == PART_BYTES + 1


@pytest.mark.parametrize("compression", ["gzip", "bz2", "xz"])
def test_what_is_compressed_on_its_way_counts(server: ObjectServer, compression: str) -> None:
    fs = filesystem(server, "standard")
    held = HoldsWrites(server)

    def write() -> None:
        with fs.open("bucket/packed", "wb", compression=compression) as file:
            file.write(b"content")

    with held.during(write):
        assert uploading_ops(fs) == [1]
    with fs.open("bucket/packed", "rb", compression=compression) as file:
        assert file.read() == b"content"


def test_a_write_that_fails_counts_no_more(server: ObjectServer) -> None:
    fs = filesystem(server, "standard")
    server.script = lambda request: Fault("expired_token") if request.method == "PUT" else None
    with pytest.raises(PermissionError):
        fs.pipe_file("bucket/new", CONTENT)
    with pytest.raises(TypeError):
        fs.pipe_file("bucket/new")
    with pytest.raises(FileNotFoundError):
        fs.put_file("/no/such/file", "bucket/new")
    assert uploading_ops(fs) == []


def test_a_write_that_is_interrupted_while_it_ends_counts_no_more(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = filesystem(server, "standard")
    cut: list[bool] = []

    def interrupted(engine: Engine) -> Any:
        if not cut and any(store.room.uploads.ops for store in engine.hub.schedulers.values()):
            cut.append(True)
            raise KeyboardInterrupt
        return engine._lock

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "lock", property(interrupted))
        with pytest.raises(KeyboardInterrupt):
            fs.pipe_file("bucket/new", b"content")
    gc.collect()
    assert fs.cat_file("bucket/key", start=0, end=3) == b"con"
    assert uploading_ops(fs) == []


def test_a_handler_that_interrupts_a_section_writes_uncounted(server: ObjectServer) -> None:
    server.create_bucket("other")
    fs = filesystem(server, "standard")
    file = fs.open("bucket/part", "wb")
    file.write(b"part")
    engine = fs.channel.engine
    with engine.lock, engine:  # where a signal came, or a finaliser
        fs.pipe_file("bucket/whole", b"whole")
        fs.pipe_file("other/new", b"new")  # a store that was not met before
        file.close()
    assert (server.read("bucket", "whole"), server.read("bucket", "part")) == (b"whole", b"part")
    assert server.read("other", "new") == b"new"
    assert fs.cat_file("bucket/key", start=0, end=3) == b"con"
    assert uploading_ops(fs) == []


def test_a_write_that_ends_where_a_section_was_interrupted_is_counted_no_more(server: ObjectServer) -> None:
    fs = filesystem(server, "standard")
    engine = fs.channel.engine
    write = uploads.counted(fs, "pipe_file", ("bucket/new", b"new"), {})
    write.__enter__()
    assert uploading_ops(fs) == [1]
    with engine.lock, engine:  # where the coroutine of a write that nobody awaits any more is collected
        write.__exit__(None, None, None)
    assert uploading_ops(fs) == []


def test_the_file_is_the_wrapped_filesystems_own(server: ObjectServer) -> None:
    fs = filesystem(server, "standard")
    own = type(fs.target.open("bucket/a", "wb"))
    file = fs.open("bucket/b", "wb")
    assert isinstance(file, own)
    assert type(file).__qualname__ == own.__name__
    assert type(fs.open("bucket/key", "rb")).__name__ == "HeadraceFile"


def test_a_file_that_nobody_closed_is_closed_when_it_goes(server: ObjectServer) -> None:
    fs = filesystem(server, "standard")
    file = fs.open("bucket/dropped", "wb")
    file.write(b"written")
    gone = weakref.ref(file)
    gc.disable()
    try:
        del file
        assert gone() is None, "no cycle keeps it"
    finally:
        gc.enable()
    assert server.read("bucket", "dropped") == b"written"


def test_a_filesystem_that_wrote_is_pickled_as_before(server: ObjectServer) -> None:
    fs = filesystem(server, "standard")
    fs.pipe_file("bucket/new", b"new")
    assert pickle.loads(pickle.dumps(fs)).cat_file("bucket/new") == b"new"
