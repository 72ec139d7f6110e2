"""Reads of many ranges: from paths and ranges to a `RangeBatch`, through plan, scheduler, driver and back.

The steps of one read:

1. *Open* each file once; a file that cannot be opened fails its own ranges and no others.
2. *Plan* (`core.plan`): coalesce, split, lay out one result buffer. One request for each device.
3. *Drive*: the channel's driver performs what the scheduler admits.
4. *Settle*: map ops back to ranges. A range whose answer only the wrapped filesystem knows (it starts past
   the end, or an op it shared with others failed) is asked again on its own, so that every mode gives
   the same bytes and the same exceptions (I8, I10).
5. *Hand over*: the reservation is released as the caller takes the bytes (I2).
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from typing_extensions import override

from headrace.arenas import arenas
from headrace.batch import RangeBatch, are_alike
from headrace.cached import read_cached
from headrace.columns import BLOCK, difference, largest, offsets_of
from headrace.core.few import plan_few
from headrace.core.plan import Plan, plan_one, plan_ranges, settle
from headrace.drivers.apart import call_apart
from headrace.drivers.job import Job
from headrace.drivers.waiting import deadline
from headrace.errors import ObjectChangedError, UnsizedFileError, is_out_of_descriptors
from headrace.jobs import Urgency, check_outcome, hand_over, wait_for_all
from headrace.lifecycle import check_not_exiting
from headrace.limits import soft_limit
from headrace.memory import make_pages, result_buffer, scattered_bytes
from headrace.pieces import Pieces
from headrace.quick import advise_scattered
from headrace.ranges import (
    MOST_OFFSET,
    MOST_OPEN,
    as_bounds,
    as_ranges,
    checked_out,
    is_plain,
    or_error,
    raise_first,
    without_frames,
)
from headrace.read import Part, Read
from headrace.single import CLIP_ABOVE_BYTES, CLIP_ASKED_ABOVE_BYTES, SingleReader
from headrace.threads import raise_if_of_a_handler
from headrace.types import Int64Array, Ops, UInt8Array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from headrace.core.plan import Settled
    from headrace.core.request import Request
    from headrace.ranges import Bounds, Ranges, Single

FEW_REQUESTS = 10_000
"""Up to so many ranges of an object store are planned with the GIL kept; more are worth a turn of it."""

FEW_OPEN = 16
"""So few files are opened together whatever the process may have."""

OPEN_SHARE = 4
"""A call has so small a part of the process's descriptors: others have files and sockets, too."""

LONG_BYTES = 256 << 10
"""From here on, copying a range out of a common buffer costs more than an op of its own."""

TURNS = 2
"""Of many whole files that are awaited so many times as may be in flight are begun: some wait for room."""

FINAL_ERRORS = (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ObjectChangedError,
)  # fmt: skip
"""Errors about the file: asking again for a part of it is useless."""


HAVE_NO_LENGTH = (IsADirectoryError, UnsizedFileError, io.UnsupportedOperation)
"""Errors of what has none: a directory, a device or a file that the kernel makes up, a pipe."""


