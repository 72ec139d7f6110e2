"""Plan a read request: which ops to perform, and where their bytes land.

Owns the arithmetic between what a caller asked (ranges of files, in any order, with duplicates,
overlaps, nesting and empty ranges) and what a backend performs (ops of bounded size).

1. Check the input; the first offending range is named.
2. Sort by ``(file, start)``, stably. Empty ranges need no op and are left out from here on.
3. Coalesce: a range joins the group before it when it begins at most ``max_gap_bytes`` after the
   largest end seen so far in its file.
4. Split each group into ops of ``max_op_bytes``, the last one being the rest.
5. Lay the groups out in the result buffer, in the order in which the caller first asked for
   something of each. Where nothing was merged this *is* the caller's order (no gather is needed).

`settle` maps what the ops really delivered back to the caller's ranges. A range whose own answer
cannot be told from the merged or split ops that served it is *unsettled*: it must be asked again
on its own, so that a caller sees what the wrapped filesystem does (I8) and an error belongs to
the range that caused it (I10). A range never gets more bytes than it asked for (I9).

Every step is a NumPy call over all ranges, n log n at worst. Pure functions of their arguments:
no state, no I/O, any thread. Arrays of a plan may share memory and must not be written to.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from headrace.columns import ZERO, ascending
from headrace.types import Int64Array

if TYPE_CHECKING:
    from collections.abc import Iterable

BoolArray = npt.NDArray[np.bool_]
_FileOps = tuple[Int64Array, Int64Array, Int64Array, Int64Array]

_INT64_MAX = 2**63 - 1
# Sums over a request stay below this, so that no int64 sum of offsets and lengths can wrap.
_MAX_TOTAL_BYTES = 2**62
# A plan costs about 100 bytes an op: beyond this the machine would swap before the first read.
_MAX_OPS = 2**28

_ONE = np.ones(1, np.int64)
_ONE.flags.writeable = False


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The ops of one request (m of them) and the map back to its ranges (n).

    ``op_length.sum() == range_length.sum() + gap_bytes - shared_bytes`` always holds.

    Attributes
    ----------
    op_file, op_start, op_length, op_dest : int64 array (m,)
        Index into the request's files, offset in that file in bytes, length in bytes (at least 1,
        at most ``max_op_bytes``), and where the op's bytes land in the result buffer. Ops are in
        ``(file, start)`` order; only where overlapping ranges are kept apart (a negative
        ``max_gap_bytes``) and split does each keep its ops together instead.
    buffer_bytes : int
        Size of the result buffer.
    range_file, range_start, range_length : int64 array (n,)
        What the caller asked, in the caller's order.
    range_dest : int64 array (n,)
        Where each range begins in the result buffer.
    range_first_op, range_end_op : int64 array (n,)
        Ops ``[first, end)`` cover the range; equal for an empty range.
    is_packed : bool
        ``range_dest`` is the exclusive running sum of ``range_length``: no gather is needed.
    gap_bytes : int
        Bytes read that no range asked for.
    shared_bytes : int
        Bytes asked more than once and read once.
    """

    op_file: Int64Array
    op_start: Int64Array
    op_length: Int64Array
    op_dest: Int64Array
    buffer_bytes: int
    range_dest: Int64Array
    range_length: Int64Array
    range_file: Int64Array
    range_start: Int64Array
    range_first_op: Int64Array
    range_end_op: Int64Array
    is_packed: bool
    gap_bytes: int
    shared_bytes: int

    def moved(self, begin: int) -> Plan:
        """Lay it out `begin` bytes further on."""
        if not begin:
            return self
        return replace(self, op_dest=self.op_dest + begin, range_dest=self.range_dest + begin)

    def placed(self, dest: Int64Array) -> Plan:
        """Lay each range out at a place of its own, ``int64[n]``; nothing was merged, and none is empty."""
        order = np.argsort(self.range_first_op)
        of_op = np.repeat(order, (self.range_end_op - self.range_first_op)[order])
        op_dest = self.op_dest + (dest - self.range_dest)[of_op]
        return replace(self, op_dest=op_dest, range_dest=dest, is_packed=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """Coalesced ranges: g groups over the k ranges that are not empty, in file order."""

    order: Int64Array  # (k,) caller's index of each range in file order
    start: Int64Array  # (k,)
    length: Int64Array  # (k,)
    of_range: Int64Array  # (k,) which group a range belongs to
    group_file: Int64Array  # (g,)
    group_start: Int64Array  # (g,)
    group_length: Int64Array  # (g,)
    group_leader: Int64Array  # (g,) smallest caller's index among a group's ranges
    gap_bytes: int


def plan_ranges(
    files: npt.ArrayLike,
    starts: npt.ArrayLike,
    ends: npt.ArrayLike,
    *,
    max_gap_bytes: int,
    max_op_bytes: int,
) -> Plan:
    """Plan the half-open byte ranges ``[starts[i], ends[i])`` of ``files[i]``.

    Parameters
    ----------
    files : int or array of int (n,)
        Index of each range's file; one int stands for all.
    starts, ends : array of int (n,)
        Bytes. Any order; duplicates, overlaps and empty ranges are fine. Copied.
    max_gap_bytes : int
        Ranges of one file this far apart are read together. 0 merges only those that touch or
        overlap; a negative value merges nothing, duplicates included.
    max_op_bytes : int
        Largest op, at least 1.

    Returns
    -------
    Plan

    Raises
    ------
    TypeError
        Something is not an integer.
    ValueError
        Lengths differ, a range is negative or ends before it starts (the first one is named), or
        the request is larger than a plan can hold.
    """
    max_op_bytes = _checked_max_op_bytes(max_op_bytes)
    file, start, end = _checked(files, starts, ends)
    groups = _coalesce(file, start, end, operator.index(max_gap_bytes))
    return _assemble(groups, file, start, end - start, max_op_bytes)


def plan_one(file: int, start: int, length: int, max_op_bytes: int) -> Plan:
    """Plan one range: what `plan_ranges` would answer, in a few microseconds.

    Parameters
    ----------
    file, start, length : int
        Index of the file; offset and length in bytes.
    max_op_bytes : int
        Largest op, at least 1.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        A negative value, or more ops than a plan can hold.
    """
    _check_one(file, start, length, max_op_bytes)
    range_file, range_start, range_length = np.array([[file], [start], [length]], np.int64)
    if 0 < length <= max_op_bytes:
        ops, count = (range_file, range_start, range_length, ZERO), _ONE
    else:
        op_file, op_start, op_length, op_dest = cut(start, length, max_op_bytes)
        ops, count = (op_file + file, op_start, op_length, op_dest), np.array([op_file.size])
    # Positional, in the order of the fields: this is the path of every single small read.
    asked = (ZERO, range_length, range_file, range_start, ZERO, count)
    return Plan(*ops, length, *asked, True, 0, 0)  # noqa: FBT003


def cut(start: int, length: int, max_op_bytes: int) -> tuple[Int64Array, Int64Array, Int64Array, Int64Array]:
    """Cut one range of the first file into the columns ``(file, start, length, dest)`` of its ops."""
    # Not arange with a step: it counts in floats, and loses the last op of a huge range.
    dest = np.arange(-(-length // max_op_bytes), dtype=np.int64) * max_op_bytes
    return np.zeros(dest.size, np.int64), dest + start, np.minimum(length - dest, max_op_bytes), dest


def _check_one(file: int, start: int, length: int, max_op_bytes: int) -> None:
    if min(file, start, length) < 0:
        raise ValueError(f"file {file}, start {start}, length {length}: none can be negative")
    if start + length > _INT64_MAX:
        raise ValueError(f"start {start} + length {length} does not fit in 64 bits")
    _check_op_count(length / _checked_max_op_bytes(max_op_bytes))


def _checked_max_op_bytes(max_op_bytes: int) -> int:
    max_op_bytes = operator.index(max_op_bytes)
    if max_op_bytes < 1:
        raise ValueError(f"max_op_bytes is {max_op_bytes}: it must be at least 1")
    return min(max_op_bytes, _INT64_MAX)


def _check_op_count(count: float) -> None:
    if count > _MAX_OPS:
        raise ValueError(f"the request needs {count:.3g} ops, more than {_MAX_OPS}")


def _checked_total_bytes(length: Int64Array) -> int:
    # The float sum cannot wrap; the exact one is taken only where it cannot either.
    if length.sum(dtype=np.float64) > _MAX_TOTAL_BYTES:
        raise ValueError(f"the request is longer than {_MAX_TOTAL_BYTES} bytes in total")
    return int(length.sum())


def _int64(values: npt.ArrayLike, name: str) -> Int64Array:
    """Copy to int64, never rounding and never wrapping."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise TypeError(f"{name} must be a one-dimensional sequence of integers, not of shape {array.shape}")
    fits = array.dtype.kind == "i" or not array.size
    if not fits and not (array.dtype.kind == "u" and array.max() <= _INT64_MAX):
        # An array is walked as it is; a list that NumPy made floats of, by its own items.
        items = values if isinstance(values, (list, tuple)) else array
        return np.array(_python_ints(items, name), np.int64)
    return array.astype(np.int64)


def _python_ints(values: Iterable[object], name: str) -> list[int]:
    numbers = []
    for index, value in enumerate(values):
        try:
            number = operator.index(value)  # type: ignore[arg-type]  # that is what is asked
        except TypeError:
            raise TypeError(f"{name}[{index}] is {value!r:.50}, not an integer") from None
        if not -_INT64_MAX <= number <= _INT64_MAX:
            raise ValueError(f"{name}[{index}] is {number}: it does not fit in 64 bits")
        numbers.append(number)
    return numbers


def _checked(
    files: npt.ArrayLike, starts: npt.ArrayLike, ends: npt.ArrayLike
) -> tuple[Int64Array, Int64Array, Int64Array]:
    start, end = _int64(starts, "starts"), _int64(ends, "ends")
    if np.ndim(files) == 0:
        file = np.full(start.size, operator.index(files), np.int64)  # type: ignore[arg-type]
    else:
        file = _int64(files, "files")
    if not file.size == start.size == end.size:
        raise ValueError(
            f"files, starts and ends must have one length, not {file.size}, {start.size} and {end.size}"
        )
    bad = (file < 0) | (start < 0) | (end < start)
    if bad.any():
        raise ValueError(_why_bad(int(bad.argmax()), file, start, end))
    return file, start, end


def _why_bad(index: int, file: Int64Array, start: Int64Array, end: Int64Array) -> str:
    if file[index] < 0:
        return f"files[{index}] is {file[index]}: an index cannot be negative"
    if start[index] < 0:
        return f"starts[{index}] is {start[index]}: an offset cannot be negative"
    return f"ends[{index}] is {end[index]}, before starts[{index}], which is {start[index]}"


def _file_order(file: Int64Array, start: Int64Array) -> Int64Array:
    """Stable order by ``(file, start)``."""
    n = start.size
    is_after = (file[1:] > file[:-1]) | ((file[1:] == file[:-1]) & (start[1:] >= start[:-1]))
    if is_after.all():
        return ascending(0, n)
    index_bits, start_bits = n.bit_length(), int(start.max()).bit_length()
    if index_bits + start_bits + int(file.max()).bit_length() >= 63:  # noqa: PLR2004
        return np.lexsort((start, file)).astype(np.int64, copy=False)
    # One word holds file, start and position: a plain sort of it is stable and twice as fast.
    word = (((file << start_bits) | start) << index_bits) | np.arange(n, dtype=np.int64)
    word.sort()
    word &= (1 << index_bits) - 1
    return word


def _running_end(file: Int64Array, end: Int64Array) -> Int64Array:
    """Largest end in the same file up to and including each range, in file order."""
    if file[0] == file[-1]:
        return np.maximum.accumulate(end)
    is_same_file = file[1:] == file[:-1]
    if not (is_same_file & (end[1:] < end[:-1])).any():
        return end
    # One running maximum over all files, of ranks: ends would need room for the file's index.
    by_end = np.argsort(end)
    rank = np.empty(end.size, np.int64)
    rank[by_end] = np.arange(end.size)
    floor = np.zeros(end.size, np.int64)
    np.cumsum(~is_same_file, out=floor[1:])
    floor *= end.size
    best = np.maximum.accumulate(rank + floor) - floor
    return end[by_end[best]]


def _coalesce(file: Int64Array, start: Int64Array, end: Int64Array, gap: int) -> _Groups:
    kept = np.flatnonzero(end > start)
    order = kept[_file_order(file[kept], start[kept])] if kept.size else kept
    file, start, end = file[order], start[order], end[order]
    is_first = np.ones(order.size, np.bool_)
    reach = end
    gap_bytes = 0
    if gap >= 0 and order.size:
        reach = _running_end(file, end)
        distance = start[1:] - reach[:-1]
        is_first[1:] = (file[1:] != file[:-1]) | (distance > min(gap, _INT64_MAX))
        gap_bytes = int(distance[~is_first[1:] & (distance > 0)].sum())
    first = np.flatnonzero(is_first)
    last = np.append(first[1:], order.size) - 1 if first.size else first
    return _Groups(
        order=order,
        start=start,
        length=end - start,
        of_range=np.cumsum(is_first) - 1,
        group_file=file[first],
        group_start=start[first],
        group_length=reach[last] - start[first],
        group_leader=np.minimum.reduceat(order, first) if first.size else order,
        gap_bytes=gap_bytes,
    )


def _layout(groups: _Groups, n: int) -> tuple[Int64Array, int]:
    """Where each group begins in the buffer, and the size of the buffer."""
    buffer_bytes = _checked_total_bytes(groups.group_length)
    # A running sum over the caller's positions orders the groups by leader without a sort.
    length_at = np.zeros(n, np.int64)
    length_at[groups.group_leader] = groups.group_length
    dest = np.cumsum(length_at)[groups.group_leader] - groups.group_length
    return dest, buffer_bytes


def _split(groups: _Groups, group_dest: Int64Array, max_op_bytes: int) -> tuple[_FileOps, Int64Array]:
    """Ops as (file, start, length, dest), and the first op of each group."""
    length = groups.group_length
    if not length.size or length.max() <= max_op_bytes:
        ops = (groups.group_file, groups.group_start, length, group_dest)
        return ops, ascending(0, length.size)
    count = -(-length // max_op_bytes)
    _check_op_count(float(count.sum(dtype=np.float64)))
    first_op = np.cumsum(count) - count
    group = np.repeat(np.arange(count.size), count)
    offset = (np.arange(group.size) - first_op[group]) * max_op_bytes
    op_length = np.minimum(length[group] - offset, max_op_bytes)
    ops = (
        groups.group_file[group],
        groups.group_start[group] + offset,
        op_length,
        group_dest[group] + offset,
    )
    return ops, first_op


def _assemble(
    groups: _Groups, file: Int64Array, start: Int64Array, length: Int64Array, max_op_bytes: int
) -> Plan:
    """Make the plan: split, and map each range to its ops and to its place in the buffer."""
    asked_bytes = _checked_total_bytes(length)
    group_dest, buffer_bytes = _layout(groups, start.size)
    ops, group_first_op = _split(groups, group_dest, max_op_bytes)
    offset = groups.start - groups.group_start[groups.of_range]
    base = group_first_op[groups.of_range]
    first_op, end_op = np.zeros((2, start.size), np.int64)
    dest = np.zeros(start.size, np.int64)  # by itself: a batch may keep it
    first_op[groups.order] = base + offset // max_op_bytes
    end_op[groups.order] = base + (offset + groups.length - 1) // max_op_bytes + 1
    dest[groups.order] = group_dest[groups.of_range] + offset
    _place_empty_ranges(dest, length)
    return Plan(
        *ops,
        buffer_bytes=buffer_bytes,
        range_dest=dest,
        range_length=length,
        range_file=file,
        range_start=start,
        range_first_op=first_op,
        range_end_op=end_op,
        is_packed=bool((dest == np.cumsum(length) - length).all()),
        gap_bytes=groups.gap_bytes,
        shared_bytes=asked_bytes + groups.gap_bytes - buffer_bytes,
    )


def _place_empty_ranges(dest: Int64Array, length: Int64Array) -> None:
    """Put each empty range at the end of the range asked before it, so that it breaks no run."""
    is_empty = length == 0
    if not is_empty.any():
        return
    before = np.maximum.accumulate(np.where(is_empty, -1, np.arange(length.size)))
    dest[is_empty] = np.where(before < 0, 0, dest[before] + length[before])[is_empty]


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """What became of each range of a request, in the caller's order.

    Attributes
    ----------
    length : int64 array (n,)
        Bytes delivered: as asked, less past the end of the file, 0 for a failed or unsettled one.
    failed_op : int64 array (n,)
        Op whose error is the range's own, or -1.
    unsettled : bool array (n,)
        The range must be asked again on its own to learn its answer.
    """

    length: Int64Array
    failed_op: Int64Array
    unsettled: BoolArray


def settle(plan: Plan, op_got: Int64Array, op_failed: BoolArray, op_final: BoolArray) -> Settled:
    """Map the outcome of the ops to the ranges.

    A range is decided by the first of its ops that failed or came up short: the *stop*.

    * No stop, or a short one after the range's end: the range is whole.
    * A short op ends the range there. If nothing is left of it, and the op did not begin where
      the range does, then the wrapped filesystem was never asked about this range: unsettled.
    * A failed op fails the range if its error is about the file (`op_final`) or if the op was
      exactly the range; else the error may be another range's: unsettled.

    Parameters
    ----------
    plan : Plan
        Of m ops and n ranges.
    op_got : int64 array (m,)
        Bytes each op delivered; ignored for a failed op.
    op_failed : bool array (m,)
        The op raised.
    op_final : bool array (m,)
        Its error is about the file, not the bytes: asking again is useless.

    Returns
    -------
    Settled
    """
    n = plan.range_length.size
    failed_op, unsettled = np.full(n, -1, np.int64), np.zeros(n, np.bool_)
    bad = np.flatnonzero(op_failed | (op_got < plan.op_length))
    if not bad.size:
        return Settled(plan.range_length, failed_op, unsettled)
    length = plan.range_length.copy()
    stop = np.append(bad, plan.op_file.size)[np.searchsorted(bad, plan.range_first_op)]
    touched = np.flatnonzero(stop < plan.range_end_op)
    is_failed = op_failed[stop[touched]]
    cut = touched[~is_failed]
    length[cut], unsettled[cut] = _settle_cut(plan, cut, stop[cut], op_got)
    lost = touched[is_failed]
    is_own = op_final[stop[lost]] | _is_whole_op(plan, lost)
    failed_op[lost] = np.where(is_own, stop[lost], -1)
    unsettled[lost] = ~is_own
    length[lost] = 0
    return Settled(length, failed_op, unsettled)


def _settle_cut(
    plan: Plan, cut: Int64Array, stop: Int64Array, op_got: Int64Array
) -> tuple[Int64Array, BoolArray]:
    start = plan.range_start[cut]
    left = plan.op_start[stop] + op_got[stop] - start
    length = np.clip(left, 0, plan.range_length[cut])
    begins_op = plan.op_start[plan.range_first_op[cut]] == start
    return length, (length == 0) & ~begins_op


def _is_whole_op(plan: Plan, index: Int64Array) -> BoolArray:
    """Whether the ranges at `index` are each exactly one op."""
    op = plan.range_first_op[index]
    is_same_start: BoolArray = plan.op_start[op] == plan.range_start[index]
    is_same_length: BoolArray = plan.op_length[op] == plan.range_length[index]
    return is_same_start & is_same_length
