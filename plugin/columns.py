"""NumPy on long columns with the GIL kept.

NumPy gives the GIL up in every call on more than 500 elements, in ``arange`` on however few, and beside a
busy Python thread winning it back costs up to a switch interval (5 ms): many times what the call takes. These
functions go block by block instead, for some nanoseconds an element. They serve the path of hot batches,
which waits for nothing else, and what comes before and after the requests to a store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.types import Int64Array

BLOCK = 500
"""``NPY_BEGIN_THREADS_THRESHOLDED`` of NumPy's loops: up to so many elements they keep the GIL."""

ZERO = np.zeros(1, np.int64)
"""A column of one zero, which plans and ops of one row share."""
ZERO.flags.writeable = False  # so that a slip cannot spoil those of others

_FIRST = np.arange(1 << 16, dtype=np.int64)
_FIRST.flags.writeable = False


def blocks(n: int) -> Iterator[slice]:
    """Cut ``range(n)`` into blocks."""
    return (slice(lo, min(lo + BLOCK, n)) for lo in range(0, n, BLOCK))


def ascending(lo: int, hi: int) -> Int64Array:
    """Return ``arange(lo, hi)``, which may be read-only."""
    if hi <= len(_FIRST):
        return _FIRST[lo:hi]
    return _FIRST[: hi - lo] + lo if hi - lo <= BLOCK else np.arange(lo, hi, dtype=np.int64)


def minus_ones(n: int) -> Int64Array:
    """Return a column of -1; of a long one the GIL is given up."""
    if n > len(_FIRST):
        return np.full(n, -1, np.int64)
    return np.frombuffer(bytearray(b"\xff") * (8 * n), np.int64)  # every byte of it is 255


def are_equal(values: Int64Array, value: int) -> bool:
    """Whether each of some values is this one."""
    return all(bool((values[rows] == value).all()) for rows in blocks(len(values)))


def difference(a: Int64Array, b: Int64Array) -> Int64Array:
    """Return ``a - b``."""
    out = np.empty(len(a), np.int64)
    for rows in blocks(len(a)):
        np.subtract(a[rows], b[rows], out=out[rows])
    return out


def offsets_of(length: Int64Array) -> Int64Array:
    """Return where each of n lengths begins and the last one ends: ``int64[n + 1]``."""
    out = np.empty(len(length) + 1, np.int64)
    out[0] = total = 0
    ends = out[1:]
    for rows in blocks(len(length)):
        end = ends[rows]
        np.cumsum(length[rows], out=end)
        end += total
        total = int(end[-1])
    return out


def largest(values: Int64Array) -> int:
    """Return the largest of some values."""
    return max(int(values[rows].max()) for rows in blocks(len(values)))


def first_bad(first: Int64Array, last: Int64Array) -> int | None:
    """Return the first row that begins before 0 or ends before it begins."""
    for rows in blocks(len(first)):
        bad = (first[rows] < 0) | (last[rows] < first[rows])
        if bad.any():
            return int(rows.start) + int(bad.argmax())
    return None
