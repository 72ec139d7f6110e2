"""The native engine's calls cannot be interrupted and do not survive a fork: neither is anybody's problem."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest
from lifecycle.processes import finish, run, start, wait_for

from headrace.testing import Fault, ObjectServer

AT_ONCE_S = 0.5
"""The promise."""

DATA = np.random.default_rng(13).bytes(300_000)


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.put("bucket", "data.bin", DATA)
        server.put("bucket", "never.bin", DATA)
        server.put("bucket", "never.parquet", DATA)
        server.script = _never
        yield server


def _never(request: object) -> Fault | None:
    is_read = request.method == "GET" and request.key.startswith("never")  # type: ignore[attr-defined]
    return Fault(delay_s=float("inf")) if is_read else None


@pytest.mark.parametrize("work", ["fork", "fork_before_use"])
def test_a_fork(work: str, server: ObjectServer, scheduled_mode: str) -> None:
    ended = run("native.py", work, server.url, HEADRACE_SCHEDULER=scheduled_mode)
    assert (ended.status, ended.err) == (0, "")


@pytest.mark.parametrize("work", ["read", "submit", "scan"])
def test_the_prompt_is_back_at_once(
    work: str, server: ObjectServer, scheduled_mode: str, wait_until: object
) -> None:
    child = start("native.py", work, server.url, HEADRACE_SCHEDULER=scheduled_mode)
    wait_for(child, "ready")
    wait_until(lambda: any(r.key.startswith("never") and r.method == "GET" for r in server.requests))  # type: ignore[operator]
    sent_s = time.monotonic()
    child.send_signal(signal.SIGINT)
    ended = finish(child)
    assert (ended.status, ended.err) == (0, "")
    assert json.loads(ended.out.splitlines()[-1]) - sent_s < AT_ONCE_S


def test_an_end_with_calls_in_flight(server: ObjectServer, scheduled_mode: str) -> None:
    for _ in range(3):
        ended = run("native.py", "end_in_flight", server.url, HEADRACE_SCHEDULER=scheduled_mode)
        assert (ended.status, ended.err) == (0, "")
