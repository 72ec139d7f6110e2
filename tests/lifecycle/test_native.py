"""The native engine's calls cannot be interrupted and do not survive a fork: neither is anybody's problem."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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


_SCAN = """
import sys
from headrace import lifecycle
from headrace.cli import main

lifecycle._skip_exit_handlers = lambda: print("skipped", file=sys.stderr, flush=True)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("engine", ["obstore", "fsspec"])
def test_an_interrupted_scan_of_the_command_line_lets_go(
    engine: str, server: ObjectServer, scheduled_mode: str, wait_until: Any
) -> None:
    """Arrow keeps the interrupt, and what failed; neither may keep the scan's files."""
    content = io.BytesIO()
    pq.write_table(pa.table({"a": range(100_000)}), content, row_group_size=1000)
    for number in range(3):
        server.put("bucket", f"table/{number}.parquet", content.getvalue())
    server.script = lambda request: Fault(delay_s=math.inf) if request.number >= 5 else None
    options = [f"{name}:={json.dumps(value)}" for name, value in server.storage_options().items()]
    words = ["scan", "s3://bucket/table", "--mode", scheduled_mode]
    words += [word for option in options for word in ("-o", option)]
    command = [sys.executable, "-c", _SCAN, *words]
    environ = {**os.environ, "HEADRACE_CLOUD_ENGINE": engine}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as child:
        wait_until(lambda: server.request_count > 5 or child.poll() is not None)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (130, "headrace: interrupted\n")
