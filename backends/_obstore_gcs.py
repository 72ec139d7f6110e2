"""The exact translation of a gcsfs filesystem into native GCS stores.

gcsfs reads by Google's JSON interface, the native library by the XML one of the same host: the same objects,
asked for by the same identity. The credentials are gcsfs's own object, whichever kind of ``token`` made it.
It is asked for a token each time the native store wants one, and refreshes it as it does for gcsfs. Who pays
is a header.

The version of an object in the one interface (``etag``) is another text than in the other, so an open file is
of the version that its first read meets.
"""

from __future__ import annotations

import re
from datetime import UTC
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from typing_extensions import override

from headrace.backends import _readers
from headrace.backends._obstore_client import (
    NO_PROXY,
    PLAIN_OPTIONS,
    Client,
    InexactError,
    StoreOptions,
    check_class,
    check_environment,
    check_known,
    is_plain,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_NEUTRAL = PLAIN_OPTIONS | {
    "access", "block_size", "cache_timeout", "check_connection", "consistency", "default_location",
    "endpoint_url", "project", "requester_pays", "requests_timeout", "secure_serialize", "session_kwargs",
    "timeout", "token", "version_aware",
}  # fmt: skip
"""Options of gcsfs that change nothing in a read, or are looked at here."""

_NOT_OVERRIDABLE = re.compile(r"GOOGLE_SERVICE_ACCOUNT(_PATH|_KEY)?", re.IGNORECASE)
"""Variables of the native library's own that it reads whatever it is told."""

_PAYS = "x-goog-user-project"


class GcsClient(Client):
    """The client that a `gcsfs.GCSFileSystem` would read with."""

    filesystems: ClassVar[str] = "gcsfs"
    store: ClassVar[str] = "GCSStore"
    has_provider: ClassVar[bool] = True

    @override
    def __init__(self, target: Any) -> None:
        check_class(target, "gcsfs.core.GCSFileSystem", "gcsfs.extended_gcsfs.ExtendedGcsFileSystem")
        options: Mapping[str, Any] = target.storage_options
        check_known(options, _NEUTRAL)
        if target.version_aware:
            raise InexactError("version_aware=True reads object versions, which have no bulk reads")
        if options.get("session_kwargs"):
            raise InexactError("session_kwargs are not known to translate")
        if getattr(target, "_use_client_cert", False):
            raise InexactError("a client certificate is presented (GOOGLE_API_USE_CLIENT_CERTIFICATE)")
        self._split = type(target)._split_path  # noqa: SLF001 - a class method, of no instance
        self._held = target.credentials
        self._origin = _origin(target._location)  # noqa: SLF001 - endpoint_url, or what a variable says
        self._headers = _payer(target, self._held.credentials)
        self._timeout_s = target.requests_timeout
        if not isinstance(self._timeout_s, int | float | None):
            raise InexactError("requests_timeout is no number")
        check_environment(_NOT_OVERRIDABLE)

    @override
    def split(self, path: str) -> tuple[str, str] | None:
        bucket, key, _ = self._split(path)
        return (bucket, key) if is_plain(key) else None

    @override
    def store_options(self, bucket: str) -> StoreOptions:
        check_environment(_NOT_OVERRIDABLE)
        is_signed = self._held.credentials is not None
        client = NO_PROXY | ({"allow_http": True} if self._origin.startswith("http:") else {})
        return StoreOptions(
            bucket=bucket,
            config={"base_url": self._origin, "skip_signature": not is_signed},
            client=client,
            headers=self._headers,
            is_signed=is_signed,
            timeout_s=self._timeout_s,
        )

    @override
    def credentials(self) -> dict[str, Any]:
        held = self._held
        if held.credentials is None:
            return {"token": "", "expires_at": None}
        held.maybe_refresh()
        expiry = held.credentials.expiry
        return {
            "token": held.credentials.token,
            "expires_at": None if expiry is None else expiry.replace(tzinfo=UTC),
        }

    @override
    def version_of(self, info: Mapping[str, Any]) -> str | None:
        return None

    @override
    def asker(self, target: Any, **changed: Any) -> Any:
        asker = super().asker(target, **_readers.NOBODY, **changed)
        _readers.lend_credentials(target, asker)
        asker._request = _once(asker)  # noqa: SLF001 - one attempt: it has no other way to be told
        return asker


def _once(asker: Any) -> Any:
    """Return gcsfs's request without the retries around it, but with the errors that it makes of answers."""
    from gcsfs.retry import retry_request  # noqa: PLC0415

    request = type(asker)._request  # noqa: SLF001
    return partial(retry_request(retries=1)(getattr(request, "__wrapped__", request)), asker)


def _origin(location: str) -> str:
    parts = urlsplit(location)
    if parts.scheme not in {"http", "https"} or parts.path.strip("/") or parts.query or parts.username:
        raise InexactError("the endpoint is no plain scheme and host")
    return f"{parts.scheme}://{parts.netloc}"


def _payer(target: Any, credentials: Any) -> dict[str, str]:
    """Return the headers beside the token: whose project pays, said by requests or by the credentials."""
    found = {} if credentials is None else _applied(credentials)
    if target.requester_pays:
        payer = target.requester_pays if isinstance(target.requester_pays, str) else target.project
        if not payer:
            raise InexactError("requester_pays names no project")
        if found.get(_PAYS, payer) != payer:
            raise InexactError("requester_pays and the credentials name different projects")
        found[_PAYS] = str(payer)
    return found


def _applied(credentials: Any) -> dict[str, str]:
    """Have credentials write their headers, with a token that is none."""
    headers: dict[str, str] = {}
    try:
        credentials.apply(headers, token="-")  # noqa: S106
    except Exception as error:
        kind = type(error).__name__
        raise InexactError(f"{type(credentials).__name__} makes no headers of a token ({kind})") from error
    found = {name.lower(): str(value) for name, value in headers.items()}
    if found.pop("authorization", "") != "Bearer -":
        raise InexactError(f"{type(credentials).__name__} sends its token in another way")
    unknown = sorted(found.keys() - {_PAYS})
    if unknown:
        raise InexactError(f"{type(credentials).__name__} sends headers {unknown}")
    return found
