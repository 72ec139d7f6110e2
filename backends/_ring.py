"""One io_uring ring: set up, probed, filled, submitted, reaped and closed from Python.

A ring belongs to one OS thread. It is set up with ``IORING_SETUP_SINGLE_ISSUER`` and
``IORING_SETUP_DEFER_TASKRUN`` (Linux 6.1): the kernel reads the submission queue only inside that
thread's own io_uring_enter(2), and completions appear only there. So the two sides never run at the same
time, the system call orders what they write, and no memory barrier is missing, on any processor. Where the
kernel refuses these flags there is no ring.

What is in flight is read from the queues' own indices (`Ring.in_flight`), never counted beside them: an
exception between any two lines leaves nothing uncounted. The submission queue's tail is stored after
its entries are whole, the completion queue's head after the entries were copied out.

The queues are mapped through C and not by `mmap.mmap`, which keeps a descriptor of its own: a forked child
that lets go of a ring must close the last one, but may not unmap what it never had.

A signal handler may fork at any line, and the child go on from there. So a ring is known from before there
is anything of it, and closed in every child. One that was being made then is made for nobody.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections import deque
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from headrace.backends import _uring_abi as abi
from headrace.threads import after_fork_in_child, forget_with

if TYPE_CHECKING:
    import weakref

    import numpy.typing as npt

    from headrace.types import Int64Array, UInt8Array

_FLAGS = abi.SETUP_CQSIZE | abi.SETUP_SUBMIT_ALL | abi.SETUP_SINGLE_ISSUER | abi.SETUP_DEFER_TASKRUN
_MASK = 0xFFFFFFFF
"""Indices of the queues are 32 bits and wrap around."""

_BUSY = frozenset({errno.EAGAIN, errno.EBUSY, errno.ETIME})
"""What io_uring_enter says when it is to be asked again, once completions were reaped."""


_MAP_FAILED = ctypes.c_void_p(-1).value
"""mmap(2)."""

_PATIENCE = 1000
"""So many refusals in a row are no longer a busy kernel."""


class Kernel(Protocol):
    """The system calls of io_uring: the seam at which tests put faults."""

    def setup(self, entries: int, params: npt.NDArray[Any]) -> int:
        """Return a ring's descriptor, or a negative errno."""

    def register(self, fd: int, opcode: int, argument: npt.NDArray[Any], count: int) -> int:
        """Return what the kernel returns, or a negative errno."""

    def enter(self, fd: int, submit: int, least: int, *, keep_gil: bool) -> int:
        """Submit, wait for `least` completions; return the number submitted or a negative errno."""


class LinuxKernel:
    """The kernel itself."""

    def __init__(self) -> None:
        self._keeping_gil = _syscall(ctypes.PyDLL(None, use_errno=True))
        self._releasing_gil = _syscall(ctypes.CDLL(None, use_errno=True))

    def setup(self, entries: int, params: npt.NDArray[Any]) -> int:
        """io_uring_setup(2)."""
        return _result(self._releasing_gil(abi.SYS_SETUP, entries, params.ctypes.data, 0, 0, None, 0))

    def register(self, fd: int, opcode: int, argument: npt.NDArray[Any], count: int) -> int:
        """io_uring_register(2)."""
        return _result(
            self._releasing_gil(abi.SYS_REGISTER, fd, opcode, argument.ctypes.data, count, None, 0)
        )

    def enter(self, fd: int, submit: int, least: int, *, keep_gil: bool) -> int:
        """io_uring_enter(2); the completions' work is done in it also where it waits for none."""
        call = self._keeping_gil if keep_gil else self._releasing_gil
        return _result(call(abi.SYS_ENTER, fd, submit, least, abi.ENTER_GETEVENTS, None, 0))


def _syscall(library: Any) -> Any:
    call = library.syscall
    call.restype = ctypes.c_long
    call.argtypes = [
        ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_void_p,
        ctypes.c_size_t,
    ]  # fmt: skip
    return call


def _result(answer: int) -> int:
    return answer if answer >= 0 else -ctypes.get_errno()


@cache
def _libc() -> Any:
    """Return the C library, whose calls keep the GIL: a mapping goes when its last array does, anywhere."""
    library = ctypes.PyDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library


