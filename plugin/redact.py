"""Keep credentials out of reprs, logs, statistics, JSON and error messages.

Owns the one decision "does this name look like a secret's" (`is_secret_name`) and three uses of it:
on option trees (`redact`), on URLs (`redact_url`) and on free text (`redact_text`, which is given
the known values that `secrets_of` collected).

A name is cut into words (``secretAccessKey``, ``secret-access-key``, ``secret_access_key``: one
name).  It is a secret's when a word says so (secret, token, password, ...), when it ends in "key"
or the like, or when it starts with ``aws``; it is not when its last word says that it is only
*about* one (``token_uri``, ``key_file``, ``aws_region``).  In doubt it is a secret's: a missing
word in a log costs a minute, a published key costs more.

What is no secret is handed back as it was, character for character.  Free text is changed as little
as possible, since an error must keep its path and range (I10): a short secret is replaced only
where it stands as a word of its own, and bare ``key: ...`` is left alone (S3 calls a path a key).

Threading: pure functions, no state.  Not done: looking inside opaque objects such as a botocore
session, and inside base64.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, quote_plus, unquote_plus

if TYPE_CHECKING:
    import logging

__all__ = [
    "MASK",
    "is_secret_name",
    "redact",
    "redact_error",
    "redact_record",
    "redact_text",
    "redact_url",
    "redacted_answers",
    "redacted_errors",
    "secrets_of",
]

MASK: Final = "***"

_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# fmt: off
_SECRET_WORDS: Final = frozenset({
    "auth", "authorization", "bearer", "cookie", "cookies", "credential", "credentials", "jwt", "pass",
    "passphrase", "passwd", "password", "passwords", "pwd", "sas", "secret", "secrets", "sessionid", "sig",
    "signature", "token", "tokens",
})
# Endings of the name with its word breaks taken out, as many libraries write names without any.
_SECRET_ENDINGS: Final = (
    "accesskey", "accountkey", "apikey", "customerkey", "encryptionkey", "privatekey",
    "secretkey", "sharedkey", "keyid", "connectionstring", "connstr", "credential",
    "credentials", "passwd", "password", "secret", "signature", "token",
)
_ABOUT_WORDS: Final = frozenset({
    "algorithm", "bucket", "class", "count", "endpoint", "env", "expires", "expiry", "file",
    "filename", "format", "id", "length", "method", "mode", "name", "path", "profile", "provider",
    "region", "scope", "timeout", "ttl", "type", "uri", "url", "version",
})
# fmt: on

# Where a URL ends inside text; "::" is where the next link of a chain starts.
_STOP: Final = r"\s'\"<>"
# Begun only where a run of such letters begins: from each of them, a token would take its length squared.
_USERINFO: Final = re.compile(
    r"(?<![A-Za-z0-9+.\-])(?P<scheme>[0-9+.\-]*[A-Za-z][A-Za-z0-9+.\-]*)://"
    rf"(?P<user>[^:/?#@{_STOP}]*)(?P<password>:[^/?#{_STOP}]*)?@"
)
# A password with a slash that nobody escaped: what follows the colon is no port number.
_SLASHED: Final = re.compile(
    rf"(?P<before>://[^:/?#@\[{_STOP}]+:)(?P<password>(?!\d*[/?#]|[/:\\])[^@{_STOP}]*)@"
)
_PARAMETER: Final = re.compile(
    rf"(?P<before>[?&#](?P<name>[\w.\-%\[\]]+)=)(?P<value>(?:(?!::)[^&#{_STOP}])+)"
)
_QUERY: Final = re.compile(rf"://[^{_STOP}]*")
_HEADER: Final = re.compile(
    r"(?i)(?P<before>\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer|digest|aws4-\S+)\s+)?)"
    r"(?P<value>[^'\"\r\n]+)"
)
_ASSIGNMENT: Final = re.compile(
    r"(?i)(?P<before>\b(?:accountkey|sharedaccesskey|sharedaccesssignature|password|pwd)=)"
    r"(?P<value>[^;\s'\"]+)"
)
# A proxy is also given without a scheme: user:password@host:port, by itself.
_LOGIN: Final = re.compile(
    rf"(?<![^\s'\"(])(?P<before>[^:/?#@{_STOP}]+:)(?P<value>[^/@{_STOP}]+)(?=@[\w.\-]+:\d+)"
)
_SCHEME: Final = re.compile(r"(?i)(?:basic|bearer|digest)\s+(?P<value>\S+)")

# gcsfs takes such words for `token`; they name a way to log in and are in half of all messages.
_NO_SECRETS: Final = frozenset(
    {"anon", "browser", "cache", "cloud", "google_default", "none", "null", "true", "false", MASK}
)
_SHORTEST_SECRET: Final = 3
_SHORTEST_INSIDE_A_WORD: Final = 8


def is_secret_name(name: object) -> bool:
    """Tell whether a value under this name is a secret.

    Parameters
    ----------
    name : object
        A mapping's key; anything but a string, or the bytes of one, is no secret's name.

    Returns
    -------
    bool
        True for ``key``, ``secret``, ``session_token``, ``AccountKey``, ``X-Amz-Signature``, ...
    """
    if isinstance(name, bytes):  # of a header
        name = name.decode("latin-1")
    words = [word.lower() for word in _WORD.findall(name)] if isinstance(name, str) else []
    while words and words[-1].isdecimal():  # api_key_2
        words.pop()
    if not words:
        return False
    if "".join(words).endswith(_SECRET_ENDINGS):
        return True
    if words[-1] == "key":
        return words[-2:] != ["public", "key"]
    if words[0] == "aws":  # aws_account_id and the like: only what is plainly about one is not
        return words[-1] == "id" or words[-1] not in _ABOUT_WORDS
    return words[-1] not in _ABOUT_WORDS and not _SECRET_WORDS.isdisjoint(words)


def redact(obj: Any) -> Any:
    """Copy a tree of options with ``"***"`` in the place of every secret.

    Parameters
    ----------
    obj : object
        Mappings, sequences and sets of any depth; a pair within a sequence may be a name and its secret;
        strings may be JSON or URLs.  None, truth values
        and empty strings are kept under any name, since they hold nothing.

    Returns
    -------
    object
        The same shape.  Mappings become dicts, other objects are passed on as they are.
    """
    return _redact(obj, ())


def _redact(obj: Any, parents: tuple[int, ...]) -> Any:
    if isinstance(obj, str):
        return _redact_string(obj)
    if not isinstance(obj, Mapping | list | tuple | AbstractSet):
        return obj
    if id(obj) in parents:  # a cycle
        return "..."
    parents = (*parents, id(obj))
    pairs = _named_items(obj)
    if pairs is None:
        return _rebuild(obj, [_redact_item(item, parents) for item in obj])
    named = {name: MASK if _hides(name, value) else _redact(value, parents) for name, value in pairs}
    return named if isinstance(obj, Mapping) else _rebuild(obj, list(named.values()))


def _redact_item(item: Any, parents: tuple[int, ...]) -> Any:
    return _rebuild(item, [item[0], MASK]) if _is_secret_pair(item) else _redact(item, parents)


def _is_secret_pair(item: Any) -> bool:
    """Whether it is a name with its secret, as a header in a list of them is."""
    is_pair = isinstance(item, list | tuple) and len(item) == 2 and not hasattr(item, "_fields")  # noqa: PLR2004
    return is_pair and isinstance(item[1], str | bytes) and _hides(*item)


def _named_items(obj: Any) -> list[tuple[Any, Any]] | None:
    """Return the items of a mapping or a named tuple (such as aiohttp.BasicAuth); else None."""
    if isinstance(obj, Mapping):
        return list(obj.items())
    if isinstance(obj, tuple) and hasattr(obj, "_fields"):
        return list(zip(obj._fields, obj, strict=True))
    return None


def _rebuild(obj: Any, items: list[Any]) -> Any:
    if isinstance(obj, tuple) and hasattr(obj, "_make"):
        return obj._make(items)
    for kind in (list, tuple, frozenset):
        if isinstance(obj, kind):
            return kind(items)
    return set(items)


def _hides(name: object, value: object) -> bool:
    if value is None or isinstance(value, bool) or (isinstance(value, str | bytes) and not value):
        return False
    return is_secret_name(name)


def _redact_string(text: str) -> str:
    tree = _json_tree(text)
    if tree is None:
        return _LOGIN.sub(_mask_value, _ASSIGNMENT.sub(_mask_value, redact_url(text)))
    clean = redact(tree)
    return text if clean == tree else json.dumps(clean)


def _json_tree(text: str) -> Any:
    """Return the mapping or list that `text` is JSON of, or None."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def redact_url(url: str) -> str:
    """Mask passwords and signatures in a URL, or in every link of a chain of URLs.

    Parameters
    ----------
    url : str
        Such as ``simplecache::https://user:password@host/file?X-Amz-Signature=...``.  A path
        without ``://`` comes back as it is, whatever it contains.

    Returns
    -------
    str
        The URL, otherwise unchanged and not re-encoded.  A user without a password is masked for
        http and https, where it is usually a token; ``abfs://container@account`` is kept.
    """
    if "://" not in url:
        return url
    url = _USERINFO.sub(_mask_userinfo, url)
    url = _SLASHED.sub(lambda match: f"{match['before']}{MASK}@", url)
    return _QUERY.sub(lambda match: _PARAMETER.sub(_mask_parameter, match[0]), url)


