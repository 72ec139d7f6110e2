"""Redaction: no secret gets out by any of the ways in, and what is no secret stays as it was."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import traceback
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import ClientResponseError, RequestInfo
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from plain_http import PlainServer, Said
from yarl import URL

import headrace
from headrace.backends.fsspec_async import AsyncFsspecBackend
from headrace.redact import MASK, is_secret_name, redact, redact_error, redact_text, redact_url, secrets_of

SECRET = "s3cr3t/Va+lue=="

SECRET_NAMES = [
    *("key", "secret", "token", "password", "passwd", "pwd", "passphrase", "credential", "sas"),
    *("credentials", "account_key", "connection_string", "conn_str", "authorization", "auth"),
    *("session_token", "aws_access_key_id", "aws_secret_access_key", "aws_session_token"),
    *("secretAccessKey", "AWSAccessKeyId", "SSECustomerKey", "X-Amz-Signature", "api-key"),
    *("X-Amz-Credential", "X-Amz-Security-Token", "sas_token", "client_secret", "private_key"),
    *(
        "accountkey",
        "apikey",
        "sessiontoken",
        "Cookie",
        "cookies",
        "jwt",
        "user_pass",
        "sig",
        "PASSWORD",
        "key_id",
    ),
    *("api_key_2", "account_key_1", "accountkey1", "token2"),
]
PLAIN_NAMES = [
    *("anon", "endpoint_url", "region", "aws_region", "aws_profile", "username", "user", "host"),
    *("account_name", "client_id", "public_key", "key_file", "key_filename", "token_uri", "path"),
    *("signature_version", "client_kwargs", "config_kwargs", "monkey", "keyboard", "tokenizer"),
    *("target_protocol", "author", "authority", "cache_storage", "credential_type", "", 7, None),
    *("scheduler", "buffer_bytes", "retries", "versionId", "partNumber", "use_ssl", "passive"),
    *("account_name_2", "public_key_1", "sha256", "7"),
]


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize("name", PLAIN_NAMES, ids=repr)
def test_other_names(name):
    assert not is_secret_name(name)


# --- trees ---------------------------------------------------------------------------------------

TREE = {
    "target_protocol": "s3",
    "target_options": {
        "key": "AKIA0000",
        "secret": SECRET,
        "anon": False,
        "client_kwargs": {"endpoint_url": "http://127.0.0.1:9000", "aws_session_token": "tok-en-1"},
    },
    "links": [{"password": 1234}, ("plain", {"sas": b"binary-sas"})],
    "token": {"client_email": "a@b.example", "private_key": "-----BEGIN-----"},
    "json": json.dumps({"nested": {"account_key": "acc-key-9"}, "n": 1}),
    "fo": "s3://bucket/key=5/part.parquet",
    "url": "https://me:pass-word@host/x?X-Amz-Signature=abcdef0123&partNumber=2",
    "retries": 3,
}


def test_a_tree_keeps_its_shape_and_loses_its_secrets():
    before = copy.deepcopy(TREE)
    assert redact(TREE) == {
        "target_protocol": "s3",
        "target_options": {
            "key": MASK,
            "secret": MASK,
            "anon": False,
            "client_kwargs": {
                "endpoint_url": "http://127.0.0.1:9000",
                "aws_session_token": MASK,
            },
        },
        "links": [{"password": MASK}, ("plain", {"sas": MASK})],
        "token": MASK,
        "json": json.dumps({"nested": {"account_key": MASK}, "n": 1}),
        "fo": "s3://bucket/key=5/part.parquet",
        "url": f"https://me:{MASK}@host/x?X-Amz-Signature={MASK}&partNumber=2",
        "retries": 3,
    }
    assert before == TREE, "the argument itself is not touched"


def test_the_secrets_of_a_tree():
    assert secrets_of(TREE) == {
        *("AKIA0000", SECRET, "tok-en-1", "1234", "binary-sas", "-----BEGIN-----", "acc-key-9"),
        *("pass-word", "abcdef0123"),
    }


@pytest.mark.parametrize("nothing", [None, True, False, "", b""], ids=repr)
def test_what_holds_nothing_is_kept_and_is_no_secret(nothing):
    assert redact({"token": nothing}) == {"token": nothing}
    assert secrets_of({"token": nothing}) == frozenset()


def test_ways_to_log_in_are_no_secret_values():
    assert secrets_of({"token": "google_default"}) == secrets_of({"token": "anon"}) == frozenset()


@pytest.mark.parametrize(
    "obj",
    [
        *(None, 5, 2.5, b"bytes", "text", "[not json", '{"a": [1,  2]}', "/data/a?token=b"),
        *([1, "a"], ("a",), {"a"}, frozenset({"a"}), range(3), {"k": object}),
    ],
    ids=repr,
)
def test_what_is_no_secret_comes_back_equal_and_of_its_type(obj):
    found = redact(obj)
    assert found == obj
    assert type(found) is type(obj)


def test_mappings_become_dicts_and_named_tuples_stay():
    login = namedtuple("Login", "user password")  # noqa: PYI024  as aiohttp.BasicAuth is one
    assert redact(MappingProxyType({"key": "k"})) == {"key": MASK}
    assert redact([login("me", "pw-123")]) == [login("me", MASK)]
    assert secrets_of([login("me", "pw-123")]) == {"pw-123"}


def test_a_callable_under_a_secret_name_is_masked_for_its_repr_may_tell():
    assert redact({"credential": print}) == {"credential": MASK}
    assert secrets_of({"credential": print}) == frozenset()


def test_cycles_end():
    tree: dict[str, object] = {"secret": "abc-def"}
    tree["self"] = [tree]
    assert redact(tree) == {"secret": MASK, "self": ["..."]}
    assert secrets_of(tree) == {"abc-def"}


def test_one_object_twice_is_no_cycle():
    shared = {"key": "k"}
    assert redact([shared, shared]) == [{"key": MASK}, {"key": MASK}]


def test_deep_json_does_not_overflow_the_stack():
    text = "[" * 100_000
    assert redact(text) == text


def test_a_header_tells_its_bare_token_too():
    found = secrets_of({"headers": {"Authorization": "Bearer abc.def"}})
    assert found == {"Bearer abc.def", "abc.def"}


@pytest.mark.parametrize("kind", [tuple, list])
def test_headers_may_be_pairs(kind):
    headers = [kind(("Authorization", "Bearer abc.def")), kind(("X-Token", b"xyz")), kind(("Accept", "a"))]
    shown = [kind(("Authorization", MASK)), kind(("X-Token", MASK)), kind(("Accept", "a"))]
    assert redact({"headers": headers}) == {"headers": shown}
    assert redact({"headers": tuple(headers)}) == {"headers": tuple(shown)}
    assert secrets_of({"headers": headers}) == {"Bearer abc.def", "abc.def", "xyz"}
    assert redact({"key_columns": kind(("key", "name"))})["key_columns"] == kind(("key", "name"))


def test_headers_may_be_bytes():
    headers = {b"Authorization": b"Bearer abc.def", b"Accept": b"a"}
    assert redact(headers) == {b"Authorization": MASK, b"Accept": b"a"}
    assert secrets_of(headers) == {"Bearer abc.def", "abc.def"}


def test_a_proxy_without_a_scheme():
    options = {"proxies": {"https": "me:pass-word@proxy.test:3128"}}
    assert redact(options) == {"proxies": {"https": f"me:{MASK}@proxy.test:3128"}}
    assert secrets_of(options) == {"pass-word"}
    text = "Cannot connect to proxy 'me:pass-word@proxy.test:3128'"
    assert redact_text(text) == text.replace("pass-word", MASK)


@pytest.mark.parametrize(
    "text", ["b/x:y@v:3", "C:/data/a@b:3", "C:\\a\\x", "a:b@c", "me@host:22", "12:30@5", "file:/a:b@c:3"]
)
def test_what_is_no_login(text):
    assert (
        redact(text) == redact_text(f"of {text}, again").removeprefix("of ").removesuffix(", again") == text
    )


def test_a_connection_string():
    text = "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=Eby8vdM0==;EndpointSuffix=x"
    assert redact({"connection_string": text}) == {"connection_string": MASK}
    assert "Eby8vdM0==" in secrets_of({"connection_string": text})
    assert redact([text]) == [text.replace("Eby8vdM0==", MASK)]


VALUES = st.text("abcdefghijk0123456789+/=%&?@:-_ ", min_size=8, max_size=20)
PLAIN = st.dictionaries(st.sampled_from(["region", "path", "n"]), st.integers() | st.text("xyz"))


def _nest(inner):
    return st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["options", "a", "client_kwargs"]), inner, max_size=3
    )


@st.composite
def _trees(draw):
    secret = "Q" + draw(VALUES) + "Q"
    leaf = st.builds(
        lambda name, plain: {name: secret} | plain,
        st.sampled_from(["key", "secret", "aws_secret_access_key", "sasToken"]),
        PLAIN,
    )
    return secret, draw(st.recursive(leaf, _nest, max_leaves=5))


@given(_trees())
def test_no_secret_survives_in_any_tree(case):
    secret, tree = case
    assert secret not in str(redact(tree))
    assert secret not in str(redact([json.dumps(tree)]))
    assert secrets_of(tree) <= {secret}
    assert redact(redact(tree)) == redact(tree)


# --- URLs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("ftp://me:pw@host/x", "ftp://me:***@host/x"),
        ("ftp://me:p@w@host:21/x@v2", "ftp://me:***@host:21/x@v2"),
        ("ftp://:pw@host/x", "ftp://:***@host/x"),
        ("https://me:p/w@host/x", "https://me:***@host/x"),
        ("https://me:p?w@host/x", "https://me:***@host/x"),
        ("https://ghp_abc@host/x", "https://***@host/x"),
        ("1https://ghp_abc@host/x", "1https://***@host/x"),
        ("https://h/x?sv=2&sig=a%2Bb%3D&se=1", "https://h/x?sv=2&sig=***&se=1"),
        (
            "https://h/x?X-Amz-Credential=a/b&X-Amz-Date=1",
            "https://h/x?X-Amz-Credential=***&X-Amz-Date=1",
        ),
        (
            "https://h/x?AWSAccessKeyId=a&Signature=b&Expires=1",
            "https://h/x?AWSAccessKeyId=***&Signature=***&Expires=1",
        ),
        ("https://h/x#access_token=abc", "https://h/x#access_token=***"),
        ("https://h/x?token=abc::file://y", "https://h/x?token=***::file://y"),
        ("zip://a.csv::https://me:pw@h/x", "zip://a.csv::https://me:***@h/x"),
        ("headrace::simplecache::ftp://me:pw@h/x", "headrace::simplecache::ftp://me:***@h/x"),
    ],
)
def test_secrets_in_urls(url, clean):
    assert redact_url(url) == clean
    assert redact_url(clean) == clean
    assert redact_text(f"cannot read '{url}'.") == f"cannot read '{clean}'."


@pytest.mark.parametrize(
    "url",
    [
        *("/data/a?token=b", "C:\\data\\a@b", "s3://bucket/key=5/token=6/x", "file:///a:b@c"),
        *("abfs://container@account.dfs.core.windows.net/x", "ftp://me@host/x", "sftp://me@h:22/x"),
        *("http://host:8080/path@v2", "https://[::1]:9000/x?a=1", "file://C:/dir@x", "s3://b/a b"),
        *("s3://b/da?a/token=5/x", "zip://inner.csv::https://host/path@v2", "headrace::/a/b", ""),
        "https://h/x?prefix=a&list-type=2",
    ],
)
def test_urls_without_secrets_are_untouched(url):
    assert redact_url(url) == url
    assert secrets_of([url]) == frozenset()


def test_a_long_token_takes_no_square_of_its_length():
    """With it, these would take minutes, and reads of signed URLs each a part of that."""
    token = "a" * 300_000
    url = f"https://h/x?part={token}"
    assert redact_text(url) == url
    assert redact_url(f"{url}&sig={token}") == f"{url}&sig={MASK}"


def test_secrets_of_urls_are_known_as_they_are_and_decoded():
    found = secrets_of("https://me:a%2Fb-c@h/x?sig=d%3De&sv=1")
    assert found == {"a%2Fb-c", "a/b-c", "d%3De", "d=e"}


# --- text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", ["{}", "x{}y", "'{}'"])
def test_known_secrets_go_in_each_form(around):
    secret = 'a"b/c+d=é e'
    forms = (secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1])
    for form in forms:
        text = redact_text(f"failed: {around.format(form)}!", {secret})
        assert text == f"failed: {around.format(MASK)}!"


def test_the_longer_secret_goes_first():
    assert redact_text("abcdefgh-ijklmnop", {"abcdefgh", "abcdefgh-ijklmnop"}) == MASK


def test_short_secrets_go_only_as_whole_words_and_tiny_ones_stay():
    assert redact_text("test in /latest/test", {"test", "in"}) == "*** in /latest/***"


def test_secrets_with_pattern_characters():
    assert redact_text("a.c abc (a.c)", {"a.c"}) == "*** abc (***)"
    assert redact_text(r"p\d+w and 12345678", {r"p\d+w"}) == "*** and 12345678"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("{'authorization': 'Basic dXNlcg==', 'a': 1}", "{'authorization': 'Basic ***', 'a': 1}"),
        ("AccountKey=abc==;Suffix=x", "AccountKey=***;Suffix=x"),
    ],
)
def test_headers_and_connection_strings(text, clean):
    assert redact_text(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "[Errno 2] No such file or directory: '/data/key=5/token/x.parquet'",
        "NoSuchKey: The specified key: bucket/a/b.parquet does not exist",
        "range 5..9 of s3://bucket/x: token expired",
        "",
    ],
)
def test_other_text_is_untouched(text):
    assert redact_text(text, {"AKIA0000", SECRET}) == text


@given(st.text(), st.sets(st.text(min_size=8), max_size=3))
def test_no_known_secret_survives_in_any_text(text, secrets):
    clean = redact_text(f"{text} {' '.join(secrets)} {text}", secrets)
    assert not any(secret in clean for secret in secrets if MASK not in secret)


# -- where they are used

SIGNED = "http://user:SECRET-ONE@127.0.0.1:9/x?X-Amz-Signature=SECRET-TWO"


def test_a_url_says_no_secrets_of_an_open_file(tmp_path: Path, scheduled_mode: str) -> None:
    fs = headrace.HeadraceFileSystem(target_protocol="http", scheduler=scheduled_mode, retries=0)
    said: list[str] = []
    with headrace.trace() as trace:
        with pytest.raises(Exception) as caught:  # whatever the client says of a closed port
            fs.cat_file(SIGNED, 0, 10)
        said.append(str(caught.value))
    trace.to_json(tmp_path / "trace.json")
    said.append((tmp_path / "trace.json").read_text())
    file = fs.open(SIGNED, size=10)
    said.append(repr(file))
    with pytest.raises(ValueError) as caught:
        file.seek(-1)
    said.append(str(caught.value))
    file.close()
    with pytest.raises(ValueError) as caught:
        file.read()
    said += [str(caught.value), repr(file), repr(fs.stats())]
    assert trace.events
    assert "127.0.0.1" in said[1]
    assert "SECRET" not in "".join(said)


def _reads(fs: headrace.HeadraceFileSystem, url: str) -> Iterator[Callable[[], object]]:
    yield lambda: fs.cat_file(url, 0, 5)
    yield lambda: fs.cat_file(url)
    yield lambda: fs.cat(url)
    yield lambda: fs.cat([url, f"{url}&more"])
    yield lambda: fs.expand_path(url)
    yield lambda: fs.info(url)
    yield lambda: fs.open(url)
    yield lambda: fs.open(url, size=10).read()
    yield lambda: asyncio.run(fs._info(url))
    yield lambda: fs.cat_ranges([url], [0], [5], on_error="raise")
    yield lambda: fs.read_ranges(url, [0], [5])[0]


@pytest.mark.parametrize("status", [403, 404, 416])
@pytest.mark.parametrize("engine", ["fsspec", "auto"])
def test_what_an_http_client_raises_tells_no_signature(status: int, engine: str, scheduled_mode: str) -> None:
    with PlainServer(lambda _asked: Said(status)) as server:
        url = f"http://127.0.0.1:{server.port}/nope?X-Amz-Signature=SECRETSECRET&part=7"
        fs = headrace.HeadraceFileSystem(
            target_protocol="http", cloud_engine=engine, scheduler=scheduled_mode, skip_instance_cache=True
        )
        for read in _reads(fs, url):
            with pytest.raises(Exception) as caught:  # whatever fsspec says of the status
                read()
            said = "".join(traceback.format_exception(caught.value))
            assert "SECRETSECRET" not in f"{said} {caught.value!r}"


def test_an_exception_stays_what_it_was_when_it_is_masked() -> None:
    cause = ValueError("at https://u:hunter2hunter2@host/key")
    error = OSError(5, "at https://host/key?sig=hunter2hunter2", "https://host/key?sig=hunter2hunter2")
    error.__cause__ = cause
    cause.__context__ = error  # a circle
    redact_error(error)
    assert (error.errno, type(error)) == (5, OSError)
    assert "hunter2" not in f"{error} {error!r} {error.filename} {cause}"
    plain = KeyError("a")
    redact_error(plain)
    assert plain.args == ("a",)


def test_all_that_an_exception_prints_is_masked() -> None:
    """Lists of paths, notes, and what a group holds, itself included."""
    missing = FileNotFoundError([WITH_SIGNATURE, "key"])
    several = ValueError({WITH_SIGNATURE: 1, "key": "b"}, 7)
    noted = ValueError("plain")
    noted.add_note(f"at {WITH_SIGNATURE}")
    group = ExceptionGroup("some", [missing, ExceptionGroup("more", [noted, several])])
    noted.__cause__ = group
    redact_error(group)
    clean = "https://host/key?sig=***"
    assert missing.args == ([clean, "key"],)
    assert several.args == ({clean: 1, "key": "b"}, 7)
    assert noted.args == ("plain",)
    assert noted.__notes__ == [f"at {clean}"]
    assert "hunter2" not in "".join(traceback.format_exception(group))


@pytest.mark.parametrize("before", ["got\n", "got\t", "it's\n"])
def test_a_token_behind_a_line_break_is_masked_wherever_it_is(before: str) -> None:
    """The repr of a note, or of a key, has letters where the line breaks."""
    noted, missing = ValueError("plain"), KeyError(f"{before}https://ghp_abc@host/x")
    noted.add_note(f"{before}https://ghp_abc@host/x")
    for error in (noted, missing):
        redact_error(error)
    assert noted.__notes__ == [f"{before}https://{MASK}@host/x"]
    assert missing.args == (f"{before}https://{MASK}@host/x",)


def test_what_an_http_client_was_asked_is_masked_and_stays_what_it_was() -> None:
    headers = CIMultiDictProxy(CIMultiDict([("Link", "a"), ("link", "b")]))
    url = URL(WITH_SIGNATURE)
    error = ClientResponseError(RequestInfo(url, "GET", headers, url), (), status=403)
    redact_error(error)
    assert "hunter2" not in f"{error} {error!r} {error.args}"
    asked = error.args[0]
    assert asked == error.request_info
    assert (asked.method, asked.headers, type(asked.url)) == ("GET", headers, URL)
    assert asked.headers.getall("LINK") == ["a", "b"]


class ToldError(Exception):
    """Its words are nobody's to change."""

    @property
    def message(self) -> str:
        return str(self.args[0])


