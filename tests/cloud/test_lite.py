"""Lite mode on a store: what nobody polls goes on all the same, and without the keeper it does not.

Reads run on a thread of their own: the main thread, where pytest handles an alarm, leaves the loop to the
keeper in any case.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import headrace
from headrace.drivers import asynchronous_lite, waiting
from headrace.drivers.asynchronous_lite import LiteAsyncDriver
from headrace.errors import ReadTimeoutError
from headrace.testing import Fault, ObjectServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headrace.testing import ServedRequest

BIG = bytes(range(256)) * (1 << 15)
WAIT_S = 30.0
TRY_S = 3.0


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.put("bucket", "big", BIG)
        server.put("bucket", "small", b"small")
        yield server


@pytest.fixture(params=[True, False], ids=["kept", "keeper disabled"])
def is_kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(LiteAsyncDriver, "keep", lambda _self, _after_s: None)
    return bool(request.param)


def elsewhere(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call it on another thread."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(function, *args, **kwargs).result(WAIT_S)


def small(fs: headrace.HeadraceFileSystem) -> bytes:
    data: bytes = elsewhere(fs.cat_file, "bucket/small", start=0, end=5)
    return data


def filesystem(server: ObjectServer, **options: Any) -> headrace.HeadraceFileSystem:
    options.setdefault("cloud_engine", "fsspec")  # the other one has no loop
    fs = headrace.HeadraceFileSystem(
        target_protocol="s3", target_options=server.storage_options(), scheduler="lite", **options
    )
    assert small(fs) == b"small"  # the session is made
    server.forget()
    return fs


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline_s
        threading.Event().wait(0.001)


def test_a_request_that_nobody_polls_is_sent(server: ObjectServer, is_kept: bool) -> None:
    fs = filesystem(server)
    read = fs.submit_ranges("bucket/small", [0], [5])
    if is_kept:
        wait_until(read.done)
    else:
        driver = fs.channel.driver
        assert isinstance(driver, LiteAsyncDriver)
        assert driver.has_work()
        assert not driver.loop.is_running()
        assert server.request_count == 0
    assert bytes(elsewhere(read.result, WAIT_S)[0]) == b"small", "a waiter drives it in any case"


def test_a_thread_that_runs_a_loop_has_the_keeper_at_once(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it waits to see whether somebody polls what was submitted."""
    fs = filesystem(server)
    driver = fs.channel.driver
    assert isinstance(driver, LiteAsyncDriver)

    async def read() -> bytes:
        data: bytes = fs.cat_file("bucket/small", 0, 5)
        return data

    with monkeypatch.context() as patched:
        patched.setattr(asynchronous_lite, "KEEPER_S", 1000.0)
        patched.setattr(waiting, "LOOK_S", 1000.0)  # nor does who waits look after it
        submitted = fs.submit_ranges("bucket/small", [0], [5])
        assert elsewhere(asyncio.run, read()) == b"small"
        assert bytes(submitted.result(WAIT_S)[0]) == b"small"
    driver.loop.call_soon_threadsafe(driver.loop.stop)  # or the keeper runs it for as long
    wait_until(lambda: driver._keeper is None)


def test_a_response_that_is_half_read_does_not_time_out(server: ObjectServer, is_kept: bool) -> None:
    fs = filesystem(server, retries=0, try_timeout_s=TRY_S, max_op_bytes=len(BIG))
    gate: Future[None] = Future()

    def script(request: ServedRequest) -> Fault | None:
        return Fault(until=gate) if request.key == "big" else None

    server.script = script
    read = fs.submit_ranges("bucket/big", [0], [len(BIG)])
    # This one drives the loop, sends the other's request too, and leaves when it has its own answer.
    assert small(fs) == b"small"
    wait_until(lambda: any(request.key == "big" for request in server.requests))
    gate.set_result(None)
    big = next(request for request in server.requests if request.key == "big")
    wait_until(lambda: big.sent_bytes > 0)
    threading.Event().wait(1.1 * TRY_S)  # longer than an attempt may take: what a busy consumer does
    if is_kept:
        assert bytes(elsewhere(read.result, WAIT_S)[0]) == BIG
    else:
        with pytest.raises(ReadTimeoutError, match="an attempt took longer"):
            bytes(elsewhere(read.result, WAIT_S)[0])


def test_a_connection_that_was_closed_while_idle_is_not_used_again(
    server: ObjectServer, is_kept: bool
) -> None:
    """With a keeper or without: nothing is in flight, and a loop that runs again first sees what ended."""
    fs = filesystem(server, retries=0)
    server.drop_connections()
    assert small(fs) == b"small"
    assert fs.stats().in_flight_ops == 0


def test_a_read_that_is_over_leaves_nothing_to_do(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to run the loop for it again: no keeper starts, and nothing holds its bytes."""
    fs = headrace.HeadraceFileSystem(
        target_protocol="s3",
        target_options=server.storage_options(),
        cloud_engine="fsspec",
        scheduler="lite",
        retries=3,
    )
    driver = fs.channel.driver
    assert isinstance(driver, LiteAsyncDriver)
    assert elsewhere(fs.cat_file, "bucket/small") == b"small"  # makes the client
    kept, jobs = [], []
    monkeypatch.setattr(LiteAsyncDriver, "keep", lambda _self, after_s: kept.append(after_s))
    take = LiteAsyncDriver._take

    def noted(self: LiteAsyncDriver, job: Any) -> None:
        jobs.append(weakref.ref(job))
        take(self, job)

    monkeypatch.setattr(LiteAsyncDriver, "_take", noted)
    assert elsewhere(fs.cat_file, "bucket/big", 0, 100_000) == BIG[:100_000]
    gc.collect()
    assert (driver.has_work(), kept, [job() for job in jobs]) == (False, [], [None])
