"""`submit_ranges`: time-outs, cancelling, dropping, failing, and a budget smaller than what waits.

A recording filesystem holds the first read at a gate, so that each test knows what is in flight
and what is queued.  Whatever happens to one read, the others get their bytes, and at the end
nothing is reserved or in flight (I3).
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import itertools
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import pytest
import recording
from targets import at_rest

import headrace
from headrace.read import Read

MIB = 1 << 20
CONTENT = bytes(range(256)) * 4096 * 8
Wait = Callable[[Callable[[], bool]], None]

_budgets = itertools.count(64 * MIB)
"""One of its own has an engine, and so counters, of its own."""


@pytest.fixture
def log() -> Iterator[recording.ReadLog]:
    log = recording.read_log("submit")
    log.clear()
    yield log
    log.before_read = None


@pytest.fixture
def gate(log: recording.ReadLog) -> Iterator[threading.Event]:
    """Opens the way for reads; until then they stay in flight."""
    is_open = threading.Event()

    def hold(_record: recording.ReadRecord) -> None:
        assert is_open.wait(60), "nobody opened the gate"

    log.before_read = hold
    yield is_open
    is_open.set()


@pytest.fixture(params=["recording", "arecording"])
def fs(request: pytest.FixtureRequest, scheduled_mode: str) -> headrace.HeadraceFileSystem:
    return headrace.HeadraceFileSystem(
        target_protocol=request.param,
        target_options={"log": "submit"},
        scheduler=scheduled_mode,
        serialize=True,
    )


@pytest.fixture
def path(tmp_path: Path) -> str:
    name = tmp_path / "data.bin"
    name.write_bytes(CONTENT)
    return str(name)


def _submit(fs: Any, path: str, offset: int) -> Any:
    return fs.submit_ranges(path, [offset], [offset + 10])


def _bytes(read: Any) -> bytes:
    return bytes(read.result(timeout=60)[0])


def _held(fs: Any, path: str, log: recording.ReadLog, wait_until: Wait) -> Any:
    """Submit a read and return it once it is in flight."""
    read = _submit(fs, path, 0)
    wait_until(lambda: len(log.records) == 1)
    return read


def test_a_time_out_loses_nothing(fs: Any, path: str, log: Any, gate: Any, wait_until: Wait) -> None:
    held, queued = _held(fs, path, log, wait_until), _submit(fs, path, 100)
    for read in (held, queued):
        with pytest.raises(headrace.ReadTimeoutError) as raised:
            read.result(timeout=0.01)
        assert isinstance(raised.value, TimeoutError)
        assert not read.done()
    gate.set()
    assert [_bytes(held), _bytes(queued)] == [CONTENT[:10], CONTENT[100:110]]
    assert at_rest(fs)


def test_an_op_runs_in_the_context_of_who_asked_for_it(fs: Any, path: str, log: Any, gate: Any) -> None:
    """And not of whoever ended the op before it, or ran the loop."""
    who = ContextVar("who", default="nobody")
    seen: dict[int, str] = {}
    hold = log.before_read

    def note(record: recording.ReadRecord) -> None:
        seen[record.start] = who.get()
        hold(record)

    def asked_by(name: str, ask: Callable[..., Any], *args: Any) -> Any:
        who.set(name)
        return ask(*args)

    log.before_read = note
    asked = [("alice", 0), ("bob", 100), ("carol", 200)]
    reads = [copy_context().run(asked_by, name, _submit, fs, path, offset) for name, offset in asked]
    gate.set()
    assert [_bytes(read) for read in reads] == [CONTENT[offset : offset + 10] for _, offset in asked]
    copy_context().run(asked_by, "dave", fs.cat_file, path, 300, 310)
    copy_context().run(asked_by, "erin", asyncio.run, fs._cat_file(path, 400, 410))
    assert seen == {**{offset: name for name, offset in asked}, 300: "dave", 400: "erin"}


@pytest.mark.parametrize("protocol", ["recording", "arecording"])
def test_a_time_out_of_a_direct_read(
    protocol: str, path: str, scheduled_mode: str, gate: Any, wait_until: Wait
) -> None:
    fs = headrace.HeadraceFileSystem(
        target_protocol=protocol,
        target_options={"log": "submit"},
        scheduler=scheduled_mode,
        timeout_s=0.01,
    )
    with fs.open(path, "rb") as file:
        for call in (lambda: fs.cat_file(path, start=0, end=10), lambda: file.read(10)):
            with pytest.raises(headrace.ReadTimeoutError, match=r"data\.bin"):
                call()
        gate.set()
        wait_until(lambda: at_rest(fs))


def test_cancelling_a_queued_read(fs: Any, path: str, log: Any, gate: Any, wait_until: Wait) -> None:
    held = _held(fs, path, log, wait_until)
    doomed, other = _submit(fs, path, 100), _submit(fs, path, 200)
    assert doomed.cancel() is True
    assert doomed.done()
    with pytest.raises(headrace.ReadCancelledError):
        doomed.result(timeout=60)
    gate.set()
    assert [_bytes(held), _bytes(other)] == [CONTENT[:10], CONTENT[200:210]]
    assert [record.start for record in log.records] == [0, 200], "the storage never saw it"
    assert doomed.cancel() is False
    assert at_rest(fs)


def test_cancelling_a_read_in_flight(fs: Any, path: str, log: Any, gate: Any, wait_until: Wait) -> None:
    held = _held(fs, path, log, wait_until)
    other = _submit(fs, path, 200)
    assert held.cancel() is True
    with pytest.raises(headrace.ReadCancelledError):
        held.result(timeout=60)
    gate.set()
    assert _bytes(other) == CONTENT[200:210]
    wait_until(lambda: at_rest(fs))


def test_cancelling_a_finished_read_changes_nothing(fs: Any, path: str) -> None:
    read = _submit(fs, path, 0)
    assert _bytes(read) == CONTENT[:10]
    assert read.cancel() is False
    assert _bytes(read) == CONTENT[:10]


def test_dropped_reads_release_what_they_held(
    fs: Any, path: str, log: Any, gate: Any, wait_until: Wait
) -> None:
    held = _held(fs, path, log, wait_until)
    reads = [_submit(fs, path, offset) for offset in range(100, 2_000, 100)]
    last = _submit(fs, path, 5_000)
    del held, reads
    gc.collect()
    gate.set()
    assert _bytes(last) == CONTENT[5_000:5_010]
    wait_until(lambda: at_rest(fs))


def test_a_finished_read_that_is_dropped(fs: Any, path: str, wait_until: Wait) -> None:
    read = _submit(fs, path, 0)
    wait_until(read.done)
    assert fs.stats().reserved_bytes >= 10
    del read
    gc.collect()
    assert at_rest(fs)


def test_a_read_whose_finaliser_is_cut_is_dropped(
    fs: Any, path: str, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a signal handler that raises at its first line: the next section settles what it left."""
    monkeypatch.setattr(Read, "__del__", lambda _read: None)
    read = _submit(fs, path, 0)
    wait_until(read.done)
    assert fs.stats().reserved_bytes >= 10
    del read
    gc.collect()
    assert _bytes(_submit(fs, path, 20)) == CONTENT[20:30]
    wait_until(lambda: at_rest(fs))
    engine = fs.channel.engine
    engine.catch_up()
    assert not engine.lost


