"""The exact translation of an s3fs filesystem into a native S3 store: same endpoint, identity, request.

Nothing is guessed. s3fs itself says which client it would make (`_client_arguments`), botocore makes such a
client, from the same files and variables, and is asked for one GET that is never sent (`_sample_request`).
What that request says is what the native store is told: scheme, host and bucket in the URL, region and
signature, every ``x-amz-`` header. What cannot be told exactly is refused with a sentence (`InexactError`),
and s3fs reads itself.

The native library would read ``AWS_*`` variables on its own, even over explicit arguments. So every setting
of it that can change a GET is given explicitly, and where a variable sets one that cannot be, that is a
refusal. Its proxies come from what botocore would use, too.

Who reads is found once: by s3fs, where that has connected, or else here. What answers for the native store is
the same (`_s3fs.identity_of`). Credentials are asked of botocore's session each time the native store wants
them (`Client.credentials`), so a profile, an assumed role or an instance role is refreshed by the code that
s3fs trusts.

What is not here: performing anything.
"""

from __future__ import annotations

import io
import re
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from typing_extensions import override

from headrace.backends import _s3fs
from headrace.backends._obstore_client import (
    CONNECTIONS,
    NO_PROXY,
    PLAIN_OPTIONS,
    UNLIMITED_S,
    Client,
    InexactError,
    PassingError,
    StoreOptions,
    check_class,
    check_environment,
    check_known,
    check_proxy,
    is_plain,
    milliseconds,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.types import Ops

BUCKET = "headrace-sample-bucket"
KEY = "headrace/sample"

_NEUTRAL = PLAIN_OPTIONS | {
    "anon", "cache_regions", "client_kwargs", "config_kwargs", "default_block_size", "default_cache_type",
    "default_fill_cache", "endpoint_url", "fixed_upload_size", "key", "local_expiry_check", "max_concurrency",
    "password", "profile", "requester_pays", "s3_additional_kwargs", "secret", "session", "token", "use_ssl",
    "username", "version_aware",
}  # fmt: skip
"""Options of s3fs that change nothing in a read, or only the client's arguments and requests."""

_CLIENT_ARGUMENTS = frozenset(
    {
        "aws_access_key_id", "aws_secret_access_key", "aws_session_token", "config", "endpoint_url",
        "region_name", "use_ssl", "verify",
    }
)  # fmt: skip

_CONFIG = frozenset(
    {
        "connect_timeout", "defaults_mode", "ignore_configured_endpoint_urls", "inject_host_prefix",
        "max_pool_connections", "parameter_validation", "proxies", "read_timeout", "region_name",
        "request_checksum_calculation", "request_min_compression_size_bytes", "response_checksum_validation",
        "retries", "s3", "sigv4a_signing_region_set", "signature_version", "tcp_keepalive",
        "use_dualstack_endpoint", "use_fips_endpoint", "user_agent", "user_agent_appid", "user_agent_extra",
    }
)  # fmt: skip
"""Options of botocore's `Config` of the same kind."""

_SIGNING = frozenset(
    {
        "accept-encoding", "amz-sdk-invocation-id", "amz-sdk-request", "authorization", "content-length",
        "expect", "host", "range", "user-agent", "x-amz-checksum-mode", "x-amz-content-sha256", "x-amz-date",
        "x-amz-security-token",
    }
)  # fmt: skip
"""Headers that the native store makes itself, or that change nothing in the bytes."""

_PASSED_ON = re.compile(
    r"x-amz-(request-payer|expected-bucket-owner|server-side-encryption-customer-(algorithm|key|key-md5))"
)

_NOT_OVERRIDABLE = re.compile(r"AWS_(SERVER_SIDE_ENCRYPTION|SSE_.*)", re.IGNORECASE)
"""Variables of the native library's own that no argument switches off."""

_CREDENTIAL = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/]+)/\d+/([^/]+)/s3/aws4_request,")

_PASSING = frozenset(
    {
        "ClientError", "ConnectionError", "CredentialRetrievalError", "HTTPClientError", "LoginError",
        "MetadataRetrievalError", "OSError", "SSOError", "TokenRetrievalError",
    }
)  # fmt: skip
"""Errors of who hands out credentials, of the way there, and of the system: nothing else is sent or asked."""

_SHORT = timedelta(minutes=10)
"""How long refreshable credentials of unknown expiry are kept."""


