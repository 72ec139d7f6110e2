"""The exact translation of fsspec's HTTP filesystem into native HTTP stores, one for each scheme and host.

What aiohttp would send is what the native library is told: headers of the session and of requests, basic
authentication of requests, ``User-Agent``, proxy, time-outs. Everything else that may be in ``client_kwargs``
or the options is refused. Both follow redirects, and both leave ``Authorization`` behind where one leads to
another host; that of a session (``client_kwargs={"auth": ...}``) aiohttp sends there as well.

A URL is read natively where the library would put the very same path on the wire; one with a query or a
user's name never is: those are put to the filesystem itself. So is what the library finds unfit: a server
that ignores ranges, an answer without its length, a whole body that is encoded (aiohttp would decode it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote, unquote

from typing_extensions import override

from headrace.backends import _http
from headrace.backends._obstore_client import (
    NO_PROXY,
    PLAIN_OPTIONS,
    Client,
    InexactError,
    StoreOptions,
    check_class,
    check_known,
    check_proxy,
    is_plain,
    milliseconds,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.types import Ops

_OF_SESSIONS = frozenset({"auth", "headers", "proxy", "timeout", "trust_env"})
_OF_REQUESTS = frozenset({"allow_redirects", "auth", "headers", "proxy", "ssl", "timeout"})
_NEUTRAL = PLAIN_OPTIONS | {
    "block_size", "cache_options", "cache_type", "client_kwargs", "encoded", "same_scheme", "simple_links",
    "size_policy",
}  # fmt: skip
"""Options of the filesystem that change nothing in the requests of a read, or are looked at here."""

_NOT_PASSED_ON = frozenset(
    {
        "connection", "content-length", "cookie", "host", "if-match", "if-modified-since", "if-none-match",
        "if-range", "if-unmodified-since", "proxy-authorization", "range", "te", "transfer-encoding",
        "upgrade",
    }
)  # fmt: skip
"""Headers that mean something to the libraries themselves."""

_AS_THEY_ARE = "/!$&'()*+,-.:;=@[]^_|~"
"""Characters of a path that the native library does not encode, beside letters and digits."""


class HttpClient(Client):
    """The client that a `fsspec.implementations.http.HTTPFileSystem` would read with."""

    filesystems: ClassVar[str] = "fsspec.implementations.http"
    store: ClassVar[str] = "HTTPStore"
    asks_for_versions: ClassVar[bool] = True

    @override
    def __init__(self, target: Any) -> None:
        check_class(target, "fsspec.implementations.http.HTTPFileSystem")
        options: Mapping[str, Any] = target.storage_options
        check_known(options, _NEUTRAL | _OF_REQUESTS)
        session: Mapping[str, Any] = options.get("client_kwargs") or {}
        check_known(session, _OF_SESSIONS, "client_kwargs")
        if session.get("trust_env"):
            raise InexactError("trust_env=True takes proxies and passwords from the environment")
        if session.get("auth") is not None:
            msg = "auth in client_kwargs also goes where a redirect leads, and auth= of requests does not"
            raise InexactError(msg)
        if not options.get("allow_redirects", True):
            raise InexactError("allow_redirects=False cannot be told to the native library")
        self._encoded = bool(target.encoded)
        self._headers = _headers(session, options)
        self._client, self._total_s = _times(options.get("timeout", session.get("timeout")))
        proxy = options.get("proxy")
        proxy = session.get("proxy") if proxy is None else proxy
        self._client |= _tls(options.get("ssl", True)) | _proxy(proxy)
        self._client["user_agent"] = self._headers.pop("user-agent")

    @override
    def split(self, path: str) -> tuple[str, str] | None:
        from yarl import URL  # noqa: PLC0415

        try:
            url = URL(path, encoded=self._encoded)
            origin = str(url.origin())
        except ValueError:
            return None
        key = unquote(url.raw_path[1:], errors="surrogateescape")
        is_same = quote(key, safe=_AS_THEY_ARE, errors="surrogateescape") == url.raw_path[1:]
        is_there = url.scheme in {"http", "https"} and url.raw_user is None and url.raw_password is None
        if not (is_same and is_there and is_plain(key)) or url.raw_query_string or not key.isprintable():
            return None
        return origin, key

    @override
    def store_options(self, bucket: str) -> StoreOptions:
        client = {**self._client, "allow_http": True} if bucket.startswith("http:") else self._client
        return StoreOptions(
            bucket=bucket,
            config={},
            client=client,
            headers=self._headers,
            is_signed=False,
            timeout_s=self._total_s,
        )

    @override
    def make(self, options: StoreOptions, **how: Any) -> Any:
        from obstore.store import HTTPStore  # noqa: PLC0415

        return HTTPStore(options.bucket, **how)

    @override
    async def ask(self, asker: Any, ops: Ops, row: int) -> None:
        await _http.read_op(asker, ops, row)


def _headers(session: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers of each request; those of the request go before those of the session."""
    from aiohttp.http import SERVER_SOFTWARE  # noqa: PLC0415

    found = {"user-agent": SERVER_SOFTWARE, "accept-encoding": "identity"}
    for given in (session.get("headers") or {}, request.get("headers") or {}):
        if type(given) is not dict or not all(isinstance(value, str) for value in given.values()):
            raise InexactError("headers are no dictionary of texts")
        found |= {str(name).lower(): value for name, value in given.items()}
    unfit = sorted(found.keys() & _NOT_PASSED_ON)
    if unfit:
        raise InexactError(f"headers {unfit} are not known to translate")
    if found["accept-encoding"] != "identity":
        raise InexactError("another accept-encoding than identity was asked for, and aiohttp would decode it")
    return found | _authorization(request.get("auth"), found)


def _authorization(auth: Any, headers: Mapping[str, str]) -> dict[str, str]:
    if auth is None:
        return {}
    if f"{type(auth).__module__}.{type(auth).__name__}" != "aiohttp.helpers.BasicAuth":
        raise InexactError(f"auth is no BasicAuth but {type(auth).__name__}")
    if "authorization" in headers:
        raise InexactError("both auth and an authorization header were given")
    return {"authorization": auth.encode()}


def _times(timeout: Any) -> tuple[dict[str, Any], float | None]:
    """Translate a time-out of aiohttp's: what the client is told, and seconds for a whole request."""
    from aiohttp import ClientTimeout  # noqa: PLC0415
    from aiohttp.client import DEFAULT_TIMEOUT  # noqa: PLC0415

    if timeout is None:
        timeout = DEFAULT_TIMEOUT
    elif isinstance(timeout, int | float):
        timeout = ClientTimeout(total=timeout)
    elif type(timeout) is not ClientTimeout:
        raise InexactError(f"timeout is no ClientTimeout but {type(timeout).__name__}")
    connects = [seconds for seconds in (timeout.connect, timeout.sock_connect) if seconds]
    client = {"connect_timeout": milliseconds(min(connects))} if connects else {}
    if timeout.sock_read:
        client["read_timeout"] = milliseconds(timeout.sock_read)
    return client, timeout.total or None


def _tls(ssl: Any) -> dict[str, Any]:
    if ssl is False:
        return {"allow_invalid_certificates": True}
    if ssl is not True and ssl is not None:
        raise InexactError("certificates of its own (ssl=) are not known to translate")
    return {}


def _proxy(proxy: Any) -> dict[str, Any]:
    return dict(NO_PROXY) if proxy is None else {"proxy_url": check_proxy(str(proxy))}
