"""S3's dialect of HTTP, without any I/O: from a request (`Ask`) and what is stored to an `Answer`.

Path-style addresses only. What is there: objects (HEAD, GET with a range and conditions, PUT, DELETE,
multipart uploads), ListObjectsV2, ListBuckets, HEAD and PUT of a bucket, DeleteObjects. Everything else is
answered with 501 NotImplemented, never taken for one of these. Signatures are not verified.

Threading: runs on the server's thread. See Amazon's API reference for the forms of requests and answers.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from email.utils import format_datetime, parsedate_to_datetime
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote
from xml.etree import ElementTree as ET

from headrace.testing._objects import Stored, join_parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from headrace.testing._objects import Buckets

Tree: TypeAlias = "str | Sequence[tuple[str, Tree]]"
"""What is in an XML element: a text, or elements and what is in them."""

REGION = "us-east-1"
_XMLNS = "http://s3.amazonaws.com/doc/2006-03-01/"
_MAX_KEYS = 1000
_CREDENTIAL = re.compile(r"Credential=([^/,\s]+)/")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_HARMLESS = frozenset(
    {
        "continuation-token",
        "delimiter",
        "encoding-type",
        "fetch-owner",
        "max-keys",
        "partNumber",
        "prefix",
        "start-after",
        "x-id",
    }
)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, its address taken apart; `body` is what was sent with it."""

    method: str
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Span:
    """A body that is a part of a stored object."""

    stored: Stored
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send; a `Span` is read by whoever sends it."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Span = b""


class S3Error(Exception):
    """An error with S3's code and message, which is an answer too."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}

    def answer(self, resource: str = "", request_id: str = "") -> Answer:
        """Return it in S3's XML."""
        parts = {"Code": self.code, "Message": self.message, "Resource": resource, "RequestId": request_id}
        body = _render("Error", list(parts.items()), xmlns="")
        return Answer(self.status, {"Content-Type": "application/xml", **self.headers}, body)


def access_key_id(ask: Ask) -> str | None:
    """Return who says to have signed the request; None if nobody."""
    said = ask.headers.get("Authorization", "")
    found = _CREDENTIAL.search(said)
    if found:
        return found[1]
    return ask.query.get("X-Amz-Credential", "").split("/")[0] or None


def plain_body(headers: Mapping[str, str], body: bytes) -> bytes:
    """Return what was uploaded without the frames of ``aws-chunked``, which signs it in pieces."""
    if not headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
        return body
    pieces: list[bytes] = []
    at = 0
    while True:
        line_end = body.index(b"\r\n", at)
        size_bytes = int(body[at:line_end].split(b";")[0], 16)
        if not size_bytes:
            return b"".join(pieces)
        at = line_end + 2
        pieces.append(body[at : at + size_bytes])
        at += size_bytes + 2


def answer(buckets: Buckets, ask: Ask) -> Answer:
    """Do what a request says.

    Raises
    ------
    S3Error
        Whatever S3 would say no to.
    """
    level = "object" if ask.key else "bucket" if ask.bucket else "service"
    selectors = [name for name in ask.query if name not in _HARMLESS and not name.startswith("X-Amz-")]
    perform = _OPERATIONS.get((ask.method, level, ",".join(selectors)))
    is_part_of_object = "partNumber" in ask.query and "uploadId" not in ask.query
    if perform is None or is_part_of_object or "x-amz-copy-source" in ask.headers:
        raise S3Error(501, "NotImplemented", f"{ask.method} of {level} with {selectors} is not implemented")
    return perform(buckets, ask)


# Objects


def _get_object(buckets: Buckets, ask: Ask) -> Answer:
    stored = _object(buckets, ask)
    _check_conditions(stored, ask)
    headers = {
        "ETag": stored.etag,
        "Last-Modified": _http_date(stored.modified),
        "Accept-Ranges": "bytes",
        "Content-Type": "binary/octet-stream",
    }
    # Of another version than the one named there, all is meant (RFC 9110, 13.1.5).
    is_of_it = ask.headers.get("If-Range") in (None, stored.etag, headers["Last-Modified"])
    asked = _asked_range(ask.headers.get("Range", "") if is_of_it else "", stored.size_bytes)
    if asked is None:
        return Answer(200, headers, Span(stored, 0, stored.size_bytes))
    start, end = asked
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{stored.size_bytes}"
    return Answer(206, headers, Span(stored, start, end))


