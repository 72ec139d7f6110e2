"""What the backends of local files share: page-cache reads that never block, and misses set going first.

How a slice is read:

1. `start` asks the page cache for each op with ``preadv2(RWF_NOWAIT)``. A hit is done. A miss says EAGAIN
   *and makes the kernel start the disk read of that range* (mm/filemap.c: ``filemap_get_pages`` calls
   ``page_cache_sync_ra`` also under IOCB_NOWAIT), so that after one pass over the slice all its misses are
   in flight together: a submission queue without a ring and without threads.
2. `finish` reads the misses in order with plain ``preadv``, which waits for pages on their way already.

Small probes go through `ctypes.PyDLL`, which keeps the GIL: they cannot block, and beside a busy Python
thread each release costs up to a switch interval (5 ms). Opening does the same with ``openat2``
``RESOLVE_CACHED`` (Linux 5.12), which fails rather than touch the disk. Reads that may wait, and copies
long enough to be worth it, release the GIL.

Advice belongs to the descriptor, and each call and each open file has its own. Who says what is to be read,
in many ranges, turns the kernel's readahead off (it cost 2.6 times). An open file's short reads leave it as
it is, on at first: of those that are far apart the kernel reads nothing ahead anyhow. Short ones that follow
each other, and wait for the disk, turn it on again after a long one.

Long ones have it where they follow each other and no more urgent read is expected, and leave it when one is
(`headrace.backends._readahead`).

Elsewhere than on Linux, and where the kernel lacks a call, the same results come from `os.pread`.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from typing_extensions import override

from headrace.backends import _linux as linux
from headrace.backends._readahead import FAR_BYTES, Around
from headrace.backends.abc import Defaults, InlineBackend
from headrace.columns import ascending
from headrace.errors import UnsizedFileError
from headrace.threads import raise_if_of_a_handler

if TYPE_CHECKING:
    from collections.abc import Hashable

    from headrace.types import Int64Array, Ops

KEEP_GIL_BYTES = 64 << 10
"""A page-cache copy of up to this many bytes (some microseconds) is not worth releasing the GIL for."""

SCAN_READS = 2
"""So many short reads in a row that go on where the one before ended are a scan."""

SCAN_BYTES = 32 << 20
"""So long a read is a scan by itself: what is read ahead behind its end is little beside it."""

IOVEC = np.dtype([("base", np.uint64), ("length", np.uint64)])
"""``struct iovec`` of readv(2) on 64-bit systems."""

_DEVICES_REMEMBERED = 4096

_UNSIZED = "a device, pipe or the like has no length"


class LocalSource:
    """An open file and the advice it has; maybe open once more, for reads around the page cache.

    It owns the descriptors in `fds`. A signal handler that raises may cut anything that Python does: what is
    between an opening's return and a name for the descriptor, and a finaliser at its first line, after which
    Python goes on without it. So C puts there what it opened, in the step in which it opens it, and
    `__del__` is no function but a call of C's, made before there is anything to close.
    """

    __slots__ = ("__del__", "advice", "around", "direct_fd", "end", "fd", "fds", "followed", "path", "run")

    def __init__(self, path: str) -> None:
        self.path = path
        self.advice = linux.ADVICE_NORMAL
        self.end, self.run = -1, 0
        self.followed = -1  # up to where reads had the kernel read ahead, which goes on
        self.around: Around | None = None
        self.fd = self.direct_fd = -1
        self.fds: list[int] = []
        # Ops in flight hold the source, so the last reference closes it after the last op (I9).
        self.__del__: partial[deque[int]] = partial(deque, map(linux.close, self.fds), 0)

    @override
    def __reduce__(self) -> str:
        msg = "an open file cannot be pickled, nor copied: two would close the same descriptors"
        raise TypeError(msg)

    def open_directly(self) -> None:
        """Open it a second time, around the page cache, where its filesystem allows that."""
        if stat.S_ISFIFO(os.fstat(self.fd).st_mode):
            return  # that would wait for a writer, who may be gone
        try:
            linux.open_directly(self.path, self.fds)
            self.direct_fd = self.fds[1]
            if not os.path.sameopenfile(self.fd, self.direct_fd):  # the path has become another file's
                self.direct_fd = -1
                deque(map(linux.close, map(self.fds.pop, (1,))), 0)
        except OSError as error:
            raise_if_of_a_handler(error)
            # A filesystem, such as some in memory, that refuses.

    def advise(self, advice: int) -> None:
        """Tell the kernel the access pattern, if it is another than last time."""
        if advice != self.advice:
            self.advice = advice
            linux.advise(self.fd, advice)

    def expect_scan(self) -> None:
        """Take a first read at the beginning of the file for one that goes on."""
        self.end = 0

    def note_wait(self, start: int, end: int, *, is_long: bool, expects_urgent: bool = False) -> None:
        """Tell the kernel whether to read ahead, before a read of an open file that waits for the disk.

        One goes on where it begins no later than the one before ended, which may have been a whole block, and
        so do the parts of a very long one. A short one may be noted twice.
        """
        is_next = start <= self.end <= end or end - start >= SCAN_BYTES
        self.end = end
        self.run = self.run + 1 if is_next and not is_long else 0
        if is_long:
            self.around = None
            self.advise(linux.ADVICE_NORMAL if is_next and not expects_urgent else linux.ADVICE_RANDOM)
        elif self.run >= SCAN_READS:
            self.advise(linux.ADVICE_NORMAL)
        if is_next and self.advice == linux.ADVICE_NORMAL:
            self.followed = end

    def note_copy(self, start: int, end: int) -> bool:
        """Note a long read that the page cache answers; returns whether the kernel may be ahead of it."""
        self.around = None
        self.end = end
        if not self._follows(start):
            return False
        self.followed = end
        return True

    def leave_readahead(self, start: int, most: int) -> int:
        """Have the kernel read no further ahead of ops of up to `most` bytes.

        Returns how many bytes from `start` on are to be read around the page cache for that: 0 where nothing
        is, or can be.
        """
        if self._follows(start):
            self.around = None
            self.advise(linux.ADVICE_RANDOM)
            try:
                self.around = Around(self.fd, start, self.followed, most)
            except OSError as error:
                raise_if_of_a_handler(error)
            self.followed = -1
        around = self.around
        return around.end - start if around is not None and around.begin <= start < around.end else 0

    def _follows(self, start: int) -> bool:
        """Whether the kernel, which has read ahead, may be ahead of a read from `start` on."""
        return 0 <= self.followed <= start <= self.followed + FAR_BYTES

    def size(self) -> int:
        """Bytes of the file now.

        Raises
        ------
        IsADirectoryError, UnsizedFileError
            It has no length.
        io.UnsupportedOperation
            It is a pipe, which is not to be opened once more: its writer has been let go, and may be gone.
        """
        found = os.fstat(self.fd)
        _check_is_sized(found, self.path, is_open=True)
        if not found.st_size and not self._is_empty():
            found = os.fstat(self.fd)  # somebody may have begun to write to it
            if not found.st_size:
                raise UnsizedFileError(errno.EINVAL, _UNSIZED, self.path)
        return found.st_size

    def _is_empty(self) -> bool:
        """Whether there is nothing to read: of files that the kernel makes up, as in /proc, the size is 0."""
        try:
            return not linux.pread(self.fd, 0, 1)
        except OSError as error:
            raise_if_of_a_handler(error)
            return False


@dataclass(slots=True)
class Prepared:
    """What the system calls need of all ops of a request, made once.

    Attributes
    ----------
    iovec
        ``struct iovec[m]``: where each op's bytes go; made where it is asked for.
    address
        Of `iovec` itself.
    is_small
        Whether every op is a copy too short to release the GIL for; found out where it is asked for.
    columns
        What a ring needs, made where it is asked for.
    """

    iovec: np.ndarray[Any, Any] | None = None
    address: int = 0
    is_small: bool | None = None
    columns: Any = None


class FileBackend(InlineBackend):
    """Reads what `fsspec.implementations.local.LocalFileSystem` reads."""

    defaults: ClassVar[Defaults] = Defaults(
        mode="lite",
        max_gap_bytes=4096,
        max_op_bytes=1 << 22,
        short_op_bytes=256 << 10,
        io_parallelism=256,
        window_bytes=1 << 20,
    )

    fills_plainly = True
    probes_rows = linux.HAS_NOWAIT

    def __init__(self, target: Any) -> None:
        super().__init__(target)
        self._devices: dict[str, int] = {}
        self._scratch = linux.Scratch(KEEP_GIL_BYTES) if linux.HAS_NOWAIT else None

    @classmethod
    @override
    def serves(cls, target: Any) -> bool:
        """Only fsspec's own class: a subclass may have another idea of what a path is."""
        from fsspec.implementations.local import LocalFileSystem  # noqa: PLC0415

        return type(target) is LocalFileSystem

    @override
    def device(self, path: str) -> Hashable:
        """Name the device, by the number of the folder: files of one folder are on one device."""
        found = self._devices.get(path.rpartition("/")[0])  # inline: each read by path asks twice
        return ("local", self._device_of(path) if found is None else found)

    def _device_of(self, path: str) -> int:
        folder = path.rpartition("/")[0] or "/"
        found = self._devices.get(folder)
        if found is None:
            found = _device_number(folder)
            if found < 0:
                return found  # it may be made later
            if len(self._devices) >= _DEVICES_REMEMBERED:
                self._devices.clear()
            self._devices[folder] = found
        return found

    @override
    def open(self, path: str, *, as_file: bool = False, **_options: Any) -> LocalSource:
        """Open for reading; a directory is an IsADirectoryError, now or when it is read."""
        if not as_file:
            return self.make_source(path)
        # Before it is opened: a pipe whose writer waits for a reader would be written to already.
        found = os.stat(path)  # noqa: PTH116 - as quick as can be
        _check_is_sized(found, path)
        source = self.make_source(path)
        source.expect_scan()
        if not found.st_size:
            source.size()
        return source

    def make_source(self, path: str) -> LocalSource:
        """Open a file."""
        found = self._devices.get(path.rpartition("/")[0])
        is_served = linux.is_served(self._device_of(path) if found is None else found)
        source = LocalSource(path)
        (linux.open_plainly if is_served else linux.open_cached)(path, source.fds)
        source.fd = source.fds[0]
        return source

    @override
    def size(self, source: LocalSource) -> int:
        """Bytes of the file now."""
        return source.size()

    @override
    def probe(self, source: LocalSource, start: int, length: int) -> bytes | None:
        """Copy a few bytes out of the page cache."""
        scratch = self._scratch
        return None if scratch is None else scratch.read(source.fd, start, length)

    @override
    def copy(self, source: LocalSource, start: int, out: memoryview) -> bool:
        """Copy a long range out of the page cache."""
        if not linux.is_cached(source.fd, start, len(out)):
            return False
        return linux.read_cached(source.fd, out, start) == len(out)

    @override
    def read_one(self, source: LocalSource, start: int, length: int) -> bytes:
        """Read a few bytes, waiting for the disk."""
        try:
            return linux.pread(source.fd, start, length)
        except OSError as error:
            raise _of_path(error, source.path) from None

    @override
    def fill(self, source: LocalSource, start: int, out: memoryview) -> tuple[int, bool]:
        """Read a range, waiting for the disk where the page cache does not hold it."""
        got = max(linux.read_cached(source.fd, out, start), 0) if linux.HAS_NOWAIT else 0
        if got == len(out):
            return got, True
        try:
            return got + linux.fill(source.fd, out[got:], start + got), False
        except OSError as error:
            raise _of_path(error, source.path) from None

    def fill_around(self, source: LocalSource, start: int, out: memoryview) -> tuple[int, bool]:
        """Do so around the page cache, as far as that can be: what is left, or fails, is read plainly."""
        around, got = source.around, 0
        try:
            got = around.read(start, out) if around is not None else 0
        except (OSError, MemoryError) as error:
            raise_if_of_a_handler(error)
        if around is not None and got == len(out):
            around.begin = start + got
            if around.begin >= around.end:
                source.around = None
            return got, False
        source.around = None
        more, is_hit = self.fill(source, start + got, out[got:])
        return got + more, is_hit and not got

    @override
    def start(self, ops: Ops, lo: int, hi: int) -> Int64Array:
        """Read what the page cache holds; the misses are on their way afterwards."""
        if not linux.HAS_NOWAIT:
            return ascending(lo, hi)
        probe = _probe_small if is_small(ops) else _probe_large
        ops.got[lo:hi] = probe(ops, lo, hi)
        return lo + np.flatnonzero(ops.got[lo:hi] != ops.length[lo:hi])

    @override
    def probe_rows(self, ops: Ops, lo: int, hi: int, *, keeps_gil: bool = True) -> bool:
        """Copy small rows out of the page cache."""
        if not linux.HAS_NOWAIT:
            return False
        ops.got[lo:hi] = _probe_small(ops, lo, hi)
        return bool((ops.got[lo:hi] == ops.length[lo:hi]).all())

    @override
    def finish(self, ops: Ops, rows: Int64Array) -> None:
        """Read the rest of each row, waiting for the disk."""
        for row in rows.tolist():
            try:
                ops.got[row] = _read_rest(ops, row)
            except OSError as error:
                source = ops.sources[ops.file[row]]
                ops.fail(row, _of_path(error, source.path))


