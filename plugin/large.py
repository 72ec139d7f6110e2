"""Long ranges: each is read straight into the bytes that the caller gets, several under way at a time.

The copy out of a common buffer, which is what long ranges would cost most, is not made.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from headrace.drivers.inline import LiteDriver, LoopDriver
from headrace.drivers.permit import current_permit
from headrace.jobs import check_outcome, hand_over
from headrace.memory import writable_bytes
from headrace.ranges import answer_or_error
from headrace.single import advise_scattered, bytes_before_the_end, split_range
from headrace.types import Ops

if TYPE_CHECKING:
    from headrace.drivers.job import Job
    from headrace.jobs import JobMaker, Urgency
    from headrace.ranges import Ranges

LARGE_BYTES = 256 << 10
"""From here on, copying a range out of a common buffer costs more than a job of its own."""

LARGE_OP_BYTES = 1 << 20
"""They are cut into longer ops than scans: fewer of them, where nothing is parsed in between."""

AHEAD = 8
"""So many ranges are under way at a time: the device stays busy from one to the next."""

Answer = bytes | Exception


def cat_large(reader: JobMaker, ranges: Ranges, urgency: Urgency) -> list[Answer] | None:
    """Answer ranges which are all long, or say that they are not, or must be read another way."""
    channel = reader.channel
    lengths = ranges.ends - ranges.starts
    if (
        not len(lengths)
        or lengths.min() < LARGE_BYTES
        or not isinstance(channel.driver, LiteDriver | LoopDriver)
    ):
        return None
    if channel.engine.is_inside() or current_permit() is not None:
        return None
    reads = _LargeReads(reader, channel.driver, ranges, urgency)
    try:
        return [reads.answer(row) for row in range(len(ranges))]
    finally:
        reads.leave()


class _LargeReads:
    """The ranges of one call, launched `AHEAD` of the one that is waited for."""

    def __init__(
        self, reader: JobMaker, driver: LiteDriver | LoopDriver, ranges: Ranges, urgency: Urgency
    ) -> None:
        self._reader = reader
        self._driver = driver
        self._ranges = ranges
        self._urgency = urgency
        self._sources: dict[int, Any] = {}
        self._ahead: deque[tuple[Job, bytes] | Exception] = deque()
        self._launched = 0

    def answer(self, row: int) -> Answer:
        """Return the bytes of a range, or its error; rows are asked for in order."""
        while self._launched < min(row + AHEAD, len(self._ranges)):
            self._launch(self._launched)
            self._launched += 1
        first = self._ahead[0]
        found = first if isinstance(first, Exception) else answer_or_error(self._take, *first)
        self._ahead.popleft()
        return found

    def _launch(self, row: int) -> None:
        ranges, channel = self._ranges, self._reader.channel
        file, start = int(ranges.file[row]), int(ranges.starts[row])
        length = int(ranges.ends[row]) - start
        path = ranges.paths[file]
        try:
            if file not in self._sources:
                self._sources[file] = channel.backend.open(path)
                advise_scattered(self._sources[file])
        except Exception as error:  # noqa: BLE001 - it is the range's answer
            self._ahead.append(error)
            return
        data, out = writable_bytes(length)
        op_bytes = channel.settings.max_op_bytes or max(channel.max_op_bytes, LARGE_OP_BYTES)
        ops = Ops.of([self._sources[file]], split_range(start, length, op_bytes), out)
        job = self._reader.job(ops, path, length, self._urgency, fails_fast=True)
        self._ahead.append((job, data))
        self._driver.launch_awaited(job)

    def _take(self, job: Job, data: bytes) -> bytes:
        try:
            self._driver.wait_awaited(job, self._reader.channel.settings.timeout_s)
            check_outcome(job)
            got = bytes_before_the_end(job.ops)
            hand_over(job, None, got)
        finally:
            self._driver.leave(job)
        return data if got == len(data) else data[:got]

    def leave(self) -> None:
        """Leave nothing behind of what was launched and not taken."""
        for launched in self._ahead:
            if not isinstance(launched, Exception):
                self._driver.leave(launched[0])