def _asked_range(text: str, size_bytes: int) -> tuple[int, int] | None:
    """Return the ``[start, end)`` that a Range header means; None if it means nothing, as HTTP has it."""
    found = _RANGE.fullmatch(text.replace(" ", ""))
    if not found or found[0] == "bytes=-":
        return None
    if not found[1]:
        start, end = max(0, size_bytes - int(found[2])), size_bytes
    else:
        start = int(found[1])
        end = min(int(found[2]) + 1, size_bytes) if found[2] else size_bytes
        if found[2] and int(found[2]) < start:
            return None
    if start >= size_bytes:
        past = {"Content-Range": f"bytes */{size_bytes}"}
        raise S3Error(416, "InvalidRange", "The requested range is not satisfiable", past)
    return start, end


def _check_conditions(stored: Stored, ask: Ask) -> None:
    wanted, unwanted = ask.headers.get("If-Match"), ask.headers.get("If-None-Match")
    # A condition on the version goes before the one on its date (RFC 9110, 13.2.2).
    if wanted is not None:
        if not _matches(wanted, stored.etag):
            raise _precondition_failed("If-Match")
    elif _is_newer(stored, ask.headers.get("If-Unmodified-Since")):
        raise _precondition_failed("If-Unmodified-Since")
    not_modified = S3Error(304, "NotModified", "Not Modified", {"ETag": stored.etag})
    if unwanted is not None:
        if _matches(unwanted, stored.etag):
            raise not_modified
    elif _is_newer(stored, ask.headers.get("If-Modified-Since")) is False:
        raise not_modified


def _is_newer(stored: Stored, date: str | None) -> bool | None:
    """Whether an object is newer than a header's date, to the second; None where there is no such date."""
    try:
        return None if date is None else stored.modified.replace(microsecond=0) > parsedate_to_datetime(date)
    except (ValueError, TypeError):  # no date, or one of no time zone
        return None


def _matches(condition: str, etag: str) -> bool:
    names = [name.strip().strip('"') for name in condition.split(",")]
    return "*" in names or etag.strip('"') in names


def _precondition_failed(condition: str) -> S3Error:
    message = f"At least one of the pre-conditions you specified did not hold: {condition}"
    return S3Error(412, "PreconditionFailed", message)


def _put_object(buckets: Buckets, ask: Ask) -> Answer:
    objects = _objects(buckets, ask)
    before, wanted = objects.get(ask.key), ask.headers.get("If-Match")
    if before is not None and ask.headers.get("If-None-Match") == "*":
        raise _precondition_failed("If-None-Match")
    if wanted is not None and not _matches(wanted, _object(buckets, ask).etag):  # 404 where there is none
        raise _precondition_failed("If-Match")
    stored = buckets.put(ask.bucket, ask.key, Stored.of_bytes(plain_body(ask.headers, ask.body)))
    return Answer(200, {"ETag": stored.etag})


def _delete_object(buckets: Buckets, ask: Ask) -> Answer:
    _objects(buckets, ask).pop(ask.key, None)
    return Answer(204)


def _object(buckets: Buckets, ask: Ask) -> Stored:
    found = _objects(buckets, ask).get(ask.key)
    if found is None:
        raise S3Error(404, "NoSuchKey", f"The specified key does not exist: {ask.key}")
    return found


# Uploads in parts


def _begin_upload(buckets: Buckets, ask: Ask) -> Answer:
    _objects(buckets, ask)
    parts = [("Bucket", ask.bucket), ("Key", ask.key), ("UploadId", buckets.begin_upload())]
    return _xml("InitiateMultipartUploadResult", parts)


def _upload_part(buckets: Buckets, ask: Ask) -> Answer:
    part = Stored.of_bytes(plain_body(ask.headers, ask.body))
    _upload(buckets, ask)[_integer(ask, "partNumber", 0)] = part
    return Answer(200, {"ETag": part.etag})


