"""The ranges of one open file are of one version; a replaced object is an error, never a mixture."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest
from fsspec.implementations.dirfs import DirFileSystem
from s3fs import S3FileSystem

import headrace
from headrace.backends._obstore_stores import WORTH_OPS
from headrace.errors import BackendError, ObjectChangedError
from headrace.testing import Fault, ObjectServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.testing import ServedRequest

OLD, NEW = b"a" * 400_000, b"b" * 400_000


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.put("bucket", "folder/key", OLD)
        yield server


def filesystem(
    server: ObjectServer, engine: str, mode: str = "standard", **options: Any
) -> headrace.HeadraceFileSystem:
    return headrace.HeadraceFileSystem(
        target_protocol="s3",
        target_options=server.storage_options(),
        cloud_engine=engine,
        scheduler=mode,
        **options,
    )


def in_folder(
    server: ObjectServer, engine: str, mode: str = "standard", **options: Any
) -> headrace.HeadraceFileSystem:
    """Read ``bucket/folder`` through ``dir``."""
    target = S3FileSystem(**server.storage_options(), skip_instance_cache=True)
    folder = DirFileSystem("bucket/folder", target, skip_instance_cache=True)
    return headrace.HeadraceFileSystem(fs=folder, cloud_engine=engine, scheduler=mode, **options)


def methods(server: ObjectServer) -> list[str]:
    return [request.method for request in server.requests]


def test_a_replaced_object_is_an_error_that_names_both_versions(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str
) -> None:
    fs = filesystem(server, cloud_engine, scheduled_mode)
    file = fs.open("bucket/folder/key", cache_type="none")
    assert file.read(10) == OLD[:10]
    old = server.requests[-1].headers["If-Match"]
    new = server.replace("bucket", "folder/key", NEW)
    with pytest.raises(ObjectChangedError) as caught:
        file.read(10)
    assert (caught.value.path, caught.value.expected, caught.value.found) == ("bucket/folder/key", old, new)
    assert fs.stats().in_flight_ops == 0


@pytest.mark.parametrize("options", [{}, {"hedge": True}])
def test_folders_of_one_store_share_its_connections(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str, options: dict[str, Any]
) -> None:
    target = S3FileSystem(**server.storage_options(), skip_instance_cache=True)
    server.put("bucket", "other/in/key", NEW)
    places = [("bucket/folder", "key", OLD), ("bucket/other", "in/key", NEW), ("bucket", "other/in/key", NEW)]
    kept = []
    for folder, key, data in places:
        fs = headrace.HeadraceFileSystem(
            fs=DirFileSystem(folder, target, skip_instance_cache=True),
            cloud_engine=cloud_engine,
            scheduler=scheduled_mode,
            **options,
        )
        kept.append(fs)
        assert fs.cat_file(key, 10, 20) == data[10:20]
    assert len({id(fs.channel.driver) for fs in kept}) == 1
    # A native client has its connection back a moment after the answer, and may have made another by then. It
    # would be one for each if they shared none.
    most = 2 if cloud_engine == "obstore" else 1
    assert 1 <= server.connections_made <= most < len(places)


@pytest.mark.parametrize("options", [{}, {"hedge": True}])
def test_a_replaced_object_in_a_folder_is_an_error(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str, options: dict[str, Any]
) -> None:
    """Through `dir` as without it, by the engine that was asked for."""
    fs = in_folder(server, cloud_engine, scheduled_mode, **options)
    assert fs.channel.backend.name == filesystem(server, cloud_engine).channel.backend.name
    with fs.open("key", cache_type="none") as file:
        assert file.read(10) == OLD[:10]
        server.replace("bucket", "folder/key", NEW)
        with pytest.raises(ObjectChangedError):
            file.read(10)
    with fs.open("key") as file:
        assert file.read() == NEW


def test_what_an_engine_cannot_read_in_a_folder_is_refused(server: ObjectServer) -> None:
    """As it is without the folder: the other engine reads what nobody asked it for."""
    pytest.importorskip("obstore")
    target = S3FileSystem(**server.storage_options(), version_aware=True, skip_instance_cache=True)
    for fs in (target, DirFileSystem("bucket/folder", target, skip_instance_cache=True)):
        with pytest.raises(BackendError, match="cannot read this filesystem"):
            _ = headrace.wrap(fs, cloud_engine="obstore").channel


def test_the_version_is_the_one_at_open_also_for_the_first_read(
    server: ObjectServer, cloud_engine: str
) -> None:
    fs = filesystem(server, cloud_engine)
    file = fs.open("bucket/folder/key")
    server.replace("bucket", "folder/key", NEW)
    with pytest.raises(ObjectChangedError):
        file.read()


def test_the_version_comes_from_a_listing_without_another_request(
    server: ObjectServer, cloud_engine: str
) -> None:
    fs = filesystem(server, cloud_engine)
    fs.find("bucket/folder", detail=True)
    server.forget()
    file = fs.open("bucket/folder/key")
    assert file.read(5) == OLD[:5]
    assert methods(server) == ["GET"]
    assert "If-Match" in server.requests[0].headers


def test_opened_again_it_is_the_new_one(server: ObjectServer, cloud_engine: str) -> None:
    """The listing that told of the old version is forgotten with the error."""
    fs = filesystem(server, cloud_engine)
    fs.find("bucket/folder", detail=True)
    server.replace("bucket", "folder/key", NEW)
    with pytest.raises(ObjectChangedError):
        fs.open("bucket/folder/key").read()
    assert fs.open("bucket/folder/key").read() == NEW


def test_a_store_that_knows_no_conditions_is_sent_none(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str
) -> None:
    """``local_expiry_check``: versions are compared, and no store of a single one is made."""
    target = S3FileSystem(**server.storage_options(), local_expiry_check=True, skip_instance_cache=True)
    fs = headrace.wrap(target, cloud_engine=cloud_engine, scheduler=scheduled_mode, prefetch="off")
    with fs.open("bucket/folder/key", cache_type="none") as file:
        for k in range(2 * WORTH_OPS):
            file.seek(1000 * k)
            assert file.read(10) == OLD[:10]
        server.replace("bucket", "folder/key", NEW)
        with pytest.raises(ObjectChangedError):
            file.read(10)
    assert not any("If-Match" in request.headers for request in server.requests)


@pytest.mark.parametrize("is_of_a_folder", [False, True])
@pytest.mark.parametrize("read_bytes", [0, 10])
def test_a_pickled_file_is_of_the_version_that_it_was(
    server: ObjectServer, cloud_engine: str, read_bytes: int, is_of_a_folder: bool
) -> None:
    """Its position and its length are those of that one."""
    fs = in_folder(server, cloud_engine) if is_of_a_folder else filesystem(server, cloud_engine)
    file = fs.open("key" if is_of_a_folder else "bucket/folder/key")
    assert file.read(read_bytes) == OLD[:read_bytes]
    pickled = pickle.dumps(file)
    server.forget()
    assert pickle.loads(pickled).read() == OLD[read_bytes:]
    assert set(methods(server)) == {"GET"}, "its length is not asked for again"
    server.replace("bucket", "folder/key", NEW * 2)
    with pytest.raises(ObjectChangedError):
        pickle.loads(pickled).read()


def test_a_pickled_file_whose_reads_are_not_checked_is_as_long_as_it_is_now(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is opened without a scheduler."""
    fs = headrace.wrap(S3FileSystem(**server.storage_options(), skip_instance_cache=True))
    with fs.open("bucket/folder/key") as file:
        pickled = pickle.dumps(file)
    server.replace("bucket", "folder/key", NEW * 2)
    try:
        with monkeypatch.context() as patch:
            patch.setenv("HEADRACE_SCHEDULER", "off")
            headrace.reload()
            assert pickle.loads(pickled).read() == NEW * 2
    finally:
        headrace.reload()


