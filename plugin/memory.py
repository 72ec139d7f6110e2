"""Memory that results are read into.

* Large results are anonymous mappings: nothing of them is resident before it is read into, so queued reads
  cost nothing, and all of it goes back with the last reference. An allocator would keep what is freed, and a
  consumer slower than the storage would hold more than its byte budget (I2).
* Their pages are huge where the kernel has such: faulting in 4 KiB at a time costs a third of a hot read.
* Small ones, and what Arrow's own scans read, come from Arrow's pool, which reuses its pages: a scan of two
  columns took 5% longer with mappings.

Where there is no room for any of them, what is kept for later is given up first.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from headrace.threads import raise_if_of_a_handler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from headrace.types import UInt8Array

T = TypeVar("T")

MAPPED_BYTES = 1 << 20
"""Buffers from this size on are mappings of their own."""

_PAGE_BYTES = mmap.PAGESIZE
_ADVICE_HUGE = getattr(mmap, "MADV_HUGEPAGE", None)
_ADVICE_COLLAPSE = 25
"""``MADV_COLLAPSE`` of Linux 6.1: an older kernel says EINVAL."""

_COLLAPSED_BYTES = 64 << 20
"""At once: some milliseconds with the GIL kept."""


on_no_room: list[Callable[[], bool]] = []
"""Each lets go of memory that is kept for later, and says whether there was any."""


def _make_room() -> bool:
    return sum(give_up() for give_up in on_no_room) > 0


def _made(make: Callable[..., T], *args: Any) -> T:
    """Call what makes memory, and once more where there may be room now and was none before."""
    try:
        return make(*args)
    except MemoryError as error:
        raise_if_of_a_handler(error)
        if not _make_room():
            raise
    return make(*args)


def pooled_buffer(nbytes: int) -> UInt8Array:
    """Return memory from Arrow's pool, contents undefined: for scans, which free and ask by turns."""
    if not nbytes:
        return np.empty(0, np.uint8)
    return np.frombuffer(_made(pa.allocate_buffer, nbytes), np.uint8)


def result_buffer(nbytes: int) -> UInt8Array:
    """Return memory for a result that may wait for its consumer, contents undefined."""
    return np.frombuffer(mapping(nbytes), np.uint8) if nbytes >= MAPPED_BYTES else pooled_buffer(nbytes)


_MAP_OPTIONS = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def mapping(nbytes: int) -> mmap.mmap:
    """Return an anonymous mapping with huge pages, where the kernel has such.

    Raises
    ------
    MemoryError
        There is no room for it. `mmap` says so by an OSError, which would be taken for the storage's.
    """
    mapped = _made(_mapped, nbytes)
    if _ADVICE_HUGE is not None:
        try:
            mapped.madvise(_ADVICE_HUGE)
        except OSError as error:
            raise_if_of_a_handler(error)
            # A kernel without them.
    return mapped


def _mapped(nbytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, nbytes, **_MAP_OPTIONS)
    except OSError as error:
        raise_if_of_a_handler(error)
        if error.errno != errno.ENOMEM:
            raise
        msg = f"no room for a mapping of {nbytes} bytes"
        raise MemoryError(msg) from None


def writable_bytes(length: int) -> tuple[bytes, UInt8Array]:
    """Return new `bytes`, not yet shown to anybody, and an array to fill them through.

    What fsspec's contract asks for are `bytes`; reading into them saves the copy that costs as much as a
    hot read. Elsewhere than in CPython the bytes cannot be reached before they exist: see the caller.
    """
    data: bytes = _made(_new_bytes, None, length)
    begin = _place_of(data)
    _advise_long(begin, length)
    return data, np.asarray(_Span(begin, length, [data]))


def scattered_bytes(lengths: list[int]) -> tuple[list[bytes], UInt8Array, list[int]]:
    """Return new `bytes` of these lengths, one array to fill them through, and where in it each begins.

    The array spans all that lies between the first and the last of them, whoever's it is: only
    ``[begin, begin + length)`` of each may be touched, and the whole never copied.
    """
    pieces = _made(_all_new, lengths)
    begins = [_place_of(piece) for piece in pieces]
    for begin, length in zip(begins, lengths, strict=True):
        _advise_long(begin, length)
    first = min(begins)
    end = max(begin + length for begin, length in zip(begins, lengths, strict=True))
    return pieces, np.asarray(_Span(first, end - first, pieces)), [begin - first for begin in begins]


def _all_new(lengths: list[int]) -> list[bytes]:
    return [_new_bytes(None, length) for length in lengths]


def _advise_long(begin: int, nbytes: int) -> None:
    """Ask for huge pages where there is room for one; shorter results are for `make_pages`."""
    if _HUGE_PAGE_BYTES and nbytes >= _HUGE_PAGE_BYTES:
        _advise(begin, begin + nbytes, _PAGE_BYTES, _ADVICE_HUGE)


def make_pages(pieces: list[bytes]) -> None:
    """Have huge pages made for new `bytes` that are too short for advice, at once.

    For them advice comes too late: a page of each is there already, as its length stands in it. Faulting in
    4 KiB at a time takes five times as long as this and a copy together.
    """
    if not _HUGE_PAGE_BYTES or max(map(len, pieces)) >= _HUGE_PAGE_BYTES:
        return
    extents = sorted((_place_of(piece), _place_of(piece) + len(piece)) for piece in pieces)
    for begin, end in _runs(extents):
        if end - begin >= 2 * _HUGE_PAGE_BYTES and not _collapse(begin, end):
            return


def _place_of(piece: bytes) -> int:
    return id(piece) + _BYTES_HEADER


def _runs(extents: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Join extents, in order of address, that lie next to each other but for the allocator's own words."""
    begin, end = extents[0]
    for next_begin, next_end in extents[1:]:
        if next_begin - end > 2 * _PAGE_BYTES:
            yield begin, end
            begin = next_begin
        end = next_end
    yield begin, end


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
    if _ADVICE_HUGE is None:
        return None
    with contextlib.suppress(OSError, AttributeError):
        found = ctypes.PyDLL(None).madvise  # keeps the GIL: a turn of it costs more than a step of this
        found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        return found
    return None


def _find_huge_page() -> int:
    """Return the bytes of a huge page; 0 where there are none, or the administrator wants none."""
    folder = Path("/sys/kernel/mm/transparent_hugepage")
    try:
        if _madvise is None or "[never]" in (folder / "enabled").read_text():
            return 0
        return int((folder / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0


_madvise = _find_madvise()
_HUGE_PAGE_BYTES = _find_huge_page()


def _collapse(begin: int, end: int) -> bool:
    """Make huge pages of what lies inside; False where the kernel does not."""
    return all(
        _advise(at, min(at + _COLLAPSED_BYTES + _HUGE_PAGE_BYTES, end), _HUGE_PAGE_BYTES, _ADVICE_COLLAPSE)
        for at in range(begin, end, _COLLAPSED_BYTES)
    )


def _advise(begin: int, end: int, page_bytes: int, advice: int | None) -> bool:
    """Advise the kernel about the whole pages inside; advice that is not taken is no error."""
    if _madvise is None:
        return False
    first, last = -(-begin // page_bytes) * page_bytes, end // page_bytes * page_bytes
    return last <= first or _madvise(first, last - first, advice) == 0
