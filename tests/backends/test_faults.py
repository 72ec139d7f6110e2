"""What errors of HTTP clients mean, by what they carry and by the names of their classes."""

from __future__ import annotations

import email.utils
import time
from types import SimpleNamespace
from typing import Any

import aiohttp
import botocore.exceptions
import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from headrace.backends._faults import status_of, verdict
from headrace.types import Verdict

FINAL = Verdict(is_retryable=False)
BROKEN = Verdict(is_retryable=True)
LESS = Verdict(is_retryable=True, is_throttled=True)
LATE = Verdict(is_retryable=True, is_throttled=True, is_late=True)


def of_s3(status: int, code: str, **headers: str) -> BaseException:
    answer = {
        "Error": {"Code": code, "Message": code},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
    }
    error: BaseException = translate_boto_error(ClientError(answer, "GetObject"))
    return error


def of_http(status: int, **headers: str) -> BaseException:
    request: Any = SimpleNamespace(real_url="http://store/key")
    return aiohttp.ClientResponseError(request, (), status=status, headers=headers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (of_s3(503, "SlowDown"), LESS),
        (of_s3(429, "TooManyRequests"), LESS),
        (of_s3(500, "InternalError"), BROKEN),
        (of_s3(400, "RequestTimeout"), LATE),
        (of_s3(404, "NoSuchKey"), FINAL),
        (of_s3(403, "AccessDenied"), FINAL),
        (of_s3(400, "ExpiredToken"), FINAL),
        (of_s3(412, "PreconditionFailed"), FINAL),
        (of_s3(416, "InvalidRange"), FINAL),
        (of_http(503), LESS),
        (of_http(502), BROKEN),
        (of_http(404), FINAL),
        (TimeoutError(), LATE),
        (botocore.exceptions.ConnectTimeoutError(endpoint_url="x"), LATE),
        (botocore.exceptions.EndpointConnectionError(endpoint_url="x"), BROKEN),
        (aiohttp.ClientPayloadError(), BROKEN),
        (ConnectionResetError(), BROKEN),
        (FileNotFoundError(), FINAL),
        (OSError(5, "disk"), FINAL),
        (ValueError("mistake"), FINAL),
    ],
    ids=repr,
)
def test_verdicts(error: BaseException, expected: Verdict) -> None:
    assert verdict(error) == expected


def test_the_cause_of_a_broken_body_does_not_hide_it() -> None:
    """aiohttp's own cause of a body that ends early carries a status, 400, that nobody answered."""
    error = aiohttp.ClientPayloadError()
    error.__cause__ = aiohttp.http_exceptions.ContentLengthError("short")
    assert verdict(error) == BROKEN


def test_retry_after_in_seconds_and_as_a_date() -> None:
    assert verdict(of_s3(503, "SlowDown", **{"retry-after": "7"})).retry_after_s == 7
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    told = verdict(of_http(429, **{"Retry-After": date})).retry_after_s
    assert told is not None
    assert 90 < told <= 100
    beyond = "Wed, 21 Oct 2015 07:28:00 +99999999999999999999"
    for nonsense in ("soon", beyond):
        assert verdict(of_s3(503, "SlowDown", **{"retry-after": nonsense})) == LESS


def test_a_ring_of_causes_ends() -> None:
    error = OSError(5, "disk")
    error.__cause__ = error
    assert verdict(error) == FINAL


def test_the_status_behind_a_translated_error() -> None:
    assert status_of(of_s3(412, "PreconditionFailed")) == 412
    assert status_of(ValueError()) is None
