"""Requests to a store in flight, and the process forks or ends, or its loop thread dies: no hang, no word."""

from __future__ import annotations

import pytest
from lifecycle.processes import run


@pytest.mark.parametrize("work", ["fork", "fork_ahead", "fork_quiet", "loop_death", "end"])
def test_requests_in_flight(work: str, scheduled_mode: str) -> None:
    ended = run("cloud.py", work, HEADRACE_SCHEDULER=scheduled_mode)
    assert (ended.status, ended.err) == (0, "")
