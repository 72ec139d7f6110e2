"""Batches of short ranges which the page cache holds, answered without a plan.

Copying a short range costs less than planning it. So ranges are copied in the caller's order, a slice at a
time, while there is room for it and nobody waits: what the probes of one slice may set going was asked of
the window before (`Scheduler.has_room`; numbers are only looked at, so nobody's section is kept waiting). The
first miss ends that: the batch is planned and scheduled like any other.

The consumer copies in every mode: no device has a turn to give, and the way to the loop thread and back costs
two turns of the GIL.

No NumPy call here gives the GIL up (`headrace.columns`). Whether a slice does, and when others have it, is
for `drivers.copies` to say.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from headrace.arenas import arenas
from headrace.backends.abc import InlineBackend
from headrace.batch import RangeBatch
from headrace.columns import difference, largest, offsets_of
from headrace.quick import advise_scattered
from headrace.ranges import checked_out
from headrace.types import Ops

if TYPE_CHECKING:
    from headrace.ranges import Ranges
    from headrace.runtime import Channel

SLICE_BYTES = 1 << 20
"""Copied at once, if the window has room for so much: some tenths of a millisecond."""


def read_cached(channel: Channel, ranges: Ranges, out: Any) -> RangeBatch | None:
    """Answer ranges from the page cache, or say that they must be scheduled."""
    if not channel.quick_bytes or not len(ranges) or not isinstance(channel.backend, InlineBackend):
        return None
    if channel.engine.is_inside():
        return None  # a signal handler that interrupted a section
    length = difference(ranges.ends, ranges.starts)
    longest = largest(length)
    devices = {channel.backend.device(path) for path in ranges.paths}
    if longest > channel.quick_bytes or len(devices) > 1:
        return None
    try:
        sources = [channel.backend.open(path) for path in ranges.paths]
        for source in sources:
            advise_scattered(source)  # a probe that misses reads ahead
    except OSError:
        return None  # the scheduled way says whose error it is
    offsets = offsets_of(length)
    total = int(offsets[-1])
    limit = channel.settings.buffer_bytes
    buffer = arenas.take(total, limit) if out is None else checked_out(out, total)
    ops = Ops.of(sources, (ranges.file, ranges.starts, length, offsets[:-1]), buffer)
    is_whole = _copy(channel, channel.backend, ops, ranges.paths[0], longest)
    channel.engine.drain_dropped()
    if not is_whole:
        return None
    return RangeBatch.packed(buffer, offsets, length)


def _copy(channel: Channel, backend: InlineBackend, ops: Ops, path: str, longest: int) -> bool:
    """Copy all, a slice at a time; False at the first miss."""
    engine, scheduler, copies = channel.engine, channel.scheduler(path), channel.copies
    rows = max(1, min(SLICE_BYTES, scheduler.limit_bytes) // max(longest, 1))
    is_limited, done = engine.hub.process_io_limit > 0, 0
    for lo in range(0, len(ops), rows):
        hi = min(lo + rows, len(ops))
        nbytes = int(ops.dest[hi - 1] + ops.length[hi - 1] - ops.dest[lo])
        # Where the ops of the process are counted one thread copies at a time (I1).
        with engine.lock if is_limited else contextlib.nullcontext():
            if engine.hub.trace is not None or not scheduler.has_room(nbytes):
                break
            copy = copies.begin(may_share=not is_limited)
            if not backend.probe_rows(ops, lo, hi, keeps_gil=copy.keeps_gil):
                break
        copies.end(copy)
        done = hi
    if done:
        with engine.lock:
            scheduler.count_hit(int(ops.dest[done - 1] + ops.length[done - 1]), done)
    return done == len(ops)
