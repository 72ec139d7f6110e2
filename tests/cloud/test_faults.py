"""Reads of a store that fails: every byte is right, or the error is clear, and no storm of requests.

What both engines promise is tested with both; what one does in its own way is below, or in
``tests/backends/test_obstore.py``. ``HEADRACE_TEST_CLOUD`` is the number of ranges for each fault: 400 in the
gate, 10,000 in the full run. Where it is set, the table in S3 is larger, too, and what writes runs with
either engine. What answers are there come after an uneven while.
"""

from __future__ import annotations

import os
import re
import threading
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from targets import at_rest

import headrace
from headrace.errors import ObjectChangedError, ReadTimeoutError
from headrace.testing import Fault, Faults, ObjectServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.testing import ServedRequest

RANGES = int(os.environ.get("HEADRACE_TEST_CLOUD", "400"))
MANY = 4000
"""Beside so many ranges those do not count that are lost with the calls under way when faults begin."""
BLOCK = 256
DATA = np.random.default_rng(4).bytes(2 * BLOCK * RANGES)
STARTS = np.random.default_rng(5).permutation(np.arange(RANGES) * 2 * BLOCK)
GETS = frozenset({"GET"})
KINDS = (
    "slow_down_share",
    "too_many_requests_share",
    "internal_error_share",
    "reset_share",
    "break_body_share",
    "truncate_share",
)
DRIBBLE = "dribble_share"
UNEVEN = {"jitter_s": 0.005, "dribble_bytes_per_s": 1.0}
"""How answers come; a body that dribbles does not come before its attempt has taken too long."""
BRIEF_TRIES = {"try_timeout_s": 1.0, "io_parallelism": 32}
"""When a machine stalls for longer, all in flight is asked for again: not enough to spend all retries."""


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.put("bucket", "key", DATA)
        yield server


def filesystem(
    server: ObjectServer, engine: str, mode: str = "standard", **options: Any
) -> headrace.HeadraceFileSystem:
    fs = headrace.HeadraceFileSystem(
        target_protocol="s3",
        target_options=server.storage_options(),
        cloud_engine=engine,
        scheduler=mode,
        max_gap_bytes=0,
        **options,
    )
    assert ("obstore" in fs.backend_name) == (engine == "obstore")
    return fs


def read_all(fs: headrace.HeadraceFileSystem) -> headrace.RangeBatch:
    return fs.read_ranges("bucket/key", STARTS, STARTS + BLOCK)


def check(batch: headrace.RangeBatch) -> None:
    assert len(batch) == RANGES
    for row, start in enumerate(STARTS.tolist()):
        assert bytes(batch[row]) == DATA[start : start + BLOCK]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_a_tenth_of_faults_is_not_seen_and_costs_little(
    server: ObjectServer, cloud_engine: str, kind: str, scheduled_mode: str
) -> None:
    check_a_tenth(server, filesystem(server, cloud_engine, scheduled_mode), kind)


@pytest.mark.timeout(1200)
def test_a_tenth_of_bodies_that_dribble_is_not_seen_either(server: ObjectServer, cloud_engine: str) -> None:
    check_a_tenth(server, filesystem(server, cloud_engine, **BRIEF_TRIES), DRIBBLE)


def check_a_tenth(server: ObjectServer, fs: headrace.HeadraceFileSystem, kind: str) -> None:
    fs.cat_file("bucket/key", start=0, end=1)
    server.faults = Faults(methods=GETS, **UNEVEN, **{kind: 0.1})
    if fs.backend_name == "obstore" and RANGES < MANY:
        read_all(fs)
    before = fs.stats().devices[-1].retries
    server.forget()
    check(read_all(fs))
    store = fs.stats().devices[-1]
    assert store.window_ops
    retries, repeated = store.retries - before, server.request_count - RANGES
    assert retries > 0
    if kind == DRIBBLE:  # on a machine that stalls others take too long, too, and some before they ask
        assert 0 < [request.fault for request in server.requests].count("dribble") <= repeated <= retries
    else:
        assert retries <= repeated <= 0.2 * RANGES, "clients repeat some resets by themselves"
    assert at_rest(fs)


