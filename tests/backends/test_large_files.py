"""Files of more bytes than 32 bits count: whatever reads them, offsets are not cut."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import recording  # noqa: F401 - registers its filesystems

import headrace
from headrace.testing import ObjectServer

SIZE = (5 << 30) + 123
MARK = np.random.default_rng(3).bytes(200)
AROUND = (1 << 31, 1 << 32, SIZE - 100)
"""Where the marks are, the first hundred bytes of each before; what is between them is a hole."""

KINDS = {
    "pread": ("file", {"local_backend": "pread"}),
    "io_uring": ("file", {"local_backend": "uring"}),
    "threads": ("recording", {}),
    "loop": ("arecording", {}),
    "s3fs": ("s3", {"cloud_engine": "fsspec"}),
    "obstore": ("s3", {"cloud_engine": "obstore"}),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with (tmp_path / "large").open("wb") as file:
        for middle in AROUND:
            file.seek(middle - 100)
            file.write(MARK)
    os.truncate(tmp_path / "large", SIZE)
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.put_folder("bucket", folder)
        yield server


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fs(kind: str, scheduled_mode: str, request: pytest.FixtureRequest) -> Any:
    protocol, settings = KINDS[kind]
    options = {"log": "large"} if "recording" in protocol else {}
    if protocol == "s3":
        options = request.getfixturevalue("server").storage_options()
    return headrace.HeadraceFileSystem(
        fs=fsspec.filesystem(protocol, **options, skip_instance_cache=True),
        scheduler=scheduled_mode,
        **settings,
    )


@pytest.fixture
def path(kind: str, folder: Path) -> str:
    return "bucket/large" if KINDS[kind][0] == "s3" else str(folder / "large")


def _expected(folder: Path, start: int, end: int) -> bytes:
    with (folder / "large").open("rb") as file:
        return os.pread(file.fileno(), end - start, start)


@pytest.mark.parametrize("length", [30, 300_000], ids=["short", "long"])
def test_ranges(fs: Any, path: str, folder: Path, length: int) -> None:
    starts = [middle + step for middle in AROUND for step in (-length, -length // 2, -7, 0)]
    spans = [(start, start + length) for start in starts]
    found = fs.cat_ranges([path] * len(spans), starts, [end for _, end in spans])
    assert found == [_expected(folder, *span) for span in spans]
    assert any(MARK[95:105] in answer for answer in found)
    batch = fs.read_ranges(path, starts, np.array(starts) + length)
    assert batch.to_pylist() == found


def test_single_reads(fs: Any, path: str, folder: Path) -> None:
    assert fs.cat_file(path, (1 << 32) - 5, (1 << 32) + 5) == MARK[95:105]
    assert fs.cat_file(path, -100, None) == MARK[100:]
    assert fs.tail(path, 10) == MARK[-10:]
    with fs.open(path) as file:
        assert file.seek(0, 2) == SIZE
        for middle in AROUND:
            assert file.seek(middle - 3) == middle - 3
            assert file.read(6) == MARK[97:103]
            assert file.tell() == middle + 3
        file.seek((1 << 32) - 150_000)
        assert file.read(300_000) == _expected(folder, (1 << 32) - 150_000, (1 << 32) + 150_000)
