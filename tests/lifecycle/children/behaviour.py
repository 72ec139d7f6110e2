"""Runs tests with ``HEADRACE_LOCAL_BACKEND=uring``, where io_uring is or where it is denied.

Arguments: ``here`` or ``denied``, which of the two it is to be, then those of pytest.  That it is so is made
sure of first: by a system call of our own, by what headrace reads with, and by what the doctor says.
Prints, last, how many rings the tests' reads made.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

os.environ["HEADRACE_LOCAL_BACKEND"] = "uring"
os.environ["HEADRACE_TEST_LOCAL_BACKEND"] = "uring"  # the tests hide the other one from themselves
sys.path.append(sys.path.pop(0))  # the tests want the real pandas

import pytest

import headrace
from headrace import doctor
from headrace.backends import _rings

made: list[int] = []
make = _rings.Rings._make


def counted(rings: _rings.Rings) -> _rings.ThreadRing | None:
    ring = make(rings)
    if ring is not None:
        made.append(ring.ring.tid)
    return ring


is_denied = sys.argv[1] == "denied"
libc = ctypes.CDLL(None, use_errno=True)
answer = libc.syscall(425, 1, None)  # io_uring_setup, without its parameters
assert (answer, ctypes.get_errno()) == (-1, errno.EPERM if is_denied else errno.EFAULT)

fs = headrace.HeadraceFileSystem(target_protocol="file", skip_instance_cache=True)
assert fs.backend_name == ("local" if is_denied else "uring")
check = doctor._io_uring()
assert check.status == ("warn" if is_denied else "ok"), check
assert ("seccomp" in check.detail) == is_denied, check

_rings.Rings._make = counted  # type: ignore[method-assign]
status = pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", *sys.argv[2:]])
sys.stdout.write(f"rings: {len(made)}\n")
sys.exit(status)
