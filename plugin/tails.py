"""Ends of Parquet files, kept for when such a file is opened again.

A dataset opens its first file for the schema and all files once more to scan them, Dask plans in one place
and reads in another, and the next scan opens them all again: each time the footer is a round trip to the
store. Kept are those of objects whose version is known when they are opened, for that version only, and for
the channel that read them: a filesystem with other credentials has another, and nobody sees what it may not
read.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.types import UInt8Array

MOST_BYTES = 8 << 20
"""Kept of one channel; no more than one part in `BUDGET_SHARE` of the byte budget."""

BUDGET_SHARE = 64
LONGEST_BYTES = 1 << 20


class Tails:
    """The last bytes of files, the latest used ones.

    Parameters
    ----------
    budget_bytes
        The byte budget; 0 is no limit.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._most_bytes = min(budget_bytes // BUDGET_SHARE, MOST_BYTES) if budget_bytes else MOST_BYTES
        self._kept: OrderedDict[tuple[str, str], UInt8Array] = OrderedDict()

    def get(self, path: str, version: str) -> UInt8Array | None:
        """Return the last bytes of a version of a file, if they are there; not to be written to."""
        # Each step is one of the GIL's; another thread may have taken it off meanwhile.
        found = self._kept.pop((path, version), None)
        if found is not None:
            self._kept[path, version] = found
        return found

    def clear(self) -> None:
        """Let go of all."""
        self._kept.clear()

    def keep(self, path: str, version: str, tail: UInt8Array) -> None:
        """Keep the last bytes of a version of a file, and let go of those that were not used for longest."""
        if len(tail) > min(LONGEST_BYTES, self._most_bytes):
            return
        kept = tail.copy()
        kept.flags.writeable = False
        self._kept.pop((path, version), None)
        self._kept[path, version] = kept
        while self._kept and sum(map(len, list(self._kept.values()))) > self._most_bytes:
            with contextlib.suppress(KeyError):  # another thread was first
                self._kept.popitem(last=False)
