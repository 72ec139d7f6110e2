"""Where the columns of a Parquet file lie, by its footer: which of them a read is for, and where others are.

Readers take column chunks whole, those that touch (or nearly) together: a range from the start of one chunk
to the end of that or a later one, or from one of the last columns of a row group to one of the first of the
next. Chunks lie in the order of the columns in all files that are known; in one where they do not nothing is
found, and nothing read ahead.

The footer is read by `thrift`, and not by pyarrow: asked for a column that is encrypted, or for one of a
damaged file, its Python interface ends the process, and here nobody has asked for one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headrace.thrift import BINARY, INTEGERS, LIST, STRUCT, CompactReader

if TYPE_CHECKING:
    from headrace.core.ahead import Span
    from headrace.types import UInt8Array

MAGIC = b"PAR1"
ENDING_BYTES = 8
"""The last of a file: the length of the footer, little-endian, and `MAGIC`."""

LONGEST_BYTES = 128 << 10
"""Longer footers are not read: that takes Python some 20 ms, with the GIL kept."""

CHUNK_BYTES = 80
"""What is known of a chunk takes about so much memory: two numbers and their places in lists."""


class Columns(NamedTuple):
    """Columns that lie side by side, from the first to the last; that may be one of the next row group."""

    first: int
    last: int
    first_name: bytes
    last_name: bytes
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
        if end == self._size:
            return data
        return np.append(data[: ending_start - start], np.frombuffer(self._ending, np.uint8))


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
    ValueError
        There is no footer in it, or one of a file whose chunks are elsewhere, encrypted, or too many.
    """

    def __init__(self, tail: UInt8Array) -> None:
        ending = tail[-ENDING_BYTES:].tobytes()
        nbytes = _footer_bytes(ending)
        if nbytes is None or nbytes > min(len(tail) - ENDING_BYTES, LONGEST_BYTES):
            msg = "no footer, or a long one"
            raise ValueError(msg)
        footer = tail[-ENDING_BYTES - nbytes : -ENDING_BYTES].tobytes()
        try:
            groups = _read_groups(CompactReader(footer))
        except (IndexError, RecursionError) as error:
            msg = "a broken footer"
            raise ValueError(msg) from error
        self._names = [name for name, _, _ in groups[0]] if groups else []
        if any([name for name, _, _ in group] != self._names for group in groups):
            msg = "row groups of different columns"
            raise ValueError(msg)
        self._starts = [[start for _, start, _ in group] for group in groups] if self._names else []
        self._ends = [[end for _, _, end in group] for group in groups] if self._names else []
        edges = [edge for group in groups for _, start, end in group for edge in (start, end)]
        if any(one > other for one, other in pairwise(edges)):
            msg = "chunks in another order than the columns"
            raise ValueError(msg)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, about."""
        return self.groups * len(self._names) * CHUNK_BYTES

    @property
    def groups(self) -> int:
        """How many row groups there are."""
        return len(self._starts)

    def locate(self, start: int, end: int) -> tuple[int, Columns] | None:
        """Return the row group and the columns of a range of whole chunks, of a row group at the most."""
        if not self.groups:
            return None
        number, ending = self._group_at(start), self._group_at(end - 1)
        first, last = _place(self._starts[number], start), _place(self._ends[ending], end)
        if first is None or last is None:
            return None
        goes_over = ending == number + 1 and last < first
        if ending != number and not goes_over:
            return None
        return number, Columns(first, last, self._names[first], self._names[last], goes_over)

    def span(self, group: int, columns: Any) -> Span | None:
        """Return where columns of a row group lie, or None where the file has others."""
        first, last, first_name, last_name, goes_over = columns
        if group >= self.groups or max(first, last) >= len(self._names):
            return None
        if (self._names[first], self._names[last]) != (first_name, last_name):
            return None
        ending = group + goes_over
        if ending == self.groups:
            ending, last = group, -1  # there is no next row group
        start, end = self._starts[group][first], self._ends[ending][last]
        return (start, end) if start < end else None

    def _group_at(self, offset: int) -> int:
        """Return the row group that an offset lies in, or the nearest."""
        return max(bisect_right(self._starts, offset, key=lambda starts: starts[0]) - 1, 0)


def _place(edges: list[int], edge: int) -> int | None:
    found = bisect_left(edges, edge)
    return found if found < len(edges) and edges[found] == edge else None


# -- the footer's structures, by the numbers of their fields (parquet.thrift of apache/parquet-format)

_ROW_GROUPS, _ENCRYPTION, _COLUMNS, _FILE_PATH, _META_DATA, _CRYPTO = 4, 8, 1, 1, 3, 8
_PATH, _COMPRESSED_BYTES, _DATA_PAGE, _DICTIONARY_PAGE = 3, 7, 9, 11

_Chunk = tuple[bytes, int, int]


def _read_groups(reader: CompactReader) -> list[list[_Chunk]]:
    """Read ``FileMetaData``: name, start and end of the chunks of each row group."""
    groups: list[list[_Chunk]] = []
    for field, kind in reader.fields():
        if field == _ENCRYPTION:
            msg = "encrypted columns"
            raise ValueError(msg)
        if field == _ROW_GROUPS and kind == LIST:
            groups = [_read_group(reader) for _ in range(reader.length_of_list(STRUCT))]
        else:
            reader.skip(kind)
    return groups


def _read_group(reader: CompactReader) -> list[_Chunk]:
    chunks: list[_Chunk] = []
    for field, kind in reader.fields():
        if field == _COLUMNS and kind == LIST:
            chunks = [_read_chunk(reader) for _ in range(reader.length_of_list(STRUCT))]
        else:
            reader.skip(kind)
    return chunks


def _read_chunk(reader: CompactReader) -> _Chunk:
    found = None
    for field, kind in reader.fields():
        if field in (_FILE_PATH, _CRYPTO):
            msg = "a chunk in another file, or an encrypted one"
            raise ValueError(msg)
        if field == _META_DATA and kind == STRUCT:
            found = _read_metadata(reader)
        else:
            reader.skip(kind)
    if found is None:
        msg = "a chunk that is not described"
        raise ValueError(msg)
    return found


def _read_metadata(reader: CompactReader) -> _Chunk:
    name, numbers = b"", {_COMPRESSED_BYTES: -1, _DATA_PAGE: -1, _DICTIONARY_PAGE: 0}
    for field, kind in reader.fields():
        if field in numbers and kind in INTEGERS:
            numbers[field] = reader.integer()
        elif field == _PATH and kind == LIST:
            name = b".".join([reader.binary() for _ in range(reader.length_of_list(BINARY))])
        else:
            reader.skip(kind)
    nbytes, data, dictionary = numbers.values()
    if nbytes < 0 or data < 0:
        msg = "a chunk without a place"
        raise ValueError(msg)
    start = dictionary if 0 < dictionary < data else data
    return name, start, start + nbytes
