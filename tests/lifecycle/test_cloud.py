"""Requests to a store in flight, and the process forks or ends, or its loop thread dies: no hang, no word."""

from __future__ import annotations

import pytest
from lifecycle.processes import run
from plain_http import Asked, PlainServer, Said, ranged


@pytest.mark.parametrize("work", ["fork", "fork_ahead", "fork_quiet", "loop_death", "end"])
def test_requests_in_flight(work: str, scheduled_mode: str) -> None:
    ended = run("cloud.py", work, HEADRACE_SCHEDULER=scheduled_mode)
    assert (ended.status, ended.err) == (0, "")


def test_adlfs_at_the_end(scheduled_mode: str) -> None:
    """It closes its clients when the interpreter ends, on the loop that it was given, and waits for that."""

    def answer(asked: Asked) -> Said:
        asked.headers["range"] = asked.headers.get("x-ms-range", "")
        about = {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "x-ms-blob-type": "BlockBlob"}
        return ranged(asked, b"0123456789", ETag='"0x1"', **about)

    with PlainServer(answer) as server:
        connection = f"BlobEndpoint={server.url}/acc;AccountName=acc;AccountKey=a2V5"
        ended = run("azure_end.py", connection, HEADRACE_SCHEDULER=scheduled_mode)
    assert (ended.status, ended.err) == (0, "")
