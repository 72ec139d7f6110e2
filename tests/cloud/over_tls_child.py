"""Reads a store over TLS, whose certificate is trusted or not by ``SSL_CERT_FILE``; run by ``test_tls.py``.

Arguments: a kind of store, an engine, the server's URL, a path.  Clients read that variable when they are
imported, so this is a process of its own.  Prints the backend and what it read as JSON, or the error.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from adlfs import AzureBlobFileSystem
from azure.core.credentials import AccessToken
from fsspec.implementations.http import HTTPFileSystem
from gcsfs.core import GCSFileSystem
from google.oauth2.credentials import Credentials

import headrace

KIND, ENGINE, URL, PATH = sys.argv[1:5]


class Tokens:
    """A credential of Azure's kind."""

    async def get_token(self, *_scopes: str, **_options: Any) -> AccessToken:
        return AccessToken("a-token", 4_000_000_000)

    async def close(self) -> None: ...


def target() -> Any:
    if KIND == "gcs":
        return GCSFileSystem(token=Credentials("a-token"), project="mine", endpoint_url=URL)
    if KIND == "azure":
        host = URL.removeprefix("https://")
        return AzureBlobFileSystem(account_name="acc", account_host=host, credential=Tokens())
    return HTTPFileSystem(client_kwargs={"headers": {"Authorization": "Bearer a-token"}})


def main() -> None:
    fs = headrace.HeadraceFileSystem(fs=target(), cloud_engine=ENGINE, max_gap_bytes=0, retries=2)
    said: dict[str, Any] = {"backend": fs.backend_name}
    try:
        first = fs.cat_file(PATH, start=0, end=10)
        starts = [1_000 * k for k in range(1, 50)]
        found = fs.read_ranges(PATH, starts, [start + 10 for start in starts])
        with fs.open(PATH, "rb") as file:
            file.seek(70_000)
            said["read"] = [data.hex() for data in (first, *found.to_pylist(), file.read(10))]
    except Exception as error:  # noqa: BLE001 - told to the test
        said["error"] = f"{type(error).__name__}: {error}"
    sys.stdout.write(json.dumps(said) + "\n")


main()
