"""Sessions of async filesystems: closed on their loop when nobody reads any more, while nobody waits."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any, ClassVar

import pytest
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.dirfs import DirFileSystem

import headrace
from headrace.drivers import asynchronous_lite, loop
from headrace.drivers.loop import LoopThread

WAIT_S = 20.0


class Session:
    """What s3fs calls its client: something that must be closed on its loop."""

    def __init__(self) -> None:
        self.is_closed = threading.Event()
        self.closed_on = 0

    async def close(self) -> None:
        self.closed_on = threading.get_ident()
        self.is_closed.set()


class SessionFileSystem(AsyncFileSystem):
    protocol = "sessions"
    cachable = False
    sessions: ClassVar[list[Session]] = []

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._session = Session()
        self.sessions.append(self._session)

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": 3, "type": "file"}

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return path.encode()[start:end]


@pytest.mark.parametrize("is_in_a_cycle", [False, True])
def test_it_is_closed_when_nobody_reads_any_more(scheduled_mode: str, is_in_a_cycle: bool) -> None:
    SessionFileSystem.sessions.clear()
    fs = headrace.HeadraceFileSystem(
        fs=SessionFileSystem(), scheduler=scheduled_mode, skip_instance_cache=True
    )
    assert fs.cat_file("abcdef", 1, 3) == b"bc"
    reading = SessionFileSystem.sessions[1]  # the one made for headrace's own loop
    knot: list[Any] = [fs]
    if is_in_a_cycle:
        knot.append(knot)
    del fs, knot
    started_s = time.monotonic()
    gc.collect()
    took_s = time.monotonic() - started_s
    assert reading.is_closed.wait(WAIT_S)
    # A finaliser may run anywhere, the loop's own thread included: it must not wait for the loop.
    assert reading.closed_on != threading.get_ident()
    assert took_s < WAIT_S / 4
    assert not SessionFileSystem.sessions[0].is_closed.is_set(), "the program's own session"


def test_folders_of_one_store_share_one_and_it_is_closed_after_the_last(scheduled_mode: str) -> None:
    SessionFileSystem.sessions.clear()
    store = SessionFileSystem()

    def wrapped(target: Any) -> headrace.HeadraceFileSystem:
        return headrace.HeadraceFileSystem(fs=target, scheduler=scheduled_mode, skip_instance_cache=True)

    first, second = (wrapped(DirFileSystem(name, store, skip_instance_cache=True)) for name in ("a", "b"))
    assert first.cat_file("x", 0, 3) == b"a/x"
    assert second.cat(["x", "y"]) == {"x": b"b/x", "y": b"b/y"}
    plain = wrapped(store)
    assert plain.cat_file("xyz", 1, 3) == b"yz"
    _, reading = SessionFileSystem.sessions
    driver = second.channel.driver  # type: ignore[union-attr]
    closes = list[str]()
    driver.close = lambda: (closes.append("now"), type(driver).close(driver))  # type: ignore[method-assign]
    del first, plain
    gc.collect()
    assert second.cat_file("z", 0, 3) == b"b/z"
    assert not closes
    del second
    gc.collect()
    assert reading.is_closed.wait(WAIT_S)
    assert closes == ["now"]


def test_a_loop_ends_after_what_it_must_finish() -> None:
    """A script may end just after it dropped its last filesystem, whose session is still being closed."""
    thread, may_end, ended = LoopThread(), threading.Event(), list[int]()

    async def finish(number: int) -> None:
        while not may_end.is_set():  # noqa: ASYNC110 - it is set on another thread
            await asyncio.sleep(0)
        for _ in range(5 * number):
            await asyncio.sleep(0)
        ended.append(number)

    begun = threading.Event()

    def begin() -> None:
        for number in (1, 2):
            thread.finish_before_end(finish(number))
        begun.set()

    thread.call(begin)
    assert begun.wait(WAIT_S)
    thread.loop.call_soon_threadsafe(thread.loop.call_soon, may_end.set)
    thread.close(WAIT_S)
    assert (ended, thread.loop.is_closed()) == ([1, 2], True)


def test_a_loop_ends_under_what_does_not_finish() -> None:
    thread, tasks, begun = LoopThread(), list[Any](), threading.Event()

    async def never() -> None:
        await thread.loop.create_future()

    def begin() -> None:
        tasks.append(thread.finish_before_end(never()))
        tasks[0]._log_destroy_pending = False  # meant
        begun.set()

    thread.call(begin)
    assert begun.wait(WAIT_S)
    thread.close(0.01)
    thread._thread.join(WAIT_S)  # type: ignore[union-attr]
    assert not thread.is_alive


def test_at_exit_it_is_closed_where_no_thread_can_be_started(
    scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Python 3.12 has it. What runs a loop already closes on that."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    SessionFileSystem.sessions.clear()
    fs = headrace.HeadraceFileSystem(
        fs=SessionFileSystem(), scheduler=scheduled_mode, skip_instance_cache=True
    )
    assert fs.cat_file("abcdef", 1, 3) == b"bc"
    for module in (asynchronous_lite, loop):
        monkeypatch.setattr(module, "start_thread", refuse)
    driver = fs.channel.driver
    driver.close_at_exit()
    assert driver.closed.wait(WAIT_S)
    assert SessionFileSystem.sessions[1].is_closed.is_set()
    driver.close_at_exit()
    assert driver.closed.is_set()
