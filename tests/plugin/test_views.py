"""Statistics, and views with a priority of their own."""

from __future__ import annotations

from typing import Any

import pytest
from targets import OTHER, Target, at_rest

import headrace


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
    assert "3" in repr(after)
    assert after._repr_html_().lstrip().startswith("<")


def test_process_stats_cover_all(targets: dict[str, Target], scheduled_mode: str) -> None:
    before = headrace.stats()
    for name in ("file", "memory"):
        target = targets[name]
        target.headrace(scheduler=scheduled_mode).cat_file(target.big, start=0, end=1_000)
    assert headrace.stats().bytes_delivered - before.bytes_delivered == 2_000


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
