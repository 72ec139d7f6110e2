"""Batches of short ranges which the page cache holds, answered without a plan.

Copying a short range costs less than planning it. So ranges are copied in the caller's order, a slice at a
time, while there is room for it and nobody waits (`Scheduler.has_room`; numbers are only looked at, so
nobody's section is kept waiting). The first miss ends that: the batch is planned and scheduled like any
other. Reads that the probes of that slice set going fitted the window then, but are not charged to it: at the
most a slice for each thread that meets a miss.

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
from headrace.threads import raise_if_of_a_handler
from headrace.types import Ops

if TYPE_CHECKING:
    from headrace.core.scheduler import Scheduler
    from headrace.ranges import Ranges
    from headrace.runtime import Channel

SLICE_BYTES = 1 << 20
SLICE_ROWS = 256
"""Copied at once, if the window has room for it: some tenths of a millisecond, and one call of a ring."""

MOST_COPIES = 64
"""Made at once, at the most: there are no more rings, and without one the GIL is kept."""


def read_cached(channel: Channel, ranges: Ranges, out: Any) -> RangeBatch | None:
    """Answer ranges from the page cache, or say that they must be scheduled."""
    if not channel.quick_bytes or not len(ranges) or not isinstance(channel.backend, InlineBackend):
        return None
    if not channel.backend.probes_rows or channel.engine.is_inside():
        return None  # nothing to find, or a signal handler that interrupted a section
    length = difference(ranges.ends, ranges.starts)
    longest = largest(length)
    offsets = offsets_of(length)
    total = int(offsets[-1])
    devices = {channel.backend.device(path) for path in ranges.paths}
    is_short = out is not None and memoryview(out).nbytes < total  # planned, equal ranges are one
    if longest > channel.quick_bytes or len(devices) > 1 or is_short:
        return None
    try:
        is_open = ranges.source is not None
        sources = [ranges.source] if is_open else [channel.backend.open(path) for path in ranges.paths]
        for source in sources:
            advise_scattered(source)  # a probe that misses reads ahead
    except (OSError, ValueError) as error:
        raise_if_of_a_handler(error)
        return None  # the scheduled way says whose error it is
    limit = channel.settings.buffer_bytes
    buffer = arenas.take(total, limit) if out is None else checked_out(out, total)
    ops = Ops.of(sources, (ranges.file, ranges.starts, length, offsets[:-1]), buffer)
    is_whole = _copy(channel, channel.backend, ops, ranges.paths[0], longest)
    channel.engine.drain_dropped()
    if not is_whole:
        return None
    return RangeBatch.whole(buffer, offsets, length)


def _copy(channel: Channel, backend: InlineBackend, ops: Ops, path: str, longest: int) -> bool:
    """Copy all, a slice at a time; False at the first miss."""
    engine, scheduler = channel.engine, channel.scheduler(path)
    rows = max(1, min(SLICE_ROWS, min(SLICE_BYTES, scheduler.room.limit_bytes) // max(longest, 1)))
    # Where few ops may be in flight one thread copies at a time (I1).
    may_share = channel.most_ops >= MOST_COPIES
    done = 0
    try:
        for lo in range(0, len(ops), rows):
            hi = min(lo + rows, len(ops))
            if not _copy_slice(channel, scheduler, ops, lo, hi, may_share=may_share):
                break
            done = hi
    except BaseException:
        backend.drain()  # nothing is written any more to memory that is the caller's again (I9)
        raise
    finally:
        if done:
            with engine.lock:
                scheduler.count_hit(int(ops.dest[done - 1] + ops.length[done - 1]), done)
    return done == len(ops)


def _copy_slice(
    channel: Channel, scheduler: Scheduler, ops: Ops, lo: int, hi: int, *, may_share: bool
) -> bool:
    backend: InlineBackend = channel.backend  # type: ignore[assignment]
    engine, copies = channel.engine, channel.copies
    nbytes = int(ops.dest[hi - 1] + ops.length[hi - 1] - ops.dest[lo])
    copy = copies.begin(may_share=may_share)
    try:
        with contextlib.nullcontext() if may_share else engine.lock:
            if engine.hub.trace is not None or not scheduler.has_room(nbytes):
                return False
            return backend.probe_rows(ops, lo, hi, keeps_gil=copy.keeps_gil)
    finally:
        if copies.end(copy):
            channel.shorten_turns()