def _mask_userinfo(match: re.Match[str]) -> str:
    scheme, user, password = match["scheme"], match["user"], match["password"]
    if password:
        return f"{scheme}://{user}:{MASK}@"
    if user and scheme.lstrip("0123456789+.-").lower() in ("http", "https"):
        return f"{scheme}://{MASK}@"
    return match[0]


def _mask_parameter(match: re.Match[str]) -> str:
    return match["before"] + MASK if is_secret_name(match["name"]) else match[0]


def redact_text(text: str, secrets: Iterable[str] = ()) -> str:
    """Mask known secrets, signed URLs and authorization headers in free text.

    Parameters
    ----------
    text : str
        An error message, a log line.
    secrets : iterable of str
        What `secrets_of` found.  Also masked where they are percent-encoded or escaped.  Values
        below 3 characters are ignored; below 8, only whole words are masked.

    Returns
    -------
    str
        The text, otherwise unchanged.
    """
    forms = {form for secret in secrets for form in _forms(secret)}
    for form in sorted(forms, key=lambda form: (-len(form), form)):  # a secret within another
        text = _mask_form(text, form)
    text = redact_url(text)
    for pattern in (_HEADER, _ASSIGNMENT, _LOGIN):
        text = pattern.sub(_mask_value, text)
    return text


