"""Small reads cancelled, dropped, failed and consumed at random over threads: nothing is left.

``HEADRACE_TEST_SOAK`` is the number of ranges over all cases: 20,000 in the gate, a million in the
full run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from lifecycle.processes import run

RANGES = int(os.environ.get("HEADRACE_TEST_SOAK", "20000"))
PROTOCOLS = ("file", "slow", "aslow")
CASES = 2 * len(PROTOCOLS)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_is_left(protocol: str, tmp_path: Path, scheduled_mode: str) -> None:
    for name in ("data.bin", "failing.bin"):
        (tmp_path / name).write_bytes(np.random.default_rng(6).bytes(400_000))
    ended = run(
        "soak.py",
        protocol,
        tmp_path,
        RANGES // CASES,
        limit_s=3000,
        HEADRACE_SCHEDULER=scheduled_mode,
    )
    assert ended.status == 0, ended.err
    answer = json.loads(ended.out.splitlines()[-1])
    assert answer["submitted"] > RANGES // CASES // 50
    left = {name: answer[name] for name in ("in_flight", "reserved", "requests")}
    assert left == {"in_flight": 0, "reserved": 0, "requests": 0}
    assert (answer["wrong"], answer["threads"], answer["descriptors"]) == ([], [], [])