def _complete_upload(buckets: Buckets, ask: Ask) -> Answer:
    parts = _upload(buckets, ask)
    try:
        numbers = [int(text) for text in _texts(ask.body, "PartNumber")]
        chosen = [parts[number] for number in numbers]
    except KeyError as error:
        raise S3Error(400, "InvalidPart", f"No part {error} was uploaded") from error
    if not chosen:
        raise S3Error(400, "MalformedXML", "The upload has no parts")
    if [part.etag.strip('"') for part in chosen] != [tag.strip('"') for tag in _texts(ask.body, "ETag")]:
        raise S3Error(400, "InvalidPart", "A part's ETag is not that of what was uploaded")
    stored = join_parts(chosen)
    if "*" in ask.headers.get("If-None-Match", "") and ask.key in _objects(buckets, ask):
        raise _precondition_failed("If-None-Match")
    buckets.put(ask.bucket, ask.key, stored)
    buckets.uploads.pop(ask.query["uploadId"], None)
    said = [("Bucket", ask.bucket), ("Key", ask.key), ("ETag", stored.etag)]
    return _xml("CompleteMultipartUploadResult", said)


def _abort_upload(buckets: Buckets, ask: Ask) -> Answer:
    _upload(buckets, ask)
    buckets.uploads.pop(ask.query["uploadId"], None)
    return Answer(204)


def _upload(buckets: Buckets, ask: Ask) -> dict[int, Stored]:
    found = buckets.uploads.get(ask.query["uploadId"])
    if found is None:
        raise S3Error(404, "NoSuchUpload", "The specified multipart upload does not exist")
    return found


# Buckets


def _list_buckets(buckets: Buckets, _ask: Ask) -> Answer:
    made = "2024-01-01T00:00:00.000Z"
    found = [("Bucket", [("Name", name), ("CreationDate", made)]) for name in sorted(buckets.by_name)]
    owner = [("ID", "headrace"), ("DisplayName", "headrace")]
    return _xml("ListAllMyBucketsResult", [("Owner", owner), ("Buckets", found)])


def _head_bucket(buckets: Buckets, ask: Ask) -> Answer:
    _objects(buckets, ask)
    return Answer(200, {"x-amz-bucket-region": REGION})


def _create_bucket(buckets: Buckets, ask: Ask) -> Answer:
    buckets.create(ask.bucket)
    return Answer(200, {"Location": f"/{ask.bucket}"})


def _bucket_location(buckets: Buckets, ask: Ask) -> Answer:
    _objects(buckets, ask)
    return _xml("LocationConstraint", "")


def _delete_objects(buckets: Buckets, ask: Ask) -> Answer:
    objects, keys = _objects(buckets, ask), _texts(plain_body(ask.headers, ask.body), "Key")
    for key in keys:
        objects.pop(key, None)
    return _xml("DeleteResult", [("Deleted", [("Key", key)]) for key in keys])


def _list_objects(buckets: Buckets, ask: Ask) -> Answer:
    objects, query = _objects(buckets, ask), ask.query
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    max_keys = min(_integer(ask, "max-keys", _MAX_KEYS), _MAX_KEYS)
    token, start_after = query.get("continuation-token"), query.get("start-after", "")
    keys = sorted(key for key in list(objects) if key.startswith(prefix) and key > start_after)
    entries = _entries(keys, prefix, delimiter, "" if token is None else _position(token))
    page = list(islice(entries, max_keys))
    is_truncated = bool(page) and next(entries, None) is not None
    encode = quote if query.get("encoding-type") == "url" else str
    said: list[tuple[str, Tree]] = [
        ("Name", ask.bucket),
        ("Prefix", encode(prefix)),
        ("MaxKeys", str(max_keys)),
        ("KeyCount", str(len(page))),
        ("IsTruncated", str(is_truncated).lower()),
    ]
    if delimiter:
        said.append(("Delimiter", encode(delimiter)))
    if encode is quote:
        said.append(("EncodingType", "url"))
    if token is not None:
        said.append(("ContinuationToken", token))
    if is_truncated:
        said.append(("NextContinuationToken", _token(page[-1][0])))
    for name, is_prefix in page:
        if is_prefix:
            said.append(("CommonPrefixes", [("Prefix", encode(name))]))
        else:
            said.append(("Contents", _contents(encode(name), objects.get(name))))
    return _xml("ListBucketResult", said)


