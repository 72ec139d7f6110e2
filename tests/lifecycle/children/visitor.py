"""Ends while a thread of C's is inside Python, as Arrow's threads are; run by ``test_exit.py``.

Argument: ``leaving``, it has let go of its file and is on its way out (it leaves when the exit hook has
looked); or ``reading``, it waits for a read of the wrapped filesystem that is never answered.  It says so
when it leaves.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import threading
from typing import Any

from fsspec.asyn import AsyncFileSystem, sync

from headrace import lifecycle

WORK = sys.argv[1]


class Handle:
    """What Arrow was given."""

    def __init__(self, fs: Any) -> None:
        self.fs = fs


is_inside, may_leave = threading.Event(), threading.Event()
held = [Handle(AsyncFileSystem())]
lifecycle.follow(held[0])
has_visitors = lifecycle.has_visitors


async def read_for_ever() -> None:
    is_inside.set()
    await asyncio.Event().wait()


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def visit(_: int | None) -> None:
    if WORK == "reading":
        sync(held[0].fs.loop, read_for_ever)
        held.clear()
    else:
        held.clear()
        is_inside.set()
        may_leave.wait()
    os.write(1, b"left\n")


def look() -> bool:
    found = has_visitors()
    may_leave.set()
    return found


assert not has_visitors(), "nobody is inside yet"
lifecycle.PATIENCE_S, lifecycle.has_visitors = 0.1, look
thread = ctypes.c_ulong()
ctypes.CDLL(None).pthread_create(ctypes.byref(thread), None, visit, None)
assert is_inside.wait(30)
assert has_visitors()