class S3Client(Client):
    """The client that an `s3fs.S3FileSystem` would read with."""

    filesystems: ClassVar[str] = "s3fs"
    store: ClassVar[str] = "S3Store"
    asks_for_versions: ClassVar[bool] = True
    decodes: ClassVar[bool] = False

    @override
    def __init__(self, target: Any) -> None:
        _check_options(target)
        asker, arguments = _client_arguments(target)
        check_known(arguments, _CLIENT_ARGUMENTS, "client options")
        check_known(asker.config_kwargs, _CONFIG, "config_kwargs")
        import botocore.session  # noqa: PLC0415
        from s3fs.utils import ParamKwargsHelper  # noqa: PLC0415

        self._session = _s3fs.share_descriptions(botocore.session.Session(**asker.kwargs))
        try:
            self._client = self._session.create_client("s3", **arguments)
        except Exception as error:
            raise _refusal("botocore makes no client of the options", error) from error
        asker._kwargs_helper = ParamKwargsHelper(self._client)  # noqa: SLF001 - as s3fs does it
        self._asker = asker
        self._sampling = threading.Lock()  # one sample at a time: its handler keeps it from being sent
        self._connections = self._client._endpoint.http_session  # noqa: SLF001 - nothing else says how they are
        self.takes_conditions = _s3fs.takes_conditions(target)
        self.store_options(BUCKET)  # refuses now what it would refuse for every bucket

    @override
    def split(self, path: str) -> tuple[str, str] | None:
        bucket, key, _ = self._asker.split_path(path)
        return (bucket, key) if is_plain(key) else None

    @override
    def store_options(self, bucket: str) -> StoreOptions:
        check_environment(_NOT_OVERRIDABLE)
        with self._sampling:
            request = self._sample_request(bucket)
        headers = {name.lower(): _text(value) for name, value in request.headers.items()}
        authorization = headers.get("authorization")
        config = _neutral_config() | _address(request.url, bucket)
        config["skip_signature"] = authorization is None
        if authorization is not None:
            config["region"] = _region(authorization)
        return StoreOptions(
            bucket=bucket,
            config=config,
            client=self._client_options(request.url),
            headers=_extra_headers(headers),
            is_signed=authorization is not None,
        )

    @override
    def credentials(self) -> dict[str, Any]:
        held = self._client._request_signer._credentials  # noqa: SLF001 - explicit ones are nowhere else
        frozen = held.get_frozen_credentials()
        expires_at = getattr(held, "_expiry_time", None)
        if expires_at is None and hasattr(held, "refresh_needed"):
            expires_at = datetime.now(UTC) + _SHORT
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": expires_at,
        }

    @override
    def asker(self, target: Any, **changed: Any) -> Any:
        identity = _s3fs.reader_options(target, CONNECTIONS, self._client)
        asker = super().asker(target, **identity, **changed)
        asker.retries = 1  # that is one attempt
        return asker

    @override
    async def ask(self, asker: Any, ops: Ops, row: int) -> None:
        source, length = ops.sources[int(ops.file[row])], int(ops.length[row])
        if _s3fs.can_read(source, length):
            await _s3fs.read_op(asker, ops, row)
        elif length == 0 and not source.options:
            await _s3fs.check_there(asker, source)
            ops.got[row] = 0
        else:
            await super().ask(asker, ops, row)

    def _sample_request(self, bucket: str) -> Any:
        """Have botocore make and sign a GET, and keep it from being sent."""
        from botocore.awsrequest import AWSResponse  # noqa: PLC0415

        sent: list[Any] = []

        def answer(request: Any, **_: Any) -> Any:
            sent.append(request)
            return AWSResponse(request.url, 200, {"content-length": "0"}, io.BytesIO())

        client, asker = self._client, self._asker
        asked = {"Bucket": bucket, "Key": KEY, "Range": "bytes=0-0"}
        arguments = asker._get_s3_method_kwargs(client.get_object, **asked)  # noqa: SLF001 - s3fs's own additions
        client.meta.events.register_first("before-send.s3.GetObject", answer, unique_id="headrace")
        try:
            client.get_object(**arguments)
        except Exception as error:
            raise _refusal("botocore makes no request of the options", error) from error
        finally:
            client.meta.events.unregister("before-send.s3.GetObject", unique_id="headrace")
        if not sent:
            raise InexactError("botocore sends its requests in a way that cannot be seen")
        return sent[0]

    def _client_options(self, url: str) -> dict[str, Any]:
        config = self._client.meta.config
        limits = {"connect_timeout": config.connect_timeout, "read_timeout": config.read_timeout}
        options: dict[str, Any] = {
            name: milliseconds(UNLIMITED_S if limit_s is None else limit_s)
            for name, limit_s in limits.items()
        }
        if url.startswith("http:"):
            options["allow_http"] = True
        else:
            options |= self._tls_options()
        return options | self._proxy_options(url)

    def _tls_options(self) -> dict[str, Any]:
        verify = self._connections._verify  # noqa: SLF001 - of four ways to say it, the one that counts
        if verify is False:
            return {"allow_invalid_certificates": True}
        if verify not in {None, True}:
            raise InexactError(
                "a bundle of certificates (verify=, AWS_CA_BUNDLE, REQUESTS_CA_BUNDLE) "
                "replaces the system's; obstore would add"
            )
        return {}

    def _proxy_options(self, url: str) -> dict[str, Any]:
        # It was chosen for the service's host, when the client was made.
        proxy = self._connections._proxy_config.proxy_url_for(url)  # noqa: SLF001
        return {"proxy_url": check_proxy(proxy)} if proxy else NO_PROXY