def _check_is_sized(found: os.stat_result, path: str, *, is_open: bool = False) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(found.st_mode):
        if is_open and stat.S_ISFIFO(found.st_mode):
            raise io.UnsupportedOperation(errno.ESPIPE, os.strerror(errno.ESPIPE), path)
        raise UnsizedFileError(errno.EINVAL, _UNSIZED, path)


def _of_path(error: OSError, path: str) -> OSError:
    """Return an error of the file's with its name; a signal handler's own is raised."""
    raise_if_of_a_handler(error)
    if error.errno is None:
        return error
    kind = (
        io.UnsupportedOperation if error.errno == errno.ESPIPE else type(error)
    )  # as Python's files have it
    return kind(error.errno, error.strerror, path)


def _device_number(folder: str) -> int:
    try:
        return Path(folder).stat().st_dev
    except (OSError, ValueError) as error:  # what is no name is a ValueError, to whoever opens it as well
        raise_if_of_a_handler(error)
        return -1


def prepared(ops: Ops) -> Prepared:
    """Return what is prepared of `ops` so far."""
    found: Prepared | None = ops.state
    if found is None:
        ops.state = found = Prepared()
    return found


def with_iovec(ops: Ops) -> Prepared:
    """Return it with the iovecs."""
    found = prepared(ops)
    if found.iovec is None:
        iovec = np.empty(len(ops), IOVEC)
        iovec["base"] = ops.dest
        iovec["base"] += np.uint64(ops.buffer.ctypes.data)
        iovec["length"] = ops.length
        # Threads may race to make it: each must see an address and the memory that is there.
        found.iovec, found.address = iovec, iovec.ctypes.data
    return found


