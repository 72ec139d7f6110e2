"""Apache Thrift's compact protocol, as far as it takes to find a few fields among others.

The format is in doc/specs/thrift-compact-protocol.md of github.com/apache/thrift. Whatever the bytes are,
reading ends: with an error where they are no such structure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
INTEGERS = (I16, I32, I64)
_MOST_BITS = 63
_FIXED_BYTES = {TRUE: 0, FALSE: 0, BYTE: 1, DOUBLE: 8}
"""A truth value is in its field's type."""

_LONG_LIST = 15


class CompactReader:
    """Reads one structure after the other.

    Each method raises IndexError where the bytes end too early, ValueError where they make no sense.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yield number and type of each field of a structure; meanwhile its value is read or skipped."""
        field = 0
        while header := self._byte():
            delta = header >> 4
            field = field + delta if delta else self.integer()
            yield field, header & 15

    def integer(self) -> int:
        """Read an integer."""
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def binary(self) -> bytes:
        """Read bytes."""
        start = self._pass(self._varint())
        return self._data[start : self._at]

    def length_of_list(self, expected: int) -> int:
        """Read the head of a list, of such elements."""
        kind, length = self._list_head()
        if kind != expected and length:
            msg = f"a list of type {kind}, and not {expected}"
            raise ValueError(msg)
        return length

    def skip(self, kind: int) -> None:
        """Pass the value of a field."""
        if kind in INTEGERS:
            self._varint()
        elif kind in _FIXED_BYTES:
            self._pass(_FIXED_BYTES[kind])
        elif kind == BINARY:
            self._pass(self._varint())
        elif kind == STRUCT:
            for _, inner in self.fields():
                self.skip(inner)
        elif kind in (LIST, SET):
            inner, length = self._list_head()
            self._skip_elements([inner], length)
        elif kind == MAP:
            length = self._varint()
            kinds = self._byte() if length else 0
            self._skip_elements([kinds >> 4, kinds & 15], length)
        else:
            msg = f"no such type: {kind}"
            raise ValueError(msg)

    def _skip_elements(self, kinds: list[int], length: int) -> None:
        for _ in range(length):
            for kind in kinds:
                self.skip(BYTE if kind in (TRUE, FALSE) else kind)  # a byte each, where it is no field

    def _list_head(self) -> tuple[int, int]:
        head = self._byte()
        length = head >> 4
        return head & 15, self._varint() if length == _LONG_LIST else length

    def _byte(self) -> int:
        found = self._data[self._at]
        self._at += 1
        return found

    def _pass(self, nbytes: int) -> int:
        """Go on behind some bytes; returns where they begin."""
        start, self._at = self._at, self._at + nbytes
        if self._at > len(self._data):
            raise IndexError(self._at)
        return start

    def _varint(self) -> int:
        data, at = self._data, self._at
        byte = data[at]
        value, shift = byte & 127, 7
        while byte > 127:  # noqa: PLR2004
            at += 1
            byte = data[at]
            value |= (byte & 127) << shift
            shift += 7
            if shift > _MOST_BITS + 7:
                msg = "a number of more than 64 bits"
                raise ValueError(msg)
        self._at = at + 1
        return value
