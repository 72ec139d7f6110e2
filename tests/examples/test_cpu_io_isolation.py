"""The experiment completes every request in every variant; what they cost is not asserted.

The example itself compares the bytes of each read, and of each upload after its variant; a wrong one ends it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cpu_io_isolation.py"
VARIANTS = ("one loop", "shared client", "no reuse", "headrace, fsspec", "headrace, obstore")
READS, UPLOADS = 3, 2


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the experiment prints, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("isolation")
    sizes = ["--reads", str(READS), "--uploads", str(UPLOADS)]
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), *sizes, "--out", "timeline.png"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # from a thread, a finaliser or the process with the store
    return done.stdout, folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_request_is_answered(variant: str, printed: tuple[str, Path]):
    pattern = rf"^{variant}: (\w+) +(\d+)  begins +[\d.]+ s  costs +[\d.]+ s$"
    answered = sorted(re.findall(pattern, printed[0], re.MULTILINE))
    wanted = [("read", str(k)) for k in range(READS)] + [("upload", str(k)) for k in range(UPLOADS)]
    assert answered == wanted


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_is_in_the_summary(variant: str, printed: tuple[str, Path]):
    for count, kind in ((READS, "reads"), (UPLOADS, "uploads")):
        assert re.search(rf"^{variant} +{count} {kind} +[\d.]+ s +[\d.]+ s$", printed[0], re.MULTILINE)


def test_the_timeline_is_written(printed: tuple[str, Path]):
    assert (printed[1] / "timeline.png").read_bytes().startswith(b"\x89PNG")
