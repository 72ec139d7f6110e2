"""What s3fs's client is told where headrace makes its requests."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiobotocore.config
import aiobotocore.credentials
import aiobotocore.session
import botocore
import botocore.loaders
import botocore.session
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from fsspec.implementations.dirfs import DirFileSystem
from plain_http import Asked, PlainServer, Said, ranged
from s3fs import S3FileSystem

import headrace
from headrace.backends import _s3fs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = bytes(range(256))
HEADERS = {"ETag": '"one"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}


@pytest.fixture
def server() -> Iterator[PlainServer]:
    def answer(asked: Asked) -> Said:
        return ranged(asked, DATA, **HEADERS)

    with PlainServer(answer) as server:
        yield server


def who_asked(server: PlainServer, **config: Any) -> str:
    target = S3FileSystem(
        key="k", secret="s", endpoint_url=server.url, config_kwargs=config, skip_instance_cache=True
    )
    fs = headrace.HeadraceFileSystem(fs=target, cloud_engine="fsspec", skip_instance_cache=True)
    assert fs.cat_file("bucket/key", start=3, end=9) == DATA[3:9]
    (asked,) = server.gets
    return asked.headers["user-agent"]


def test_it_says_who_asks(server: PlainServer) -> None:
    who = who_asked(server, user_agent_extra="lib/of-mine")
    assert who.startswith(f"headrace/{headrace.__version__} aiobotocore/")
    assert who.endswith(" lib/of-mine")


def test_other_words_are_kept(server: PlainServer) -> None:
    assert who_asked(server, user_agent="mine/1").startswith("mine/1 ")


@pytest.mark.parametrize("said_by", ["option", "variable", "file"])
def test_the_name_of_an_application_is_told(
    server: PlainServer, said_by: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if said_by == "variable":
        monkeypatch.setenv("AWS_SDK_UA_APP_ID", "my-app")
    if said_by == "file":
        (tmp_path / "config").write_text("[default]\nsdk_ua_app_id = my-app\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    given = {"user_agent_appid": "my-app"} if said_by == "option" else {}
    assert "app/my-app" in who_asked(server, **given)


def test_a_profile_that_is_not_there_is_s3fss_error(server: PlainServer) -> None:
    target = S3FileSystem(profile="nobody", endpoint_url=server.url, skip_instance_cache=True)
    fs = headrace.HeadraceFileSystem(fs=target, cloud_engine="fsspec", skip_instance_cache=True)
    with pytest.raises(Exception, match="nobody") as ours:
        fs.cat_file("bucket/key", start=3, end=9)
    with pytest.raises(type(ours.value), match="nobody"):
        target.cat_file("bucket/key", start=3, end=9)


def who_signed(asked: Asked) -> str:
    """Return key and region of a request."""
    scope = asked.headers["authorization"].split("Credential=")[1].split("/")
    return f"{scope[0]} in {scope[2]}"


@pytest.mark.parametrize(
    ("engine", "is_connected"), [("obstore", True), ("obstore", False), ("fsspec", True)]
)
def test_one_filesystem_is_one_identity_whatever_the_environment_becomes(
    engine: str, is_connected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads first says who all are: the wrapped filesystem, or the engine that did without it."""

    def answer(asked: Asked) -> Said:
        return Said(404) if "missing" in asked.path else ranged(asked, DATA, **HEADERS)

    def environment(key: str, url: str, region: str) -> None:
        given = {"ACCESS_KEY_ID": key, "SECRET_ACCESS_KEY": "s", "ENDPOINT_URL_S3": url}
        for name, value in {**given, "DEFAULT_REGION": region}.items():
            monkeypatch.setenv(f"AWS_{name}", value)

    with PlainServer(answer) as server:
        environment("one", server.url, "eu-north-1")
        target = S3FileSystem(skip_instance_cache=True)
        fs = headrace.HeadraceFileSystem(fs=target, cloud_engine=engine, skip_instance_cache=True)
        if is_connected:
            target.connect()
        else:
            assert fs.cat_file("bucket/key", start=3, end=9) == DATA[3:9]
        environment("two", "http://127.0.0.1:9", "eu-south-1")
        assert fs.cat_file("bucket/key", start=3, end=9) == DATA[3:9]
        with pytest.raises(FileNotFoundError):
            fs.cat_file("bucket/missing", start=3, end=9)
        assert {who_signed(asked) for asked in server.gets} == {"one in eu-north-1"}
        assert len(server.gets) >= 2