def test_all_faults_together_in_a_long_read(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str
) -> None:
    fs = filesystem(server, cloud_engine, scheduled_mode, max_op_bytes=4096, **BRIEF_TRIES)
    server.faults = Faults(methods=GETS, **UNEVEN, **dict.fromkeys((*KINDS, DRIBBLE), 0.05))
    with fs.open("bucket/key") as file:
        assert file.read() == DATA
    assert at_rest(fs)


def test_an_object_that_is_replaced_in_a_long_read_is_an_error(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str, wait_until: Any
) -> None:
    fs = filesystem(server, cloud_engine, scheduled_mode, max_op_bytes=2 * BLOCK)
    file = fs.open("bucket/key", cache_type="none")
    file.read(1)
    server.forget()

    def script(request: ServedRequest) -> None:
        if request.number == RANGES // 2:
            server.replace("bucket", "key", DATA[::-1])

    server.script = script
    with pytest.raises(ObjectChangedError):
        file.read()
    wait_until(lambda: at_rest(fs))  # what was under way when the first one failed
    # The native engine has s3fs say of each that was under way which version there is now.
    assert RANGES // 2 < server.request_count <= {"fsspec": 1, "obstore": 3}[cloud_engine] * RANGES


def test_ranges_that_the_store_ignores_are_errors_and_no_others(
    server: ObjectServer, cloud_engine: str
) -> None:
    server.put("bucket", "short", DATA[: 8 * RANGES])
    fs = filesystem(server, cloud_engine)
    ignored: set[int] = set()

    def script(request: ServedRequest) -> Fault | None:
        if request.method != "GET" or request.number % 10 != 3:
            return None
        ignored.add(int(str(request.range).removeprefix("bytes=").partition("-")[0]))
        return Fault("whole_object")

    server.script = script
    starts = np.arange(RANGES) * 8
    batch = fs.read_ranges("bucket/short", starts, starts + 4)
    assert len(ignored) >= RANGES // 10
    assert {8 * row for row in batch.errors} <= ignored, "the native engine asks for some again"
    assert batch.errors
    for row in range(RANGES):
        assert row in batch.errors or bytes(batch[row]) == DATA[8 * row : 8 * row + 4]
    assert at_rest(fs)


def _one_fault(server: ObjectServer, fault: Fault) -> list[ServedRequest]:
    """Have the next GET meet `fault`; returns the GETs, as they come."""
    gets: list[ServedRequest] = []

    def script(request: ServedRequest) -> Fault | None:
        if request.method != "GET":
            return None
        gets.append(request)
        return fault if len(gets) == 1 else None

    server.script = script
    return gets


@pytest.mark.parametrize("kind", ["break_body", "truncate"])
def test_a_body_that_breaks_is_resumed_where_it_broke(server: ObjectServer, kind: Any) -> None:
    fs = filesystem(server, "fsspec")
    gets = _one_fault(server, Fault(kind, body_bytes=100_000))
    assert bytes(fs.read_ranges("bucket/key", [1000], [201_000])[0]) == DATA[1000:201_000]
    first, second = gets
    assert first.range == "bytes=1000-200999"
    resumed = int(second.range.removeprefix("bytes=").partition("-")[0])
    if kind == "truncate":  # a reset may take with it what the kernel has not delivered yet
        assert resumed == 101_000
    assert 1000 <= resumed <= 101_000
    assert second.range.endswith("-200999")
    assert second.headers["If-Match"] == server_etag(server)