class _Mapping:
    """A part of a ring's memory, which lives as long as an array on it (I9); it holds no descriptor.

    Parameters
    ----------
    fd
        The ring's.
    nbytes, offset
        Which part.
    """

    __slots__ = ("__array_interface__", "__del__", "_addresses", "_is_hidden", "_nbytes")

    def __init__(self, fd: int, nbytes: int, offset: int) -> None:
        libc = _libc()
        # As in `LocalSource`: an owner before there is anything to own, and no Python in what unmaps.
        self._addresses: list[int] = []
        self._nbytes = nbytes
        self._is_hidden = False
        self.__del__: partial[deque[int]] = partial(deque, map(libc.munmap, self._addresses, (nbytes,)), 0)
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | mmap.MAP_POPULATE
        self._addresses[:] = map(libc.mmap, (None,), (nbytes,), (protection,), (flags,), (fd,), (offset,))
        (address,) = self._addresses
        if address == _MAP_FAILED:
            raise _last_error()
        self.__array_interface__ = {
            "version": 3,
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
        }

    def hide(self) -> None:
        """Have forked children not have it: one that wrote to the shared indices would break the ring."""
        self._is_hidden = True  # first: what a child leaves mapped goes when it ends
        if any(map(_libc().madvise, self._addresses, (self._nbytes,), (mmap.MADV_DONTFORK,))):
            raise _last_error()

    def forget(self) -> None:
        """Leave it as it is in a forked child, which has no such memory, and may have other in its place."""
        if self._is_hidden:
            self._addresses.clear()


def _last_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


_SQE_NAMES = ("flags", "fd", "off", "addr", "len", "rw_flags", "user_data")
_ARRAYS = ("_sq_head", "_sq_tail", "_cq_head", "_cq_tail", "_cqe_tokens", "_cqe_results")
"""The names of what lies in memory that is shared with the kernel."""


