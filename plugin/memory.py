"""Memory that results are read into.

* Large results are anonymous mappings: nothing of them is resident before it is read into, so queued reads
  cost nothing, and all of it goes back with the last reference. An allocator would keep what is freed, and a
  consumer slower than the storage would hold more than its byte budget (I2).
* Their pages are huge where the kernel has such: faulting in 4 KiB at a time costs a third of a hot read.
* Small ones, and what Arrow's own scans read, come from Arrow's pool, which reuses its pages: a scan of two
  columns took 5% longer with mappings.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from headrace.types import UInt8Array

MAPPED_BYTES = 1 << 20
"""Buffers from this size on are mappings of their own."""

_PAGE_BYTES = mmap.PAGESIZE
_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)


def pooled_buffer(nbytes: int) -> UInt8Array:
    """Return memory from Arrow's pool, contents undefined: for scans, which free and ask by turns."""
    return np.frombuffer(pa.allocate_buffer(nbytes), np.uint8) if nbytes else np.empty(0, np.uint8)


def result_buffer(nbytes: int) -> UInt8Array:
    """Return memory for a result that may wait for its consumer, contents undefined."""
    return np.frombuffer(mapping(nbytes), np.uint8) if nbytes >= MAPPED_BYTES else pooled_buffer(nbytes)


def mapping(nbytes: int) -> mmap.mmap:
    """Return an anonymous mapping with huge pages, where the kernel has such."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, nbytes)
    mapped = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if _HUGE is not None:
        with contextlib.suppress(OSError):  # a kernel without them
            mapped.madvise(_HUGE)
    return mapped


def writable_bytes(length: int) -> tuple[bytes, UInt8Array]:
    """Return new `bytes`, not yet shown to anybody, and an array to fill them through.

    What fsspec's contract asks for are `bytes`; reading into them saves the copy that costs as much as a
    hot read. Elsewhere than in CPython the bytes cannot be reached before they exist: see the caller.
    """
    (data,), memory, _ = scattered_bytes([length])
    return data, memory


def scattered_bytes(lengths: list[int]) -> tuple[list[bytes], UInt8Array, list[int]]:
    """Return new `bytes` of these lengths, one array to fill them through, and where in it each begins.

    The array spans all that lies between the first and the last of them, whoever's it is: only
    ``[begin, begin + length)`` of each may be touched, and the whole never copied.
    """
    pieces = [_new_bytes(None, length) for length in lengths]
    addresses = [id(piece) + _BYTES_HEADER for piece in pieces]
    for address, length in zip(addresses, lengths, strict=True):
        if length >= MAPPED_BYTES:
            _advise_huge(address, length)
    first = min(addresses)
    end = max(address + length for address, length in zip(addresses, lengths, strict=True))
    return pieces, np.asarray(_Span(first, end - first, pieces)), [address - first for address in addresses]


class _Span:
    """Memory at an address, for NumPy to make an array of; with the array lives its owner (I9)."""

    def __init__(self, address: int, nbytes: int, owner: object) -> None:
        self.__array_interface__ = {
            "version": 3,
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
        }
        self.owner = owner


_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype = ctypes.py_object
_new_bytes.argtypes = [ctypes.c_char_p, ctypes.c_ssize_t]
_BYTES_HEADER = bytes.__basicsize__ - 1
"""``offsetof(PyBytesObject, ob_sval)``: the last byte of the basic size is the terminating zero."""


def _find_madvise() -> Any:
    if _HUGE is None:
        return None
    with contextlib.suppress(OSError, AttributeError):
        found = ctypes.PyDLL(None).madvise  # keeps the GIL: the call only marks the mapping
        found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        return found
    return None


_madvise = _find_madvise()


def _advise_huge(address: int, length: int) -> None:
    """Ask for huge pages where whole pages lie inside; advice that is not taken is no error."""
    if _madvise is None:
        return
    first = -(-address // _PAGE_BYTES) * _PAGE_BYTES
    last = (address + length) // _PAGE_BYTES * _PAGE_BYTES
    _madvise(first, last - first, _HUGE)
