"""Requests to a store in flight, and the process forks or its loop thread dies: the right bytes, no hang."""

from __future__ import annotations

import pytest
from lifecycle.processes import run


@pytest.mark.parametrize("work", ["fork", "fork_ahead", "fork_quiet", "loop_death"])
def test_requests_in_flight(work: str, scheduled_mode: str) -> None:
    ended = run("cloud.py", work, HEADRACE_SCHEDULER=scheduled_mode)
    assert (ended.status, ended.err) == (0, "")
