"""A backend that a third party ships: built, installed and run apart from headrace.

``headrace_demo_backend`` is a distribution with its own ``pyproject.toml``.  pip builds and
installs it into a directory; a child process with that directory on its path runs the checks of the
distribution: `headrace.testing.BackendTests`, and reads through `HeadraceFileSystem`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("headrace_demo_backend")


def _run(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env=dict(os.environ, **environment),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory the distribution was installed into; the source tree stays clean."""
    root = tmp_path_factory.mktemp("third-party")
    source, target = root / "source", root / "installed"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    done = _run(["pip", "install", *options, "--target", str(target), str(source)])
    assert done.returncode == 0, done.stderr
    return target


def _pytest(root: Path, *arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    (root / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    shutil.copy(SOURCE / "checks" / "check_demo_backend.py", root)
    options = ["-p", "no:cacheprovider", "-p", "no:asyncio", "--rootdir", str(root), "-q"]
    return _run(
        [
            "pytest",
            "-c",
            str(root / "pytest.ini"),
            *options,
            *arguments,
            str(root / "check_demo_backend.py"),
        ],
        PYTHONPATH=path,
    )


def test_the_installed_backend_passes(installed: Path, tmp_path: Path) -> None:
    done = _pytest(tmp_path, path=str(installed))
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) > 13, "the checks ran, but hardly anything of BackendTests"
    assert "skipped" not in done.stdout


def test_without_the_distribution_it_is_not_there(tmp_path: Path) -> None:
    done = _pytest(tmp_path, path="")
    assert done.returncode != 0
    assert "headrace_demo_backend" in done.stdout + done.stderr
