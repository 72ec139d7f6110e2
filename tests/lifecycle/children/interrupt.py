"""Is interrupted in a read that takes `DELAY_S`; run by ``test_interrupt.py``.

Arguments: what to do, the target's protocol, a path.  Says ``reading`` when a slow read has begun
(``slow.py``).  The parent sends SIGINT; what is printed then, as JSON, is the time of the
exception and what is left behind, and last the time of the end (``at_the_end.py``).
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import at_the_end  # noqa: F401 - first of those that are called at the end
import pyarrow.dataset
import slow

import headrace
from headrace.drivers import interrupts

WORK, PROTOCOL, PATH = sys.argv[1:4]
DELAY_S = 3.0
IDLE_S = 20.0
"""Idle threads of headrace's own are gone long before this."""


def scan(fs: Any) -> None:
    dataset = pyarrow.dataset.dataset(PATH, filesystem=fs)
    slow.delay_s = DELAY_S
    dataset.to_table()


def scan_late(fs: Any) -> None:
    """Scan where no read of Arrow's comes soon after the interrupt."""
    interrupts.AFTERMATH_S = 0.0
    scan(fs)


def cat_file(fs: Any) -> None:
    slow.delay_s = DELAY_S
    fs.cat_file(f"{PATH}/lineitem.1.parquet")


def read_ranges(fs: Any) -> None:
    slow.delay_s = DELAY_S
    fs.read_ranges(f"{PATH}/lineitem.1.parquet", [0, 100_000], [10, 100_010])


def open_file(fs: Any) -> None:
    with fs.open(f"{PATH}/lineitem.1.parquet", "rb") as file:
        slow.delay_s = DELAY_S
        file.read(10)


def result(fs: Any) -> None:
    slow.delay_s = DELAY_S
    fs.submit_ranges(f"{PATH}/lineitem.1.parquet", [0], [10]).result()


def beside_another(fs: Any) -> None:
    """Be interrupted while another thread waits for the same storage: its read goes on."""
    path = f"{PATH}/lineitem.1.parquet"
    slow.delay_s = DELAY_S
    thread = threading.Thread(target=lambda: others.append(fs.cat_file(path, start=4, end=8)))
    thread.start()
    slow.has_begun.wait()
    slow.has_begun.clear()
    try:
        sys.stdout.write("beside\n")
        fs.cat_file(path, start=0, end=4)
    finally:
        interrupted_s = time.monotonic()
        thread.join()
        others.append(interrupted_s)


def then_scan(fs: Any) -> None:
    """Scan after the interrupt, slowly enough to be watched for another."""
    try:
        cat_file(fs)
    finally:
        slow.delay_s = 0.2
        rows.append(pyarrow.dataset.dataset(PATH, filesystem=fs).to_table().num_rows)


def uncaught(fs: Any) -> None:
    """Let the interpreter end of it."""
    scan(fs)


def measured(fs: Any) -> float:
    """Return when the exception came out of the read: once, so that this block runs undisturbed."""
    try:
        globals()[WORK](fs)
    except KeyboardInterrupt:
        return time.monotonic()
    return float("inf")


others: list[Any] = []
rows: list[int] = []
fs = headrace.HeadraceFileSystem(target_protocol=PROTOCOL)
first = f"{PATH}/lineitem.1.parquet"
fs.cat_file(first, start=0, end=4)  # the process's loop thread lives as long as the process
before = {thread for thread in threading.enumerate() if not thread.name.startswith("headrace-read")}
if WORK == "uncaught":
    uncaught(fs)
answer: dict[str, Any] = {"interrupted_s": measured(fs)}
if others:
    answer["other"], answer["interrupted_s"] = others[0].hex(), others[1]
deadline_s = time.monotonic() + IDLE_S
for thread in set(threading.enumerate()) - before:
    while thread.ident is None and time.monotonic() < deadline_s:
        time.sleep(0.001)  # the interrupt cut the wait for its start
    thread.join(max(0.0, deadline_s - time.monotonic()))
left = set(threading.enumerate()) - before
while (stats := fs.stats()).in_flight_ops and time.monotonic() < deadline_s:
    time.sleep(0.001)  # the loop is told at once that nobody wants the read, and ends it by itself
answer["threads"] = sorted(thread.name for thread in left)
answer["rest"] = [stats.in_flight_ops, stats.reserved_bytes]
# What comes after an interrupt works as ever.
slow.delay_s = 0.0
answer["rows"] = sum(rows)
answer["bytes"] = fs.cat_file(first, start=0, end=8).hex()
sys.stdout.write(json.dumps(answer) + "\n")
