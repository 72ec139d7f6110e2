"""Reads of one range: of an open file, or by path with whatever bounds the filesystem understands.

A small local one is answered at once where it can be (`headrace.quick`). Everything else is a job like any
other.
"""

from __future__ import annotations

import errno
import inspect
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from headrace.arenas import arenas
from headrace.backends import _s3fs
from headrace.backends.abc import InlineBackend, PathSource, ThreadedBackend, beneath_folders
from headrace.columns import ZERO
from headrace.core.plan import cut
from headrace.core.request import State
from headrace.drivers.job import Job
from headrace.drivers.permit import perform_here
from headrace.drivers.waiting import wait_until_over
from headrace.errors import ReadTimeoutError, UnsizedFileError, is_out_of_descriptors
from headrace.jobs import Urgency, call_until, check_outcome, hand_over, left_s, note_taken
from headrace.lifecycle import check_not_exiting
from headrace.limits import memory_bytes
from headrace.memory import result_buffer, writable_bytes
from headrace.quick import NO_OPS, QuickReader, expect_scan, note_wait
from headrace.ranges import Bounds, as_bounds, is_plain, or_error, resolve_bounds
from headrace.redact import redact_url, redacted_errors
from headrace.threads import raise_if_of_a_handler
from headrace.types import UNKNOWN_LENGTH, Int64Array, Ops, UInt8Array

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.ranges import Single
    from headrace.runtime import Channel

Begun = tuple[Job | bytes, Bounds]
"""A single range whose read has begun, or is over."""

AHEAD = 16
"""Of many whole files so many times as may be in flight are begun, and not taken yet, at the most."""

LOCAL_BLOCK_BYTES = 128 << 10
REMOTE_BLOCK_BYTES = 1 << 20
"""Read-ahead of small sequential reads."""


