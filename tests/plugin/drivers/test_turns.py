"""The switch interval, which is the program's: short while reads are under way, and not after."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

import headrace
from headrace.drivers import turns as turns_
from headrace.drivers.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAMS_S = 0.004
OURS_S = 0.001


class Reading:
    """Says whether a read is under way, and that it was asked: the interval has been set by then."""

    def __init__(self) -> None:
        self.is_under_way = True
        self.was_asked = threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self) -> bool:
        self.was_asked.set()
        self.may_answer.wait(10)
        return self.is_under_way


@pytest.fixture(autouse=True)
def _interval(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    found = sys.getswitchinterval()
    sys.setswitchinterval(PROGRAMS_S)
    monkeypatch.setattr(turns_, "KEEP_S", 0.001)
    yield
    sys.setswitchinterval(found)


def begun(reading: Reading, interval_s: float = OURS_S) -> Turns:
    """Return turns that were shortened."""
    turns = Turns(reading)
    turns.shorten(interval_s)
    assert reading.was_asked.wait(10)
    return turns


def ended(turns: Turns, reading: Reading) -> None:
    """Let them be given back."""
    reading.is_under_way = False
    assert turns._keeper is not None
    turns._keeper.join(10)
    assert not turns._keeper.is_alive()


def test_it_is_short_while_a_read_is_under_way() -> None:
    reading = Reading()
    turns = begun(reading)
    assert sys.getswitchinterval() == OURS_S
    turns.shorten(OURS_S)
    assert sys.getswitchinterval() == OURS_S
    ended(turns, reading)
    assert sys.getswitchinterval() == PROGRAMS_S
    # And again.
    reading.is_under_way = True
    turns.shorten(OURS_S)
    ended(turns, reading)
    assert sys.getswitchinterval() == PROGRAMS_S


def test_what_the_program_sets_meanwhile_stands() -> None:
    reading = Reading()
    turns = begun(reading)
    sys.setswitchinterval(0.02)
    turns.shorten(OURS_S)
    assert sys.getswitchinterval() == 0.02
    ended(turns, reading)
    assert sys.getswitchinterval() == 0.02


def test_many_readers_have_longer_turns() -> None:
    reading = Reading()
    reading.may_answer.clear()  # the keeper looks after this
    turns = begun(reading)
    seen = []
    for readers in (10, 100, 1000):
        turns.shorten(OURS_S, readers)
        seen.append(sys.getswitchinterval())
    assert seen == [OURS_S, 0.003, PROGRAMS_S]
    reading.may_answer.set()
    ended(turns, reading)
    assert sys.getswitchinterval() == PROGRAMS_S


@pytest.mark.parametrize("interval_s", [0.0, PROGRAMS_S, 0.02])
def test_it_is_never_longer(interval_s: float) -> None:
    turns = Turns(Reading())
    turns.shorten(interval_s)
    assert turns._keeper is None
    assert sys.getswitchinterval() == PROGRAMS_S


def test_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        message = "can't start new thread"
        raise RuntimeError(message)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    Turns(Reading()).shorten(OURS_S)
    assert sys.getswitchinterval() == PROGRAMS_S


def test_a_forked_child_has_what_the_program_had() -> None:
    reading = Reading()
    turns = begun(reading)
    turns.forget()
    assert sys.getswitchinterval() == PROGRAMS_S
    ended(turns, reading)
    assert sys.getswitchinterval() == PROGRAMS_S


class Clock:
    """Time that only a sleep lets go by, or the test."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.sleeps = 0

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.sleeps += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(turns_, "perf_counter", clock.perf_counter)
    monkeypatch.setattr(turns_, "sleep", clock.sleep)
    return clock


def test_who_keeps_the_gil_lets_others_in(clock: Clock) -> None:
    turns = Turns(Reading())
    for _ in range(1000):
        turns.let_others_in()
        clock.now_s += 0.0002  # a slice
    # 0.2 s: once in two intervals of 4 ms.
    assert 20 <= clock.sleeps <= 25


def test_who_was_kept_waiting_goes_on(clock: Clock) -> None:
    turns = Turns(Reading())
    for k in range(1000):
        turns.let_others_in()
        clock.now_s += 0.006 if k % 30 == 0 else 0.0002  # somebody else had a turn
    assert clock.sleeps == 0


def test_batches_of_the_page_cache_let_others_in(
    clock: Clock, tmp_path: Path, scheduled_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(1 << 20))
    fs = headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)
    monkeypatch.setattr(fs.channel, "turns", Turns(Reading()))
    starts = np.arange(0, 1 << 20, 4096)
    for _ in range(100):
        clock.now_s += 0.0002
        assert fs.read_ranges(str(path), starts, starts + 4096).buffer.size == 1 << 20
    assert clock.sleeps == 2  # in 20 ms, once in two intervals of 4 ms


# -- a whole program


def child(program: str, **environment: str) -> str:
    """Run a program whose switch interval is 5 ms, and return what it prints."""
    ran = subprocess.run(
        [sys.executable, "-c", PREPARED + program],
        env={"PATH": "", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


PREPARED = """
import os, sys, threading
import fsspec, headrace
from fsspec.implementations.memory import MemoryFileSystem

seen = []

class Store(MemoryFileSystem):
    protocol = "store"

    def cat_file(self, path, **options):
        seen.append(sys.getswitchinterval())
        return super().cat_file(path, **options)

fsspec.register_implementation("store", Store)
fs = headrace.HeadraceFileSystem(target_protocol="store")
fs.target.pipe_file("/a", bytes(100_000))
"""

GIVEN_BACK = "while sys.getswitchinterval() != 0.005: threading.Event().wait(0.05)\n"
READ = "assert len(fs.cat_file('/a', start=1)) == 99_999\n"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, 0.001), ({"HEADRACE_SWITCH_INTERVAL_S": "0.002"}, 0.002),
     ({"HEADRACE_SWITCH_INTERVAL_S": "0"}, 0.005), ({"HEADRACE_SCHEDULER": "off"}, 0.005)],
)  # fmt: skip
def test_reads_of_a_filesystem(environment: dict[str, str], expected: float) -> None:
    # The keeper may have its first turn a moment after the first read.
    reads = f"while {expected} not in seen:\n    {READ}assert set(seen) <= {{0.005, {expected}}}\n"
    child(reads + GIVEN_BACK, **environment)


def test_a_fork() -> None:
    fork = """
assert sys.getswitchinterval() == 0.005
with fs.open("/a") as file:
    while sys.getswitchinterval() != 0.001:
        file.seek(0)
        file.read(99_000)
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert sys.getswitchinterval() == 0.005
    file.seek(1)
    file.read(99_000)
    os._exit(0)
"""
    child(fork)