class UntoldError(Exception):
    """It says nothing of itself."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class AskedError(Exception):
    """As aiohttp's before 3.11: what it was asked is no named tuple."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.request_info = SimpleNamespace(url=url, real_url=url)

    def __str__(self) -> str:
        return f"{self.args} {self.request_info.real_url}"


class OddError(Exception):
    """What it was asked is nothing that is known."""

    request_info = 7


WITH_SIGNATURE = "https://host/key?sig=hunter2hunter2"


class Failing(MemoryFileSystem):
    protocol = "failing"
    cachable = False
    error: type[Exception] = ToldError

    def cat_file(self, path: str, *args: object, **kwargs: object) -> bytes:
        raise self.error(WITH_SIGNATURE)

    info = ls = cat_file


class AsyncFailing(AsyncFileSystem):
    protocol = "afailing"
    cachable = False
    error: type[Exception] = ToldError

    async def _cat_file(self, path: str, *args: object, **kwargs: object) -> bytes:
        raise self.error(WITH_SIGNATURE)

    _info = _ls = _cat_file


@pytest.mark.parametrize("error", [ToldError, UntoldError, AskedError, OddError])
@pytest.mark.parametrize("kind", [Failing, AsyncFailing])
def test_an_exception_that_cannot_be_masked_is_raised_all_the_same(
    kind: type[Any], error: type[Exception], mode: str
) -> None:
    """It is the answer of a read, which would never end without one."""
    target = type(kind.__name__, (kind,), {"error": error})()  # on the class: async ones are made again
    fs = headrace.HeadraceFileSystem(fs=target, scheduler=mode, timeout_s=30)
    reads = [
        lambda: fs.cat_file("/x", 0, 5),
        lambda: fs.cat_file("/x"),
        lambda: fs.cat_ranges(["/x"], [0], [5], on_error="raise"),
        lambda: fs.read_ranges("/x", [0], [5])[0],
        lambda: fs.info("/x"),
        lambda: list(fs.walk("/x", on_error="raise")),
        lambda: asyncio.run(fs._cat_file("/x", 0, 5)),
    ]
    for read in reads:
        with pytest.raises(error) as caught:
            read()
        if error is not UntoldError:
            assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("message", "argument"), [("not closed: %s", UntoldError()), ("%d ops", SIGNED)])
