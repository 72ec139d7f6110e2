"""Is interrupted by signals at random moments; run by ``test_reentrancy.py``.

Arguments: what the handler does (``raises``, ``reads``, ``collects``), a protocol, a file, how many
reads.  The mode comes from the environment.  Prints what it found as JSON.
"""

from __future__ import annotations

import gc
import json
import random
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import slow
from soaking import descriptors

import headrace
from headrace.backends import fsspec_sync

HANDLER, PROTOCOL, PATH, COUNT = sys.argv[1:5]
CONTENT = Path(PATH).read_bytes()
REST_S = 20.0
fsspec_sync.THREAD_SAFE |= {"slow.SlowFileSystem"}
slow.delay_s = 0.0
chance = random.Random(3)
wrong: list[str] = []
count = {"signals": 0, "armed": 0, "raised": 0, "unraisable": 0, "refused": 0, "others": 0}


class LateError(TimeoutError):
    """What the handler raises, as an alarm does, and nothing else."""


def again() -> None:
    signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.00002, 0.002))


def raises(_number: int, _frame: FrameType | None) -> None:
    count["signals"] += 1
    if is_armed:
        count["armed"] += 1
        raise LateError


def note_unraisable(given: Any) -> None:
    """Count what came in a finaliser, where Python can only tell of it."""
    if isinstance(given.exc_value, LateError):
        count["unraisable"] += 1
    else:
        sys.__unraisablehook__(given)


def reads(_number: int, _frame: FrameType | None) -> None:
    count["signals"] += 1
    try:
        if fs.cat_file(PATH, 7, 77) != CONTENT[7:77]:
            wrong.append("the handler read wrong bytes")
    except RuntimeError:
        count["refused"] += 1  # in the middle of headrace's own section, and said so
    again()


def collects(_number: int, _frame: FrameType | None) -> None:
    """Collect a read that nobody wants any more, wherever this thread is."""
    count["signals"] += 1
    knot: list[Any] = [spare.pop()] if spare else []
    knot.append(knot)
    del knot
    gc.collect(0)
    again()


def read_once(number: int) -> None:
    start = number * 37 % (len(CONTENT) - 100)
    if number % 3 == 0:
        got = [bytes(fs.cat_file(PATH, start, start + 50))]
        asked = [CONTENT[start : start + 50]]
    elif number % 3 == 1:
        starts = [start, 0, start + 20]
        got = fs.read_ranges(PATH, starts, [s + 30 for s in starts]).to_pylist()
        asked = [CONTENT[s : s + 30] for s in starts]
    else:
        read = fs.submit_ranges(PATH, [start], [start + 40])
        if HANDLER == "collects":
            spare.append(fs.submit_ranges(PATH, [start], [start + 40]))
        got, asked = [bytes(read.result()[0])], [CONTENT[start : start + 40]]
    if got != asked:
        wrong.append(f"wrong bytes in read {number}")


def others() -> None:
    """Read on another thread, undisturbed by what happens on the main one."""
    try:
        while not is_over.is_set():
            read_once(3 * count["others"])
            count["others"] += 1
    except BaseException as error:  # noqa: BLE001
        wrong.append(f"another thread's read failed: {error!r}")


def main() -> None:
    global is_armed  # noqa: PLW0603
    for number in range(int(COUNT)):
        try:
            is_armed = True
            if HANDLER == "raises":
                again()
            read_once(number)
            is_armed = False
        except LateError:
            is_armed = False
            count["raised"] += 1
    is_armed = False


sys.unraisablehook = note_unraisable
fs: Any = headrace.HeadraceFileSystem(target_protocol=PROTOCOL)
spare: list[Any] = []
for first in range(3):
    read_once(first)
is_over = threading.Event()
is_armed = False
other = threading.Thread(target=others, daemon=True)  # what ends the main thread shall end the process
other.start()
signal.signal(signal.SIGALRM, globals()[HANDLER])
again()
try:
    main()
except LateError:  # between the last two lines of the loop
    is_armed = False
    count["raised"] += 1
signal.signal(signal.SIGALRM, signal.SIG_IGN)
signal.setitimer(signal.ITIMER_REAL, 0)
is_over.set()
other.join(REST_S)
if other.is_alive():
    wrong.append("another thread's read hangs")
spare.clear()
gc.collect()
engine = fs.channel.engine
if engine.lost:  # a finaliser was cut, and no section came after it
    engine.catch_up()
deadline_s = time.monotonic() + REST_S
while fs.stats().in_flight_ops and time.monotonic() < deadline_s:
    time.sleep(0.001)
with engine.lock:
    engine.hub.settle(time.perf_counter())
    engine.hub.validate()
stats = fs.stats()
rest = [stats.in_flight_ops, stats.reserved_bytes]
rest += [sum(len(s.requests) for s in engine.hub.schedulers.values()), descriptors()[PATH]]
sys.stdout.write(json.dumps({"wrong": wrong[:5], "rest": rest, **count}) + "\n")
