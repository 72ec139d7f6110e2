"""Reads through fsspec's own HTTP filesystem: of the range that was asked, and of one version.

Its ``_cat_file`` returns whatever the server sends, of a server that ignores ranges the whole body. So the
GET is made here, with its session, its options and its exceptions, and each answer is looked at before its
body is taken: a range that is answered with something else is an error, and so is an answer of another
version (``ETag``) than the one seen at open or by the first answer, which ``If-Match`` asks for. Where a
server sends less of a range than it was asked for, and says so, it is asked for the rest of that version. Of
a whole body that begins with the range no more is taken than that. The body is asked for as it is stored
(``Accept-Encoding: identity``), as fsspec asks for the size: compressed on its way it would carry another
ETag, and have no ranges.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
from typing import TYPE_CHECKING, Any

from headrace.backends._answers import part_of
from headrace.backends._faults import PRECONDITION_FAILED
from headrace.errors import NoRangesError, ObjectChangedError
from headrace.redact import redact_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.backends.abc import PathSource
    from headrace.types import Ops

_PARTIAL_CONTENT = 206
_PIECE_BYTES = 1 << 20
_ENDS_WITHIN_S = 0.05
"""The longest that is waited for a body to say that it is over, for its connection to be used again."""

_MOST_PARTS = 64
"""So many answers may make up a range: nothing of them is kept where an attempt takes too long."""

_ASKED = re.compile(r"bytes=(\d*)-(\d*)")


def is_http(target: Any) -> bool:
    """Whether `target` reads as fsspec's own HTTP filesystem does."""
    from fsspec.asyn import AsyncFileSystem  # noqa: PLC0415

    read = getattr(type(target), "_cat_file", AsyncFileSystem._cat_file)  # noqa: SLF001
    return bool(read.__module__ == "fsspec.implementations.http")


async def read_op(fs: Any, ops: Ops, row: int) -> None:
    """Read op `row`."""
    source = ops.sources[int(ops.file[row])]
    start, end = source.limits(int(ops.start[row]), int(ops.length[row]))
    ops.deliver(row, b"" if start == end is not None else await _read(fs, source, start, end))


async def _read(fs: Any, source: PathSource, start: int | None, end: int | None) -> bytes:
    data, rest = await _ask(fs, source, start, end)
    if rest is None:
        return data
    pieces = [data]
    while rest is not None:
        if len(pieces) == _MOST_PARTS:
            raise _no_more_than(data, source)
        data, rest = await _ask(fs, source, *rest)
        pieces.append(data)
    return b"".join(pieces)


def _no_more_than(data: bytes, source: PathSource) -> OSError:
    msg = f"the server sends no more than {len(data)} bytes of a range"
    return OSError(errno.EIO, msg, redact_url(source.path))


_Rest = tuple[int, int] | None
"""Start and end of what an answer left out of a range, if it did."""


async def _ask(fs: Any, source: PathSource, start: int | None, end: int | None) -> tuple[bytes, _Rest]:
    headers = _headers(fs, source)
    if start is not None or end is not None:
        headers["Range"] = await fs._process_limits(source.path, start, end)  # noqa: SLF001
    # Errors are looked for below, whatever the session would make of them.
    options = {**fs.kwargs, **source.options, "headers": headers, "raise_for_status": False}
    session = await fs.set_session()
    async with session.get(fs.encode_url(source.path), **options) as answer:
        if answer.status == PRECONDITION_FAILED and source.etag:
            raise ObjectChangedError(source.path, source.etag, answer.headers.get("ETag") or "unknown")
        fs._raise_not_found_for_status(answer, source.path)  # noqa: SLF001
        is_part = answer.status == _PARTIAL_CONTENT
        if not is_part and (start or (end or 0) < 0):
            raise NoRangesError(errno.EIO, _IGNORED, redact_url(source.path))
        source.meet(answer.headers.get("ETag"))
        return await _part(source, answer, headers) if is_part else (await _beginning(answer, end), None)


_IGNORED = "the server ignored the range and sent the whole body (cat_file(url), or open with block_size=0)"


def _headers(fs: Any, source: PathSource) -> dict[str, str]:
    given = source.options.get("headers", fs.kwargs.get("headers")) or {}
    headers = {"Accept-Encoding": "identity", **given}
    if source.condition:
        headers["If-Match"] = source.condition
    return headers


def _asked(headers: Mapping[str, str], total: int | None) -> tuple[int | None, int | None]:
    """Return start and end of the range that was asked for, of `total` bytes; None for what is unknown."""
    said = next((value for name, value in headers.items() if name.lower() == "range"), "")
    asked = _ASKED.fullmatch(said)
    first, last = (None, None) if asked is None else asked.groups()
    if first:
        return int(first), int(last) + 1 if last else None
    if last and total is not None:
        return max(total - int(last), 0), None
    return None, None


async def _part(source: PathSource, answer: Any, headers: Mapping[str, str]) -> tuple[bytes, _Rest]:
    """Take the body of a part, which is the one asked for as far as the answer says."""
    part = part_of(answer.headers.get("Content-Range"))
    start, end = _asked(headers, None if part is None else part.total)
    if part is not None and start is not None:
        part.check_start(start, source.path)
    data: bytes = await answer.read()
    is_as_stored = answer.headers.get("Content-Encoding", "identity") == "identity"  # else aiohttp decodes it
    if part is None or not is_as_stored:
        return data, None
    reached, due = part.start + len(data), part.due(end)
    if start is not None and part.start < reached == part.end < due:
        if source.version is None:
            raise _no_more_than(data, source)
        return data, (reached, due)
    part.check_end(reached, end, source.path)
    return data[: max(due - part.start, 0)], None


async def _beginning(answer: Any, end: int | None) -> bytes:
    """Take a whole body up to `end`: what is beyond may be any number of bytes."""
    if end is None:
        whole: bytes = await answer.read()
        return whole
    data = bytearray()
    while len(data) < end:
        piece = await answer.content.read(min(_PIECE_BYTES, end - len(data)))
        if not piece:
            break
        data += piece
    else:
        if answer.content_length is None:
            await _see_end(answer)
    return bytes(data)


async def _see_end(answer: Any) -> None:
    """Let a body end that has nothing more: only then is its connection used again."""
    from aiohttp import ClientError  # noqa: PLC0415

    with contextlib.suppress(OSError, ClientError):  # a time-out; all that was asked for is there
        async with asyncio.timeout(_ENDS_WITHIN_S):
            await answer.content.read(1)
