"""What the answer to a GET of a range says that its body is, and whether the body keeps to it.

Clients hold a body against ``Content-Length`` alone. Where that is missing, a connection that is closed too
early ends a body as any other would. And a server may send another range than it was asked for, or less of
it, and say so in ``Content-Range`` (RFC 9110, 15.3.7). What a filesystem returned for a range says nothing:
where it is more than that, the store may have sent all of the file, as it does of what it decodes on the way.
"""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, NamedTuple

from headrace.redact import redact_url

if TYPE_CHECKING:
    from headrace.types import Ops


Limits = tuple[int | None, int | None]
"""Start and end of a range, as ``cat_file`` takes them."""

_CONTENT_RANGE = re.compile(r"\s*bytes\s+(\d+)-(\d+)/(\d+|\*)")


class Part(NamedTuple):
    """The part of an object that an answer says it is: ``[start, end)`` of `total` bytes, if that is said."""

    start: int
    end: int
    total: int | None

    def check_start(self, start: int, path: str) -> None:
        """Raise an error that no other attempt cures, if it is another part than the one asked for."""
        if self.start != start:
            msg = "the server sent another range than the one asked for"
            raise OSError(errno.EIO, msg, redact_url(path))

    def due(self, end: int | None) -> int:
        """Return where in the object a body ends that was asked for up to `end`; None: to its end."""
        total = self.end if self.total is None else self.total
        return total if end is None else min(end, total)

    def check_end(self, reached: int, end: int | None, path: str) -> None:
        """Raise an error that another attempt may cure, if a body ended before it was due."""
        due = self.due(end)
        if reached < due:
            msg = f"the body ended at byte {reached}, and not at {due}"
            raise ConnectionResetError(errno.ECONNRESET, msg, redact_url(path))


def deliver_answer(ops: Ops, row: int, data: bytes, limits: Limits, *, is_part: bool = False) -> None:
    """Deliver what a filesystem returned for op `row`, if that can be it.

    Of what starts at 0 more will do, for it begins with what was asked for. Not so with `is_part`: what the
    filesystem calls a file may be a part of one, whose beginning is another.
    """
    start, end = limits[0] or 0, limits[1] or 0
    if (start or is_part) and 0 <= start < end < start + len(data):
        msg = f"the filesystem returned {len(data)} bytes for a range of {end - start}"
        raise OSError(errno.EIO, msg, redact_url(ops.sources[int(ops.file[row])].path))
    ops.deliver(row, data)


def part_of(content_range: str | None) -> Part | None:
    """Return what ``Content-Range`` says; None where it says nothing of the kind."""
    found = _CONTENT_RANGE.match(content_range or "")
    if found is None:
        return None
    return Part(int(found[1]), int(found[2]) + 1, None if found[3] == "*" else int(found[3]))
