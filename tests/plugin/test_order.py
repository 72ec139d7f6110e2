"""In which order reads reach the storage: urgent ones first, then earlier files and offsets (I4).

A recording filesystem holds the first read in flight at a gate while others are submitted; with
``serialize=True`` one op is in flight at a time, so that the order in which the rest arrive is the
order the scheduler chose.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import recording
from targets import queued

import headrace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MIB = 1 << 20
Span = tuple[str, int, int]


class Gate:
    """Holds the first read until it is opened; the others pass."""

    def __init__(self, log: recording.ReadLog) -> None:
        self.log = log
        self.is_entered = threading.Event()
        self.is_open = threading.Event()
        log.clear()
        log.before_read = self

    def __call__(self, _record: recording.ReadRecord) -> None:
        if not self.is_entered.is_set():
            self.is_entered.set()
            assert self.is_open.wait(60), "nobody opened the gate"

    @property
    def later(self) -> list[Span]:
        """The reads that came after the one held, in order."""
        return [record.span for record in self.log.records[1:]]


@pytest.fixture
def gate() -> Iterator[Gate]:
    log = recording.read_log("order")
    gate = Gate(log)
    yield gate
    gate.is_open.set()
    log.before_read = None


@pytest.fixture(params=["recording", "arecording"])
def fs(request: pytest.FixtureRequest, scheduled_mode: str) -> headrace.HeadraceFileSystem:
    return headrace.HeadraceFileSystem(
        target_protocol=request.param,
        target_options={"log": "order"},
        scheduler=scheduled_mode,
        serialize=True,
    )


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    names = [tmp_path / name for name in ("a", "b", "c")]
    for name in names:
        name.write_bytes(bytes(3 * MIB))
    return [str(name) for name in names]


def _hold(fs: headrace.HeadraceFileSystem, gate: Gate, path: str) -> Any:
    """Submit a read of `path` and return when it is in flight, held at the gate."""
    read = fs.submit_ranges(path, [0], [1])
    assert gate.is_entered.wait(60), "the first read never reached the storage"
    return read


def _finish(gate: Gate, reads: list[Any]) -> None:
    gate.is_open.set()
    for read in reads:
        read.result(timeout=60)


def test_urgent_reads_overtake(fs: Any, gate: Gate, paths: list[str]) -> None:
    reads = [_hold(fs, gate, paths[0])]
    for offset, priority in ((10, 5), (20, 0), (30, -1), (40, 5), (50, -1)):
        reads.append(fs.submit_ranges(paths[0], [offset], [offset + 1], priority=priority))
    _finish(gate, reads)
    assert [start for _, start, _ in gate.later] == [30, 50, 20, 10, 40]


def test_equals_are_first_in_first_out(fs: Any, gate: Gate, paths: list[str]) -> None:
    reads = [_hold(fs, gate, paths[0])]
    offsets = [70, 10, 50, 30]
    reads += [fs.submit_ranges(paths[0], [offset], [offset + 1]) for offset in offsets]
    _finish(gate, reads)
    assert [start for _, start, _ in gate.later] == offsets


def test_views_and_contexts_set_the_priority(fs: Any, gate: Gate, paths: list[str]) -> None:
    reads = [_hold(fs, gate, paths[0])]
    reads.append(fs.submit_ranges(paths[0], [10], [11]))
    reads.append(fs.with_priority(7).submit_ranges(paths[0], [20], [21]))
    reads.append(fs.with_priority(-7).submit_ranges(paths[0], [30], [31]))
    with headrace.priority(-8):
        reads.append(fs.submit_ranges(paths[0], [40], [41]))
    _finish(gate, reads)
    assert [start for _, start, _ in gate.later] == [40, 30, 10, 20]


def test_one_request_goes_by_file_and_offset(fs: Any, gate: Gate, paths: list[str]) -> None:
    reads = [_hold(fs, gate, paths[0])]
    a, b = paths[1], paths[2]
    reads.append(fs.submit_ranges([a, b, a, b], [2 * MIB, 2 * MIB, 0, 0], [2 * MIB + 5, 2 * MIB + 5, 5, 5]))
    _finish(gate, reads)
    assert gate.later == [
        ("b", 0, 5),
        ("b", 2 * MIB, 2 * MIB + 5),
        ("c", 0, 5),
        ("c", 2 * MIB, 2 * MIB + 5),
    ]


def test_an_urgent_read_overtakes_inside_a_large_one(
    scheduled_mode: str, gate: Gate, paths: list[str]
) -> None:
    """Admission is by slices: what is not yet admitted of a request waits for the urgent one."""
    fs = headrace.HeadraceFileSystem(
        target_protocol="recording",
        target_options={"log": "order"},
        scheduler=scheduled_mode,
        serialize=True,
        max_op_bytes=MIB,
    )
    large = fs.submit_ranges(paths[0], [0], [3 * MIB])
    assert gate.is_entered.wait(60)
    urgent = fs.submit_ranges(paths[1], [0], [5], priority=-1)
    _finish(gate, [large, urgent])
    assert gate.later == [("b", 0, 5), ("a", MIB, 2 * MIB), ("a", 2 * MIB, 3 * MIB)]


def test_files_opened_earlier_go_first(
    fs: Any, gate: Gate, paths: list[str], wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    """The default priority of a scan's reads; they are asked for in the opposite order."""
    files = [fs.open(path, "rb") for path in paths[1:]]
    held = _hold(fs, gate, paths[0])

    def read(file: Any) -> bytes:
        file.seek(MIB)
        return file.read(10)

    with ThreadPoolExecutor(len(files)) as pool:
        for count, file in enumerate(reversed(files), start=1):
            pool.submit(read, file)
            wait_until(lambda count=count: queued(fs) == count)
        _finish(gate, [held])
    assert [(name, start) for name, start, _ in gate.later] == [("b", MIB), ("c", MIB)]


def test_a_file_opened_as_urgent_goes_first(
    fs: Any, gate: Gate, paths: list[str], wait_until: Callable[[Callable[[], bool]], None]
) -> None:
    files = [fs.open(paths[1], "rb"), fs.open(paths[2], "rb", priority=-1)]
    held = _hold(fs, gate, paths[0])
    with ThreadPoolExecutor(len(files)) as pool:
        for count, file in enumerate(files, start=1):
            pool.submit(file.read, 10)
            wait_until(lambda count=count: queued(fs) == count)
        _finish(gate, [held])
    assert [name for name, _, _ in gate.later] == ["c", "b"]
