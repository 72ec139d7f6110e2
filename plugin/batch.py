"""The columnar result of a request of many ranges: one buffer, and where each range lies in it.

Owns `RangeBatch`. The bytes stay where the ops put them. Views, ``pyarrow`` buffers and arrays
are zero copy; only where gaps, overlaps or duplicates were read do `RangeBatch.buffer` and what
rests on it copy once, by a vectorised gather, and from then on the gathered bytes replace the
ones that were read (so that the larger buffer can go).

Everything handed out keeps the buffer's owner alive through the buffer protocol: the owner is
gone only when the last view, ``pyarrow.Buffer`` or array on it is (I9). Views are read-only. A
range that failed has no bytes; its own error is raised where it is asked for (I10).

Threading: a batch is immutable but for the place of its bytes, which is replaced by one
assignment. Two threads that need the gather at once may both do it; both get right answers.

It does not read, wait, retry or know of files.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self, SupportsIndex, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from typing_extensions import override

from headrace.columns import BLOCK, are_equal
from headrace.core.gather import check_extents, gather, void_view

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from headrace.types import Int64Array

__all__ = ["RangeBatch"]

_LIST_BLOCK_BYTES = 1 << 20

_LIST_ITEM_BYTES = 1 << 16
"""NumPy makes the bytes objects up to this size; above it the copy outweighs the loop."""

_GATHERED_BYTES = 1 << 12
"""The same where they do not lie one after another: NumPy copies them twice."""


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where the bytes are: range i begins at ``begin[i]`` of `buffer`."""

    buffer: pa.Buffer
    view: memoryview
    begin: Int64Array
    is_packed: bool


def _place(buffer: pa.Buffer, begin: Int64Array, *, is_packed: bool) -> _Place:
    # pyarrow exports signed bytes, which compare slowly, and wrongly from 128 on.
    view = memoryview(buffer).toreadonly().cast("B")
    return _Place(buffer, view, begin, is_packed)


