"""Reads through fsspec's own HTTP filesystem: of the range that was asked, and of one version.

Its ``_cat_file`` returns whatever the server sends, of a server that ignores ranges the whole body. Here each
answer is looked at before its body is taken: a range that is answered with something else is an error, and so
is an answer of another version (``ETag``) than the one seen at open or by the first answer, which
``If-Match`` asks for. The body is asked for as it is stored (``Accept-Encoding: identity``), as fsspec asks
for the size: compressed on its way it would carry another ETag, and have no ranges.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Any

from headrace.backends._faults import PRECONDITION_FAILED
from headrace.errors import ObjectChangedError
from headrace.redact import redact_url

if TYPE_CHECKING:
    from headrace.backends.abc import PathSource
    from headrace.types import Ops

_PARTIAL_CONTENT = 206
_ERRORS = 400
_FIRST = re.compile(r"\s*bytes\s+(\d+)-")


def is_http(target: Any) -> bool:
    """Whether `target` reads as fsspec's own HTTP filesystem does."""
    from fsspec.asyn import AsyncFileSystem  # noqa: PLC0415

    read = getattr(type(target), "_cat_file", AsyncFileSystem._cat_file)  # noqa: SLF001
    return bool(read.__module__ == "fsspec.implementations.http")


async def read_op(fs: Any, ops: Ops, row: int) -> None:
    """Read op `row`."""
    source = ops.sources[int(ops.file[row])]
    start, end = source.limits(int(ops.start[row]), int(ops.length[row]))
    is_part = bool(start) or (end or 0) < 0  # else the whole body will do, which begins with the range

    async def check(answer: Any) -> None:
        _check_answer(source, answer, (start or 0) if is_part else None)

    options = {**source.options, "headers": _headers(fs, source), "raise_for_status": check}
    data = await fs._cat_file(source.path, start=start, end=end, **options)  # noqa: SLF001
    ops.deliver(row, data if is_part else data[:end])


def _headers(fs: Any, source: PathSource) -> dict[str, str]:
    given = source.options.get("headers", fs.kwargs.get("headers")) or {}
    headers = {"Accept-Encoding": "identity", **given}
    if source.condition:
        headers["If-Match"] = source.condition
    return headers


def _check_answer(source: PathSource, answer: Any, first: int | None) -> None:
    """Check that the answer is of the version that is read, and of a range from `first`, if that is given."""
    found = answer.headers.get("ETag")
    if answer.status == PRECONDITION_FAILED and source.etag:
        raise ObjectChangedError(source.path, source.etag, found or "unknown")
    if answer.status >= _ERRORS:
        return  # the filesystem's to word
    if first is not None:
        _check_range(source, answer, first)
    if source.etag is None:
        source.etag = found
    elif found != source.etag:
        raise ObjectChangedError(source.path, source.etag, str(found))


def _check_range(source: PathSource, answer: Any, first: int) -> None:
    url = redact_url(source.path)
    if answer.status != _PARTIAL_CONTENT:
        msg = (
            "the server ignored the range and sent the whole body (cat_file(url), or open with block_size=0)"
        )
        raise OSError(errno.EIO, msg, url)
    found = _FIRST.match(answer.headers.get("Content-Range", ""))
    if found is not None and first >= 0 and int(found[1]) != first:
        raise OSError(errno.EIO, "the server sent another range than the one asked for", url)
