"""Reads that were given up while storage was still at work: what they leave alone, and what goes on."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem
from targets import at_rest

import headrace
import headrace.runtime
from headrace import HeadraceFileSystem, ReadTimeoutError
from headrace.drivers.apart import call_apart
from headrace.drivers.engine import Engine
from headrace.drivers.waiting import wait_until_over
from headrace.errors import SchedulerClosedError
from headrace.reader import Reader
from headrace.testing import Fault, ObjectServer

Wait = Callable[[Callable[[], bool]], None]

DATA = bytes(range(256)) * 4
WAIT_S = 30.0
SOON_S = 0.05

may_go = threading.Event()
"""Until it is set, nothing but "free" is read."""


class Handle:
    """An open file, which waits for `may_go`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.at = 0
        self.size = len(DATA)
        self.closed = False

    def seek(self, at: int, whence: int = 0) -> int:
        self.at = at if whence == 0 else len(DATA) + at
        return self.at

    def read(self, length: int) -> bytes:
        if self.path != "free":
            assert may_go.wait(WAIT_S)
        data = DATA[self.at : self.at + length]
        self.at += len(data)
        return data

    def close(self) -> None:
        self.closed = True


class Held(AbstractFileSystem):
    """Serves `DATA` when it may."""

    protocol = "held"
    cachable = False

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(DATA), "type": "file"}

    def open(self, path: str, *_: Any, **__: Any) -> Any:
        return Handle(path)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        if path != "free":
            assert may_go.wait(WAIT_S)
        return DATA[start:end]


class HeldAsync(AsyncFileSystem):
    """The same with coroutines, one of which does not heed that it is cancelled."""

    protocol = "heldasync"
    cachable = False

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": len(DATA), "type": "file"}

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        waiting = asyncio.ensure_future(asyncio.to_thread(may_go.wait, WAIT_S))
        while not waiting.done():
            try:
                await asyncio.shield(waiting)
            except asyncio.CancelledError:
                continue
        return DATA[start:end]


@pytest.fixture(autouse=True)
def _held() -> Iterator[None]:
    may_go.clear()
    yield
    may_go.set()


KINDS = {"sync": Held, "async": HeldAsync}


@pytest.fixture(params=KINDS)
def fs(request: pytest.FixtureRequest, scheduled_mode: str) -> HeadraceFileSystem:
    return HeadraceFileSystem(fs=KINDS[request.param](), scheduler=scheduled_mode, timeout_s=SOON_S)


def into_a_file(fs: HeadraceFileSystem, out: bytearray) -> None:
    fs.open("a", cache_type="none").readinto(out)


def into_a_batch(fs: HeadraceFileSystem, out: bytearray) -> None:
    fs.read_ranges("a", [0, 10], [10, 20], out=out)


@pytest.mark.parametrize("read", [into_a_file, into_a_batch])
def test_the_callers_memory_is_his_again(
    fs: HeadraceFileSystem, read: Callable[[HeadraceFileSystem, bytearray], None], wait_until: Wait
) -> None:
    out = bytearray(20)
    with pytest.raises(ReadTimeoutError):
        read(fs, out)
    out[:] = b"mine" * 5
    may_go.set()
    wait_until(lambda: not fs.stats().in_flight_ops)
    assert out == b"mine" * 5
    assert fs.read_ranges("free", [5, 15], [15, 25], out=out).to_pylist() == [DATA[5:15], DATA[15:25]]
    assert out == DATA[5:25]


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_of_a_coroutine_that_was_cancelled_is_the_callers(
    kind: str, mode: str, wait_until: Wait
) -> None:
    fs, out = HeadraceFileSystem(fs=KINDS[kind](), scheduler=mode), bytearray(20)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(fs._read_ranges("a", [0, 10], [10, 20], out=out), SOON_S)
        out[:] = b"mine" * 5
        may_go.set()
        await fs._read_ranges("free", [0], [5])  # after it, where the filesystem is one thread's at a time
        await asyncio.to_thread(wait_until, lambda: at_rest(fs))
        assert out == b"mine" * 5
        found = await fs._read_ranges("free", [5, 15], [15, 25], out=out)
        assert found.to_pylist() == [DATA[5:15], DATA[15:25]]
        assert out == DATA[5:25]
        with pytest.raises(ValueError, match="out holds 20 bytes, the result needs 21"):
            await fs._read_ranges("free", [5], [26], out=out)

    asyncio.run(main())


