"""The native engine against a server that fails, and beside the other engine."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import importlib.util
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any

import numpy as np
import obstore
import pytest
from fsspec.asyn import get_loop, sync
from obstore.store import HTTPStore
from plain_http import Asked, PlainServer, Said, ranged
from s3fs import S3FileSystem
from targets import at_rest, outcome

import headrace
import headrace.backends._obstore_faults as faults
import headrace.backends._obstore_requests as requests_
import headrace.backends._obstore_stores as stores
from headrace.backends._obstore_client import PASSING_S
from headrace.backends._obstore_requests import progress_of
from headrace.backends._obstore_s3 import S3Client
from headrace.backends.abc import AsyncBackend
from headrace.backends.obstore import ObstoreBackend
from headrace.core.room import Calls
from headrace.doctor import diagnose
from headrace.drivers.permit import Permit, permitted
from headrace.errors import BackendError, ObjectChangedError
from headrace.testing import Fault, Faults, ObjectServer
from headrace.testing.perform import make_ops

SIZE = 5_000_001
DATA = np.random.default_rng(11).bytes(SIZE)
OTHER = np.random.default_rng(12).bytes(SIZE)
PATH = "bucket/data.bin"
WAIT_S = 60.0
NO_VERSION = '"headrace"'
"""Of which a server is asked for once, to see whether it heeds conditions."""


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.put("bucket", "data.bin", DATA)
        yield server


def native(server: ObjectServer, mode: str = "standard", key: str = "test-key", **options: Any) -> Any:
    target = S3FileSystem(**server.storage_options(key), skip_instance_cache=True)
    fs = headrace.HeadraceFileSystem(
        fs=target,
        scheduler=mode,
        cloud_engine="obstore",
        max_gap_bytes=0,
        skip_instance_cache=True,
        **options,
    )
    assert fs.backend_name == "obstore"
    return fs


def scattered(n: int, length: int = 100, seed: int = 0) -> tuple[Any, Any]:
    step = 1000 if n * 1000 <= SIZE else 400
    starts = np.random.default_rng(seed).choice(SIZE // step, n, replace=False) * step
    return starts, starts + length


def expect(fs: Any, n: int, length: int = 100, path: str = PATH) -> None:
    starts, ends = scattered(n, length)
    found = fs.read_ranges(path, starts, ends)
    assert found.to_pylist() == [DATA[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]


def gets(server: ObjectServer) -> list[Any]:
    return [request for request in server.requests if request.method == "GET"]


# -- which engine


def test_auto_takes_it_where_it_is_exact(server: ObjectServer) -> None:
    fs = headrace.HeadraceFileSystem(fs=S3FileSystem(**server.storage_options()))
    assert fs.backend_name == "obstore"
    assert "exactly" in fs.stats().engine_reason


def test_auto_says_why_it_does_not(server: ObjectServer) -> None:
    target = S3FileSystem(**server.storage_options(), version_aware=True)
    fs = headrace.HeadraceFileSystem(fs=target)
    assert fs.backend_name == "fsspec-async"
    assert "version_aware" in fs.stats().engine_reason


def test_the_other_engine_can_be_asked_for(server: ObjectServer) -> None:
    fs = headrace.HeadraceFileSystem(fs=S3FileSystem(**server.storage_options()), cloud_engine="fsspec")
    assert fs.backend_name == "fsspec-async"
    assert "cloud_engine" in fs.stats().engine_reason


def test_asked_for_it_never_reads_through_another(server: ObjectServer) -> None:
    target = S3FileSystem(**server.storage_options(), version_aware=True)
    fs = headrace.HeadraceFileSystem(fs=target, cloud_engine="obstore")
    with pytest.raises(BackendError, match="version_aware"):
        fs.cat_file(PATH)


def test_asked_for_it_other_storage_is_read_as_ever(tmp_path: Any) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    fs = headrace.HeadraceFileSystem(target_protocol="file", cloud_engine="obstore")
    assert fs.cat_file(str(tmp_path / "x")) == b"abc"
    assert fs.stats().engine_reason == ""


def test_the_doctor_says_which_and_why(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    S3FileSystem.clear_instance_cache()
    report = diagnose(f"s3://{PATH}")
    check = next(check for check in report.checks if check.name == "target")
    assert "backend obstore" in check.detail
    assert "exactly" in check.detail
    S3FileSystem.clear_instance_cache()


# -- identity


def test_variables_of_the_native_library_change_nothing(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would read them itself, over arguments even."""
    fs = native(server)
    fs.read_ranges("bucket/data.bin", [0], [1])
    for name, value in {
        "ACCESS_KEY_ID": "another", "ALLOW_INVALID_CERTIFICATES": "true", "BUCKET": "another",
        "ENDPOINT": "http://127.0.0.1:9", "ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "PROXY_URL": "http://127.0.0.1:9", "REGION": "another", "REQUEST_PAYER": "true",
        "S3_EXPRESS": "true", "SECRET_ACCESS_KEY": "another", "SESSION_TOKEN": "another",
        "SKIP_SIGNATURE": "true", "UNSIGNED_PAYLOAD": "true", "USER_AGENT": "another",
        "VIRTUAL_HOSTED_STYLE_REQUEST": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.put("second", "data.bin", DATA)
    server.forget()
    expect(native(server), 20, path="second/data.bin")
    requests = gets(server)
    assert {request.access_key_id for request in requests} == {"test-key"}
    assert not any("x-amz-security-token" in request.headers for request in requests)
    assert not any("x-amz-request-payer" in request.headers for request in requests)
    assert all("/us-east-1/s3/" in request.headers["authorization"] for request in requests)


@pytest.mark.parametrize("name", ["CHECKSUM_ALGORITHM", "CONDITIONAL_PUT", "COPY_IF_NOT_EXISTS"])
def test_a_variable_that_the_library_cannot_parse_leaves_reads_to_s3fs(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Buckets that have no store yet are s3fs's then; who has one goes on with it."""
    fs = native(server)
    expect(fs, 3)
    assert "is read by" not in fs.stats().engine_reason
    monkeypatch.setenv(f"AWS_{name}", "nonsense")
    server.put("second", "data.bin", DATA)
    assert fs.cat_file("second/data.bin", 3, 9) == DATA[3:9]
    assert fs.channel.backend._stores.bucket("second") is None
    assert "second is read by the filesystem itself: obstore can make no" in fs.stats().engine_reason
    assert "nonsense" not in fs.stats().engine_reason
    with fs.open(PATH, cache_type="none") as file:
        for k in range(stores.WORTH_OPS + 1):  # past which a version has a store of its own
            file.seek(1000 * k)
            assert file.read(10) == DATA[1000 * k : 1000 * k + 10]
    assert fs.cat_file(PATH) == DATA, "by a store that lets an answer take as long as it takes"


def test_a_system_without_certificates_leaves_reads_to_s3fs(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has some of its own."""
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)
    fs = native(server)
    expect(fs, 3)
    assert "No CA certificates" in fs.stats().engine_reason


def test_certificates_that_cannot_be_opened_are_no_reason_to_do_without_the_engine(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without descriptors the library says the same: the next attempt may have some."""
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    monkeypatch.setenv("SSL_CERT_DIR", os.devnull)
    monkeypatch.setattr(stores, "_may_open_files", lambda: False)
    made = native(server).channel.backend._stores
    with pytest.raises(faults.StoreError) as failed:
        made.bucket("bucket")
    assert failed.value.verdict.is_retryable
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.delenv("SSL_CERT_DIR")
    assert made.bucket("bucket") is not None


def test_what_the_system_refuses_is_refused_for_now(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any, **_options: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    target = S3FileSystem(**server.storage_options(), skip_instance_cache=True)
    with monkeypatch.context() as without:
        without.setattr(S3Client, "__init__", refuse)
        assert "Too many open files" in str(ObstoreBackend.refuses(target))
    assert ObstoreBackend.refuses(target) is None


def test_credentials_that_cannot_be_had_are_no_reason_to_do_without_the_engine_for_good(
    server: ObjectServer, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where a filesystem is made meanwhile, nor where the store of a bucket is made again."""
    is_broken, hands_out = tmp_path / "broken", tmp_path / "credentials.sh"
    soon = datetime.now(UTC) + timedelta(minutes=5)  # to be replaced whenever they are used
    hands_out.write_text(
        f"#!/bin/sh\ntest -e {is_broken} && exit 1\n"
        """echo '{"Version": 1, "AccessKeyId": "an-id", "SecretAccessKey": "s", "SessionToken": "t","""
        f""" "Expiration": "{soon.isoformat()}"}}'\n"""
    )
    hands_out.chmod(0o700)
    (tmp_path / "config").write_text(f"[profile role]\ncredential_process = {hands_out}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    target = S3FileSystem(profile="role", endpoint_url=server.url, skip_instance_cache=True)
    now = [monotonic()]
    monkeypatch.setattr("headrace.backends._obstore_client.monotonic", lambda: now[0])
    is_broken.touch()
    fs = headrace.HeadraceFileSystem(fs=target, cloud_engine="auto", skip_instance_cache=True)
    assert "CredentialRetrievalError" in str(ObstoreBackend.refuses(target))
    assert "CredentialRetrievalError" in fs.stats().engine_reason
    is_broken.unlink()
    assert ObstoreBackend.refuses(target) is not None, "it is not asked for at every look"
    now[0] += PASSING_S
    assert ObstoreBackend.refuses(target) is None
    assert fs.backend_name == "fsspec-async"
    assert "when this filesystem was made" in fs.stats().engine_reason
    made = ObstoreBackend(target)._stores
    is_broken.touch()
    assert made.bucket("bucket") is None
    is_broken.unlink()
    assert made.bucket("bucket") is None, "it is not asked for at every read"
    assert "CredentialRetrievalError" in str(made.left_out())
    now[0] += PASSING_S
    assert made.bucket("bucket") is not None
    assert made.left_out() is None


def test_an_interrupt_of_a_read_comes_out_of_it(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a nested read, which the main thread performs; a panic of Rust's is another matter."""
    fs = native(server, "lite")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ObstoreBackend, "perform", interrupt)
    with ThreadPoolExecutor(1) as thread, pytest.raises(KeyboardInterrupt):
        thread.submit(fs.cat_file, PATH, 0, 10).result(10)
    assert (fs.stats().in_flight_ops, fs.stats().reserved_bytes) == (0, 0)


@pytest.mark.parametrize("is_for_good", [True, False])
def test_who_was_refused_is_not_kept_for_it(
    server: ObjectServer, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, is_for_good: bool
) -> None:
    (tmp_path / "config").write_text("[profile role]\ncredential_process = /bin/false\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    options = {**server.storage_options(), "version_aware": True} if is_for_good else {"profile": "role"}
    target = S3FileSystem(**options, skip_instance_cache=True)
    assert ObstoreBackend.refuses(target)
    gone = weakref.ref(target)
    del target
    gc.collect()
    assert gone() is None


def test_two_identities_share_nothing(server: ObjectServer) -> None:
    one, two = native(server, key="id-one"), native(server, key="id-two")
    for fs in (one, two):
        expect(fs, 30)
    assert {request.access_key_id for request in gets(server)} == {"id-one", "id-two"}
    channels = [fs._reader.channel for fs in (one, two)]
    assert channels[0] is not channels[1]
    assert channels[0].scheduler(PATH) is not channels[1].scheduler(PATH), "one window for each"
    server.expire("id-one", status=403)
    with pytest.raises(PermissionError):
        one.cat_file(PATH, start=0, end=10)
    assert two.cat_file(PATH, start=0, end=10) == DATA[:10]


def test_a_device_is_named_without_secrets(server: ObjectServer) -> None:
    fs = native(server)
    expect(fs, 3)
    said = repr(fs) + repr(fs.stats()) + repr(fs.target)
    assert "test-secret" not in said


# -- how it reads


def test_many_short_ranges(server: ObjectServer, scheduled_mode: str) -> None:
    expect(native(server, scheduled_mode), 700)
    assert len(gets(server)) == 700


def test_from_several_threads(server: ObjectServer, scheduled_mode: str) -> None:
    fs = native(server, scheduled_mode)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(expect, fs, 100) for _ in range(8)]:
            done.result(WAIT_S)


def test_ranges_that_touch_are_not_merged(server: ObjectServer) -> None:
    """Merged by the library they would fail together, or end the process's threads with a panic."""
    fs = native(server)
    starts = [SIZE - 30, SIZE - 20, SIZE - 10, SIZE]
    found = fs.read_ranges(PATH, starts, [start + 10 for start in starts]).to_pylist(on_error="return")
    assert found[:3] == [DATA[-30:-20], DATA[-20:-10], DATA[-10:]]
    assert isinstance(found[3], OSError)
    _perform_touching(fs._reader.channel.backend)


def _perform_touching(backend: ObstoreBackend) -> None:
    rows = [
        (0, SIZE - 20, SIZE - 10),
        (0, SIZE - 10, SIZE + 5),
        (0, SIZE + 5, SIZE + 10),
        (0, 5, 20),
        (0, 7, 9),
    ]
    placed = make_ops([backend.open(PATH)], rows)
    backend.perform(placed.ops, np.arange(5))
    assert placed.answers()[:2] == [DATA[-20:-10], DATA[-10:]]
    assert isinstance(placed.answer(2), OSError)
    assert placed.answers()[3:] == [DATA[5:20], DATA[7:9]]
    assert not len(placed.strays())


def test_neighbours_are_read_in_bulk_all_the_same(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two calls, of every other one: each answer by itself would take a turn of the GIL."""
    singly: list[int] = []
    monkeypatch.setattr(ObstoreBackend, "_one_by_one", lambda _self, _ops, rows: singly.extend(rows))
    starts = [300, 0, 100, 200, 5000]
    backend = native(server)._reader.channel.backend
    placed = make_ops([backend.open(PATH)], [(0, start, start + 100) for start in starts])
    backend.perform(placed.ops, np.arange(5))
    assert placed.answers() == [DATA[start : start + 100] for start in starts]
    assert singly == []
    assert len(gets(server)) == 5


@pytest.mark.parametrize("key", ["a b/c+d%20#?.bin", "x//y", "x/./y", "a=b&c;d~e:f@g!$'()*,[]", "ü/日本"])
def test_keys_are_taken_as_they_are(server: ObjectServer, key: str) -> None:
    server.put("bucket", key, DATA[:5000])
    server.put("bucket", "x/y", OTHER[:5000])
    found = native(server).read_ranges(f"bucket/{key}", [0, 1000], [10, 1010]).to_pylist()
    assert found == [DATA[:10], DATA[1000:1010]]


def test_a_long_read_goes_on_where_it_broke(server: ObjectServer) -> None:
    server.script = lambda r: Fault("truncate", body_bytes=3_000_000) if len(gets(server)) == 1 else None
    assert native(server).read_ranges(PATH, [100], [SIZE]).to_pylist() == [DATA[100:]]
    first, second = (request.range for request in gets(server))
    assert first == f"bytes=100-{SIZE - 1}"
    begin = int(second.removeprefix("bytes=").partition("-")[0])
    assert begin > 100 + (1 << 20), "it did not start again"
    assert gets(server)[1].headers.get("if-match"), "what follows is of the same version"


def test_what_is_read_whole_may_take_longer_than_an_attempt(server: ObjectServer) -> None:
    """While something comes of it: nobody knows how much there is."""
    server.put("bucket", "slow", DATA[:50_000])
    server.script = lambda r: Fault("dribble", bytes_per_s=60_000) if r.method == "GET" else None
    fs = native(server, retries=0, try_timeout_s=0.4)
    assert fs.cat_file("bucket/slow") == DATA[:50_000]
    assert len(gets(server)) == 1
    with pytest.raises(TimeoutError):
        fs.cat_file("bucket/slow", 0, 50_000)


def test_time_outs_may_be_longer_than_anybody_waits(server: ObjectServer, scheduled_mode: str) -> None:
    fs = native(server, scheduled_mode, timeout_s=1e15, try_timeout_s=1e15)
    expect(fs, 200)
    assert fs.cat_file(PATH, 0, 100) == DATA[:100]


def test_one_range_is_of_one_version(server: ObjectServer) -> None:
    """Another op's answer may have told another one, in between: what is left is not read of that."""
    backend = ObstoreBackend(S3FileSystem(**server.storage_options(), skip_instance_cache=True))
    source = backend.open(PATH)
    ops = make_ops([source], [(0, 0, 2_000_000), (0, 3_000_000, 5_000_000)]).ops
    requests_.take_chunk(ops, 0, source, DATA[: 1 << 20], "old")
    with pytest.raises(ObjectChangedError):
        requests_.take_chunk(ops, 1, source, DATA[: 1 << 20], "new")
    assert source.etag == "old"


@pytest.mark.parametrize("key", ["dir/file.bin", "dir//file.bin"])
def test_a_listing_that_tells_of_an_old_version_is_met_once(server: ObjectServer, key: str) -> None:
    """The second of these is none of obstore's: s3fs reads it."""
    server.put("bucket", key, DATA[:100])
    fs = native(server)
    fs.ls(f"bucket/{key.rpartition('/')[0]}/" if "//" in key else "bucket/dir")
    fs.find("bucket/dir")
    fs.info(f"bucket/{key}")
    server.put("bucket", key, OTHER[:100])
    with contextlib.suppress(ObjectChangedError):
        fs.open(f"bucket/{key}").read()
    assert fs.open(f"bucket/{key}").read() == OTHER[:100]


@pytest.mark.parametrize(
    ("body", "is_kept"),
    [
        (b"<Error><Code>AccessDenied</Code></Error>", True),
        (b"<Error><Code>InvalidAccessKeyId</Code></Error>", False),
        (b"<Error><Code>InvalidToken</Code></Error>", False),
        (b"", False),
    ],
)
def test_a_store_is_made_again_where_its_credentials_may_be_old(body: bytes, is_kept: bool) -> None:
    """And not where one object is denied: so is one that is missing, to whom may not list."""

    def answer(asked: Asked) -> Said:
        if asked.path.endswith("denied"):
            return Said(403, {}, body)
        return ranged(asked, DATA, **{"ETag": '"one"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"})

    with PlainServer(answer) as plain:
        target = S3FileSystem(key="k", secret="s", endpoint_url=plain.url, skip_instance_cache=True)
        fs = headrace.wrap(target, cloud_engine="obstore", retries=0)
        assert fs.cat_file("bucket/x", 3, 9) == DATA[3:9]
        kept = fs.channel.backend._stores
        store = kept.bucket("bucket")
        with pytest.raises(OSError, match="denied"):
            fs.cat_file("bucket/denied", 3, 9)
        assert (kept.bucket("bucket") is store) == is_kept


@pytest.mark.parametrize(("ask", "expected"), [(obstore.get, True), (obstore.head, False)])
def test_a_denial_without_a_body_is_of_old_credentials_where_it_could_have_one(
    ask: Any, expected: bool
) -> None:
    with PlainServer(lambda _: Said(403)) as plain:
        store = HTTPStore(plain.url, client_options={"allow_http": True})
        with pytest.raises(obstore.exceptions.PermissionDeniedError) as denied:
            ask(store, "RetryErrorImpl { method: HEAD, }")
    assert faults.is_of_old_credentials(denied.value) is expected


def test_what_another_thread_lets_go_of_meanwhile_is_no_error() -> None:
    class Busy(OrderedDict[str, bool]):
        def move_to_end(self, key: str, last: bool = True) -> None:
            del self[key]
            super().move_to_end(key, last)

    kept = Busy()
    assert stores._keep(kept, "a", True, 1) is None
    assert not kept


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "Received redirect without LOCATION, this normally indicates an incorrectly configured region",
            True,
        ),
        ("Status { status: 400, body: <Error><Code>AuthorizationHeaderMalformed</Code></Error>", True),
        ("Server returned non-2xx status code: 301", True),
        ("Status { status: 404, body: <Code>NoSuchKey</Code>", False),
    ],
)
def test_a_bucket_that_is_elsewhere(said: str, expected: bool) -> None:
    assert faults.is_elsewhere(RuntimeError(said)) is expected


def test_faults_that_begin_cost_the_calls_under_way(server: ObjectServer) -> None:
    """With them some hundreds of answers are lost, once; `tests/cloud/test_faults.py` has what follows."""
    fs = native(server)
    expect(fs, 10)
    server.faults = Faults(slow_down_share=0.1, methods=frozenset({"GET"}))
    server.forget()
    expect(fs, 10_000)
    assert len(gets(server)) <= 12_000


def test_what_is_missing_is_asked_for_again_once_a_call(server: ObjectServer) -> None:
    fs = native(server)
    backend, asked = fs.channel.backend, list[int]()
    plain = backend._client.ask

    async def ask(asker: Any, ops: Any, row: int) -> None:
        asked.append(row)
        await plain(asker, ops, row)

    backend._client.ask = ask
    starts, ends = scattered(200)
    found = fs.read_ranges("bucket/nowhere", starts, ends).to_pylist(on_error="return")
    assert {type(answer) for answer in found} == {FileNotFoundError}
    assert len(asked) <= 200 / backend.least_call_ops
    assert len(server.requests) <= 200 + len(asked)
    assert at_rest(fs)


def test_retries_end_with_an_error_that_says_what(server: ObjectServer) -> None:
    fs = native(server, retries=1)
    server.faults = Faults(is_storm=True)
    with pytest.raises(OSError, match="503 SlowDown") as raised:
        fs.cat_file(PATH, start=0, end=10)
    assert PATH in str(raised.value)
    server.faults = Faults()
    expect(fs, 50)


def test_a_server_that_is_gone_and_back(server: ObjectServer) -> None:
    fs = native(server, retries=0)
    expect(fs, 10)
    server.stop_listening()
    server.drop_connections()
    with pytest.raises(ConnectionError):
        fs.cat_file(PATH, start=0, end=10)
    server.listen_again()
    expect(fs, 10)


def test_a_request_that_is_never_answered_ends(server: ObjectServer) -> None:
    fs = native(server, retries=0, try_timeout_s=0.3)
    server.script = lambda _: Fault(delay_s=float("inf"))
    with pytest.raises(TimeoutError):
        fs.read_ranges(PATH, [0], [10]).to_pylist()
    server.script = None


def test_a_store_that_ignores_ranges_is_an_error_and_no_wrong_bytes(server: ObjectServer) -> None:
    fs = native(server, retries=0)
    server.script = lambda r: Fault("whole_object") if r.method == "GET" else None
    found = fs.read_ranges(PATH, [1000, 3_000_000], [1010, 3_000_010]).to_pylist(on_error="return")
    assert all(isinstance(answer, OSError) for answer in found)


def test_expired_credentials_are_asked_for_again(server: ObjectServer) -> None:
    fs = native(server)
    expect(fs, 30)
    server.expire("test-key")
    with pytest.raises(Exception, match="expired"):
        fs.cat_file(PATH, start=0, end=10)
    server.renew("test-key")
    expect(fs, 30)


# -- op by op, where late ones may be asked for twice


@pytest.mark.parametrize(
    ("path", "start", "end"),
    [
        (PATH, None, None),
        (PATH, -5, None),
        (PATH, 100, SIZE),
        (PATH, SIZE - 10, SIZE + 10),
        (PATH, SIZE + 1, SIZE + 10),
        ("bucket/x//y", 1, 4),
        ("bucket/nowhere", 0, 10),
    ],
)
def test_op_by_op_the_answers_are_those_of_s3fs(
    server: ObjectServer, scheduled_mode: str, path: str, start: int | None, end: int | None
) -> None:
    server.put("bucket", "x//y", DATA[:10])
    hedged = native(server, scheduled_mode, hedge=1)
    plain = S3FileSystem(**server.storage_options(), skip_instance_cache=True)
    assert isinstance(hedged.channel.backend, AsyncBackend)
    assert outcome(hedged.cat_file, path, start, end) == outcome(plain.cat_file, path, start=start, end=end)
    assert at_rest(hedged)


def test_op_by_op_an_open_file_is_of_one_version(server: ObjectServer, scheduled_mode: str) -> None:
    fs = native(server, scheduled_mode, hedge=1)
    server.script = lambda r: Fault("truncate", body_bytes=3_000_000) if len(gets(server)) == 1 else None
    with fs.open(PATH) as file:
        assert file.read() == DATA, "it goes on where it broke"
        server.replace("bucket", "data.bin", OTHER)
        file.seek(0)
        with pytest.raises(ObjectChangedError):
            file.read(10)


# -- beside event loops


@pytest.mark.parametrize("hedge", [None, 1])
def test_a_sync_read_on_the_loop_that_answers_for_the_engine_is_refused(
    server: ObjectServer, scheduled_mode: str, hedge: int | None
) -> None:
    """As fsspec refuses it: what is missing is answered there, and both would wait for ever."""
    target = S3FileSystem(**server.storage_options(), asynchronous=True, skip_instance_cache=True)
    fs = headrace.HeadraceFileSystem(
        fs=target,
        scheduler=scheduled_mode,
        cloud_engine="obstore",
        hedge=hedge,
        timeout_s=2,
        skip_instance_cache=True,
    )
    missing = "bucket/nowhere", [0, 1000], [5, 1005]

    async def called() -> list[type]:
        read = fs.submit_ranges(*missing)
        result, cat = partial(read.result, 2), partial(fs.cat_file, "bucket/nowhere", 0, 5)
        calls = result, cat, partial(nested, fs, *missing)
        refusals = [outcome(call) for call in calls]
        while not read.done():  # noqa: ASYNC110 - it goes on meanwhile
            await asyncio.sleep(0)
        return [*refusals, *map(type, read.result(0).to_pylist(on_error="return"))]

    assert sync(get_loop(), called) == [NotImplementedError] * 3 + [FileNotFoundError] * 2
    assert at_rest(fs)


@pytest.mark.parametrize("n", [1, 20])
async def test_a_nested_read_on_a_thread_that_runs_a_loop_meets_faults_as_any_other(
    server: ObjectServer, scheduled_mode: str, n: int
) -> None:
    """It is performed on that thread, as that of a zip file's member in a notebook."""
    fs = native(server, scheduled_mode)
    starts = [1000 * k for k in range(n)]
    ranges = starts, [start + 5 for start in starts]
    refusals = [Fault("slow_down")]
    server.script = lambda _: refusals.pop() if refusals else None
    assert nested(fs, PATH, *ranges) == [DATA[start : start + 5] for start in starts]
    assert not refusals
    assert outcome(nested, fs, "bucket/nowhere", *ranges) is FileNotFoundError
    with fs.open(PATH) as file, permitted(Permit(0, "outer")):
        assert file.read(5) == DATA[:5]
        server.replace("bucket", "data.bin", OTHER)
        file.seek(SIZE // 2)
        assert outcome(file.read, 5) is ObjectChangedError
    assert at_rest(fs)


def nested(fs: Any, *ranges: Any) -> Any:
    """Read as inside of an op of headrace's."""
    with permitted(Permit(0, "outer")):
        return fs.read_ranges(*ranges).to_pylist()


@pytest.mark.parametrize(("version", "is_old"), [("0.10.4", True), ("0.11.0", False), ("1.0.0b1", False)])
def test_an_old_obstore_is_not_used(monkeypatch: pytest.MonkeyPatch, version: str, is_old: bool) -> None:
    monkeypatch.setattr("headrace.backends.obstore.metadata.version", lambda _name: version)
    why = ObstoreBackend.unavailable() or ""
    assert (version in why, "0.11" in why) == (is_old, is_old)


def test_what_is_missing_comes_before_what_its_options_would_need(monkeypatch: pytest.MonkeyPatch) -> None:
    target = S3FileSystem(profile="of-the-developer", skip_instance_cache=True)
    assert "not installed" not in str(ObstoreBackend.refuses(target))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert "not installed" in str(ObstoreBackend.refuses(target))


# -- versions


def test_an_open_file_is_of_one_version(server: ObjectServer, scheduled_mode: str) -> None:
    fs = native(server, scheduled_mode)
    with fs.open(PATH, "rb") as file:
        assert file.read(10) == DATA[:10]
        server.replace("bucket", "data.bin", OTHER)
        file.seek(2_000_000)
        with pytest.raises(ObjectChangedError):
            file.read(3_000_000)
    with fs.open(PATH, "rb") as file:
        assert file.read() == OTHER


def test_a_file_whose_version_nobody_told_is_of_the_first_one_met(
    server: ObjectServer, scheduled_mode: str
) -> None:
    fs = native(server, scheduled_mode)
    with fs.open(PATH, size=len(DATA)) as file:
        assert file._source.etag is None
        assert file.read(10) == DATA[:10]
        server.replace("bucket", "data.bin", DATA[::-1])
        file.seek(500_000)
        with pytest.raises(ObjectChangedError, match="replaced"):
            file.read(10)


@pytest.mark.parametrize("worth_ops", [0, 1000])
def test_bulk_reads_of_a_version(
    server: ObjectServer, worth_ops: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a store of its own, and one by one: each request says which version."""

    monkeypatch.setattr("headrace.backends._obstore_stores.WORTH_OPS", worth_ops)
    backend = ObstoreBackend(S3FileSystem(**server.storage_options(), skip_instance_cache=True))
    source = backend.open(PATH, etag=server.put("bucket", "data.bin", DATA))
    rows = [(0, 1000 * k, 1000 * k + 10) for k in range(10)]
    placed = make_ops([source], rows)
    backend.perform(placed.ops, np.arange(10))
    assert placed.answers() == [DATA[a:b] for _, a, b in rows]
    conditions = {request.headers.get("if-match") for request in gets(server)} - {NO_VERSION}
    assert conditions == {source.etag}
    server.replace("bucket", "data.bin", OTHER)
    again = make_ops([source], rows)
    backend.perform(again.ops, np.arange(10))
    assert {type(answer) for answer in again.answers()} == {ObjectChangedError}


def test_single_reads_of_a_version(
    server: ObjectServer, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own store, in one call; what several open files read of it counts together."""
    monkeypatch.setattr("headrace.backends._obstore_stores.WORTH_OPS", 3)
    fs = native(server, scheduled_mode)
    files = [fs.open(PATH, "rb") for _ in range(4)]
    assert [file.read(10) for file in files] == [DATA[:10]] * 4
    versions = fs.channel.backend._stores._versions
    assert len(versions) == 1
    assert len({request.headers.get("if-match") for request in gets(server)} - {None, NO_VERSION}) == 1
    server.replace("bucket", "data.bin", OTHER)
    files[0].seek(500_000)
    with pytest.raises(ObjectChangedError):
        files[0].read(10)
    for file in files:
        file.close()


def test_readers_of_a_version_wait_for_no_lock(server: ObjectServer) -> None:
    """Each that had waited for one would have it while it waits for the GIL, and the next one after it."""
    fs = native(server, "standard")
    held = [fs.channel.backend._stores._lock, requests_._making]
    with fs.open(PATH, "rb", cache_type="none") as file, ThreadPoolExecutor(1) as thread:
        for k in range(stores.WORTH_OPS):
            file.seek(1000 * k)
            file.read(10)
        assert fs.channel.backend._stores._versions
        file.seek(300_000)
        with held[0], held[1]:
            assert thread.submit(file.read, 10).result(10) == DATA[300_000:300_010]


def test_the_stores_of_a_bucket_are_forgotten_beside_reads(server: ObjectServer) -> None:
    """Readers have what they found moved to the end of the row, and wait for no lock before it."""
    kept = ObstoreBackend(S3FileSystem(**server.storage_options(), skip_instance_cache=True))._stores

    class Read(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            kept._versions.move_to_end(another)
            return str.__eq__(self, other)

    another = ("another", "key", '"x"')
    mine = [(Read("bucket"), f"key-{k}", '"x"') for k in range(3)]
    kept._versions.update(dict.fromkeys([another, *mine]))
    kept.forget("bucket")
    assert list(kept._versions) == [another]


def test_calls_of_one_read_share_what_arrived() -> None:
    """Were it two, a long op would lose its place, and its next piece go to the wrong one."""
    both = threading.Barrier(2)

    class Shared:
        seen = threading.local()
        kept: Any = None

        @property
        def state(self) -> Any:
            found = self.kept
            if not hasattr(self.seen, "it"):
                self.seen.it = True
                both.wait(10)
            return found

        @state.setter
        def state(self, made: Any) -> None:
            self.kept = made

        def __len__(self) -> int:
            return 2

    ops: Any = Shared()
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(progress_of, [ops, ops])
    assert one is other is ops.kept


def test_the_stores_of_the_buckets_used_last_are_kept(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its connections; over HTTP every host has one."""
    monkeypatch.setattr(stores, "BUCKETS", 4)
    kept = ObstoreBackend(S3FileSystem(**server.storage_options(), skip_instance_cache=True))._stores
    often, seldom = (weakref.ref(kept.bucket(name)) for name in ("often", "seldom"))
    for number in range(6):
        assert kept.bucket("often") is often() is not None
        kept.give_up(f"other-{number}", "as a test says")
    assert (len(kept._buckets), seldom()) == (4, None)


def test_a_bucket_that_is_read_has_one_store(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more buckets than are kept each read of one would else make a store of its own."""
    monkeypatch.setattr(stores, "BUCKETS", 1)
    kept = ObstoreBackend(S3FileSystem(**server.storage_options(), skip_instance_cache=True))._stores
    read_now = kept.bucket("bucket")
    assert kept.bucket("another") is not None
    assert kept.bucket("bucket") is read_now
    kept.forget("bucket")
    renewed = kept.bucket("bucket")
    assert renewed is not read_now, "its credentials were refused"
    kept.give_up("bucket", "as a test says")
    assert kept.bucket("bucket") is None
    assert kept.bucket("another") is not None
    assert kept.bucket("bucket") not in (None, read_now, renewed), "after many others it is tried again"


def test_few_versions_have_a_store_of_their_own(server: ObjectServer) -> None:
    backend = ObstoreBackend(S3FileSystem(**server.storage_options(), skip_instance_cache=True))
    kept = backend._stores
    bucket = kept.bucket("bucket")
    assert bucket is not None

    def store(k: int, ops: int = stores.WORTH_OPS) -> Any:
        return kept.version(bucket, f"key-{k}", '"x"', ops, lambda: True)

    assert store(0, stores.WORTH_OPS - 1) is None
    made = [store(k) for k in range(stores.VERSIONS + 3)]
    assert None not in made
    assert len(kept._versions) == stores.VERSIONS
    # Gone, it has to be worth one again: more of them read by turns would each be made for every read.
    assert store(0, 1) is None
    again = store(0)
    assert again is not None
    assert store(0, 1) is again
    # The one that was used longest ago goes first.
    assert store(4, 1) is made[4]
    store(stores.VERSIONS + 4)
    assert store(4, 1) is made[4]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_process_without_descriptors_asks_for_less(server: ObjectServer, number: int) -> None:
    """As a store that is asked for too much: s3fs, with fewer connections, would have enough of them."""
    backend = ObstoreBackend(S3FileSystem(**server.storage_options(), skip_instance_cache=True))
    text = (
        f'kind: Connect, source: Os {{ code: {number}, kind: Uncategorized, message: "Too many open files" }}'
    )
    for error in (OSError(number, "Too many open files"), faults.fault_of(Exception(text), PATH)):
        assert error is not None
        verdict = backend.verdict(error)
        assert (verdict.is_retryable, verdict.is_throttled) == (True, True)


@pytest.mark.parametrize(
    ("descriptors", "calls", "requests"),
    [(256, 21, 64), (64, 5, 16), (4, 2, 1), (1024, 85, 256), (1 << 20, 128, 390), (None, 128, 390)],
)
def test_calls_under_way_are_as_many_as_there_are_descriptors_for(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch, descriptors: int | None, calls: int, requests: int
) -> None:
    own = headrace.runtime.Runtime()
    monkeypatch.setattr(headrace.runtime, "_current", own)
    monkeypatch.setattr(headrace.runtime, "soft_limit", lambda _name: descriptors)
    fs = native(server)
    room = fs.channel.scheduler(PATH).room
    assert room.calls == Calls(calls, 10)
    assert (room.limit_ops, room.max_in_flight_ops) == (requests, requests)
    assert fs.cat_file(PATH, 10, 20) == DATA[10:20]
    own.close(headrace.SchedulerClosedError("the test is over"))


def test_a_store_that_cannot_be_made_is_an_error_of_the_reads(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_client(*_args: Any, **_options: Any) -> Any:
        msg = "builder error: secret"
        raise RuntimeError(msg)

    fs = native(server, retries=1)
    monkeypatch.setattr(type(fs.channel.backend._client), "make", no_client)
    (found,) = fs.cat_ranges([PATH], [0], [10])
    assert isinstance(found, OSError)
    assert "no client for the store could be made (RuntimeError)" in str(found)


def test_nothing_stays_behind(server: ObjectServer, scheduled_mode: str, wait_until: Any) -> None:
    fs = native(server, scheduled_mode)
    reads = [fs.submit_ranges(PATH, *scattered(50, seed=k)) for k in range(5)]
    reads[0].cancel()
    del reads[:3]  # a cancelled one too: it may have been done
    for read in reads:
        read.result(WAIT_S)
    wait_until(lambda: fs.stats().in_flight_ops == 0 and fs.stats().reserved_bytes == 0)
