"""Snapshots of what headrace does: counters, limits, and what is in flight now.

Frozen dataclasses: a snapshot never changes, two can be subtracted by hand. Shown as a table in a notebook.
The identity that always holds, once nothing is in flight::

    bytes_admitted == bytes_delivered + bytes_gap - bytes_shared + bytes_short + bytes_abandoned
"""

from __future__ import annotations

import dataclasses
import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.redact import redact_url
from headrace.runtime import engine_reason, runtime

if TYPE_CHECKING:
    from headrace.core.hub import Counters
    from headrace.core.scheduler import Scheduler
    from headrace.drivers.engine import Engine
    from headrace.runtime import Channel


_QUICK_COUNTS_AS = (
    "requests_submitted", "requests_consumed", "ops_admitted", "ops_completed", "ops_hit",
    "bytes_admitted", "bytes_completed", "bytes_delivered",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """One scheduler.

    Attributes
    ----------
    device
        What it schedules.
    in_flight_ops, in_flight_bytes
        Admitted and not complete; of a call of the native engine the ops that are under way.
    queued_requests
        Requests with ops still to be admitted.
    window_bytes, window_ops
        The short-queue window now, in bytes (disks) or requests (stores); None where there is none.
    uploading_ops
        What the writes under way count as, in requests; they take no more than half of the window.
    retries, retries_refused
        Attempts after the first one, and those that were not made: attempts or budget were spent.
    hedges
        Second requests for ops that were late.
    """

    device: str
    in_flight_ops: int
    in_flight_bytes: int
    queued_requests: int
    window_bytes: int | None
    window_ops: int | None = None
    uploading_ops: int = 0
    retries: int = 0
    retries_refused: int = 0
    hedges: int = 0


@dataclass(frozen=True, slots=True)
class Stats:
    """An engine, as it was when it was asked; bytes and counts since the process began.

    Attributes
    ----------
    mode, backend, engine_reason
        Of the filesystem that was asked; empty for the whole process. The reason is why this engine reads an
        object store and not the other; empty for other storage.
    requests_submitted, requests_consumed, requests_nested
        Requests made, those whose result was taken, and those that ran inside an op of ours (a chain).
    ops_admitted, ops_completed, in_flight_ops, ops_hit
        Ops that were started, that ended, that have not ended yet, and that the page cache answered.
    reserved_bytes, peak_reserved_bytes, buffer_bytes
        Held for results now, at most so far, and the budget (0: no limit).
    process_io_limit
        Ops in flight over all devices at the most (0: no limit).
    devices
        What is read from; not in the table of a notebook.
    bytes_admitted, bytes_completed, bytes_delivered
        Of ops that were started, of ops that ended, and of ranges, as their callers took them.
    bytes_gap, bytes_shared
        Read between ranges and delivered to nobody, and delivered to more than one of them.
    bytes_abandoned
        Of requests that nobody took.
    bytes_short
        Admitted and not delivered: past the end of a file, of ranges that failed, and what an op of unknown
        length was taken to be beyond what it was (less than nothing where it was longer).
    """

    mode: str = ""
    backend: str = ""
    engine_reason: str = ""
    requests_submitted: int = 0
    requests_consumed: int = 0
    requests_nested: int = 0
    ops_admitted: int = 0
    ops_completed: int = 0
    ops_hit: int = 0
    in_flight_ops: int = 0
    bytes_admitted: int = 0
    bytes_completed: int = 0
    bytes_delivered: int = 0
    bytes_gap: int = 0
    bytes_shared: int = 0
    bytes_short: int = 0
    bytes_abandoned: int = 0
    reserved_bytes: int = 0
    peak_reserved_bytes: int = 0
    buffer_bytes: int = 0
    process_io_limit: int = 0
    devices: tuple[DeviceStats, ...] = ()

    @property
    def requests_completed(self) -> int:
        """Requests whose result was taken."""
        return self.requests_consumed

    @property
    def bytes_read(self) -> int:
        """Bytes of ops that came back; what was asked beyond the end of a file is none, once it is known."""
        return self.bytes_completed - self.bytes_short

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return dataclasses.asdict(self)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td style='text-align:right'>{html.escape(_shown(value))}</td></tr>"
            for name, value in self.to_dict().items()
            if name != "devices"
        )
        return f"<table>{rows}</table>"


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _device(scheduler: Scheduler) -> DeviceStats:
    window = scheduler.room.window
    return DeviceStats(
        device=redact_url(
            ":".join(map(str, scheduler.device))
            if isinstance(scheduler.device, tuple)
            else str(scheduler.device)
        ),
        in_flight_ops=scheduler.room.in_flight_ops,
        in_flight_bytes=scheduler.room.in_flight_bytes,
        queued_requests=scheduler.waiting,
        window_bytes=None if window is None or scheduler.room.counts_ops else window.limit,
        window_ops=window.limit if window is not None and scheduler.room.counts_ops else None,
        uploading_ops=scheduler.room.uploads.ops,
        retries=scheduler.retries.granted,
        retries_refused=scheduler.retries.refused,
        hedges=0 if scheduler.hedge is None else scheduler.hedge.sent,
    )


def _all_counters(counters: Counters) -> dict[str, int]:
    """Spread the ops that were admitted, performed and delivered in one section over what they were."""
    found = {name: getattr(counters, name) for name in counters.__slots__}
    ops, nbytes = found.pop("quick_ops"), found.pop("quick_bytes")
    for name in _QUICK_COUNTS_AS:
        found[name] += nbytes if name.startswith("bytes") else ops
    return found


def _of_engine(engine: Engine, mode: str = "", backend: str = "", reason: str = "") -> Stats:
    with engine.lock, engine as hub:
        counters = _all_counters(hub.counters)
        return Stats(
            mode=mode,
            backend=backend,
            engine_reason=reason,
            in_flight_ops=hub.in_flight_ops,
            reserved_bytes=hub.budget.reserved_bytes,
            peak_reserved_bytes=hub.budget.peak_bytes,
            buffer_bytes=hub.budget.limit_bytes,
            process_io_limit=hub.process_io_limit,
            devices=tuple(_device(scheduler) for scheduler in hub.schedulers.values()),
            **counters,
        )


def snapshot(channel: Channel | None) -> Stats:
    """Return the stats of a channel's engine; of nothing under ``off``."""
    if channel is None:
        return Stats(mode="off")
    return _of_engine(channel.engine, channel.mode, channel.backend.name, engine_reason(channel))


def stats() -> Stats:
    """Return the stats of the whole process: the sum over its engines, which ordinarily are one.

    Where one of them has no limit there is none of the process. Peaks were not all at one moment.
    """
    found = [_of_engine(engine) for engine in runtime().engines]
    if not found:
        return Stats()
    summed = {
        field.name: sum(getattr(one, field.name) for one in found)
        for field in dataclasses.fields(Stats)
        if field.name not in ("mode", "backend", "engine_reason", "devices")
    }
    for limit in ("buffer_bytes", "process_io_limit"):
        if not all(getattr(one, limit) for one in found):
            summed[limit] = 0
    return Stats(devices=tuple(device for one in found for device in one.devices), **summed)
