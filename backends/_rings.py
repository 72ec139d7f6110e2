"""The rings of a process: one for each OS thread that drives reads, and what is in flight on each.

A ring belongs to the OS thread that made it, whatever Python thinks of that thread: Arrow's have a new
Python identity at every call. So rings are found by the kernel's thread id. The ring of a Python thread is
closed by that thread's end; those of other threads are closed when a new ring is made and their thread is
gone. There are `MOST_RINGS` at the most; a thread that comes too late reads without, until there is room.

Ops stay alive, and with them their buffers and files, until the ring has nothing in flight (I9).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import logging
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from headrace.backends._ring import LinuxKernel, Ring
from headrace.errors import TOO_MANY_OPEN
from headrace.threads import after_fork_in_child, is_python_thread, raise_if_of_a_handler
from headrace.types import NOT_YET

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from headrace.backends._ring import Kernel
    from headrace.types import Int64Array, Ops

T = TypeVar("T")

DEFAULT_DEPTH = 256
"""Entries of a submission queue; as many ops as a scheduler has in flight to one device."""

MOST_RINGS = 64
"""Each holds a descriptor and some tens of kilobytes of kernel memory."""

UNHEARD = 256
"""After a refusal the next so many askings of threads without a ring, some for each slice, are refused, too.

To look for room asks the kernel after each ring's thread. A ring that is closed is room for who asks next."""

GIL_ROWS = 256
"""So many reads are submitted in a call, a tenth of a millisecond or two, before others may run.

NumPy's own calls keep it up to 500 elements."""

_PASSING = TOO_MANY_OPEN | {errno.ENOMEM, errno.EAGAIN, errno.EINTR}
"""Errors of a moment."""

_ROW_BITS = 32
_ROW_MASK = np.uint64((1 << _ROW_BITS) - 1)
ERRNO_BASE = 1000
"""A failed read's `Ops.got` is its negative errno less this: `NOT_YET` looks like EPERM."""

_log = logging.getLogger("headrace")


@dataclass(slots=True)
class Columns:
    """What a ring needs of the ops of a request, a row each.

    Attributes
    ----------
    fd
        Descriptor of all, or ``int32[m]``.
    start, dest, length
        ``int64[m]``: offset in the file, where the bytes go, bytes.
    base
        Address that `dest` counts from.
    """

    fd: Any
    start: Int64Array
    dest: Int64Array
    length: Int64Array
    base: int


def fd_column(ops: Ops, fds: list[int]) -> Any:
    """Return the descriptor of all ops, or of each, from those of their files."""
    return fds[0] if len(fds) == 1 else np.array(fds, np.int32)[ops.file]


