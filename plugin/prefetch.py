"""Reading ahead in one open file of an object store (I7).

Arrow reads a file's column chunks one after the other, each a round trip. So what `core.ahead` expects to be
read next is submitted as speculation, a request for each range, and a read of the file that meets one joins
it.

Speculation is admitted into spare room, and its result counts in the byte budget as any other; where demand
needs that, it is dropped, its memory with it. A reader that finds its range dropped, or failed, reads it as
if nothing had been: errors are those of the read itself (I8). What nobody took goes when the file does.

Not inside an op of ours, nor in a section that was interrupted: there a read may not wait for another's (I1).
Nor just after a Ctrl-C, when what is left of a scan is to end at once.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.core.ahead import Ahead
from headrace.core.request import State
from headrace.drivers import interrupts
from headrace.drivers.permit import current_permit
from headrace.jobs import hand_over
from headrace.lifecycle import check_not_exiting
from headrace.memory import pooled_buffer
from headrace.parquet import FooterFinder, ParquetLayout
from headrace.read import tell_engine
from headrace.single import bytes_before_the_end, split_range
from headrace.tails import Tail
from headrace.types import Ops

if TYPE_CHECKING:
    from headrace.core.ahead import Habits, Span
    from headrace.drivers.job import Job
    from headrace.jobs import Urgency
    from headrace.reader import Reader
    from headrace.types import UInt8Array

BUDGET_SHARE = 8
MOST_BYTES = 64 << 20
"""A file holds no more than this, and no more than one part in so many of the byte budget, read ahead."""

MOST_PIECES = 64
"""Ranges that a file holds ahead."""

WANTED_SHARE = 2
"""One part in so many of a piece is wanted by a read that takes it."""

_NOTHING = np.empty(0, np.uint8)


class Prefetcher:
    """Reads ahead for one open file; used under the file's lock.

    Parameters
    ----------
    reader, source, path
        As of the file.
    size
        Bytes of the file.
    urgency
        Priority of its reads, at offset 0.
    habits
        Those of the view that the file was opened through.
    end
        Last bytes of the file, where they were read before it was opened.
    """

    def __init__(
        self,
        reader: Reader,
        source: Any,
        path: str,
        size: int,
        urgency: Urgency,
        habits: Habits,
        end: UInt8Array | None = None,
    ) -> None:
        self._reader, self._source, self._path, self._size = reader, source, path, size
        self._urgency = urgency
        habits.note_opened(path)
        self._ahead = Ahead(size, habits)
        self._pieces: dict[int, Piece] = {}
        self._footer = FooterFinder(size)
        # The ETag of a web server may be of whole seconds: what is kept might meet another version.
        is_unique = reader.channel.backend.are_versions_unique
        self._version: str | None = getattr(source, "version", None) if is_unique else None
        self._kept = None if self._version is None else reader.channel.tails.get(path, self._version)
        self._end = _NOTHING if end is None else end
        if self._kept is not None:
            self._end = self._kept.data
        budget = reader.channel.settings.buffer_bytes
        self._most_bytes = min(budget // BUDGET_SHARE, MOST_BYTES) if budget else MOST_BYTES

    def take(self, start: int, length: int) -> UInt8Array | None:
        """Return bytes that are there already, or will be; None where they are to be read now.

        What is expected to be wanted next is submitted before it waits.
        """
        check_not_exiting()
        if not length or self._is_apart():
            return None
        end = start + length
        end_start = self._size - len(self._end)
        if len(self._end) and start >= end_start:
            found = self._end[start - end_start : end - end_start]
            self.see(start, found)
            return found
        piece = self._covering(start, end)
        self._submit(self._ahead.note(start, end), before=start, taken=piece)
        if piece is None:
            return None
        data = piece.take(self._reader, self._urgency.at(start))
        return None if data is None else data[start - piece.start : end - piece.start]

    def has(self, start: int, length: int) -> bool:
        """Whether a range is there, or on its way."""
        end = start + length
        is_end = len(self._end) > 0 and start >= self._size - len(self._end)
        return is_end or any(one.start <= start and end <= one.end for one in list(self._pieces.values()))

    def _is_apart(self) -> bool:
        """Whether this read has nothing to do with other requests: see the module's text."""
        is_inside = current_permit() is not None or self._reader.channel.engine.is_inside()
        return is_inside or interrupts.is_aftermath()

    def see(self, start: int, data: UInt8Array) -> None:
        """Look at bytes that were read, from `start` on: the footer of a Parquet file is kept."""
        if self._is_apart():
            return
        tail = self._learn(start, data)
        if tail is not None and tail is not self._kept and self._version is not None:
            self._reader.channel.tails.keep(self._path, self._version, tail)

    def _learn(self, start: int, data: UInt8Array) -> Tail | None:
        """Learn the file's layout, if its footer is there now; returns the file from there on."""
        found = self._footer.look(start, data)
        if found is None:
            return None
        try:
            tail = self._kept or Tail(found, ParquetLayout(found))
        except ValueError:  # its reader says what is wrong with it, if anything is
            return None
        spans = [span for span in self._ahead.learn(tail.layout) if span[1] <= start]  # the rest is there
        self._submit(spans, before=0)
        return tail

    # -- what is read ahead

    def _covering(self, start: int, end: int) -> Piece | None:
        """Take off the list what meets a range, and return what has all of it.

        Of a piece a good part must be wanted: who reads by small parts would wait for all of it, and is not
        whom it was meant for.
        """
        met = [piece for piece in list(self._pieces.values()) if piece.start < end and start < piece.end]
        for piece in met:
            self._pieces.pop(piece.start, None)
        least = (end - start) * WANTED_SHARE
        return next((one for one in met if one.start <= start and end <= one.end <= one.start + least), None)

    def _submit(self, spans: list[Span], *, before: int, taken: Piece | None = None) -> None:
        """Submit what is not on its way yet, as far as there is room; what lies `before` makes room.

        What is being `taken` still counts.
        """
        if not spans:
            return
        pieces = list(self._pieces.items())
        self._pieces = {start: piece for start, piece in pieces if not piece.is_dropped}
        counted = [*self._pieces.values(), *([taken] if taken is not None else [])]
        held = sum(piece.end - piece.start for piece in counted)
        for start, end in spans:
            if start in self._pieces:
                continue
            if len(self._pieces) >= MOST_PIECES:
                return
            held += end - start
            while held > self._most_bytes and (oldest := self._oldest(before)) is not None:
                held -= oldest.end - oldest.start
            if held > self._most_bytes:
                return
            piece = Piece(start, end)
            try:
                piece.submit(self._reader, self._source, self._path, self._urgency.at(start))
            except MemoryError:
                return  # nobody waits for it, and who does want it says so (I7)
            self._pieces[start] = piece  # once it is submitted: nobody would perform it else

    def _oldest(self, before: int) -> Piece | None:
        """Let go of the piece that was asked for first, of those which lie before an offset."""
        found = next((piece for piece in list(self._pieces.values()) if piece.end <= before), None)
        return None if found is None else self._pieces.pop(found.start)


