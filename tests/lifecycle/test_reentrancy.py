"""Exceptions at every line, signals at any moment, collections anywhere: nothing is lost.

The first test raises, in a child process, at each line which a read executes in headrace, one line
a time (see ``children/trace_lines.py`` for what is left out, and why), beside a read of another
thread.  The second raises once more while such a read leaves.  The third sends real signals at random
moments to a thread that reads thousands of times; their handler raises, reads through the same
filesystem, or collects an abandoned read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from lifecycle.processes import run

from headrace import HeadraceFileSystem

KINDS = [
    f"{target}-{mode}-{work}"
    for target in ("local", "cold", "threaded", "async")
    for mode in ("lite", "standard")
    for work in ("single", "few", "long", "ranges", "file", "submitted")
    if not (target == "threaded" and mode == "standard")  # one driver serves both modes
    if not (target in {"threaded", "async"} and work == "few")  # as any other ranges there
] + [
    *("series-lite-long", "series-standard-long", "async-lite-ahead", "async-standard-ahead"),
    *("around-lite-longfile", "around-standard-longfile", "async-standard-written"),
    *("cold-lite-fileranges", "cold-standard-fileranges", "threaded-lite-fileranges"),
    *("async-lite-fileranges", "async-standard-fileranges"),
    # A single op is called for by its waiter in both modes, and what was submitted by a worker.
    *("bulk-lite-single", "bulk-lite-ranges", "bulk-lite-submitted", "bulk-standard-ranges"),
    *("hedged-lite-single", "hedged-lite-ranges"),  # in standard the loop thread does all of it
]


@pytest.fixture(scope="session")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reentrancy") / "data.bin"
    path.write_bytes(np.random.default_rng(5).bytes(400_000))
    return path


TWICE = {  # of every so many lines
    "cold-lite-single": 17,
    "cold-lite-few": 37,
    "cold-lite-ranges": 151,
    "cold-standard-ranges": 97,
    "series-lite-long": 97,
    "threaded-lite-single": 53,
    "async-lite-ranges": 97,
    "async-standard-file": 53,
    "bulk-lite-single": 97,
}


def interrupt(kind: str, *arguments: object) -> dict[str, Any]:
    if kind.startswith("series"):
        backend = HeadraceFileSystem(fs=LocalFileSystem(), scheduler="lite").channel.backend
        if backend.name != "uring":
            pytest.skip("series are the ring's")
    ended = run("trace_lines.py", kind, *arguments)
    assert ended.status == 0, ended.err
    answer: dict[str, Any] = json.loads(ended.out.splitlines()[-1])
    assert (answer["wrong"], answer["errors"]) == ([], [])
    assert "AttributeError" not in ended.err, "a finaliser of what was not made to its end"
    return answer


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_at_every_line(kind: str, content: Path) -> None:
    share = "0/9" if kind.endswith("ahead") else "0/1"  # those are four reads
    answer = interrupt(kind, content, share, "once")
    assert answer["rounds"] > 50
    if kind.startswith("async-lite") and share == "0/1":
        assert "_take" in answer["functions"], "the thread that is interrupted never ran the loop"
    if kind == "bulk-lite-ranges":
        assert "_perform_held" in answer["functions"], "the thread that is interrupted never made a call"
    if kind == "hedged-lite-ranges":
        assert "_winner" in answer["functions"], "the thread that is interrupted never asked twice"
    if kind.startswith("cold") and kind.endswith("file"):
        assert "_fill" in answer["functions"]
    if kind.startswith("around"):
        assert "open_around" in answer["functions"]
    if kind.endswith("ahead"):
        assert "_submit" in answer["functions"]


@pytest.mark.parametrize("kind", TWICE)
def test_another_exception_wherever_a_read_leaves(kind: str, content: Path) -> None:
    """By then the read has given nothing back: whoever comes next does."""
    answer = interrupt(kind, content, f"0/{TWICE[kind]}", "twice")
    assert answer["rounds"] > 100


@pytest.mark.parametrize("handler", ["raises", "reads", "collects"])
@pytest.mark.parametrize("protocol", ["file", "slow", "aslow"])
def test_signals_at_any_moment(handler: str, protocol: str, content: Path, scheduled_mode: str) -> None:
    ended = run("signals.py", handler, protocol, content, "1000", HEADRACE_SCHEDULER=scheduled_mode)
    assert ended.status == 0, ended.err
    answer = json.loads(ended.out.splitlines()[-1])
    assert (answer["wrong"], answer["rest"]) == ([], [0, 0, 0, 0])
    assert answer["signals"] > 20
    if (handler, protocol) == ("raises", "file"):
        assert answer["armed"] == answer["raised"] + answer["unraisable"], "what a handler raised was lost"
