"""Small reads cancelled, dropped, failed and consumed at random over threads: nothing is left.

``HEADRACE_TEST_SOAK`` is how many are cancelled, dropped or failed over all cases of a filesystem's: 1,200 in
the gate, a million in the full run, and half as many again are consumed. The native engine, whose requests go
to a server in Python, has a twentieth of a case.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lifecycle.processes import run

from headrace.testing import Fault, ObjectServer

READS = int(os.environ.get("HEADRACE_TEST_SOAK", "1200"))
PROTOCOLS = ("file", "slow", "aslow")
EACH = READS // (2 * len(PROTOCOLS))


def _soak(root: Path, mode: str, protocol: str, reads: int, *options: dict[str, Any]) -> None:
    arguments = map(json.dumps, options or ({}, {}))
    ended = run("soak.py", protocol, root, reads, *arguments, limit_s=3000, HEADRACE_SCHEDULER=mode)
    assert ended.status == 0, ended.err
    answer = json.loads(ended.out.splitlines()[-1])
    assert answer["submitted"] > reads
    left = {name: answer[name] for name in ("in_flight", "reserved", "requests")}
    assert left == {"in_flight": 0, "reserved": 0, "requests": 0}
    assert (answer["wrong"], answer["threads"], answer["descriptors"]) == ([], [], [])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("data.bin", "failing.bin"):
        (tmp_path / name).write_bytes(np.random.default_rng(6).bytes(400_000))
    return tmp_path


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_is_left(protocol: str, root: Path, scheduled_mode: str) -> None:
    _soak(root, scheduled_mode, protocol, EACH)


@pytest.mark.timeout(3600)
def test_the_native_engine_leaves_nothing(root: Path, scheduled_mode: str) -> None:
    with ObjectServer() as server:
        server.put("bucket", "data.bin", (root / "data.bin").read_bytes())
        server.put("bucket", "failing.bin", (root / "failing.bin").read_bytes())
        refused = Fault("expired_token")
        server.script = lambda request: refused if request.key == "failing.bin" else None
        options = server.storage_options(), {"cloud_engine": "obstore"}
        _soak(root, scheduled_mode, "s3", max(60, EACH // 20), *options)