def test_what_cannot_be_told_is_no_error_of_who_logs_it(
    message: str, argument: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Logging itself would print the arguments, and a secret in them."""
    logging.getLogger("headrace").error(message, argument)
    assert [(record.msg, record.args) for record in caplog.records] == [(message, ())]


def _unclosed(fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Close the session of an asynchronous filesystem, which fails."""

    async def failing(_backend: AsyncFsspecBackend) -> None:
        raise ToldError(WITH_SIGNATURE)

    monkeypatch.setattr(AsyncFsspecBackend, "aclose", failing)
    assert fs.channel is not None
    driver: Any = fs.channel.driver
    driver.close()
    assert driver.closed.wait(30)


@pytest.mark.parametrize("kind", [Failing, AsyncFailing])
def test_what_is_logged_tells_no_signature(
    kind: type[Any],
    scheduled_mode: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of reads that fail with one, of a session that does, and of what escapes from anywhere."""
    caplog.set_level("DEBUG")
    fs = headrace.HeadraceFileSystem(fs=kind(), scheduler=scheduled_mode, skip_instance_cache=True)
    for read in (lambda: fs.cat_file("/x", 0, 5), lambda: fs.cat_file("/x"), lambda: fs.info("/x")):
        with pytest.raises(ToldError):
            read()
    if kind is AsyncFailing:
        _unclosed(fs, monkeypatch)
        assert "a session was not closed: ToldError" in caplog.text
    escaped = ToldError(WITH_SIGNATURE)
    logging.getLogger("headrace").error("it escaped from %r", WITH_SIGNATURE, exc_info=escaped)
    assert f"sig={MASK}" in caplog.text
    assert "hunter2" not in caplog.text
