"""gcsfs on the native engine, against a small server of Google's two interfaces that looks at the token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

import gcsfs
import numpy as np
import pytest
from gcsfs.core import GCSFileSystem
from google.oauth2.credentials import Credentials
from plain_http import Asked, PlainServer, Said, ranged
from refusals import read_refused

import headrace
from headrace.backends._obstore_client import InexactError
from headrace.backends._obstore_gcs import GcsClient
from headrace.backends.obstore import ObstoreBackend
from headrace.errors import ObjectChangedError

DATA = np.random.default_rng(31).bytes(2_000_001)


class Google:
    """Objects by the XML interface (``/bucket/key``) and by the JSON one, for who has a token."""

    def __init__(self) -> None:
        self.objects = {"bucket/data.bin": DATA}
        self.tokens = {"Bearer a-token", "Bearer another"}
        self.etag = '"one"'
        self.status = 200
        self.has_ranges = True
        self.modified = {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}

    def __call__(self, asked: Asked) -> Said:
        if self.status != 200:
            return Said(self.status)
        said = asked.headers.get("authorization")
        if said is not None and said not in self.tokens:
            return Said(401, body=b"who?")
        parts = urlsplit(asked.path)
        name = unquote(parts.path[1:])
        is_json = "storage/v1/b/" in name
        if is_json:
            name = name.partition("storage/v1/b/")[2].replace("/o/", "/", 1)
        data = self.objects.get(name)
        if data is None:
            return Said(404, body=b"{}" if is_json else b"<Error/>")
        if asked.headers.get("if-match", self.etag) != self.etag:
            return Said(412, body=b"<Error/>")
        if is_json and "alt=media" not in parts.query:
            bucket, _, key = name.partition("/")
            about = {"bucket": bucket, "name": key, "size": str(len(data)), "generation": "1", "etag": "json"}
            about |= {"updated": "2026-01-01T00:00:00Z", "timeCreated": "2026-01-01T00:00:00Z"}
            return Said(200, {"Content-Type": "application/json"}, json.dumps(about).encode())
        headers = {"ETag": self.etag, **self.modified}
        return ranged(asked, data, **headers) if self.has_ranges else Said(200, headers, data)


@pytest.fixture
def google() -> Google:
    return Google()


@pytest.fixture
def server(google: Google) -> Iterator[PlainServer]:
    with PlainServer(google) as server:
        yield server


def target(server: PlainServer, **options: Any) -> Any:
    found = {"token": Credentials("a-token"), "project": "mine", "endpoint_url": server.url, **options}
    return GCSFileSystem(**found, skip_instance_cache=True)


def native(server: PlainServer, **options: Any) -> Any:
    fs = headrace.HeadraceFileSystem(
        fs=target(server, **options), max_gap_bytes=0, retries=1, skip_instance_cache=True
    )
    assert fs.backend_name == "obstore"
    return fs


def test_ranges_with_its_token(server: PlainServer) -> None:
    fs = native(server)
    starts = np.arange(100) * 10_000
    found = fs.read_ranges("bucket/data.bin", starts, starts + 10)
    assert found.to_pylist() == [DATA[start : start + 10] for start in starts.tolist()]
    assert {unquote(asked.path) for asked in server.gets} == {"/bucket/data.bin"}
    assert {asked.headers["authorization"] for asked in server.gets} == {"Bearer a-token"}
    assert "exactly" in fs.stats().engine_reason


def test_what_obstore_cannot_answer_gcsfs_does(server: PlainServer) -> None:
    fs = native(server)
    with pytest.raises(FileNotFoundError):
        fs.cat_file("bucket/missing", start=0, end=10)
    assert fs.cat_file("bucket/data.bin", start=7) == DATA[7:]
    assert fs.cat_file("bucket/data.bin") == DATA


@pytest.mark.parametrize("engine", ["obstore", "fsspec"])
def test_all_of_an_object_is_no_range_of_it(server: PlainServer, google: Google, engine: str) -> None:
    """Google's server sends it of what it decompresses, and gcsfs returns it."""
    google.has_ranges = False
    fs = headrace.wrap(native(server), cloud_engine=engine)
    assert fs.cat_file("bucket/data.bin", start=0, end=10) == DATA[:10]
    with pytest.raises(OSError, match=f"returned {len(DATA)} bytes for a range of 10"):
        fs.cat_file("bucket/data.bin", start=50, end=60)
    google.objects["bucket/other"] = DATA
    found = fs.cat(["bucket/data.bin", "bucket/other"], start=50, end=60, on_error="return")
    assert [type(answer) for answer in found.values()] == [OSError, OSError]
    assert fs.cat_file("bucket/data.bin") == DATA