class ThreadRing:
    """A thread's ring and the ops that are on it.

    Parameters
    ----------
    ring
        Made by this thread.
    """

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.is_busy = False
        """Inside a method: a signal handler or finaliser that reads meanwhile must not use it."""
        self.is_broken = False
        self._ops: dict[int, Ops] = {}
        self._next = 0

    def submit(
        self,
        ops: Ops,
        columns: Columns,
        lo: int,
        hi: int,
        rw_flags: int = 0,
        *,
        keeps_gil: bool = True,
    ) -> None:
        """Submit rows, and deliver what is complete at once.

        Waits only where the queues are full. Whoever probes asks for nothing else of these rows, so the
        kernel has all of them on return, unless the ring was given up: those it could not submit are left
        as they were.
        """
        self._use(self._submit, ops, columns, lo, hi, rw_flags, keeps_gil=keeps_gil)

    def submit_series(self, ops: Ops, columns: Columns, lo: int, hi: int) -> None:
        """Submit long rows, `Ops.series_ops` of which are read one after the other: the GIL is released."""
        is_last = np.arange(1, hi - lo + 1) % ops.series_ops == 0
        self._use(self._submit, ops, columns, lo, hi, is_linked=~is_last, keeps_gil=False)

    def wait(self, ops: Ops, pending: Int64Array, most: int) -> Int64Array:
        """Wait until at most `most` of the pending rows are left; returns those."""
        left = self._use(self._wait, ops, pending, most)
        # A row that is not in flight will never be delivered: whoever asks reads it another way.
        return pending[:0] if left is None or not self.ring.in_flight else left

    def drain(self) -> None:
        """Wait until nothing is in flight."""
        self._use(self._drain)

    def _use(self, function: Callable[..., T], *args: Any, **options: Any) -> T | None:
        """Call what uses the ring, and give the ring up where the kernel does."""
        self.is_busy = True
        try:
            return function(*args, **options)
        except OSError as error:
            raise_if_of_a_handler(error)
            self.is_broken = True
            if self.ring.fd >= 0:  # else this is a forked child, and there is nothing wrong
                # Its text: who keeps records would keep what its frames hold.
                _log.warning("a ring is of no use any more, its reads are done with preadv: %s", str(error))
            return None
        finally:
            self.is_busy = False

    def _submit(
        self,
        ops: Ops,
        columns: Columns,
        lo: int,
        hi: int,
        rw_flags: int = 0,
        is_linked: npt.NDArray[np.bool_] | None = None,
        *,
        keeps_gil: bool,
    ) -> None:
        ring, fd = self.ring, columns.fd
        self._next = batch = (self._next + 1) & 0x7FFFFFFF
        first = lo
        while lo < hi:
            count = min(ring.room, hi - lo, GIL_ROWS)
            if not count or (is_linked is not None and lo > first and ring.in_flight):
                # The rest of a series that did not fit begins when what did is done (I1).
                ring.enter(1)
                self._deliver()
                continue
            rows = slice(lo, lo + count)
            # Each time: whatever completes in between may be the last that is in flight, and clear them.
            self._ops[batch] = ops
            ring.fill(
                fd if isinstance(fd, int) else fd[rows],
                columns.start[rows],
                columns.dest[rows] + columns.base,
                columns.length[rows],
                (batch << _ROW_BITS) + lo,
                rw_flags,
                None if is_linked is None else is_linked[lo - first : lo - first + count],
            )
            ring.enter(keep_gil=keeps_gil)
            self._deliver()
            while ring.unsubmitted:  # the kernel was busy, or took a part
                ring.enter()
                self._deliver()
            lo += count

    def _wait(self, ops: Ops, pending: Int64Array, most: int) -> Int64Array:
        while len(pending) > most and self.ring.in_flight:
            self.ring.enter(min(len(pending) - most, self.ring.in_flight))
            self._deliver()
            pending = pending[ops.got[pending] == NOT_YET]
        return pending

    def _drain(self) -> None:
        while self.ring.in_flight:
            self.ring.enter(self.ring.in_flight)
            self._deliver()

    def _deliver(self) -> None:
        """Note the results of what completed."""
        tokens, results = self.ring.completions()
        if not len(tokens):
            return
        got = results.astype(np.int64)
        if got.min() < 0:
            got[got < 0] -= ERRNO_BASE
        batches = tokens >> np.uint64(_ROW_BITS)
        rows = (tokens & _ROW_MASK).view(np.int64)
        first = int(batches[0])
        if (batches == batches[0]).all():
            self._note(first, rows, got)
        else:
            for batch in np.unique(batches).tolist():
                chosen = batches == batch
                self._note(batch, rows[chosen], got[chosen])
        self.ring.forget(len(tokens))
        if not self.ring.in_flight:
            self._ops.clear()

    def _note(self, batch: int, rows: Int64Array, got: Int64Array) -> None:
        ops = self._ops.get(batch)
        if ops is not None:  # else its completion was noted before, and an exception came in between
            # After an exception somebody else may have read the row since.
            length = ops.length[rows]
            ops.got[rows] = np.where(ops.got[rows] == length, length, got)

    def close(self) -> None:
        """Let go of the ring, which has nothing in flight then.

        When the interpreter ends, the variables of a daemon thread go on the main thread, which cannot wait
        for what is in flight on the other's ring: all that stays as it is.
        """
        if self.ring.pid == os.getpid() and not self.is_broken and self.ring.fd >= 0:
            if self.ring.in_flight and self.ring.tid != threading.get_native_id():
                self.keep_for_ever()
                return
            self.drain()
        self.ring.close()
        self._ops.clear()

    def keep_for_ever(self) -> None:
        """Have the ring and its ops never freed, at exit neither: the kernel may still write to them."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))


class Rings:
    """The rings of one depth.

    Parameters
    ----------
    depth
        Entries of each submission queue.
    kernel
        Who answers the system calls.
    """

    def __init__(self, depth: int, kernel: Kernel | None = None) -> None:
        self._depth = depth
        self._kernel = kernel
        self._rings: dict[int, ThreadRing] = {}
        self._lock = threading.RLock()
        self._ends = threading.local()
        self._unheard = 0

    @staticmethod
    def of(depth: int) -> Rings:
        """Return the process's rings of this depth."""
        return _all.setdefault(depth, Rings(depth))

    def __len__(self) -> int:
        return len(self._rings)

    def mine(self, *, is_made: bool = True) -> ThreadRing | None:
        """Return the calling thread's ring, or None: it is in use further up, or there can be none."""
        found = self._rings.get(threading.get_native_id())
        if found is None:
            return self._make() if is_made else None
        if found.is_broken and not found.is_busy:
            self._drop(found)
            return None
        return None if found.is_busy else found

    def _make(self) -> ThreadRing | None:
        if self._unheard > 0:
            self._unheard -= 1
            return None
        with self._lock:
            self.sweep()
            if len(self._rings) >= MOST_RINGS:
                self._unheard = UNHEARD
                return None
            try:
                made = ThreadRing(Ring(self._depth, self._kernel or LinuxKernel()))
            except OSError as error:
                raise_if_of_a_handler(error)
                self._unheard = UNHEARD
                _log.info("no ring for this thread, which reads with preadv: %s", error)
                return None
            # A signal handler that read meanwhile has made one for this thread.
            known = self._rings.setdefault(made.ring.tid, made)
            if known is not made:
                made.close()
                return known
        if is_python_thread():
            self._ends.ring = _AtEnd(self, made)
        return made

    def sweep(self) -> None:
        """Close the rings of threads that are gone, where the kernel's list of threads is there to see."""
        if not _is_listed(threading.get_native_id()):
            return
        for tid, ring in list(self._rings.items()):
            if not _is_listed(tid):
                # The kernel ended what the thread had submitted before the thread was gone.
                self._rings.pop(tid, None)
                ring.ring.close()

    def _drop(self, ring: ThreadRing) -> None:
        """Forget a ring that is of no use: nobody learns what becomes of that which the kernel took."""
        self._rings.pop(ring.ring.tid, None)
        self._unheard = 0
        if ring.ring.in_flight > ring.ring.unsubmitted:
            ring.keep_for_ever()
        else:
            ring.close()

    def close_one(self, ring: ThreadRing) -> None:
        """Close the calling thread's own ring."""
        if self._rings.get(ring.ring.tid) is ring:
            del self._rings[ring.ring.tid]
            ring.close()
            self._unheard = 0

    def forget(self) -> None:
        """Know of none: in a forked child, which must not touch the parent's rings, and has closed them."""
        self._rings = {}
        self._lock = threading.RLock()
        self._unheard = 0


