"""Local files through the page cache and plain ``preadv``: everywhere, and where io_uring is not.

All of it is in `headrace.backends._files`, which the io_uring backend shares.
"""

from __future__ import annotations

from typing import ClassVar

from headrace.backends._files import FileBackend


class LocalBackend(FileBackend):
    """Reads local files with ``preadv``."""

    name: ClassVar[str] = "local"
    rank: ClassVar[int] = 100
