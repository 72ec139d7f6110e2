"""Statistics, and views with a priority of their own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from targets import OTHER, Target, at_rest

import headrace
from headrace.drivers.engine import Engine
from headrace.runtime import runtime


def test_stats(target: Target, scheduled_mode: str) -> None:
    fs = target.headrace(scheduler=scheduled_mode)
    before = fs.stats()
    fs.read_ranges(target.big, [0, 100_000, 200_000], [1_000, 101_000, 201_000])
    after = fs.stats()
    assert after.bytes_delivered - before.bytes_delivered == 3_000
    assert after.ops_completed > before.ops_completed
    assert after.in_flight_ops == after.reserved_bytes == 0
    with pytest.raises(AttributeError):
        after.bytes_delivered = 0
    assert f"bytes_delivered={after.bytes_delivered}" in repr(after)
    assert after._repr_html_().lstrip().startswith("<")
    odd = dataclasses.replace(after, engine_reason="not <this>")
    assert "not &lt;this&gt;" in odd._repr_html_()


def test_process_stats_cover_all(targets: dict[str, Target], scheduled_mode: str) -> None:
    before = headrace.stats()
    for name in ("file", "memory"):
        target = targets[name]
        target.headrace(scheduler=scheduled_mode).cat_file(target.big, start=0, end=1_000)
    assert headrace.stats().bytes_delivered - before.bytes_delivered == 2_000


@pytest.mark.parametrize(("limits", "expected"), [((3, 4), 7), ((3, 0), 0), ((0, 4), 0), ((3,), 3)])
def test_a_process_has_no_limit_where_one_of_its_engines_has_none(
    limits: tuple[int, ...], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = [Engine(buffer_bytes=limit, process_io_limit=limit) for limit in limits]
    monkeypatch.setattr(type(runtime()), "engines", engines)
    found = headrace.stats()
    assert (found.buffer_bytes, found.process_io_limit) == (expected, expected)


def test_off_counts_nothing(disk: Target) -> None:
    fs = disk.headrace(scheduler="off")
    before = headrace.stats()
    fs.cat_file(disk.big)
    fs.read_ranges(disk.big, [0], [10])
    assert headrace.stats() == before


def test_with_priority_is_a_view(target: Target, options: dict[str, object]) -> None:
    fs = target.headrace(**options)
    view = fs.with_priority(-1)
    assert isinstance(view, headrace.HeadraceFileSystem)
    assert view.cat_file(target.small) == OTHER
    assert view.read_ranges(target.small, [0], [5], priority=3).to_pylist() == [OTHER[:5]]
    with view.open(target.small, "rb", priority=-2) as file:
        assert file.read() == OTHER
    with headrace.priority(-1):
        assert fs.cat_file(target.small) == OTHER
    assert at_rest(fs)


def test_with_priority_shares_the_scheduler(disk: Target, scheduled_mode: str) -> None:
    fs = disk.headrace(scheduler=scheduled_mode)
    before = fs.stats().ops_completed
    fs.with_priority(-1).cat_file(disk.small)
    assert fs.stats().ops_completed > before


@pytest.mark.parametrize("priority", ["urgent", 1.5, True, (1, 2, 3)])
def test_a_bad_priority_is_refused(disk: Target, mode: str, priority: Any) -> None:
    fs = disk.headrace(scheduler=mode)
    with pytest.raises((TypeError, ValueError), match="priority"):
        fs.with_priority(priority)


def test_a_trace_in_a_trace_takes_nothing_from_it(disk: Target, scheduled_mode: str) -> None:
    fs = disk.headrace(scheduler=scheduled_mode)
    with headrace.trace() as outer:
        with headrace.trace() as inner:
            fs.read_ranges(disk.big, [0], [10])
        fs.read_ranges(disk.big, [10], [20])
    assert len(outer) == 2 * len(inner) > 0
    fs.read_ranges(disk.big, [20], [30])
    assert len(outer) == 2 * len(inner)


def test_requests_of_two_engines_are_two(disk: Target, scheduled_mode: str) -> None:
    """Each engine counts from one."""
    with headrace.trace() as trace:
        for budget in (64 << 20, 65 << 20):
            fs = disk.headrace(scheduler=scheduled_mode, buffer_bytes=budget)
            fs.read_ranges(disk.big, [0], [10])
    assert {event.request for event in trace.events} == {1, 2}


def test_a_picture_leaves_the_programs_plots_alone(tmp_path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    try:
        headrace.Trace().to_png(tmp_path / "timeline.png")
        assert mpl.get_backend() == "svg"
    finally:
        mpl.use("Agg")
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
