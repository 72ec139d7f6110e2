"""Small local reads without a request's way through queue and driver: lite scheduling at its shortest.

* What the page cache holds is admitted, performed and complete in one section: the thread keeps the GIL
  throughout, nobody can be more urgent meanwhile, and nothing of it is left to release (I3).
* Of longer ranges it is first asked whether it holds all. A copy needs no turn of the device, so it waits for
  no window, and nobody waits for it: it is performed outside of the section, with the GIL released.
* What it does not hold has been set going by the probe that missed it. It is admitted past the queue, if
  there is room, and read by the thread that wants it: in standard mode, too, where its way to a worker and
  back would take longer than many a disk. So are several at a time, and each of many files of one call: the
  way to the loop thread and back takes as long. And so is the one after a miss.

Whatever is unusual (an odd bound, a file that cannot be opened, a trace, no room, an error) is left to the
scheduled way.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headrace.columns import ZERO
from headrace.core.request import Request, State
from headrace.drivers.job import Job
from headrace.drivers.permit import perform_here
from headrace.jobs import JobMaker, note_taken
from headrace.lifecycle import check_not_exiting
from headrace.ranges import MOST_OFFSET
from headrace.threads import raise_if_of_a_handler
from headrace.types import Ops, Priority, UInt8Array

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.core.scheduler import Scheduler

FEW = 16
"""Up to so many ranges are tried one by one in the page cache before they are planned."""

COPY_BYTES = 8 << 20
"""Longer ranges are copied op by op: nothing interrupts a copy."""

_PLAIN = {int}
"""Types of the bounds that need no look: what else is an integer may overflow, or be None."""

ADVICE_RANDOM = 1
"""posix_fadvise(2)."""


class Small(NamedTuple):
    """A small range of an open source."""

    source: Any
    path: str
    start: int
    length: int


class QuickReader(JobMaker):
    """Reads a few small ranges at once, or says that the scheduler must be asked."""

    is_of_many = False
    """Whether it is a call's that reads many files, one after the other."""
    _has_missed = False
    """Whether the page cache did not hold the last one: the next is looked for by who would read it, then."""

    def may_wait_here(self) -> bool:
        """Whether this thread may wait for the disk: nothing interrupts that.

        Where there is a time-out a worker waits in standard mode, and this thread for so long at the most.
        """
        return self.channel.settings.timeout_s is None or not self.channel.driver.waits_elsewhere

    def read_now(
        self,
        source: Any,
        path: str,
        start: int,
        length: int,
        priority: Callable[[], int],
        *,
        is_list: bool = False,
    ) -> bytes | None:
        """Read a few bytes of an open source without a plan, or say that the scheduler must be asked.

        What `priority` returns, the base priority, is only asked for where somebody waits. A list of ranges,
        be it of one, its consumer looks for in every mode.
        """
        if self.channel.engine.is_inside():
            return None
        scheduler = self.channel.scheduler(path)
        if scheduler.waiting or scheduler.in_rounds:
            # Not on the loop thread, which has the others' reads to start first.
            base = priority()
            data = self._probe(scheduler, source, start, length, base)
        else:
            base = None
            driver, asked = self.channel.driver, (scheduler, source, start, length)
            if driver.waits_elsewhere and not (self._has_missed or self.is_of_many or is_list):
                data = driver.call(self._probe, *asked)
            else:
                data = self._probe(*asked)
            self._has_missed = data is None
        if data is not None:
            return data
        note_wait(source, start, length, is_long=False)
        read = self._read_missed([Small(source, path, start, length)], priority() if base is None else base)
        return None if read is None else read[0]

    def copy_now(self, source: Any, path: str, start: int, out: UInt8Array, base: Callable[[], int]) -> bool:
        """Fill `out` from the page cache if that has all of it, or say that the scheduler must be asked."""
        channel = self.channel
        engine = channel.engine
        if not 0 < channel.quick_bytes < len(out) <= COPY_BYTES or engine.is_inside():
            return False
        scheduler = channel.scheduler(path)
        with engine.lock:
            if engine.hub.trace is not None or not scheduler.may_copy(len(out)):
                return False
        if not channel.backend.copy(source, start, out.data):  # type: ignore[attr-defined]
            return False
        note_copy = getattr(source, "note_copy", None)
        with engine.lock:
            scheduler.count_hit(len(out))
            if note_copy is not None and note_copy(start, start + len(out)):
                scheduler.room.note_ahead(base(), perf_counter())
        engine.drain_dropped()
        return True

    def cat_few(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        normalise: Callable[[str], str],
        priority: Callable[[], int],
        *,
        is_list: bool = True,
    ) -> list[bytes] | None:
        """Answer a few small ranges, or say that they must be scheduled; `is_list`: a list is wanted.

        No columns: for a handful of ranges an array costs more than the read.
        """
        if not self.channel.quick_bytes or not _are_few_ints(starts, ends, len(paths)):
            return None
        sources: dict[str, tuple[Any, str]] = {}
        for given, start, end in zip(paths, starts, ends, strict=True):
            if not 0 <= end - start <= self.channel.quick_bytes or start < 0 or end > MOST_OFFSET:
                return None
            try:
                if given not in sources:
                    path = normalise(given)
                    sources[given] = (self.channel.backend.open(path), path)
            except Exception as error:  # noqa: BLE001 - the scheduled way says so of this file alone
                raise_if_of_a_handler(error)
                return None
        if len(paths) == 1 and starts != ends:
            alone = self.read_now(*sources[given], start, end - start, priority, is_list=is_list)
            return None if alone is None else [alone]
        for source, _ in sources.values():
            advise_scattered(source)  # a probe that misses reads ahead
        bounds = zip(paths, starts, ends, strict=True)
        ranges = [Small(*sources[given], start, end - start) for given, start, end in bounds]
        return self._read_few(ranges, priority())

    def _read_few(self, ranges: list[Small], base: int) -> list[bytes] | None:
        # By this thread in standard mode, too: the way to the loop thread and back takes as long as several.
        found = None if self.channel.engine.is_inside() else self._probe_few(ranges, base)
        if found is None:
            return None
        missed = [row for row, data in enumerate(found) if data is None]
        if missed:
            read = self._read_missed([ranges[row] for row in missed], base)
            if read is None:
                return None
            for row, data in zip(missed, read, strict=True):
                found[row] = data
        return found  # type: ignore[return-value]

    def _probe(
        self, scheduler: Scheduler, source: Any, start: int, length: int, base: int | None = None
    ) -> bytes | None:
        """Return what the page cache holds, if all of it, and if it may be read now."""
        check_not_exiting()
        engine = self.channel.engine
        with engine.lock:
            if engine.hub.trace is not None or not (
                scheduler.has_room(length)
                if base is None
                else scheduler.has_room(length, 1, base, perf_counter())
            ):
                return None
            data: bytes | None = self.channel.backend.probe(source, start, length)  # type: ignore[attr-defined]
            if data is not None:
                scheduler.count_hit(length)
        engine.drain_dropped()
        return data

    def _probe_few(self, ranges: list[Small], base: int) -> list[bytes | None] | None:
        """Return what the page cache holds of each, if they may be read now."""
        check_not_exiting()
        engine, scheduler = self.channel.engine, self.channel.scheduler(ranges[0].path)
        probe = self.channel.backend.probe  # type: ignore[attr-defined]
        found: list[bytes | None] = []
        with engine.lock:
            if not self._can_start(scheduler, ranges, base):
                return None
            for source, _, start, length in ranges:
                data = probe(source, start, length) if length else b""
                if data:
                    scheduler.count_hit(length)
                found.append(data)
        engine.drain_dropped()
        return found

    def _read_missed(self, ranges: list[Small], base: int) -> list[bytes] | None:
        """Read what is on its way already, as one request that is admitted past the queue."""
        channel = self.channel
        if not self.may_wait_here():
            return None
        path = ranges[0].path
        lengths = [length for *_, length in ranges]
        total = sum(lengths)
        request = Request(lengths, result_bytes=total, priority=Priority(base), label=path)
        job = Job(channel.engine, channel.scheduler(path), request, NO_OPS, channel.backend)
        found = perform_here(path, self._start_and_read, job, ranges, base)
        if found is not None and job.scheduler.room.has_urgent(perf_counter()):
            channel.turns.let_others_in()  # who read beside this, and have to come back, too
        return found

    def _start_and_read(self, job: Job, ranges: list[Small], base: int) -> list[bytes] | None:
        request = job.request
        read_one = job.backend.read_one  # type: ignore[attr-defined]
        try:
            with job.engine.lock, job.engine:
                if not self._can_start(job.scheduler, ranges, base):
                    return None
                grant = job.scheduler.start_now(request, perf_counter())
            found = _read_each(read_one, ranges)
            got = sum(map(len, found))
            job.taken = lambda job: note_taken(job, None, got)  # in the section that completes it
            job.complete(grant, len(ranges), request.result_bytes)
        except OSError as error:
            raise_if_of_a_handler(error)
            return None  # whose error it is, the scheduled way says
        finally:
            if request.seq and request.state is not State.RETIRED:
                job.is_left = True
                job.engine.lost.append(job)
                job.engine.settle_lost()
        return found

    def _can_start(self, scheduler: Scheduler, ranges: Sequence[Small], base: int) -> bool:
        """Whether small reads may be performed at once: of one device, untraced, and there is room."""
        device = self.channel.backend.device
        total = sum(length for *_, length in ranges)
        is_free = self.channel.engine.hub.trace is None and (
            len(ranges) == 1 or len({device(path) for _, path, *_ in ranges}) == 1
        )
        return is_free and scheduler.has_room(total, len(ranges), base, perf_counter())


