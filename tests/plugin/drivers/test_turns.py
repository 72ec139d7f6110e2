"""The switch interval, which is the program's: short while reads are under way, and not after."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

import headrace
from headrace.core.room import Room
from headrace.drivers import turns as turns_
from headrace.drivers.turns import Turns
from headrace.runtime import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PYTHONS_S = 0.005
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
def _interval(
    monkeypatch: pytest.MonkeyPatch, wait_until: Callable[[Callable[[], bool]], None]
) -> Iterator[None]:
    turns = runtime().turns
    # Another test may have read just now, and by a runtime that has gone since.
    wait_until(lambda: sys.getswitchinterval() == PYTHONS_S and not turns._is_kept.locked())
    sys.setswitchinterval(PROGRAMS_S)
    monkeypatch.setattr(turns_, "KEEP_S", 0.001)
    yield
    sys.setswitchinterval(PYTHONS_S)


def begun(reading: Reading, interval_s: float = OURS_S) -> Turns:
    """Return turns that were shortened."""
    turns = Turns(reading)
    turns.shorten(interval_s)
    assert reading.was_asked.wait(10)
    return turns


def ended(turns: Turns, reading: Reading) -> None:
    """Let them be given back."""
    reading.is_under_way = False
    assert turns._is_kept.acquire(timeout=10)
    turns._is_kept.release()


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
    reading.was_asked.clear()
    turns._asked_s = 0.0
    turns.shorten(OURS_S)
    assert reading.was_asked.wait(10)
    assert sys.getswitchinterval() == OURS_S
    ended(turns, reading)
    assert sys.getswitchinterval() == PROGRAMS_S


@pytest.mark.parametrize("interval_s", [0.02, PROGRAMS_S])
def test_what_the_program_sets_meanwhile_stands(interval_s: float) -> None:
    reading = Reading()
    turns = begun(reading)
    sys.setswitchinterval(interval_s)
    for _ in range(2):  # the keeper looks, too
        reading.was_asked.clear()
        turns.shorten(OURS_S)
        assert reading.was_asked.wait(10)
        assert sys.getswitchinterval() == interval_s
    ended(turns, reading)
    assert sys.getswitchinterval() == interval_s


def test_an_odd_interval_is_given_back_as_it_was() -> None:
    """The interpreter cuts to whole microseconds."""
    sys.setswitchinterval(0.0070005)
    found = sys.getswitchinterval()
    reading = Reading()
    turns = begun(reading)
    ended(turns, reading)
    assert sys.getswitchinterval() == found


@pytest.mark.parametrize("interval_s", [0.0, PROGRAMS_S, 0.02])
def test_it_is_never_longer(interval_s: float) -> None:
    turns = Turns(Reading())
    turns.shorten(interval_s)
    assert not turns._is_kept.locked()
    assert sys.getswitchinterval() == PROGRAMS_S


def test_who_asks_for_nothing_keeps_nothing_up() -> None:
    reading = Reading()
    turns = begun(reading)
    reading.is_under_way = False
    while turns._is_kept.locked():
        turns.shorten(0.0)
    assert sys.getswitchinterval() == PROGRAMS_S


@pytest.mark.parametrize("is_ours", [True, False])
def test_no_more_threads(monkeypatch: pytest.MonkeyPatch, *, is_ours: bool) -> None:
    """Reads go on; what a signal's handler raised then is another matter."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread" if is_ours else "from a handler")

    monkeypatch.setattr(turns_._thread, "start_new_thread", refuse)
    with contextlib.nullcontext() if is_ours else pytest.raises(RuntimeError, match="handler"):
        Turns(Reading()).shorten(OURS_S)
    assert sys.getswitchinterval() == PROGRAMS_S


