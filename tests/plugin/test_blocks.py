"""Small reads of an open file of a store: which of them take a block, and how many requests that makes.

Programs that read HDF5, zip and the like go back and forth in small parts, by `read`, `readinto` and buffers
of their own. On a store each part would be a round trip.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import headrace
from headrace.testing import ObjectServer

BLOCK = 16 << 10
SIZE = 40 * BLOCK + 321
DATA = np.random.default_rng(5).bytes(SIZE)


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.put("bucket", "data.bin", DATA)
        yield server


@pytest.fixture(params=["fsspec", "obstore"])
def opened(request: pytest.FixtureRequest, server: ObjectServer, scheduled_mode: str) -> Callable[..., Any]:
    fs = headrace.HeadraceFileSystem(
        target_protocol="s3",
        target_options=server.storage_options(),
        scheduler=scheduled_mode,
        cloud_engine=request.param,
        prefetch="off",
        skip_instance_cache=True,
    )

    def open_file(**options: Any) -> Any:
        file = fs.open("bucket/data.bin", **{"block_size": BLOCK, **options})
        server.forget()
        return file

    return open_file


def _read(file: Any, start: int, length: int) -> bytes:
    file.seek(start)
    found: bytes = file.read(length)
    return found


def _read_into(file: Any, start: int, length: int) -> bytes:
    file.seek(start)
    out = bytearray(length)
    got = file.readinto(out)
    return bytes(out[:got])


READS = pytest.mark.parametrize("read", [_read, _read_into])


@READS
def test_small_reads_one_after_another_are_of_blocks(
    opened: Callable[..., Any], server: ObjectServer, read: Any
) -> None:
    file = opened()
    for start in range(0, 2 * BLOCK, 100):
        assert read(file, start, 100) == DATA[start : start + 100]
    assert server.request_count <= 4


@READS
def test_small_reads_close_to_one_another_are_of_blocks(
    opened: Callable[..., Any], server: ObjectServer, read: Any
) -> None:
    """Back and forth between two places, as a tree and its leaves are read."""
    file, draw = opened(), random.Random(2)
    for number in range(400):
        start = (5, 30)[number % 2] * BLOCK + draw.randrange(BLOCK - 50)
        assert read(file, start, 50) == DATA[start : start + 50]
    assert server.request_count <= 4


def test_reads_far_apart_are_of_what_is_asked(opened: Callable[..., Any], server: ObjectServer) -> None:
    file = opened()
    for start in range(0, SIZE, 4 * BLOCK):
        assert _read(file, start, 50) == DATA[start : start + 50]
    assert {request.sent_bytes for request in server.requests} == {50}


def test_reads_of_some_length_are_of_what_is_asked(opened: Callable[..., Any], server: ObjectServer) -> None:
    """A part of the block that is no small one: what is around it may be nobody's."""
    file = opened()
    for start in (0, 3 * BLOCK // 2, BLOCK // 2):
        assert _read(file, start, BLOCK // 4) == DATA[start : start + BLOCK // 4]
    assert {request.sent_bytes for request in server.requests} == {BLOCK // 4}


@pytest.mark.parametrize("options", [{"cache_type": "none"}, {"block_size": 0}])
def test_without_blocks_each_read_is_what_is_asked(
    opened: Callable[..., Any], server: ObjectServer, options: dict[str, Any]
) -> None:
    file = opened(**options)
    for start in range(0, 1000, 100):
        assert _read_into(file, start, 100) == DATA[start : start + 100]
    assert [request.sent_bytes for request in server.requests] == [100] * 10


def test_the_end_is_not_asked_for_again(opened: Callable[..., Any], server: ObjectServer) -> None:
    file = opened()
    assert _read(file, SIZE - 50, 20) == DATA[-50:-30]
    for _ in range(3):
        assert file.read(100) == DATA[-30:]
        assert file.read(100) == b""
        file.seek(SIZE - 30)
    assert server.request_count <= 2


def test_few_blocks_are_kept(opened: Callable[..., Any]) -> None:
    file = opened()
    for _ in range(2):
        for start in range(0, 8 * BLOCK, 500):
            file.seek(start)
            file.read(10)
    assert BLOCK < sum(len(data) for _, data in file._blocks._kept) <= 4 * BLOCK
    file.close()
    assert not file._blocks._kept


def test_a_buffer_of_pythons_takes_blocks(opened: Callable[..., Any], server: ObjectServer) -> None:
    with io.BufferedReader(opened(), 4096) as file:
        assert file.read(BLOCK) == DATA[:BLOCK]
        file.seek(BLOCK // 2)
        assert file.read(100) == DATA[BLOCK // 2 :][:100]
    assert server.request_count <= 3


@pytest.mark.parametrize("seed", range(3))
def test_any_reads_are_right(opened: Callable[..., Any], seed: int) -> None:
    file, draw, plain = opened(), random.Random(seed), io.BytesIO(DATA)
    lengths = [0, 1, 50, 3000, BLOCK - 1, BLOCK, BLOCK + 1, 200_000]
    for _ in range(300):
        if draw.random() < 0.6:
            start = min(
                max(draw.choice([plain.tell(), draw.randrange(SIZE + 10)]) + draw.randint(-90, 90), 0),
                SIZE + 9,
            )
            assert file.seek(start) == plain.seek(start)
        length = draw.choice(lengths)
        how = draw.choice(["read", "readinto", "readline", "read_buffer", "read1"])
        if how == "read":
            assert file.read(length) == plain.read(length)
        elif how == "readinto":
            ours, theirs = bytearray(length), bytearray(length)
            assert (file.readinto(ours), ours) == (plain.readinto(theirs), theirs)
        elif how == "readline":
            assert file.readline() == plain.readline()
        elif how == "read_buffer":
            assert file.read_buffer(length).to_pybytes() == plain.read(length)
        else:
            found = file.read1(length)
            assert found == plain.read(len(found))
            assert found or not length or plain.tell() >= SIZE
        assert file.tell() == plain.tell()
