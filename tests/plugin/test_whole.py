"""Reads of which everything came are not looked at range by range, and tell the same of themselves."""

from __future__ import annotations

import itertools

import pytest

import headrace
from headrace.reader import Reader

CONTENT = bytes(range(256)) * 40
FAR = range(1000, 9000, 200)
STARTS = [500, 100, 150, 150, 40, 700, *FAR]
ENDS = [700, 200, 180, 180, 40, 710, *(start + 10 for start in FAR)]
"""One that touches another, one inside of another, twice, an empty one, and many by themselves."""

_budgets = itertools.count(96 << 20)
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
    stats, far = fs.stats(), 10 * len(FAR)
    counted = stats.bytes_delivered, stats.bytes_shared, stats.bytes_gap, stats.bytes_short
    assert counted == (370 + far, 60, 0, 0)
    assert stats.bytes_admitted == 310 + far


def test_what_is_behind_the_end_is_looked_at(fs: headrace.HeadraceFileSystem) -> None:
    end = len(CONTENT)
    batch = fs.read_ranges("/whole", [end - 10, end - 5, 0], [end, end + 5, 10])
    assert batch.to_pylist() == [CONTENT[-10:], CONTENT[-5:], CONTENT[:10]]