def redact_error(error: BaseException) -> None:
    """Mask what `redact_text` does in an exception's own words, and in those of what caused it, in place.

    So are its notes, and the members of a group. It stays the exception it was. aiohttp's tell the URL of
    their request in what they print. Nothing is raised here, whatever the exception does when it is looked at
    or changed: it is the answer of a read.
    """
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        found = left.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        with contextlib.suppress(Exception):
            told = (str(found), found.args, getattr(found, "__notes__", ()))
            if _masked(told) != told:
                _mask_words(found)
        left.append(found.__context__ if found.__cause__ is None else found.__cause__)
        left += found.exceptions if isinstance(found, BaseExceptionGroup) else ()


def redact_record(record: logging.LogRecord) -> bool:
    """Mask the secrets of what is logged, and of the exception that it tells: a filter of loggers.

    Nothing is raised here either. Of what cannot be told only the words around it are logged.
    """
    with contextlib.suppress(Exception):
        record.msg = redact_text(record.getMessage())
    record.args = ()
    if record.exc_info and record.exc_info[1] is not None:
        redact_error(record.exc_info[1])
    return True


def redacted_answers(answers: list[Any]) -> list[Any]:
    """Mask the secrets of the errors among answers, in place, and return the answers."""
    for answer in answers:
        if isinstance(answer, Exception):
            redact_error(answer)
    return answers


@contextlib.contextmanager
def redacted_errors() -> Iterator[None]:
    """Mask the secrets of what the block raises."""
    try:
        yield
    except Exception as error:
        redact_error(error)
        raise


def _mask_words(error: BaseException) -> None:
    for name in ("request_info", "args", "filename", "filename2", "strerror", "message", "__notes__"):
        with contextlib.suppress(Exception):  # each by itself: some are properties that only tell
            _mask_attribute(error, name)


def _mask_attribute(error: BaseException, name: str) -> None:
    value = getattr(error, name, None)
    masked: Any = None
    if isinstance(value, str) or name in ("args", "__notes__"):
        masked = _masked(value)
    elif name == "request_info" and value is not None:
        masked = _masked_request(value)
        error.args = tuple(masked if arg is value else arg for arg in error.args)
    if masked is not None:
        object.__setattr__(error, name, masked)  # also of a class whose instances are frozen