def test_the_memory_of_a_coroutine_that_reads_many_files_is_the_callers(
    scheduled_mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread reads those, some at a time, and reads on when it is cancelled."""
    monkeypatch.setattr("headrace.reader.MOST_OPEN", 1)
    paths = [str(tmp_path / name) for name in "ab"]
    for path in paths:
        Path(path).write_bytes(DATA)
    fs = HeadraceFileSystem(fs=LocalFileSystem(), scheduler=scheduled_mode)
    out, begun, over = bytearray(20), threading.Event(), threading.Event()
    read = Reader._read_in_blocks

    def held(*args: Any) -> Any:
        begun.set()
        assert may_go.wait(WAIT_S)
        try:
            return read(*args)
        finally:
            over.set()

    monkeypatch.setattr(Reader, "_read_in_blocks", held)

    async def main() -> None:
        reading = asyncio.ensure_future(fs._read_ranges(paths, [0, 0], [10, 10], out=out))
        assert await asyncio.to_thread(begun.wait, WAIT_S)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        may_go.set()
        assert await asyncio.to_thread(over.wait, WAIT_S)
        assert out == bytes(20)

    asyncio.run(main())


def test_a_file_that_is_closed_with_a_read_on_its_way_holds_up_nobody(
    scheduled_mode: str, wait_until: Wait
) -> None:
    """That read waits for the filesystem, which another thread's read has; then it needs the file."""
    fs = HeadraceFileSystem(fs=Held(), scheduler=scheduled_mode, timeout_s=SOON_S)
    others, mine = (fs.open(path, cache_type="none") for path in ("other", "mine"))
    with pytest.raises(ReadTimeoutError):
        others.read(5)
    with pytest.raises(ReadTimeoutError):
        mine.read(5)
    mine.close()
    may_go.set()
    wait_until(lambda: not fs.stats().in_flight_ops)
    assert fs.cat_file("free", 0, 5) == DATA[:5]
    assert fs.info("mine")["size"] == len(DATA)


def test_a_local_file_in_standard_mode(tmp_path: Any) -> None:
    """Where it is read into the caller's memory by way of our own."""
    path = tmp_path / "data.bin"
    path.write_bytes(DATA * 1000)
    fs = HeadraceFileSystem(fs=LocalFileSystem(), scheduler="standard", timeout_s=WAIT_S)
    out = bytearray(len(DATA) * 900)
    with fs.open(path, cache_type="none") as file:
        assert file.readinto(out) == len(out)
    assert out == (DATA * 1000)[: len(out)]


# -- many waits are no longer than one


class Gated(AbstractFileSystem):
    """Answers when its gate is open."""

    protocol = "headhold"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def info(self, path: str, **_kwargs: Any) -> dict[str, Any]:
        return {"name": path, "size": 10, "type": "file"}

    def expand_path(self, path: Any, *_args: Any, **_kwargs: Any) -> list[str]:
        return path if isinstance(path, list) else [path]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_kwargs: Any) -> bytes:
        assert self.gate.wait(30)
        return b"0123456789"[start:end]