def test_ranges_of_one_call_are_of_one_version(server: ObjectServer, scheduled_mode: str) -> None:
    """Without an open file the first answer says which."""
    fs = filesystem(server, "fsspec", scheduled_mode, max_gap_bytes=0, io_parallelism=1)

    def script(request: ServedRequest) -> None:
        if request.number == 5:
            server.replace("bucket", "folder/key", NEW)

    server.script = script
    starts = list(range(0, 400_000, 40_000))
    batch = fs.read_ranges("bucket/folder/key", starts, [start + 10 for start in starts])
    assert [bytes(batch[row]) for row in range(5)] == [OLD[:10]] * 5
    assert {type(batch.errors[row]) for row in range(5, 10)} == {ObjectChangedError}
    assert fs.cat_file("bucket/folder/key", start=0, end=10) == NEW[:10], "the next call reads what is there"


def test_ranges_of_an_open_file_are_of_its_version(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str
) -> None:
    """However many there are in one call, from the first on."""
    fs = filesystem(server, cloud_engine, scheduled_mode, max_gap_bytes=0)
    starts = list(range(0, 400_000, 1_000))
    ends = [start + 10 for start in starts]
    with fs.open("bucket/folder/key") as file:
        for _ in range(2):  # natively the second call is of the store that the first was worth
            server.forget()
            assert fs.read_ranges(file, starts, ends).to_pylist() == [OLD[:10]] * 400
            assert methods(server) == ["GET"] * 400
            assert len({request.headers["If-Match"] for request in server.requests}) == 1
        server.forget()

        def script(request: ServedRequest) -> None:
            if request.number == 100:
                server.replace("bucket", "folder/key", NEW)

        server.script = script
        batch = fs.read_ranges(file, starts, ends)
        assert batch.errors
        assert {type(error) for error in batch.errors.values()} == {ObjectChangedError}
        assert {bytes(batch[row]) for row in range(400) if row not in batch.errors} <= {OLD[:10]}
        server.script = None
        batch = fs.read_ranges(file, starts, ends)
        assert {type(error) for error in batch.errors.values()} == {ObjectChangedError}
        assert len(batch.errors) == 400
    assert fs.read_ranges("bucket/folder/key", starts, ends).to_pylist() == [NEW[:10]] * 400
    assert fs.stats().reserved_bytes == 0


