"""Ends of Parquet files, kept for when such a file is opened again.

A dataset opens its first file for the schema and all files once more to scan them, Dask plans in one place
and reads in another, and the next scan opens them all again: each time the footer is a round trip to the
store. Kept are those of objects whose version is known when they are opened, for that version only, and for
the channel that read them: a filesystem with other credentials has another, and nobody sees what it may not
read. What was found in them is kept too: parsing one takes milliseconds, with the GIL kept.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from headrace.parquet import ParquetLayout
    from headrace.types import UInt8Array

MOST_BYTES = 8 << 20
"""Kept of one channel; no more than one part in `BUDGET_SHARE` of the byte budget."""

BUDGET_SHARE = 64
LONGEST_BYTES = 1 << 20


class Tail(NamedTuple):
    """The last bytes of a file, not to be written to, and the layout that they tell of."""

    data: UInt8Array
    layout: ParquetLayout

    @property
    def nbytes(self) -> int:
        """Bytes of memory, about."""
        return len(self.data) + self.layout.nbytes


class Tails:
    """The last bytes of files, the latest used ones.

    Parameters
    ----------
    budget_bytes
        The byte budget; 0 is no limit.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._most_bytes = min(budget_bytes // BUDGET_SHARE, MOST_BYTES) if budget_bytes else MOST_BYTES
        self._kept: OrderedDict[tuple[str, str], Tail] = OrderedDict()

    def get(self, path: str, version: str) -> Tail | None:
        """Return the end of a version of a file, if it is there."""
        # Each step is one of the GIL's; another thread may have taken it off meanwhile.
        found = self._kept.pop((path, version), None)
        if found is not None:
            self._kept[path, version] = found
        return found

    def clear(self) -> None:
        """Let go of all."""
        self._kept.clear()

    def keep(self, path: str, version: str, tail: Tail) -> None:
        """Keep the end of a version of a file, and let go of those that were not used for longest."""
        if len(tail.data) > LONGEST_BYTES or tail.nbytes > self._most_bytes:
            return
        data = tail.data.copy()
        data.flags.writeable = False
        self._kept.pop((path, version), None)
        self._kept[path, version] = tail._replace(data=data)
        with contextlib.suppress(KeyError):  # another thread was first
            self._trim()

    def _trim(self) -> None:
        held = sum(kept.nbytes for kept in list(self._kept.values()))
        while held > self._most_bytes:
            held -= self._kept.popitem(last=False)[1].nbytes
