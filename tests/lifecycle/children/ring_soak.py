"""Reads batches of every shape, from several threads, beside a kernel that is often busy.

Run by ``test_uring.py``.  Arguments: a file, how many ranges in all.  The mode comes from the
environment.  Every byte is compared with ``os.pread``; prints what is left at the end as JSON.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from soaking import IDLE_S, descriptors, on_threads, wait_until_closed, wrong

import headrace
from headrace.arenas import arenas
from headrace.backends import _rings
from headrace.backends._ring import LinuxKernel

PATH, COUNT = sys.argv[1], int(sys.argv[2])
LIBC, PR_SET_THP_DISABLE = ctypes.CDLL(None), 41
FD = os.open(PATH, os.O_RDONLY)
SIZE = os.fstat(FD).st_size


class Busy(LinuxKernel):
    """Refuses one submission in twenty, and takes a part of many others."""

    def enter(self, fd: int, submit: int, least: int, *, keep_gil: bool) -> int:
        chance = random.random()
        if chance < 0.05:
            return -random.choice((errno.EINTR, errno.EAGAIN, errno.EBUSY))
        if chance < 0.3 and submit > 1:
            return super().enter(fd, random.randrange(1, submit), 0, keep_gil=keep_gil)
        return super().enter(fd, submit, least, keep_gil=keep_gil)


def shape(chance: random.Random) -> tuple[list[int], list[int]]:
    longest = chance.choice((1, 100, 4096, 4096, 20_000, 300_000))
    count = chance.choice((1, 7, 8, 50, 300)) if longest < 20_000 else chance.choice((1, 8, 20))
    starts = [chance.randrange(SIZE + 10) for _ in range(count)]
    if longest == 4096:
        starts = [start & -4096 for start in starts]
    return starts, [start + chance.randrange(longest + 1) for start in starts]


def check(found: list[bytes], starts: list[int], ends: list[int]) -> None:
    for data, start, end in zip(found, starts, ends, strict=True):
        assert data == os.pread(FD, end - start, start), (start, end)


def at_once(fs: Any, starts: list[int], ends: list[int]) -> None:
    check(fs.read_ranges(PATH, starts, ends).to_pylist(), starts, ends)


def listed(fs: Any, starts: list[int], ends: list[int]) -> None:
    check(fs.cat_ranges([PATH] * len(starts), starts, ends), starts, ends)


def submitted(fs: Any, starts: list[int], ends: list[int]) -> None:
    check(fs.submit_ranges(PATH, starts, ends).result().to_pylist(), starts, ends)


def dropped(fs: Any, starts: list[int], ends: list[int]) -> None:
    fs.submit_ranges(PATH, starts, ends)


def cancelled(fs: Any, starts: list[int], ends: list[int]) -> None:
    fs.submit_ranges(PATH, starts, ends).cancel()


WORK = (at_once, at_once, listed, submitted, dropped, cancelled)


def work(chance: random.Random) -> int:
    starts, ends = shape(chance)
    chance.choice(WORK)(fs, starts, ends)
    if chance.random() < 0.01:
        os.posix_fadvise(FD, 0, 0, os.POSIX_FADV_DONTNEED)
    return len(starts)


def settled(fs: Any, files: Counter[str] | None = None) -> dict[str, Any]:
    """Wait until nothing is in flight and the workers have ended; returns what is open and mapped then.

    `files` are those that were open before.
    """
    gc.collect()
    deadline_s = time.monotonic() + IDLE_S
    while fs.stats().in_flight_ops and time.monotonic() < deadline_s:
        time.sleep(0.001)
    for thread in threading.enumerate():
        if thread.name.startswith("headrace-disk"):
            thread.join(max(0.0, deadline_s - time.monotonic()))
    if files is not None:
        wait_until_closed(files, deadline_s)
    arenas._idle.clear()  # what these and malloc keep for later would hide what is lost
    LIBC.malloc_trim(0)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "descriptors": descriptors(),
        "mappings": len(Path("/proc/self/maps").read_text().splitlines()),
        "resident": int(status["VmRSS"].split()[0]) * 1024,
        "held": arenas.out_bytes,
        "rings": sum(map(len, _rings._all.values())),
    }


LIBC.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # else a page in use keeps 2 MiB resident
_rings.LinuxKernel = Busy  # type: ignore[misc]
fs = headrace.HeadraceFileSystem(
    target_protocol="file", buffer_bytes=32 << 20, uring_direct=os.environ.get("DIRECT") == "1"
)
assert fs.backend_name == "uring"
on_threads(work, COUNT // 2)
before = settled(fs)
on_threads(work, COUNT)
after = settled(fs, before["descriptors"])
stats = fs.stats()
engine = fs.channel.engine
with engine.lock:
    engine.hub.validate()
answer = {
    "wrong": wrong,
    "rest": [stats.in_flight_ops, stats.reserved_bytes],
    "before": before,
    "after": after,
    "threads": Counter(thread.name for thread in threading.enumerate()),
}
sys.stdout.write(json.dumps(answer) + "\n")
