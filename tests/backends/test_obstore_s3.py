"""The translation of s3fs's options into a native store's: exact, or refused with a sentence.

What a store is told is compared with what botocore would send. `AWS_*` variables and files are those of each
test: the session's fixture hides the developer's.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem

from headrace.backends._obstore_client import InexactError
from headrace.backends._obstore_s3 import S3Client

KEYS = {"key": "an-id", "secret": "a-secret"}
LOCAL = {**KEYS, "endpoint_url": "http://127.0.0.1:9000"}
SSE_KEY = "k" * 32


@pytest.fixture(autouse=True)
def _no_proxies_and_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def client(**options: Any) -> S3Client:
    return S3Client(S3FileSystem(**options, skip_instance_cache=True))


def translated(**options: Any) -> Any:
    return client(**options).store_options("a-bucket")


def address(**options: Any) -> tuple[str, bool, str]:
    """Return endpoint, whether the host names the bucket, and region."""
    config = translated(**options).config
    assert config["endpoint"] == config["aws_endpoint_url_s3"], "a variable would win"
    return config["endpoint"], config["virtual_hosted_style_request"], config["region"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (LOCAL, ("http://127.0.0.1:9000", False, "us-east-1")),
        (
            {**LOCAL, "endpoint_url": "http://127.0.0.1:9000/s3/"},
            ("http://127.0.0.1:9000/s3", False, "us-east-1"),
        ),
        (KEYS, ("https://a-bucket.s3.amazonaws.com", True, "us-east-1")),
        (
            {**KEYS, "client_kwargs": {"region_name": "eu-west-1"}},
            ("https://a-bucket.s3.eu-west-1.amazonaws.com", True, "eu-west-1"),
        ),
        ({**KEYS, "use_ssl": False}, ("http://a-bucket.s3.amazonaws.com", True, "us-east-1")),
        (
            {**KEYS, "config_kwargs": {"s3": {"addressing_style": "path"}}},
            ("https://s3.amazonaws.com", False, "us-east-1"),
        ),
        (
            {
                **LOCAL,
                "endpoint_url": "http://store.test:80",
                "config_kwargs": {"s3": {"addressing_style": "virtual"}},
            },
            ("http://a-bucket.store.test:80", True, "us-east-1"),
        ),
        (
            {
                **KEYS,
                "client_kwargs": {"region_name": "eu-west-1"},
                "config_kwargs": {"s3": {"use_dualstack_endpoint": True}},
            },
            ("https://a-bucket.s3.dualstack.eu-west-1.amazonaws.com", True, "eu-west-1"),
        ),
        (
            {**KEYS, "client_kwargs": {"endpoint_url": "http://other.test", "region_name": "x-1"}},
            ("http://other.test", False, "x-1"),
        ),
    ],
)
def test_where_requests_go(options: dict[str, Any], expected: tuple[str, bool, str]) -> None:
    assert address(**options) == expected


def test_endpoint_and_region_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://from.environment:1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    assert address(**KEYS) == ("http://from.environment:1", False, "eu-north-1")
    assert address(**LOCAL)[0] == "http://127.0.0.1:9000", "an argument goes before a variable"


def test_what_s3fs_has_connected_with_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """No endpoint is one, too."""
    target = S3FileSystem(**KEYS, skip_instance_cache=True)
    target.connect()
    before = S3Client(target).store_options("a-bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://from.environment:1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    assert S3Client(target).store_options("a-bucket") == before
    assert address(**KEYS)[0] == "http://from.environment:1"


def test_endpoint_region_and_keys_of_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tmp_path / "config", tmp_path / "credentials"
    files[0].write_text("[profile one]\nregion = eu-south-1\nendpoint_url = http://of.profile:2\n")
    files[1].write_text(
        "[one]\naws_access_key_id = id-one\naws_secret_access_key = s\naws_session_token = t\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(files[0]))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(files[1]))
    found = client(profile="one")
    config = found.store_options("a-bucket").config
    assert (config["endpoint"], config["region"]) == ("http://of.profile:2", "eu-south-1")
    credentials = found.credentials()
    assert credentials["access_key_id"] == "id-one"
    assert credentials["token"] == "t"


def test_explicit_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-the-environment")
    assert client(**LOCAL, token="a-token").credentials() == {
        "access_key_id": "an-id",
        "secret_access_key": "a-secret",
        "token": "a-token",
        "expires_at": None,
    }
    assert client(**LOCAL).credentials()["token"] is None
    assert client(endpoint_url="http://h:1").credentials()["access_key_id"] == "of-the-environment"
    assert client(username="user", password="pw").credentials()["access_key_id"] == "user"


def test_refreshed_credentials_keep_their_expiry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that hands credentials out stands in for roles: botocore refreshes both the same way."""
    expiry = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    hands_out = tmp_path / "credentials.sh"
    hands_out.write_text(
        "#!/bin/sh\n"
        f"echo x >> {tmp_path}/asked\n"
        """echo '{"Version": 1, "AccessKeyId": "role-id", "SecretAccessKey": "s", "SessionToken": "t","""
        f""" "Expiration": "{expiry.isoformat()}"}}'\n"""
    )
    hands_out.chmod(0o700)
    config = tmp_path / "config"
    config.write_text(f"[profile role]\ncredential_process = {hands_out}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    found = client(profile="role", endpoint_url="http://h:1").credentials()
    assert (found["access_key_id"], found["token"], found["expires_at"]) == ("role-id", "t", expiry)


def test_no_signature() -> None:
    found = translated(anon=True, endpoint_url="http://h:1")
    assert found.config["skip_signature"] is True
    assert not found.is_signed
    assert translated(**LOCAL).config["skip_signature"] is False, "a variable would switch it off"


def test_headers_of_each_request() -> None:
    found = translated(
        **LOCAL,
        requester_pays=True,
        s3_additional_kwargs={
            "SSECustomerAlgorithm": "AES256",
            "SSECustomerKey": SSE_KEY,
            "ExpectedBucketOwner": "123456789012",
            "ServerSideEncryption": "aws:kms",  # of writes
        },
    )
    prefix = "x-amz-server-side-encryption-customer"
    digest = hashlib.md5(SSE_KEY.encode(), usedforsecurity=False).digest()
    assert found.headers == {
        "x-amz-request-payer": "requester",
        "x-amz-expected-bucket-owner": "123456789012",
        f"{prefix}-algorithm": "AES256",
        f"{prefix}-key": base64.b64encode(SSE_KEY.encode()).decode(),
        f"{prefix}-key-md5": base64.b64encode(digest).decode(),
    }
    assert base64.b64encode(SSE_KEY.encode()).decode() not in repr(found)
    assert translated(**LOCAL).headers == {}


@pytest.mark.parametrize(
    ("options", "name", "expected"),
    [
        (LOCAL, "allow_http", True),
        (LOCAL, "connect_timeout", "5000ms"),
        ({**LOCAL, "config_kwargs": {"read_timeout": 2.5}}, "read_timeout", "2500ms"),
        (KEYS, "allow_http", None),
        (KEYS, "allow_invalid_certificates", None),
        ({**KEYS, "client_kwargs": {"verify": False}}, "allow_invalid_certificates", True),
        (
            {**KEYS, "config_kwargs": {"proxies": {"https": "http://u:p@proxy:3"}}},
            "proxy_url",
            "http://u:p@proxy:3",
        ),
        ({**KEYS, "config_kwargs": {"proxies": {"https": "http://proxy:3"}}}, "proxy_excludes", None),
        ({**KEYS, "config_kwargs": {"proxies": {}}}, "proxy_excludes", "*,0.0.0.0/0,::/0"),
        (LOCAL, "proxy_excludes", "*,0.0.0.0/0,::/0"),
        ({**KEYS, "config_kwargs": {"read_timeout": 7}}, "read_timeout", "7000ms"),
        ({**KEYS, "config_kwargs": {"read_timeout": None}}, "read_timeout", "604800000ms"),
        ({**KEYS, "config_kwargs": {"connect_timeout": None}}, "connect_timeout", "604800000ms"),
    ],
)
def test_how_connections_are_made(options: dict[str, Any], name: str, expected: object) -> None:
    assert translated(**options).client.get(name) == expected


def test_a_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,inside.test")
    assert translated(**KEYS).client["proxy_url"] == "http://proxy:3"
    inside = translated(**KEYS, endpoint_url="https://inside.test").client
    assert inside["proxy_excludes"] == "*,0.0.0.0/0,::/0"


def test_a_proxy_is_chosen_for_the_services_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not for the bucket's; one without a scheme is completed."""
    monkeypatch.setenv("HTTPS_PROXY", "proxy:3")
    monkeypatch.setenv("NO_PROXY", "a-bucket.s3.amazonaws.com")
    assert translated(**KEYS).client["proxy_url"] == "http://proxy:3"
    monkeypatch.setenv("NO_PROXY", "amazonaws.com")
    assert translated(**KEYS).client["proxy_excludes"] == "*,0.0.0.0/0,::/0"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "NoCredentialsError"),
        ({"profile": "nobody"}, "ProfileNotFound"),
        ({**LOCAL, "version_aware": True}, "version_aware"),
        ({**LOCAL, "cache_regions": True}, "cache_regions"),
        ({**LOCAL, "session": object()}, "session object"),
        ({**LOCAL, "something_new": 1}, "something_new"),
        ({**LOCAL, "config_kwargs": {"signature_version": "s3"}}, "signature version 4"),
        ({**LOCAL, "config_kwargs": {"client_cert": "/cert"}}, "client_cert"),
        ({**LOCAL, "config_kwargs": {"proxies": {"http": "socks5://p:1"}}}, "no HTTP proxy"),
        ({**LOCAL, "client_kwargs": {"api_version": "2006-03-01"}}, "api_version"),
        ({**KEYS, "client_kwargs": {"verify": "/bundle.pem"}}, "bundle of certificates"),
        ({**LOCAL, "s3_additional_kwargs": {"ChecksumMode": "X"}}, ""),
        ({**LOCAL, "s3_additional_kwargs": {"ResponseContentType": "x/y"}}, "query"),
        ({**LOCAL, "s3_additional_kwargs": {"IfMatch": "x"}}, "if-match"),
    ],
)
def test_what_is_not_known_to_translate_is_refused(options: dict[str, Any], why: str) -> None:
    if not why:
        assert translated(**options).headers == {}
        return
    with pytest.raises(InexactError, match=why) as raised:
        client(**options)
    assert "a-secret" not in str(raised.value)
    assert "an-id" not in str(raised.value)


@pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_a_bundle_in_the_environment_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "/bundle.pem")
    with pytest.raises(InexactError, match="bundle of certificates"):
        client(**KEYS)
    assert address(**LOCAL)[0] == "http://127.0.0.1:9000", "no TLS, no certificates"


def test_a_variable_that_no_argument_overrides_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SSE_CUSTOMER_KEY_BASE64", "abc")
    with pytest.raises(InexactError, match="AWS_SSE_CUSTOMER_KEY_BASE64"):
        client(**LOCAL)


def test_a_subclass_is_refused() -> None:
    class Other(S3FileSystem):  # type: ignore[misc]
        pass

    with pytest.raises(InexactError, match="Other"):
        S3Client(Other(**LOCAL, skip_instance_cache=True))


def test_a_bucket_that_is_named_in_another_way_is_refused_by_itself() -> None:
    found = client(**{**KEYS, "client_kwargs": {"region_name": "eu-west-1"}})
    with pytest.raises(InexactError):
        found.store_options("arn:aws:s3:eu-west-1:123456789012:accesspoint/mine")