def is_small(ops: Ops) -> bool:
    """Whether every op is a copy too short to release the GIL for."""
    found = prepared(ops)
    if found.is_small is None:
        found.is_small = int(ops.length.max()) <= KEEP_GIL_BYTES
    return found.is_small


def are_cached(ops: Ops, lo: int, hi: int) -> bool:
    """Whether the page cache holds the rows ``[lo, hi)``, as far as that can be told without reading."""
    rows = zip(ops.file[lo:hi].tolist(), ops.start[lo:hi].tolist(), ops.length[lo:hi].tolist(), strict=True)
    return all(
        ops.sources[file] is not None and linux.is_cached(ops.sources[file].fd, start, length)
        for file, start, length in rows
    )


def _probe_small(ops: Ops, lo: int, hi: int) -> list[int]:
    """Probe each row in one pass with the GIL kept: the calls cannot block and are short."""
    preadv2 = linux.preadv2_keeping_gil
    nowait = linux.RWF_NOWAIT
    starts = ops.start[lo:hi].tolist()
    address = with_iovec(ops).address
    iovecs = range(address + 16 * lo, address + 16 * hi, 16)
    if len(ops.sources) == 1:
        fd = ops.sources[0].fd
        return [preadv2(fd, at, 1, start, nowait) for at, start in zip(iovecs, starts, strict=True)]
    # A file that could not be opened has no rows.
    fds = [-1 if source is None else source.fd for source in ops.sources]
    files = ops.file[lo:hi].tolist()
    return [
        preadv2(fds[file], at, 1, start, nowait)
        for file, at, start in zip(files, iovecs, starts, strict=True)
    ]


