"""Plan some hundreds or thousands of ranges with the GIL kept.

NumPy gives the GIL up in every call on more than 500 elements, and a plan makes some seventy of them. Beside
two busy Python threads planning 1,000 ranges took 120 to 190 ms: longer than reading them from an object
store. Here the same plan is made in plain Python, for a microsecond a range: much for a local read, little
for a request to a store.

It does what `core.plan` does and answers the same, for ranges that are neither empty nor to be split; it is
no check of the input. Pure functions.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from headrace.core.plan import Plan

if TYPE_CHECKING:
    from headrace.types import Int64Array


class _Groups:
    """Coalesced ranges, in file order: where each group begins, ends, and who asked first."""

    def __init__(self, files: list[int], starts: list[int], ends: list[int], gap: int) -> None:
        self.file: list[int] = []
        self.start: list[int] = []
        self.end: list[int] = []
        self.leader: list[int] = []
        self.of_range = [0] * len(starts)
        self.gap_bytes = 0
        n, file, end = -1, -1, 0
        for row in sorted(range(len(starts)), key=lambda row: (files[row], starts[row])):
            start = starts[row]
            if files[row] != file or gap < 0 or start - end > gap:
                n, file, end = n + 1, files[row], ends[row]
                self.file.append(file)
                self.start.append(start)
                self.end.append(end)
                self.leader.append(row)
            else:
                self.gap_bytes += max(start - end, 0)
                end = self.end[n] = max(end, ends[row])
                self.leader[n] = min(self.leader[n], row)
            self.of_range[row] = n


def plan_few(
    files: Int64Array, starts: Int64Array, ends: Int64Array, *, max_gap_bytes: int, max_op_bytes: int
) -> Plan | None:
    """Plan as `plan_ranges` does, or say that it must; arguments are those, and were checked.

    Returns
    -------
    Plan or None
        None where a range is empty or an op would be longer than `max_op_bytes`.
    """
    first, last = starts.tolist(), ends.tolist()
    asked = [end - start for start, end in zip(first, last, strict=True)]
    if min(asked) <= 0:
        return None
    groups = _Groups(files.tolist(), first, last, max_gap_bytes)
    length = [end - start for start, end in zip(groups.start, groups.end, strict=True)]
    if max(length) > max_op_bytes:
        return None
    placed = _layout(length, groups.leader)
    dest = [
        placed[group] + start - groups.start[group]
        for group, start in zip(groups.of_range, first, strict=True)
    ]
    packed = [0, *accumulate(asked)]
    first_op = _column(groups.of_range)
    return Plan(
        _column(groups.file),
        _column(groups.start),
        _column(length),
        _column(placed),
        buffer_bytes=sum(length),
        range_dest=_column(dest),
        range_length=_column(asked),
        range_file=_column(files.tolist()),  # copies: the caller may change what is theirs
        range_start=_column(first),
        range_first_op=first_op,
        range_end_op=_column([group + 1 for group in groups.of_range]),
        is_packed=dest == packed[:-1],
        gap_bytes=groups.gap_bytes,
        shared_bytes=packed[-1] + groups.gap_bytes - sum(length),
    )


def _layout(length: list[int], leader: list[int]) -> list[int]:
    """Where each group begins in the buffer: in the order in which they were first asked for."""
    placed = [0] * len(length)
    at = 0
    for group in sorted(range(len(length)), key=leader.__getitem__):
        placed[group] = at
        at += length[group]
    return placed


def _column(values: list[int]) -> Int64Array:
    return np.array(values, np.int64)
