"""Draws a trace as a PNG: time from left to right, a row for each request, urgent ones on top.

A thin line is the time a slice waited in the queue, a bar the time it was in flight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.trace import TraceEvent

NO_PLOTS = "plots need matplotlib: pip install 'headrace[plot]'"

_MOST_ROWS = 400
"""More requests are thinned out evenly: nobody can tell rows of a pixel apart."""


def draw(events: list[TraceEvent], path: str | Path) -> None:
    """Write the timeline of `events` to `path`."""
    try:
        import matplotlib as mpl  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(NO_PLOTS) from error
    # Not by pyplot, whose backend is the program's own.
    from matplotlib.figure import Figure  # noqa: PLC0415

    rows = _rows(events)
    figure = Figure(figsize=(12, min(3 + 0.12 * len(rows), 14)))
    axes = figure.subplots()
    origin = min((event.time_s for event in events), default=0.0)
    bases = sorted({event.priority[0] for event in events})
    colour = {base: mpl.colormaps["viridis"](k / max(len(bases), 1)) for k, base in enumerate(bases)}
    _bars(axes, events, rows, origin, colour)
    for base in bases:
        axes.bar(0, 0, color=colour[base], label=f"priority {base}")
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("request")
    axes.invert_yaxis()
    axes.set_title("queued (line) and in flight (bar)")
    if bases:
        axes.legend(loc="upper right")
    figure.savefig(path, dpi=120, bbox_inches="tight")


def _rows(events: list[TraceEvent]) -> dict[int, int]:
    """Give each request that is drawn its row: by priority, then by sequence."""
    requests = sorted({(event.priority, event.request) for event in events})
    step = max(1, -(-len(requests) // _MOST_ROWS))
    return {request: row for row, (_, request) in enumerate(requests[::step])}


def _bars(
    axes: Any, events: list[TraceEvent], rows: dict[int, int], origin: float, colour: dict[int, Any]
) -> None:
    queued: dict[int, float] = {}
    admitted: dict[tuple[int, int], float] = {}
    for event in events:
        row = rows.get(event.request)
        if row is None:
            continue
        at = (event.time_s - origin) * 1e3
        if event.event == "queued":
            queued[event.request] = at
        elif event.event == "admitted":
            admitted[event.request, event.first_op] = at
            axes.plot([queued.get(event.request, at), at], [row, row], color="0.7", linewidth=0.8)
        elif event.event == "completed":
            begin = admitted.pop((event.request, event.first_op), at)
            axes.barh(row, at - begin, left=begin, height=0.8, color=colour[event.priority[0]])
