"""`ObjectServerProcess` is an `ObjectServer` elsewhere, and leaves nothing behind."""

from __future__ import annotations

import http.client
import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import s3fs

from headrace.testing import Faults, ObjectServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

DATA = bytes(range(256)) * 400


@pytest.fixture
def server() -> Iterator[ObjectServerProcess]:
    with ObjectServerProcess(access_key_ids=["test-key"]) as server:
        yield server


def get(server: ObjectServerProcess, key: str = "test-key") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    try:
        credential = f"AWS4-HMAC-SHA256 Credential={key}/20240101/us-east-1/s3/aws4_request"
        connection.request("GET", "/bucket/key", headers={"Authorization": credential})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_it_serves_counts_and_logs(server: ObjectServerProcess):
    etag = server.put("bucket", "key", DATA)
    fs = s3fs.S3FileSystem(**server.storage_options(), skip_instance_cache=True)
    assert fs.cat_file("bucket/key", start=5, end=10) == DATA[5:10]
    (only,) = server.requests
    assert (only.range, only.status, only.access_key_id) == ("bytes=5-9", 206, "test-key")
    assert only.headers["host"] == urlsplit(server.url).netloc
    assert (server.counts.request_count, server.counts.most_in_progress) == (1, 1)
    server.forget()
    assert server.counts.request_count == 0
    assert server.replace("bucket", "key", b"new") != etag


def test_faults_change_while_it_runs(server: ObjectServerProcess):
    server.put("bucket", "key", DATA)
    server.set_faults(Faults(is_storm=True))
    assert get(server)[0] == 503
    server.set_faults(Faults())
    assert get(server) == (200, DATA)
    server.expire("test-key", 403)
    assert get(server)[0] == 403
    server.renew("test-key")
    server.stop_listening()
    with pytest.raises(ConnectionRefusedError):
        get(server)
    server.listen_again()
    assert get(server) == (200, DATA)
    assert get(server, "other")[0] == 403


def test_errors_come_back(server: ObjectServerProcess):
    with pytest.raises(KeyError, match="bucket/none"):
        server.replace("bucket", "none", b"")
    server.create_bucket("bucket")


def test_nothing_is_left(no_leaks: Callable):
    with no_leaks(), ObjectServerProcess() as server:
        server.put("bucket", "key", DATA)
    server.close()
    with pytest.raises(RuntimeError, match="does not run"):
        server.forget()
    with pytest.raises(ConnectionRefusedError):
        get(server)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on Windows")
def test_close_does_not_wait_for_a_forked_child():
    ended, end = os.pipe()
    with ObjectServerProcess() as server:
        child = os.fork()
        if child == 0:
            os.close(end)
            os.read(ended, 1)
            os._exit(0)
    os.close(end)  # only now does the child end
    _, status = os.waitpid(child, 0)
    os.close(ended)
    with pytest.raises(RuntimeError, match="does not run"):
        server.forget()
    assert status == 0


def test_the_end_of_the_process_is_said(server: ObjectServerProcess):
    process = server._process
    process.kill()
    process.wait()
    with pytest.raises(RuntimeError, match="has ended"):
        server.forget()


class Interrupted:
    """A pipe that is interrupted within what passes through it."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe

    def write(self, words: bytes) -> None:
        self._pipe.write(words[: len(words) // 2])
        self._pipe.flush()
        raise KeyboardInterrupt

    def read(self, _nbytes: int) -> bytes:
        raise KeyboardInterrupt

    readline = read


@pytest.mark.parametrize("pipe", ["stdin", "stdout"])
def test_an_interrupted_call_ends_the_process_and_answers_no_other(server: ObjectServerProcess, pipe: str):
    process = server._process
    whole = getattr(process, pipe)
    setattr(process, pipe, Interrupted(whole))
    with pytest.raises(KeyboardInterrupt):
        server.put("bucket", "key", DATA)
    setattr(process, pipe, whole)
    with pytest.raises(RuntimeError, match="has ended"):
        server.forget()


def test_what_cannot_be_said_ends_nothing(server: ObjectServerProcess):
    with pytest.raises(Exception, match="pickle"):
        server.put("bucket", "key", memoryview(DATA))
    server.forget()
