"""Bytes that are filled after they were made, and the advice the kernel gets for their pages."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import numpy as np
import pytest

import headrace
from headrace import memory
from headrace.memory import scattered_bytes, writable_bytes

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
PAGE = memory._HUGE_PAGE_BYTES or 2 * MIB  # the tests that need real ones are skipped without


@pytest.mark.parametrize("is_resident", [False, True])
@pytest.mark.parametrize("lengths", [[1], [5, 0, 3], [3 * MIB], [MIB] * 40, [300_000, 9 * MIB, 1, 2 * MIB]])
def test_bytes_are_filled_in_place(lengths: list[int], is_resident: bool) -> None:
    pieces, array, begins = scattered_bytes(lengths, is_resident=is_resident)
    expected = [np.random.default_rng(k).bytes(length) for k, length in enumerate(lengths)]
    for begin, data in zip(begins, expected, strict=True):
        array[begin : begin + len(data)] = np.frombuffer(data, np.uint8)
    assert pieces == expected
    assert [len(piece) for piece in pieces] == lengths


def test_the_array_keeps_the_bytes() -> None:
    """An op that comes too late writes into memory that is still there (I9)."""
    data, array = writable_bytes(100)
    owner = weakref.ref(array.base)
    del data
    view = array[10:20]
    del array
    gc.collect()
    view[:] = 7
    kept = owner()
    assert kept is not None
    assert kept.owner[0][10:20] == b"\7" * 10
    del view, kept
    gc.collect()
    assert owner() is None


class Advice:
    """Takes the place of ``madvise(2)``."""

    def __init__(self, *refused: int) -> None:
        self.calls: list[tuple[int, int, int]] = []
        self._refused = refused

    def __call__(self, first: int, length: int, advice: int) -> int:
        self.calls.append((first, length, advice))
        return -1 if advice in self._refused else 0

    def given(self) -> list[int]:
        return [advice for *_, advice in self.calls]


@pytest.fixture
def advice(monkeypatch: pytest.MonkeyPatch) -> Advice:
    found = Advice()
    monkeypatch.setattr(memory, "_madvise", found)
    monkeypatch.setattr(memory, "_HUGE", 14)
    monkeypatch.setattr(memory, "_HUGE_PAGE_BYTES", PAGE)
    return found


def test_small_ones_are_left_to_the_allocator(advice: Advice) -> None:
    scattered_bytes([1000] * 5, is_resident=True)
    assert advice.calls == []


def test_what_may_wait_is_only_advised(advice: Advice) -> None:
    scattered_bytes([9 * MIB])
    assert advice.given() == [14]


def test_what_is_wanted_now_is_made_at_once(advice: Advice) -> None:
    """In steps, each of whole pages, which leave none of those inside out."""
    begin, end = 5 * PAGE + 17, 5 * PAGE + 17 + 150 * MIB
    assert memory._collapse(begin, end)
    assert advice.given() == [memory._COLLAPSE] * 3
    assert all(first % PAGE == length % PAGE == 0 for first, length, _ in advice.calls)
    assert max(length for _, length, _ in advice.calls) <= memory._COLLAPSED_BYTES + PAGE
    made = {at for first, length, _ in advice.calls for at in range(first, first + length, PAGE)}
    assert made == set(range(6 * PAGE, end - PAGE + 1, PAGE))


def test_a_kernel_that_cannot_is_only_advised(monkeypatch: pytest.MonkeyPatch, advice: Advice) -> None:
    refusing = Advice(memory._COLLAPSE)
    monkeypatch.setattr(memory, "_madvise", refusing)
    scattered_bytes([9 * MIB], is_resident=True)
    assert refusing.given() == [memory._COLLAPSE, 14]


def test_an_administrator_who_wants_no_huge_pages_gets_none(
    monkeypatch: pytest.MonkeyPatch, advice: Advice
) -> None:
    monkeypatch.setattr(memory, "_HUGE_PAGE_BYTES", 0)
    assert not memory._collapse(0, 100 * MIB)
    assert advice.calls == []


def test_neighbours_are_one_run() -> None:
    """An allocator puts its own words, or the rest of a page, between them."""
    extents = [(1000, 5000), (5040, 9000), (9000 + 4096, 20_000), (90_000, 91_000)]
    assert list(memory._runs(extents)) == [(1000, 20_000), (90_000, 91_000)]


def test_what_has_to_queue_has_no_pages_yet(
    tmp_path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the budget a result is only made when its ops are admitted (I2)."""
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(MIB))
    fs = headrace.HeadraceFileSystem(
        target_protocol="file", scheduler=scheduled_mode, buffer_bytes=MIB, skip_instance_cache=True
    )
    asked: list[bool] = []

    def noted(lengths: list[int], *, is_resident: bool) -> object:
        asked.append(is_resident)
        return scattered_bytes(lengths, is_resident=is_resident)

    monkeypatch.setattr("headrace.reader.scattered_bytes", noted)
    fs.cat_ranges([str(path)], [0], [MIB])
    unread = fs.submit_ranges(str(path), [0], [MIB // 2])
    fs.cat_ranges([str(path)], [0], [MIB])
    del unread
    assert asked == [True, False]