class Reader(SingleReader):
    """Reads through one channel."""

    # -- whole reads

    def read(
        self, ranges: Ranges, urgency: Urgency, out: UInt8Array | None = None, *, is_listed: bool = False
    ) -> RangeBatch:
        """Read and return when all is there; `is_listed` where the caller wants a list of it next."""
        check_not_exiting()
        if self.opens_too_many(ranges):
            return self._read_in_blocks(ranges, urgency, out, self.most_open)
        cached = read_cached(self.channel, ranges, out)
        if cached is not None:
            return cached
        reader, prepared = self, self._prepare(ranges, urgency, out, is_awaited=True)
        if prepared is None:
            if len(ranges.paths) > 1:
                return self._read_in_blocks(ranges, urgency, out, -(-len(ranges.paths) // 2))
            reader = self.of_one_call()
            prepared = reader._prepare_patiently(ranges, urgency, out)  # noqa: SLF001 - of this class
        parts, buffer = prepared
        # Only who drives makes them meanwhile; where others do all are there at once.
        pieces = _pieces_of(parts, buffer) if is_listed and self.is_drained else None
        with reader._performed(parts) as until_s:  # noqa: SLF001 - of this class
            if out is not None and not self._is_lent_safely(len(parts)):
                buffer = _copied(buffer, out)
            batch = self.collect(ranges, parts, buffer, until_s)
        if pieces is not None and _is_all_there(parts[0]):
            batch.keep(pieces.all())
        return batch

    @property
    def most_open(self) -> int:
        """Files of a call that are open at once."""
        granted = soft_limit("RLIMIT_NOFILE")
        return MOST_OPEN if granted is None else max(1, min(MOST_OPEN, granted // OPEN_SHARE))

    def opens_too_many(self, ranges: Ranges) -> bool:
        """Whether the files of a call should be open some at a time."""
        files = len(ranges.paths)
        if files <= FEW_OPEN and files <= MOST_OPEN:
            return False  # without asking the system
        return self.channel.backend.holds_descriptors and files > self.most_open

    def _read_in_blocks(
        self, ranges: Ranges, urgency: Urgency, out: UInt8Array | None, most: int
    ) -> RangeBatch:
        if out is not None:
            checked_out(out, 0)  # before anything is read
        by_file = np.argsort(ranges.file, kind="stable")
        firsts = np.arange(0, len(ranges.paths), most)
        blocks = np.split(by_file, np.searchsorted(ranges.file[by_file], firsts[1:]))
        reader = self.of_one_call()
        batches = [
            reader.read(ranges.of_files(first, most, rows), urgency)
            for first, rows in zip(firsts.tolist(), blocks, strict=True)
        ]
        total = sum(batch.nbytes for batch in batches)
        buffer = result_buffer(total) if out is None else checked_out(out, total)
        return RangeBatch.joined(batches, blocks, buffer)

    def _prepare_patiently(
        self, ranges: Ranges, urgency: Urgency, out: UInt8Array | None
    ) -> tuple[list[Part], UInt8Array]:
        """Prepare a read of one file that there was no descriptor for, once others have closed theirs.

        Nothing of this call is open meanwhile. Where patience ends that there is none is the file's answer.
        """
        prepared = None
        while prepared is None:
            is_last = not self.may_try_again()
            prepared = self._prepare(ranges, urgency, out, is_awaited=True, is_last=is_last)
        return prepared

    async def _read_apart(self, ranges: Ranges, urgency: Urgency, out: UInt8Array | None) -> RangeBatch:
        """Read in a way that may wait: of some files at a time, or for descriptors."""
        if out is not None:
            checked_out(out, 0)  # before anything is read
        batch = await call_apart(self.read, ranges, urgency)
        if out is None:
            return batch
        return RangeBatch.joined([batch], [np.arange(len(batch))], checked_out(out, batch.nbytes))

    def read_long(self, ranges: Ranges, urgency: Urgency) -> list[bytes | Exception] | None:
        """Read ranges that are all long straight into the `bytes` of each, or say that they are not.

        The copy out of a common buffer is what they would cost most. The buffer of the request is whatever
        memory lies between the first and the last of those bytes, so nothing is merged and nothing gathered.
        """
        if not len(ranges) or ranges.ends[0] - ranges.starts[0] < LONG_BYTES:
            return None  # with the GIL kept, which the next line gives up
        if (ranges.ends - ranges.starts).min() < LONG_BYTES:
            return None
        check_not_exiting()
        sources = self._open(ranges)
        if sources is None:
            return None
        groups = self._by_device(ranges)
        lengths = ranges.ends - ranges.starts
        pieces, memory, begins = scattered_bytes(lengths.tolist())
        dest, size_of = np.array(begins), self.channel.op_bytes
        plans = [_plan_apart(ranges, chosen, dest, size_of(path)) for path, chosen in groups.items()]
        parts = self._parts(urgency, sources, groups, plans, memory)
        if len(parts) == 1:
            parts[0].job.before = partial(make_pages, pieces)
        with self._performed(parts) as until_s:
            settled = self._settle_all(ranges, parts)
        answers: list[bytes | Exception] = [
            piece if got == len(piece) else piece[:got]
            for piece, got in zip(pieces, settled.length.tolist(), strict=True)
        ]
        if settled.again:
            more, at = self._ask_again(ranges, sources, settled, parts[0].job.request, until_s)
            for row, begin in zip(settled.again, at.tolist(), strict=True):
                answers[row] = more[begin : begin + int(settled.length[row])].tobytes()
        for row, error in settled.errors.items():
            answers[row] = error
        return answers

    @override
    def cat(self, path: str, bounds: Bounds, urgency: Urgency, options: dict[str, Any]) -> bytes:
        """Return the bytes between bounds; of an object, what is long in several ops."""
        start, end = bounds = as_bounds(bounds)
        is_plainly_asked = self.channel.is_by_path and not options and is_plain(start, end)
        if is_plainly_asked and end - start > self.channel.max_op_bytes:  # type: ignore[operator]
            ranges = as_ranges(path, start, end)
            found = self.read_long(ranges, urgency)
            if found is None:
                found = self.read(ranges, urgency).to_pylist(on_error="return")
            return raise_first(found)[0]  # type: ignore[no-any-return]
        return super().cat(path, bounds, urgency, options)

    @contextlib.contextmanager
    def _performed(self, parts: list[Part]) -> Iterator[float | None]:
        """Run the parts of a read to their end, and leave nothing of them behind; until when it may last."""
        timeout_s, jobs = self.channel.settings.timeout_s, [part.job for part in parts]
        until_s = self.until_s or deadline(timeout_s)
        try:
            if len(parts) == 1:
                self.run(jobs[0])
            else:
                for job in jobs:
                    self.channel.driver.launch(job)
                wait_for_all(self.channel.driver, jobs, until_s, timeout_s)
            yield until_s
        except BaseException:
            self.channel.engine.lost.extend(jobs)
            self.channel.engine.settle_lost()
            raise

    async def read_async(self, ranges: Ranges, urgency: Urgency, out: UInt8Array | None = None) -> RangeBatch:
        """Read without blocking the caller's event loop, which need not be ours.

        `out` is written on that loop's thread alone: who cancels this has his memory again at once (I9).
        """
        check_not_exiting()
        ranges.own()
        is_apart = self.opens_too_many(ranges) or self._waits_for_lengths(ranges)
        prepared = None if is_apart else self._prepare(ranges, urgency, None)
        if prepared is None:
            return await self._read_apart(ranges, urgency, out)
        parts, buffer = prepared
        if out is not None:
            checked_out(out, len(buffer))  # before anything is read
        read = Read(self, ranges, parts, buffer)
        loop = asyncio.get_running_loop()
        try:
            # Awaited with its siblings, which may pass the budget anyhow (I2).
            for over in [self._launch_awaited(part.job, loop) for part in parts]:
                await over
            if out is not None:
                for part in parts:
                    check_outcome(part.job)
                read._buffer = _copied(buffer, out)  # noqa: SLF001 - made here
        except BaseException:
            # Whoever keeps the task that was cancelled keeps `read`, and what it reserves with it (I3).
            self.channel.engine.lost.extend(part.job for part in parts)
            self.channel.engine.settle_lost()
            raise
        if all(map(_is_all_there, parts)):
            return read.result()
        # What must be asked again may still wait, and that is rare: not on this loop's thread.
        return await call_apart(read.result)

    def _launch_awaited(self, job: Job, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Start a job that a coroutine waits for; returns what it awaits."""
        over: asyncio.Future[None] = loop.create_future()
        give_up = partial(job.engine.hub.drop, job.scheduler, job.request)
        job.callbacks.append(partial(_resolve, loop, over, give_up))
        job.request.is_awaited = True
        self.channel.driver.launch_unpolled(job)
        return over

    async def cat_many_async(
        self, asked: Sequence[Single | Exception], urgency: Urgency, options: dict[str, Any]
    ) -> list[bytes | Exception]:
        """Async twin of `cat_many`: what is given up ends, and holds no thread till then.

        Each is taken as soon as it is there, and then another begun: the budget may not hold all of them, nor
        the caller's loop wait until all are submitted.
        """
        if not self.channel.is_by_path:
            return await call_apart(self.cat_many, asked, urgency, options)
        jobs, left = set[Job](), iter(enumerate(asked))
        answers: list[bytes | Exception] = [b""] * len(asked)

        async def take_turns() -> None:
            for row, one in left:
                answers[row] = await self._cat_async(one, jobs, urgency, options)

        tasks: list[asyncio.Task[None]] = []
        try:
            for _ in range(min(len(asked), TURNS * self.channel.most_ops) - 1):
                tasks.append(asyncio.create_task(take_turns()))
                await asyncio.sleep(0)  # it begins one
            await take_turns()
            await asyncio.gather(*tasks)
            return answers
        finally:
            try:
                _cancel(tasks)  # first: they would read the rest for nobody
            finally:
                self.channel.engine.lost.extend(jobs)
                self.channel.engine.settle_lost()

    async def _cat_async(
        self, one: Single | Exception, jobs: set[Job], urgency: Urgency, options: dict[str, Any]
    ) -> bytes | Exception:
        ends: list[asyncio.Future[None]] = []

        def launch(job: Job) -> None:
            ends.append(self._launch_awaited(job, asyncio.get_running_loop()))

        begun = or_error(self._begin_cat, one, jobs, launch, urgency, options)
        # What failed or is there needs no waiting, but many of those would hold the loop, too.
        await (ends[0] if ends and isinstance(begun, tuple) else asyncio.sleep(0))
        return or_error(self._end_cat, begun, jobs)

    def submit(self, ranges: Ranges, urgency: Urgency) -> Read:
        """Start a read whose result is taken later; it waits for no descriptors."""
        check_not_exiting()
        ranges.own()
        prepared = self._prepare(ranges, urgency, None, is_last=True)
        assert prepared is not None  # noqa: S101 - by `is_last`
        parts, buffer = prepared
        read = Read(self, ranges, parts, buffer)
        for part in parts:
            self.channel.driver.launch(part.job)
        return read

    # -- opening and planning

    def _prepare(
        self,
        ranges: Ranges,
        urgency: Urgency,
        out: UInt8Array | None,
        *,
        is_awaited: bool = False,
        is_last: bool = False,
    ) -> tuple[list[Part], UInt8Array] | None:
        """Open and plan; None as `_open` says, with nothing left open."""
        sources = self._open(ranges, is_last=is_last)
        if sources is None:
            return None
        groups = self._by_device(ranges)
        # What nobody waits for yet may be long, and under way when more urgent reads come.
        size_of = self.channel.op_bytes if is_awaited else lambda _path: self.channel.short_op_bytes
        plans = [self._plan(ranges, chosen, size_of(path)) for path, chosen in groups.items()]
        total = sum(plan.buffer_bytes for plan in plans)
        given = None if out is None else checked_out(out, total)
        if given is not None and self._is_lent_safely(len(plans)):
            buffer = given
        elif is_awaited:
            # Of our own even where the caller gave some: what is left in flight by an exception writes to it.
            buffer = arenas.take(total, self.channel.settings.buffer_bytes)
        else:
            # Not of used memory: nothing of it may be resident while the request is queued (I2).
            buffer = result_buffer(total)
        begins = accumulate((plan.buffer_bytes for plan in plans), initial=0)
        moved = [plan.moved(begin) for plan, begin in zip(plans, begins, strict=False)]
        return self._parts(urgency, sources, groups, moved, buffer), buffer

    def _is_lent_safely(self, devices: int) -> bool:
        """Whether nothing is written to lent memory once the call is over: of several devices some is."""
        return self.is_drained and devices <= 1

    def _parts(
        self,
        urgency: Urgency,
        sources: list[Any],
        groups: dict[str, Int64Array | None],
        plans: list[Plan],
        buffer: UInt8Array,
    ) -> list[Part]:
        """Make the request of each device."""
        parts = []
        group = object() if len(plans) > 1 else None
        for (path, chosen), plan in zip(groups.items(), plans, strict=True):
            columns = (plan.op_file, plan.op_start, plan.op_length, plan.op_dest)
            job = self.job(Ops.of(sources, columns, buffer), path, plan.buffer_bytes, urgency, group=group)
            parts.append(Part(job, plan, chosen))
        return parts

    def _open(self, ranges: Ranges, *, is_last: bool = False) -> list[Any] | None:
        """Open each file; one that cannot be opened fails its own ranges.

        None where the descriptors do not suffice, which says nothing of a file, unless this `is_last`.
        """
        longest = _longest(ranges)
        if ranges.source is not None:
            return self._opened(ranges, longest)
        sources: list[Any] = []
        failed: dict[int, Exception] = {}
        cut = self._cut_files(ranges, longest)
        for number, path in enumerate(ranges.paths):
            try:
                # The parts of a range are of one version: that of the first answer.
                options = {"etag": None} if number in cut else {}
                source = self.channel.backend.open(path, **options)
                advise_scattered(source)
            except Exception as error:  # noqa: BLE001 - the answer of that file's ranges
                raise_if_of_a_handler(error)
                if not is_last and is_out_of_descriptors(error):
                    return None
                failed[number], source = without_frames(error), None  # which hold the other files open
            sources.append(source)
        if self._asks_too_much(ranges, longest):
            self._clip(ranges, sources)
        if failed:
            for row in np.flatnonzero(np.isin(ranges.file, list(failed))).tolist():
                ranges.errors[row] = failed[int(ranges.file[row])]
        return sources

    def _opened(self, ranges: Ranges, longest: int) -> list[Any]:
        """Take the source of a file that the caller has open; objects have been cut to its length."""
        advise_scattered(ranges.source)
        if not self.channel.is_by_path and self._asks_too_much(ranges, longest):
            self._clip(ranges, [ranges.source])
        return [ranges.source]

    def _waits_for_lengths(self, ranges: Ranges) -> bool:
        """Whether what is asked is held to the lengths of files whose filesystem others may be using."""
        return self.channel.is_guarded and self._asks_too_much(ranges, _longest(ranges))

    def _asks_too_much(self, ranges: Ranges, longest: int) -> bool:
        """Whether memory for all that is asked would be more than there is, or is better not taken."""
        if self.channel.keeps_open and longest > CLIP_ABOVE_BYTES:
            return True
        if longest * len(ranges) <= CLIP_ASKED_ABOVE_BYTES:
            return False
        # In floats: thousands of ranges to the end of any file are more than an integer holds.
        total = float((ranges.ends - ranges.starts).sum(dtype=np.float64))
        return total > CLIP_ASKED_ABOVE_BYTES

    def _cut_files(self, ranges: Ranges, longest: int) -> set[int]:
        """Return which objects have a range that takes more than one op."""
        if not self.channel.is_by_path or longest <= self.channel.max_op_bytes:
            return set()
        is_cut = ranges.ends - ranges.starts > self.channel.max_op_bytes
        return set(ranges.file[is_cut].tolist())

    def _clip(self, ranges: Ranges, sources: list[Any]) -> None:
        """Have no range end behind its file: who wants all of that may ask for more than there is memory."""
        sizes = np.full(len(sources), MOST_OFFSET)
        for number, source in enumerate(sources):
            try:
                sizes[number] = 0 if source is None else self.size(source, ranges.paths[number])
            except (OSError, RuntimeError) as error:
                raise_if_of_a_handler(error)
                # Of a device, or gone, or not to be asked on this loop: the read says so, if there is memory.
                if isinstance(error, HAVE_NO_LENGTH):
                    self._refuse_long(ranges, number, without_frames(error))
        ranges.ends = np.maximum(ranges.starts, np.minimum(ranges.ends, sizes[ranges.file]))
        if ranges.errors:
            refused = list(ranges.errors)
            ranges.ends[refused] = ranges.starts[refused]

    def _refuse_long(self, ranges: Ranges, file: int, error: Exception) -> None:
        """Have what there is no memory for fail by itself, of what has no length to cut it to."""
        is_long = ranges.ends - ranges.starts > CLIP_ASKED_ABOVE_BYTES
        ranges.errors.update(dict.fromkeys(np.flatnonzero(is_long & (ranges.file == file)).tolist(), error))

    def _by_device(self, ranges: Ranges) -> dict[str, Int64Array | None]:
        """Group the ranges which can be read by device; the key is a path on it."""
        readable: Int64Array | None = None
        if ranges.errors:
            is_readable = np.ones(len(ranges), np.bool_)
            is_readable[list(ranges.errors)] = False
            readable = np.flatnonzero(is_readable)
            if not len(readable):
                return {}
        devices = [self.channel.backend.device(path) for path in ranges.paths]
        if len(set(devices)) <= 1:
            return {ranges.paths[0]: readable} if ranges.paths else {}
        number = {device: k for k, device in enumerate(dict.fromkeys(devices))}
        of_file = np.array([number[device] for device in devices])
        rows = np.arange(len(ranges)) if readable is None else readable
        found: dict[str, Int64Array | None] = {}
        for device, k in number.items():
            chosen = rows[of_file[ranges.file[rows]] == k]
            if len(chosen):
                found[ranges.paths[devices.index(device)]] = chosen
        return found

    def _plan(self, ranges: Ranges, chosen: Int64Array | None, most: int) -> Plan:
        columns, channel = _columns(ranges, chosen), self.channel
        if len(columns[0]) == 1:
            return _plan_alone(columns, most)
        gap = channel.max_gap_bytes if ranges.max_gap is None else ranges.max_gap
        plan = None
        if BLOCK < len(columns[0]) <= FEW_REQUESTS and channel.is_remote:
            plan = plan_few(*columns, max_gap_bytes=gap, max_op_bytes=most)
        return plan or plan_ranges(*columns, max_gap_bytes=gap, max_op_bytes=most)

    # -- after the ops

    def collect(
        self, ranges: Ranges, parts: Sequence[Part], buffer: UInt8Array, until_s: float | None = None
    ) -> RangeBatch:
        """Map ops to ranges and hand the bytes over; what is asked again may last until then."""
        if len(parts) == 1 and parts[0].ranges is None and _is_all_there(parts[0]):
            return _whole(parts[0], buffer)
        settled = self._settle_all(ranges, parts)
        dest = np.zeros(len(ranges), np.int64)
        for part in parts:
            dest[part.rows] = part.plan.range_dest
        if settled.again:
            # Of the same sources: of the versions they stand for.
            job = parts[0].job
            more, at = self._ask_again(ranges, job.ops.sources, settled, job.request, until_s)
            dest[settled.again] = len(buffer) + at
            buffer = np.concatenate((buffer, more))
        return RangeBatch(pa.py_buffer(buffer), dest, settled.length, settled.errors)

    def _settle_all(self, ranges: Ranges, parts: Sequence[Part]) -> _Outcome:
        """Map ops to ranges and release what was reserved."""
        outcome = _Outcome(np.zeros(len(ranges), np.int64), dict(ranges.errors), [])
        for part in parts:
            check_outcome(part.job)
            settled = _settle(part)
            outcome.length[part.rows] = settled.length
            outcome.again += _note_failures(part, settled, outcome.errors)
            hand_over(part.job, part.plan, int(settled.length.sum()))
        outcome.again.sort()
        return outcome

    def _ask_again(
        self,
        ranges: Ranges,
        sources: list[Any],
        settled: _Outcome,
        like: Request,
        until_s: float | None = None,
    ) -> tuple[UInt8Array, Int64Array]:
        """Read some ranges each on its own, as one unsplit op; returns their bytes and where each begins.

        They are as urgent as the request they were of.
        """
        rows = np.array(settled.again, np.int64)
        sizes = ranges.ends[rows] - ranges.starts[rows]
        found = result_buffer(int(sizes.sum()))
        at = np.cumsum(sizes) - sizes
        ops = Ops.of(sources, (ranges.file[rows], ranges.starts[rows], sizes, at), found)
        path = ranges.paths[int(ranges.file[rows[0]])]
        job = self.job(ops, path, len(found), Urgency(like.priority, like.scan))
        try:
            self.run(job, until_s)
            check_outcome(job)
            settled.length[rows] = ops.got
            for op, error in ops.errors.items():
                settled.errors[settled.again[op]] = _as_answer(error)
            hand_over(job, None, int(ops.got.sum()))
        except BaseException:
            self.channel.engine.lost.append(job)
            self.channel.engine.settle_lost()
            raise
        return found, at


@dataclass(slots=True, eq=False)
class _Outcome:
    """What became of a read's ranges.

    Attributes
    ----------
    length
        ``int64[n]``: bytes delivered.
    errors
        Of the ranges that failed, by position.
    again
        Ranges that must be asked again on their own to learn their answer, ascending.
    """

    length: Int64Array
    errors: dict[int, Exception]
    again: list[int]


def _longest(ranges: Ranges) -> int:
    """Return the bytes of the longest range; 0 where there is none."""
    return largest(difference(ranges.ends, ranges.starts)) if len(ranges) else 0


def _copied(buffer: UInt8Array, out: Any) -> UInt8Array:
    """Copy what was read to the caller's memory, and return that."""
    given = checked_out(out, len(buffer))
    given[: len(buffer)] = buffer
    return given


def _plan_apart(ranges: Ranges, chosen: Int64Array | None, dest: Int64Array, most: int) -> Plan:
    """Plan ranges that are read each to a place of its own."""
    columns = _columns(ranges, chosen)
    if len(columns[0]) == 1:
        plan = _plan_alone(columns, most)
    else:
        plan = plan_ranges(*columns, max_gap_bytes=-1, max_op_bytes=most)
    return plan.placed(dest if chosen is None else dest[chosen])


def _plan_alone(columns: tuple[Int64Array, ...], max_op_bytes: int) -> Plan:
    """Plan one range, without the seventy calls of NumPy that many take."""
    file, start, end = (int(column[0]) for column in columns)
    return plan_one(file, start, end - start, max_op_bytes)


def _columns(ranges: Ranges, chosen: Int64Array | None) -> tuple[Int64Array, ...]:
    """Return ``(file, start, end)`` of all ranges, or of those chosen."""
    columns = (ranges.file, ranges.starts, ranges.ends)
    return columns if chosen is None else tuple(column[chosen] for column in columns)


def _pieces_of(parts: list[Part], buffer: UInt8Array) -> Pieces | None:
    """Have the `bytes` of a list made while it is read, where its ranges are of one length."""
    if len(parts) != 1 or parts[0].ranges is not None or not are_alike(parts[0].plan.range_length):
        return None
    pieces = Pieces(parts[0].plan, buffer)
    parts[0].job.meanwhile = pieces.make
    return pieces


def _resolve(
    loop: asyncio.AbstractEventLoop, over: asyncio.Future[None], give_up: Callable[[], object]
) -> None:
    """Resolve a future of the caller's loop, from whatever thread ended the request.

    Where that is closed nobody waits any more: what the request has reserved is given up (I3).
    """

    def resolve() -> None:
        if not over.done():
            over.set_result(None)

    try:
        loop.call_soon_threadsafe(resolve)
    except RuntimeError:
        if not loop.is_closed():
            raise  # a signal handler's
        give_up()


def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks of one loop; where that is closed none of them goes on."""
    for task in tasks:
        try:
            task.cancel()
        except RuntimeError:
            if not task.get_loop().is_closed():
                raise  # a signal handler's


def _is_all_there(part: Part) -> bool:
    """Whether each op delivered all it was for: no NumPy call that would give the GIL up."""
    ops = part.job.ops
    return not ops.errors and ops.got.tobytes() == part.plan.op_length.tobytes()


def _whole(part: Part, buffer: UInt8Array) -> RangeBatch:
    """Hand over what is all there."""
    check_outcome(part.job)
    plan = part.plan
    offsets = offsets_of(plan.range_length)
    hand_over(part.job, plan, int(offsets[-1]))
    return RangeBatch.whole(buffer, offsets, plan.range_length, None if plan.is_packed else plan.range_dest)


def _settle(part: Part) -> Settled:
    ops = part.job.ops
    failed = np.zeros(len(ops), np.bool_)
    final = np.zeros(len(ops), np.bool_)
    if ops.errors:
        rows = np.array(sorted(ops.errors))
        failed[rows] = True
        final[rows] = [isinstance(ops.errors[row], FINAL_ERRORS) for row in rows.tolist()]
    return settle(part.plan, ops.got, failed, final)


def _note_failures(part: Part, settled: Settled, errors: dict[int, Exception]) -> list[int]:
    """Note each failed range's own error; returns the ranges to be asked again."""
    answers = {op: _as_answer(error) for op, error in part.job.ops.errors.items()}
    rows = np.flatnonzero((settled.failed_op >= 0) | settled.unsettled)
    again = []
    for row in rows.tolist():
        caller = row if part.ranges is None else int(part.ranges[row])
        if settled.unsettled[row]:
            again.append(caller)
        else:
            errors[caller] = answers[int(settled.failed_op[row])]
    return again


def _as_answer(error: BaseException) -> Exception:
    error = without_frames(error)
    return error if isinstance(error, Exception) else RuntimeError(repr(error))
