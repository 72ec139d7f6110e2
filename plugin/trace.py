"""The trace: when every op was queued, admitted, submitted, completed and consumed.

Recording appends one tuple an event (a slice of ops, not an op) to a list, and only while a trace is
open. What is drawn and exported is made afterwards.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from typing_extensions import override

from headrace.jobs import OpRange, Places
from headrace.runtime import runtime

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.core.request import Request

EVENTS = ("queued", "admitted", "submitted", "completed", "consumed")


class TraceEvent(NamedTuple):
    """One step of the ops ``[first_op, end_op)`` of a request.

    Attributes
    ----------
    time_s
        On the clock of `time.perf_counter`.
    event
        One of `EVENTS`.
    request
        Its number, in the order in which requests are met in the trace.
    path
        The file that its first op reads.
    priority
        ``(base, position)``.
    ranges
        What each of the ops reads, in the order in which they are performed: file, and bytes. Empty for a
        request that was made before the trace began.
    """

    time_s: float
    event: str
    request: int
    path: str
    priority: tuple[int, int]
    first_op: int
    end_op: int
    ranges: tuple[OpRange, ...]

    @property
    def start(self) -> int | None:
        """Offset in the file of the first op's first byte."""
        return self.ranges[0].start if self.ranges else None

    @property
    def end(self) -> int | None:
        """Offset behind the last op's last byte, in its file; None also where that ends with the file."""
        return self.ranges[-1].end if self.ranges else None


class Trace:
    """What was recorded; see `trace`."""

    def __init__(self) -> None:
        self._raw: list[tuple[float, str, _Traced, tuple[int, int], int, int]] = []
        # Not the requests themselves, which hold what they have read.
        self._requests: weakref.WeakKeyDictionary[Request, _Traced] = weakref.WeakKeyDictionary()
        self._numbers = itertools.count(1)

    def record(self, event: str, request: Request, lo: int, hi: int, now: float) -> None:
        """Append one event; called by hubs."""
        traced = self._requests.get(request)
        if traced is None:
            traced = self._requests[request] = _Traced(next(self._numbers), request.label)
        self._raw.append((now, event, traced, request.priority, lo, hi))

    def __len__(self) -> int:
        return len(self._raw)

    @property
    def events(self) -> list[TraceEvent]:
        """All events, in order of time."""
        return self._events(has_ranges=True)

    def _events(self, *, has_ranges: bool) -> list[TraceEvent]:
        return [_event(*raw, has_ranges=has_ranges) for raw in sorted(self._raw, key=lambda raw: raw[0])]

    def to_json(self, path: str | Path) -> None:
        """Write the events as JSON: a list of objects with the fields of `TraceEvent`; ranges are lists."""
        rows: list[dict[str, Any]] = [event._asdict() for event in self.events]
        Path(path).write_text(json.dumps(rows, indent=0), encoding="utf-8")

    def to_png(self, path: str | Path) -> None:
        """Draw the events as a timeline: a bar for each slice of ops, a row for each request.

        Raises
        ------
        ImportError
            matplotlib is missing: ``pip install headrace[plot]``.
        """
        from headrace.timeline import draw  # noqa: PLC0415

        draw(self._events(has_ranges=False), path)  # of a million ops they are many, and none is drawn

    @override
    def __repr__(self) -> str:
        return f"<headrace.Trace of {len(self)} events>"


class _Traced(NamedTuple):
    """A request as the trace knows it: several engines count theirs from one."""

    number: int
    label: object


def _event(
    now: float,
    event: str,
    traced: _Traced,
    priority: tuple[int, int],
    lo: int,
    hi: int,
    *,
    has_ranges: bool,
) -> TraceEvent:
    ranges = traced.label.ranges(lo, hi) if has_ranges and isinstance(traced.label, Places) else ()
    path = ranges[0].path if ranges else str(traced.label or "")
    return TraceEvent(now, event, traced.number, path, priority, lo, hi, ranges)


@contextlib.contextmanager
def trace() -> Iterator[Trace]:
    """Record every op of this process while the block runs, beside other traces that are.

    >>> import headrace
    >>> with headrace.trace() as recorded:
    ...     pass
    >>> len(recorded)
    0
    """
    recorded = Trace()
    found = runtime()
    found.add_trace(recorded.record)
    try:
        yield recorded
    finally:
        found.remove_trace(recorded.record)