def test_several_files_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time-out is that of the call: what is left of it is what the next one has."""
    target, given = Gated(), []
    fs = HeadraceFileSystem(fs=target, timeout_s=0.2, skip_instance_cache=True)
    wait = type(fs.channel.driver).wait

    def noting(driver: Any, job: Any, timeout_s: float | None = None) -> None:
        given.append(timeout_s)
        wait(driver, job, timeout_s)

    monkeypatch.setattr(type(fs.channel.driver), "wait", noting)
    try:
        found = fs.cat(["a", "b", "c"], on_error="return")
        assert {name: type(answer) for name, answer in found.items()} == dict.fromkeys(
            "abc", ReadTimeoutError
        )
        assert all("0.2 s" in str(answer) for answer in found.values())
        assert given[1:] == [0, 0]
    finally:
        target.gate.set()


TOGETHER: dict[str, Callable[[HeadraceFileSystem, list[str]], Any]] = {
    "whole files": lambda fs, paths: fs.cat(paths),
    "a batch in blocks": lambda fs, paths: fs.read_ranges(paths, [5] * 3, [9] * 3),
    "ranges in blocks": lambda fs, paths: fs.cat_ranges(paths, [5] * 3, [9] * 3),
    "odd bounds": lambda fs, paths: fs.cat_ranges(paths[:1] * 3, [5, -5, None], [9, None, 5]),
}


@pytest.mark.parametrize("how", TOGETHER)
def test_several_reads_of_local_files_are_one_call(
    tmp_path: Path, scheduled_mode: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time-out is that of the call here, too."""
    paths, left = [str(tmp_path / name) for name in "abc"], []
    for path in paths:
        Path(path).write_bytes(DATA)
    fs = HeadraceFileSystem(fs=LocalFileSystem(), scheduler=scheduled_mode, timeout_s=WAIT_S)
    run = type(fs.channel.driver).run

    def running(driver: Any, job: Any, timeout_s: float) -> None:
        left.append(timeout_s)
        run(driver, job, timeout_s)

    def waiting(job: Any, timeout_s: float, *, until_s: float | None = None, **options: Any) -> None:
        left.append(timeout_s if until_s is None else until_s - perf_counter())
        wait_until_over(job, timeout_s, until_s=until_s, **options)

    monkeypatch.setattr("headrace.reader.MOST_OPEN", 1 if "blocks" in how else 256)
    monkeypatch.setattr(type(fs.channel.driver), "run", running)
    monkeypatch.setattr("headrace.single.wait_until_over", waiting)
    with headrace.trace():  # nothing is read past the scheduler then
        TOGETHER[how](fs, paths)
    assert len(left) == 3
    assert WAIT_S >= left[0] > left[1] > left[2]


class Broken(Gated):
    """Answers no range that is longer than one was asked for."""

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        if end is not None and end - (start or 0) > 2:
            raise OSError(path)
        return super().cat_file(path, start, end, **kwargs)


@pytest.mark.parametrize("is_late", [False, True])
def test_what_is_asked_again_has_what_is_left_of_the_time(
    monkeypatch: pytest.MonkeyPatch, *, is_late: bool
) -> None:
    target, given = Broken(), []
    fs = HeadraceFileSystem(
        fs=target, timeout_s=0.2 if is_late else WAIT_S, max_gap_bytes=10, skip_instance_cache=True
    )
    run = type(fs.channel.driver).run

    def noting(driver: Any, job: Any, timeout_s: float) -> None:
        given.append(timeout_s)
        run(driver, job, timeout_s)

    monkeypatch.setattr(type(fs.channel.driver), "run", noting)
    try:
        if is_late:
            with pytest.raises(ReadTimeoutError, match=r"within 0\.2 s"):
                fs.read_ranges("a", [0, 5], [2, 7])
        else:
            target.gate.set()
            assert fs.read_ranges("a", [0, 5], [2, 7]).to_pylist() == [b"01", b"56"]
        first, second = given
        assert second < first
    finally:
        target.gate.set()


