"""Who has the GIL while copies are made out of the page cache: as if time went by when the test says so."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import headrace
from headrace.drivers import copies as copies_
from headrace.drivers.copies import LEAST_KEPT_S, MOST_KEPT_S, TOGETHER_S, Copies

if TYPE_CHECKING:
    from pathlib import Path

COPY_S = 0.0002
INTERVAL_S = 0.004
WAIT_S = 30.0


class Clock:
    """Time that only a sleep lets go by, or the test; and the thread that asks."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.sleeps = 0
        self.thread = 1

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.sleeps += 1

    def getswitchinterval(self) -> float:
        return INTERVAL_S

    def get_ident(self) -> int:
        return self.thread


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(copies_, "perf_counter", clock.perf_counter)
    monkeypatch.setattr(copies_, "sleep", clock.sleep)
    monkeypatch.setattr(copies_, "sys", clock)
    return clock


@pytest.fixture
def threads(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Have the clock say who copies."""
    monkeypatch.setattr(copies_, "threading", clock)
    return clock


def copied(copies: Copies, clock: Clock, thread: int = 1, took_s: float = COPY_S, **how: bool) -> bool:
    """Have a thread copy; returns whether it kept the GIL."""
    clock.thread = thread
    copy = copies.begin(**how)
    clock.now_s += took_s
    copies.end(copy)
    return copy.keeps_gil


def test_who_keeps_the_gil_lets_others_in(clock: Clock) -> None:
    copies = Copies()
    for _ in range(1000):
        assert copied(copies, clock)
    # 0.2 s: once in four intervals of 4 ms.
    assert 10 <= clock.sleeps <= 13


def test_who_was_kept_waiting_goes_on(clock: Clock) -> None:
    copies = Copies()
    for k in range(1000):
        copied(copies, clock, took_s=0.006 if k % 30 == 0 else COPY_S)  # somebody else had a turn
    assert clock.sleeps == 0


@pytest.mark.parametrize(("turns", "is_told"), [(0, False), (1, False), (2, True), (5, True)])
def test_that_several_others_had_a_turn_is_told(clock: Clock, turns: int, is_told: bool) -> None:
    """One that computes lengthens a copy by its own turn, two by one each."""
    copies = Copies()
    copied(copies, clock)
    copy = copies.begin()
    clock.now_s += COPY_S + turns * INTERVAL_S
    assert copies.end(copy) is is_told


def test_threads_that_copy_beside_each_other_let_go_of_it(threads: Clock) -> None:
    copies = Copies()
    assert copied(copies, threads, 1)
    assert copied(copies, threads, 1)
    assert not any(copied(copies, threads, thread) for thread in (2, 1, 1, 1, 2, 2, 1, 3))


def test_who_is_alone_again_keeps_it(threads: Clock) -> None:
    copies = Copies()
    copied(copies, threads, 1)
    assert not copied(copies, threads, 2)
    assert not copied(copies, threads, 2)
    threads.now_s += TOGETHER_S
    assert copied(copies, threads, 2)


def test_one_that_copied_some_time_ago_is_no_company(threads: Clock) -> None:
    copies = Copies()
    copied(copies, threads, 1)
    threads.now_s += TOGETHER_S
    assert copied(copies, threads, 2)


def test_where_they_must_not_it_is_kept(threads: Clock) -> None:
    copies = Copies()
    assert all(copied(copies, threads, thread, may_share=False) for thread in (1, 2, 1, 2))


def together(threads: Clock) -> Copies:
    """Return copies of two threads, which know what one takes."""
    copies = Copies()
    for thread in (1, 1, 1, 1, 2, 1):
        copied(copies, threads, thread)
    return copies


def test_beside_one_that_computes_all_keep_it_for_a_while(threads: Clock) -> None:
    copies = together(threads)
    assert not copied(copies, threads, 1, INTERVAL_S + COPY_S)
    assert not copied(copies, threads, 2, INTERVAL_S + COPY_S)  # twice is no accident
    began_s = threads.now_s
    while threads.now_s < began_s + LEAST_KEPT_S - 0.001:
        assert copied(copies, threads, 1 + int(threads.now_s * 1000) % 2)


def test_those_that_wait_for_the_same_turn_are_one_event(threads: Clock) -> None:
    copies = together(threads)
    under_way = []
    for thread in range(1, 9):
        threads.thread = thread
        under_way.append(copies.begin())
    threads.now_s += INTERVAL_S + COPY_S
    for copy in under_way:
        copies.end(copy)
    assert not any(copied(copies, threads, thread) for thread in range(1, 9))


def test_one_that_was_under_way_ends_nothing(threads: Clock) -> None:
    copies = together(threads)
    threads.thread = 2
    early = copies.begin()
    for _ in range(2):
        copied(copies, threads, 1, INTERVAL_S + COPY_S)
    copies._usual_s = 1.0  # it explains everything
    copies.end(early)
    assert copied(copies, threads, 1)


def test_a_wait_by_accident_changes_nothing(threads: Clock) -> None:
    copies = together(threads)
    for thread in (1, 2, 1, 2):
        assert not copied(copies, threads, thread, INTERVAL_S + COPY_S)
        assert not copied(copies, threads, thread)


def test_to_wait_for_others_that_copy_is_no_wait(threads: Clock) -> None:
    copies = together(threads)
    for _ in range(5):
        threads.thread = 1
        mine = copies.begin()
        for thread in range(2, 40):  # more of them than there are copies in an interval
            assert not copied(copies, threads, thread)
        threads.thread = 1
        copies.end(mine)
        assert not mine.keeps_gil


def tries(copies: Copies, threads: Clock, took_s: float) -> float:
    """Copy until one of two threads tries to let go of the GIL; returns how long the others kept it."""
    began_s = threads.now_s
    while True:
        threads.thread = 3 - threads.thread
        copy = copies.begin()
        if not copy.keeps_gil:
            break
        threads.now_s += COPY_S
        copies.end(copy)
    kept_s, mine = threads.now_s - began_s, threads.thread
    threads.now_s += took_s - COPY_S
    assert copied(copies, threads, 3 - mine), "another one tries, too"
    threads.thread = mine
    copies.end(copy)
    return kept_s


def test_then_one_tries_and_the_others_wait_for_what_it_finds(threads: Clock) -> None:
    copies = together(threads)
    for thread in (1, 2):
        copied(copies, threads, thread, INTERVAL_S + COPY_S)
    kept = [tries(copies, threads, INTERVAL_S + 2 * COPY_S) for _ in range(4)]
    assert kept == pytest.approx([LEAST_KEPT_S, 2 * LEAST_KEPT_S, MOST_KEPT_S, MOST_KEPT_S], abs=0.01)
    tries(copies, threads, 2 * COPY_S)
    assert not any(copied(copies, threads, thread) for thread in (2, 1, 2, 1))


def test_what_a_copy_takes_is_learnt_though_some_lose_the_gil(threads: Clock) -> None:
    copies = Copies()
    for k in range(200):
        copied(copies, threads, 1, 0.1 if k % 20 == 0 else COPY_S)
    assert copies._usual_s == pytest.approx(COPY_S, rel=0.3)


def test_what_the_first_one_took_is_unlearnt_without_the_gil(threads: Clock) -> None:
    """It made its thread's ring, beside threads that compute."""
    copies = Copies()
    copied(copies, threads, 1, 0.02)
    for k in range(100):
        assert not copied(copies, threads, 2 - k % 2)
    assert copies._usual_s == pytest.approx(COPY_S, rel=0.3)


def test_others_are_let_in_also_where_the_backend_keeps_the_gil(threads: Clock) -> None:
    copies = Copies()
    for k in range(1000):
        copied(copies, threads, 1 + k % 2)
    assert 10 <= threads.sleeps <= 13


def test_batches_of_the_page_cache_let_others_in(
    clock: Clock, tmp_path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(1 << 20))
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)
    monkeypatch.setattr(fs.channel, "copies", Copies())
    starts = np.arange(0, 1 << 20, 4096)
    for _ in range(200):
        clock.now_s += 0.0002
        assert fs.read_ranges(str(path), starts, starts + 4096).buffer.size == 1 << 20
    assert clock.sleeps == 2  # in 40 ms, once in four intervals of 4 ms


