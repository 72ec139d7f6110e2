"""Reads in exit handlers; run by ``test_exit.py``.

Argument: a file.  The mode comes from the environment.  Says what the handlers read, and ends.
"""

from __future__ import annotations

import atexit
import sys


def read(when: str) -> None:
    try:
        sys.stdout.write(f"{when} {fs.cat_file(sys.argv[1], 0, 4)!r}\n")
    except RuntimeError as error:
        sys.stdout.write(f"{when} {type(error).__name__} {error}\n")


atexit.register(read, "older:")

import headrace  # noqa: E402 - that is the point

atexit.register(read, "newer:")
fs = headrace.HeadraceFileSystem(target_protocol="file")
