"""Ctrl-C: the prompt is back at once, nothing is left behind, nobody else's read is lost.

Every read of the wrapped filesystem takes 3 s.  The parent sends SIGINT once a slow read has
begun; the exception must come out long before that read could have ended.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import data
import pytest
from lifecycle.processes import FORKS_ARE_MEANT, finish, run, start, wait_for

READ_S = 3.0
"""As ``children/interrupt.py`` has it."""

AT_ONCE_S = 0.5
"""The promise."""


def _interrupted(
    work: str, protocol: str, mode: str, directory: str, words: tuple[str, ...] = ("reading",)
) -> tuple[float, Any]:
    """Run `work`, interrupt it; returns the seconds until the exception, and what was left."""
    child = _start(work, protocol, mode, directory)
    for word in words:
        wait_for(child, word)
    sent_s = time.monotonic()
    child.send_signal(signal.SIGINT)
    ended = finish(child)
    assert (ended.status, ended.err) == (0, "")
    answer = json.loads(ended.out.splitlines()[-2])
    return answer["interrupted_s"] - sent_s, answer


def _start(work: str, protocol: str, mode: str, directory: str) -> subprocess.Popen[str]:
    """Start it; without the warning of fsspec, which drops a coroutine that is interrupted on its way."""
    is_dropped = f"{FORKS_ARE_MEANT},ignore:coroutine:RuntimeWarning"
    variables = {"HEADRACE_SCHEDULER": mode, "PYTHONWARNINGS": is_dropped}
    return start("interrupt.py", work, protocol, directory, **variables)


def _first_bytes(directory: str, count: int) -> str:
    return Path(f"{directory}/lineitem.1.parquet").read_bytes()[:count].hex()


@pytest.mark.parametrize("work", ["scan", "read_ranges"])
@pytest.mark.parametrize("protocol", ["slow", "aslow"])
def test_the_prompt_is_back_at_once(
    work: str, protocol: str, small_lineitem: data.Lineitem, scheduled_mode: str
) -> None:
    directory = small_lineitem.parquet
    took_s, answer = _interrupted(work, protocol, scheduled_mode, directory)
    assert took_s < AT_ONCE_S
    assert answer["threads"] == []
    assert answer["rest"] == [0, 0]
    assert answer["bytes"] == _first_bytes(directory, 8)


def test_whenever_arrow_reads_after_it(small_lineitem: data.Lineitem, scheduled_mode: str) -> None:
    took_s, answer = _interrupted("scan_late", "aslow", scheduled_mode, small_lineitem.parquet)
    assert took_s < AT_ONCE_S
    assert (answer["threads"], answer["rest"]) == ([], [0, 0])


@pytest.mark.parametrize("work", ["cat_file", "open_file", "result"])
def test_other_ways_to_wait(work: str, small_lineitem: data.Lineitem) -> None:
    directory = small_lineitem.parquet
    took_s, answer = _interrupted(work, "aslow", "lite", directory)
    assert took_s < AT_ONCE_S
    assert (answer["threads"], answer["rest"]) == ([], [0, 0])


@pytest.mark.parametrize("protocol", ["slow", "aslow"])
def test_another_threads_read_goes_on(
    protocol: str, small_lineitem: data.Lineitem, scheduled_mode: str
) -> None:
    directory = small_lineitem.parquet
    # On a filesystem for one thread at a time the second read begins when the first has ended.
    words = ("beside", "reading") if protocol == "aslow" else ("beside",)
    took_s, answer = _interrupted("beside_another", protocol, scheduled_mode, directory, words)
    assert took_s < AT_ONCE_S
    assert answer["other"] == _first_bytes(directory, 8)[8:]
    assert (answer["threads"], answer["rest"]) == ([], [0, 0])


@pytest.mark.parametrize("protocol", ["slow", "aslow"])
def test_an_interrupt_ends_the_process(
    protocol: str, small_lineitem: data.Lineitem, scheduled_mode: str
) -> None:
    """With Python's own status and traceback, once, and without waiting for the read."""
    child = _start("uncaught", protocol, scheduled_mode, small_lineitem.parquet)
    wait_for(child, "reading")
    sent_s = time.monotonic()
    child.send_signal(signal.SIGINT)
    ended = finish(child)
    assert time.monotonic() - sent_s < READ_S
    assert float(ended.out.splitlines()[-1]) - sent_s < AT_ONCE_S
    assert ended.status == -signal.SIGINT
    assert ended.err.count("Traceback") == 1
    assert ended.err.splitlines()[-1] == "KeyboardInterrupt"


def test_an_interrupt_before_the_read_is_watched() -> None:
    """It is the read's all the same, as long as the main thread is inside Arrow and cannot handle it."""
    ended = run("missed.py")
    assert (ended.status, ended.out, ended.err) == (0, "first later\n", "")


def test_an_old_interrupt_fails_no_later_scan(small_lineitem: data.Lineitem, scheduled_mode: str) -> None:
    """SIGINT while no read was on Arrow's threads must not reach the next one that is."""
    _, answer = _interrupted("then_scan", "aslow", scheduled_mode, small_lineitem.parquet)
    assert answer["rows"] > 0