def test_memory_of_a_caller_is_not_lent_to_reads_of_two_devices(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are launched, and may be in flight when the call has failed (I9)."""
    (tmp_path / "data").write_bytes(bytes(range(200)))
    path = str(tmp_path / "data")
    fs = HeadraceFileSystem(target_protocol="file", scheduler="lite", skip_instance_cache=True)
    reader, lent = fs._reader, []
    monkeypatch.setattr(reader, "_by_device", lambda _: {path: np.array([0]), path + "2": np.array([1])})
    monkeypatch.setattr(fs.channel.backend, "device", str)
    prepare = reader._prepare

    def noting(*args: Any, **kwargs: Any) -> Any:
        parts, buffer = prepare(*args, **kwargs)
        lent.append(any(np.shares_memory(part.job.ops.buffer, out) for part in parts))
        return parts, buffer

    monkeypatch.setattr(reader, "_prepare", noting)
    out = np.zeros(100, np.uint8)
    monkeypatch.setattr("headrace.reader.read_cached", lambda *_: None)
    fs.read_ranges(path, [0, 100], [50, 150], out=out)
    assert lent == [False]
    assert out.tolist() == [*range(50), *range(100, 150)]


def over_s3(server: ObjectServer, **options: Any) -> HeadraceFileSystem:
    return HeadraceFileSystem(target_protocol="s3", target_options=server.storage_options(), **options)


@pytest.mark.parametrize("engine", ["obstore", "fsspec"])
def test_async_reads_need_no_thread_of_the_programs(engine: str, scheduled_mode: str) -> None:
    """All of its executor's may be waiting for these very reads."""
    with ObjectServer() as server:
        server.put("bucket", "key", bytes(range(100)))
        fs = over_s3(server, cloud_engine=engine, scheduler=scheduled_mode, asynchronous=True)

        async def main() -> list[bytes]:
            loop = asyncio.get_running_loop()
            loop.set_default_executor(ThreadPoolExecutor(1))

            def work(start: int) -> bytes:
                read = fs._cat_file("bucket/key", start=start, end=start + 10)
                return bytes(asyncio.run_coroutine_threadsafe(read, loop).result(30))

            return list(await asyncio.gather(*(asyncio.to_thread(work, start) for start in (0, 50))))

        assert asyncio.run(main()) == [bytes(range(10)), bytes(range(50, 60))]


GIVEN_UP: dict[str, Callable[[HeadraceFileSystem], Any]] = {
    "whole": lambda fs: fs._cat_file("bucket/key"),
    "several": lambda fs: fs._cat(["bucket/key", "bucket/other"]),
    "odd": lambda fs: fs._cat_ranges(["bucket/key"] * 2, [None, 3], [5, None]),
    "offsets": lambda fs: fs._cat_ranges(["bucket/key"] * 2, [0, 50], [5, 60]),
}


@pytest.mark.parametrize("engine", ["obstore", "fsspec"])
@pytest.mark.parametrize("how", GIVEN_UP)
def test_async_reads_that_are_given_up_hold_no_thread(
    engine: str, scheduled_mode: str, how: str, monkeypatch: pytest.MonkeyPatch, wait_until: Wait
) -> None:
    """A thousand of them, and nothing that takes such a thread would be awaited in this process."""

    async def call_apart(function: Any, *_args: Any) -> Any:
        raise AssertionError(function)

    monkeypatch.setattr("headrace.reader.call_apart", call_apart)
    let_go: Future[None] = Future()
    with ObjectServer() as server:
        for name in ("key", "other"):
            server.put("bucket", name, bytes(range(100)))
        fs = over_s3(server, cloud_engine=engine, scheduler=scheduled_mode, skip_instance_cache=True)
        expected = asyncio.run(GIVEN_UP[how](fs))
        server.script = lambda _request: Fault(until=let_go)

        async def give_up() -> None:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(GIVEN_UP[how](fs), 0.05)

        try:
            asyncio.run(give_up())
            assert fs.stats().devices[0].queued_requests == 0
        finally:
            let_go.set_result(None)
        wait_until(lambda: at_rest(fs))
        assert asyncio.run(GIVEN_UP[how](fs)) == expected


@pytest.mark.parametrize("engine", ["obstore", "fsspec"])
@pytest.mark.parametrize("how", GIVEN_UP)
def test_async_reads_whose_loop_is_closed_keep_nothing(
    engine: str, scheduled_mode: str, how: str, wait_until: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    """They end on ours, and nobody is there to take them."""
    let_go: Future[None] = Future()
    with ObjectServer() as server:
        for name in ("key", "other"):
            server.put("bucket", name, bytes(range(100)))
        fs = over_s3(server, cloud_engine=engine, scheduler=scheduled_mode, skip_instance_cache=True)
        server.script = lambda _request: Fault(until=let_go)
        loop = asyncio.new_event_loop()
        read = loop.create_task(GIVEN_UP[how](fs))
        while not server.in_progress:
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        let_go.set_result(None)
        wait_until(lambda: at_rest(fs))
        del read
        gc.collect()
    assert {record.name for record in caplog.records} == {"asyncio"}, "which says that it is not awaited"


@pytest.mark.parametrize("engine", ["obstore", "fsspec"])
def test_many_async_reads_end_where_what_is_due_after_them_is_cut(
    engine: str, scheduled_mode: str, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go: Future[None] = Future()

    def cut(_engine: Engine) -> None:
        raise SchedulerClosedError

    async def main() -> None:
        read = asyncio.ensure_future(fs._cat_ranges(["bucket/key"] * 9, None, None))
        await asyncio.to_thread(wait_until, lambda: server.in_progress == 9)
        turns = asyncio.all_tasks() - {read, asyncio.current_task()}
        read.cancel()
        with monkeypatch.context() as patched:
            patched.setattr(Engine, "settle_lost", cut)
            with pytest.raises(SchedulerClosedError):
                await read
        let_go.set_result(None)
        await asyncio.wait(turns)
        assert [turn.cancelled() for turn in turns] == [True] * 8

    with ObjectServer() as server:
        server.put("bucket", "key", DATA)
        fs = over_s3(server, cloud_engine=engine, scheduler=scheduled_mode, skip_instance_cache=True)
        server.script = lambda _request: Fault(until=let_go)
        asyncio.run(main())
        assert fs.cat_file("bucket/key") == DATA
        wait_until(lambda: at_rest(fs))


@pytest.mark.parametrize("engine", ["obstore", "fsspec"])
def test_an_async_read_is_told_again_of_its_end_where_that_was_cut(
    engine: str, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of a handler's may be of the kind that a closed loop raises."""
    cuts = [RuntimeError("a signal handler's")]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        tell = loop.call_soon_threadsafe

        def cut(*args: Any) -> Any:
            if cuts:
                raise cuts.pop()
            return tell(*args)

        monkeypatch.setattr(loop, "call_soon_threadsafe", cut)
        with pytest.raises(FileNotFoundError):
            await asyncio.wait_for(fs._cat_file("bucket/key"), WAIT_S)

    with ObjectServer() as server:
        fs = over_s3(server, cloud_engine=engine, scheduler=scheduled_mode, skip_instance_cache=True)
        asyncio.run(main())
    assert not cuts


def test_a_call_of_a_thread_apart_that_stops_an_iteration_ends() -> None:
    """No future takes such an exception."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(call_apart(next, iter(())), WAIT_S)

    asyncio.run(main())


@pytest.mark.parametrize("engine", ["obstore", "fsspec"])
def test_whole_files_on_their_way_hold_up_no_other_read(
    engine: str, scheduled_mode: str, wait_until: Wait
) -> None:
    """They may last: what counts in the link's limit is what has to come in time."""
    let_go: Future[None] = Future()
    with ObjectServer() as server:
        for number in range(12):
            server.put("bucket", f"large-{number}", bytes(100))
        server.put("bucket", "small", bytes(range(100)))
        fs = over_s3(server, cloud_engine=engine, scheduler=scheduled_mode, skip_instance_cache=True)
        assert fs.cat_file("bucket/small", 0, 10) == bytes(range(10))
        server.script = lambda asked: Fault(until=let_go) if asked.key != "small" else None
        large = [f"bucket/large-{number}" for number in range(12)]
        thread = threading.Thread(target=fs.cat, args=(large,))
        thread.start()
        try:
            wait_until(lambda: server.in_progress == 12)
            assert fs.cat_file("bucket/small", 10, 20) == bytes(range(10, 20))
        finally:
            let_go.set_result(None)
            thread.join(WAIT_S)


def test_ranges_of_several_stores_are_awaited_together(wait_until: Wait) -> None:
    """The second store is asked while the first does not answer."""
    let_go: Future[None] = Future()
    with ObjectServer() as server:
        for bucket in ("one", "two"):
            server.put(bucket, "key", bytes(range(100)))
        fs = over_s3(server, skip_instance_cache=True)
        assert fs.cat_file("one/key", 0, 10) == bytes(range(10))
        server.script = lambda asked: Fault(until=let_go) if asked.bucket == "one" else None

        async def main() -> list[Any]:
            reads = asyncio.ensure_future(fs._cat_ranges(["one/key", "two/key"], [0, 5], [5, 10]))
            await asyncio.to_thread(wait_until, lambda: any(one.bucket == "two" for one in server.requests))
            assert not reads.done()
            let_go.set_result(None)
            return list(await reads)

        assert asyncio.run(main()) == [bytes(range(5)), bytes(range(5, 10))]


@pytest.mark.parametrize("engine", ["obstore", "fsspec"])
def test_an_end_beyond_all_files_is_that_of_the_file(engine: str, scheduled_mode: str) -> None:
    with ObjectServer() as server:
        server.put("bucket", "key", bytes(range(100)))
        fs = over_s3(server, cloud_engine=engine, scheduler=scheduled_mode)
        assert fs.cat_ranges(["bucket/key"], [90], [sys.maxsize]) == [bytes(range(90, 100))]
        assert fs.read_ranges("bucket/key", [95], [sys.maxsize]).to_pylist() == [bytes(range(95, 100))]


def test_what_is_submitted_is_what_was_asked(tmp_path: Path, scheduled_mode: str) -> None:
    """Whatever becomes of the arrays; ranges past the end are asked for once more, by themselves."""
    (tmp_path / "data").write_bytes(bytes(range(100)))
    fs = HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode, skip_instance_cache=True)
    starts, ends = np.array([10, 150]), np.array([20, 160])
    read = fs.submit_ranges(str(tmp_path / "data"), starts, ends)
    starts[:], ends[:] = 0, 90
    assert read.result(WAIT_S).to_pylist() == [bytes(range(10, 20)), b""]


def test_ranges_that_are_one_fit_memory_for_one(tmp_path: Path, scheduled_mode: str) -> None:
    """Whether or not the page cache has them."""
    (tmp_path / "data").write_bytes(bytes(range(100)))
    fs = HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode, skip_instance_cache=True)
    out = np.zeros(10, np.uint8)
    found = fs.read_ranges(str(tmp_path / "data"), [5, 5], [15, 15], out=out)
    assert found.to_pylist() == [bytes(range(5, 15))] * 2


def test_what_is_asked_for_once_more_is_as_urgent(tmp_path: Path, scheduled_mode: str) -> None:
    (tmp_path / "data").write_bytes(bytes(range(100)))
    fs = HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode, skip_instance_cache=True)
    with headrace.trace() as trace:
        fs.read_ranges(str(tmp_path / "data"), [10, 150], [20, 160], priority=-5)
    queued = [event.priority[0] for event in trace.events if event.event == "queued"]
    assert queued == [-5] * len(queued)
    assert len(queued) == 2


class GatedAgain(Gated):
    """Answers once, and to what is asked afterwards when its gate is open."""

    protocol = "headagain"

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_kwargs: Any) -> bytes:
        self.asked += 1
        return b"0123456789"[start:end] if self.asked == 1 else super().cat_file(path, start, end)


