"""Runs a program where io_uring is forbidden, as in Docker's default profile: a seccomp filter says EPERM.

Arguments: what to run, as after ``python``.  The filter holds for it and for all its children.  With
``--kill`` before them it does not say EPERM, but ends who asks, as the default of some service managers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD_NUMBER = struct.pack("HBBI", 0x20, 0, 0, 0)  # BPF_LD | BPF_W | BPF_ABS, seccomp_data.nr
ALLOW = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)  # BPF_RET, SECCOMP_RET_ALLOW
KILLS = sys.argv[1] == "--kill"
SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_ERRNO = 0x80000000, 0x00050000
DENY = struct.pack("HBBI", 0x06, 0, 0, SECCOMP_RET_KILL_PROCESS if KILLS else SECCOMP_RET_ERRNO | errno.EPERM)


def unless_equal(number: int, skip: int) -> bytes:
    return struct.pack("HBBI", 0x15, 0, skip, number)  # BPF_JMP | BPF_JEQ | BPF_K


program = LOAD_NUMBER
for number in (425, 426, 427):  # io_uring_setup, _enter, _register
    program += unless_equal(number, 1) + DENY
program += ALLOW
code = ctypes.create_string_buffer(program)
header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
    PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.c_char_p(header), 0, 0
):
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
os.execv(sys.executable, [sys.executable, *sys.argv[1 + KILLS :]])
