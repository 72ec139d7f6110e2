"""Reads ahead of a consumer which is ten times slower than the storage; run by ``test_slow_consumer.py``.

Arguments: a file, bytes to read, the byte budget, bytes of a read.  The mode comes from the
environment.  Everything is submitted at once and consumed in order; prints the peaks as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import headrace

PATH, TOTAL, BUDGET, STEP = sys.argv[1], *map(int, sys.argv[2:5])
MEBIBYTE = 1 << 20


def resident(key: str) -> int:
    """Bytes of a line of ``/proc/self/status``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


fs = headrace.HeadraceFileSystem(target_protocol="file", buffer_bytes=BUDGET)
size = Path(PATH).stat().st_size
# Some reads of this size first: what allocators and threads, all of them, cost once is not what is measured.
for read in [fs.submit_ranges(PATH, [0], [STEP]) for _ in range(16)]:
    read.result()
del read
started_s = time.perf_counter()
fs.submit_ranges(PATH, [0], [STEP]).result()
pause_s = min(10 * (time.perf_counter() - started_s), 0.02)
Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
before = resident("VmRSS")
reads = [fs.submit_ranges(PATH, [start % size], [start % size + STEP]) for start in range(0, TOTAL, STEP)]
most = 0
for number in range(len(reads)):
    batch = reads[number].result()
    reads[number] = None
    assert len(batch[0]) == STEP
    stats = fs.stats()
    most = max(most, stats.reserved_bytes)
    del batch
    time.sleep(pause_s)
stats = fs.stats()
answer = {
    "peak_reserved": stats.peak_reserved_bytes,
    "most_reserved": most,
    "grown": resident("VmHWM") - before,
    "reserved": stats.reserved_bytes,
    "delivered": stats.bytes_delivered,
}
sys.stdout.write(json.dumps(answer) + "\n")