class RangeBatch:
    """The bytes of n ranges, in the caller's order.

    Parameters
    ----------
    buffer : pyarrow.Buffer or uint8 array
        Contiguous, one-dimensional. Kept alive as long as anything taken from the batch.
    dest : int64 array (n,)
        Where each range begins in `buffer`, bytes.
    length : int64 array (n,)
        Bytes delivered of each range.
    errors : mapping of int to Exception, optional
        Ranges that failed, by position. Their `length` is taken as 0.

    Raises
    ------
    ValueError
        A range lies outside the buffer, or an error is not at the position of a range.

    Examples
    --------
    >>> import numpy as np
    >>> data = np.frombuffer(b"headrace", np.uint8)
    >>> batch = RangeBatch(data, np.array([4, 0]), np.array([4, 4]))
    >>> batch.to_pylist()
    [b'race', b'head']
    """

    __slots__ = ("__weakref__", "_errors", "_length", "_offsets", "_pieces", "_store")

    def __init__(
        self,
        buffer: pa.Buffer | npt.NDArray[np.uint8],
        dest: Int64Array,
        length: Int64Array,
        errors: Mapping[int, Exception] | None = None,
    ) -> None:
        dest, length = np.asarray(dest, np.int64), np.asarray(length, np.int64)
        arrow_buffer = _as_arrow_buffer(buffer)
        self._errors = dict(sorted(errors.items())) if errors else {}
        if self._errors:
            length = _without_failed(length, self._errors)
        check_extents(arrow_buffer.size, dest, length)
        self._length = length
        self._offsets = np.zeros(length.size + 1, np.int64)
        np.cumsum(length, out=self._offsets[1:])
        self._offsets.flags.writeable = False
        self._store = _initial_place(arrow_buffer, dest, length, self._offsets)
        self._pieces: list[bytes] | None = None

    @classmethod
    def whole(
        cls,
        buffer: npt.NDArray[np.uint8],
        offsets: Int64Array,
        length: Int64Array,
        dest: Int64Array | None = None,
    ) -> Self:
        """Make a batch whose ranges are all whole; nothing is checked, and the GIL is kept.

        Parameters
        ----------
        buffer
            The bytes of all ranges; without `dest` one range after another, from the first byte on.
        offsets, length
            ``int64[n + 1]`` and ``int64[n]``: the running sum of the ranges' bytes, and the bytes of each.
        dest
            ``int64[n]``: where each range begins in `buffer`.
        """
        offsets.flags.writeable = False
        arrow_buffer = pa.py_buffer(buffer)
        batch = cls.__new__(cls)
        batch._errors, batch._length, batch._offsets = {}, length, offsets  # noqa: SLF001 - its own
        if dest is None:
            place = _place(arrow_buffer.slice(0, int(offsets[-1])), offsets[:-1], is_packed=True)
        else:
            place = _place(arrow_buffer, dest, is_packed=False)
        batch._store, batch._pieces = place, None  # noqa: SLF001
        return batch

    @classmethod
    def joined(cls, batches: list[RangeBatch], rows: list[Int64Array], buffer: npt.NDArray[np.uint8]) -> Self:
        """Copy several into `buffer`: the ranges of each come to be at its `rows`, together ``arange(n)``."""
        n, begin = sum(map(len, batches)), 0
        dest, length = np.zeros(n, np.int64), np.zeros(n, np.int64)
        errors: dict[int, Exception] = {}
        for batch, at in zip(batches, rows, strict=True):
            buffer[begin : begin + batch.nbytes] = _as_array(batch.buffer)
            dest[at], length[at] = batch.offsets[:-1] + begin, np.diff(batch.offsets)
            errors |= {int(at[row]): error for row, error in batch.errors.items()}
            begin += batch.nbytes
        return cls(buffer, dest, length, errors)

    def keep(self, pieces: list[bytes]) -> None:
        """Have the list of all ranges be these, which were made of the same bytes."""
        self._pieces = pieces

    def __len__(self) -> int:
        return self._length.size

    @overload
    def __getitem__(self, index: SupportsIndex) -> memoryview: ...
    @overload
    def __getitem__(self, index: slice) -> list[memoryview]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> memoryview | list[memoryview]:
        """View one range, or a list of views; a failed range raises its own error."""
        if isinstance(index, slice):
            return [self._view(i) for i in range(*index.indices(len(self)))]
        index = operator.index(index)
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"range index out of bounds for a batch of {len(self)}")
        return self._view(index)

    def __iter__(self) -> Iterator[memoryview]:
        """View all ranges, in order; the first failed one raises its error."""
        return map(self._view, range(len(self)))

    @override
    def __repr__(self) -> str:
        parts = [f"{len(self):,} ranges", f"{self.nbytes:,} bytes"]
        if self._errors:
            parts.append(f"{len(self._errors):,} failed")
        return f"<{type(self).__name__}: {', '.join(parts)}>"

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the packed bytes only, never the gaps that were read with them."""
        return type(self), (self.buffer, self._offsets[:-1], self._length, self._errors)

    def _view(self, index: int) -> memoryview:
        if index in self._errors:
            raise self._errors[index]
        place = self._store
        begin = int(place.begin[index])
        return place.view[begin : begin + int(self._length[index])]

    @property
    def nbytes(self) -> int:
        """Bytes delivered, over all ranges."""
        return int(self._offsets[-1])

    @property
    def errors(self) -> Mapping[int, Exception]:
        """Errors of the ranges that failed, by position, ascending; read-only."""
        return MappingProxyType(self._errors)

    @property
    def offsets(self) -> Int64Array:
        """Range i is ``buffer[offsets[i]:offsets[i + 1]]``; int64 (n + 1,), read-only."""
        return self._offsets

    @property
    def buffer(self) -> pa.Buffer:
        """All delivered bytes, one range after another (see `offsets`)."""
        return self._packed().buffer

    def _packed(self) -> _Place:
        place = self._store
        if not place.is_packed:
            packed, _ = gather(_as_array(place.buffer), place.begin, self._length)
            place = _place(pa.py_buffer(packed), self._offsets[:-1], is_packed=True)
            self._store = place
        return place

    @overload
    def to_pylist(self, on_error: Literal["raise"] = ...) -> list[bytes]: ...
    @overload
    def to_pylist(self, on_error: Literal["return"]) -> list[bytes | Exception]: ...
    def to_pylist(
        self, on_error: Literal["raise", "return"] = "raise"
    ) -> list[bytes] | list[bytes | Exception]:
        """Copy every range into a bytes object of its own.

        Parameters
        ----------
        on_error : {"raise", "return"}
            Raise the first failed range's error, or put each error in its range's place.

        Returns
        -------
        list of bytes
            In the caller's order.
        """
        if on_error not in {"raise", "return"}:
            raise ValueError(f"on_error is {on_error!r:.50}: it must be 'raise' or 'return'")
        if not self._errors:
            return self._all_bytes()
        if on_error == "raise":
            raise next(iter(self._errors.values()))
        answers: list[bytes | Exception] = list(self._all_bytes())
        for index, error in self._errors.items():
            answers[index] = error
        return answers

    def _all_bytes(self) -> list[bytes]:
        if self._pieces is not None:
            return list(self._pieces)
        # No gather here: the bytes are copied once, straight from where they were read.
        place, length = self._store, self._length
        if are_alike(length) and (place.is_packed or length[0] <= _GATHERED_BYTES):
            return _equal_bytes(place, int(length[0]))
        view = place.view
        begins_and_lengths = zip(place.begin.tolist(), length.tolist(), strict=True)
        return [bytes(view[begin : begin + size]) for begin, size in begins_and_lengths]

    def to_arrow(self) -> pa.LargeBinaryArray:
        """Make an Arrow array of the ranges on the same memory; a failed range is null."""
        validity = None
        if self._errors:
            is_valid = np.ones(len(self), np.bool_)
            is_valid[list(self._errors)] = False
            validity = pa.py_buffer(np.packbits(is_valid, bitorder="little"))
        return pa.LargeBinaryArray.from_buffers(
            pa.large_binary(),
            len(self),
            [validity, pa.py_buffer(self._offsets), self.buffer],
            len(self._errors),
        )


def are_alike(length: Int64Array) -> bool:
    """Whether ranges of these lengths are of one length, and one that NumPy makes `bytes` of."""
    is_short = bool(length.size) and 0 < length[0] <= _LIST_ITEM_BYTES
    return is_short and are_equal(length, int(length[0]))


def _equal_bytes(place: _Place, size_bytes: int) -> list[bytes]:
    """Ranges of one length as bytes, made by NumPy, block by block to stay in the cache."""
    items = void_view(_as_array(place.buffer), size_bytes)
    if place.is_packed:
        packed: list[bytes] = items[::size_bytes].tolist()
        return packed
    answers: list[bytes] = []
    step = min(max(1, _LIST_BLOCK_BYTES // size_bytes), BLOCK)
    for i in range(0, place.begin.size, step):
        answers += items[place.begin[i : i + step]].tolist()
    return answers


def _as_arrow_buffer(buffer: pa.Buffer | npt.NDArray[np.uint8]) -> pa.Buffer:
    if isinstance(buffer, pa.Buffer):
        return buffer
    if not isinstance(buffer, np.ndarray) or buffer.dtype != np.uint8 or buffer.ndim != 1:
        raise TypeError("buffer must be a pyarrow.Buffer or a one-dimensional array of uint8")
    return pa.py_buffer(buffer)


def _as_array(buffer: pa.Buffer) -> npt.NDArray[np.uint8]:
    return np.frombuffer(buffer, np.uint8)


def _without_failed(length: Int64Array, errors: Mapping[int, Exception]) -> Int64Array:
    """Lengths with 0 for the failed ranges, whose bytes are whatever was in the buffer."""
    failed = np.fromiter(errors, np.int64, len(errors))
    if failed.min() < 0 or failed.max() >= length.size:
        raise ValueError(f"errors are at {list(errors)!r:.50}, of {length.size} ranges")
    length = length.copy()
    length[failed] = 0
    return length


def _initial_place(buffer: pa.Buffer, dest: Int64Array, length: Int64Array, offsets: Int64Array) -> _Place:
    """Find out whether the ranges already lie one after another; empty ones lie anywhere."""
    begin = offsets[:-1]
    shift = (dest - begin)[length > 0]
    if shift.size and (shift != shift[0]).any():
        return _place(buffer, dest, is_packed=False)
    base = int(shift[0]) if shift.size else 0
    return _place(buffer.slice(base, int(offsets[-1])), begin, is_packed=True)
