"""Lists of short ranges, whose `bytes` are made while the rest of them is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import HeadraceFileSystem
from headrace.batch import are_alike
from headrace.core.plan import plan_ranges
from headrace.pieces import Pieces

SIZE = 8 << 20
CONTENT = np.random.default_rng(11).bytes(SIZE)
EACH = 4096


@given(
    starts=st.lists(st.integers(0, 400), min_size=1, max_size=60),
    length=st.integers(1, 40),
    max_gap=st.integers(-1, 20),
    max_op=st.integers(1, 60),
    turns=st.lists(st.integers(0, 500), max_size=8),
)
def test_pieces_of_any_plan(
    starts: list[int], length: int, max_gap: int, max_op: int, turns: list[int]
) -> None:
    """Merged, split, shared or apart, and whatever part of its ops is done at each turn."""
    first = np.array(starts)
    plan = plan_ranges(
        np.zeros(len(first), np.int64), first, first + length, max_gap_bytes=max_gap, max_op_bytes=max_op
    )
    assert are_alike(plan.range_length)
    buffer = np.zeros(plan.buffer_bytes, np.uint8)
    pieces, done = Pieces(plan, buffer), 0
    for ready in sorted(min(turn, len(plan.op_length)) for turn in [*turns, len(plan.op_length)]):
        for op in range(done, ready):  # only what is done may be looked at
            lo, n, dest = int(plan.op_start[op]), int(plan.op_length[op]), int(plan.op_dest[op])
            buffer[dest : dest + n] = np.frombuffer(CONTENT[lo : lo + n], np.uint8)
        done = ready
        pieces.make(done)
    assert pieces.all() == [CONTENT[start : start + length] for start in starts]


@pytest.mark.parametrize("lengths", [[], [0, 0], [5, 6], [1 << 20] * 2])
def test_what_has_no_pieces(lengths: list[int]) -> None:
    assert not are_alike(np.array(lengths, np.int64))


@pytest.fixture
def path(tmp_path: Path) -> str:
    found = tmp_path / "data.bin"
    found.write_bytes(CONTENT)
    return str(found)


@pytest.fixture(params=["uring", "pread"])
def cold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> HeadraceFileSystem:
    """A filesystem in lite mode whose page cache answers nothing at once."""
    fs = HeadraceFileSystem(target_protocol="file", scheduler="lite", local_backend=request.param)
    backend = fs.channel.backend
    monkeypatch.setattr(backend, "probe_rows", lambda *_given, **_how: False)
    return fs


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pieces were there after each turn."""
    turns: list[int] = []
    make = Pieces.make

    def noting(self: Pieces, done_ops: int) -> None:
        make(self, done_ops)
        turns.append(self._made)

    monkeypatch.setattr(Pieces, "make", noting)
    return turns


@pytest.mark.parametrize("cold", ["pread"], indirect=True)  # a ring finishes all that the page cache has
def test_a_cold_list_is_made_while_it_is_read(
    cold: HeadraceFileSystem, path: str, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cold.channel.backend, "start", lambda _ops, lo, hi: np.arange(lo, hi))
    starts = np.random.default_rng(3).permutation(SIZE // EACH)[:900] * EACH
    wanted = [CONTENT[start : start + EACH] for start in starts]
    assert cold.cat_ranges([path] * 900, starts.tolist(), (starts + EACH).tolist()) == wanted
    assert 0 < made[len(made) // 2] < 900, "all was made at the end"
    assert made[-1] == 900


def test_a_range_that_had_to_be_asked_again(
    cold: HeadraceFileSystem, path: str, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are not where they were made from."""
    backend, failing = cold.channel.backend, [True]
    finish_some = backend.finish_some

    def fails_once(ops: Any, rows: Any, least: int) -> Any:
        if failing and 0 in rows.tolist():
            failing.clear()
            raise OSError(5, "the first op fails")
        return finish_some(ops, rows, least)

    monkeypatch.setattr(backend, "start", lambda _ops, lo, hi: np.arange(lo, hi))
    monkeypatch.setattr(backend, "finish_some", fails_once)
    starts = [EACH * k for k in range(200) if k % 4 < 2]  # two share an op
    got = cold.cat_ranges([path] * 100, starts, [s + EACH for s in starts], max_gap=0)
    assert not failing
    assert made
    assert got == [CONTENT[start : start + EACH] for start in starts]


def test_ranges_beyond_the_end(cold: HeadraceFileSystem, path: str) -> None:
    starts = [SIZE - 10, 0, SIZE + 5]
    got = cold.cat_ranges([path] * 3, starts, [start + 20 for start in starts])
    assert got == [CONTENT[-10:], CONTENT[:20], b""]
    many = [SIZE - 10 * k for k in range(50)]
    got = cold.cat_ranges([path] * 50, many, [start + 25 for start in many])
    assert got == [CONTENT[start : start + 25] for start in many]


def test_a_list_may_be_changed(cold: HeadraceFileSystem, path: str) -> None:
    """It is the caller's alone."""
    starts = [EACH * k for k in range(40)]
    first = cold.cat_ranges([path] * 40, starts, [s + 9 for s in starts])
    first.clear()
    assert len(cold.cat_ranges([path] * 40, starts, [s + 9 for s in starts])) == 40
