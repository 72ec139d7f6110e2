"""A consumer ten times slower than the storage, with everything submitted ahead of it.

``HEADRACE_TEST_CONSUMER_BYTES`` is how much it reads: 256 MiB in the gate, 2 GiB in the full run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from lifecycle.processes import run

MEBIBYTE = 1 << 20
TOTAL = int(os.environ.get("HEADRACE_TEST_CONSUMER_BYTES", str(256 * MEBIBYTE)))
BUDGET = 64 * MEBIBYTE
STEP = 4 * MEBIBYTE


@pytest.mark.timeout(600)
def test_memory_stays_inside_the_budget(tmp_path: Path, scheduled_mode: str) -> None:
    path = tmp_path / "data.bin"
    block = os.urandom(MEBIBYTE)
    with path.open("wb") as file:
        for _ in range(64):
            file.write(block)
    ended = run("slow_consumer.py", path, TOTAL, BUDGET, STEP, limit_s=500, HEADRACE_SCHEDULER=scheduled_mode)
    assert ended.status == 0, ended.err
    answer = json.loads(ended.out.splitlines()[-1])
    assert answer["delivered"] >= TOTAL
    assert answer["peak_reserved"] <= BUDGET
    assert answer["most_reserved"] > BUDGET * 3 // 4, "hardly anything was read ahead"
    assert answer["reserved"] == 0
    assert answer["grown"] <= BUDGET * 11 // 10
