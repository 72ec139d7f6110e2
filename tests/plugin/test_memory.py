"""Bytes that are filled after they were made, and the advice the kernel gets for their pages."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import numpy as np
import pytest

import headrace
from headrace import memory
from headrace.memory import make_pages, scattered_bytes, writable_bytes

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
PAGE = memory._HUGE_PAGE_BYTES or 2 * MIB  # the tests that need real ones are skipped without


@pytest.mark.parametrize("has_pages", [False, True])
@pytest.mark.parametrize("lengths", [[1], [5, 0, 3], [3 * MIB], [MIB] * 40, [300_000, 9 * MIB, 1, 2 * MIB]])
def test_bytes_are_filled_in_place(lengths: list[int], has_pages: bool) -> None:
    pieces, array, begins = scattered_bytes(lengths)
    if has_pages:
        make_pages(pieces)
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
    monkeypatch.setattr(memory, "_ADVICE_HUGE", 14)
    monkeypatch.setattr(memory, "_HUGE_PAGE_BYTES", PAGE)
    return found


def test_small_ones_are_left_to_the_allocator(advice: Advice) -> None:
    pieces, *_ = scattered_bytes([1000] * 5)
    make_pages(pieces)
    assert advice.calls == []


def test_long_ones_are_advised_and_no_more(advice: Advice) -> None:
    pieces, *_ = scattered_bytes([9 * MIB])
    make_pages(pieces)
    assert advice.given() == [14]


@pytest.mark.parametrize("length", [MIB // 2, MIB, PAGE - 1])
def test_those_between_have_their_pages_made(advice: Advice, length: int) -> None:
    """And no advice: it would cut their memory in pieces, of which none is long enough."""
    pieces, *_ = scattered_bytes([length] * 40)
    assert advice.calls == []
    make_pages(pieces)
    assert set(advice.given()) == {memory._ADVICE_COLLAPSE}


def test_what_is_wanted_now_is_made_at_once(advice: Advice) -> None:
    """In steps, each of whole pages, which leave none of those inside out."""
    begin, end = 5 * PAGE + 17, 5 * PAGE + 17 + 150 * MIB
    assert memory._collapse(begin, end)
    assert advice.given() == [memory._ADVICE_COLLAPSE] * 3
    assert all(first % PAGE == length % PAGE == 0 for first, length, _ in advice.calls)
    assert max(length for _, length, _ in advice.calls) <= memory._COLLAPSED_BYTES + PAGE
    made = {at for first, length, _ in advice.calls for at in range(first, first + length, PAGE)}
    assert made == set(range(6 * PAGE, end - PAGE + 1, PAGE))


def test_a_kernel_that_cannot_is_asked_once(monkeypatch: pytest.MonkeyPatch, advice: Advice) -> None:
    refusing = Advice(memory._ADVICE_COLLAPSE)
    pieces, *_ = scattered_bytes([MIB // 2] * 400)
    monkeypatch.setattr(memory, "_madvise", refusing)
    make_pages(pieces)
    assert len(refusing.calls) == 1


def test_an_administrator_who_wants_no_huge_pages_gets_none(
    monkeypatch: pytest.MonkeyPatch, advice: Advice
) -> None:
    pieces, *_ = scattered_bytes([MIB // 2] * 40)
    monkeypatch.setattr(memory, "_HUGE_PAGE_BYTES", 0)
    make_pages(pieces)
    assert advice.calls == []


def test_neighbours_are_one_run() -> None:
    """An allocator puts its own words, or the rest of a page, between them."""
    extents = [(1000, 5000), (5040, 9000), (9000 + 4096, 20_000), (90_000, 91_000)]
    assert list(memory._runs(extents)) == [(1000, 20_000), (90_000, 91_000)]


def test_pages_are_made_for_what_is_admitted(
    tmp_path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a result is there while its request is queued (I2)."""
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(4 * MIB))
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)
    reserved: list[int] = []

    def noted(pieces: list[bytes]) -> None:
        reserved.append(fs.stats().reserved_bytes)
        make_pages(pieces)

    monkeypatch.setattr("headrace.reader.make_pages", noted)
    fs.cat_ranges([str(path)] * 8, [0] * 8, [MIB] * 8)
    assert reserved == [8 * MIB]