def _read_each(read_one: Callable[..., bytes], ranges: list[Small]) -> list[bytes]:
    # On its own: 3.13 puts a comprehension inline, and one that was cut between steps missed the `finally`.
    return [bytes(read_one(source, start, length)) for source, _, start, length in ranges]


def advise_scattered(source: Any) -> None:
    """Turn the kernel's readahead off for a source: the ops say themselves what is to be read."""
    advise = getattr(source, "advise", None)
    if advise is not None:
        advise(ADVICE_RANDOM)


def expect_scan(source: Any) -> None:
    """Say that a source is read to its end."""
    expect = getattr(source, "expect_scan", None)
    if expect is not None:
        expect()


def note_wait(source: Any, start: int, length: int, **how: bool) -> None:
    """Say that a read of an open source waits for the disk: how it is used tells whether to read ahead."""
    note = getattr(source, "note_wait", None)
    if note is not None:
        note(start, start + length, **how)


def _are_few_ints(starts: Any, ends: Any, n: int) -> bool:
    """Whether both are lists of `n` plain integers, and there are any."""
    return (
        type(starts) is list
        and type(ends) is list
        and 0 < len(starts) == len(ends) == n
        and {*map(type, starts), *map(type, ends)} == _PLAIN
    )


NO_OPS = Ops.of([], (ZERO, ZERO, ZERO, ZERO), np.empty(0, np.uint8))
"""Of reads that the backend answers by itself, without columns."""