class _AtEnd:
    """Closes the ring of a Python thread when the thread's own variables go."""

    def __init__(self, rings: Rings, ring: ThreadRing) -> None:
        self._rings = rings
        self._ring = ring

    def __del__(self) -> None:
        if hasattr(self, "_ring"):  # else an interrupt came while it was made
            self._rings.close_one(self._ring)


_all: dict[int, Rings] = {}


@functools.cache
def probe(kernel: Kernel | None = None) -> str | None:
    """Say why there is no usable io_uring here, or None: a ring is made, and a page of a file is read.

    Raises
    ------
    OSError
        Just now there is not enough of something, which says nothing of the machine: ask again (this is
        not remembered).
    """
    if sys.platform != "linux" or sys.maxsize < 1 << 32:
        return "io_uring is of 64-bit Linux"
    process = os.getpid()
    try:
        with contextlib.closing(Ring(8, kernel or LinuxKernel())) as ring:
            answer = _read_a_page(ring)
    except (OSError, AttributeError) as error:
        raise_if_of_a_handler(error)  # nothing of it is remembered
        is_passing = isinstance(error, OSError) and error.errno in _PASSING
        if is_passing and process == os.getpid():
            raise
        answer = f"io_uring: {error}"
    # Of the parent's ring a child that a signal handler forked learnt nothing.
    return answer if process == os.getpid() else probe.__wrapped__(kernel)


def _read_a_page(ring: Ring) -> str | None:
    content = b"headrace" * 512
    out = np.zeros(len(content), np.uint8)
    # No folder need be there that can be written to.
    with os.fdopen(os.memfd_create("headrace"), "w+b", buffering=0) as file:
        file.write(content)
        zero, length = np.zeros(1, np.int64), np.array([len(content)])
        ring.fill(file.fileno(), zero, np.array([out.ctypes.data]), length, 7)
        tokens, results = _the_last_of(ring)
    if tokens.tolist() != [7] or results.tolist() != [len(content)]:
        code = -int(results[0]) if len(results) and results[0] < 0 else errno.EIO
        return f"io_uring: a read failed: {os.strerror(code)}"
    return None if out.tobytes() == content else "io_uring: a read returned other bytes"


def _is_listed(tid: int) -> bool:
    return Path(f"/proc/self/task/{tid}").exists()


def _the_last_of(ring: Ring) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]]:
    """Complete what is in flight; returns what came last."""
    tokens, results = ring.completions()
    while ring.in_flight:
        ring.enter(1)
        tokens, results = ring.completions()
        ring.forget(len(tokens))
    return tokens, results


@after_fork_in_child
def _forget_all() -> None:
    for rings in _all.values():
        rings.forget()
