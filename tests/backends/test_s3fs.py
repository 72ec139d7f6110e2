"""What s3fs's client is told where headrace makes its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from plain_http import Asked, PlainServer, Said, ranged
from s3fs import S3FileSystem

import headrace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = bytes(range(256))


@pytest.fixture
def server() -> Iterator[PlainServer]:
    def answer(asked: Asked) -> Said:
        return ranged(asked, DATA, **{"ETag": '"one"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"})

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
    assert who.startswith(f"headrace/{headrace.__version__} Botocore/")
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
