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