@pytest.mark.parametrize("is_open", [False, True], ids=["the lock", "a section"])
def test_what_a_handler_takes_while_it_interrupts_is_released_afterwards(
    path: str, scheduled_mode: str, gate: Any, wait_until: Wait, is_open: bool
) -> None:
    """Small hot reads have the lock without a section, as whoever only looks has."""
    fs = headrace.HeadraceFileSystem(
        target_protocol="recording",
        target_options={"log": "submit"},
        scheduler=scheduled_mode,
        buffer_bytes=next(_budgets),
    )
    engine, read = fs.channel.engine, _submit(fs, path, 0)
    with pytest.raises(headrace.ReadTimeoutError):
        read.result(timeout=0)  # from now on somebody waits for it
    gate.set()
    wait_until(read.done)
    assert fs.stats().reserved_bytes == 10
    with engine.lock, engine if is_open else contextlib.nullcontext():
        assert _bytes(read) == CONTENT[:10]
        del read
    engine.drain_dropped()
    stats = fs.stats()
    assert (stats.reserved_bytes, stats.requests_consumed) == (0, 1)
    assert (stats.bytes_admitted, stats.bytes_delivered, stats.bytes_abandoned) == (10, 10, 0)


def test_threads_that_take_one_result(fs: Any, path: str, log: Any, gate: Any, wait_until: Wait) -> None:
    held = _held(fs, path, log, wait_until)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(_bytes, held) for _ in range(4)]
        gate.set()
        assert [answer.result(60) for answer in answers] == [CONTENT[:10]] * 4
    assert at_rest(fs)


