"""The system calls of the local backend, each with its portable substitute.

Why ctypes: `os` releases the GIL around every call, and winning it back beside a busy Python thread
takes up to a switch interval (5 ms by default). `ctypes.PyDLL` keeps it, which is right for calls that
cannot block and are short: ``preadv2`` with ``RWF_NOWAIT`` (readv(2)), ``openat2`` with ``RESOLVE_CACHED``
(openat2(2)), ``cachestat`` (Linux 6.5), ``close`` of a file that was only read.

What is missing (an old kernel, another system, a sandbox) is found out by trying, once.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import platform
import struct
import sys
import threading
from itertools import starmap
from pathlib import Path
from typing import Any

from headrace.threads import raise_if_of_a_handler

IS_LINUX = sys.platform == "linux"

RWF_NOWAIT = 8
"""readv(2): do not wait for data which is not immediately available."""

ADVICE_NORMAL = 0
ADVICE_RANDOM = 1
"""posix_fadvise(2)."""

BLOCK = 4096
"""Reads around the page cache are aligned to this: enough for every device that is common, and a page."""

_READ_AHEAD_BYTES = 8 << 20
"""What a device is taken to read ahead that does not say it."""

_AT_FDCWD = -100
_RESOLVE_CACHED = 0x20
_SYS_OPENAT2 = 437
_SYS_CACHESTAT = 451
"""The same numbers on every architecture (Linux 5.6 and 6.5)."""
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_WAIT_FLAGS = _OPEN_FLAGS | getattr(os, "O_NONBLOCK", 0)
"""A pipe that nobody writes to is not waited for: it is refused by whoever reads it, at every opening."""
_OPEN_HOW = struct.pack("QQQ", _NO_WAIT_FLAGS, 0, _RESOLVE_CACHED)


def _library() -> Any:
    """Return the C library with the GIL kept, or None where its calls are not those of 64-bit Linux."""
    if not IS_LINUX or ctypes.sizeof(ctypes.c_void_p) != ctypes.sizeof(ctypes.c_longlong):
        return None
    try:
        library = ctypes.PyDLL(None, use_errno=True)
        library.preadv2.restype = ctypes.c_ssize_t
        library.preadv2.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_int,
        ]  # fmt: skip
        library.syscall.restype = ctypes.c_long
        library.syscall.argtypes = [
            ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t,
        ]  # fmt: skip
    except (OSError, AttributeError):
        return None
    return library


_LIBC = _library()
HAS_NOWAIT = _LIBC is not None and hasattr(os, "preadv")
preadv2_keeping_gil: Any = _LIBC.preadv2 if _LIBC is not None else None
close: Any = os.close if _LIBC is None else _LIBC.close
"""Closes a descriptor that was only read from. No function of Python's, which a signal handler could cut."""

_WORDSIZE_OK = platform.machine() in {"x86_64", "aarch64", "riscv64", "ppc64le", "s390x", "AMD64"}
_has_own_numbers = _LIBC is not None and _WORDSIZE_OK
_seek_lock = threading.Lock()


class Scratch:
    """Memory for one small read at a time.

    Parameters
    ----------
    size_bytes
        The longest read.
    """

    def __init__(self, size_bytes: int) -> None:
        self._buffer = ctypes.create_string_buffer(size_bytes)
        self._iovec = (ctypes.c_uint64 * 2)(ctypes.addressof(self._buffer), 0)
        self._address = ctypes.addressof(self._buffer)
        self._iovec_address = ctypes.addressof(self._iovec)

    def read(self, fd: int, start: int, length: int) -> bytes | None:
        """Return the bytes if the page cache holds all of them."""
        self._iovec[1] = length
        if preadv2_keeping_gil(fd, self._iovec_address, 1, start, RWF_NOWAIT) != length:
            return None
        return ctypes.string_at(self._address, length)


_SERVED = ("9p", "afs", "ceph", "cifs", "fuse", "gfs", "lustre", "nfs", "ocfs", "smb", "virtiofs")
"""What the names of filesystems begin with that ask a server, or a program, when a file is opened."""


@functools.cache
def is_served(device: int) -> bool:
    """Whether files of a device may take long to open, though the kernel knows their names; -1 is none."""
    if device < 0:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError as error:
        raise_if_of_a_handler(error)
        return False
    kinds = (line.rpartition(" - ")[2] for line in mounts if line.split()[2] == number)
    return any(kind.startswith(_SERVED) for kind in kinds)


# A descriptor must have an owner before a signal's handler may raise, which may be after any call. So C puts
# it into a list of the owner's in the same step, which is the assignment to a slice.


