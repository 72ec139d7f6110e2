"""What the children that fork share: waiting for the forked child, which must not hang."""

from __future__ import annotations

import os
import time

CHILD_S = 60.0


def wait_for_child(pid: int) -> int:
    """Return the status that a forked child ends with; end it, and fail, where it hangs."""
    deadline_s = time.monotonic() + CHILD_S
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline_s:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            message = "the forked child hangs"
            raise AssertionError(message)
        time.sleep(0.005)
