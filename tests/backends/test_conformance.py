"""Every backend that headrace ships passes the suite that third parties' backends pass."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.http import HTTPFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from modes import BUCKET
from s3fs import S3FileSystem

from headrace.backends import _linux as linux
from headrace.backends import _rings
from headrace.backends._files import LocalSource
from headrace.backends._folders import AsyncInFolder
from headrace.backends.abc import Backend, beneath_folders
from headrace.backends.fsspec_async import AsyncFsspecBackend
from headrace.backends.fsspec_sync import SyncBackend
from headrace.backends.local import LocalBackend
from headrace.backends.memory import MemoryBackend
from headrace.backends.obstore import ObstoreBackend
from headrace.backends.uring import UringBackend
from headrace.testing import BackendTests, ObjectServer


def _put_file(tmp_path: Path, name: str, data: bytes) -> str:
    (tmp_path / name).write_bytes(data)
    return str(tmp_path / name)


class TestLocal(BackendTests):
    backend_class = LocalBackend

    def make_target(self, tmp_path: Path) -> Any:
        return LocalFileSystem()

    def put(self, target: Any, tmp_path: Path, name: str, data: bytes) -> str:
        return _put_file(tmp_path, name, data)

    def failing_source(self, backend: Backend, path: str, missing: str) -> Any:
        return LocalSource(path)


class TestLocalWithoutNowait(TestLocal):
    """As on a system, or in a sandbox, that has neither preadv2 nor openat2."""

    @pytest.fixture(autouse=True)
    def _without(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(linux, "HAS_NOWAIT", False)
        monkeypatch.setattr(linux, "_LIBC", None)
        monkeypatch.setattr(linux, "_has_own_numbers", False)


class TestUring(TestLocal):
    """Falls back to what `local` does where there is no io_uring."""

    backend_class = UringBackend


class Direct(UringBackend):
    """Reads around the page cache."""

    def __init__(self, target: Any) -> None:
        super().__init__(target)
        self._is_direct = True


class TestUringDirect(TestUring):
    backend_class = Direct


class TestUringOfOneEntry(TestUring):
    """Queues that are always full."""

    @pytest.fixture(autouse=True)
    def _shallow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("headrace.backends.uring.DEFAULT_DEPTH", 1)


class TestUringWithoutRings(TestUring):
    """As in a thread that came when there were too many, or under a limit of lockable memory."""

    @pytest.fixture(autouse=True)
    def _without(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_rings.Rings, "mine", lambda *_args, **_options: None)


class TestMemory(BackendTests):
    backend_class = MemoryBackend

    def make_target(self, tmp_path: Path) -> Any:
        return MemoryFileSystem()

    def put(self, target: Any, tmp_path: Path, name: str, data: bytes) -> str:
        # One store for the process: the folder of this very test keeps its files apart.
        path = f"{tmp_path}/{name}"
        target.pipe_file(path, data)
        return path

    def failing_source(self, backend: Backend, path: str, missing: str) -> Any:
        backend.target.pipe_file(missing, b"soon gone")
        source = backend.open(missing)
        io.BytesIO.close(source)  # its own close keeps the bytes
        return source


class TestSync(BackendTests):
    backend_class = SyncBackend

    def make_target(self, tmp_path: Path) -> Any:
        return DirFileSystem(str(tmp_path), LocalFileSystem(), skip_instance_cache=True)

    def put(self, target: Any, tmp_path: Path, name: str, data: bytes) -> str:
        _put_file(tmp_path, name, data)
        return name


class TestSyncOfAThreadSafeClass(TestSync):
    def make_target(self, tmp_path: Path) -> Any:
        return LocalFileSystem()

    def put(self, target: Any, tmp_path: Path, name: str, data: bytes) -> str:
        return _put_file(tmp_path, name, data)


class StoreFileSystem(AsyncFileSystem):
    """Files of a dictionary, read on an event loop; a read past the end is an error, as in S3."""

    protocol = "backendstore"
    cachable = False
    files: ClassVar[dict[str, bytes]] = {}
    loops: ClassVar[set[int]] = set()

    async def _info(self, path: str, **_kwargs: Any) -> dict[str, Any]:
        return {"name": path, "size": len(self._file(path)), "type": "file"}

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_kwargs: Any
    ) -> bytes:
        self.loops.add(threading.get_ident())
        data = self._file(path)
        if start is not None and start >= len(data) and start != end:
            raise OSError(22, "the requested range is not satisfiable", path)
        return data[start:end]

    def _file(self, path: str) -> bytes:
        path = self._strip_protocol(path)
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]


class TestAsync(BackendTests):
    backend_class = AsyncFsspecBackend
    many_ops = 1000

    def make_target(self, tmp_path: Path) -> Any:
        return StoreFileSystem()

    def put(self, target: Any, tmp_path: Path, name: str, data: bytes) -> str:
        path = target._strip_protocol(f"{tmp_path}/{name}")
        StoreFileSystem.files[path] = data
        return path


class FolderBackend(AsyncInFolder):  # type: ignore[misc]
    """What the registry makes of a folder, and of the store beneath."""

    name, rank, defaults = AsyncFsspecBackend.name, AsyncFsspecBackend.rank, AsyncFsspecBackend.defaults
    serves = AsyncFsspecBackend.serves

    def __init__(self, folder: Any) -> None:
        super().__init__(folder, AsyncFsspecBackend(beneath_folders(folder)))


class TestAsyncOnAForeignLoop(TestAsync):
    """A filesystem that was given what belongs to its loop stays there; in a folder, too."""

    backend_class = FolderBackend

    def make_target(self, tmp_path: Path) -> Any:
        store = StoreFileSystem(given=asyncio.Lock())
        return DirFileSystem(str(tmp_path), store, skip_instance_cache=True)

    def put(self, target: Any, tmp_path: Path, name: str, data: bytes) -> str:
        super().put(target.fs, tmp_path, name, data)
        return name


class TestObstore(BackendTests):
    """Against moto's server, which says what S3 would."""

    backend_class = ObstoreBackend
    many_ops = 300
    storage: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _server(self, s3_server: dict[str, object]) -> None:
        self.storage.update(s3_server)

    def make_target(self, tmp_path: Path) -> Any:
        return S3FileSystem(**self.storage, skip_instance_cache=True)

    def put(self, target: Any, tmp_path: Path, name: str, data: bytes) -> str:
        path = f"{BUCKET}{tmp_path}/{name}"
        target.pipe_file(path, data)
        return path


class TestAsyncS3(TestObstore):
    """The other engine, on the same server."""

    backend_class = AsyncFsspecBackend


class TestObstoreHttp(BackendTests):
    """Plain HTTP, of a server whose objects need no signature."""

    backend_class = ObstoreBackend
    many_ops = 300
    server: ObjectServer

    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        with ObjectServer() as self.server:
            yield

    def make_target(self, tmp_path: Path) -> Any:
        return HTTPFileSystem(skip_instance_cache=True)

    def put(self, target: Any, tmp_path: Path, name: str, data: bytes) -> str:
        key = f"{tmp_path.name}/{name}"
        self.server.put("bucket", key, data)
        return f"{self.server.url}/bucket/{key}"


class TestAsyncHttp(TestObstoreHttp):
    """The other engine, on the same server."""

    backend_class = AsyncFsspecBackend


_SHIPPED = (TestLocal, TestUring, TestMemory, TestSync, TestAsync, TestObstore)


def test_the_suite_is_of_every_backend_that_is_registered() -> None:
    from headrace.backends import registry

    tested = {kind.backend_class for kind in _SHIPPED}
    shipped = [name for name, point in registry.entry_points().items() if point.value.startswith("headrace.")]
    assert {registry.load(name) for name in shipped} == tested
