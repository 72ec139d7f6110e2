"""What an answer says of itself is looked at: of which version it is, which part of that, and how long.

In S3's dialect and over plain HTTP, on both engines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fsspec.implementations.http import HTTPFileSystem
from plain_http import Asked, PlainServer, Said, ranged
from s3fs import S3FileSystem

import headrace

if TYPE_CHECKING:
    from collections.abc import Callable

OLD, NEW = (np.random.default_rng(seed).bytes(4 << 20) for seed in (1, 2))
WHEN = {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
CLOSE = {"Connection": "close"}


@pytest.fixture(params=["http", "s3"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Store:
    """A filesystem of one of the protocols, and the path of an object in it."""

    def __init__(self, server: PlainServer, protocol: str, engine: str, **options: Any) -> None:
        if protocol == "http":
            self.path = f"{server.url}/bucket/key"
            target: Any = HTTPFileSystem(skip_instance_cache=True)
        else:
            self.path = "bucket/key"
            target = S3FileSystem(key="k", secret="s", endpoint_url=server.url, skip_instance_cache=True)
        self.fs = headrace.HeadraceFileSystem(
            fs=target, cloud_engine=engine, max_gap_bytes=0, skip_instance_cache=True, **options
        )

    def read_file(self) -> bytes:
        with self.fs.open(self.path) as file:
            found: bytes = file.read()
        return found

    def read_range(self) -> bytes:
        found: bytes = self.fs.cat_file(self.path, start=0, end=len(OLD))
        return found

    def read_whole(self) -> bytes:
        found: bytes = self.fs.cat_file(self.path)
        return found


@pytest.mark.parametrize("tag", [{}, {"ETag": 'W/"weak"'}])
@pytest.mark.parametrize("read", [Store.read_file, Store.read_range, Store.read_whole])
def test_where_no_version_can_be_asked_for_a_body_that_broke_starts_again(
    protocol: str, cloud_engine: str, read: Callable[[Store], bytes], tag: dict[str, str]
) -> None:
    def answer(asked: Asked) -> Said:
        if asked.method == "HEAD" or len(server.gets) > 1:
            return ranged(asked, NEW, **WHEN, **tag)
        said = ranged(asked, OLD, **WHEN, **tag, **CLOSE)
        said.headers["Content-Length"] = str(len(said.body))
        said.body = said.body[: 3 << 20]
        return said

    with PlainServer(answer) as server:
        assert read(Store(server, protocol, cloud_engine)) == NEW
        assert len(server.gets) == 2


def test_where_versions_are_only_compared_a_body_that_broke_is_resumed(cloud_engine: str) -> None:
    """``local_expiry_check``: the ETag is looked at before anything is taken of an answer."""

    def answer(asked: Asked) -> Said:
        said = ranged(asked, OLD, **WHEN, ETag='"one"')
        if len(server.gets) == 1:
            said.headers |= {**CLOSE, "Content-Length": str(len(said.body))}
            said.body = said.body[: 3 << 20]
        return said

    with PlainServer(answer) as server:
        target = S3FileSystem(
            key="k", secret="s", endpoint_url=server.url, local_expiry_check=True, skip_instance_cache=True
        )
        fs = headrace.wrap(target, cloud_engine=cloud_engine, prefetch="off")
        assert fs.cat_file("bucket/key", start=0, end=len(OLD)) == OLD
        first, second = server.gets
    assert second.span(len(OLD))[0] > first.span(len(OLD))[0]  # type: ignore[index]
    assert "if-match" not in second.headers


@pytest.mark.parametrize("said", ["all of it", "what it is"])
def test_a_body_that_ends_before_the_range_is_no_end_of_the_file(
    protocol: str, cloud_engine: str, said: str
) -> None:
    """Neither where its connection ends it, nor where the answer is of less than was asked for."""
    broken = list[Asked]()

    def answer(asked: Asked) -> Said:
        found = ranged(asked, OLD, **WHEN, ETag='"one"')
        if asked.method == "GET" and asked.span(len(OLD)) == (1 << 20, 2 << 20) and len(broken) < 2:
            broken.append(asked)  # by the native engine, which has the other one asked, and by that
            found.body = found.body[:1000]
            found.headers |= CLOSE
            if said == "what it is":
                part = f"bytes {1 << 20}-{(1 << 20) + 999}/{len(OLD)}"
                found.headers |= {"Content-Range": part, "Content-Length": "1000"}
        return found

    with PlainServer(answer) as server:
        store = Store(server, protocol, cloud_engine, max_op_bytes=1 << 20)
        assert store.read_file() == OLD
        assert broken


def test_a_server_that_never_sends_all_of_it_is_an_error(protocol: str, cloud_engine: str) -> None:
    def answer(asked: Asked) -> Said:
        found = ranged(asked, OLD, **WHEN)
        if asked.method == "GET":
            found.body = found.body[:10]
            found.headers |= CLOSE
        return found

    with PlainServer(answer) as server:
        store = Store(server, protocol, cloud_engine, retries=1)
        with pytest.raises(ConnectionError, match=r"ended at byte 110, and not at 300"):
            store.fs.cat_file(store.path, start=100, end=300)


BOUNDS = [{"start": 0, "end": 3 << 20}, {"start": 10, "end": -10}, {"end": -10}]


def capped(asked: Asked, **headers: str) -> Said:
    """Answer at most a megabyte of a range, and say so."""
    span = asked.span(len(OLD))
    if span is not None:
        asked.headers["range"] = f"bytes={span[0]}-{min(span[1], span[0] + (1 << 20)) - 1}"
    return ranged(asked, OLD, **WHEN, **headers)


@pytest.mark.parametrize("bounds", BOUNDS)
def test_a_server_that_sends_less_of_a_range_is_asked_for_the_rest(
    cloud_engine: str, bounds: dict[str, int]
) -> None:
    with PlainServer(lambda asked: capped(asked, ETag='"one"')) as server:
        store = Store(server, "http", cloud_engine, retries=0)
        found = store.fs.cat_file(store.path, **bounds)
        assert found == OLD[bounds.get("start") : bounds["end"]]
        assert {asked.headers.get("if-match") for asked in server.gets[-2:]} == {'"one"'}


@pytest.mark.parametrize("bounds", BOUNDS)
def test_the_rest_of_no_version_is_not_asked_for(cloud_engine: str, bounds: dict[str, int]) -> None:
    """It may be another one's, and another attempt gets no more."""
    with PlainServer(capped) as server:
        store = Store(server, "http", cloud_engine)
        with pytest.raises(OSError, match="no more than 1048576 bytes"):
            store.fs.cat_file(store.path, **bounds)
        assert len(server.gets) <= 2, "one of each engine"


