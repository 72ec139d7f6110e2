"""The read-ahead blocks of one file: which are kept, and which small reads are worth one.

A small read right behind the last one is worth the block that follows. On stores, where a read is a round
trip, some blocks are kept, and a small read close to another one is worth a block, too: so HDF5 reads its
trees, and zip its directory. Reads that are far apart never are. Of a local file a small read close to the
last one is worth a block as short as Python's own buffer, for the calls that it saves.

It reads nothing itself: `headrace.file` does, under the lock that guards all methods here.
"""

from __future__ import annotations

from collections import deque

SMALL_SHARE = 16
"""A scattered read is worth a block only where it is one part in so many of one, or less."""

NEAR_BYTES = 8 << 10
"""What Python's own buffer of a file holds at the least, and serves in any order, however old it is.

A local block of no more does that, too; a longer one serves reads that go forward by less, and lines that are
no further away.
"""

MOST_SCATTERED = 8
"""So many of the last scattered reads another one may be close to."""


class Blocks:
    """Blocks of a file, one of them at hand: what is taken comes from that one.

    Parameters
    ----------
    size_bytes
        Length of a block; 0 for none.
    most_kept
        How many are kept.
    """

    __slots__ = ("_data", "_kept", "_most_kept", "_scattered", "_start", "is_for_any", "size_bytes")

    def __init__(self, size_bytes: int, most_kept: int) -> None:
        self.size_bytes = size_bytes
        self._most_kept = most_kept
        self._scattered: deque[int] = deque(maxlen=MOST_SCATTERED)
        self.clear()

    def clear(self) -> None:
        """Forget them."""
        self._start, self._data, self.is_for_any = 0, b"", True  # of nothing, which is not old
        self._kept: list[tuple[int, bytes]] = []

    def keep(self, start: int, data: bytes) -> None:
        """Have the block at hand be the one that begins at `start`."""
        self._start, self._data = start, data
        self._kept = [(start, data), *self._kept[: self._most_kept - 1]]
        self.is_for_any = self._most_kept > 1 or len(data) <= NEAR_BYTES

    # -- what the block at hand holds

    def has(self, position: int, length: int) -> bool:
        """Whether it holds so many bytes from `position` on."""
        return _holds(self._start, self._data, position, length)

    def take(self, position: int, length: int | None = None) -> bytes:
        """Return what it holds from `position` on, `length` bytes at the most."""
        begin = position - self._start
        if begin < 0:
            return b""
        return self._data[begin:] if length is None else self._data[begin : begin + length]

    def get(self, position: int, length: int) -> bytes | None:
        """Return so many bytes from `position` on, if it holds them all."""
        begin = position - self._start
        end = begin + length
        return self._data[begin:end] if begin >= 0 and end <= len(self._data) else None

    def whole_line(self, position: int) -> bytes | None:
        """Return the line at `position`, if it holds all of it with its newline."""
        begin, data = position - self._start, self._data
        if begin < 0:
            return None
        # In place: a copy of the block for each line would be of quadratic length.
        return data[begin : data.find(b"\n", begin) + 1]

    def whole_lines(self, position: int, most: int) -> bytes:
        """Return the lines at `position` that it holds whole, `most` bytes at the most."""
        begin, data = position - self._start, self._data
        return b"" if begin < 0 else data[begin : data.rfind(b"\n", begin, begin + most) + 1]

    def take_line(self, position: int, most: float) -> bytes:
        """Return what it holds from `position` to the end of the line, `most` bytes at the most."""
        begin, stop = position - self._start, len(self._data)
        if begin < 0:
            return b""
        if begin + most < stop:
            stop = begin + int(most)
        # In place: a copy of the block for each line would be of quadratic length.
        return self._data[begin : self._data.find(b"\n", begin, stop) + 1 or stop]

    # -- which block is to be at hand

    def turn_to(self, position: int, length: int) -> bool:
        """Make a kept block that holds so many bytes from `position` on the one at hand, if there is one."""
        for number, (start, data) in enumerate(self._kept):
            if _holds(start, data, position, length):
                self._kept.insert(0, self._kept.pop(number))
                self._start, self._data = start, data
                return True
        return False

    def is_close(self, position: int, length: int) -> bool:
        """Whether a scattered read is small, and one of the last such was less than a block away."""
        if length > self.size_bytes // SMALL_SHARE:
            return False
        is_close = any(abs(position - other) < self.size_bytes for other in self._scattered)
        self._scattered.append(position)
        return is_close

    def start_around(self, position: int, length: int) -> int:
        """Return where a block begins that holds a scattered read, and what lies before it if that fits.

        Who goes back and forth wants that, too.
        """
        start = position - position % self.size_bytes
        return start if position + length <= start + self.size_bytes else position


def _holds(start: int, data: bytes, position: int, length: int) -> bool:
    return start <= position and position + length <= start + len(data)
