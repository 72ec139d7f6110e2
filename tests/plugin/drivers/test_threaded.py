"""The driver of blocking reads: which worker performs what, and how many are called for it."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from headrace.drivers.permit import Permit, permitted
from headrace.drivers.threaded import ThreadedDriver
from headrace.filesystem import HeadraceFileSystem

DATA = np.random.default_rng(1).bytes(64 << 10)
OP_BYTES = 4 << 10
WAIT_S = 30.0


class ByHand:
    """Workers whose work a test does."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.has_some = threading.Event()

    def put(self, work: Callable[[], None], *, starts: bool = True) -> None:
        assert starts
        self.work.append(work)
        self.has_some.set()

    def start_needed(self) -> None:
        """There are no threads."""


class Handle(io.BytesIO):
    """An open file that notes where it is read, and holds its first read until it is let go."""

    def __init__(self) -> None:
        super().__init__(DATA)
        self.places: list[int] = []
        self.is_read, self.gate = threading.Event(), threading.Event()

    def read(self, size: int | None = -1) -> bytes:
        self.places.append(self.tell())
        self.is_read.set()
        assert self.gate.wait(WAIT_S)
        return super().read(size)


class Handles(MemoryFileSystem):  # type: ignore[misc]
    """Opens such files."""

    cachable = False

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return Handle() if mode == "rb" else super()._open(path, mode, **options)


@pytest.fixture
def by_hand() -> ByHand:
    return ByHand()


@pytest.fixture
def fs(scheduled_mode: str, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeadraceFileSystem]:
    target = Handles()
    target.pipe_file("/file", DATA)
    fs = HeadraceFileSystem(fs=target, scheduler=scheduled_mode, max_op_bytes=OP_BYTES)
    driver = fs.channel.driver
    assert isinstance(driver, ThreadedDriver)
    monkeypatch.setattr(driver, "workers", by_hand)
    monkeypatch.setattr(driver, "_nested_workers", by_hand)
    yield fs
    target.rm_file("/file")


def begun(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def has_ended(thread: threading.Thread) -> bool:
    thread.join(WAIT_S)
    return not thread.is_alive()


def test_an_open_file_is_read_in_order_by_one_worker_at_a_time(
    fs: HeadraceFileSystem, by_hand: ByHand
) -> None:
    """A decompressor starts over to go back, and a stream cannot."""
    found: list[bytes] = []
    with fs.open("/file") as file:
        handle = file._source.handle
        reader = begun(lambda: found.append(file.read()))
        assert by_hand.has_some.wait(WAIT_S)
        worker = begun(by_hand.work[0])
        assert handle.is_read.wait(WAIT_S)
        assert has_ended(begun(by_hand.work[0])), "a second worker waits for the first"
        handle.gate.set()
        assert has_ended(worker)
        assert has_ended(reader)
        assert handle.places == list(range(0, len(DATA), OP_BYTES))
    assert found == [DATA]
    assert len(by_hand.work) <= fs.channel.io_parallelism, "others were called for what this one goes on with"


def test_what_is_granted_while_the_worker_leaves_is_performed(
    fs: HeadraceFileSystem, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after the last look, and before another worker could come to it."""
    found: list[bytes] = []
    with fs.open("/file") as file:
        file._source.handle.gate.set()
        driver = fs.channel.driver
        perform, late = driver._perform_inbox, []

        def leaving(job: Any) -> bool:
            if not late:
                late.append(job.request.inbox.pop())
                performed = perform(job)
                job.request.inbox.append(late[0])
                begun(by_hand.work[0]).join(WAIT_S)  # it finds this one still at it
                return performed
            return perform(job)

        monkeypatch.setattr(driver, "_perform_inbox", leaving)
        reader = begun(lambda: found.append(file.read()))
        assert by_hand.has_some.wait(WAIT_S)
        by_hand.work[0]()
        assert has_ended(reader)
    assert found == [DATA]


@pytest.mark.parametrize(("ops", "called"), [(16, 16), (200, 64)])
def test_workers_are_called_once_for_what_is_granted_at_once(
    fs: HeadraceFileSystem, by_hand: ByHand, ops: int, called: int
) -> None:
    """Not once more with each op: that is done with the lock of all reads."""
    starts = np.arange(ops) * 300
    with permitted(Permit(1, "/outer", 0, 1)):
        read = fs.submit_ranges("/file", starts, starts + 100)
    assert len(by_hand.work) == called
    by_hand.work[0]()
    assert b"".join(read.result().to_pylist()) == b"".join(DATA[start : start + 100] for start in starts)