def beside_each_other(fs: headrace.HeadraceFileSystem, path: Path, times: int) -> None:
    """Have two threads read batches of all of a file of a MiB."""
    starts, content = np.arange(0, 1 << 20, 4096), path.read_bytes()
    wrong: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(times):
                batch = fs.read_ranges(str(path), starts, starts + 4096)
                assert b"".join(batch.to_pylist()) == content
        except BaseException as error:  # noqa: BLE001 - shown below
            wrong.append(error)

    before = fs.channel.engine.hub.counters.quick_ops
    two = [threading.Thread(target=read) for _ in range(2)]
    for thread in two:
        thread.start()
    for thread in two:
        thread.join(WAIT_S)
    assert not wrong
    assert fs.channel.engine.hub.counters.quick_ops - before == 2 * times * len(starts)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.write_bytes(np.random.default_rng(3).bytes(1 << 20))
    return made


def test_two_threads_copy_at_once(path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody holds the engine's lock meanwhile."""
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)
    backend, engine = fs.channel.backend, fs.channel.engine
    probe_rows, both, kept = backend.probe_rows, threading.Barrier(2), []

    def probe(*given: Any, keeps_gil: bool) -> bool:
        kept.append(keeps_gil)
        assert not engine.is_inside()
        both.wait(WAIT_S)
        return bool(probe_rows(*given, keeps_gil=keeps_gil))

    monkeypatch.setattr(fs.channel, "copies", Copies())
    monkeypatch.setattr(backend, "probe_rows", probe)
    beside_each_other(fs, path, 20)
    assert not all(kept)


@pytest.mark.parametrize("limit", [{"process_io_limit": 1}, {"io_parallelism": 63}], ids=str)
def test_where_few_ops_may_be_in_flight_one_copies_at_a_time(
    path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch, limit: dict[str, int]
) -> None:
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode, **limit)
    backend, engine = fs.channel.backend, fs.channel.engine
    probe_rows = backend.probe_rows

    def probe(*given: Any, keeps_gil: bool) -> bool:
        assert keeps_gil
        assert engine.is_inside()
        return bool(probe_rows(*given, keeps_gil=keeps_gil))

    monkeypatch.setattr(backend, "probe_rows", probe)
    beside_each_other(fs, path, 5)