def test_what_is_asked_for_once_more_keeps_to_the_time_out_of_the_result(scheduled_mode: str) -> None:
    target = GatedAgain()
    fs = HeadraceFileSystem(fs=target, scheduler=scheduled_mode, skip_instance_cache=True)
    read = fs.submit_ranges("a", [0, 12], [5, 14])
    try:
        with pytest.raises(ReadTimeoutError, match=r"a: not finished within 0\.3 s"):
            read.result(0.3)
    finally:
        target.gate.set()
    assert read.result(WAIT_S).to_pylist() == [b"01234", b""]


def test_a_read_need_not_wait_for_another_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in flight there frees nothing of the budget that this thread's own results hold."""
    own = headrace.runtime.Runtime()
    monkeypatch.setattr(headrace.runtime, "_current", own)
    (tmp_path / "data").write_bytes(bytes(6 << 20))
    path, target = str(tmp_path / "data"), Gated()
    budget = {"buffer_bytes": 8 << 20, "skip_instance_cache": True}
    stuck = HeadraceFileSystem(fs=target, **budget)
    local = HeadraceFileSystem(target_protocol="file", scheduler="standard", **budget)
    hanging = stuck.submit_ranges("a", [0], [10])
    try:
        first = local.submit_ranges(path, [0], [6 << 20])
        assert len(local.read_ranges(path, [0], [3 << 20])) == 1
        assert len(first.result(WAIT_S)) == 1
    finally:
        target.gate.set()
    assert hanging.result(WAIT_S).to_pylist() == [b"0123456789"]
    own.close(SchedulerClosedError("the test is over"))