class Keeper:
    """Has the keeper's first turn come when the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_interrupted: bool = False) -> None:
        self._is_interrupted = is_interrupted
        monkeypatch.setattr(turns_, "KEEP_S", 0.2)
        monkeypatch.setattr(turns_._thread, "start_new_thread", self._start)

    def _start(self, keep: Callable[[float], None], args: tuple[float]) -> None:
        self.come = partial(keep, *args)
        if self._is_interrupted:
            raise KeyboardInterrupt


def test_the_first_read_does_not_wait_for_the_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Keeper(monkeypatch)
    Turns(lambda: False).shorten(OURS_S)
    assert sys.getswitchinterval() == OURS_S
    keeper.come()
    assert sys.getswitchinterval() == PROGRAMS_S


def test_a_first_read_that_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, seen = Keeper(monkeypatch, is_interrupted=True), []
    with pytest.raises(KeyboardInterrupt):
        Turns(lambda: bool(seen.append(sys.getswitchinterval()))).shorten(OURS_S)
    assert sys.getswitchinterval() == PROGRAMS_S
    monkeypatch.setattr(turns_, "sleep", lambda _s: seen.append(sys.getswitchinterval()))
    keeper.come()
    assert seen[0] == OURS_S
    assert sys.getswitchinterval() == PROGRAMS_S


def test_a_first_read_that_is_interrupted_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sets it next does it all: the keeper."""
    keeper, set_us, seen = Keeper(monkeypatch), turns_._set_us, []

    def interrupt(_micros: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(turns_, "_set_us", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Turns(lambda: False).shorten(OURS_S)
    monkeypatch.setattr(turns_, "_set_us", set_us)
    monkeypatch.setattr(turns_, "sleep", lambda _s: seen.append(sys.getswitchinterval()))
    keeper.come()
    assert seen == [OURS_S]
    assert sys.getswitchinterval() == PROGRAMS_S


def test_a_keeper_that_was_not_wanted_any_more_stays_for_whoever_began_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is the one whom another reader relies on, who asked for a keeper of his own."""
    keeper, slept = Keeper(monkeypatch), []
    turns = Turns(lambda: False)
    turns.shorten(OURS_S)
    turns._is_wanted = False
    monkeypatch.setattr(turns_, "sleep", slept.append)
    keeper.come()
    assert slept == [turns_.KEEP_S]


def test_a_first_read_that_comes_to_it_when_the_keeper_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def keep_at_once(keep: Callable[[float], None], args: tuple[float]) -> None:
        keep(*args)

    monkeypatch.setattr(turns_._thread, "start_new_thread", keep_at_once)
    Turns(lambda: False).shorten(OURS_S)
    assert sys.getswitchinterval() == PROGRAMS_S


def test_a_second_keeper_leaves() -> None:
    reading = Reading()
    turns = begun(reading)
    turns._keep(OURS_S)  # as when an interrupt came between two steps
    assert sys.getswitchinterval() == OURS_S
    ended(turns, reading)
    assert sys.getswitchinterval() == PROGRAMS_S


def test_others_are_let_in_once_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, slept = 5.0, []
    monkeypatch.setattr(turns_, "perf_counter", lambda: now_s)
    monkeypatch.setattr(turns_, "sleep", lambda _seconds: slept.append(now_s))
    turns = Turns(bool)
    for now_s in (5.0, 5.0005, 5.0009, 5.0011, 5.002, 5.0022):  # noqa: B007 - the clock reads it
        turns.let_others_in()
    assert slept == [5.0, 5.0011, 5.0022]


@pytest.mark.parametrize("are_others", [False, True])
def test_who_reads_block_after_block_beside_others_lets_them_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduled_mode: str, *, are_others: bool
) -> None:
    path, fs = tmp_path / "a", headrace.HeadraceFileSystem(target_protocol="file", scheduler=scheduled_mode)
    path.write_bytes(b"x" * 10_000)
    let_in: list[int] = []
    monkeypatch.setattr(fs.channel.backend, "probe", lambda *_: None)
    monkeypatch.setattr(Room, "has_urgent", lambda _room, _now: are_others)
    monkeypatch.setattr(fs.channel.turns, "let_others_in", lambda: let_in.append(1))
    with fs.open(str(path), block_size=0) as file:
        assert file.read(100) == b"x" * 100
    assert len(let_in) == are_others


def test_a_forked_child_has_what_the_program_had() -> None:
    reading = Reading()
    turns = begun(reading)
    kept = turns._is_kept
    turns.forget()
    assert sys.getswitchinterval() == PROGRAMS_S
    turns._is_kept = kept
    ended(turns, reading)
    assert sys.getswitchinterval() == PROGRAMS_S


class Noted:
    """Turns that count how often they were asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def shorten(self, _interval_s: float) -> None:
        self.asked += 1


def test_who_asks_for_short_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests, Arrow's reads, and calls of the wrapped filesystem."""
    path = str(tmp_path / "data")
    fs = headrace.HeadraceFileSystem(target_protocol="memory", skip_instance_cache=True)
    noted = Noted()
    monkeypatch.setattr(fs.channel, "turns", noted)

    def asks(call: Callable[..., object], *args: object) -> bool:
        before = noted.asked
        call(*args)
        return noted.asked > before

    assert asks(fs.pipe_file, path, bytes(100))
    assert asks(fs.info, path)
    with fs.open(path) as file:
        assert asks(file.read_buffer, 10)
        assert asks(file.read_buffer, 10)  # of what is here already
    web = headrace.HeadraceFileSystem(target_protocol="http", skip_instance_cache=True)
    monkeypatch.setattr(web.channel, "turns", noted)
    assert asks(lambda: asyncio.run(web._exists("http://127.0.0.1:1/nothing")))


# -- a whole program


def child(program: str, prepared: str | None = None, **environment: str) -> str:
    """Run a program whose switch interval is 5 ms, and return what it prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    ran = subprocess.run(
        [sys.executable, "-c", (PREPARED if prepared is None else prepared) + program],
        env=clean | {"PYTHONWARNINGS": "ignore::DeprecationWarning", **environment},  # of forks, from 3.12 on
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
        assert fs.mode == "off" or headrace.runtime.runtime().is_reading()
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
    child(f"{READ}assert seen == [{expected}]\n{GIVEN_BACK}", **environment)


def test_an_end_with_a_call_in_a_finaliser() -> None:
    """No thread that is started then has a turn: nobody may wait for it."""
    begin = """
import os, sys, threading, headrace
fs = headrace.HeadraceFileSystem(target_protocol="file")
while sys.getswitchinterval() != 0.001:
    assert fs.exists("/")
"""
    end = """
class Last:
    def __init__(self):
        self.fs, self.write = fs, os.write

    def __del__(self):
        self.write(1, str(self.fs.exists("/")).encode())

last = Last()
"""
    assert child(begin + GIVEN_BACK + end, "") == "True"


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
