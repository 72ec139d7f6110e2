"""Child processes of the lifecycle tests: start one, wait for what it says, see how it ended.

A child is a script in ``children/``.  It runs with the environment of the test and the variables
given, and with a limit of time after which it is killed and the test fails: a child that hangs is
what most of these tests are about.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

CHILDREN = Path(__file__).parent / "children"
LIMIT_S = 120.0
FORKS_ARE_MEANT = "ignore:This process:DeprecationWarning"
"""Python 3.12 warns about a fork beside threads."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended, and what it wrote."""

    status: int
    out: str
    err: str


def start(script: str | Path, *arguments: object, **variables: str) -> subprocess.Popen[str]:
    """Start ``children/script`` with pipes to read from."""
    # Read here, by name: what the gate sets for itself must not reach a child.
    ours = {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": FORKS_ARE_MEANT}
    environment = {**os.environ, **ours, **variables}
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", str(CHILDREN / script), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen[str], limit_s: float = LIMIT_S) -> Ended:
    """Wait for its end."""
    try:
        out, err = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
        message = f"{child.args} hung\n{out}\n{err}"
        raise AssertionError(message) from None
    return Ended(child.returncode, out, err)


def run(script: str | Path, *arguments: object, limit_s: float = LIMIT_S, **variables: str) -> Ended:
    """Run a child to its end."""
    return finish(start(script, *arguments, **variables), limit_s)


def wait_for(child: subprocess.Popen[str], word: str) -> None:
    """Read the child's lines until one says `word`."""
    out: IO[str] = child.stdout  # type: ignore[assignment]
    for line in out:
        if line.strip() == word:
            return
    message = f"the child ended without saying {word!r}\n{finish(child).err}"
    raise AssertionError(message)
