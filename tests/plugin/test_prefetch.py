"""Reading ahead in files of an object store: right bytes, fewer waits, nothing left behind (I7)."""

from __future__ import annotations

import functools
import gc
import io
import os
import re
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import headrace
from headrace import prefetch
from headrace.core import ahead
from headrace.core.ahead import FIRST_DEPTH
from headrace.drivers import interrupts
from headrace.drivers.job import Job
from headrace.drivers.permit import Permit, call_permitted
from headrace.errors import ObjectChangedError, ReadTimeoutError
from headrace.parquet import CHUNK_BYTES, ParquetLayout
from headrace.tails import Tail, Tails
from headrace.testing import Fault, ObjectServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headrace.testing import ServedRequest

    Wait = Callable[[Callable[[], bool]], None]

BLOCK = 256 << 10
BLOCKS = 12
CONTENT = np.random.default_rng(7).bytes(BLOCKS * BLOCK - 1000)
GROUPS, NAMES = 10, ["a", "b", "c", "d"]
_numbers = iter(range(1, 1 << 20))


def _table() -> pa.Table:
    rng = np.random.default_rng(9)
    return pa.table({name: rng.integers(0, 1 << 40, 30_000) for name in NAMES})


TABLE = _table()


@functools.cache
def _parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(TABLE, sink, row_group_size=len(TABLE) // GROUPS)
    return sink.getvalue()


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.put("bucket", "blocks", CONTENT)
        for number in range(3):
            server.put("bucket", f"table/{number}.parquet", _parquet())
        yield server


@pytest.fixture
def fs(server: ObjectServer, cloud_engine: str, scheduled_mode: str) -> headrace.HeadraceFileSystem:
    return filesystem(server, scheduled_mode)


def filesystem(server: ObjectServer, mode: str = "standard", **options: Any) -> headrace.HeadraceFileSystem:
    # A budget of its own gives a test an engine, and so counters, of its own.
    options.setdefault("buffer_bytes", (1 << 33) + next(_numbers))
    return headrace.HeadraceFileSystem(
        target_protocol="s3", target_options=server.storage_options(), scheduler=mode, **options
    )


def spans(server: ObjectServer) -> list[tuple[str, int, int]]:
    """Return the ranges that were asked for, in order of arrival."""
    found = []
    for request in server.requests:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if request.method == "GET" and asked is not None:
            found.append((request.key.rpartition("/")[2], int(asked[1]), int(asked[2]) + 1))
    return found


def is_asked(server: ObjectServer, block: int) -> bool:
    return any(start == block * BLOCK for _, start, _ in spans(server))


def is_at_rest(fs: headrace.HeadraceFileSystem) -> bool:
    stats = fs.stats()
    return stats.in_flight_ops == stats.reserved_bytes == 0


def opened(fs: headrace.HeadraceFileSystem, path: str = "bucket/blocks") -> Any:
    return fs.open(path, cache_type="none")


def read_blocks(file: Any, count: int) -> None:
    for number in range(count):
        assert file.read(BLOCK) == CONTENT[number * BLOCK : (number + 1) * BLOCK]


def test_blocks_are_asked_for_before_their_reader_wants_them(
    fs: headrace.HeadraceFileSystem, server: ObjectServer, wait_until: Wait
) -> None:
    with opened(fs) as file:
        read_blocks(file, 1)
        assert len(spans(server)) == 1
        file.seek(BLOCK)
        file.read(BLOCK)
        wait_until(lambda: is_asked(server, 2) and is_asked(server, 3))


@pytest.mark.parametrize("how", ["read", "read_buffer", "readinto", "lines"])
def test_a_file_read_to_its_end_is_right_and_no_byte_asked_for_twice(
    fs: headrace.HeadraceFileSystem, server: ObjectServer, how: str, wait_until: Wait
) -> None:
    options = {"block_size": BLOCK} if how == "lines" else {"cache_type": "none"}
    with fs.open("bucket/blocks", **options) as file:
        assert b"".join(_pieces(file, how)) == CONTENT
    asked = sorted(spans(server))
    assert asked == [("blocks", k * BLOCK, min((k + 1) * BLOCK, len(CONTENT))) for k in range(BLOCKS)]
    wait_until(lambda: is_at_rest(fs))
    stats = fs.stats()
    assert (stats.bytes_abandoned, stats.bytes_delivered) == (0, len(CONTENT))


def _pieces(file: Any, how: str) -> Iterator[bytes]:
    if how == "lines":
        yield from file
        return
    memory = bytearray(BLOCK)
    while True:
        if how == "readinto":
            piece = bytes(memory[: file.readinto(memory)])
        else:
            piece = bytes(getattr(file, how)(BLOCK))
        if not piece:
            return
        yield piece


def hold(server: ObjectServer, start: int) -> Future[None]:
    """Hold back the answers to ranges that begin there, until the future is done."""
    future: Future[None] = Future()

    def script(request: ServedRequest) -> Fault | None:
        is_it = request.headers.get("Range", "").startswith(f"bytes={start}-")
        return Fault(until=future) if is_it else None

    server.script = script
    return future


def test_a_read_joins_what_is_on_its_way(
    fs: headrace.HeadraceFileSystem, server: ObjectServer, wait_until: Wait
) -> None:
    let_go = hold(server, 2 * BLOCK)
    with opened(fs) as file, ThreadPoolExecutor(1) as pool:
        try:
            read_blocks(file, 2)
            wait_until(lambda: is_asked(server, 2))
            read = pool.submit(file.read, BLOCK)
            wait_until(lambda: fs.stats().devices[0].in_flight_ops > 0)
            assert not read.done()
        finally:
            let_go.set_result(None)
        assert read.result(30) == CONTENT[2 * BLOCK : 3 * BLOCK]
    assert [span for span in spans(server) if span[1] == 2 * BLOCK] == [("blocks", 2 * BLOCK, 3 * BLOCK)], (
        "it was asked for again"
    )


def test_a_read_that_joins_keeps_to_its_timeout(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str, wait_until: Wait
) -> None:
    fs = filesystem(server, scheduled_mode, timeout_s=1.0)
    # Long enough for the reads before, on a machine with much else to do.
    let_go = hold(server, 2 * BLOCK)
    try:
        with opened(fs) as file:
            read_blocks(file, 2)
            wait_until(lambda: is_asked(server, 2))
            with pytest.raises(ReadTimeoutError):
                file.read(BLOCK)
    finally:
        let_go.set_result(None)
    wait_until(lambda: is_at_rest(fs))


def test_a_read_whose_range_could_not_be_read_ahead_reads_it_itself(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str, wait_until: Wait
) -> None:
    """I7: a joiner fails only for its own reasons."""
    fs = filesystem(server, scheduled_mode, retries=0)
    refused: list[int] = []

    def script(request: ServedRequest) -> Fault | None:
        is_first = request.headers.get("Range", "").startswith(f"bytes={2 * BLOCK}-") and not refused
        if is_first:
            refused.append(request.number)
        return Fault("internal_error") if is_first else None

    server.script = script
    with opened(fs) as file:
        assert b"".join(_pieces(file, "read")) == CONTENT
    assert refused
    wait_until(lambda: is_at_rest(fs))


def test_an_object_that_is_replaced_is_an_error_and_never_a_mixture(
    fs: headrace.HeadraceFileSystem, server: ObjectServer, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "FIRST_BLOCK_BYTES", 0)  # two blocks at first
    with opened(fs) as file:
        read_blocks(file, 2)
        wait_until(lambda: is_asked(server, 3) and fs.stats().in_flight_ops == 0)
        server.replace("bucket", "blocks", bytes(len(CONTENT)))
        for start in range(2 * BLOCK, 4 * BLOCK, BLOCK):
            assert file.read(BLOCK) == CONTENT[start : start + BLOCK]  # read before
        with pytest.raises(ObjectChangedError):
            [file.read(BLOCK) for _ in range(BLOCKS)]
    wait_until(lambda: is_at_rest(fs))


@pytest.mark.parametrize("how", ["close", "drop", "cycle"])
def test_a_file_that_goes_takes_along_what_nobody_read(
    fs: headrace.HeadraceFileSystem, server: ObjectServer, how: str, wait_until: Wait
) -> None:
    file = opened(fs)
    read_blocks(file, 2)
    wait_until(lambda: is_asked(server, 3))
    if how == "close":
        file.close()
    elif how == "cycle":
        file.itself = file
    del file
    gc.collect()
    wait_until(lambda: is_at_rest(fs))
    assert fs.stats().bytes_abandoned >= 2 * BLOCK


def test_what_is_read_ahead_makes_room_for_what_is_wanted(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str, wait_until: Wait
) -> None:
    """I7: dropped first, its memory with it; and read again by who wants it."""
    budget = 16 * BLOCK
    fs = filesystem(server, scheduled_mode, buffer_bytes=budget)
    with opened(fs) as file:
        read_blocks(file, 2)
        wait_until(lambda: is_asked(server, 2) and fs.stats().in_flight_ops == 0)
        held = fs.stats().reserved_bytes
        assert 0 < held <= budget // 8
        waiting = fs.submit_ranges("bucket/blocks", [0, 0], [len(CONTENT), 5 * BLOCK])
        assert len(waiting.result()[0]) == len(CONTENT)
        assert fs.stats().peak_reserved_bytes <= budget
        assert file.read(BLOCK) == CONTENT[2 * BLOCK : 3 * BLOCK]
    wait_until(lambda: is_at_rest(fs))


def test_what_was_dropped_is_read_again(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str, wait_until: Wait
) -> None:
    fs = filesystem(server, scheduled_mode, buffer_bytes=16 * BLOCK)
    with opened(fs) as file:
        read_blocks(file, 2)
        wait_until(lambda: is_asked(server, 2) and fs.stats().in_flight_ops == 0)
        # Held by a result that nobody takes: as much as there is, so that everything else must go.
        kept = fs.submit_ranges("bucket/blocks", [0], [len(CONTENT)])
        more = fs.submit_ranges("bucket/blocks", [0], [3 * BLOCK])
        wait_until(lambda: kept.done() and more.done())
        wait_until(lambda: fs.stats().bytes_abandoned > 0)
        asked = spans(server).count(("blocks", 2 * BLOCK, 3 * BLOCK))
        kept.result()
        assert b"".join(_pieces(file, "read")) == CONTENT[2 * BLOCK :]
        assert spans(server).count(("blocks", 2 * BLOCK, 3 * BLOCK)) == asked + 1
        more.result()
    wait_until(lambda: is_at_rest(fs))


def test_nothing_is_read_ahead_where_that_is_off(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str
) -> None:
    fs = filesystem(server, scheduled_mode, prefetch="off")
    with opened(fs) as file:
        read_blocks(file, 4)
    assert len(spans(server)) == 4


def test_nor_inside_an_op_of_ours(fs: headrace.HeadraceFileSystem, server: ObjectServer) -> None:
    """There a read runs on its parent's permit, and another's op may wait for that (I1)."""
    with opened(fs) as file:
        call_permitted(Permit(1, "outer"), read_blocks, file, 4)
    assert len(spans(server)) == 4
    assert is_at_rest(fs)


def test_a_footer_read_inside_an_op_of_ours_sets_nothing_going(
    fs: headrace.HeadraceFileSystem, server: ObjectServer
) -> None:
    scanned(fs, columns=["b"])
    server.forget()
    with opened(fs, "bucket/table/0.parquet") as file:
        file.seek(-(64 << 10), os.SEEK_END)
        call_permitted(Permit(1, "outer"), file.read)
    assert len(spans(server)) <= 1
    assert is_at_rest(fs)


def test_nothing_is_set_going_just_after_a_ctrl_c(
    fs: headrace.HeadraceFileSystem, server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(fs) as file:
        read_blocks(file, 1)
        monkeypatch.setattr(interrupts, "is_aftermath", lambda: True)
        file.read(BLOCK)
        file.read(BLOCK)
    assert len(spans(server)) == 3


def test_an_interrupt_while_a_range_is_submitted_leaves_nothing_that_never_ends(
    fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch, wait_until: Wait
) -> None:
    def interrupt(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with opened(fs) as file:
        read_blocks(file, 1)
        monkeypatch.setattr(prefetch, "tell_engine", interrupt)
        with pytest.raises(KeyboardInterrupt):
            file.read(BLOCK)
        file.seek(BLOCK)
        assert b"".join(_pieces(file, "read")) == CONTENT[BLOCK:]
    wait_until(lambda: is_at_rest(fs))


@pytest.mark.parametrize("max_op_bytes", [None, BLOCK // 2])
def test_without_memory_for_what_is_read_ahead_it_is_read_when_it_is_wanted(
    server: ObjectServer,
    scheduled_mode: str,
    max_op_bytes: int | None,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Wait,
) -> None:
    fs = filesystem(server, scheduled_mode, max_op_bytes=max_op_bytes)
    real, refused = prefetch.pooled_buffer, []

    def pooled_buffer(nbytes: int) -> Any:
        if nbytes:
            refused.append(nbytes)
            raise pa.lib.ArrowMemoryError("malloc failed")
        return real(nbytes)

    monkeypatch.setattr(prefetch, "pooled_buffer", pooled_buffer)
    with opened(fs) as file:
        assert b"".join(_pieces(file, "read")) == CONTENT
    assert refused
    wait_until(lambda: is_at_rest(fs))


def test_a_small_read_does_not_wait_for_a_long_range(
    fs: headrace.HeadraceFileSystem, server: ObjectServer, wait_until: Wait
) -> None:
    let_go = hold(server, 2 * BLOCK)
    try:
        with opened(fs) as file:
            read_blocks(file, 2)
            wait_until(lambda: is_asked(server, 2))
            file.seek(2 * BLOCK + 10)
            assert file.read(1000) == CONTENT[2 * BLOCK + 10 : 2 * BLOCK + 1010]
    finally:
        let_go.set_result(None)
    wait_until(lambda: is_at_rest(fs))


def test_the_rest_of_a_file_after_its_first_block_is_asked_for_once(
    fs: headrace.HeadraceFileSystem, server: ObjectServer
) -> None:
    with opened(fs) as file:
        assert file.read(BLOCK) + file.read() == CONTENT
    assert sum(end - start for _, start, end in spans(server)) == len(CONTENT)


def test_a_file_holds_so_many_ranges_and_bytes_ahead(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str, wait_until: Wait
) -> None:
    """What is being taken counts, too."""
    names = [f"column {number:03}" for number in range(100)]
    table = pa.table({name: np.arange(20_000) for name in names})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=1_000)
    server.put("bucket", "wide.parquet", sink.getvalue())
    fs = filesystem(server, scheduled_mode)
    found = ds.dataset("bucket/wide.parquet", filesystem=fs).to_table(columns=names[::2])
    assert found.equals(table.select(names[::2]))
    wait_until(lambda: is_at_rest(fs))
    small = filesystem(server, scheduled_mode, buffer_bytes=32 * BLOCK)
    with opened(small) as file:
        assert b"".join(_pieces(file, "read")) == CONTENT
    assert small.stats().peak_reserved_bytes <= 32 * BLOCK // 8 + BLOCK  # and the read that finds nothing


def scanned(fs: Any, **kwargs: Any) -> pa.Table:
    return ds.dataset("bucket/table", filesystem=fs, format="parquet").to_table(**kwargs)


@pytest.mark.parametrize("columns", [["b"], ["a", "c"], ["a", "d"], None])
def test_a_scan_has_the_same_rows_and_asks_for_nothing_twice(
    fs: headrace.HeadraceFileSystem, server: ObjectServer, columns: list[str] | None, wait_until: Wait
) -> None:
    """But for a guess, in a second scan, at what the file is for whose schema is looked at."""
    expected = TABLE if columns is None else TABLE.select(columns)
    guesses = 0
    for _ in range(3):
        server.forget()
        assert scanned(fs, columns=columns).equals(pa.concat_tables([expected] * 3))
        data = [span for span in spans(server) if span[2] != len(_parquet())]
        assert len(data) - len(set(data)) <= guesses
        guesses = FIRST_DEPTH * len(columns or [])
        wait_until(lambda: is_at_rest(fs))  # what comes late would count with the next scan


def test_a_projection_asks_for_the_next_row_groups_before_arrow_does(
    fs: headrace.HeadraceFileSystem, server: ObjectServer, wait_until: Wait
) -> None:
    data = _parquet()
    chunks = [_chunk(data, group, 1) for group in range(GROUPS)]
    with opened(fs, "bucket/table/0.parquet") as file:
        file.seek(-(64 << 10), os.SEEK_END)
        file.read()
        assert len(spans(server)) == 1
        for start, end in chunks[:2]:
            file.seek(start)
            assert file.read(end - start) == data[start:end]
        wait_until(lambda: {("0.parquet", *chunk) for chunk in chunks[2:6]} <= set(spans(server)))
    server.forget()
    with opened(fs, "bucket/table/1.parquet") as file:
        file.seek(-(64 << 10), os.SEEK_END)
        file.read()  # the next file is taken to be read for the same columns
        wait_until(lambda: {("1.parquet", *chunk) for chunk in chunks[:8]} <= set(spans(server)))
    wait_until(lambda: is_at_rest(fs))


def _chunk(data: bytes, group: int, column: int) -> tuple[int, int]:
    chunk = pq.read_metadata(pa.BufferReader(data)).row_group(group).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    return start, start + chunk.total_compressed_size


def test_the_footer_of_a_file_that_is_opened_again_is_there(
    fs: headrace.HeadraceFileSystem, server: ObjectServer
) -> None:
    scan = ds.dataset("bucket/table", filesystem=fs, format="parquet")
    for _ in range(2):
        assert scan.count_rows() == 3 * len(TABLE)
    assert len(spans(server)) == 3
    with opened(fs, "bucket/table/0.parquet") as file:
        file.seek(-100, os.SEEK_END)
        assert file.read() == _parquet()[-100:]
    assert len(spans(server)) == 3


def test_a_kept_footer_is_of_one_version(fs: headrace.HeadraceFileSystem, server: ObjectServer) -> None:
    path = "bucket/table/0.parquet"
    assert pq.read_schema(path, filesystem=fs).names == NAMES
    sink = io.BytesIO()
    pq.write_table(TABLE.rename_columns(["e", "f", "g", "h"]), sink, row_group_size=len(TABLE) // GROUPS)
    assert len(sink.getvalue()) == len(_parquet())
    server.replace("bucket", "table/0.parquet", sink.getvalue())
    fs.target.invalidate_cache()
    assert pq.read_schema(path, filesystem=fs).names == ["e", "f", "g", "h"]


def test_footers_of_the_web_are_not_kept(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str, wait_until: Wait
) -> None:
    """A server whose ETag is made of time and length has the same for what is written within a second."""
    budget = (1 << 33) + next(_numbers)
    fs = headrace.HeadraceFileSystem(target_protocol="http", scheduler=scheduled_mode, buffer_bytes=budget)
    for _ in range(2):
        with fs.open(f"{server.url}/bucket/table/0.parquet", cache_type="none") as file:
            file.seek(-(64 << 10), os.SEEK_END)
            assert file.read() == _parquet()[-(64 << 10) :]
    assert len(spans(server)) == 2
    wait_until(lambda: is_at_rest(fs))


def test_a_kept_footer_is_for_those_who_read_it(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str
) -> None:
    """Other credentials are another filesystem, and have to ask the store."""
    fs = filesystem(server, scheduled_mode)
    path = "bucket/table/0.parquet"
    assert pq.read_schema(path, filesystem=fs).names == NAMES
    options = server.storage_options("another-key")
    other = headrace.HeadraceFileSystem(target_protocol="s3", target_options=options, **fs._settings_options)
    server.forget()
    assert pq.read_schema(path, filesystem=other).names == NAMES
    assert [one.range for one in server.requests if one.method == "GET"] == ["bytes=-65536"]


def test_a_kept_footer_is_parsed_once(
    fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch, wait_until: Wait
) -> None:
    parsed, parse = [], ParquetLayout.__init__

    def count(layout: ParquetLayout, tail: Any) -> None:
        parsed.append(len(tail))
        parse(layout, tail)

    monkeypatch.setattr(ParquetLayout, "__init__", count)
    for _ in range(3):
        table = pq.read_table("bucket/table/0.parquet", columns=["b"], filesystem=fs)
        assert table == TABLE.select(["b"])
    assert len(parsed) == 1
    wait_until(lambda: is_at_rest(fs))


def test_kept_footers_are_bounded() -> None:
    layout = ParquetLayout(np.frombuffer(_parquet(), np.uint8))
    assert layout.nbytes == GROUPS * len(NAMES) * CHUNK_BYTES
    tails = Tails(64 << 20)
    for number in range(100):
        data = np.full((64 << 10) - layout.nbytes, number % 256, np.uint8)
        tails.keep(f"file {number}", "version", Tail(data, layout))
    tails.keep("long", "version", Tail(np.zeros(2 << 20, np.uint8), layout))
    kept = [number for number in range(100) if tails.get(f"file {number}", "version") is not None]
    assert kept == list(range(84, 100))
    assert tails.get("long", "version") is None
    assert tails.get("file 99", "other") is None
    tail = tails.get("file 99", "version")
    assert tail is not None
    assert not tail.data.flags.writeable


def test_a_long_footer_comes_in_two_reads(fs: headrace.HeadraceFileSystem, server: ObjectServer) -> None:
    """Arrow reads 64 KiB, and then the footer, without the eight bytes behind it."""
    names = [f"column {number:04}" for number in range(300)]
    table = pa.table({name: np.arange(4_000) for name in names})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=500)
    assert int.from_bytes(sink.getvalue()[-8:-4], "little") > 64 << 10
    server.put("bucket", "wide.parquet", sink.getvalue())
    found = ds.dataset("bucket/wide.parquet", filesystem=fs).to_table(columns=names[100:102])
    assert found.equals(table.select(names[100:102]))


def test_a_footer_that_says_nonsense_is_its_readers_business(
    fs: headrace.HeadraceFileSystem, server: ObjectServer
) -> None:
    content = bytes(100_000) + (50).to_bytes(4, "little") + b"PAR1"
    server.put("bucket", "broken.parquet", content)
    with opened(fs, "bucket/broken.parquet") as file:
        file.seek(-1000, os.SEEK_END)
        assert file.read() == content[-1000:]
    with pytest.raises((pa.ArrowInvalid, OSError), match="broken"):
        ds.dataset("bucket/broken.parquet", filesystem=fs)


def test_many_files_at_once_under_a_small_budget(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str, wait_until: Wait
) -> None:
    fs = filesystem(server, scheduled_mode, buffer_bytes=6 * BLOCK, process_io_limit=3)
    wrong: list[int] = []

    def read(number: int) -> None:
        with opened(fs) as file:
            if b"".join(_pieces(file, "read_buffer")) != CONTENT:
                wrong.append(number)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert fs.stats().peak_reserved_bytes <= 6 * BLOCK
    wait_until(lambda: is_at_rest(fs))


def test_who_comes_while_room_is_made_does_not_go_on_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a second worker, who comes for one grant: what it read had no place to go, and was read again."""
    grant: Any = SimpleNamespace(lo=0, hi=1)
    engine: Any = SimpleNamespace(hub=SimpleNamespace(trace=None))
    ops: Any = SimpleNamespace(buffer=np.empty(0, np.uint8))
    request: Any = SimpleNamespace(inbox=[grant])
    job = Job(engine, None, request, ops, None)  # type: ignore[arg-type]
    came: list[Any] = []

    def allocate(nbytes: int) -> Any:
        if not came:  # an allocation of Arrow's lets go of the GIL
            came.append("second")
            came.extend((job.take(), ops.buffer))
        return np.empty(nbytes, np.uint8)

    monkeypatch.setattr(prefetch, "pooled_buffer", allocate)
    job.before = partial(prefetch._make_room, ops, 100, {})
    assert job.take() is None, "the second has it"
    assert came[1] is grant
    assert len(came[2]) == 100
    assert ops.buffer is came[2], "the room that it reads into stays"