def test_an_attempt_that_brought_something_does_not_count(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str
) -> None:
    long = DATA * -(-5_000_000 // len(DATA))
    server.put("bucket", "long", long)
    fs = filesystem(server, cloud_engine, scheduled_mode, retries=1)
    gets: list[ServedRequest] = []

    def script(request: ServedRequest) -> Fault | None:
        if request.method != "GET":
            return None
        gets.append(request)
        return Fault("truncate", body_bytes=1_300_000) if len(gets) <= 3 else None

    server.script = script
    assert fs.cat_file("bucket/long", start=0, end=len(long)) == long
    assert len(gets) == 4
    assert at_rest(fs)


def server_etag(server: ObjectServer) -> str:
    etag: str = server._buckets.by_name["bucket"]["key"].etag
    return etag


def test_an_attempt_that_takes_too_long_goes_on_elsewhere(server: ObjectServer) -> None:
    fs = filesystem(server, "fsspec", try_timeout_s=1.5)
    fs.cat_file("bucket/key", start=0, end=1)  # the session is made
    gets = _one_fault(server, Fault("dribble", bytes_per_s=20_000))
    assert bytes(fs.read_ranges("bucket/key", [0], [100_000])[0]) == DATA[:100_000]
    assert gets[1].range != gets[0].range, "what had arrived is kept"


def test_after_the_attempts_the_error_is_that_of_s3fs(server: ObjectServer, scheduled_mode: str) -> None:
    fs = filesystem(server, "fsspec", scheduled_mode, retries=2)
    server.faults = Faults(methods=GETS, slow_down_share=1.0)
    with pytest.raises(OSError, match="reduce your request rate"):
        fs.cat_file("bucket/key", start=0, end=10)
    assert server.request_count == 3
    assert at_rest(fs)


def test_no_retries_is_one_request(server: ObjectServer, cloud_engine: str) -> None:
    fs = filesystem(server, cloud_engine, retries=0)
    server.faults = Faults(methods=GETS, internal_error_share=1.0)
    with pytest.raises(OSError, match=r"(?i)internal ?error"):
        fs.cat_file("bucket/key", start=0, end=10)
    assert server.request_count == 1


def test_an_attempt_that_never_answers_is_a_time_out(server: ObjectServer) -> None:
    fs = filesystem(server, "fsspec", retries=1, try_timeout_s=0.5)
    fs.cat_file("bucket/key", start=0, end=1)  # the session is made
    server.script = lambda _request: Fault(until=Future())
    with pytest.raises(ReadTimeoutError, match="bucket/key"):
        fs.cat_file("bucket/key", start=0, end=10)
    assert [request.range for request in server.requests].count("bytes=0-9") == 2


def test_what_is_not_there_is_asked_once(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str
) -> None:
    fs = filesystem(server, cloud_engine, scheduled_mode)
    with pytest.raises(FileNotFoundError):
        fs.cat_file("bucket/other", start=0, end=10)
    # The native engine's errors are s3fs's, which is asked for them.
    assert server.request_count == {"fsspec": 1, "obstore": 2}[cloud_engine]


def test_retry_after_is_kept_to(server: ObjectServer) -> None:
    fs = filesystem(server, "fsspec")
    gets = _one_fault(server, Fault("slow_down", retry_after_s=1))
    assert fs.cat_file("bucket/key", start=0, end=10) == DATA[:10]
    assert gets[1].began_s - gets[0].began_s >= 1


def test_retry_after_is_kept_to_by_the_native_engine(server: ObjectServer, scheduled_mode: str) -> None:
    """Its library loses the header. One op of those refused is asked for through s3fs, which has it."""
    fs = filesystem(server, "obstore", scheduled_mode)
    fs.cat_file("bucket/key", start=0, end=1)
    server.forget()
    refusal = Fault("slow_down", retry_after_s=1)
    server.script = lambda request: refusal if request.number < 2 else None
    assert fs.cat_file("bucket/key", start=0, end=10) == DATA[:10]
    _, second, third = server.requests
    assert third.began_s - second.began_s >= 1


def test_a_native_call_that_was_refused_asks_with_one_op_first(
    server: ObjectServer, scheduled_mode: str
) -> None:
    fs = filesystem(server, "obstore", scheduled_mode, retries=3)
    server.faults = Faults(is_storm=True)
    batch = fs.read_ranges("bucket/key", STARTS[:10], STARTS[:10] + BLOCK)
    assert len(batch.errors) == 10
    assert "503 SlowDown" in str(batch.errors[9])
    assert server.request_count <= 10 + 3


def test_an_outage_is_no_storm_and_ends_in_errors(server: ObjectServer, cloud_engine: str) -> None:
    fs = filesystem(server, cloud_engine, retries=5)
    server.faults = Faults(is_storm=True)
    batch = read_all(fs)
    assert len(batch.errors) == RANGES
    assert server.request_count <= RANGES + 500
    assert at_rest(fs)


def test_a_store_that_was_away_is_read_on(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str
) -> None:
    fs = filesystem(server, cloud_engine, scheduled_mode, retries=1000)
    fs.cat_file("bucket/key", start=0, end=1)
    server.stop_listening()
    server.drop_connections()
    retries = fs._reader.channel.scheduler("bucket/key").retries
    read = fs.submit_ranges("bucket/key", STARTS, STARTS + BLOCK)
    while not retries.granted:
        threading.Event().wait(0.001)
    driver, job = fs._reader.channel.driver, read._parts[0].job
    for wait in (read.result, partial(driver.wait, job)):
        with pytest.raises(ReadTimeoutError, match="bucket/key: not finished") as raised:
            wait(0)
        (note,) = raised.value.__notes__
        assert re.match(r"an attempt had failed with: \w+: .*[Cc]onnect", note, re.DOTALL), (
            "it was not slow, but away"
        )
    server.listen_again()
    check(read.result(60))
    assert at_rest(fs)


def test_credentials_that_expire_in_the_middle_are_an_error_that_says_so(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str
) -> None:
    fs = filesystem(server, cloud_engine, scheduled_mode)
    half = RANGES // 2

    def script(request: ServedRequest) -> None:
        if request.number == half:
            server.expire("test-key")

    server.script = script
    batch = read_all(fs)
    assert batch.errors
    assert {type(error) for error in batch.errors.values()} == {PermissionError}
    assert "expired" in str(next(iter(batch.errors.values())))
    # Those that were in flight, once each; the native engine has one of each call put to s3fs.
    assert server.request_count <= 1.1 * RANGES
    server.script = None
    server.renew("test-key")
    check(read_all(fs))
    assert at_rest(fs)


def test_stragglers_are_overtaken_by_second_requests(
    server: ObjectServer, cloud_engine: str, scheduled_mode: str
) -> None:
    """Those that never answer would take as long as an attempt may: longer than this test.

    One is among the first, when nobody knows yet what is late.
    """
    fs = filesystem(server, cloud_engine, scheduled_mode, hedge=0.1, try_timeout_s=1000)
    asked: set[str | None] = set()

    def script(request: ServedRequest) -> Fault | None:
        is_second, is_late = request.range in asked, request.number % 50 == 3
        asked.add(request.range)
        return Fault(until=Future()) if is_late and not is_second else None

    server.script = script
    check(read_all(fs))
    assert RANGES < server.request_count <= 1.1 * RANGES
    assert at_rest(fs)


def test_an_answer_that_lost_is_never_written(server: ObjectServer, cloud_engine: str) -> None:
    """The first request's bytes come after the second one's were handed out (I9)."""
    fs = filesystem(server, cloud_engine, hedge=0.5, try_timeout_s=1000)
    gate: Future[None] = Future()
    late: list[ServedRequest] = []

    def script(request: ServedRequest) -> Fault | None:
        if request.range == "bytes=0-255" and not late:
            late.append(request)
            return Fault(until=gate)
        return None

    read_all(fs)  # how long an op takes
    server.script = script
    out = np.zeros(BLOCK, np.uint8)
    fs.read_ranges("bucket/key", [0], [BLOCK], out=out)
    assert out.tobytes() == DATA[:BLOCK]
    out[:] = 0
    gate.set_result(None)
    assert fs.cat_file("bucket/key", start=BLOCK, end=2 * BLOCK) == DATA[BLOCK : 2 * BLOCK]
    assert len(late) == 1
    assert not out.any()
    assert at_rest(fs)


def test_second_requests_are_few(server: ObjectServer, cloud_engine: str, scheduled_mode: str) -> None:
    fs = filesystem(server, cloud_engine, scheduled_mode, hedge=1)
    server.faults = Faults(methods=GETS, straggler_share=0.02, straggler_s=0.2)
    check(read_all(fs))
    assert RANGES <= server.request_count <= 1.03 * RANGES
    assert at_rest(fs)


def test_nothing_is_asked_twice_by_default(server: ObjectServer, cloud_engine: str) -> None:
    fs = filesystem(server, cloud_engine)
    check(read_all(fs))
    assert server.request_count == RANGES