def _check_options(target: Any) -> None:
    check_class(target, "s3fs.core.S3FileSystem")
    options: Mapping[str, Any] = target.storage_options
    check_known(options, _NEUTRAL)
    if options.get("session") is not None:
        raise InexactError("a session object was given, and its credentials belong to its event loop")
    if target.version_aware:
        raise InexactError("version_aware=True reads object versions, which have no bulk reads")
    if options.get("cache_regions"):
        raise InexactError("cache_regions=True looks up each bucket's region")


def _client_arguments(target: Any) -> tuple[Any, dict[str, Any]]:
    """Ask s3fs which client it would make; returns the instance that was asked, and the arguments."""
    recorder = _Recorder()
    options = {**target.storage_options, **_s3fs.identity_of(target)}
    options |= {"session": recorder, "asynchronous": True, "loop": None}
    asker = type(target)(**{**options, "skip_instance_cache": True})
    connecting = asker.set_session()
    try:
        connecting.send(None)  # nothing in it waits: the session answers at once
    except StopIteration:
        pass
    except Exception as error:
        raise _refusal("s3fs makes no client of the options", error) from error
    finally:
        connecting.close()
    if recorder.arguments is None:
        raise InexactError("this version of s3fs makes its client in another way")
    return asker, recorder.arguments


def _refusal(what: str, error: Exception) -> InexactError:
    """Say what came of an error: a refusal for good, unless it is not about the options."""
    why = f"{what} ({type(error).__name__})"
    names = {kind.__name__ for kind in type(error).__mro__}
    return PassingError(why) if names & _PASSING else InexactError(why)


class _Recorder:
    """Stands in for an aiobotocore session, and for the client that it makes."""

    def __init__(self) -> None:
        self.arguments: dict[str, Any] | None = None
        self.meta: Any = None

    def create_client(self, service: str, **arguments: Any) -> _Recorder:
        assert service == "s3"  # noqa: S101
        self.arguments = arguments
        return self

    async def __aenter__(self) -> _Recorder:  # noqa: PYI034
        return self


def _neutral_config() -> dict[str, Any]:
    """Return every setting that a variable of the environment could change in a GET, switched off."""
    return {
        "region": "us-east-1",
        "request_payer": False,
        "s3_express": False,
        "unsigned_payload": False,
        "virtual_hosted_style_request": False,
    }


def _address(url: str, bucket: str) -> dict[str, Any]:
    """Say where the requests for a bucket go."""
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}"
    if parts.query:
        raise InexactError("requests carry a query")
    if "@" in parts.netloc:
        raise InexactError("the endpoint has a user in it, whom s3fs sends otherwise")
    if parts.path == f"/{bucket}/{KEY}":
        return {"endpoint": origin, "aws_endpoint_url_s3": origin}
    if parts.path == f"/{KEY}" and parts.netloc.startswith(f"{bucket}."):
        return {"endpoint": origin, "aws_endpoint_url_s3": origin, "virtual_hosted_style_request": True}
    if parts.path.endswith(f"/{bucket}/{KEY}"):
        origin += parts.path.removesuffix(f"/{bucket}/{KEY}")
        return {"endpoint": origin, "aws_endpoint_url_s3": origin}
    raise InexactError("the endpoint names its buckets in a way that is not known to translate")


def _region(authorization: str) -> str:
    found = _CREDENTIAL.match(authorization)
    if found is None:
        raise InexactError("requests are signed in another way than with signature version 4 for S3")
    return found[2]


def _extra_headers(headers: Mapping[str, str]) -> dict[str, str]:
    found = {name: value for name, value in headers.items() if name not in _SIGNING}
    unknown = sorted(name for name in found if not _PASSED_ON.fullmatch(name))
    if unknown:
        raise InexactError(f"requests carry headers that are not known to translate: {', '.join(unknown)}")
    return found


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
