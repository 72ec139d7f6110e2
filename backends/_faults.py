"""What the errors of HTTP clients mean for the op that met them.

Errors are known by what they carry (a status, headers, a code) and by the names of their classes, so that
none of the clients (botocore, aiohttp, httpx, Google's, Azure's) is imported for it. s3fs and its kin
translate what their client raised and keep it as the cause: the whole chain is looked at.

Retryable is what another attempt may cure, and every read is safe to repeat. Not retryable: what is not
there, what is forbidden (expired credentials too: those that can be refreshed are, before they expire), what
was asked wrongly, and whatever is not known.
"""

from __future__ import annotations

import email.utils
import time
from typing import TYPE_CHECKING, Any

from headrace.backends.abc import FINAL, NoEndError
from headrace.errors import is_out_of_descriptors
from headrace.types import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

THROTTLED = frozenset({408, 429, 503, 504, 509})
RETRYABLE = frozenset({500, 502}) | THROTTLED
PRECONDITION_FAILED = 412

_THROTTLED_CODES = frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "ServiceUnavailable"}
    | {"RequestTimeout", "ServerBusy", "TooManyRequests", "BandwidthLimitExceeded"}
)
_RETRYABLE_CODES = frozenset({"InternalError", "IncompleteBody", "OperationTimedOut"}) | _THROTTLED_CODES

_LATE = frozenset({"TimeoutError", "Timeout", "ConnectTimeoutError", "ReadTimeoutError", "TimeoutException"})
_BROKEN = frozenset(
    {"ConnectionError", "HTTPClientError", "EndpointConnectionError", "ClientConnectionError"}
    | {"ClientPayloadError", "ServerDisconnectedError", "IncompleteRead", "IncompleteReadError"}
    | {"ResponseParserError", "TransportError", "ServiceRequestError", "ServiceResponseError"}
)
_FINAL = (
    NoEndError,
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    FileExistsError,
)

_CROWDED_VERDICT = Verdict(is_retryable=True, is_throttled=True)
_LATE_VERDICT = Verdict(is_retryable=True, is_throttled=True, is_late=True)
_BROKEN_VERDICT = Verdict(is_retryable=True)


def verdict(error: BaseException) -> Verdict:
    """Judge an error by its chain of causes, the first that tells anything."""
    if isinstance(error, _FINAL):
        return FINAL
    return next((found for link in _chain(error) if (found := _verdict_of(link)) is not None), FINAL)


def _verdict_of(link: BaseException) -> Verdict | None:
    """Judge one error of a chain, or say that it tells nothing."""
    names = {kind.__name__ for kind in type(link).__mro__}
    if is_out_of_descriptors(link):
        return _CROWDED_VERDICT
    if names & _LATE:
        return _LATE_VERDICT
    status, code, headers = _answer(link)
    if code in _RETRYABLE_CODES or status in RETRYABLE:
        is_throttled = code in _THROTTLED_CODES or status in THROTTLED
        return Verdict(is_retryable=True, is_throttled=is_throttled, retry_after_s=_retry_after_s(headers))
    if names & _BROKEN:
        return _BROKEN_VERDICT
    return None if status is None else FINAL


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error tells of."""
    return next((status for link in _chain(error) if (status := _answer(link)[0]) is not None), None)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen = 0
    link: BaseException | None = error
    while link is not None and seen < 8:  # noqa: PLR2004 - some clients make rings of causes
        yield link
        seen += 1
        link = link.__cause__


def _answer(error: BaseException) -> tuple[int | None, str | None, Mapping[str, Any]]:
    """Return status, code and headers of the answer that an error carries, as far as it does."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        meta = response.get("ResponseMetadata", {})
        code = response.get("Error", {}).get("Code")
        status = meta.get("HTTPStatusCode")
        if status is None and code is not None and code.isdecimal():
            status = int(code)
        return status, code, meta.get("HTTPHeaders") or {}
    for name in ("status", "status_code", "code"):
        status = getattr(error, name, None)
        if isinstance(status, int):
            headers = getattr(error, "headers", None) or getattr(response, "headers", None) or {}
            return status, None, headers
    return None, None, {}


def _retry_after_s(headers: Mapping[str, Any]) -> float | None:
    """Read ``Retry-After``: seconds, or a date (RFC 9110, 10.2.3)."""
    value = next((str(headers[name]) for name in headers if name.lower() == "retry-after"), None)
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
