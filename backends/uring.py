"""Local files through io_uring: scattered reads, many under way at once, a system call for a batch.

Which reads go where:

* Batches of short ops go through the calling thread's ring (`headrace.backends._rings`). What the page cache
  holds is complete when the submission returns; the rest is on its way.
* One short read which the page cache holds is a ``preadv2`` with the GIL kept, as in the `local` backend: a
  ring has nothing to add to a single call.
* Long ops are probed and read as in the `local` backend: for them a ring is no faster, and copies of that
  length must not keep the GIL. Those of a *series* are linked entries of a ring: the kernel starts each when
  the one before it is done, without a turn of Python.
* With ``uring_direct`` all that is scheduled goes through the ring and around the page cache
  (`headrace.backends._direct`), but for the files whose filesystem refuses. Single small reads, and a few of
  them in a call, stay as they are.

A read that a ring could not do (an error, fewer bytes than asked, the kernel out of room) is done again by
``preadv``, which reads the rest or raises the error that Python users know.

The ring is the thread's own, so rows are finished by the thread that started them (`is_bound`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from typing_extensions import override

from headrace.backends import _linux as linux
from headrace.backends._direct import DirectColumns, direct_columns
from headrace.backends._files import FileBackend, are_cached, is_small, prepared
from headrace.backends._rings import DEFAULT_DEPTH, Columns, Rings, fd_column, probe
from headrace.columns import ascending
from headrace.types import NOT_YET

if TYPE_CHECKING:
    import numpy.typing as npt

    from headrace.backends._files import LocalSource
    from headrace.backends.abc import Defaults
    from headrace.types import Int64Array, Ops

FEW = 16
"""Fewer ops than this are quicker one by one: filling and reaping a ring costs as much as 12 to 18 calls of
``preadv2`` that hit."""


SERIES_OPS = 16
"""Reads of a series: some milliseconds of a disk, which a more urgent long read may have to wait."""


class UringBackend(FileBackend):
    """Reads local files with io_uring."""

    name: ClassVar[str] = "uring"
    rank: ClassVar[int] = 110
    defaults: ClassVar[Defaults] = replace(FileBackend.defaults, series_op_bytes=128 << 10)
    options: ClassVar[frozenset[str]] = frozenset({"uring_queue_depth", "uring_direct"})

    def __init__(self, target: Any) -> None:
        super().__init__(target)
        self._rings = Rings.of(DEFAULT_DEPTH)
        self._is_direct = False
        self.series_ops = SERIES_OPS

    @override
    def configure(self, **options: Any) -> None:
        """Take the depth of each thread's submission queue, and whether to read around the page cache."""
        self._rings = Rings.of(options["uring_queue_depth"] or DEFAULT_DEPTH)
        self._is_direct = options["uring_direct"]
        self.fills_plainly = self.probes_rows = not self._is_direct
        # What is not aligned is short at the end of its file, which would end a series.
        self.series_ops = 1 if self._is_direct else SERIES_OPS

    @classmethod
    @override
    def unavailable(cls) -> str | None:
        """Say why this machine has no usable io_uring."""
        return probe()

    @override
    def make_source(self, path: str) -> LocalSource:
        """Open it a second time, for direct reads, where those are wanted."""
        source = super().make_source(path)
        if self._is_direct:
            source.open_directly()
        return source

    @override
    def is_bound(self, ops: Ops) -> bool:
        """Whether the ops are on the ring of the thread that starts them."""
        return self._columns(ops) is not None

    @override
    def start(self, ops: Ops, lo: int, hi: int) -> Int64Array:
        """Submit the rows; what the page cache held is complete."""
        columns = self._columns(ops)
        ring = None if columns is None else self._rings.mine()
        if ops.series_ops > 1 and not are_cached(ops, lo, hi):
            if columns is None or ring is None:
                return ascending(lo, hi)  # a probe would set all of them going at once
            ring.submit_series(ops, columns, lo, hi)
            return lo + np.flatnonzero(ops.got[lo:hi] != ops.length[lo:hi])
        if columns is None or ring is None or ops.series_ops > 1:
            return super().start(ops, lo, hi)
        if isinstance(columns, DirectColumns):
            if not columns.place(lo, hi):
                return super().start(ops, lo, hi)
            # Of a long read the kernel has a thousand pages to hold, or to copy where its file refuses.
            ring.submit(ops, columns, lo, hi, keeps_gil=is_small(ops))
            return ascending(lo, hi)
        ring.submit(ops, columns, lo, hi)
        return lo + np.flatnonzero(ops.got[lo:hi] != ops.length[lo:hi])

    @override
    def copy(self, source: LocalSource, start: int, out: memoryview) -> bool:
        """Copy a long range out of the page cache."""
        return not self._is_direct and super().copy(source, start, out)

    @override
    def probe_rows(self, ops: Ops, lo: int, hi: int, *, keeps_gil: bool = True) -> bool:
        """Copy short rows out of the page cache."""
        if self._is_direct:
            return False  # a probe that misses would have the page cache read them too
        ring = self._rings.mine() if len(ops) >= FEW else None
        if ring is None:
            return super().probe_rows(ops, lo, hi)
        found = prepared(ops)
        columns: Columns = found.columns or plain_columns(ops)
        found.columns = columns
        ring.submit(ops, columns, lo, hi, linux.RWF_NOWAIT, keeps_gil=keeps_gil)
        return bool((ops.got[lo:hi] == ops.length[lo:hi]).all())

    @override
    def finish_some(self, ops: Ops, rows: Int64Array, least: int) -> npt.NDArray[np.bool_]:
        """Wait until at least so many of the rows are done, whichever."""
        columns = self._columns(ops)
        ring = None if columns is None else self._rings.mine()
        if ring is None:
            is_done = ascending(0, len(rows)) < least
        else:
            pending = ring.wait(ops, rows[ops.got[rows] == NOT_YET], len(rows) - least)
            # What is neither done nor under way was lost, and is read another way.
            is_done = ops.got[rows] != NOT_YET if len(pending) else np.ones(len(rows), np.bool_)
        done = rows[is_done]
        if isinstance(columns, DirectColumns):
            columns.take(ops, done)
            columns.forget(done)
        again = done[ops.got[done] != ops.length[done]]
        if len(again):
            super().finish(ops, again)
        return is_done

    @override
    def are_whole(self, ops: Ops, rows: Int64Array) -> npt.NDArray[np.bool_]:
        """Say which rows have all their bytes where they belong: not those that are in a bounce buffer."""
        columns = self._columns(ops)
        whole = super().are_whole(ops, rows)
        return whole & ~columns.is_raw[rows] if isinstance(columns, DirectColumns) else whole

    @override
    def finish(self, ops: Ops, rows: Int64Array) -> None:
        """Wait for all of the rows."""
        self.finish_some(ops, rows, len(rows))

    @override
    def drain(self) -> None:
        """Wait for all that this thread's ring has under way, whoever wanted it."""
        ring = self._rings.mine(is_made=False)
        if ring is not None:
            ring.drain()

    def _columns(self, ops: Ops) -> Columns | None:
        """Return what a ring needs of `ops`, or None where a ring has nothing to add."""
        columns = None if ops.state is None else ops.state.columns
        if columns is None:
            # Without a lock, which a signal handler would find held below it by what it waits for: of those
            # that perform a request one comes first, its consumer (`Job.hands`) or the loop thread.
            made = self._make_columns(ops) or _NONE
            columns = prepared(ops).columns = made
        return None if columns is _NONE else columns

    def _make_columns(self, ops: Ops) -> Columns | None:
        direct = direct_columns(ops) if self._is_direct else None
        if direct is None and (ops.series_ops > 1 or (len(ops) >= FEW and is_small(ops))):
            return plain_columns(ops)
        return direct


def plain_columns(ops: Ops) -> Columns:
    """Return what a ring needs to read through the page cache."""
    fds = [-1 if source is None else source.fd for source in ops.sources]
    return Columns(fd_column(ops, fds), ops.start, ops.dest, ops.length, ops.buffer.ctypes.data)


_NONE: Any = object()
"""Found out already that there are no columns."""
