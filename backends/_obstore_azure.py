"""The exact translation of an adlfs filesystem into native Azure stores, one for each container.

adlfs has made a client of Azure's own library of its options and of the environment. That client is asked
what the native store is to be told: endpoint, account, and who signs (an account key, a shared access
signature, or a credential that hands out tokens). Credentials are asked for each time the native store wants
them.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import weakref
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from headrace.backends._obstore_client import (
    NO_PROXY,
    PLAIN_OPTIONS,
    Client,
    InexactError,
    StoreOptions,
    check_class,
    check_environment,
    check_known,
    check_proxy,
    is_plain,
    milliseconds,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_NEUTRAL = PLAIN_OPTIONS | {
    "account_host", "account_key", "account_name", "anon", "assume_container_exists", "blocksize",
    "client_id", "client_secret", "connection_string", "connection_timeout", "credential",
    "default_cache_type", "default_fill_cache", "location_mode", "max_concurrency", "read_timeout",
    "request_session", "sas_token", "socket_timeout", "tenant_id", "version_aware",
}  # fmt: skip
"""Options of adlfs that change nothing in a read, or only the client that it makes."""

_NOT_OVERRIDABLE = re.compile(r"AZURE_(STORAGE_)?ENCRYPTION_KEY", re.IGNORECASE)
"""Variables of the native library's own that no argument switches off."""

_IDENTITY = (
    "account_key", "account_name", "anon", "client_id", "client_secret", "connection_string", "sas_token",
    "tenant_id",
)  # fmt: skip
"""What adlfs takes from the environment where it is not told, when an instance is made."""

_SCOPE = "https://storage.azure.com/.default"
_CONNECT_S, _READ_S = 20, 60
"""What Azure's library waits where it is told nothing."""

_SHORT = timedelta(minutes=10)
"""How long a signature that may be replaced is kept."""

_TOKEN_S = 60.0
"""How long a token that comes by an event loop is waited for."""


class AzureClient(Client):
    """The client that an `adlfs.AzureBlobFileSystem` would read with."""

    filesystems: ClassVar[str] = "adlfs"
    store: ClassVar[str] = "AzureStore"
    has_provider: ClassVar[bool] = True

    @override
    def __init__(self, target: Any) -> None:
        check_class(target, "adlfs.spec.AzureBlobFileSystem")
        options: Mapping[str, Any] = target.storage_options
        check_known(options, _NEUTRAL)
        if target.version_aware:
            raise InexactError("version_aware=True reads blob versions, which have no bulk reads")
        if options.get("request_session") is not None:
            raise InexactError("a session object was given")
        if target.location_mode != "primary":
            raise InexactError("location_mode reads another location than the primary one")
        service = target.service_client
        self._target = weakref.ref(target)
        self._endpoint = f"{service.scheme}://{service.primary_hostname}".rstrip("/")
        self._account = service.account_name
        self._sign = _signer(target, service)
        self._client = {
            "connect_timeout": milliseconds(options.get("connection_timeout") or _CONNECT_S),
            "read_timeout": milliseconds(options.get("read_timeout") or _READ_S),
        }
        self.store_options("headrace-sample")  # refuses now what it would refuse for every container

    @override
    def split(self, path: str) -> tuple[str, str] | None:
        target: Any = self._target()
        container, key, _ = target.split_path(target._strip_protocol(path))  # noqa: SLF001 - as its reads do
        return (container, key) if is_plain(key) else None

    @override
    def store_options(self, bucket: str) -> StoreOptions:
        check_environment(_NOT_OVERRIDABLE)
        client = self._client | _proxy(self._endpoint)
        if self._endpoint.startswith("http:"):
            client["allow_http"] = True
        return StoreOptions(
            bucket=bucket,
            config={
                "account_name": self._account or "nobody",  # of no meaning where nothing is signed by a key
                "endpoint": self._endpoint,
                "skip_signature": self._sign is None,
                "use_emulator": False,
                "use_fabric_endpoint": False,
            },
            client=client,
            headers={},
            is_signed=self._sign is not None,
        )

    @override
    def credentials(self) -> dict[str, Any]:
        return {"token": "", "expires_at": None} if self._sign is None else self._sign()

    @override
    def asker(self, target: Any, **changed: Any) -> Any:
        from fsspec.asyn import get_loop  # noqa: PLC0415

        who = {name: getattr(target, name) for name in _IDENTITY}
        if target.loop is get_loop() and not target.asynchronous:  # else its connections are of another loop
            who["credential"] = target.credential
        asker = super().asker(target, **changed, **who)
        vars(asker).update(who)  # what the target was told nowhere the environment may say by now
        asker.do_connect()
        asker._timeout_kwargs["retry_total"] = 0  # noqa: SLF001 - goes with each download: one attempt
        return asker

    @override
    def version_of(self, info: Mapping[str, Any]) -> str | None:
        etag = info.get("etag")
        return f'"{str(etag).strip(chr(34))}"' if etag else None


def _signer(target: Any, service: Any) -> Callable[[], dict[str, Any]] | None:
    """Return what makes credentials as the native store takes them; None where nobody signs."""
    held, query = service.credential, service._query_str.lstrip("?")  # noqa: SLF001 - nowhere else
    if held is None:
        return None if not query else lambda: {"sas_token": query, "expires_at": None}
    if query:
        raise InexactError("both a signature and another credential were given")
    key = getattr(held, "account_key", None)
    if key is not None:
        if held.account_name != service.account_name:
            raise InexactError("the key is of another account")
        return lambda: {"access_key": held.account_key, "expires_at": None}
    if hasattr(held, "signature"):
        return lambda: {"sas_token": held.signature.lstrip("?"), "expires_at": datetime.now(UTC) + _SHORT}
    if hasattr(held, "get_token"):
        return _token_maker(target, held)
    raise InexactError(f"{type(held).__name__} is not known to translate")


def _token_maker(target: Any, held: Any) -> Callable[[], dict[str, Any]]:
    """Return what asks a credential for a token: its twin that waits, or itself, on its filesystem's loop."""
    twin, loop = target.sync_credential, target.loop
    if twin is None and target.asynchronous:
        raise InexactError("tokens come by an event loop that headrace does not run")
    if twin is None and not inspect.iscoroutinefunction(held.get_token):
        raise InexactError(f"{type(held).__name__} hands out tokens in a way that adlfs cannot take")

    def make() -> dict[str, Any]:
        if twin is not None:
            token = twin.get_token(_SCOPE)
        else:
            token = asyncio.run_coroutine_threadsafe(held.get_token(_SCOPE), loop).result(_TOKEN_S)
        return {"token": token.token, "expires_at": datetime.fromtimestamp(token.expires_on, UTC)}

    return make


def _proxy(url: str) -> dict[str, Any]:
    """Return the proxy of the environment that aiohttp, which Azure's library sends by, would take."""
    from aiohttp.helpers import get_env_proxy_for_url  # noqa: PLC0415
    from yarl import URL  # noqa: PLC0415

    try:
        proxy, who = get_env_proxy_for_url(URL(url))
    except LookupError:
        return dict(NO_PROXY)
    if who is not None:
        proxy = proxy.with_user(who.login).with_password(who.password)
    return {"proxy_url": check_proxy(str(proxy))}