def test_a_server_whose_answers_lack_headers_is_left_to_gcsfs(server: PlainServer, google: Google) -> None:
    """Emulators leave out ``Last-Modified``; obstore then makes an error of each answer."""
    google.modified = {}
    fs = native(server)
    for start in (5, 500_000):
        assert fs.cat_file("bucket/data.bin", start=start, end=start + 9) == DATA[start : start + 9]
    assert [asked.path.startswith("/bucket/") for asked in server.gets] == [True, False, False]


def test_a_refusal_costs_one_request_of_each_client(server: PlainServer, google: Google) -> None:
    """gcsfs would try six times by itself, and sleep between."""
    fs = native(server)
    google.status = 503
    with pytest.raises(OSError, match="503"):
        fs.cat_file("bucket/data.bin", start=0, end=10)
    assert len(server.gets) <= 3
    google.status = 200
    assert fs.cat_file("bucket/data.bin", start=0, end=10) == DATA[:10]


@pytest.mark.parametrize("key", ["a b/c+d%20#?.bin", "x//y", "a=b&c;d~e:f@g!$'()*,[]", "ü/日", "x#1"])
def test_keys_are_taken_as_they_are(server: PlainServer, google: Google, key: str) -> None:
    google.objects |= {f"bucket/{key}": DATA[:5000], "bucket/x/y": b"", "bucket/x": b""}
    assert native(server).cat_file(f"bucket/{key}", start=5, end=10) == DATA[5:10]


def test_an_open_file_is_of_one_version(server: PlainServer, google: Google) -> None:
    with native(server).open("bucket/data.bin") as file:
        assert file.read(10) == DATA[:10]
        google.etag = '"two"'
        file.seek(1_500_000)
        with pytest.raises(ObjectChangedError):
            file.read(10)


def test_reads_of_several_ops_and_of_refused_ones_are_of_that_version_too(
    server: PlainServer, google: Google
) -> None:
    """Those go one by one, and through gcsfs, which takes no version."""
    backend = ObstoreBackend(target(server))
    source = backend.open("bucket/data.bin", etag='"one"')
    rows = [(0, 1000 * k, 1000 * k + 10) for k in range(5)]
    placed = read_refused(backend, source, rows, 3, google)
    google.etag = '"two"'
    backend.perform(placed.ops, np.arange(5))
    assert [type(answer) for answer in placed.answers()] == [ObjectChangedError] * 5


def test_a_token_is_refreshed_by_its_credentials(server: PlainServer) -> None:
    """They are near their end each time they are asked, and so are refreshed."""

    class Short(Credentials):
        made = 0

        def refresh(self, request: Any) -> None:
            self.made += 1
            self.token = "another"
            self.expiry = datetime(2100, 1, 1)  # noqa: DTZ001 - google's are so

    credentials = Short("a-token", expiry=datetime.now() - timedelta(days=2))  # noqa: DTZ005
    assert native(server, token=credentials).cat_file("bucket/data.bin", start=0, end=5) == DATA[:5]
    assert credentials.made == 1
    assert server.gets[-1].headers["authorization"] == "Bearer another"
    said = GcsClient(target(server, token=credentials)).credentials()
    assert said["token"] == "another"
    assert said["expires_at"].year == 2100
    assert said["expires_at"].utcoffset() == timedelta(0)


