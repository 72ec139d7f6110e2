"""Where the columns of a Parquet file lie, by its footer: which of them a read is for, and where others are.

Readers take column chunks whole, those that touch (or nearly) together: a range from the start of one chunk
to the end of that or a later one, or from one of the last columns of a row group to one of the first of the
next. Chunks lie in the order of the columns in all files that are known; in one where they do not nothing is
found, and nothing read ahead.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from headrace.core.ahead import Span
    from headrace.types import UInt8Array

MAGIC = b"PAR1"
ENDING_BYTES = 8
"""The last of a file: the length of the footer, little-endian, and `MAGIC`."""


class Columns(NamedTuple):
    """Columns that lie side by side, from the first to the last; that may be one of the next row group."""

    first: int
    last: int
    first_name: str
    last_name: str
    goes_over: bool


class FooterFinder:
    """Finds the footer of a file among what is read of it.

    Readers take some of the file's end, and where the footer is longer, the footer without what follows it.

    Parameters
    ----------
    size
        Bytes of the file.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._footer_start: int | None = size  # not known yet; None: it was found, or there is none
        self._ending = b""

    def look(self, start: int, data: UInt8Array) -> UInt8Array | None:
        """Look at bytes from `start` on; returns those to the file's end, once the footer is among them."""
        end, ending_start = start + len(data), self._size - ENDING_BYTES
        if self._footer_start is None or start > ending_start or end < ending_start:
            return None
        if end == self._size and not self._ending:
            self._ending = data[-ENDING_BYTES:].tobytes()
            nbytes = _footer_bytes(self._ending)
            self._footer_start = None if nbytes is None else ending_start - nbytes
        if self._footer_start is None or not self._ending or start > self._footer_start:
            return None
        self._footer_start = None
        return data if end == self._size else np.append(data, np.frombuffer(self._ending, np.uint8))


def _footer_bytes(ending: bytes) -> int | None:
    return int.from_bytes(ending[:4], "little") or None if ending[4:] == MAGIC else None


class ParquetLayout:
    """The layout of a file.

    Parameters
    ----------
    tail
        The last bytes of the file, the whole footer among them.

    Raises
    ------
    pyarrow.ArrowInvalid, OSError
        There is no footer in it.
    """

    def __init__(self, tail: UInt8Array) -> None:
        from pyarrow import parquet  # noqa: PLC0415 - only where there are such files

        self._metadata: Any = parquet.read_metadata(pa.BufferReader(tail))
        self._begins: list[int] | None = None

    @property
    def groups(self) -> int:
        """How many row groups there are."""
        found: int = self._metadata.num_row_groups
        return found

    def locate(self, start: int, end: int) -> tuple[int, Columns] | None:
        """Return the row group and the columns of a range of whole chunks, of a row group at the most."""
        if not self.groups or not self._metadata.num_columns:
            return None
        number = self._group_at(start)
        first = self._column_from(number, start)
        ending = self._group_at(end - 1)
        last = self._column_to(ending, end)
        if first is None or last is None:
            return None
        goes_over = ending == number + 1 and last < first
        if ending != number and not goes_over:
            return None
        return number, Columns(first, last, self._name(first), self._name(last), goes_over)

    def span(self, group: int, columns: Any) -> Span | None:
        """Return where columns of a row group lie, or None where the file has others."""
        first, last, first_name, last_name, goes_over = columns
        if group >= self.groups or max(first, last) >= self._metadata.num_columns:
            return None
        if (self._name(first), self._name(last)) != (first_name, last_name):
            return None
        ending = group + goes_over
        if ending == self.groups:
            ending, last = group, self._metadata.num_columns - 1  # there is no next row group
        start, end = _start(self._chunk(group, first)), _end(self._chunk(ending, last))
        return (start, end) if start < end else None

    def _group_at(self, offset: int) -> int:
        """Return the row group that an offset lies in, or the nearest."""
        if self._begins is None:
            self._begins = [_start(self._chunk(group, 0)) for group in range(self.groups)]
        return max(bisect_right(self._begins, offset) - 1, 0)

    def _column_from(self, group: int, start: int) -> int | None:
        """Return the column of a group whose chunk begins there."""
        numbers = range(self._metadata.num_columns)
        found = bisect_left(numbers, start, key=lambda k: _start(self._chunk(group, k)))
        return found if found in numbers and _start(self._chunk(group, found)) == start else None

    def _column_to(self, group: int, end: int) -> int | None:
        """Return the column of a group whose chunk ends there."""
        numbers = range(self._metadata.num_columns)
        found = bisect_left(numbers, end, key=lambda k: _end(self._chunk(group, k)))
        return found if found in numbers and _end(self._chunk(group, found)) == end else None

    def _chunk(self, group: int, column: int) -> Any:
        return self._metadata.row_group(group).column(column)

    def _name(self, column: int) -> str:
        name: str = self._chunk(0, column).path_in_schema
        return name


def _start(chunk: Any) -> int:
    """Where a column chunk begins: with its dictionary, if it has one."""
    data: int = chunk.data_page_offset
    dictionary: int | None = chunk.dictionary_page_offset
    return dictionary if dictionary is not None and 0 < dictionary < data else data


def _end(chunk: Any) -> int:
    return _start(chunk) + int(chunk.total_compressed_size)