def _probe_large(ops: Ops, lo: int, hi: int) -> list[int]:
    """Probe rows some of whose copies take long enough to let other threads run meanwhile."""
    rows = list(
        zip(
            ops.file[lo:hi].tolist(),
            ops.start[lo:hi].tolist(),
            ops.dest[lo:hi].tolist(),
            ops.length[lo:hi].tolist(),
            strict=True,
        )
    )
    got = _probe_run(ops, rows) if hi - lo > 1 else []
    view = ops.buffer.data
    for row, (file, start, dest, length) in enumerate(rows[len(got) :], lo + len(got)):
        fd = ops.sources[file].fd
        if length <= KEEP_GIL_BYTES:
            at = with_iovec(ops).address + 16 * row
            got.append(linux.preadv2_keeping_gil(fd, at, 1, start, linux.RWF_NOWAIT))
        else:
            got.append(linux.read_cached(fd, view[dest : dest + length], start))
    return got


def _probe_run(ops: Ops, rows: list[tuple[int, int, int, int]]) -> list[int]:
    """Probe the pieces of one long range by one call; returns the bytes of those that are there."""
    file, first, begin, length = rows[0]
    end, to = first + length, begin + length
    for other, start, dest, more in rows[1:]:
        if other != file or start != end or dest != to:
            return []
        end, to = end + more, to + more
    left = linux.read_cached(ops.sources[file].fd, ops.buffer.data[begin:to], first)
    got = []
    for *_, length in rows:
        if left < length:
            break  # from here on each is asked for by itself, which sets it going
        got.append(length)
        left -= length
    return got


def _read_rest(ops: Ops, row: int) -> int:
    """Read what a probe left of a row, to its end or the file's; returns the bytes of the row."""
    fd = ops.sources[ops.file[row]].fd
    start, length, dest = int(ops.start[row]), int(ops.length[row]), int(ops.dest[row])
    got = max(int(ops.got[row]), 0)
    return got + linux.fill(fd, ops.buffer.data[dest + got : dest + length], start + got)
