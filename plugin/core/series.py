"""How many ops of a long read are performed one after the other: see `core.room`.

Half as many series as the window has room for at first: a read that is not much longer has most of them,
and while the round of one ends that of another goes on. With few ops allowed in flight there are none, for a
round would keep them for long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from headrace.types import Int64Array


class SeriesLimits(NamedTuple):
    """What decides on series of a device's reads.

    Attributes
    ----------
    most_series_ops
        What the backend can perform one after the other by itself.
    short_bytes, urgent_bytes
        Length of the ops of reads that urgent ones may have to wait for, and of those made while such come.
    window_bytes
        The window at first.
    most_ops
        Ops allowed in flight.
    """

    most_series_ops: int
    short_bytes: int
    urgent_bytes: int
    window_bytes: int
    most_ops: int


def series_ops(op_length: Int64Array, result_bytes: int, limits: SeriesLimits) -> int:
    """Return how many ops of a read are to be performed one after the other; 1 where all are side by side."""
    n_ops = len(op_length)
    if limits.most_series_ops == 1 or result_bytes <= limits.short_bytes:
        return 1
    if result_bytes < n_ops * limits.urgent_bytes // 2:
        return 1
    longest = int(op_length.max())
    if longest > limits.short_bytes:
        return 1
    side_by_side = max(limits.window_bytes // longest // 2, 1)
    if limits.most_ops < 4 * side_by_side:
        return 1
    return min(-(-n_ops // side_by_side), limits.most_series_ops)
