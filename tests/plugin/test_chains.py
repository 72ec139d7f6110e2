"""Chains of filesystems with headrace outside, inside, twice: right bytes, and no deadlock.

Nested reads are where a scheduler with limits can wait for itself: a zip over headrace over S3
needs an inner op while its outer op holds the only place.  So every chain is read in a child
process with a process limit of one op and one op per scheduler, under each mode and serialized,
with a hard limit of time on the child.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from modes import BUCKET

import headrace

CONTENT = np.random.default_rng(13).bytes(300_000)
DEADLOCK_S = 120
ENVIRONMENTS = {
    "lite": {"HEADRACE_SCHEDULER": "lite"},
    "standard": {"HEADRACE_SCHEDULER": "standard"},
    "off": {"HEADRACE_SCHEDULER": "off"},
    "auto": {},
    "lite-serialized": {"HEADRACE_SCHEDULER": "lite", "HEADRACE_SERIALIZE": "1"},
    "standard-serialized": {"HEADRACE_SCHEDULER": "standard", "HEADRACE_SERIALIZE": "1"},
}


@pytest.fixture
def root(tmp_path: Path, s3_server: dict[str, object]) -> Path:
    (tmp_path / "data.bin").write_bytes(CONTENT)
    with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.bin", CONTENT)
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(tmp_path / "data.bin", "data.bin")
    refs = {"data": [f"{tmp_path}/data.bin", 0, len(CONTENT)]}
    (tmp_path / "references.json").write_text(json.dumps(refs))
    s3 = fsspec.filesystem("s3", **s3_server)
    for name in ("data.bin", "data.zip"):
        s3.put(str(tmp_path / name), f"{BUCKET}/chains/{name}")
    return tmp_path


def _child(arguments: list[str], settings: dict[str, str]) -> dict[str, str]:
    limits = {"HEADRACE_PROCESS_IO_LIMIT": "1", "HEADRACE_IO_PARALLELISM": "1"}
    program = Path(__file__).with_name("chains_child.py")
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        env=dict(os.environ, **limits, **settings),
        capture_output=True,
        text=True,
        timeout=DEADLOCK_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, str] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("name", list(ENVIRONMENTS))
def test_chains_with_one_op_at_a_time(name: str, root: Path, s3_server: dict[str, object]) -> None:
    answers = _child([str(root), str(s3_server["endpoint_url"]), BUCKET], ENVIRONMENTS[name])
    expected = f"{len(CONTENT)} {hashlib.sha256(CONTENT).hexdigest()[:16]}"
    assert answers
    assert {chain: got for chain, got in answers.items() if got != expected} == {}


@pytest.mark.parametrize("protocol", ["tar", "zip"])
def test_an_archive_under_eight_threads(protocol: str, root: Path, scheduled_mode: str) -> None:
    """A plain archive filesystem shared by threads gives wrong bytes; headrace does not."""
    fs = headrace.HeadraceFileSystem(
        target_protocol=protocol,
        target_options={"fo": str(root / f"data.{protocol}")},
        scheduler=scheduled_mode,
    )
    start_together = threading.Barrier(8)

    def read(thread: int) -> list[int]:
        start_together.wait(60)
        wrong = []
        for start in range(thread * 1_000, 280_000, 7_919):
            end = start + 10_000
            with fs.open("data.bin", "rb") as file:
                file.seek(start)
                through_file = file.read(10_000)
            got: list[Any] = [through_file, fs.cat_file("data.bin", start=start, end=end)]
            if got != [CONTENT[start:end]] * 2:
                wrong.append(start)
        return wrong

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(8))) == [[]] * 8
