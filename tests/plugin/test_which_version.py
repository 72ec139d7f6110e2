"""Options that say which version of a file is meant reach what reads it."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.memory import MemoryFile
from pyarrow.fs import FSSpecHandler, PyFileSystem
from s3fs import S3FileSystem

import headrace

OLD, NEW = b"old bytes", b"the new bytes"
VERSIONS = {None: NEW, "1": OLD, "2": NEW}


class Versioned(AsyncFileSystem):
    """Keeps two versions; files of its own know them by another name, too."""

    protocol = "versioned"
    cachable = False

    async def _info(self, path: str, version_id: str | None = None, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(VERSIONS[version_id]), "type": "file"}

    async def _ls(self, path: str, **_: Any) -> list[dict[str, Any]]:
        return [await self._info(path)]

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, version_id: str | None = None
    ) -> bytes:
        return VERSIONS[version_id][start:end]

    def _open(self, path: str, *_: Any, generation: str | None = None, **__: Any) -> Any:
        return MemoryFile(None, path, VERSIONS[generation])


@pytest.fixture
def fs(mode: str) -> headrace.HeadraceFileSystem:
    return headrace.HeadraceFileSystem(fs=Versioned(), scheduler=mode)


def test_of_a_file_by_path(fs: headrace.HeadraceFileSystem) -> None:
    assert fs.cat_file("a", version_id="1") == OLD
    assert fs.cat_file("a", 1, 4, version_id="1") == OLD[1:4]
    assert fs.cat("a", version_id="1") == OLD
    assert fs.cat(["a", "b"], version_id="1") == {"a": OLD, "b": OLD}
    assert fs.cat_ranges(["a", "b"], [0, -3], [3, None], version_id="1") == [OLD[:3], OLD[-3:]]
    assert fs.cat_ranges(["a"], [0], [3]) == [NEW[:3]]


@pytest.mark.parametrize("how", ["fsspec", "folder", "arrow"])
def test_an_open_file_of_a_filesystem_that_knows_versions_outlives_them(
    s3_server: dict[str, Any], scheduled_mode: str, how: str
) -> None:
    """As one of s3fs's own does: the version it was opened of is still there."""
    bucket = f"versions-{how}-{scheduled_mode}"
    options = {**s3_server, "version_aware": True, "skip_instance_cache": True}
    target = S3FileSystem(**options)
    target.call_s3("create_bucket", Bucket=bucket)
    target.call_s3("put_bucket_versioning", Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    path = f"{bucket}/a.parquet"
    target.pipe_file(path, OLD)
    wrapped = DirFileSystem(bucket, target, skip_instance_cache=True) if how == "folder" else target
    fs = headrace.HeadraceFileSystem(fs=wrapped, scheduler=scheduled_mode)
    by_arrow = PyFileSystem(FSSpecHandler(fs)).open_input_file
    with by_arrow(path) if how == "arrow" else fs.open("a.parquet" if how == "folder" else path) as file:
        S3FileSystem(**options).pipe_file(path, NEW)
        assert file.read(3) == OLD[:3]
        S3FileSystem(**options).rm(path)
        assert file.read() == OLD[3:]


def test_what_no_read_takes_is_an_error(scheduled_mode: str) -> None:
    fs = headrace.HeadraceFileSystem(fs=Versioned(), scheduler=scheduled_mode)
    (answer,) = fs.cat_ranges(["a"], [0], [3], colour="red")
    assert isinstance(answer, TypeError)
    with pytest.raises(TypeError, match="colour"):
        fs.cat_ranges(["a"], [0], [3], on_error="raise", colour="red")


def test_of_a_file_that_is_opened(scheduled_mode: str) -> None:
    fs = headrace.HeadraceFileSystem(fs=Versioned(), scheduler=scheduled_mode)
    with fs.open("a", version_id="1") as file:
        assert isinstance(file, headrace.HeadraceFile)
        assert (file.size, file.read()) == (len(OLD), OLD)
        assert file.info()["size"] == len(OLD)
    assert file.details["size"] == len(OLD)
    with fs.open("a") as file:
        assert file.read() == NEW
    with fs.open("a", fill_cache=False) as file:
        assert file.read() == NEW


def test_of_a_file_that_is_pickled(scheduled_mode: str) -> None:
    fs = headrace.HeadraceFileSystem(fs=Versioned(), scheduler=scheduled_mode)
    with fs.open("a", version_id="1") as file:
        file.seek(4)
        assert pickle.loads(pickle.dumps(file)).read() == OLD[4:]


class SyncVersioned(AbstractFileSystem):
    """Keeps two versions, as git does."""

    protocol = "sync-versioned"
    cachable = False

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(NEW), "type": "file"}

    def _open(self, path: str, *_: Any, ref: str | None = None, **__: Any) -> Any:
        return MemoryFile(None, path, VERSIONS[ref])


def test_of_a_file_of_a_sync_filesystem_that_is_pickled(scheduled_mode: str) -> None:
    fs = headrace.HeadraceFileSystem(fs=SyncVersioned(), scheduler=scheduled_mode)
    with fs.open("a", ref="1") as file:
        assert file.read(4) == OLD[:4]
        with pickle.loads(pickle.dumps(file)) as again:
            assert again.read() == OLD[4:]


class ToldByInfo(SyncVersioned):
    def info(self, path: str, ref: str | None = None) -> dict[str, Any]:
        return {"name": path, "size": len(VERSIONS[ref]), "type": "file"}


class ToldByListing(SyncVersioned):
    """Has fsspec's `info`, as GitHub's has, which hands on all that it is given."""

    info = AbstractFileSystem.info

    def ls(self, path: str, detail: bool = True, ref: str | None = None) -> Any:
        return [{"name": f"{path}/a".lstrip("/"), "size": len(VERSIONS[ref]), "type": "file"}]


class ToldNothing(SyncVersioned):
    def info(self, path: str) -> dict[str, Any]:
        return {"name": path, "size": len(NEW), "type": "file"}


@pytest.mark.parametrize(("kind", "told"), [(ToldByInfo, OLD), (ToldByListing, OLD), (ToldNothing, NEW)])
@pytest.mark.parametrize("is_folder", [False, True])
def test_info_of_a_file_of_a_sync_filesystem_is_asked_what_it_knows(
    kind: type[SyncVersioned], told: bytes, is_folder: bool, scheduled_mode: str
) -> None:
    target = DirFileSystem(path="folder", fs=kind()) if is_folder else kind()
    fs = headrace.HeadraceFileSystem(fs=target, scheduler=scheduled_mode)
    with fs.open("a", ref="1", unknown=True) as file:
        assert file.read() == OLD
        assert file.info()["size"] == file.details["size"] == len(told)


def test_what_only_the_filesystems_own_files_know(fs: headrace.HeadraceFileSystem) -> None:
    with fs.open("a", generation="1") as file:
        assert file.read() == OLD