def test_a_long_range_is_read_in_parts_of_one_version(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str
) -> None:
    fs = filesystem(server, cloud_engine, scheduled_mode, max_op_bytes=65_536, io_parallelism=1)
    before = fs.stats()
    assert fs.cat_file("bucket/folder/key", start=1, end=390_000) == OLD[1:390_000]
    after = fs.stats()
    assert after.bytes_admitted - before.bytes_admitted == 389_999
    assert after.bytes_delivered - before.bytes_delivered == 389_999
    assert methods(server) == ["GET"] * 6
    assert fs.cat_file("bucket/folder/key", start=10, end=500_000) == OLD[10:], "as plain S3 has it"

    def script(request: ServedRequest) -> None:
        if request.number == 3:
            server.replace("bucket", "folder/key", NEW)

    server.forget()
    server.script = script
    with pytest.raises(ObjectChangedError):
        fs.cat_file("bucket/folder/key", start=0, end=400_000)
    server.script = None
    assert fs.cat_file("bucket/folder/key", start=0, end=400_000) == NEW
    assert fs.stats().reserved_bytes == 0


@pytest.mark.parametrize("end", [1 << 36, 1 << 45, 2**63 - 1])
def test_a_range_that_means_the_end_takes_no_memory_for_more(
    server: ObjectServer, cloud_engine: str, end: int
) -> None:
    fs, key = filesystem(server, cloud_engine), "bucket/folder/key"
    assert fs.cat_ranges([key, key], [0, 100], [3, end]) == [OLD[:3], OLD[100:]]
    assert bytes(fs.read_ranges(key, [399_000], [end])[0]) == OLD[399_000:]
    assert fs.cat_file(key, start=399_990, end=end) == OLD[399_990:]