def _entries(keys: Iterable[str], prefix: str, delimiter: str, position: str) -> Iterator[tuple[str, bool]]:
    """Yield keys and common prefixes (with True) that come after `position`, each once."""
    last = position
    for key in keys:
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        entry = key if cut < 0 else key[: cut + len(delimiter)]
        if entry > last:
            last = entry
            yield entry, cut >= 0


def _contents(name: str, stored: Stored | None) -> Tree:
    if stored is None:  # deleted since the keys were taken down
        return [("Key", name)]
    return [
        ("Key", name),
        ("LastModified", stored.modified.strftime("%Y-%m-%dT%H:%M:%S.000Z")),
        ("ETag", stored.etag),
        ("Size", str(stored.size_bytes)),
        ("StorageClass", "STANDARD"),
    ]


def _token(position: str) -> str:
    return base64.urlsafe_b64encode(position.encode()).decode()


def _position(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token).decode()
    except ValueError as error:  # what base64 and UTF-8 raise are kinds of it
        raise S3Error(400, "InvalidArgument", "The continuation token provided is incorrect") from error


def _objects(buckets: Buckets, ask: Ask) -> dict[str, Stored]:
    found = buckets.by_name.get(ask.bucket)
    if found is None:
        raise S3Error(404, "NoSuchBucket", f"The specified bucket does not exist: {ask.bucket}")
    return found


# Forms


def _integer(ask: Ask, name: str, default: int) -> int:
    text = ask.query.get(name, str(default))
    if not text.isdecimal():
        raise S3Error(400, "InvalidArgument", f"{name} is no integer: {text}")
    return int(text)


def _http_date(when: datetime) -> str:
    return format_datetime(when, usegmt=True)


def _texts(body: bytes, name: str) -> list[str]:
    """Return the texts of all elements called `name` in an XML body."""
    try:
        root = ET.fromstring(body)  # noqa: S314 - a loopback server of a test reads its own client
    except ET.ParseError as error:
        raise S3Error(400, "MalformedXML", "The XML you provided was not well-formed") from error
    return [element.text or "" for element in root.iter() if element.tag.rpartition("}")[2] == name]


def _xml(name: str, tree: Tree) -> Answer:
    return Answer(200, {"Content-Type": "application/xml"}, _render(name, tree))


def _render(name: str, tree: Tree, xmlns: str = _XMLNS) -> bytes:
    root = ET.Element(name, {"xmlns": xmlns} if xmlns else {})
    _fill(root, tree)
    text: bytes = ET.tostring(root, encoding="UTF-8", xml_declaration=True)
    return text


def _fill(element: ET.Element, tree: Tree) -> None:
    if isinstance(tree, str):
        element.text = tree
        return
    for name, inner in tree:
        _fill(ET.SubElement(element, name), inner)


_OPERATIONS: dict[tuple[str, str, str], Callable[[Buckets, Ask], Answer]] = {
    ("GET", "service", ""): _list_buckets,
    ("HEAD", "bucket", ""): _head_bucket,
    ("PUT", "bucket", ""): _create_bucket,
    ("GET", "bucket", "location"): _bucket_location,
    ("GET", "bucket", "list-type"): _list_objects,
    ("POST", "bucket", "delete"): _delete_objects,
    ("GET", "object", ""): _get_object,
    ("HEAD", "object", ""): _get_object,
    ("PUT", "object", ""): _put_object,
    ("DELETE", "object", ""): _delete_object,
    ("POST", "object", "uploads"): _begin_upload,
    ("PUT", "object", "uploadId"): _upload_part,
    ("POST", "object", "uploadId"): _complete_upload,
    ("DELETE", "object", "uploadId"): _abort_upload,
}
