"""Reads of which everything came are not looked at range by range, and tell the same of themselves."""

from __future__ import annotations

import itertools

import pytest

import headrace
from headrace.reader import Reader

CONTENT = bytes(range(256)) * 40
STARTS = [500, 100, 150, 150, 9000, 40, 700]
ENDS = [700, 200, 180, 180, 9100, 40, 710]
"""One that touches another, one inside of another, twice, one far off, and an empty one."""

_budgets = itertools.count(65 << 20)
"""One of its own has an engine, and so counters, of its own."""


@pytest.fixture
def fs(scheduled_mode: str) -> headrace.HeadraceFileSystem:
    fs = headrace.HeadraceFileSystem(
        target_protocol="memory",
        scheduler=scheduled_mode,
        buffer_bytes=next(_budgets),
        max_gap_bytes=64,
        skip_instance_cache=True,
    )
    fs.target.pipe_file("/whole", CONTENT)
    return fs


@pytest.mark.parametrize("are_listed", [False, True])
def test_what_is_all_there(
    fs: headrace.HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch, are_listed: bool
) -> None:
    def settle(*_: object) -> None:
        raise AssertionError("nothing is missing")

    monkeypatch.setattr(Reader, "_settle_all", settle)
    expected = [CONTENT[start:end] for start, end in zip(STARTS, ENDS, strict=True)]
    if are_listed:
        assert fs.cat_ranges(["/whole"] * len(STARTS), STARTS, ENDS) == expected
    else:
        batch = fs.read_ranges("/whole", STARTS, ENDS)
        assert batch.to_pylist() == expected
        assert batch.buffer.to_pybytes() == b"".join(expected)
    # From 100 on, what is between 200 and 500 not, and the two that lie in the first are there already.
    stats = fs.stats()
    assert (stats.bytes_delivered, stats.bytes_gap, stats.bytes_shared, stats.bytes_short) == (470, 0, 60, 0)
    assert stats.bytes_admitted == 410


def test_what_is_behind_the_end_is_looked_at(fs: headrace.HeadraceFileSystem) -> None:
    end = len(CONTENT)
    batch = fs.read_ranges("/whole", [end - 10, end - 5, 0], [end, end + 5, 10])
    assert batch.to_pylist() == [CONTENT[-10:], CONTENT[-5:], CONTENT[:10]]