@pytest.mark.parametrize("held", ["T", None])
@pytest.mark.parametrize(
    "given", [{"token": ""}, {"token": "t"}, {"client_kwargs": {"aws_session_token": "t"}}], ids=str
)
def test_a_token_that_botocore_does_not_use_is_not_sent(
    server: PlainServer,
    cloud_engine: str,
    given: dict[str, Any],
    held: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a key and a secret those of the environment are used, with their own token, or none."""
    for name, value in {"ACCESS_KEY_ID": "E", "SECRET_ACCESS_KEY": "s", "SESSION_TOKEN": held}.items():
        if value is not None:
            monkeypatch.setenv(f"AWS_{name}", value)
    target = S3FileSystem(endpoint_url=server.url, skip_instance_cache=True, **given)
    target.connect()
    fs = headrace.HeadraceFileSystem(fs=target, cloud_engine=cloud_engine, skip_instance_cache=True)
    for opened in (target, fs):
        assert opened.cat_file("bucket/key", start=3, end=9) == DATA[3:9]
    assert {asked.headers.get("x-amz-security-token") for asked in server.gets} == {held}
    assert {who_signed(asked) for asked in server.gets} == {"E in us-east-1"}


def test_what_was_given_by_position_is_known_by_name(server: PlainServer) -> None:
    client, config = {"region_name": "eu-west-1"}, {"user_agent": "mine/1"}
    few = (False, server.url, "k", "s", "t", True, client)
    all_of_them = (*few, False, None, True, "readahead", False, config)
    for args in (few, all_of_them):
        server.log.clear()
        target = S3FileSystem(*args, skip_instance_cache=True)
        target.connect()
        fs = headrace.HeadraceFileSystem(fs=target, skip_instance_cache=True)
        assert fs.cat_file("bucket/key", start=3, end=9) == DATA[3:9]
        (asked,) = server.gets
        assert who_signed(asked) == "k in eu-west-1"
        assert asked.headers["x-amz-security-token"] == "t"
        assert asked.headers["user-agent"].startswith("mine/1" if args is all_of_them else "headrace/")


@pytest.mark.parametrize("is_given", [False, True])
def test_a_session_that_was_given_is_left_as_it_is(server: PlainServer, is_given: bool) -> None:
    """Without one the reader has its own, which looks for less; the wrapped filesystem's does not."""
    given = {"session": aiobotocore.session.AioSession()} if is_given else {}
    target = S3FileSystem(key="k", secret="s", endpoint_url=server.url, skip_instance_cache=True, **given)
    fs = headrace.HeadraceFileSystem(fs=target, cloud_engine="fsspec", skip_instance_cache=True)
    assert fs.cat_file("bucket/key", start=3, end=9) == DATA[3:9]
    reader = fs.channel.backend._reader
    assert (reader.session is given.get("session")) == is_given
    assert target.cat_file("bucket/key", start=3, end=9) == DATA[3:9]
    looked_for = [_parts_of_an_answer(of) for of in (reader, target)]
    assert "LastModified" in looked_for[1]
    assert looked_for == [looked_for[1] if is_given else {"Body", "ContentRange", "ETag"}, looked_for[1]]


@pytest.mark.parametrize("is_of_all", [False, True])
@pytest.mark.parametrize("is_of_one", [False, True, None])
@pytest.mark.parametrize("path", ["bucket/key", "key"])
def test_who_pays_for_a_file_that_is_opened(
    server: PlainServer, cloud_engine: str, is_of_all: bool, is_of_one: bool | None, path: str
) -> None:
    """As s3fs has it; where all are paid for so, the file is scheduled."""
    target = S3FileSystem(
        key="k", secret="s", endpoint_url=server.url, requester_pays=is_of_all, skip_instance_cache=True
    )
    if path == "key":
        target, cloud_engine = DirFileSystem(path="bucket", fs=target), "auto"
    fs = headrace.wrap(target, cloud_engine=cloud_engine)
    seen = []
    for opened in (fs, target):
        server.log.clear()
        with opened.open(path, requester_pays=is_of_one) as file:
            assert file.read() == DATA
            is_scheduled = isinstance(file, headrace.HeadraceFile)
            seen.append({asked.headers.get("x-amz-request-payer") for asked in server.gets})
        assert is_scheduled == (opened is fs and is_of_one in {None, is_of_all})
    assert seen[0] == seen[1]


def test_credentials_of_a_session_are_refreshed_on_one_loop(server: PlainServer, wait_until: Any) -> None:
    """What looks at the file holds their lock, on fsspec's loop, and a read waits for it, on whichever."""
    may_end = threading.Event()

    async def refresh() -> dict[str, str]:
        await asyncio.to_thread(may_end.wait)
        expiry = datetime.now(UTC) + timedelta(hours=1)
        return {"access_key": "k", "secret_key": "s", "token": "t", "expiry_time": expiry.isoformat()}

    session = aiobotocore.session.AioSession()
    held = session._credentials = aiobotocore.credentials.AioDeferredRefreshableCredentials(refresh, "a test")
    target = S3FileSystem(session=session, endpoint_url=server.url, skip_instance_cache=True)
    fs = headrace.HeadraceFileSystem(fs=target, cloud_engine="fsspec", retries=0, skip_instance_cache=True)
    with ThreadPoolExecutor(2) as threads:
        try:
            look = threads.submit(fs.info, "bucket/key")
            wait_until(held._refresh_lock.locked)
            read = threads.submit(fs.cat_file, "bucket/key", 3, 9)
            wait_until(lambda: read.done() or bool(held._refresh_lock._waiters))
        finally:
            may_end.set()
        assert look.result()["size"] == len(DATA)
        assert read.result() == DATA[3:9]


def test_what_describes_the_services_is_read_once(
    server: PlainServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Twelve MiB and a tenth of a second for each filesystem else; what a variable adds is apart."""
    monkeypatch.setattr(botocore.session, "create_loader", botocore.loaders.create_loader)
    monkeypatch.setattr(_s3fs, "_loaders", {})
    parsed, parse = list[str](), botocore.loaders.JSONFileLoader._load_file

    def count(self: Any, path: str, open_method: Any) -> Any:
        parsed.append(path)
        return parse(self, path, open_method)

    monkeypatch.setattr(botocore.loaders.JSONFileLoader, "_load_file", count)
    for engine in ("obstore", "fsspec", "obstore", "fsspec"):
        target = S3FileSystem(key="k", secret="s", endpoint_url=server.url, skip_instance_cache=True)
        fs = headrace.HeadraceFileSystem(fs=target, cloud_engine=engine, skip_instance_cache=True)
        assert fs.cat_file("bucket/key", start=3, end=9) == DATA[3:9]
    services = Counter(path for path in parsed if "s3" in path and path.endswith((".json", ".json.gz")))
    assert services
    assert set(services.values()) == {1}
    monkeypatch.setenv("AWS_DATA_PATH", str(tmp_path))
    loader = _s3fs.share_descriptions(botocore.session.Session()).get_component("data_loader")
    assert str(tmp_path) in loader.search_paths


def _parts_of_an_answer(fs: S3FileSystem) -> set[str]:
    """Return what a client looks for in the answer to a GET."""
    return set(fs._s3.meta.service_model.operation_model("GetObject").output_shape.members)


BUCKETS = (
    "bucket",
    "with.dots",
    "abcde--use1-az1--x-s3",
    "arn:aws:s3:us-west-2:123456789012:accesspoint/mine",
    "arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap",
    "arn:aws:s3-object-lambda:us-west-2:123456789012:accesspoint/mine",
    "arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-01234567890123456/accesspoint/mine",
    "mine-abcdefghijklmnopqrstuvwxyza12--xa-s3",
)
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"s3": {"use_arn_region": True}},
    {"s3": {"addressing_style": "path"}},
    {"s3": {"use_accelerate_endpoint": True}},
    {"use_dualstack_endpoint": True},
    {"use_fips_endpoint": True},
)
READS = ("get_object", "head_object", "head_bucket", "list_objects_v2", "create_session")


async def places(session: Any, way: dict[str, Any]) -> list[str]:
    """Return where a client's requests would go, or what it says instead; none is sent."""
    config = aiobotocore.config.AioConfig(signature_version=botocore.UNSIGNED, **way)
    async with session.create_client("s3", region_name="us-east-1", config=config) as client:
        return [await place(client, name, bucket) for name in READS for bucket in BUCKETS]


async def place(client: Any, name: str, bucket: str) -> str:
    key = {"Key": "a/key"} if name.endswith("_object") else {}
    try:
        url = await client.generate_presigned_url(name, Params={"Bucket": bucket, **key})
    except (BotoCoreError, ClientError) as error:
        return repr(error)
    return str(url)


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_endpoints_are_those_that_all_parameters_find(way: dict[str, Any]) -> None:
    """Those that are not looked for belong to requests that read no object."""
    quick = _s3fs._quick_session(S3FileSystem(anon=True, skip_instance_cache=True))
    found = await places(quick, way)
    assert found == await places(aiobotocore.session.AioSession(), way)
    assert len(set(found)) > len(BUCKETS)


async def test_an_endpoint_is_found_by_no_more_parameters_than_reads_have() -> None:
    session = _s3fs._quick_session(S3FileSystem(anon=True, skip_instance_cache=True))
    async with session.create_client("s3", region_name="us-east-1") as client:
        parameters = client._ruleset_resolver._param_definitions
    assert {"Bucket", "Endpoint", "DisableS3ExpressSessionAuth"} <= parameters.keys()
    assert not parameters.keys() & _s3fs._OTHERS_PARAMETERS