def test_a_range_that_ends_before_it_starts_is_refused(server: ObjectServer, cloud_engine: str) -> None:
    fs = filesystem(server, cloud_engine)
    with pytest.raises(ValueError, match="end 3 is before start 10"):
        fs.cat_file("bucket/folder/key", start=10, end=3)
    assert not server.requests


@pytest.mark.parametrize("kind", ["break_body", "truncate"])
def test_a_body_is_not_resumed_with_another_version(server: ObjectServer, kind: Any) -> None:
    fs = filesystem(server, "fsspec")

    def script(request: ServedRequest) -> Fault | None:
        if request.number == 0:
            return Fault(kind, body_bytes=100_000)
        if request.number == 1:
            server.replace("bucket", "folder/key", NEW)
        return None

    server.script = script
    with pytest.raises(ObjectChangedError):
        fs.cat_file("bucket/folder/key", start=0, end=400_000)
    assert fs.cat_file("bucket/folder/key", start=0, end=400_000) == NEW


def test_a_store_that_ignores_the_condition_is_found_out(server: ObjectServer, cloud_engine: str) -> None:
    """The version of each answer is compared, too: one that names no version at open, then another."""
    fs = filesystem(server, cloud_engine)
    file = fs.open("bucket/folder/key", cache_type="none", size=len(OLD))
    assert file.read(10) == OLD[:10]
    file._source.etag = 'W/"weak"'  # never sent as a condition
    with pytest.raises(ObjectChangedError, match="weak"):
        file.read(10)


def test_a_range_that_the_store_ignores_is_an_error(server: ObjectServer) -> None:
    fs = filesystem(server, "fsspec")
    server.script = lambda request: Fault("whole_object") if request.method == "GET" else None
    with pytest.raises(OSError, match="ignored the range"):
        fs.cat_file("bucket/folder/key", start=10, end=20)


def test_whole_files_are_resumed_too(server: ObjectServer, scheduled_mode: str) -> None:
    fs = filesystem(server, "fsspec", scheduled_mode)
    server.script = lambda request: Fault("truncate", body_bytes=100_000) if request.number == 0 else None
    assert fs.cat_file("bucket/folder/key") == OLD
    assert [request.range for request in server.requests] == [None, "bytes=100000-"]
    assert fs.cat_file("bucket/folder/key", start=-5) == OLD[-5:]


@pytest.mark.parametrize("mode", ["lite", "standard", "off"])
def test_a_slash_at_the_end_is_part_of_a_name(server: ObjectServer, cloud_engine: str, mode: str) -> None:
    """As s3fs has it for reads by path: one object is never taken for another."""
    server.put("bucket", "twins", OLD[:10])
    server.put("bucket", "twins/", NEW[:10])
    server.put("bucket", "marker/", b"")
    fs = filesystem(server, cloud_engine, mode)
    for path in ("bucket/twins/", "s3://bucket/twins/", "headrace://bucket/twins/"):
        assert fs.cat_file(path) == NEW[:10]
        assert fs.cat_file(path, 2, 4) == NEW[2:4]
        assert fs.cat_ranges([path, "bucket/twins"], [0, 0], [4, 4]) == [NEW[:4], OLD[:4]]
        assert fs.read_ranges(path, [0], [4]).to_pylist() == [NEW[:4]]
    assert fs.cat_file("bucket/twins") == OLD[:10]
    assert fs.cat_file("bucket/marker/") == b""


def test_an_empty_range_is_not_asked_for(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str
) -> None:
    """The store would take "bytes=5-4" for no range, and send all of the object."""
    fs, path = filesystem(server, cloud_engine, scheduled_mode), "bucket/folder/key"
    assert fs.cat_file(path, 5, 5) == b""
    assert fs.cat([path, "bucket/twin"], start=5, end=5) == {path: b"", "bucket/twin": b""}
    assert fs.cat_ranges([path], [5], [5]) == [b""]
    assert server.requests == []
    with pytest.raises(ValueError, match="largest offset"):
        fs.cat_file(path, 1 << 63, 1 << 63)
    assert fs.cat_file(path, 5, 6) == OLD[5:6]