def _masked(value: Any) -> Any:
    """Mask the texts in a tree: fsspec's `expand_path` gives its error the list of paths.

    A name and what stands beside it are no pair here: an error keeps its paths. Mappings that are no dicts
    (headers) could not be made again as they were.
    """
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, dict):
        return {_masked(name): _masked(item) for name, item in value.items()}
    if isinstance(value, list | tuple | AbstractSet):
        return _rebuild(value, [_masked(item) for item in value])
    return value


def _masked_request(request: Any) -> Any:
    urls = {name: _masked_url(getattr(request, name)) for name in ("url", "real_url")}
    if hasattr(request, "_replace"):
        return request._replace(**urls)
    masked = copy.copy(request)  # of aiohttp before 3.11, which is no named tuple
    for name, url in urls.items():
        object.__setattr__(masked, name, url)
    return masked


def _masked_url(url: Any) -> Any:
    text = redact_url(str(url))
    return text if isinstance(url, str) else type(url)(text, encoded=True)


def _mask_value(match: re.Match[str]) -> str:
    return match["before"] + MASK


def _forms(secret: str) -> set[str]:
    if len(secret) < _SHORTEST_SECRET:
        return set()
    escaped = {json.dumps(secret)[1:-1], repr(secret)[1:-1]}
    return {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)} | escaped


def _mask_form(text: str, form: str) -> str:
    if len(form) >= _SHORTEST_INSIDE_A_WORD:
        return text.replace(form, MASK)
    return re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", MASK, text)


def secrets_of(options: Any) -> frozenset[str]:
    """Collect the secret values in a tree of options, for `redact_text`.

    Parameters
    ----------
    options : object
        As for `redact`.

    Returns
    -------
    frozenset of str
        Non-empty values under secret names, passwords and signatures of URLs.  Words that only
        name a way to log in (``token="anon"``) are left out.
    """
    found = {value for value in _secrets(options, secret=False, parents=()) if value}
    return frozenset(value for value in found if value.lower() not in _NO_SECRETS)


def _secrets(obj: Any, *, secret: bool, parents: tuple[int, ...]) -> Iterator[str]:
    if isinstance(obj, Mapping | list | tuple | AbstractSet):
        if id(obj) not in parents:
            yield from _secrets_within(obj, secret=secret, parents=(*parents, id(obj)))
    elif isinstance(obj, str):
        yield from _secrets_of_string(obj, secret=secret, parents=parents)
    elif secret and isinstance(obj, bytes):
        yield from _secrets_of_string(obj.decode("utf-8", "replace"), secret=secret, parents=parents)
    elif secret and isinstance(obj, int | float) and not isinstance(obj, bool):
        yield str(obj)


def _secrets_within(obj: Any, *, secret: bool, parents: tuple[int, ...]) -> Iterator[str]:
    pairs = _named_items(obj)
    if pairs is None:
        pairs = [item if _is_secret_pair(item) else ("key" if secret else "", item) for item in obj]
    for name, value in pairs:
        yield from _secrets(value, secret=is_secret_name(name), parents=parents)


def _secrets_of_string(text: str, *, secret: bool, parents: tuple[int, ...]) -> Iterator[str]:
    tree = _json_tree(text)
    if tree is not None:
        yield from _secrets(tree, secret=secret, parents=parents)
    elif "://" in text:
        yield from _secrets_of_url(text)
    yield from (match["value"] for match in _LOGIN.finditer(text))
    if secret:
        yield text
        yield from (match["value"] for match in _SCHEME.finditer(text))
        yield from (match["value"] for match in _ASSIGNMENT.finditer(text))


def _secrets_of_url(url: str) -> Iterator[str]:
    for value in _url_values(url):
        yield from (value, unquote_plus(value))


def _url_values(url: str) -> Iterator[str]:
    for match in _USERINFO.finditer(url):
        if _mask_userinfo(match) != match[0]:
            yield (match["password"] or match["user"]).removeprefix(":")
    # What the first pattern masks, the second would take for passwords again, in part.
    yield from (match["password"] for match in _SLASHED.finditer(_USERINFO.sub("", url)))
    for query in _QUERY.finditer(url):
        for match in _PARAMETER.finditer(query[0]):
            if is_secret_name(match["name"]):
                yield match["value"]
