"""What Arrow asks about a path of an object store: one look where fsspec would take three."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import aiobotocore.session
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.http import HTTPFileSystem

import headrace
from headrace.looks import END_BYTES, Listing
from headrace.testing import Fault, ObjectServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headrace.testing import ServedRequest

    Wait = Callable[[Callable[[], bool]], None]

CONTENT = b"0123456789" * 100
LONG = bytes(range(251)) * 1000
WAIT_S = 20.0


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1, 2, 3]}), sink)
    with ObjectServer() as server:
        server.put("bucket", "blocks", CONTENT)
        server.put("bucket", "long.parquet", LONG)
        for number in range(3):
            server.put("bucket", f"table/{number}.parquet", sink.getvalue().to_pybytes())
        yield server


def made(server: ObjectServer, **options: Any) -> headrace.HeadraceFileSystem:
    target_options = {**server.storage_options(), "skip_instance_cache": True}
    return headrace.HeadraceFileSystem(target_protocol="s3", target_options=target_options, **options)


@pytest.fixture
def fs(server: ObjectServer, cloud_engine: str, scheduled_mode: str) -> headrace.HeadraceFileSystem:
    return made(server, scheduler=scheduled_mode)


def arrows(fs: Any) -> pa.fs.PyFileSystem:
    return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(fs))


def is_end(request: ServedRequest) -> bool:
    """Whether the last bytes of an object were asked for."""
    return request.range == "bytes=-65536"


def listings(server: ObjectServer) -> int:
    """Return how many whole listings were asked for; `info` takes one of a single name."""
    return sum("prefix" in one.query and one.query.get("max-keys") != "1" for one in server.requests)


def test_arrow_opens_a_file_with_one_look_at_the_store(
    fs: headrace.HeadraceFileSystem, server: ObjectServer
) -> None:
    """It asks whether the path is a file, and opens it."""
    arrow = arrows(fs)
    assert arrow.open_input_file("bucket/blocks").read(10) == CONTENT[:10]
    assert [request.method for request in server.requests] == ["HEAD", "GET"]


def test_arrow_opens_a_parquet_file_and_reads_its_end_with_one_request(
    fs: headrace.HeadraceFileSystem, server: ObjectServer
) -> None:
    scan = ds.dataset(["bucket/table/0.parquet"], filesystem=fs, format="parquet")
    assert scan.schema.names == ["a"]
    assert [(one.method, one.range) for one in server.requests] == [("GET", "bytes=-65536")]
    server.forget()
    assert scan.to_table().column("a").to_pylist() == [1, 2, 3]
    assert [one.range for one in server.requests] == ["bytes=-65536"], "it is what it was, and all there"
    server.forget()
    assert ds.dataset("bucket/table", filesystem=fs).to_table().num_rows == 9
    assert not any(map(is_end, server.requests)), "the listing tells of them"


def test_hedged_reads_look_at_an_end_and_know_it_again(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str
) -> None:
    fs = made(server, scheduler=scheduled_mode, hedge=0.1)
    scan = ds.dataset(["bucket/table/0.parquet"], filesystem=fs, format="parquet")
    server.forget()
    assert scan.to_table().column("a").to_pylist() == [1, 2, 3]
    assert [one.range for one in server.requests] == ["bytes=-65536"]
    server.script = lambda request: Fault("truncate") if is_end(request) else Fault()
    assert arrows(fs).open_input_file("bucket/long.parquet").read() == LONG


@pytest.mark.parametrize("name", ["none", "empty", "other"])
def test_what_has_no_footer_is_as_ever(
    fs: headrace.HeadraceFileSystem, server: ObjectServer, name: str
) -> None:
    server.put("bucket", "empty.parquet", b"")
    server.put("bucket", "other.parquet", CONTENT)
    if name == "none":
        with pytest.raises(FileNotFoundError):
            arrows(fs).open_input_file("bucket/none.parquet")
    else:
        data = arrows(fs).open_input_file(f"bucket/{name}.parquet").read()
        assert data == (CONTENT if name == "other" else b"")


FAULTS = ["whole_object", "truncate", "break_body", "reset", "slow_down", "internal_error", "expired_token"]


@pytest.mark.parametrize("kind", FAULTS)
def test_where_the_end_does_not_come_the_file_is_looked_up(
    fs: headrace.HeadraceFileSystem, server: ObjectServer, kind: Any
) -> None:
    """It is asked for once: the look that follows has its own attempts."""
    server.script = lambda request: Fault(kind) if is_end(request) else Fault()
    times = 2 if kind == "reset" and fs.backend_name != "obstore" else 1  # aiohttp tries twice
    for asked in (1, 2, 3, 3):  # and then no more
        assert arrows(fs).open_input_file("bucket/long.parquet").read() == LONG
        assert sum(map(is_end, server.requests)) == asked * times


def test_an_end_that_is_late_is_waited_for_as_long_as_an_attempt_may_last(
    server: ObjectServer, cloud_engine: str
) -> None:
    server.script = lambda request: Fault(delay_s=float("inf") if is_end(request) else 0.0)
    options = {**server.storage_options(), "skip_instance_cache": True}
    fs = headrace.HeadraceFileSystem(target_protocol="s3", target_options=options, try_timeout_s=2)
    began_s = monotonic()
    assert arrows(fs).open_input_file("bucket/long.parquet").read() == LONG
    assert monotonic() - began_s < WAIT_S, "and no longer: an attempt has 30 s where nothing is said"


def test_what_is_not_there_is_asked_for_once(fs: headrace.HeadraceFileSystem, server: ObjectServer) -> None:
    with pytest.raises(FileNotFoundError):
        arrows(fs).open_input_file("bucket/none.parquet")
    assert [one.method for one in server.requests if one.key == "none.parquet"] == ["GET", "HEAD"]


def test_an_end_without_a_footer_is_read_once(fs: headrace.HeadraceFileSystem, server: ObjectServer) -> None:
    with fs.open("bucket/blocks"):
        pass
    file = arrows(fs).open_input_file("bucket/long.parquet")
    server.forget()
    assert file.read_at(65536, len(LONG) - 65536) == LONG[-65536:]
    assert file.read_at(100, len(LONG) - 100) == LONG[-100:]
    assert not server.requests


def test_a_look_takes_the_memory_of_what_it_reads(server: ObjectServer, cloud_engine: str) -> None:
    budget = (1 << 34) + (7 if cloud_engine == "obstore" else 11)  # an engine of its own
    options = {**server.storage_options(), "skip_instance_cache": True}
    fs = headrace.HeadraceFileSystem(target_protocol="s3", target_options=options, buffer_bytes=budget)
    arrows(fs).open_input_file("bucket/long.parquet")
    stats = fs.stats()
    assert (stats.peak_reserved_bytes, stats.bytes_admitted, stats.bytes_delivered) == (END_BYTES,) * 3


def test_what_is_deleted_or_copied_is_not_read_for_that(
    fs: headrace.HeadraceFileSystem, server: ObjectServer
) -> None:
    arrow = arrows(fs)
    assert arrow.open_input_stream("bucket/long.parquet").read(10) == LONG[:10]
    arrow.delete_dir_contents("bucket/table")
    assert not any(map(is_end, server.requests))
    assert not fs.target.find("bucket/table")


def test_a_file_that_is_written_after_the_look_is_another_version(
    fs: headrace.HeadraceFileSystem, server: ObjectServer
) -> None:
    """The end that was read counts as the open: no byte of another version comes behind it."""
    file = arrows(fs).open_input_file("bucket/long.parquet")
    assert file.read(10) == LONG[:10]
    server.replace("bucket", "long.parquet", LONG[::-1])
    with pytest.raises(headrace.ObjectChangedError):
        file.read()
    assert arrows(fs).open_input_file("bucket/long.parquet").read() == LONG[::-1]


def test_what_arrow_opens_later_is_looked_up_anew(
    fs: headrace.HeadraceFileSystem, server: ObjectServer
) -> None:
    """The version is that of the open, though the same thread has asked about the path before."""
    arrow = pa.fs.PyFileSystem(pa.fs.FSSpecHandler(fs))
    assert arrow.open_input_file("bucket/blocks").read(10) == CONTENT[:10]
    server.replace("bucket", "blocks", b"x" * 100)
    assert arrow.open_input_file("bucket/blocks").read() == b"x" * 100
    with pytest.raises(FileNotFoundError):
        arrow.open_input_file("bucket/nothing")
    with pytest.raises(FileNotFoundError):
        arrow.open_input_file("bucket/table")


def test_what_arrow_heard_is_good_for_nothing_else(
    fs: headrace.HeadraceFileSystem, server: ObjectServer
) -> None:
    """A write in between is seen, and so is an end."""
    arrow = pa.fs.PyFileSystem(pa.fs.FSSpecHandler(fs))
    assert arrow.get_file_info("bucket/blocks").size == len(CONTENT)
    fs.pipe_file("bucket/blocks", b"x" * 300)
    assert arrow.open_input_file("bucket/blocks").read() == b"x" * 300
    fs.isfile("bucket/blocks")
    arrow.get_file_info("bucket/blocks")
    fs.rm_file("bucket/blocks")
    with pytest.raises(FileNotFoundError):
        fs.open("bucket/blocks")
    assert not arrow.get_file_info(pa.fs.FileSelector("bucket/nothing", allow_not_found=True))


def test_what_nobody_came_for_is_forgotten(fs: headrace.HeadraceFileSystem) -> None:
    arrow = pa.fs.PyFileSystem(pa.fs.FSSpecHandler(fs))
    for _ in range(30):
        thread = threading.Thread(target=arrow.get_file_info, args=("bucket/table",))
        thread.start()
        thread.join()
    assert len(fs._looked_up) > 0
    for thread_id, (path, info, at_s, changes) in list(fs._looked_up.items()):
        fs._looked_up[thread_id] = path, info, at_s - 1, changes
    arrow.get_file_info("bucket/table")
    assert len(fs._looked_up) == 1


def test_a_folder_is_listed_while_it_is_looked_up(
    fs: headrace.HeadraceFileSystem, server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_listed, find, info = threading.Event(), fs.target._find, fs.target.info

    async def find_and_tell(*args: Any, **kwargs: Any) -> Any:
        found = await find(*args, **kwargs)
        is_listed.set()
        return found

    def info_after_it(*args: Any, **kwargs: Any) -> Any:
        assert is_listed.wait(WAIT_S)
        return info(*args, **kwargs)

    monkeypatch.setattr(fs.target, "_find", find_and_tell)
    monkeypatch.setattr(fs.target, "info", info_after_it)
    scan = ds.dataset("bucket/table", filesystem=fs)
    assert [name.rpartition("/")[2] for name in scan.files] == ["0.parquet", "1.parquet", "2.parquet"]
    assert scan.count_rows() == 9
    assert listings(server) == 1
    assert not fs._listings


def test_a_listing_is_that_of_the_filesystem(fs: headrace.HeadraceFileSystem) -> None:
    arrow, plain = arrows(fs), arrows(fs.target)
    for path, is_deep in (
        ("bucket/table", True),
        ("bucket", True),
        ("bucket", False),
        ("bucket/table/", True),
    ):
        assert repr(arrow.get_file_info(path)) == repr(plain.get_file_info(path))
        selector = pa.fs.FileSelector(path, recursive=is_deep)
        assert repr(arrow.get_file_info(selector)) == repr(plain.get_file_info(selector))


def test_what_is_written_between_look_and_listing_is_in_the_next(fs: headrace.HeadraceFileSystem) -> None:
    """A listing is for the `find` that follows on the same thread at once, and for one."""
    arrow, selector = arrows(fs), pa.fs.FileSelector("bucket/table", recursive=True)
    arrow.get_file_info("bucket/table")
    assert len(arrow.get_file_info(selector)) == 3
    fs.pipe_file("bucket/table/3.parquet", b"x")
    assert len(arrow.get_file_info(selector)) == 4
    arrow.get_file_info("bucket/table")
    fs.pipe_file("bucket/table/4.parquet", b"x")
    assert len(arrow.get_file_info(selector)) == 5


@pytest.mark.parametrize("method", ["get", "get_file", "download", "_get"])
def test_what_is_copied_from_the_store_is_no_write(
    fs: headrace.HeadraceFileSystem, tmp_path: Path, method: str
) -> None:
    before, copy = fs._changes_now(), str(tmp_path / "copy")
    if method == "_get":
        asyncio.run(fs._get("bucket/blocks", copy))
    else:
        getattr(fs, method)("bucket/blocks", copy)
    assert Path(copy).read_bytes() == CONTENT
    assert fs._changes_now() == before
    fs.put_file(copy, "bucket/copy")
    assert fs._changes_now() != before


def written_elsewhere(fs: Any) -> None:
    writer = threading.Thread(target=fs.pipe_file, args=("bucket/table/3.parquet", b"x"))
    writer.start()
    writer.join(WAIT_S)


def written_async(fs: Any) -> None:
    asyncio.run(fs._pipe_file("bucket/table/3.parquet", b"x"))


def written_through_a_view(fs: Any) -> None:
    fs.with_priority(5).pipe_file("bucket/table/3.parquet", b"x")


def written_beside_it(fs: Any) -> None:
    fs.target.pipe_file("bucket/table/3.parquet", b"x")


def written_as_a_file(fs: Any) -> None:
    with fs.open("bucket/table/3.parquet", "wb") as file:
        file.write(b"x")
        arrows(fs).get_file_info("bucket/table")  # listed before it is there


WAYS = [written_elsewhere, written_async, written_as_a_file, written_through_a_view, written_beside_it]


@pytest.mark.parametrize("write", WAYS)
def test_a_write_of_whatever_kind_ends_what_was_listed_before(
    fs: headrace.HeadraceFileSystem, write: Callable[[Any], None]
) -> None:
    arrow, selector = arrows(fs), pa.fs.FileSelector("bucket/table", recursive=True)
    arrow.get_file_info("bucket/table")
    write(fs)
    assert len(arrow.get_file_info(selector)) == 4
    assert len(fs.ls("bucket/table")) == 4
    assert fs.exists("bucket/table/3.parquet")


def test_a_listing_that_a_write_overtook_is_not_kept(
    fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = Listing.wait

    def wait_and_write(listing: Listing) -> Any:
        found = wait(listing)
        written_elsewhere(fs)
        return found

    arrow = arrows(fs)
    arrow.get_file_info("bucket/table")
    monkeypatch.setattr(Listing, "wait", wait_and_write)
    assert len(arrow.get_file_info(pa.fs.FileSelector("bucket/table", recursive=True))) == 4
    assert len(fs.ls("bucket/table")) == 4


def test_a_folder_whose_last_file_was_deleted_is_none(
    fs: headrace.HeadraceFileSystem, server: ObjectServer
) -> None:
    server.put("bucket", "one/file", b"x")
    arrow = arrows(fs)
    arrow.get_file_info("bucket/one")
    fs.rm_file("bucket/one/file")
    with pytest.raises(FileNotFoundError):
        arrow.get_file_info(pa.fs.FileSelector("bucket/one"))


def test_a_listing_that_nobody_wants_ends(
    fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch, wait_until: Wait
) -> None:
    """It may be one of millions of objects, and all that was asked is whether there is such a folder."""
    ended = []

    async def list_for_ever(*_: Any, **__: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    arrow = arrows(fs)
    arrow.get_file_info("bucket/blocks")
    monkeypatch.setattr(fs.target, "_find", list_for_ever)
    assert arrow.get_file_info("bucket/table").type == pa.fs.FileType.Directory
    wait_until(lambda: ended == [1])
    assert arrow.get_file_info("bucket/blocks").is_file
    wait_until(lambda: len(ended) == 2)
    listed = arrow.get_file_info(pa.fs.FileSelector("bucket/table", recursive=True))
    assert len(listed) == 3, "s3fs's own"


@pytest.mark.parametrize(
    "path", ["bucket/table/0.parquet", "bucket/blocks", "bucket/none", "bucket/none.csv", "bucket/_metadata"]
)
def test_what_is_no_folder_is_as_ever(
    fs: headrace.HeadraceFileSystem, server: ObjectServer, path: str
) -> None:
    assert repr(arrows(fs).get_file_info(path)) == repr(arrows(fs.target).get_file_info(path))
    assert not fs._listings
    if "." in path or "_" in path:
        assert listings(server) == 0, "it does not look like a folder"


def test_a_listing_that_fails_is_asked_for_once_more(
    fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = []

    async def fail(*_: Any, **__: Any) -> Any:
        failed.append(1)
        raise OSError("no listing now")

    monkeypatch.setattr(fs.target, "_find", fail)  # the sync `find` of s3fs does not ask this
    arrow = arrows(fs)
    arrow.get_file_info("bucket/table")
    found = arrow.get_file_info(pa.fs.FileSelector("bucket/table", recursive=True))
    assert (len(found), failed) == (3, [1])


def test_an_interrupt_ends_the_wait_for_a_listing(fs: headrace.HeadraceFileSystem, wait_until: Wait) -> None:
    class Interrupted(Future[Any]):
        def result(self, timeout: float | None = None) -> Any:
            raise KeyboardInterrupt

    arrow = arrows(fs)
    arrow.get_file_info("bucket/table")
    (listing,) = fs._listings.values()
    listing._found, task = Interrupted(), listing._task
    with pytest.raises(KeyboardInterrupt):
        arrow.get_file_info(pa.fs.FileSelector("bucket/table", recursive=True))
    assert task is not None
    wait_until(task.done)


def test_what_arrow_heard_of_a_folder_is_kept_by_nobody(
    fs: headrace.HeadraceFileSystem, server: ObjectServer, wait_until: Wait
) -> None:
    """s3fs keeps a listing for good; of a look it keeps none."""
    arrow = arrows(fs)
    server.put("bucket", "table", b"an object of the folder's name")
    server.put("bucket", "folder/0", b"x")
    for path in ("bucket/folder", "bucket/table"):
        listing = fs._list_ahead(path)
        assert listing is not None
        assert listing._found is not None
        listing._found.result(WAIT_S)
        listing.end_soon(0)
    server.put("bucket", "folder/1", b"y")
    assert fs.cat_file("bucket/folder/1") == b"y"
    assert arrow.get_file_info("bucket/table").is_file
    assert not fs.target.dircache._cache


def test_a_listing_that_is_wanted_is_kept_as_the_filesystem_keeps_it(fs: headrace.HeadraceFileSystem) -> None:
    plain = fs.target
    ds.dataset("bucket/table", filesystem=fs)
    kept = {folder: plain.dircache[folder] for folder in plain.dircache}
    plain.invalidate_cache()
    ds.dataset("bucket/table", filesystem=plain)
    assert {folder: plain.dircache[folder] for folder in plain.dircache} == kept


def test_an_old_listing_is_good_for_nothing(fs: headrace.HeadraceFileSystem, server: ObjectServer) -> None:
    arrow = arrows(fs)
    arrow.get_file_info("bucket/table")
    (listing,) = fs._listings.values()
    assert listing._found is not None
    listing._found.result(WAIT_S)
    listing._good_until_s = 0.0
    server.put("bucket", "table/3.parquet", b"of another process")
    assert len(arrow.get_file_info(pa.fs.FileSelector("bucket/table", recursive=True))) == 4


def test_one_listing_serves_who_looks_twice(fs: headrace.HeadraceFileSystem, server: ObjectServer) -> None:
    assert pq.read_table("bucket/table", filesystem=fs).num_rows == 9
    assert listings(server) == 1


def test_a_listing_of_one_level_is_another(
    fs: headrace.HeadraceFileSystem, server: ObjectServer, wait_until: Wait
) -> None:
    arrow = arrows(fs)
    arrow.get_file_info("bucket/table")
    (listing,) = fs._listings.values()
    assert len(arrow.get_file_info(pa.fs.FileSelector("bucket/table", recursive=False))) == 3
    assert not fs._listings
    wait_until(lambda: listing._found is None)


def test_a_first_look_makes_one_session(
    fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """s3fs makes one for each of two calls that find none, and forgets the first."""
    made, make = [], aiobotocore.session.AioSession.create_client

    def count(*args: Any, **kwargs: Any) -> Any:
        made.append(1)
        return make(*args, **kwargs)

    monkeypatch.setattr(aiobotocore.session.AioSession, "create_client", count)
    arrow = arrows(fs)
    arrow.get_file_info("bucket/table")
    arrow.get_file_info(pa.fs.FileSelector("bucket/table", recursive=True))
    assert len(made) == 1


def test_pages_of_the_web_are_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def find(*args: Any, **_: Any) -> None:
        asked.append(args)

    fs = headrace.HeadraceFileSystem(fs=HTTPFileSystem(skip_instance_cache=True))
    monkeypatch.setattr(fs.target, "_find", find)
    assert fs._list_ahead("http://127.0.0.1/table") is None
    assert not asked


def test_a_dead_loop_is_no_reason_to_fail(
    fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a forked child: fsspec's property raises there."""
    monkeypatch.setattr(fs.target, "_pid", -1)
    assert fs._list_ahead("bucket/table") is None
