"""What the page cache holds of a file."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from headrace.backends import _linux as linux

needs_nowait = pytest.mark.skipif(not linux.HAS_NOWAIT, reason="no RWF_NOWAIT on this system")


def tells_what_is_cached(folder: Path) -> bool:
    """Whether this kernel says of a file of ours what the page cache holds."""
    path = folder / "told.bin"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        return linux.is_cached(file.fileno(), 0, 1)


def drop(path: Path) -> None:
    """Have the page cache hold nothing of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pages_of(path: Path) -> int:
    """Count the pages of a file that the page cache holds."""
    with path.open("rb") as file:
        starts = range(0, path.stat().st_size, mmap.PAGESIZE)
        return sum(linux.is_cached(file.fileno(), start, 1) for start in starts)