class SingleReader(QuickReader):
    """Reads one range at a time."""

    # -- one range of an open file

    def read_bytes(self, source: Any, path: str, start: int, length: int, urgency: Urgency) -> bytes:
        """Return up to `length` bytes of an open source: fewer at the end of the file."""
        quick = self.read_quick(source, path, start, length, urgency)
        if quick is not None:
            return quick
        data, out = writable_bytes(length)
        got = self.read_into(source, path, start, out, urgency)
        return data if got == length else data[:got]

    def read_quick(self, source: Any, path: str, start: int, length: int, urgency: Urgency) -> bytes | None:
        """Read a range that is small, if it can be done without a plan."""
        if not length:
            return b""
        if length > self.channel.quick_bytes:
            return None
        return self.read_now(source, path, start, length, urgency.base)

    @property
    def is_drained(self) -> bool:
        """Whether nothing of a read is in flight any more when it has been left, by an exception too."""
        return self.channel.driver.is_drained

    def read_into(
        self,
        source: Any,
        path: str,
        start: int,
        out: UInt8Array,
        urgency: Urgency,
        *,
        is_lent: bool = False,
    ) -> int:
        """Fill `out` from `start` on; returns the bytes before the end of the file.

        With `is_lent` it is memory that is used for something else when this has failed: nothing that is
        still in flight then may write to it (I9).
        """
        check_not_exiting()
        is_long = len(out) > self.channel.short_op_bytes
        expects_urgent = is_long and self._expects_before(path, urgency)
        if expects_urgent and (around := self._bytes_around(source, start, len(out))):
            reader = self.of_one_call()  # its parts last no longer together than one read may
            return reader._read_around(source, path, start, out, around, urgency, is_lent=is_lent)  # noqa: SLF001
        if self.copy_now(source, path, start, out, urgency.base):
            return len(out)
        note_wait(source, start, len(out), is_long=is_long, expects_urgent=expects_urgent)
        most = self.channel.op_bytes(path)
        if len(out) <= most and self._may_fill():
            return self._fill(source, path, start, out, urgency)
        return self._read_ops(source, path, start, out, most, urgency, is_lent=is_lent)

    def _read_ops(
        self,
        source: Any,
        path: str,
        start: int,
        out: UInt8Array,
        most: int,
        urgency: Urgency,
        *,
        is_lent: bool,
    ) -> int:
        """Do the same by ops of at most so many bytes."""
        limit = self.channel.settings.buffer_bytes
        into = arenas.take(len(out), limit) if is_lent and not self.is_drained else out
        ops = Ops.of([source], split_range(start, len(out), most), into)
        job = self.job(ops, path, len(out), urgency, fails_fast=True)
        job.taken = _take_filled if len(ops) == 1 else None
        try:
            self.run(job)
            check_outcome(job)
            if ops.errors:
                raise ops.errors[min(ops.errors)]
            got = bytes_before_the_end(ops)
            if got < len(out) and self.channel.is_by_path:
                check_nothing_is_behind(ops, got, path)
            hand_over(job, None, got)
        finally:
            if job.request.state is not State.RETIRED:
                job.engine.lost.append(job)
                job.engine.settle_lost()
        if into is not out:
            out[:got] = into[:got]
        return got

    def _expects_before(self, path: str, urgency: Urgency) -> bool:
        """Whether more urgent reads of the device come."""
        return self.channel.scheduler(path).room.expects_before(urgency.base(), perf_counter())

    def _bytes_around(self, source: Any, start: int, length: int) -> int:
        """How many bytes to read around the page cache, so that the kernel reads no further ahead.

        Urgent reads come, and what it reads ahead waits for no turn.
        """
        leave = getattr(source, "leave_readahead", None)
        if leave is None or not self._may_fill():
            return 0
        left: int = leave(start, self.channel.max_op_bytes)
        return min(left, length)

    def _read_around(
        self,
        source: Any,
        path: str,
        start: int,
        out: UInt8Array,
        around: int,
        urgency: Urgency,
        *,
        is_lent: bool,
    ) -> int:
        """Read `around` bytes by short ops around the page cache, and the rest as ever."""
        got, channel = 0, self.channel
        most = min(channel.short_op_bytes, channel.backend.defaults.short_op_bytes)
        while got < around:
            self._check_time(path, "finished")
            piece = out[got : min(around, got + most)]
            more = self._fill(source, path, start + got, piece, urgency.at(got), is_around=True)
            got += more
            if more < len(piece):
                return got  # the end of the file
        if got == len(out):
            return got
        return got + self.read_into(source, path, start + got, out[got:], urgency.at(got), is_lent=is_lent)

    def _check_time(self, path: str, what: str) -> None:
        """Raise a `ReadTimeoutError` where the time of this call is over."""
        if left_s(self.until_s) == 0:
            msg = f"{redact_url(path)}: not {what} within {self.channel.settings.timeout_s} s"
            raise ReadTimeoutError(msg)

    def _may_fill(self) -> bool:
        """Whether this thread reads a range of one op itself when its turn comes.

        In every mode: it would wait for the read anyhow, and to a driver and back costs processor time.
        """
        backend = self.channel.backend
        is_plain_backend = isinstance(backend, InlineBackend) and backend.fills_plainly
        return is_plain_backend and self.may_wait_here() and not self.channel.engine.is_inside()

    def _fill(
        self,
        source: Any,
        path: str,
        start: int,
        out: UInt8Array,
        urgency: Urgency,
        *,
        is_around: bool = False,
    ) -> int:
        channel, nbytes = self.channel, len(out)
        fill = channel.backend.fill_around if is_around else channel.backend.fill  # type: ignore[attr-defined]
        label = self.label(path, lambda: _one_op(source, start, nbytes))
        request = self.request([nbytes], nbytes, urgency, label=label)
        job = Job(channel.engine, channel.scheduler(path), request, NO_OPS, channel.backend)
        request.on_wake = job.waiter.wake
        request.is_awaited = True
        got = perform_here(path, self._submit_and_fill, job, partial(fill, source, start, out.data), len(out))
        channel.driver.start_for_others()
        return got

    def _submit_and_fill(self, job: Job, fill: Callable[[], tuple[int, bool]], nbytes: int) -> int:
        try:
            job.submit()
            got = self._fill_in_turn(job, fill, nbytes)
            check_outcome(job)  # it may have been failed while it was read
        finally:
            if job.request.state is not State.RETIRED:
                job.is_left = True  # nobody else performs what was granted
                job.engine.lost.append(job)
                job.engine.settle_lost()
        return got

    def _fill_in_turn(self, job: Job, fill: Callable[[], tuple[int, bool]], nbytes: int) -> int:
        timeout_s = self.channel.settings.timeout_s
        wait_until_over(job, timeout_s, until=lambda: bool(job.request.inbox), until_s=self.until_s)
        check_outcome(job)
        grant = job.take()
        assert grant is not None  # noqa: S101 - that was waited for
        try:
            got, is_hit = fill()
        except Exception as error:
            job.fail(error)
            job.complete(grant, 1, nbytes)
            raise
        job.taken = lambda job: note_taken(job, None, got)
        job.complete(grant, 1, nbytes, is_hit=is_hit)
        return got

    def size(self, source: Any, path: str) -> int:
        """Bytes of an open source, by its backend or by what the filesystem says of the path."""
        return self.channel.exclusively(self._size, source, path)

    def _size(self, source: Any, path: str) -> int:
        found = self.channel.backend.size(source)
        if found is not None:
            return found
        with redacted_errors():
            return int(self.channel.backend.info(path)["size"])

    def release(self, source: Any) -> None:
        """Let go of a source."""
        self.channel.backend.close(source)

    # -- bounds that are not plain offsets, whole files

    def cat(
        self,
        path: str,
        bounds: Bounds,
        urgency: Urgency,
        options: dict[str, Any],
    ) -> bytes:
        """Return the bytes between bounds, as the wrapped filesystem understands them (I8)."""
        reader, source = self._open_for(path, bounds, options)
        if self._is_nothing(bounds, options):
            return b""
        if not isinstance(source, PathSource):
            try:
                return reader._cat_source(source, path, bounds, urgency)  # noqa: SLF001 - of this class
            except UnsizedFileError:
                answer: bytes = self.channel.backend.target.cat_file(path, *bounds)
                return answer
        start, end = bounds
        if self.channel.is_by_path and self._is_one_op(start, end):
            return reader.read_bytes(source, path, start, end - start, urgency)  # type: ignore[operator, arg-type]
        return _within(bounds, reader.read_whole(source, urgency, self._charged_bytes(bounds)))

    def _open_for(self, path: str, bounds: Bounds, options: dict[str, Any]) -> tuple[Self, Any]:
        """Open a file; returns its source and who reads it, whose time-out runs if this had to wait."""
        check_not_exiting()
        if is_plain(*bounds):
            resolve_bounds(bounds, lambda: None)  # or a store is asked for the range "bytes=10-2"
        reader, options = self, _path_options(self.channel, bounds, options)
        while True:
            try:
                return reader, self.channel.backend.open(path, **options)
            except OSError as error:
                if not is_out_of_descriptors(error):
                    raise
                raise_if_of_a_handler(error)
                reader = reader.of_one_call()
                if not reader.may_try_again():
                    raise

    def read_end(self, path: str, nbytes: int, urgency: Urgency) -> tuple[int, str, bytes] | None:
        """Read the last bytes of a file of which nothing is known yet: returns size, version, and them.

        None where that takes more than one request.
        """
        source = self.channel.backend.open_end(path, nbytes)
        if source is None:
            return None
        data = self.read_whole(source, urgency, nbytes)
        if source.size is None or source.version is None or len(data) != min(nbytes, source.size):
            return None
        return source.size, source.version, data

    def read_whole(self, source: PathSource, urgency: Urgency, nbytes: int | None = None) -> bytes:
        """Return all of a source in one op, whose length is known when it ends."""
        job = self._whole_job(source, urgency, nbytes)
        try:
            self.run(job)
            return _take_whole(job)
        finally:
            if job.request.state is not State.RETIRED:
                job.engine.lost.append(job)
                job.engine.settle_lost()

    def _is_nothing(self, bounds: Bounds, options: dict[str, Any]) -> bool:
        """Whether a store would be asked for no bytes: it takes "bytes=5-4" for no range, and sends all."""
        return self.channel.is_by_path and not options and is_plain(*bounds) and bounds[0] == bounds[1]

    def _is_one_op(self, start: int | None, end: int | None) -> bool:
        """Whether the bounds are offsets, and what lies between them one op: its length is known then."""
        return is_plain(start, end) and 0 < end - start <= self.channel.max_op_bytes  # type: ignore[operator]

    def _charged_bytes(self, bounds: Bounds) -> int | None:
        """Return how many bytes one op between two offsets is charged for, if it is for so many.

        What is long on a store lasts, and would keep out what shares its link; what is longer than any file
        means the end of it.
        """
        start, end = bounds
        most = self.channel.max_op_bytes if self.channel.is_by_path else MOST_CHARGED_BYTES
        length = end - start if is_plain(start, end) else 0  # type: ignore[operator]
        return length if 0 < length <= most else None

    def _cat_source(self, source: Any, path: str, bounds: Bounds, urgency: Urgency) -> bytes:
        if bounds[1] is None:
            expect_scan(source)
        start, end = resolve_bounds(bounds, partial(self.size, source, path))
        if end - start > CLIP_ABOVE_BYTES:
            end = max(start, min(end, self.size(source, path)))
        return self.read_bytes(source, path, start, end - start, urgency)

    def cat_many(
        self, asked: Sequence[Single | Exception], urgency: Urgency, options: dict[str, Any]
    ) -> list[bytes | Exception]:
        """Return what lies between the bounds in each file, or the error of each that fails or is given."""
        reader = self.of_one_call()
        if self.channel.keeps_open:
            reader.is_of_many = True
            return [or_error(reader._cat_single, one, urgency, options) for one in asked]  # noqa: SLF001
        jobs = set[Job]()
        try:
            return reader._cat_side_by_side(asked, jobs, urgency, options)  # noqa: SLF001
        finally:
            self.channel.engine.lost.extend(jobs)
            self.channel.engine.settle_lost()

    def _cat_side_by_side(
        self, asked: Sequence[Single | Exception], jobs: set[Job], urgency: Urgency, options: dict[str, Any]
    ) -> list[bytes | Exception]:
        """Begin some files ahead of those that are taken; `jobs` as for `_end_cat`."""
        answers: list[bytes | Exception] = [b""] * len(asked)
        begun: dict[int, Begun | Exception] = {}
        launch, most = self.channel.driver.launch, AHEAD * self.channel.most_ops

        def take(row: int) -> None:
            answers[row] = or_error(self._end_cat, begun.pop(row), jobs)

        for row, one in enumerate(asked):
            if len(begun) == most:
                # The first may be late, and when the last is there nothing is under way: one between them.
                take(list(begun)[most // 2])
                for there in [row for row, begun_one in begun.items() if _is_there(begun_one)]:
                    take(there)
            begun[row] = or_error(self._begin_cat, one, jobs, launch, urgency, options)
        for row in list(begun):
            take(row)
        return answers

    def _cat_single(self, single: Single, urgency: Urgency, options: dict[str, Any]) -> bytes:
        return self.cat(*single, urgency, options)

    def _begin_cat(
        self,
        single: Single,
        jobs: set[Job],
        launch: Callable[[Job], None],
        urgency: Urgency,
        options: dict[str, Any],
    ) -> Begun:
        path, bounds = single[0], as_bounds(single[1])
        self._check_time(path, "begun")
        _, source = self._open_for(path, bounds, options)
        if self._is_nothing(bounds, options) or not isinstance(source, PathSource):
            return self.cat(path, bounds, urgency, options), bounds
        job = self._whole_job(source, urgency, self._charged_bytes(bounds))
        jobs.add(job)
        launch(job)
        return job, bounds

    def _end_cat(self, begun: Begun, jobs: set[Job]) -> bytes:
        """Return what was begun; `jobs` are those that still have something to give back."""
        job, bounds = begun
        if isinstance(job, bytes):
            return job
        try:
            call_until(self.channel.driver.wait, job, self.until_s, self.channel.settings.timeout_s)
            return _within(bounds, _take_whole(job))
        finally:
            if job.request.state is State.RETIRED:
                jobs.discard(job)

    def _whole_job(self, source: PathSource, urgency: Urgency, nbytes: int | None = None) -> Job:
        """Make the job of an op of unknown length, which reserves `nbytes`, or those of the longest op.

        Without `nbytes` it does not count in the link's limit: it may last, and would keep out for that long
        what must come in time.
        """
        zero = np.zeros(1, np.int64)
        ops = Ops.of([source], (zero, zero, zero + UNKNOWN_LENGTH, zero), result_buffer(0))
        most = nbytes or self.channel.max_op_bytes
        return self.job(ops, source.path, most, urgency, fails_fast=True, unknown_bytes=nbytes or 1)

    # -- sources of open files

    def open_source(
        self,
        path: str,
        size: int | None,
        options: dict[str, Any],
        *,
        etag: str | None = None,
        info: dict[str, Any] | None = None,
        caching: dict[str, Any] | None = None,
    ) -> tuple[Any, int | None]:
        """Open a file for `HeadraceFile`; returns its source and length.

        Both are None where the store cannot tell the length, the source where it has no ranges of the file.

        `info` is what the filesystem has just said of it, if it was asked, `caching` what the caller said of
        blocks and caches: handles of the filesystem's have some of their own.

        On object stores the reads are of the version that ``info`` tells of, from a listing if there is one;
        with neither that nor `etag`, of the version that the first of them meets.
        """
        backend = self.channel.backend
        if not self.channel.is_by_path:
            if caching and isinstance(backend, ThreadedBackend):
                options = {**options, "caching": caching}
            return backend.open(path, as_file=True, **options), size
        options = self.read_options(options)
        has_no_ranges = False
        if etag is not None and not backend.checks_versions:
            size = None  # it is that of a version which nobody asks for
        if size is None:
            info = backend.info(path, **options) if info is None or options else info
            if info.get("type") == "directory":
                raise IsADirectoryError(path)
            size, etag = info.get("size"), backend.version_of(info)
            has_no_ranges = not info.get("partial", True)  # a web server that says so
            version = info.get("VersionId") if getattr(backend.target, "version_aware", False) else None
            if version not in {None, "null"}:
                options = {"version_id": version, **options}  # it outlives what comes after it
        if size is None or has_no_ranges:
            return None, size
        return backend.open(path, etag=etag, options=options), size

    def read_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return those options of `open` that say what is read, and that ``cat_file`` of a store takes.

        What reads by URL gives all of them to each request.
        """
        given = {name: value for name, value in options.items() if value is not None}
        method = getattr(self._told, "_cat_file", None) if given else None
        taken = {} if method is None else inspect.signature(method).parameters
        if "url" in taken:
            return given
        return {name: value for name, value in given.items() if name in taken and name not in _SAY_HOW}

    @property
    def _told(self) -> Any:
        """The filesystem that is told the options: ``dir`` hands them on."""
        return beneath_folders(self.channel.backend.target)

    def only_target_opens(self, options: dict[str, Any]) -> bool:
        """Whether a version, or who pays, is asked for that ``cat_file`` of the store cannot be told."""
        if not self.channel.is_by_path:
            return False
        named = {name for name in _SAY_WHICH if options.get(name) is not None}
        return not (named <= self.read_options(options).keys() and self._pays(options))

    def _pays(self, options: dict[str, Any]) -> bool:
        """Whether who pays for a file, by an option of s3fs's ``open``, is who pays for all of them."""
        payer = options.get("requester_pays")
        if payer is None:
            return True
        return not _s3fs.is_s3fs(self._told) or bool(payer) == bool(self._told.requester_pays)

    @property
    def block_bytes(self) -> int:
        """Read-ahead of small sequential reads."""
        return LOCAL_BLOCK_BYTES if self.channel.keeps_open else REMOTE_BLOCK_BYTES


def _path_options(channel: Channel, bounds: Bounds, options: dict[str, Any]) -> dict[str, Any]:
    return {} if channel.keeps_open else {"bounds": bounds, "options": options}


def _within(bounds: Bounds, data: bytes) -> bytes:
    """Cut what is longer than asked (I9): some stores take an empty range for no range at all."""
    start, end = bounds[0] or 0, bounds[1]
    return data[: max(end - start, 0)] if is_plain(start, end) else data  # type: ignore[operator]


def _one_op(source: Any, start: int, length: int) -> Ops:
    return Ops.of([source], (ZERO, np.array([start]), np.array([length]), ZERO), result_buffer(0))


def _take_whole(job: Job) -> bytes:
    check_outcome(job)
    hand_over(job, None, len(job.ops.whole[0]))
    return job.ops.whole[0]


_SAY_WHICH = ("version_id", "generation")
"""Options of ``open`` by which filesystems are asked for a version."""

_SAY_HOW = frozenset({"path", "start", "end", "chunksize", "max_concurrency", "mrd"})
"""What ``cat_file`` of some filesystem takes besides, and what has nothing to do with what is read."""

MOST_CHARGED_BYTES = 1 << 30
"""What asks for more in one op means the end of the file."""

CLIP_ABOVE_BYTES = 64 << 20
"""No memory is taken for more of a file than it has, of ranges longer than this."""

CLIP_ASKED_ABOVE_BYTES = (memory_bytes() or 1 << 41) // 2
"""The same where the filesystem has to be asked, which may know an older length: what is meant is the end."""


def _is_there(begun: Begun | Exception) -> bool:
    """Whether there is nothing to wait for."""
    job = begun[0] if isinstance(begun, tuple) else None
    return not isinstance(job, Job) or job.request.is_over


def split_range(start: int, length: int, max_op_bytes: int) -> tuple[Int64Array, ...]:
    """Cut one range into the columns ``(file, start, length, dest)`` of its ops; of nothing one is left."""
    if length <= max_op_bytes:
        return ZERO, np.array([start]), np.array([length]), ZERO
    return cut(start, length, max_op_bytes)


def bytes_before_the_end(ops: Ops) -> int:
    """Bytes up to the first op that the end of the file cut short."""
    if len(ops) == 1:
        return int(ops.got[0])
    short = np.flatnonzero(ops.got < ops.length)
    if not len(short):
        return int(ops.length.sum())
    first = int(short[0])
    return int(ops.dest[first]) + int(ops.got[first])


def _take_filled(job: Job) -> None:
    """Note that the one op of a job has filled what its consumer gave."""
    note_taken(job, None, int(job.ops.got[0]))


def check_nothing_is_behind(ops: Ops, got: int, path: str) -> None:
    """Raise an error where a store sent too little of an op, and something of one behind it (`got`)."""
    if (ops.got[ops.dest > got] > 0).any():
        raise OSError(errno.EIO, "the store sent less of the middle of the file than it has", path)