@pytest.mark.parametrize("engine", ["obstore", "fsspec"])
def test_credentials_are_made_once(server: PlainServer, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a token that is about to expire gcsfs makes none, and it asks when that is each time."""
    answers = iter([Credentials("a-token")])
    monkeypatch.setattr(gcsfs.credentials, "_get_creds_from_raw_token", lambda _token: next(answers))
    options = {"cloud_engine": engine, "skip_instance_cache": True}
    fs = headrace.HeadraceFileSystem(fs=target(server, token="a-token"), **options)
    assert fs.cat_file("bucket/data.bin", start=3, end=9) == DATA[3:9]
    assert fs.cat_file("bucket/data.bin", start=7) == DATA[7:], "gcsfs's answer, on either"
    assert {asked.headers["authorization"] for asked in server.gets} == {"Bearer a-token"}


def test_nobody_signs(server: PlainServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment has for the native library."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/credentials.json")
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "of-the-environment")
    assert native(server, token="anon").cat_file("bucket/data.bin", start=0, end=5) == DATA[:5]
    assert not any("authorization" in asked.headers for asked in server.gets)


def test_variables_of_the_native_library_change_nothing(
    server: PlainServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "APPLICATION_CREDENTIALS": "/nowhere", "BASE_URL": "http://127.0.0.1:9", "BEARER_TOKEN": "other",
        "BUCKET": "other", "BUCKET_NAME": "other", "SKIP_SIGNATURE": "true", "PROXY_URL": "http://127.0.0.1:9",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"GOOGLE_{name}", value)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert native(server).cat_file("bucket/data.bin", start=0, end=5) == DATA[:5]
    assert unquote(server.gets[-1].path) == "/bucket/data.bin"
    assert server.gets[-1].headers["authorization"] == "Bearer a-token"
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", "/nowhere")
    assert "GOOGLE_SERVICE_ACCOUNT" in str(ObstoreBackend.refuses(target(server)))


def test_who_pays(server: PlainServer) -> None:
    quota = Credentials("a-token", quota_project_id="theirs")
    for options, payer in [
        ({"requester_pays": True}, "mine"),
        ({"requester_pays": "named"}, "named"),
        ({"token": quota}, "theirs"),
        ({}, None),
    ]:
        native(server, **options).cat_file("bucket/data.bin", start=0, end=5)
        assert server.gets[-1].headers.get("x-goog-user-project") == payer
    with pytest.raises(InexactError, match="different projects"):
        GcsClient(target(server, token=quota, requester_pays=True))


def test_two_identities_share_nothing(server: PlainServer, google: Google) -> None:
    readers = [native(server, token=Credentials(name)) for name in ("a-token", "another")]
    for fs in readers:
        assert fs.cat_file("bucket/data.bin", start=0, end=5) == DATA[:5]
    said = [asked.headers["authorization"] for asked in server.gets]
    assert said == ["Bearer a-token", "Bearer another"]
    assert len({fs._reader.channel.scheduler("bucket/data.bin") for fs in readers}) == 2
    google.tokens.remove("Bearer another")
    with pytest.raises(Exception, match=r"401|who|Invalid Credentials"):
        readers[1].cat_file("bucket/data.bin", start=0, end=5)
    assert readers[0].cat_file("bucket/data.bin", start=0, end=5) == DATA[:5]
    assert "a-token" not in repr(readers[0]) + repr(readers[0].stats())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"version_aware": True}, "version_aware"),
        ({"session_kwargs": {"trust_env": True}}, "session_kwargs"),
        ({"something_new": 1}, "something_new"),
        ({"endpoint_url": "http://h/path"}, "plain scheme and host"),
        ({"requester_pays": True, "project": ""}, "names no project"),
        ({"requests_timeout": object()}, "requests_timeout"),
    ],
)
def test_what_is_not_known_to_translate_is_refused(
    server: PlainServer, options: dict[str, Any], why: str
) -> None:
    assert why in str(ObstoreBackend.refuses(target(server, **options)))


def test_a_subclass_is_refused(server: PlainServer) -> None:
    class Other(GCSFileSystem):  # type: ignore[misc]
        pass

    other = Other(token="anon", endpoint_url=server.url, skip_instance_cache=True)
    assert "Other" in str(ObstoreBackend.refuses(other))


def test_gcsfs_as_it_is_exported_is_served(server: PlainServer) -> None:
    fs = gcsfs.GCSFileSystem(token="anon", endpoint_url=server.url, skip_instance_cache=True)
    assert ObstoreBackend.refuses(fs) is None


def test_the_endpoint_is_googles_own_without_one() -> None:
    fs = GCSFileSystem(token="anon", skip_instance_cache=True)
    assert GcsClient(fs).store_options("b").config["base_url"] == "https://storage.googleapis.com"
