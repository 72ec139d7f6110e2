"""What the exceptions of obstore mean: which an attempt may cure, which the filesystem shall word itself.

A certificate that is not trusted is not cured by another attempt: so the filesystem is asked, which knows
whom it trusts itself.

obstore tells little by type. The status of an HTTP answer and the kind of a broken connection are in the
text, which is stable in so far as it is object_store's own. Retry-After is not in it: that header is lost.
The text also holds a dump of the whole error; only what a user can use of it is kept. And it holds the key,
which may be any words: nothing is looked for but together with those that stand before it in a dump.
"""

from __future__ import annotations

import errno
import re

from headrace.backends._faults import PRECONDITION_FAILED, RETRYABLE, THROTTLED
from headrace.errors import HeadraceError, is_out_of_descriptors
from headrace.types import Verdict

_STATUS = re.compile(r"non-2xx status code: (\d{3})|(?:Status|Response) \{\s+status: (\d{3})")
_KIND = re.compile(r"kind: (\w+)")
_LATE = re.compile(r"\b(?:kind|source): (?:Timeout|TimedOut)\b|\btype: <class '[\w.]*Timeout[\w.]*'>")
"""A time-out of the client's, of the system's, or of what hands out credentials."""

_CODE = re.compile(r"<Code>([\w.-]{1,64})</Code>")

_SYSTEM = re.compile(r'code: (\d+),\s+kind: \w+,\s+message: "([^"]+)"')
"""The system's own error in the dump: its number and its words."""

_QUOTED = re.compile('".*"')
_BUILDER = re.compile(r'General\(\s*"([^"]+)"')
"""Why the library's client could not be made, in the dump."""

_CERTIFICATE = re.compile(r"\bInvalidCertificate\(")

_UNFIT = re.compile(r"source: Missing(LastModified|Etag)")

_CONNECTION = frozenset({"Connect", "Request", "Interrupted", "Body", "Decode"})
_CODES = {"SlowDown": 503, "RequestTimeout": 504, "InternalError": 500, "ServiceUnavailable": 503}

_TO_HEAD = re.compile(r"RetryErrorImpl \{\n\s+method: HEAD,")
"""The request that failed, in the dump."""

_UNAUTHORIZED, _FORBIDDEN, _NO_SUCH_RANGE = 401, 403, 416
_MOVED = frozenset({301, 302, 307, 308})
_ELSEWHERE = frozenset(
    {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"}
)

_CREDENTIALS = frozenset(
    {"AuthenticationFailed", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken"}
    | {"SignatureDoesNotMatch", "TokenRefreshRequired"}
)


class StoreError(HeadraceError, OSError):
    """The store, or the way to it, failed; another attempt may succeed."""

    verdict: Verdict = Verdict(is_retryable=True)
    is_refusal: bool = False
    """Whether the store answered that it wants less, perhaps with Retry-After."""


class StoreTimeoutError(StoreError, TimeoutError):
    """The store did not answer in time."""


class StoreConnectionError(StoreError, ConnectionError):
    """The connection was refused, reset, or ended before the answer did."""


def fault_of(error: BaseException, path: str) -> StoreError | None:
    """Return what to raise for an error that another attempt may cure, or None."""
    text = str(error)
    status = status_of(error)
    if status is not None:
        return _of_status(status, code_of(error), path) if status in RETRYABLE else None
    if _LATE.search(text):
        late = StoreTimeoutError(errno.ETIMEDOUT, "the store did not answer in time", path)
        late.verdict = Verdict(is_retryable=True, is_throttled=True, is_late=True)
        return late
    kind = _KIND.search(text)
    if kind is not None and kind[1] in _CONNECTION and not _CERTIFICATE.search(text):
        return _of_connection(text, path)
    return None


def _of_connection(text: str, path: str) -> StoreError:
    system = _SYSTEM.search(text)
    if system is None:
        return StoreConnectionError(errno.ECONNRESET, f"the connection broke ({_first_line(text)})", path)
    broken = StoreConnectionError(int(system[1]), f"the connection broke ({system[2]})", path)
    if is_out_of_descriptors(broken):
        broken.verdict = Verdict(is_retryable=True, is_throttled=True)
    return broken


def _of_status(status: int, code: str, path: str) -> StoreError:
    is_throttled = status in THROTTLED
    number = errno.EBUSY if is_throttled else errno.EIO
    fault = StoreError(number, f"the store answered {status} {code}".rstrip(), path)
    fault.verdict = Verdict(is_retryable=True, is_throttled=is_throttled)
    fault.is_refusal = is_throttled
    return fault


def _first_line(text: str) -> str:
    return text.partition("\n")[0].rpartition(" - ")[2][:200]


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error tells of."""
    found = _STATUS.search(str(error))
    if found is None:
        return None
    status = int(found[1] or found[2])
    # Some stores say 400 or 200 and mean what the code says.
    return _CODES.get(code_of(error), status) if status in {200, 400} else status


def code_of(error: BaseException) -> str:
    """Return the code in the store's answer, or nothing."""
    found = _CODE.search(str(error))
    return "" if found is None else found[1]


def is_another_version(error: BaseException) -> bool:
    """Whether the object is no longer the one that was asked for."""
    return status_of(error) == PRECONDITION_FAILED


def is_unfit(error: BaseException) -> bool:
    """Whether the store leaves out of its answers what obstore wants in each, as some emulators do."""
    return _UNFIT.search(str(error)) is not None


def is_elsewhere(error: BaseException) -> bool:
    """Whether the bucket is in another region than the one that was asked."""
    is_redirect = status_of(error) in _MOVED or "redirect without LOCATION" in str(error)
    return is_redirect or code_of(error) in _ELSEWHERE


def is_of_settings(error: BaseException) -> bool:
    """Whether a store could not be made for a setting that the library cannot parse, a variable's perhaps."""
    return str(error).startswith("Generic Config error")


def is_of_certificates(error: BaseException) -> bool:
    """Whether one could not be made because no certificates were found."""
    return "No CA certificates" in str(error)


def why_not_made(error: BaseException) -> str:
    """Return what an error says of a store that could not be made, without the values of settings."""
    source = _BUILDER.search(str(error))
    said = str(error).partition("\n")[0] if source is None else source[1]
    return _QUOTED.sub('"..."', said)[:200]


def is_of_credentials(error: BaseException) -> bool:
    """Whether the store refuses who asks."""
    return status_of(error) in {_UNAUTHORIZED, _FORBIDDEN} or code_of(error) in _CREDENTIALS


def is_of_old_credentials(error: BaseException) -> bool:
    """Whether it refuses the credentials themselves, which may have been replaced since.

    Not where it says that they do not reach an object: to whom may not list that is a missing one, too. The
    answer to a HEAD has no body that could say so.
    """
    code, status = code_of(error), status_of(error)
    is_denied = bool(code) or _TO_HEAD.search(str(error)) is not None
    return status == _UNAUTHORIZED or code in _CREDENTIALS or (status == _FORBIDDEN and not is_denied)


def is_of_one_object(error: BaseException) -> bool:
    """Whether a refusal may be of the object alone: who may not read it, or that it has no such range."""
    return status_of(error) in {_UNAUTHORIZED, _FORBIDDEN, _NO_SUCH_RANGE}