def test_a_failing_read_fails_alone(fs: Any, path: str, log: Any) -> None:
    def refuse(record: recording.ReadRecord) -> None:
        if record.start == 100:
            raise PermissionError(13, "Permission denied", record.path)

    log.before_read = refuse
    reads = [_submit(fs, path, offset) for offset in (0, 100, 200)]
    assert [_bytes(reads[0]), _bytes(reads[2])] == [CONTENT[:10], CONTENT[200:210]]
    batch = reads[1].result(timeout=60)
    with pytest.raises(PermissionError, match=r"data\.bin"):
        batch.to_pylist()
    assert at_rest(fs)


@pytest.mark.parametrize("order", [1, -1], ids=["in order", "in reverse"])
@pytest.mark.parametrize("protocol", ["file", "recording", "arecording"])
def test_a_budget_smaller_than_what_waits(protocol: str, path: str, scheduled_mode: str, order: int) -> None:
    """Eight reads of 1 MiB, a budget of two: taken in any order, none waits for ever (I2)."""
    log = {"log": "submit"} if protocol != "file" else {}
    fs = headrace.HeadraceFileSystem(
        target_protocol=protocol, target_options=log, scheduler=scheduled_mode, buffer_bytes=2 * MIB
    )
    reads = [fs.submit_ranges(path, [n * MIB], [(n + 1) * MIB]) for n in range(8)]
    for number in list(range(8))[::order]:
        got = reads[number].result(timeout=60)
        assert bytes(got[0]) == CONTENT[number * MIB : (number + 1) * MIB]
    del reads, got
    assert at_rest(fs)


@pytest.mark.parametrize("protocol", ["file", "recording", "arecording"])
def test_one_read_larger_than_the_budget(protocol: str, path: str, scheduled_mode: str) -> None:
    log = {"log": "submit"} if protocol != "file" else {}
    fs = headrace.HeadraceFileSystem(
        target_protocol=protocol, target_options=log, scheduler=scheduled_mode, buffer_bytes=1
    )
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(fs.cat_file, [path] * 3)) == [CONTENT] * 3
    assert at_rest(fs)


@pytest.mark.parametrize("protocol", ["file", "recording", "arecording"])
def test_no_budget_is_no_limit(protocol: str, path: str, scheduled_mode: str) -> None:
    log = {"log": "submit"} if protocol != "file" else {}
    fs = headrace.HeadraceFileSystem(
        target_protocol=protocol, target_options=log, scheduler=scheduled_mode, buffer_bytes=0
    )
    reads = [fs.submit_ranges(path, [0], [8 * MIB]) for _ in range(4)]
    assert [bytes(read.result(timeout=60)[0]) == CONTENT for read in reads] == [True] * 4
    del reads
    assert at_rest(fs)


@pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_read_is_of_its_process(way: Callable[[object], object]) -> None:
    fs = headrace.HeadraceFileSystem(target_protocol="memory", scheduler="lite")
    fs.pipe_file("/read.bin", b"abc")
    read = fs.submit_ranges("/read.bin", [0], [3])
    with pytest.raises(TypeError, match="result"):
        way(read)
    assert read.result().to_pylist() == [b"abc"]