class Piece:
    """A range that is read ahead. Letting go of it drops it."""

    _job: Job | None = None

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end
        self._pid = os.getpid()

    @property
    def is_dropped(self) -> bool:
        """Whether its bytes are gone, or failed to come."""
        return self._job is None

    def submit(self, reader: Reader, source: Any, path: str, urgency: Urgency) -> None:
        """Start reading it."""
        nbytes = self.end - self.start
        columns = split_range(self.start, nbytes, reader.channel.max_op_bytes)
        is_one_op = len(columns[0]) == 1
        ops = Ops.of([source], columns, pooled_buffer(0 if is_one_op else nbytes))
        job = reader.job(ops, path, nbytes, urgency, fails_fast=True, is_speculative=True)
        if is_one_op:
            job.before = partial(_make_room, ops, nbytes, {})  # what is queued holds no memory (I2)
        job.callbacks.append(partial(_let_go, weakref.ref(self)))
        self._job = job
        tell_engine(self, job)
        reader.channel.driver.launch_unpolled(job)

    def take(self, reader: Reader, urgency: Urgency) -> UInt8Array | None:
        """Wait for its bytes as for any read that is wanted (I7); None where it was dropped, or failed."""
        job = self._job
        if job is None:
            return None
        request = job.request
        try:
            with job.engine.lock, job.engine:
                job.scheduler.raise_priority(request, urgency.priority, perf_counter())
            reader.channel.driver.wait(job, reader.channel.settings.timeout_s)
            if isinstance(request.error, BaseException) and not isinstance(request.error, Exception):
                raise request.error  # an interrupt, which is the reader's own
            got = bytes_before_the_end(job.ops)
            if request.state is not State.COMPLETE or got < self.end - self.start:
                return None
            hand_over(job, None, got)
            return job.ops.buffer
        finally:
            self._job = None
            if request.state is not State.RETIRED:
                job.engine.lost.append(job)
                job.engine.settle_lost()

    def let_go(self) -> None:
        """Free the memory of what was dropped; under the engine's lock."""
        job = self._job
        if job is not None and not job.request.is_wanted:
            self._job = None

    def __del__(self) -> None:
        job = self._job
        if job is None or self._pid != os.getpid():
            return
        if job.request.state is not State.RETIRED:
            job.engine.drop(job.scheduler, job.request)
        job.lost = None  # it was told


def _make_room(ops: Ops, nbytes: int, made: dict[str, UInt8Array]) -> None:
    """Give an op its memory; of threads that do it at once all take the first one's."""
    with contextlib.suppress(MemoryError):  # without room the op fails, and its reader reads for itself
        ops.buffer = made.setdefault("room", pooled_buffer(nbytes))


def _let_go(piece: weakref.ref[Piece]) -> None:
    found = piece()
    if found is not None:
        found.let_go()
