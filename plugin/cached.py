"""Batches of short ranges which the page cache holds, answered without a plan.

Copying a short range costs less than planning it. So ranges are copied in the caller's order, a slice at a
time and each slice within one section: there is room for it, nobody waits, nobody can be more urgent
meanwhile. The first miss ends that: the batch is planned and scheduled like any other, and what the probes of
one slice have set going was asked of the window before (`Scheduler.has_room`).

The consumer copies in every mode: no device has a turn to give, and the way to the loop thread and back costs
two turns of the GIL.

No NumPy call here gives the GIL up (`headrace.columns`). Others have theirs between two slices
(`drivers.turns`).
"""

from __future__ import annotations

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
"""Copied within one section, if the window has room for so much: a tenth of a millisecond or two."""


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
    """Copy all, a slice in a section; False at the first miss."""
    engine, scheduler = channel.engine, channel.scheduler(path)
    rows = max(1, min(SLICE_BYTES, scheduler.limit_bytes) // max(longest, 1))
    for lo in range(0, len(ops), rows):
        hi = min(lo + rows, len(ops))
        nbytes = int(ops.dest[hi - 1] + ops.length[hi - 1] - ops.dest[lo])
        with engine.lock:
            if engine.hub.trace is not None or not scheduler.has_room(nbytes):
                return False
            if not backend.probe_rows(ops, lo, hi):
                return False
            scheduler.count_hit(nbytes, hi - lo)
        channel.turns.let_others_in()
    return True
