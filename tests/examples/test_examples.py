"""Every example runs as a program of its own, to its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples"
OWN_TEST = {"cpu_io_isolation.py"}  # with small sizes, in test_cpu_io_isolation.py
EXAMPLES = sorted({path.name for path in FOLDER.glob("*.py")} - OWN_TEST)


def test_the_examples_are_found():
    assert len(EXAMPLES) >= 7


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name: str, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, str(FOLDER / name)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "Traceback" not in done.stderr  # from a thread or a finaliser
    assert list(tmp_path.iterdir()) == []
