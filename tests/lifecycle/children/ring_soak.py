"""Reads batches of every shape, from several threads, beside a kernel that is often busy and sometimes fails.

Run by ``test_uring.py``.  Arguments: a file, how many ranges in all.  The mode comes from the
environment.  Every byte is compared with ``os.pread``; prints what is left at the end, and what went
wrong on the way there, as JSON.

Faults are put where the system calls are: refusals, entries of which a part is taken, completions that are
negative or short, descriptors that are closed by the time the kernel looks.  Another file, a copy, shrinks
and grows again all the time.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import random
import shutil
import sys
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from soaking import IDLE_S, descriptors, on_threads, wait_until_closed, wrong

import headrace
from headrace.arenas import arenas
from headrace.backends import _rings
from headrace.backends._ring import LinuxKernel, Ring

PATH, COUNT = sys.argv[1], int(sys.argv[2])
LIBC, PR_SET_THP_DISABLE = ctypes.CDLL(None), 41
FD = os.open(PATH, os.O_RDONLY)
CONTENT = np.frombuffer(Path(PATH).read_bytes(), np.uint8)
SIZE = len(CONTENT)
SHRINKING = f"{PATH}.shrinking"
LEAST = SIZE - SIZE // 10
"""Bytes of it that are always there."""

is_shrinking = threading.Lock()
CLOSED = 1 << 20
"""A descriptor that nobody is given."""

random.seed(4)  # as far as threads allow, a run can be repeated
chance_of_all = np.random.default_rng(4)
faults: Counter[str] = Counter()
RESULTS = {"EIO": -errno.EIO, "EINTR": -errno.EINTR, "EAGAIN": -errno.EAGAIN, "none": 0, "short": 1}


class Watched(Ring):
    """A ring whose kernel knows it."""

    def __init__(self, entries: int, kernel: Any) -> None:
        super().__init__(entries, kernel)
        kernel.ring = weakref.ref(self)


class Busy(LinuxKernel):
    """Refuses one submission in twenty, takes a part of many others, and fails some reads."""

    ring: weakref.ref[Watched]

    def enter(self, fd: int, submit: int, least: int, *, keep_gil: bool) -> int:
        chance = random.random()
        if chance < 0.05:
            faults["refused"] += 1
            return -random.choice((errno.EINTR, errno.EAGAIN, errno.EBUSY))
        if chance < 0.3 and submit > 1:
            faults["in parts"] += 1
            submit, least = random.randrange(1, submit), 0
        ring = self.ring()
        assert ring is not None
        if chance > 0.7:
            self._close_descriptors(ring, submit)
        answer = super().enter(fd, submit, least, keep_gil=keep_gil)
        if chance > 0.7:
            self._fail(ring)
        return answer

    def _close_descriptors(self, ring: Watched, submit: int) -> None:
        """Have one entry in ten find its file closed."""
        slots = self._some(ring._sq_head, submit) & (ring.entries - 1)
        ring._sqes["fd"][slots] = CLOSED
        faults["closed"] += len(slots)

    def _fail(self, ring: Watched) -> None:
        """Have one read in ten end otherwise than it did: never with more bytes."""
        done = int(ring._cq_tail[0]) - int(ring._cq_head[0])
        for slot in (self._some(ring._cq_head, done) & (ring.cq_entries - 1)).tolist():
            name, result = random.choice(list(RESULTS.items()))
            if ring._cqe_results[slot] > result:
                ring._cqe_results[slot] = result
                faults[name] += 1

    def _some(self, head: Any, count: int) -> Any:
        """Choose a tenth of so many places from `head` on."""
        return int(head[0]) + np.flatnonzero(chance_of_all.random(max(0, count)) < 0.1)


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


def shrunk(fs: Any, starts: list[int], ends: list[int]) -> None:
    """Read what shrinks; of what comes again at its end a reader may see the zeros before the bytes."""
    if is_shrinking.acquire(blocking=False):
        try:
            with open(SHRINKING, "r+b", buffering=0) as file:  # noqa: PTH123
                file.truncate(left := random.randrange(LEAST, SIZE))
                found = fs.read_ranges(SHRINKING, starts, ends).to_pylist()
                os.pwrite(file.fileno(), CONTENT[left:], left)
        finally:
            is_shrinking.release()
    else:
        found = fs.read_ranges(SHRINKING, starts, ends).to_pylist()
    missing = 0
    for data, start, end in zip(found, starts, ends, strict=True):
        got = np.frombuffer(data, np.uint8)
        differs = start + np.flatnonzero(got != CONTENT[start : start + len(got)])
        assert not differs.size or (differs[0] >= LEAST and not got[differs - start].any()), (start, end)
        assert start + len(got) >= min(end, LEAST), (start, end)
        missing += min(end, SIZE) - min(start, SIZE) - len(got)
    faults["shrunk"] += missing > 0


WORK = (at_once, at_once, listed, submitted, dropped, cancelled, shrunk)


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
shutil.copyfile(PATH, SHRINKING)
assert _rings.probe() is None  # by a kernel that does not fail
_rings.LinuxKernel, _rings.Ring = Busy, Watched  # type: ignore[misc]
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
    "faults": faults,
    "rest": [stats.in_flight_ops, stats.reserved_bytes],
    "before": before,
    "after": after,
    "threads": Counter(thread.name for thread in threading.enumerate()),
}
sys.stdout.write(json.dumps(answer) + "\n")
