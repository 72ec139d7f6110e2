"""Each fault of `ObjectServer` does what it says, to whom it says, and nothing else.

Clients are sockets of http.client, which retries nothing, and one retrying client of each kind at the end.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import os
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from random import Random
from typing import TYPE_CHECKING, Self

import obstore
import pyarrow.fs
import pytest
import s3fs
from obstore.store import S3Store

from headrace.testing import Fault, Faults, ObjectServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DATA = bytes(range(256)) * 400
WAIT_S = 30


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.put("bucket", "key", DATA)
        yield server


class Client:
    """One connection."""

    def __init__(self, server: ObjectServer) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.connection.close()

    def ask(self, start: int = 0, end: int = len(DATA), method: str = "GET") -> http.client.HTTPResponse:
        self.connection.request(method, "/bucket/key", headers={"Range": f"bytes={start}-{end - 1}"})
        return self.connection.getresponse()


def read(
    server: ObjectServer, start: int = 0, end: int = len(DATA), method: str = "GET"
) -> tuple[int, bytes]:
    with Client(server) as client:
        response = client.ask(start, end, method)
        return response.status, response.read()


# Answers that are errors


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("slow_down", 503, b"<Code>SlowDown</Code>"),
        ("too_many_requests", 429, b"<Code>TooManyRequests</Code>"),
        ("internal_error", 500, b"<Code>InternalError</Code>"),
        ("expired_token", 400, b"<Code>ExpiredToken</Code>"),
    ],
)
def test_an_error_is_an_answer_on_a_connection_that_stays(
    server: ObjectServer, kind: str, status: int, code: bytes
):
    server.script = lambda request: Fault(kind) if request.number == 0 else None
    with Client(server) as client:
        refused = client.ask()
        assert refused.status == status
        assert refused.headers["Retry-After"] is None
        assert code in refused.read()
        assert client.ask().read() == DATA
    assert server.connections_made == 1
    assert [(each.fault, each.status) for each in server.requests] == [(kind, status), ("none", 206)]


@pytest.mark.parametrize("kind", ["slow_down", "too_many_requests"])
def test_retry_after_is_said(server: ObjectServer, kind: str):
    server.script = lambda _request: Fault(kind, retry_after_s=7)
    with Client(server) as client:
        assert client.ask().headers["Retry-After"] == "7"


def test_a_storm_lasts_until_told_otherwise(server: ObjectServer):
    server.faults = Faults(is_storm=True, retry_after_s=2, methods=frozenset({"PUT"}))
    assert [read(server, method=method)[0] for method in ("GET", "HEAD", "GET")] == [503] * 3
    server.faults = Faults()
    assert read(server) == (206, DATA)


def test_no_such_fault():
    with pytest.raises(ValueError, match="no such kind"):
        Fault("flood")
    with pytest.raises(ValueError, match="reset_share"):
        Faults(reset_share=1.5)
    with pytest.raises(ValueError, match="more than 1 together"):
        Faults(reset_share=0.6, slow_down_share=0.6)


# Connections that break


def test_a_reset_comes_before_the_answer(server: ObjectServer):
    server.script = lambda _request: Fault("reset")
    with Client(server) as client, pytest.raises(ConnectionResetError):
        client.ask()
    (only,) = server.requests
    assert (only.status, only.sent_bytes) == (None, 0)


@pytest.mark.parametrize("body_bytes", [0, 1, 1000, len(DATA)])
def test_a_body_is_broken_by_a_reset(server: ObjectServer, body_bytes: int):
    server.script = lambda _request: Fault("break_body", body_bytes=body_bytes)
    sent = min(body_bytes, len(DATA) - 1)
    with Client(server) as client:
        response = client.ask()
        assert (response.status, response.headers["Content-Length"]) == (206, str(len(DATA)))
        assert response.read(sent) == DATA[:sent]
        with pytest.raises(ConnectionResetError):
            response.read(1)
    assert server.requests[0].sent_bytes == sent


@pytest.mark.parametrize("body_bytes", [None, 0, 1000])
def test_a_truncated_body_ends_before_its_length(server: ObjectServer, body_bytes: int | None):
    server.script = lambda _request: Fault("truncate", body_bytes=body_bytes)
    sent = 50 if body_bytes is None else min(body_bytes, 99)
    with Client(server) as client:
        response = client.ask(100, 200)
        with pytest.raises(http.client.IncompleteRead) as short:
            response.read()
    assert short.value.partial == DATA[100 : 100 + sent]
    assert short.value.expected == 100 - sent
    assert server.requests[0].status == 206


def test_an_answer_without_a_body_has_none_to_break(server: ObjectServer):
    for kind in ("break_body", "truncate", "dribble"):
        server.script = lambda _request, kind=kind: Fault(kind)
        assert read(server, method="HEAD") == (206, b"")


def test_a_body_dribbles(server: ObjectServer):
    server.script = lambda _request: Fault("dribble", bytes_per_s=100_000)
    with Client(server) as client:
        response = client.ask(0, 6_000)
        first = response.read1()
        assert 0 < len(first) < 6_000
        assert first + response.read() == DATA[:6_000]
    (only,) = server.requests
    assert only.ended_s - only.began_s >= 0.06


def test_a_range_is_ignored(server: ObjectServer):
    server.script = lambda _request: Fault("whole_object")
    assert read(server, 5, 10) == (200, DATA)


def test_all_connections_are_dropped(server: ObjectServer, wait_until: Callable):
    with Client(server) as idle, Client(server) as waiting:
        idle.ask().read()
        server.script = lambda _request: Fault(delay_s=math.inf)
        waiting.connection.request("GET", "/bucket/key")
        wait_until(lambda: server.request_count == 2)
        assert server.open_connections == 2
        server.drop_connections()
        with pytest.raises(ConnectionResetError):
            waiting.connection.getresponse()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            idle.ask()
    wait_until(lambda: server.open_connections == server.in_progress == 0)


def test_a_server_goes_and_comes_back_on_its_port(server: ObjectServer):
    with Client(server) as old:
        old.ask().read()
        server.stop_listening()
        server.stop_listening()
        with Client(server) as new, pytest.raises(ConnectionRefusedError):
            new.ask()
        assert old.ask().read() == DATA
        server.listen_again()
        server.listen_again()
        assert read(server) == (206, DATA)


def test_no_connection_is_forgotten_when_the_server_goes(server: ObjectServer, wait_until: Callable):
    is_over = threading.Event()

    def keep_asking() -> None:
        while not is_over.is_set():
            with contextlib.suppress(ConnectionError):  # one that is forgotten times out instead
                assert read(server, 0, 10) == (206, DATA[:10])

    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(keep_asking) for _ in range(6)]
        for wanted in range(50, 1_050, 50):
            server.stop_listening()
            server.drop_connections()
            server.listen_again()
            wait_until(lambda wanted=wanted: server.request_count > wanted)
        is_over.set()
        for client in clients:
            client.result()
    wait_until(lambda: server.open_connections == server.in_progress == 0)


# When


def test_delays_hold_up_nobody_else(server: ObjectServer):
    gate: Future[None] = Future()
    server.script = lambda request: Fault(until=gate) if request.number == 0 else None
    with Client(server) as held:
        held.connection.request("GET", "/bucket/key")
        with Client(server) as other:  # accepted later, so asked later
            assert other.ask().read() == DATA
        first = server.requests[0]
        assert (first.status, first.ended_s, server.in_progress) == (None, None, 1)
        gate.set_result(None)
        assert held.connection.getresponse().read() == DATA
    assert server.most_in_progress == 2


def test_latency_comes_before_the_answer(server: ObjectServer):
    for faults in (Faults(latency_s=0.02), Faults(straggler_share=1, straggler_s=0.02)):
        server.faults = faults
        assert read(server) == (206, DATA)
    spent_s = [each.ended_s - each.began_s for each in server.requests]
    assert len(spent_s) == 2
    assert min(spent_s) >= 0.02


def test_an_object_replaced_meanwhile_is_seen_by_the_answer(server: ObjectServer):
    gate: Future[None] = Future()
    server.script = lambda _request: Fault(until=gate)
    with Client(server) as client:
        client.connection.request(
            "GET", "/bucket/key", headers={"If-Match": server.put("bucket", "key", DATA)}
        )
        server.replace("bucket", "key", b"new")
        gate.set_result(None)
        assert client.connection.getresponse().status == 412


def test_a_client_that_leaves_is_noticed(server: ObjectServer, wait_until: Callable):
    server.script = lambda _request: Fault(delay_s=math.inf)
    with Client(server) as client:
        client.connection.request("GET", "/bucket/key")
        wait_until(lambda: server.in_progress == 1)
    wait_until(lambda: server.in_progress == 0)
    (only,) = server.requests
    assert only.status is None
    assert only.ended_s is not None


def test_an_upload_that_breaks_off_stores_nothing(server: ObjectServer, wait_until: Callable):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"PUT /bucket/key HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        wait_until(lambda: server.in_progress == 1)
    wait_until(lambda: server.in_progress == 0)
    assert server.read("bucket", "key") == DATA


# At random


def drawn(faults: Faults, seed: int, count: int = 5_000, method: str = "GET") -> list[Fault]:
    generator = Random(seed)
    return [faults.draw(method, generator) for _ in range(count)]


def test_the_same_seed_draws_the_same():
    faults = Faults(0.01, 0.02, 0.1, 2.0, slow_down_share=0.1, reset_share=0.1)
    assert drawn(faults, 1) == drawn(faults, 1) != drawn(faults, 2)


def test_one_share_does_not_move_another():
    without = drawn(Faults(jitter_s=1.0, slow_down_share=0.1), 1)
    beside = drawn(Faults(jitter_s=1.0, slow_down_share=0.1, reset_share=0.2, straggler_share=0.1), 1)
    assert [fault.kind == "slow_down" for fault in without] == [fault.kind == "slow_down" for fault in beside]
    delays = [(one.delay_s, other.delay_s) for one, other in zip(without, beside, strict=True)]
    assert {round(other - one, 9) for one, other in delays} == {0.0, 2.0}


def test_shares_are_kept():
    shares = {
        "slow_down": 0.1,
        "too_many_requests": 0.05,
        "internal_error": 0.05,
        "reset": 0.1,
        "break_body": 0.1,
        "truncate": 0.1,
        "dribble": 0.1,
    }
    named = {f"{kind}_share": share for kind, share in shares.items()}
    found = drawn(Faults(**named, straggler_share=0.01), 3, 20_000)
    for kind, share in shares.items():
        assert sum(fault.kind == kind for fault in found) / 20_000 == pytest.approx(share, abs=0.01)
    assert sum(fault.delay_s == 2.0 for fault in found) / 20_000 == pytest.approx(0.01, abs=0.005)


def test_jitter_is_evenly_spread():
    delays = [fault.delay_s for fault in drawn(Faults(latency_s=1.0, jitter_s=0.5), 4)]
    assert 1.0 <= min(delays) < 1.01
    assert 1.49 < max(delays) < 1.5


def test_other_methods_are_spared():
    faults = Faults(latency_s=0.5, slow_down_share=1, straggler_share=1, methods=frozenset({"GET"}))
    assert set(drawn(faults, 1, 10, "HEAD")) == {Fault(delay_s=0.5)}
    assert {fault.kind for fault in drawn(faults, 1, 10)} == {"slow_down"}


def test_the_server_draws_in_order_of_arrival():
    faults = Faults(slow_down_share=0.3, internal_error_share=0.3, truncate_share=0.2)
    with ObjectServer(faults=faults, seed=7) as server, Client(server) as client:
        for _ in range(50):
            client.ask(method="HEAD").read()
        found = [request.fault for request in server.requests]
    assert found == [fault.kind for fault in drawn(faults, 7, 50)]


# The log


def test_the_log_tells_what_was_asked(server: ObjectServer):
    read(server, 5, 10)
    read(server, method="HEAD")
    ranged, head = server.requests
    assert (ranged.method, ranged.bucket, ranged.key) == ("GET", "bucket", "key")
    assert (ranged.range, ranged.status, ranged.sent_bytes) == ("bytes=5-9", 206, 5)
    assert (head.method, head.number, head.sent_bytes) == ("HEAD", 1, 0)
    assert ranged.began_s < head.began_s
    server.forget()
    assert (server.requests, server.connections_made) == ([], 0)


def test_requests_at_once_are_counted(server: ObjectServer, wait_until: Callable):
    gate: Future[None] = Future()
    server.script = lambda _request: Fault(until=gate)
    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(read, server) for _ in range(5)]
        wait_until(lambda: server.in_progress == 5)
        assert server.open_connections == 5
        gate.set_result(None)
        assert {answer.result() for answer in answers} == {(206, DATA)}
    assert server.in_progress == 0
    wait_until(lambda: server.open_connections == 0)
    assert (server.most_in_progress, server.connections_made) == (5, 5)


@pytest.mark.parametrize("kind", ["none", "break_body", "truncate", "reset", "dribble", "slow_down"])
@pytest.mark.parametrize("size", [0, 1, 100, len(DATA)])
def test_whoever_saw_the_end_of_an_answer_finds_it_ended(server: ObjectServer, kind: str, size: int):
    server.put("bucket", "key", DATA[:size])
    server.script = lambda _request: Fault(kind, bytes_per_s=1e9)
    for _ in range(20):
        with Client(server) as client, contextlib.suppress(ConnectionResetError, http.client.IncompleteRead):
            client.ask().read()
        assert server.in_progress == 0
        assert server.requests[-1].ended_s is not None
    assert server.most_in_progress == 1


def test_a_script_that_fails_fails_the_test():
    def script(_request: object) -> None:
        raise ZeroDivisionError("the script's own")

    server = ObjectServer().start()
    server.put("bucket", "key", DATA)
    server.script = script
    assert read(server)[0] == 500
    with pytest.raises(ZeroDivisionError, match="the script's own"):
        server.close()
    server.close()


def test_the_error_of_the_block_goes_before_that_of_a_script():
    with pytest.raises(KeyError), ObjectServer() as server:
        _read_and_raise(server)


def _read_and_raise(server: ObjectServer) -> None:
    server.script = lambda _request: 1 / 0
    assert read(server)[0] == 500
    raise KeyError


# Life


def test_nothing_is_left(no_leaks: Callable):
    with ObjectServer() as server:  # warms up
        server.put("bucket", "key", DATA)
        read(server)
    with no_leaks():
        with ObjectServer() as server, Client(server) as idle, Client(server) as waiting:
            server.put("bucket", "key", DATA)
            idle.ask().read()
            server.script = lambda _request: Fault("dribble", bytes_per_s=1)
            waiting.ask()
            server.stop_listening()
            server.listen_again()
        assert server.in_progress == 0


def test_close_does_not_wait_for_requests(wait_until: Callable):
    with ObjectServer() as server:
        server.put("bucket", "key", DATA)
        server.script = lambda request: Fault("dribble", math.inf if request.number else 0.0, bytes_per_s=1)
        clients = [Client(server) for _ in range(4)]
        for client in clients:
            client.connection.request("GET", "/bucket/key")
        wait_until(lambda: server.in_progress == 4)
    for client in clients:
        with client, pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            client.connection.getresponse().read()
    with Client(server) as late, pytest.raises(ConnectionRefusedError):
        late.ask()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("headrace-objects")]


def test_a_closed_server_says_so():
    server = ObjectServer()
    with pytest.raises(RuntimeError, match="does not run"):
        server.stop_listening()
    server.close()
    with pytest.raises(RuntimeError, match="was closed"):
        server.start()


def test_a_script_cannot_wait_for_its_own_thread(server: ObjectServer):
    def script(_request: object) -> None:
        with pytest.raises(RuntimeError, match="its own thread"):
            server.drop_connections()

    server.script = script
    assert read(server) == (206, DATA)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on Windows")
def test_a_forked_child_keeps_no_connection_open(server: ObjectServer):
    ended, end = os.pipe()
    with Client(server) as kept, Client(server) as cut:
        kept.ask().read()
        cut.ask().read()
        child = os.fork()
        if child == 0:
            os.close(end)
            server.close()
            os.read(ended, 1)
            os._exit(0)
        try:
            assert kept.ask().read() == DATA
            server.script = lambda _request: Fault("truncate", body_bytes=10)
            with pytest.raises(http.client.IncompleteRead):
                cut.ask().read()
            server.stop_listening()
            with Client(server) as late, pytest.raises(ConnectionRefusedError):
                late.ask()
        finally:
            os.close(end)
            _, status = os.waitpid(child, 0)
            os.close(ended)
    assert os.waitstatus_to_exitcode(status) == 0


# What other clients make of it


@pytest.mark.parametrize("kind", ["slow_down", "reset", "truncate", "break_body"])
def test_s3fs_gets_over_a_fault(server: ObjectServer, kind: str):
    fs = s3fs.S3FileSystem(**server.storage_options(), skip_instance_cache=True)
    fs.cat_file("bucket/key", start=0, end=1)
    server.forget()
    server.script = lambda request: Fault(kind) if request.number == 0 else None
    assert fs.cat_file("bucket/key", start=5, end=5_000) == DATA[5:5_000]
    assert [each.fault for each in server.requests] == [kind, "none"]


@pytest.mark.parametrize("kind", ["slow_down", "internal_error", "reset", "truncate", "break_body"])
def test_obstore_reports_a_fault_when_it_may_not_retry(server: ObjectServer, kind: str):
    store = S3Store(
        "bucket",
        endpoint=server.url,
        access_key_id="key",
        secret_access_key="secret",
        region="us-east-1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    server.script = lambda request: Fault(kind) if request.number == 0 else None
    with pytest.raises(obstore.exceptions.BaseError):
        obstore.get_range(store, "key", start=5, end=5_000)
    assert bytes(obstore.get_range(store, "key", start=5, end=5_000)) == DATA[5:5_000]


@pytest.mark.parametrize("kind", ["slow_down", "internal_error", "reset", "truncate", "break_body"])
def test_pyarrow_reports_a_fault_when_it_may_not_retry(server: ObjectServer, kind: str):
    fs = pyarrow.fs.S3FileSystem(
        access_key="key",
        secret_key="secret",
        endpoint_override=server.url,
        region="us-east-1",
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
    with fs.open_input_file("bucket/key") as file:
        server.script = lambda _request: Fault(kind)  # not once: curl asks again on its own after a reset
        with pytest.raises(OSError):
            file.read_at(5_000, 5)
        server.script = None
        assert file.read_at(5_000, 5) == DATA[5:5_005]