class Ring:
    """A submission and a completion queue for reads, of the thread that makes it.

    Parameters
    ----------
    depth
        Entries of the submission queue; rounded up to a power of two. Twice as many may be in flight.
    kernel
        Who answers the system calls.

    Raises
    ------
    OSError
        The kernel refuses: ENOSYS (too old, or denied), EPERM (forbidden), ENOMEM (limits), EINVAL (too old
        for the flags), or EOPNOTSUPP where it cannot read. In a child that was forked meanwhile, any.
    """

    def __init__(self, depth: int, kernel: Kernel) -> None:
        self.pid = os.getpid()  # first: what comes after a fork is of no use
        self.tid = threading.get_native_id()
        self._kernel = kernel
        self._refusals = 0
        self._mapped: list[_Mapping] = []
        self.fd = -1
        _known[id(self)] = forget_with(self, _known)
        params = np.zeros(1, abi.PARAMS)
        params["flags"] = _FLAGS
        params["cq_entries"] = 2 * depth
        fd = kernel.setup(depth, params)
        if fd < 0:
            raise OSError(-fd, os.strerror(-fd))
        self.fd = fd
        try:
            self._check(int(params["features"][0]))
            self._map(params[0])
            self._hide()
        except BaseException:
            self.close()
            raise

    def _check(self, features: int) -> None:
        probe = np.zeros(1, abi.PROBE)
        answer = self._kernel.register(self.fd, abi.REGISTER_PROBE, probe, probe["ops"].shape[1])
        can_read = answer >= 0 and probe["ops"]["flags"][0, abi.OP_READ] & abi.OP_SUPPORTED
        if not (features & abi.FEAT_SINGLE_MMAP and features & abi.FEAT_NODROP and can_read):
            raise OSError(errno.EOPNOTSUPP, "io_uring of this kernel cannot read as we need it")

    def _map(self, params: Any) -> None:
        sq, cq = params["sq_off"], params["cq_off"]
        self.entries, self.cq_entries = int(params["sq_entries"]), int(params["cq_entries"])
        rings_bytes = max(int(sq["array"]) + 4 * self.entries, int(cq["cqes"]) + 16 * self.cq_entries)
        rings = self._mapping(rings_bytes, abi.OFF_RINGS)
        entries = self._mapping(64 * self.entries, abi.OFF_SQES)

        def index(offset: Any) -> npt.NDArray[np.uint32]:
            return np.frombuffer(rings, np.uint32, 1, int(offset))

        self._sq_head, self._sq_tail = index(sq["head"]), index(sq["tail"])
        self._cq_head, self._cq_tail = index(cq["head"]), index(cq["tail"])
        np.frombuffer(rings, np.uint32, self.entries, int(sq["array"]))[:] = np.arange(self.entries)
        sqes = np.frombuffer(entries, abi.SQE, self.entries)
        sqes["opcode"] = abi.OP_READ
        self._sqes = {name: sqes[name] for name in _SQE_NAMES}
        cqes = np.frombuffer(rings, abi.CQE, self.cq_entries, int(cq["cqes"]))
        self._cqe_tokens, self._cqe_results = cqes["user_data"], cqes["res"]

    def _mapping(self, nbytes: int, offset: int) -> UInt8Array:
        mapped = _Mapping(self.fd, nbytes, offset)
        self._mapped.append(mapped)
        return np.asarray(mapped)

    def _hide(self) -> None:
        # Last: until now a child had the memory, too, and wrote what its parent does.
        for mapped in self._mapped:
            mapped.hide()
        if self.pid != os.getpid():
            raise OSError(errno.EINTR, "a signal handler forked while a ring was made")

    @property
    def unsubmitted(self) -> int:
        """Entries that are filled and which the kernel has not taken."""
        return (int(self._sq_tail[0]) - int(self._sq_head[0])) & _MASK

    @property
    def in_flight(self) -> int:
        """Entries that are filled and whose completions were not reaped."""
        # Each entry makes one completion, so the queues' indices count the same things.
        return (int(self._sq_tail[0]) - int(self._cq_head[0])) & _MASK

    @property
    def room(self) -> int:
        """Entries that may be filled."""
        return min(self.entries - self.unsubmitted, self.cq_entries - self.in_flight)

    def fill(
        self,
        fd: int | Int64Array,
        start: Int64Array,
        address: Int64Array,
        length: Int64Array,
        first_token: int,
        rw_flags: int = 0,
        is_linked: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Put reads into the submission queue: `room` of them at the most.

        Parameters
        ----------
        fd
            Of all, or ``int64[n]``.
        start, address, length
            ``int64[n]``: offset in the file, where the bytes go, bytes.
        first_token
            Comes back with the completion of the first; of each further one it is one more.
        rw_flags
            readv(2)'s ``RWF_*``.
        is_linked
            ``bool[n]``: those whose successor starts only when they are complete. Where the kernel takes them
            in parts, the first of a part waits for nothing.
        """
        tail = int(self._sq_tail[0])
        n = len(start)
        columns = self._sqes
        done = 0
        while done < n:  # twice where it wraps around
            slot = (tail + done) & (self.entries - 1)
            count = min(n - done, self.entries - slot)
            to, rows = slice(slot, slot + count), slice(done, done + count)
            columns["flags"][to] = 0 if is_linked is None else is_linked[rows] * abi.IOSQE_IO_LINK
            columns["fd"][to] = fd if isinstance(fd, int) else fd[rows]
            columns["off"][to] = start[rows]
            columns["addr"][to] = address[rows]
            columns["len"][to] = length[rows]
            columns["rw_flags"][to] = rw_flags
            token = first_token + done
            columns["user_data"][to] = np.arange(token, token + count, dtype=np.uint64)
            done += count
        columns["flags"][(tail + n - 1) & (self.entries - 1)] = 0  # nothing waits for the last
        self._sq_tail[0] = (tail + n) & _MASK

    def enter(self, least: int = 0, *, keep_gil: bool = False) -> None:
        """Submit what was filled, and wait until there are `least` completions.

        May return with fewer, and with entries not submitted: call it again.

        Raises
        ------
        OSError
            The ring is of no use: another thread's, closed, or broken.
        """
        answer = self._kernel.enter(self.fd, self.unsubmitted, least, keep_gil=keep_gil)
        if answer >= 0:
            self._refusals = 0
            return
        if answer == -errno.EINTR:
            return  # no refusal: a signal came, as many may
        self._refusals += 1
        if -answer not in _BUSY or self._refusals > _PATIENCE:
            raise OSError(-answer, os.strerror(-answer))

    def completions(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]]:
        """Return tokens and results of what completed; `forget` then takes them off the queue.

        In two steps, so that an exception in between leaves them there.
        """
        head, tail = int(self._cq_head[0]), int(self._cq_tail[0])
        count = (tail - head) & _MASK
        first = head & (self.cq_entries - 1)
        if first + count <= self.cq_entries:
            seen = slice(first, first + count)
            return self._cqe_tokens[seen].copy(), self._cqe_results[seen].copy()
        slots = np.arange(first, first + count) & (self.cq_entries - 1)
        return self._cqe_tokens[slots], self._cqe_results[slots]

    def forget(self, count: int) -> None:
        """Take `count` completions off the queue."""
        self._cq_head[0] = (int(self._cq_head[0]) + count) & _MASK

    def close(self) -> None:
        """Let go of the ring; its thread must have drained it, or be gone.

        When a thread ends, the kernel ends what it submitted before the thread's last moment is over.

        A signal handler may have forked in the middle of a read, which goes on in the child. It finds empty
        queues of memory of its own, and that the ring is broken.
        """
        if self.pid != os.getpid():
            for mapped in self._mapped:
                mapped.forget()
            self._have_own_queues()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            _libc().close(fd)  # no error of its own to keep apart from a signal handler's
        # The mappings go with the last array on them, and the kernel's part of the ring with them.
        self._mapped.clear()
        if self.pid == os.getpid():
            for name in (*_ARRAYS, "_sqes"):
                self.__dict__.pop(name, None)

    def _have_own_queues(self) -> None:
        """Have empty queues of this process's memory in the place of the parent's."""
        # In place, as `fill` has the entries by a name of its own.
        for columns, names in ((self.__dict__, _ARRAYS), (self.__dict__.get("_sqes", {}), _SQE_NAMES)):
            columns.update({name: np.zeros_like(columns[name]) for name in names if name in columns})


_known: dict[int, weakref.ref[Ring]] = {}


@after_fork_in_child
def _close_all() -> None:
    for known in list(_known.values()):
        ring = known()
        if ring is not None:
            ring.close()
