"""adlfs on the native engine, against a small server of blobs that looks at who signs."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import obstore
import pytest
from adlfs import AzureBlobFileSystem
from azure.core.credentials import AccessToken, AzureNamedKeyCredential, AzureSasCredential
from plain_http import Asked, PlainServer, Said, ranged
from refusals import read_refused

import headrace
from headrace.backends._obstore_azure import AzureClient
from headrace.backends.obstore import ObstoreBackend
from headrace.errors import ObjectChangedError

DATA = np.random.default_rng(41).bytes(2_000_001)
KEY = "c2VjcmV0LXNlY3JldC1zZWNyZXQ="
SAS = "sv=2024-01-01&sig=a%2Bb%3D"


class Blobs:
    """Blobs of an account, for who signs with its key's name, or with the signature, or nobody."""

    def __init__(self) -> None:
        self.blobs = {"box/data.bin": DATA}
        self.etag = '"0x1"'
        self.status = 200
        self.head_status = 200
        self.headers: dict[str, str] = {}

    def __call__(self, asked: Asked) -> Said:
        if self.status != 200:
            return Said(self.status)
        if asked.method == "HEAD" and self.head_status != 200:
            return Said(self.head_status)
        parts = urlsplit(asked.path)
        data = self.blobs.get(unquote(parts.path).removeprefix("/acc/"))
        if data is None:
            return Said(404, {"x-ms-error-code": "BlobNotFound"})
        if asked.headers.get("if-match", self.etag) != self.etag:
            return Said(412, {"x-ms-error-code": "ConditionNotMet"})
        headers = {"ETag": self.etag, "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
        headers |= {"x-ms-blob-type": "BlockBlob", "x-ms-creation-time": headers["Last-Modified"]}
        headers |= self.headers
        if "x-ms-range" in asked.headers:  # as Azure's own library says it
            asked.headers["range"] = asked.headers["x-ms-range"]
        return ranged(asked, data, **headers)


@pytest.fixture
def blobs() -> Blobs:
    return Blobs()


@pytest.fixture
def server(blobs: Blobs) -> Iterator[PlainServer]:
    with PlainServer(blobs) as server:
        yield server


def connection(server: PlainServer, *more: str) -> dict[str, str]:
    return {"connection_string": ";".join((f"BlobEndpoint={server.url}/acc", *more))}


def by_key(server: PlainServer, key: str = KEY) -> dict[str, str]:
    return connection(server, "AccountName=acc", f"AccountKey={key}")


def target(**options: Any) -> Any:
    return AzureBlobFileSystem(**options, skip_instance_cache=True)


def native(**options: Any) -> Any:
    fs = headrace.HeadraceFileSystem(
        fs=target(**options), max_gap_bytes=0, retries=1, skip_instance_cache=True
    )
    assert fs.backend_name == "obstore"
    return fs


def client(**options: Any) -> AzureClient:
    return AzureClient(target(**options))


def test_ranges_signed_with_the_accounts_key(server: PlainServer) -> None:
    fs = native(**by_key(server))
    starts = np.arange(100) * 10_000
    found = fs.read_ranges("box/data.bin", starts, starts + 10)
    assert found.to_pylist() == [DATA[start : start + 10] for start in starts.tolist()]
    assert all(asked.headers["authorization"].startswith("SharedKey acc:") for asked in server.gets)
    assert all("range" in asked.headers for asked in server.gets), "natively"


def test_what_adlfs_decodes_is_decoded(server: PlainServer, blobs: Blobs) -> None:
    text = DATA[:5000]
    blobs.blobs["box/data.bin"] = gzip.compress(text)
    blobs.headers = {"Content-Encoding": "gzip"}
    fs = native(**by_key(server))
    assert fs.cat_file("box/data.bin") == fs.target.cat_file("box/data.bin") == text
    blobs.blobs["box/other.bin"] = blobs.blobs["box/data.bin"]
    with fs.open("box/other.bin") as ours, fs.target.open("box/other.bin") as theirs:
        assert ours.read() == theirs.read() == text[: ours.size]


def test_a_shared_access_signature(server: PlainServer) -> None:
    fs = native(**connection(server, f"SharedAccessSignature={SAS}"))
    assert fs.cat_file("box/data.bin", start=5, end=10) == DATA[5:10]
    assert urlsplit(server.gets[-1].path).query == SAS
    assert "authorization" not in server.gets[-1].headers


def test_nobody_signs(server: PlainServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_TOKEN", "of-the-environment")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    fs = native(**connection(server), anon=True)
    assert fs.cat_file("box/data.bin", start=5, end=10) == DATA[5:10]
    assert "authorization" not in server.gets[-1].headers
    assert "?" not in server.gets[-1].path


@pytest.mark.parametrize("key", ["a b/c+d%20#.bin", "x//y", "a=b&c;d~e:f@g!$'()*,[]|^", "ü/日"])
def test_keys_are_taken_as_they_are(server: PlainServer, blobs: Blobs, key: str) -> None:
    blobs.blobs |= {f"box/{key}": DATA[:5000], "box/x/y": b""}
    assert native(**by_key(server)).cat_file(f"box/{key}", start=5, end=10) == DATA[5:10]


def test_what_obstore_cannot_answer_adlfs_does(server: PlainServer) -> None:
    with pytest.raises(FileNotFoundError):
        native(**by_key(server)).cat_file("box/missing", start=0, end=10)


def test_a_refusal_costs_one_request_of_each_client(server: PlainServer, blobs: Blobs) -> None:
    """Azure's own library would try four times, and sleep for a minute between."""
    fs = native(**by_key(server))
    blobs.status = 503
    with pytest.raises(OSError, match="503"):
        fs.cat_file("box/data.bin", start=0, end=10)
    assert len(server.gets) <= 3
    blobs.status = 200
    assert fs.cat_file("box/data.bin", start=0, end=10) == DATA[:10]


@pytest.mark.parametrize("hedge", [0, 0.1])
def test_an_open_file_is_of_the_version_seen_at_open(server: PlainServer, blobs: Blobs, hedge: float) -> None:
    fs = headrace.HeadraceFileSystem(fs=target(**by_key(server)), hedge=hedge, skip_instance_cache=True)
    with fs.open("box/data.bin") as file:
        assert file._source.etag == '"0x1"'
        blobs.etag = '"0x2"'
        with pytest.raises(ObjectChangedError):
            file.read(10)


def test_reads_of_several_ops_and_of_refused_ones_are_of_that_version_too(
    server: PlainServer, blobs: Blobs
) -> None:
    """Those go one by one, and through adlfs, which takes no version."""
    backend = ObstoreBackend(target(**by_key(server)))
    source = backend.open("box/data.bin", etag='"0x1"')
    rows = [(0, 1000 * k, 1000 * k + 10) for k in range(5)]
    placed = read_refused(backend, source, rows, 3, blobs)
    blobs.etag = '"0x2"'
    backend.perform(placed.ops, np.arange(5))
    assert [type(answer) for answer in placed.answers()] == [ObjectChangedError] * 5


@pytest.mark.parametrize("status", [200, 404, 503])
def test_what_the_store_says_when_it_is_asked_for_the_version(
    server: PlainServer, blobs: Blobs, status: int
) -> None:
    """An answer of adlfs counts once the store has said that the version is still that one."""
    backend = ObstoreBackend(target(**by_key(server)))
    placed = read_refused(backend, backend.open("box/data.bin", etag='"0x1"'), [(0, 5, 10)], 1, blobs)
    blobs.head_status = status
    backend.perform(placed.ops, np.arange(1))
    (answer,) = placed.answers()
    if status == 200:
        assert answer == DATA[5:10]
    else:
        assert isinstance(answer, OSError)
        assert isinstance(answer, ObjectChangedError) == (status == 404)
        assert backend.verdict(answer).is_retryable == (status == 503), "another attempt may tell"


def test_variables_of_the_native_library_change_nothing(
    server: PlainServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = native(**by_key(server))
    for name in ("ACCOUNT_NAME", "CLIENT_ID", "CLIENT_SECRET", "CONTAINER_NAME", "STORAGE_ACCOUNT_NAME",
                 "STORAGE_SAS_TOKEN", "STORAGE_TOKEN", "TENANT_ID"):  # fmt: skip
        monkeypatch.setenv(f"AZURE_{name}", "other")
    for name in ("USE_EMULATOR", "STORAGE_USE_EMULATOR", "USE_FABRIC_ENDPOINT", "SKIP_SIGNATURE"):
        monkeypatch.setenv(f"AZURE_{name}", "true")
    for name in ("ENDPOINT", "STORAGE_ENDPOINT", "AUTHORITY_HOST"):
        monkeypatch.setenv(f"AZURE_{name}", "http://127.0.0.1:9")
    monkeypatch.setenv("AZURE_CREDENTIAL_TYPE", "azure_cli")
    assert fs.cat_file("box/data.bin", start=5, end=10) == DATA[5:10]
    assert server.gets[-1].path == "/acc/box/data.bin"
    assert server.gets[-1].headers["authorization"].startswith("SharedKey acc:")
    assert "range" in server.gets[-1].headers, "natively"
    monkeypatch.setenv("AZURE_ENCRYPTION_KEY", "x")
    assert "AZURE_ENCRYPTION_KEY" in str(ObstoreBackend.refuses(target(**by_key(server))))


def test_two_identities_share_nothing(server: PlainServer) -> None:
    readers = [
        native(**by_key(server)),
        native(**by_key(server, key="b3RoZXItb3RoZXItb3RoZXI=")),
        native(**connection(server, f"SharedAccessSignature={SAS}")),
    ]
    for fs in readers:
        assert fs.cat_file("box/data.bin", start=5, end=10) == DATA[5:10]
    said = [(asked.path, asked.headers.get("authorization")) for asked in server.gets]
    assert len(set(said)) == 3
    assert len({fs._reader.channel.scheduler("box/data.bin") for fs in readers}) == 3
    assert KEY not in repr(readers[0]) + repr(readers[0].stats())


def test_endpoints() -> None:
    said = client(account_name="acc", account_key=KEY).store_options("box").config
    assert (said["endpoint"], said["account_name"]) == ("https://acc.blob.core.windows.net", "acc")
    said = client(account_name="acc", account_host="acc.of.test", sas_token=SAS).store_options("box").config
    assert said["endpoint"] == "https://acc.of.test"


def test_who_signs() -> None:
    def made(**options: Any) -> dict[str, Any]:
        return client(account_name="acc", **options).credentials()

    assert made(account_key=KEY) == {"access_key": KEY, "expires_at": None}
    assert made(credential=AzureNamedKeyCredential("acc", KEY))["access_key"] == KEY
    assert made(sas_token=f"?{SAS}") == {"sas_token": SAS, "expires_at": None}
    assert made(credential=SAS)["sas_token"] == SAS
    replaced = AzureSasCredential(SAS)
    asked = client(account_name="acc", credential=replaced)
    replaced.update("sv=2&sig=new")
    assert asked.credentials()["sas_token"] == "sv=2&sig=new"
    assert asked.credentials()["expires_at"] is not None
    assert KEY not in repr(client(account_name="acc", account_key=KEY).store_options("box"))


class Tokens:
    """A credential of Azure's kind."""

    def __init__(self) -> None:
        self.made = 0

    async def get_token(self, scope: str, **_options: Any) -> AccessToken:
        assert scope == "https://storage.azure.com/.default"
        self.made += 1
        return AccessToken(f"token-{self.made}", 4_000_000_000)

    async def close(self) -> None: ...


def test_tokens_are_asked_of_the_credential(server: PlainServer) -> None:
    asked = client(account_name="acc", credential=Tokens())
    said = asked.credentials()
    assert said == {"token": "token-1", "expires_at": datetime.fromtimestamp(4_000_000_000, UTC)}
    options = asked.store_options("box")
    # Azure's own library sends tokens by TLS only, so adlfs itself cannot be pointed at this server.
    here = {**options.config, "endpoint": f"{server.url}/acc"}
    store = asked.make(replace(options, config=here), client_options={**options.client, "allow_http": True})
    assert bytes(obstore.get_range(store, "data.bin", start=5, end=10)) == DATA[5:10]
    assert server.gets[-1].headers["authorization"] == "Bearer token-2"


def test_default_credentials_wait_by_their_twin() -> None:
    fs = target(account_name="acc", anon=False)
    asked = AzureClient(fs)
    assert asked.store_options("box").is_signed
    twin = fs.sync_credential
    twin.get_token = lambda _scope: AccessToken("of-the-twin", 4_000_000_000)
    assert asked.credentials()["token"] == "of-the-twin"


OF_THE_ENVIRONMENT = {
    "ACCOUNT_NAME": "two",
    "ACCOUNT_KEY": "b3RoZXI=",
    "ANON": "true",
    "CONNECTION_STRING": "BlobEndpoint=http://127.0.0.1:9/two;AccountName=two;AccountKey=b3RoZXI=",
    "SAS_TOKEN": "sig=two",
    "TENANT_ID": "two",
}


@pytest.mark.parametrize(
    "before",
    [
        {"ACCOUNT_NAME": "acc", "ACCOUNT_KEY": KEY},
        {"ACCOUNT_NAME": "acc", "SAS_TOKEN": SAS},
        {"ACCOUNT_NAME": "acc", "ANON": "true"},
        {"ACCOUNT_NAME": "acc"},
        {"ACCOUNT_NAME": "acc", "CLIENT_ID": "id", "CLIENT_SECRET": "s", "TENANT_ID": "one"},
        {"CONNECTION_STRING": f"AccountName=acc;AccountKey={KEY}"},
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("after", [OF_THE_ENVIRONMENT, {}], ids=["another", "none"])
def test_what_answers_for_the_native_engine_is_who_that_is(
    before: dict[str, str], after: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment, which adlfs has looked at, has become."""
    for name, value in before.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    fs = target()
    for name in before:
        monkeypatch.delenv(f"AZURE_STORAGE_{name}")
    for name, value in after.items():
        monkeypatch.setenv(f"AZURE_STORAGE_{name}", value)
    ours, theirs = AzureClient(fs).asker(fs).service_client, fs.service_client
    assert ours.url == theirs.url
    assert _who(ours.credential) == _who(theirs.credential)


def _who(credential: Any) -> Any:
    return getattr(credential, "account_key", credential)


def test_proxies_are_those_of_azures_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"account_name": "acc", "account_key": KEY}
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert client(**options).store_options("box").client["proxy_excludes"] == "*,0.0.0.0/0,::/0"
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3")
    assert client(**options).store_options("box").client["proxy_url"] == "http://proxy:3"
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine proxy login user password p@ss\n")
    assert client(**options).store_options("box").client["proxy_url"] == "http://user:p%40ss@proxy:3"
    monkeypatch.setenv("HTTPS_PROXY", "https://proxy:3")  # aiohttp can ask none of these
    assert client(**options).store_options("box").client["proxy_excludes"] == "*,0.0.0.0/0,::/0"
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3")
    monkeypatch.setenv("NO_PROXY", "windows.net")
    assert client(**options).store_options("box").client["proxy_excludes"] == "*,0.0.0.0/0,::/0"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"version_aware": True}, "version_aware"),
        ({"location_mode": "secondary"}, "location_mode"),
        ({"timeout": 3}, "timeout"),
        ({"something_new": 1}, "something_new"),
        ({"request_session": object()}, "session object"),
    ],
)
def test_what_is_not_known_to_translate_is_refused(options: dict[str, Any], why: str) -> None:
    said = str(ObstoreBackend.refuses(target(account_name="acc", account_key=KEY, **options)))
    assert why in said
    assert KEY not in said


def test_a_subclass_is_refused() -> None:
    class Other(AzureBlobFileSystem):  # type: ignore[misc]
        pass

    assert "Other" in str(
        ObstoreBackend.refuses(Other(account_name="acc", anon=True, skip_instance_cache=True))
    )