@pytest.mark.parametrize("bounds", [{"start": 10, "end": -10}, {"end": -10}, {"start": -5000, "end": -10}])
def test_what_an_answer_has_beyond_the_range_is_left_out(cloud_engine: str, bounds: dict[str, int]) -> None:
    def answer(asked: Asked) -> Said:
        if (span := asked.span(len(OLD))) is not None:
            asked.headers["range"] = f"bytes={span[0]}-"
        return ranged(asked, OLD, **WHEN, ETag='"one"')

    with PlainServer(answer) as server:
        store = Store(server, "http", cloud_engine)
        assert store.fs.cat_file(store.path, **bounds) == OLD[bounds.get("start") : bounds["end"]]


def test_the_last_bytes_are_the_last(cloud_engine: str) -> None:
    """And not the first, as a server has it that does not know the one kind of range."""

    def answer(asked: Asked) -> Said:
        asked.headers["range"] = asked.headers.get("range", "").replace("=-", "=0-")
        return ranged(asked, OLD, **WHEN, ETag='"one"')

    with PlainServer(answer) as server:
        store = Store(server, "http", cloud_engine, retries=0)
        with pytest.raises(OSError, match="another range"):
            store.fs.cat_file(store.path, start=-100)


def test_a_server_that_sends_hardly_anything_of_a_range_is_given_up(cloud_engine: str) -> None:
    """Nothing of it would be kept for another attempt."""

    def answer(asked: Asked) -> Said:
        if (span := asked.span(len(OLD))) is not None:
            asked.headers["range"] = f"bytes={span[0]}-{span[0] + 9}"
        return ranged(asked, OLD, **WHEN, ETag='"one"')

    with PlainServer(answer) as server:
        store = Store(server, "http", cloud_engine)
        with pytest.raises(OSError, match="no more than 10 bytes"):
            store.fs.cat_file(store.path, start=0, end=1 << 20)
        assert len(server.gets) < 70


def test_a_range_past_the_end_is_short(protocol: str, cloud_engine: str) -> None:
    with PlainServer(lambda asked: ranged(asked, OLD, **WHEN, ETag='"one"')) as server:
        store = Store(server, protocol, cloud_engine)
        ends = len(OLD) - 10, len(OLD) + 10
        assert store.fs.cat_file(store.path, start=ends[0], end=ends[1]) == OLD[-10:]
        found = store.fs.read_ranges(store.path, [5, ends[0]], [15, ends[1]])
        assert found.to_pylist() == [OLD[5:15], OLD[-10:]]
        assert store.fs.cat_file(store.path, start=100, end=-100) == OLD[100:-100]


def test_another_range_than_the_one_asked_for_is_an_error(protocol: str, cloud_engine: str) -> None:
    def answer(asked: Asked) -> Said:
        asked.headers["range"] = "bytes=7-16"
        return ranged(asked, OLD, **WHEN, ETag='"one"')

    with PlainServer(answer) as server:
        store = Store(server, protocol, cloud_engine, retries=1)
        for start in (0, 100):
            with pytest.raises(OSError, match="another range"):
                store.fs.cat_file(store.path, start=start, end=start + 10)
        found = store.fs.read_ranges(store.path, [100, 300], [110, 310]).to_pylist(on_error="return")
        assert ["another range" in str(one) for one in found] == [True, True]
