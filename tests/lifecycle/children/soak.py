"""Reads small ranges and cancels, drops, fails or consumes them at random; run by ``test_soak.py``.

Arguments: a protocol, a directory with ``data.bin``, how many reads shall be cancelled, dropped or failed,
the options of the protocol's filesystem and those of headrace as JSON.  The mode comes from the environment.
Prints what is left at the end as JSON.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import slow
from soaking import IDLE_S, descriptors, on_threads, wait_until_closed, wrong

import headrace
from headrace.backends import fsspec_sync
from headrace.drivers import bulk

PROTOCOL, ROOT, COUNT = sys.argv[1:4]
TARGET_OPTIONS, OPTIONS = map(json.loads, sys.argv[4:6])
CONTENT = Path(ROOT, "data.bin").read_bytes()
FOLDER = "bucket" if PROTOCOL == "s3" else ROOT
DATA, MISSING, FAILING = (f"{FOLDER}/{name}.bin" for name in ("data", "missing", "failing"))
MOST_CONNECTIONS = 10 + 26
"""Of s3fs, which the native engine asks about errors, and has read some: it may keep so many idle."""
LASTING = ("headrace-loop", "fsspecIO", "asyncio_")
"""How the names of threads begin that live as long as the process, where there are any."""
fsspec_sync.THREAD_SAFE |= {"slow.SlowFileSystem"}
bulk.IDLE_S = 0.5
slow.failing = "failing"


def ranges(chance: random.Random) -> tuple[list[int], list[int]]:
    starts = [chance.randrange(len(CONTENT) - 100) for _ in range(chance.choice((1, 1, 2, 50)))]
    return starts, [start + 1 + chance.randrange(99) for start in starts]


def check(batch: Any, starts: list[int], ends: list[int]) -> None:
    got = batch.to_pylist()
    assert got == [CONTENT[start:end] for start, end in zip(starts, ends, strict=True)]


def consumed(fs: Any, starts: list[int], ends: list[int]) -> None:
    check(fs.submit_ranges(DATA, starts, ends).result(), starts, ends)


def at_once(fs: Any, starts: list[int], ends: list[int]) -> None:
    check(fs.read_ranges(DATA, starts, ends), starts, ends)
    assert fs.cat_file(DATA, starts[0], ends[0]) == CONTENT[starts[0] : ends[0]]


def cancelled(fs: Any, starts: list[int], ends: list[int]) -> None:
    read = fs.submit_ranges(DATA, starts, ends)
    if read.cancel():
        try:
            read.result()
        except headrace.errors.ReadCancelledError:
            return
        message = "a cancelled read had a result"
        raise AssertionError(message)
    check(read.result(), starts, ends)


def dropped(fs: Any, starts: list[int], ends: list[int]) -> None:
    fs.submit_ranges(DATA, starts, ends)


def dropped_in_a_cycle(fs: Any, starts: list[int], ends: list[int]) -> None:
    knot: list[Any] = [fs.submit_ranges(DATA, starts, ends)]
    knot.append(knot)


def failed(fs: Any, starts: list[int], ends: list[int]) -> None:
    for path in (MISSING, FAILING):
        batch = fs.submit_ranges([DATA, *[path] * len(starts)], [0, *starts], [9, *ends]).result()
        assert bytes(batch[0]) == CONTENT[:9]
        assert path == FAILING or len(batch.errors) == len(starts), dict(batch.errors)


SPOILT = (cancelled, dropped, dropped_in_a_cycle, failed)
WORK = (consumed, at_once, *SPOILT)


def work(chance: random.Random) -> int:
    """Do some; returns how many reads were cancelled, dropped or failed."""
    does = chance.choice(WORK)
    does(fs, *ranges(chance))
    return int(does in SPOILT)


def settled(fs: Any, before: set[threading.Thread], files: Counter[str] | None = None) -> None:
    """Wait until nothing is in flight, and until the threads that end when idle have ended."""
    deadline_s = time.monotonic() + IDLE_S
    while fs.stats().in_flight_ops and time.monotonic() < deadline_s:
        time.sleep(0.001)
    if PROTOCOL == "s3":  # how many connections it keeps is the engine's matter; they go with its stores
        backend = fs.channel.backend
        backend._stores = type(backend._stores)(backend._client)
    if files is not None:
        wait_until_closed(files, deadline_s)
    for thread in set(threading.enumerate()) - before:
        thread.join(max(0.0, deadline_s - time.monotonic()))


fs = headrace.HeadraceFileSystem(target_protocol=PROTOCOL, target_options=TARGET_OPTIONS, **OPTIONS)
begun = set(threading.enumerate())
on_threads(work, 40)
begun |= {thread for thread in threading.enumerate() if thread.name.startswith(LASTING)}
settled(fs, begun)
threads, files = set(threading.enumerate()), descriptors()
if PROTOCOL == "s3":
    files["socket"] += MOST_CONNECTIONS
started_s = time.monotonic()
on_threads(work, int(COUNT))
took_s = time.monotonic() - started_s
settled(fs, threads, files)
stats = fs.stats()
engine = fs.channel.engine
with engine.lock:
    engine.hub.validate()
answer = {
    "wrong": wrong,
    "in_flight": stats.in_flight_ops,
    "reserved": stats.reserved_bytes,
    "requests": sum(len(s.requests) for s in engine.hub.schedulers.values()),
    "threads": sorted(t.name for t in set(threading.enumerate()) - threads),
    "descriptors": sorted(descriptors() - files),
    "submitted": stats.requests_submitted,
    "took_s": round(took_s, 2),
}
sys.stdout.write(json.dumps(answer) + "\n")
