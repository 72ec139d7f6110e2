"""Reads batches of every shape, from several threads, beside a kernel that is often busy.

Run by ``test_uring.py``.  Arguments: a file, how many ranges in all.  The mode comes from the
environment.  Every byte is compared with ``os.pread``; prints what is left at the end as JSON.
"""

from __future__ import annotations

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

import headrace
from headrace.backends import _rings
from headrace.backends._ring import LinuxKernel

PATH, COUNT = sys.argv[1], int(sys.argv[2])
THREADS = 4
IDLE_S = 30.0
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
wrong: list[str] = []


def soak(fs: Any, seed: int, count: int) -> None:
    chance = random.Random(seed)
    try:
        while count > 0:
            starts, ends = shape(chance)
            chance.choice(WORK)(fs, starts, ends)
            count -= len(starts)
            if chance.random() < 0.01:
                os.posix_fadvise(FD, 0, 0, os.POSIX_FADV_DONTNEED)
    except BaseException as error:  # noqa: BLE001 - reported
        wrong.append(f"{type(error).__name__}: {error}"[:500])


def run(fs: Any, count: int) -> None:
    threads = [threading.Thread(target=soak, args=(fs, seed, count // THREADS)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def settled(fs: Any, most: int = 1 << 30) -> dict[str, Any]:
    """Wait until nothing is in flight and the workers have ended; returns what is open and mapped then.

    The loop thread lets go of its last file a moment after the op is over: hence `most` descriptors.
    """
    gc.collect()
    deadline_s = time.monotonic() + IDLE_S
    while fs.stats().in_flight_ops and time.monotonic() < deadline_s:
        time.sleep(0.001)
    for thread in threading.enumerate():
        if thread.name.startswith("headrace-disk"):
            thread.join(max(0.0, deadline_s - time.monotonic()))
    while descriptors() > most and time.monotonic() < deadline_s:
        time.sleep(0.001)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "descriptors": descriptors(),
        "mappings": len(Path("/proc/self/maps").read_text().splitlines()),
        "resident": int(status["VmRSS"].split()[0]) * 1024,
        "rings": sum(map(len, _rings._all.values())),
    }


_rings.LinuxKernel = Busy  # type: ignore[misc]
fs = headrace.HeadraceFileSystem(
    target_protocol="file", buffer_bytes=32 << 20, uring_direct=os.environ.get("DIRECT") == "1"
)
assert fs.backend_name == "uring"
run(fs, COUNT // 2)
before = settled(fs)
run(fs, COUNT)
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
