"""Copy many extents of a buffer together, in the caller's order, with NumPy calls alone.

For results whose ranges do not lie one after another in what was read (gaps, overlaps, duplicates). Extents
of one length are one indexed assignment of void items; mixed lengths are copied by their binary digits.

Pure functions: no state, no I/O, any thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from headrace.types import Int64Array, UInt8Array

_GATHER_BLOCK_BYTES = 1 << 20
# Copying 64 KiB takes far longer than one step of a Python loop.
_SLICE_COPY_BITS = 16


def check_extents(size_bytes: int, dest: Int64Array, length: Int64Array) -> None:
    """Raise ValueError, naming the first, unless every extent lies inside a buffer.

    Parameters
    ----------
    size_bytes : int
        Of the buffer.
    dest, length : int64 array (n,)
        Extents ``[dest, dest + length)`` in bytes.
    """
    if dest.shape != length.shape or dest.ndim != 1:
        raise ValueError(f"dest and length differ in shape: {dest.shape} and {length.shape}")
    bad = (length < 0) | (dest < 0) | (dest > size_bytes - length)
    if bad.any():
        i = int(bad.argmax())
        raise ValueError(
            f"range {i} ({length[i]} bytes at {dest[i]}) is outside a buffer of {size_bytes} bytes"
        )


def gather(buffer: UInt8Array, dest: Int64Array, length: Int64Array) -> tuple[UInt8Array, Int64Array]:
    """Copy extents of a buffer one after another.

    Parameters
    ----------
    buffer : uint8 array
        Contiguous.
    dest, length : int64 array (n,)
        Extents in bytes; any order, overlaps and empty ones are fine.

    Returns
    -------
    packed : uint8 array
        The bytes, in the order of the extents.
    offsets : int64 array (n + 1,)
        Extent i is ``packed[offsets[i]:offsets[i + 1]]``.

    Raises
    ------
    ValueError
        An extent is outside the buffer.
    """
    check_extents(buffer.size, dest, length)
    offsets = np.zeros(length.size + 1, np.int64)
    np.cumsum(length, out=offsets[1:])
    packed = np.empty(int(offsets[-1]), np.uint8)
    if not packed.size:
        return packed, offsets
    if length[0] >> _SLICE_COPY_BITS == 0 and (length == length[0]).all():
        _copy_pieces(buffer, packed, dest, offsets[:-1], int(length[0]))
    else:
        _copy_mixed(buffer, packed, dest, offsets)
    return packed, offsets


def void_view(buffer: UInt8Array, size_bytes: int) -> npt.NDArray[np.void]:
    """View a buffer as items of `size_bytes` which begin at every byte of it.

    Indexing the view with an array of offsets copies that many extents in one call.
    """
    count = buffer.size - size_bytes + 1
    # Of a pair NumPy asks its Python whether it is of ctypes, and loses what a signal's handler raises there.
    return np.ndarray((count,), np.dtype(f"V{size_bytes}"), buffer, 0, (1,))


def _copy_mixed(source: UInt8Array, out: UInt8Array, at: Int64Array, offsets: Int64Array) -> None:
    """Copy extents of different lengths, by the binary digits of the lengths.

    An extent of 5 bytes is one of 4 and one of 1; all extents that hold a piece of 4 are copied
    by one indexed assignment. What is left of long extents after the small pieces is copied by
    plain slices, where the copy dwarfs the step of the loop.
    """
    at, to, left = at.copy(), offsets[:-1].copy(), np.diff(offsets)
    for bit in range(_SLICE_COPY_BITS):
        has_piece = np.flatnonzero(left & (1 << bit))
        _copy_pieces(source, out, at[has_piece], to[has_piece], 1 << bit)
        at[has_piece] += 1 << bit
        to[has_piece] += 1 << bit
        left[has_piece] -= 1 << bit
    for i in np.flatnonzero(left).tolist():
        out[to[i] : to[i] + left[i]] = source[at[i] : at[i] + left[i]]


def _copy_pieces(
    source: UInt8Array, out: UInt8Array, at: Int64Array, to: Int64Array, size_bytes: int
) -> None:
    if not at.size:
        return
    source_items, out_items = void_view(source, size_bytes), void_view(out, size_bytes)
    # In blocks: the indexed right-hand side is a temporary that should stay in the cache.
    step = _GATHER_BLOCK_BYTES // size_bytes
    for i in range(0, at.size, step):
        out_items[to[i : i + step]] = source_items[at[i : i + step]]
