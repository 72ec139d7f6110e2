"""What a trace says of each op: which file, which bytes, when, and how urgent."""

from __future__ import annotations

import gc
import json
import weakref
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

import headrace
from headrace.trace import EVENTS
from headrace.types import Ops

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 100_000


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    found = [tmp_path / name for name in ("a.bin", "b.bin")]
    for path in found:
        path.write_bytes(bytes(SIZE))
    return [str(path) for path in found]


@pytest.fixture
def fs(scheduled_mode: str) -> headrace.HeadraceFileSystem:
    return headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode, max_gap_bytes=0)


def test_every_op_is_told_with_its_file_and_range(fs: headrace.HeadraceFileSystem, paths: list[str]) -> None:
    a, b = paths
    with headrace.trace() as trace:
        fs.read_ranges([a, b, a], [90_000, 50_000, 1000], [90_010, 50_020, 1010], priority=3)
    for event in EVENTS:
        told = [one for one in trace.events if one.event == event]
        assert {one.priority[0] for one in told} == {3}
        ranges = {span for one in told for span in one.ranges}
        assert ranges == {(a, 1000, 1010), (a, 90_000, 90_010), (b, 50_000, 50_020)}


def test_an_open_file_tells_the_offsets_in_it(fs: headrace.HeadraceFileSystem, paths: list[str]) -> None:
    with headrace.trace() as trace, fs.open(paths[1], "rb", priority=-1) as file:
        file.seek(500)
        file.read(10_000)
    (queued,) = [one for one in trace.events if one.event == "queued"]
    assert (queued.path, queued.start, queued.priority) == (paths[1], 500, (-1, queued.priority[1]))
    assert queued.end is not None
    assert queued.end >= 10_500


def test_an_op_of_unknown_length_has_no_end(tmp_path: Path, scheduled_mode: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("member", "content")
    options = {"fo": str(tmp_path / "a.zip")}
    fs = headrace.HeadraceFileSystem(target_protocol="zip", target_options=options, scheduler=scheduled_mode)
    with headrace.trace() as trace:
        assert fs.cat_file("member") == b"content"
    told = {one.ranges for one in trace.events if one.path == "member"}
    assert told == {(("member", 0, None),)}


def test_what_is_exported_is_what_was_told(
    fs: headrace.HeadraceFileSystem, paths: list[str], tmp_path: Path
) -> None:
    with headrace.trace() as trace:
        fs.cat_ranges([paths[0]] * 30, list(range(0, 3000, 100)), list(range(10, 3010, 100)))
    trace.to_json(tmp_path / "trace.json")
    exported = json.loads((tmp_path / "trace.json").read_text())
    assert [one["event"] for one in exported] == [one.event for one in trace.events]
    admitted = [span for one in exported if one["event"] == "admitted" for span in one["ranges"]]
    assert admitted == [[paths[0], k, k + 10] for k in range(0, 3000, 100)]


def test_a_trace_keeps_no_bytes(
    fs: headrace.HeadraceFileSystem, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers: list[weakref.ref[Any]] = []
    made = Ops.of

    def of(sources: Any, columns: Any, buffer: Any) -> Ops:
        buffers.append(weakref.ref(buffer))
        return made(sources, columns, buffer)

    monkeypatch.setattr(Ops, "of", of)
    with headrace.trace() as trace:
        fs.read_ranges(paths[0], [0], [50_000])
        gc.collect()
        assert buffers
        assert [ref() for ref in buffers] == [None] * len(buffers)
    assert trace.events
