"""Stores over TLS: tokens go to a server that somebody trusted vouches for, and to no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from lifecycle.processes import run
from plain_http import Asked, Authority, PlainServer, Said, ranged

DATA = np.random.default_rng(61).bytes(100_001)
CHILD = Path(__file__).with_name("over_tls_child.py")
BACKENDS = {"obstore": "obstore", "fsspec": "fsspec-async"}


def store(asked: Asked) -> Said:
    """Answer as all three kinds of store do, whoever asks."""
    parts = urlsplit(asked.path)
    if "x-ms-range" in asked.headers:
        asked.headers["range"] = asked.headers["x-ms-range"]
    if "storage/v1/b/" in unquote(parts.path) and "alt=media" not in parts.query:
        about = {"bucket": "box", "name": "data.bin", "size": str(len(DATA)), "generation": "1", "etag": "1"}
        about |= {"updated": "2026-01-01T00:00:00Z", "timeCreated": "2026-01-01T00:00:00Z"}
        return Said(200, {"Content-Type": "application/json"}, json.dumps(about).encode())
    modified = "Thu, 01 Jan 2026 00:00:00 GMT"
    headers = {"ETag": '"1"', "Last-Modified": modified, "x-ms-blob-type": "BlockBlob"}
    return ranged(asked, DATA, **headers, **{"x-ms-creation-time": modified})


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def read(kind: str, engine: str, server: PlainServer, **variables: str) -> dict[str, Any]:
    path = f"{server.url}/box/data.bin" if kind == "https" else "box/data.bin"
    ended = run(CHILD, kind, engine, server.url, path, **variables)
    assert ended.status == 0, ended.err
    said: dict[str, Any] = json.loads(ended.out.splitlines()[-1])
    assert said.pop("backend") == BACKENDS[engine]
    return said


@pytest.mark.parametrize("engine", BACKENDS)
@pytest.mark.parametrize("kind", ["https", "gcs", "azure"])
def test_tokens_and_ranges_over_tls(kind: str, engine: str, authority: Authority) -> None:
    with PlainServer(store, authority) as server:
        said = read(kind, engine, server, SSL_CERT_FILE=str(authority.path))
    starts = [*range(0, 50_000, 1_000), 70_000]
    assert said == {"read": [DATA[start : start + 10].hex() for start in starts]}
    assert {asked.headers.get("authorization") for asked in server.log} == {"Bearer a-token"}


@pytest.mark.parametrize("engine", BACKENDS)
def test_a_server_that_nobody_vouches_for_gets_nothing(engine: str, authority: Authority) -> None:
    with PlainServer(store, authority) as server:
        said = read("https", engine, server)
    assert "certificate" in said["error"].lower()
    assert server.log == []
