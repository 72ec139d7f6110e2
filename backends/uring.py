"""Local files through io_uring: scattered reads, many under way at once, a system call for a batch.

Which reads go where:

* Batches of short ops go through the calling thread's ring (`headrace.backends._rings`). What the page cache
  holds is complete when the submission returns; the rest is on its way.
* One short read which the page cache holds is a ``preadv2`` with the GIL kept, as in the `local` backend: a
  ring has nothing to add to a single call.
* Long ops are probed and read as in the `local` backend: for them a ring is no faster, and copies of that
  length must not keep the GIL.

A read that a ring could not do (an error, fewer bytes than asked, the kernel out of room) is done again by
``preadv``, which reads the rest or raises the error that Python users know.

The ring is the thread's own, so rows are finished by the thread that started them (`is_bound`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from typing_extensions import override

from headrace.backends import _linux as linux
from headrace.backends._files import FileBackend, Prepared, prepare
from headrace.backends._rings import DEFAULT_DEPTH, Rings, probe
from headrace.types import NOT_YET

if TYPE_CHECKING:
    from headrace.types import Int64Array, Ops

FEW = 8
"""Fewer ops than this are quicker one by one."""


class UringBackend(FileBackend):
    """Reads local files with io_uring."""

    name: ClassVar[str] = "uring"
    rank: ClassVar[int] = 110
    options: ClassVar[frozenset[str]] = frozenset({"uring_queue_depth"})

    def __init__(self, target: Any) -> None:
        super().__init__(target)
        self._rings = Rings.of(DEFAULT_DEPTH)

    @override
    def configure(self, **options: Any) -> None:
        """Take ``uring_queue_depth``: entries of each thread's submission queue."""
        self._rings = Rings.of(options["uring_queue_depth"] or DEFAULT_DEPTH)

    @classmethod
    @override
    def unavailable(cls) -> str | None:
        """Say why this machine has no usable io_uring."""
        return probe()

    @override
    def is_bound(self, ops: Ops) -> bool:
        """Short ops are on the ring of the thread that started them."""
        return len(ops) >= FEW and (ops.state or prepare(ops)).is_small

    @override
    def start(self, ops: Ops, lo: int, hi: int) -> Int64Array:
        """Submit the rows; what the page cache held is complete."""
        ring = self._rings.mine() if self.is_bound(ops) else None
        if ring is None:
            return super().start(ops, lo, hi)
        ring.submit(ops, _prepared(ops), lo, hi)
        return lo + np.flatnonzero(ops.got[lo:hi] != ops.length[lo:hi])

    @override
    def probe_rows(self, ops: Ops, lo: int, hi: int) -> bool:
        """Copy short rows out of the page cache."""
        ring = self._rings.mine() if hi - lo >= FEW else None
        if ring is None:
            return super().probe_rows(ops, lo, hi)
        ring.submit(ops, _prepared(ops), lo, hi, linux.RWF_NOWAIT)
        return bool((ops.got[lo:hi] == ops.length[lo:hi]).all())

    @override
    def finish_some(self, ops: Ops, rows: Int64Array, least: int) -> tuple[Int64Array, Int64Array]:
        """Wait until at least so many of the rows are done."""
        ring = self._rings.mine() if self.is_bound(ops) else None
        if ring is None:
            super().finish(ops, rows[:least])
            return rows[:least], rows[least:]
        pending = ring.wait(ops, rows[ops.got[rows] == NOT_YET], len(rows) - least)
        done = rows if not len(pending) else rows[ops.got[rows] != NOT_YET]
        again = done[ops.got[done] != ops.length[done]]
        if len(again):
            super().finish(ops, again)
        return done, pending

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


def _prepared(ops: Ops) -> Prepared:
    """Return what the ring needs of `ops`."""
    prepared: Prepared = ops.state or prepare(ops)
    if prepared.fd is None:
        fds = [-1 if source is None else source.fd for source in ops.sources]
        prepared.fd = fds[0] if len(fds) == 1 else np.array(fds, np.int32)[ops.file]
    return prepared
