"""What is written to a store beside its reads: it has its part of the window, and waits for nothing.

A write is the wrapped filesystem's own and is never held back (it may be what a reader waits for). But the
store serves it, and the line carries it: while it is under way, so many fewer reads are. Its bytes count as
reads of `UPLOAD_BYTES` each, and all writes together take half of the window at the most, so that an upload
does not starve reads either.

Threading: all methods under the hub's lock. What is under way is the fact, the number is derived from it.
"""

from __future__ import annotations

UPLOAD_BYTES = 8 << 20
"""Bytes of a write that count as one request."""

MOST_PARTS = 10
"""Requests that one write has under way at once, at the most: s3fs's ``max_concurrency``."""


class Uploads:
    """The writes that are under way to one store."""

    __slots__ = ("_under_way", "ops")

    def __init__(self) -> None:
        self._under_way: dict[object, int] = {}
        self.ops = 0
        """Requests they count as."""

    def begin(self, write: object, nbytes: int) -> None:
        """Count a write of `nbytes` bytes, which its caller names."""
        count = self._under_way[write] = min(max(1, -(-nbytes // UPLOAD_BYTES)), MOST_PARTS)
        self.ops += count

    def end(self, write: object) -> None:
        """Forget a write; one that never began, too."""
        self.ops -= self._under_way.pop(write, 0)

    def recount(self) -> None:
        """Derive the number from the facts."""
        self.ops = sum(self._under_way.values())

    def left_of(self, limit: int) -> int:
        """Return what they leave of a window of `limit` requests: half of it at least, and one.

        Windows of bytes have no writes: those go into the page cache.
        """
        return max(limit - self.ops, (limit + 1) // 2)
