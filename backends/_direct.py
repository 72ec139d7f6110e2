"""``O_DIRECT``: reads around the page cache, whatever offsets, lengths and addresses are asked for.

The kernel wants all three aligned. An op that is not reads the whole blocks around it into a bounce buffer,
and its own bytes are copied out when it is done; one that is, as fixed-size blocks often are, goes straight
to its place. Alignment is to 4096 bytes: enough for every device that is common, and a page.

A file whose filesystem refuses ``O_DIRECT`` is read through the page cache, by the same ring as the files
beside it in a request; one that refuses no sooner than it is read, from the next request on. What a direct
read leaves over is read plainly: its error or its short end are those of the plain read.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.backends._linux import BLOCK
from headrace.backends._rings import ERRNO_BASE, Columns, fd_column
from headrace.threads import raise_if_of_a_handler
from headrace.types import NOT_YET

if TYPE_CHECKING:
    from headrace.types import Int64Array, Ops

REFUSED = -errno.EINVAL - ERRNO_BASE
"""`Ops.got` of a direct read which the filesystem cannot do, or not with blocks of this size."""

# `ctypes.memmove` gives the GIL up for each call; most of these copies are shorter than that.
_memmove = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)(
    ctypes._memmove_addr  # type: ignore[attr-defined]  # noqa: SLF001 - the function behind `ctypes.memmove`
)


@dataclass(slots=True)
class DirectColumns(Columns):
    """The blocks around each op, and the bounce buffers of what is under way.

    Attributes
    ----------
    head
        ``int64[m]``: bytes of the first block that are before the op's own.
    is_bounced
        ``bool[m]``: rows that are not aligned.
    own_dest
        ``int64[m]``: addresses where the ops' own bytes go; `dest` is where their blocks do.
    is_raw
        ``bool[m]``: rows whose `got` counts bytes of whole blocks, which are not taken yet.
    bounces
        Of the slices under way, by their first row: the row behind the last, and the buffer, or None where
        all of the slice is aligned.
    is_kept
        Whether a ring was lost with some of this. That may come still, so no buffer is let go of.
    """

    head: Int64Array
    is_bounced: np.ndarray[Any, Any]
    own_dest: Int64Array
    is_raw: np.ndarray[Any, Any]
    bounces: dict[int, tuple[int, mmap.mmap | None]] = field(default_factory=dict)
    is_kept: bool = False

    def place(self, lo: int, hi: int) -> bool:
        """Make room for the rows ``[lo, hi)`` that are not aligned; False where there is none."""
        bounce = None
        rows = lo + np.flatnonzero(self.is_bounced[lo:hi])
        if len(rows):
            ends = np.cumsum(self.length[rows])
            try:
                bounce = mmap.mmap(-1, int(ends[-1]))  # a mapping begins with a page
            except OSError as error:
                raise_if_of_a_handler(error)
                return False
            address = ctypes.addressof(ctypes.c_char.from_buffer(bounce))
            self.dest[rows] = address + (ends - self.length[rows])
        self.is_raw[lo:hi] = True  # first: another thread may look what it can let go of
        self.bounces[lo] = hi, bounce
        return True

    def take(self, ops: Ops, rows: Int64Array) -> None:
        """Bring what was read of `rows` where it was asked for, and say in `got` how much that is."""
        rows = rows[self.is_raw[rows]]
        raw = ops.got[rows]
        self.is_kept |= bool((raw == NOT_YET).any())  # nobody told of those, which no ring has any more
        for file in set(ops.file[rows[raw == REFUSED]].tolist()):
            ops.sources[file].direct_fd = -1  # it stays open: of this request more may be under way
        got = np.where(raw < 0, raw, np.clip(raw - self.head[rows], 0, ops.length[rows]))
        for row in np.flatnonzero(self.is_bounced[rows] & (got > 0)).tolist():
            place = rows[row]
            _memmove(int(self.own_dest[place]), int(self.dest[place] + self.head[place]), int(got[row]))
        ops.got[rows] = got
        self.is_raw[rows] = False  # last: what was cut before is whole nowhere

    def forget(self, rows: Int64Array) -> None:
        """Let go of the bounce buffers of those slices with `rows` of which nothing is under way any more."""
        first = np.sort(np.array(list(self.bounces), np.int64))
        if self.is_kept or not len(first):
            return
        for lo in np.unique(first[np.searchsorted(first, rows, "right") - 1]).tolist():
            hi, _ = self.bounces.get(lo, (lo, None))  # another thread's slice may be gone by now
            if not self.is_raw[lo:hi].any():
                self.bounces.pop(lo, None)


def direct_columns(ops: Ops) -> DirectColumns | None:
    """Return the columns of ops some of whose files can be read directly, else None."""
    direct = [-1 if source is None else source.direct_fd for source in ops.sources]
    if max(direct) < 0:
        return None
    plain = [-1 if source is None else source.fd for source in ops.sources]
    fds = [two[0] if two[0] >= 0 else two[1] for two in zip(direct, plain, strict=True)]
    is_plain = np.array(direct)[ops.file] < 0
    start = np.where(is_plain, ops.start, ops.start & -BLOCK)
    end = ops.start + ops.length
    length = np.where(is_plain, end, (end + BLOCK - 1) & -BLOCK) - start
    head = ops.start - start
    own_dest = ops.dest + ops.buffer.ctypes.data
    is_bounced = ~is_plain & ((head != 0) | (length != ops.length) | (own_dest % BLOCK != 0))
    is_raw = np.zeros(len(ops), np.bool_)
    return DirectColumns(
        fd_column(ops, fds), start, own_dest.copy(), length, 0, head, is_bounced, own_dest, is_raw
    )
