"""Run in a child process where the distribution is installed: the public suite, and real reads."""

from __future__ import annotations

import uuid
from importlib import metadata
from pathlib import Path
from typing import Any

import fsspec
import pytest
from headrace_demo_backend import Blob, DemoBackend, DemoFileSystem

import headrace
from headrace.testing import BackendTests

CONTENT = bytes(range(256)) * 5_000


class TestDemoBackend(BackendTests):
    """headrace's own suite for backends."""

    backend_class = DemoBackend

    def make_target(self, tmp_path: Path) -> DemoFileSystem:
        assert tmp_path.exists()
        return DemoFileSystem()

    def put(self, target: DemoFileSystem, tmp_path: Path, name: str, data: bytes) -> str:
        path = f"{tmp_path.name}-{name}"
        target.pipe_file(path, data)
        return path

    def failing_source(self, backend: DemoBackend, path: str, missing: str) -> Any:
        """`open` knows of a missing blob already: break one that it gave."""
        with pytest.raises(FileNotFoundError, match=missing):
            backend.open(missing)
        return Blob(path, None)


@pytest.fixture(params=["lite", "standard", "off", "auto"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def path() -> str:
    name = f"blob-{uuid.uuid4().hex}"
    DemoFileSystem().pipe_file(name, CONTENT)
    return name


def _ops(call: Any, *args: Any, **kwargs: Any) -> tuple[Any, int]:
    before = DemoBackend.ops_performed
    answer = call(*args, **kwargs)
    return answer, DemoBackend.ops_performed - before


def test_it_is_installed_as_a_distribution_of_its_own() -> None:
    found = {point.name: point for point in metadata.entry_points(group="headrace.backends")}
    assert found["demo"].dist.name == "headrace-demo-backend"
    assert found["demo"].load() is DemoBackend


def test_reads_come_through_the_backend(mode: str, path: str) -> None:
    fs = headrace.HeadraceFileSystem(target_protocol="headracedemo", scheduler=mode)
    got, ops = _ops(fs.read_ranges, path, [0, 500_000], [10, 500_010])
    assert got.to_pylist() == [CONTENT[:10], CONTENT[500_000:500_010]]
    assert ops == (0 if mode == "off" else 2)
    got, ops = _ops(fs.cat_file, path)
    assert got == CONTENT
    assert (ops > 0) is (mode != "off")
    got, ops = _ops(fs.cat_file, path, start=-10, end=-5)
    assert got == CONTENT[-10:-5]
    assert (ops > 0) is (mode != "off")


def test_open_files_come_through_the_backend(mode: str, path: str) -> None:
    def read() -> bytes:
        with fsspec.open(f"headrace::headracedemo://{path}", headrace={"scheduler": mode}) as file:
            file.seek(100)
            return file.read()

    got, ops = _ops(read)
    assert got == CONTENT[100:]
    assert (ops > 0) is (mode != "off")


def test_a_missing_blob(mode: str) -> None:
    fs = headrace.HeadraceFileSystem(target_protocol="headracedemo", scheduler=mode)
    with pytest.raises(FileNotFoundError, match="no-such-blob"):
        fs.cat_file("no-such-blob", start=0, end=10)
