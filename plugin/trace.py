"""The trace: when every op was queued, admitted, submitted, completed and consumed.

Recording appends one tuple an event (a slice of ops, not an op) to a list, and only while a trace is
open. What is drawn and exported is made afterwards.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from typing_extensions import override

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
        A file it reads: the first, where there are several.
    priority
        ``(base, position)``.
    start, end
        Bytes of the request's ops, counted from its first one.
    """

    time_s: float
    event: str
    request: int
    path: str
    priority: tuple[int, int]
    first_op: int
    end_op: int
    start: int
    end: int


class Trace:
    """What was recorded; see `trace`."""

    def __init__(self) -> None:
        self._raw: list[tuple[float, str, Request, int, int]] = []

    def record(self, event: str, request: Request, lo: int, hi: int, now: float) -> None:
        """Append one event; called by hubs, atomic."""
        self._raw.append((now, event, request, lo, hi))

    def __len__(self) -> int:
        return len(self._raw)

    @property
    def events(self) -> list[TraceEvent]:
        """All events, in order of time."""
        numbers: dict[int, int] = {}  # several engines count from one
        return [
            _event(numbers.setdefault(id(raw[2]), len(numbers) + 1), *raw)
            for raw in sorted(self._raw, key=lambda raw: raw[0])
        ]

    def to_json(self, path: str | Path) -> None:
        """Write the events as JSON: a list of objects with the fields of `TraceEvent`."""
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

        draw(self.events, path)

    @override
    def __repr__(self) -> str:
        return f"<headrace.Trace of {len(self)} events>"


def _event(number: int, now: float, event: str, request: Request, lo: int, hi: int) -> TraceEvent:
    start = request.bytes_between(0, lo)
    return TraceEvent(
        now,
        event,
        number,
        str(request.label or ""),
        (request.priority.base, request.priority.position),
        lo,
        hi,
        start,
        start + request.bytes_between(lo, hi),
    )


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