def open_plainly(path: str, fds: list[int]) -> None:
    """Open `path` for reading, and wait for that; the descriptor is all that is in `fds` then.

    Without ``O_NONBLOCK`` a ring does not perform reads of a served file while it takes them.
    """
    fds[:] = map(os.open, (path,), (_OPEN_FLAGS,))


def open_cached(path: str, fds: list[int]) -> None:
    """Do the same without giving up the GIL where the kernel has the path at hand."""
    name = os.fsencode(path)
    if _has_own_numbers and b"\0" not in name:  # C would take what is before that for the name
        fds[:] = starmap(_LIBC.syscall, ((_SYS_OPENAT2, _AT_FDCWD, name, _OPEN_HOW, len(_OPEN_HOW)),))
        if fds[0] >= 0:
            return
    # Not cached, or an error: the plain call asks the disk, and raises the error that Python users know.
    try:
        fds[:] = map(os.open, (path,), (_NO_WAIT_FLAGS,))
    except BlockingIOError as error:
        raise_if_of_a_handler(error)
        open_plainly(path, fds)  # somebody has a lease on it (F_SETLEASE of fcntl(2)), and gives it up first


def open_directly(path: str, fds: list[int]) -> None:
    """Open `path` around the page cache; the descriptor is the second in `fds` then."""
    fds[1:] = map(os.open, (path,), (_OPEN_FLAGS | getattr(os, "O_DIRECT", 0),))


def open_around(fd: int, fds: list[int]) -> None:
    """Open the file of `fd` again, around the page cache; the descriptor is all that is in `fds` then."""
    if not HAS_NOWAIT:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    fds[:] = map(os.open, (f"/proc/self/fd/{fd}",), (_NO_WAIT_FLAGS | os.O_DIRECT,))


def advise(fd: int, advice: int) -> None:
    """posix_fadvise on the whole file; advice that is not taken is no error."""
    if _LIBC is not None:
        _LIBC.posix_fadvise(fd, ctypes.c_long(0), ctypes.c_long(0), advice)


def read_ahead_bytes(device: int) -> int:
    """How far the kernel reads ahead on a device, at the most, by what it says of that."""
    number = f"{os.major(device)}:{os.minor(device)}"
    of_disk = Path("/sys/dev/block") / number
    names = (
        Path("/sys/class/bdi") / number / "read_ahead_kb",
        of_disk / "queue" / "read_ahead_kb",
        of_disk / ".." / "queue" / "read_ahead_kb",  # it is a part of one
    )
    for name in names:
        try:
            return int(name.read_text()) << 10
        except (OSError, ValueError) as error:
            raise_if_of_a_handler(error)
    return _READ_AHEAD_BYTES


def is_cached(fd: int, start: int, length: int) -> bool:
    """Whether the page cache holds a range. The kernel only tells who may write the file, or owns it.

    Unlike a read that does not wait it never sets a disk read going.
    """
    if not _has_own_numbers:
        return False
    found = ctypes.create_string_buffer(5 * 8)
    if _LIBC.syscall(_SYS_CACHESTAT, fd, struct.pack("QQ", start, length), found, 0) < 0:
        return False
    pages = (start + length - 1) // mmap.PAGESIZE - start // mmap.PAGESIZE + 1
    cached: int = struct.unpack_from("Q", found)[0]
    return cached >= pages


def read_cached(fd: int, view: memoryview, start: int) -> int:
    """Read from the page cache, GIL released; -1 where it would wait or must be read plainly."""
    try:
        return os.preadv(fd, [view], start, RWF_NOWAIT)
    except OSError as error:
        raise_if_of_a_handler(error)
        # EAGAIN is a miss; any other error comes again, and is raised, when the row is finished.
        return -1


def pread_into(fd: int, view: memoryview, start: int) -> int:
    """Read at `start` into `view`, waiting; returns bytes, 0 at the end of the file."""
    if fd < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], start)
    with _seek_lock:
        # Windows has no positioned read; the descriptor's offset is ours alone under the lock.
        os.lseek(fd, start, os.SEEK_SET)
        data = os.read(fd, len(view))
    view[: len(data)] = data
    return len(data)


def pread(fd: int, start: int, length: int) -> bytes:
    """Return the bytes at `start`, waiting; fewer than asked only at the end of the file."""
    if hasattr(os, "pread"):
        data = os.pread(fd, length, start)
        if len(data) in (0, length):
            return data
    else:
        data = b""
    view = memoryview(bytearray(length))
    view[: len(data)] = data
    got = len(data)
    return bytes(view[: got + fill(fd, view[got:], start + got)])


def fill(fd: int, view: memoryview, start: int) -> int:
    """Fill `view` from `start` on, waiting; returns bytes, fewer than asked only at the end of the file."""
    got = 0
    while got < len(view) and (more := pread_into(fd, view[got:], start + got)):
        got += more
    return got
