"""`HeadraceFile`: an open file whose every read goes through the scheduler.

* A large read is split into ops that run in parallel; `read_buffer` hands Arrow the result buffer itself.
* Small reads are served from read-ahead blocks (`headrace.blocks`), so that parsers reading a few bytes at a
  time, `readline` and text mode do not pay for a read each.
* The position is guarded by a lock held for the whole read: threads may share the file, one read at a time
  (read many ranges at once with `HeadraceFileSystem.read_ranges`).
* The priority is captured when the file is opened: later callers, Arrow's threads, have no context.

Parquet, IPC and ORC scans never close their files: everything is released when the last reference goes.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import threading
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from typing_extensions import override

from headrace.blocks import NEAR_BYTES, SMALL_SHARE, Blocks
from headrace.errors import NoRangesError, SeekError
from headrace.lifecycle import follow
from headrace.lines import RUN_BYTES, LineRun, lines_of
from headrace.memory import pooled_buffer
from headrace.ranges import MOST_OFFSET, as_ranges
from headrace.redact import redact_url
from headrace.threads import after_fork_in_child

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from headrace.jobs import Urgency
    from headrace.prefetch import Prefetcher
    from headrace.ranges import Ranges
    from headrace.reader import Reader
    from headrace.types import UInt8Array

CLAMP_ABOVE_BYTES = 64 << 10
"""Reads longer than this ask for the file's size first: `read(1 << 40)` must not allocate that much."""

FAR_BLOCKS = 4
"""Read-ahead blocks that a store's file keeps."""


_this_process = os.getpid()
"""As `os.getpid` says, without a system call for each read."""


@after_fork_in_child
def _note_process() -> None:
    global _this_process  # noqa: PLW0603 - one is what a process has
    _this_process = os.getpid()


class HeadraceFile(io.BufferedIOBase):
    """A file opened for reading in binary mode.

    Parameters
    ----------
    fs
        The `HeadraceFileSystem` it was opened with.
    path
        As the wrapped filesystem names it.
    reader, source
        Where its bytes come from.
    size
        Bytes, or None where the source knows.
    urgency
        Priority of its reads; the position is that of offset 0.
    block_bytes
        Read-ahead of small reads; 0 for none.
    given
        What the caller said of priority, blocks and caches, for where it is opened again.
    prefetcher
        What reads ahead of large ones, where the storage is far away.
    """

    # Of one whose making was interrupted: Python closes it all the same, and from 3.13 on reports errors.
    _pid = -1
    _source: Any = None
    _blocks = Blocks(0, 1)
    _run: LineRun | None = None

    def __init__(
        self,
        fs: Any,
        path: str,
        reader: Reader,
        source: Any,
        *,
        size: int | None,
        urgency: Urgency,
        block_bytes: int,
        given: dict[str, Any],
        prefetcher: Prefetcher | None = None,
    ) -> None:
        self.fs = fs
        self.path = path
        self.mode = "rb"
        self._reader = reader
        self._source = source
        self._size = size
        self._urgency = urgency
        self._given = given
        self._options: dict[str, Any] = getattr(source, "options", {})
        self._of_info: dict[str, Any] = getattr(source, "of_info", self._options)
        self._prefetcher = prefetcher
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._position = 0
        self._last_end = -1
        self._has_read1 = False  # which leaves nothing in Python's buffer
        self._is_far = reader.channel.is_remote
        self._blocks = Blocks(block_bytes, FAR_BLOCKS if self._is_far else 1)

    # No `__getattr__`: every look whether the file is closed would pass through it.
    @property
    def _fetch_range(self) -> Any:
        """Say where the cache belongs that fsspec's `blockcache` would put into the file."""
        name = "_fetch_range"
        msg = (
            f"{type(self).__name__!r} object has no attribute {name!r}; "
            "blockcache must stand behind headrace (headrace::blockcache::...)"
        )
        raise AttributeError(msg, name=name, obj=self)

    # -- what it is

    @property
    def name(self) -> str:
        """The path."""
        return self.path

    @property
    def blocksize(self) -> int:
        """Bytes of a read-ahead block, under fsspec's name."""
        return self._blocks.size_bytes

    @property
    def size(self) -> int:
        """Bytes of the file: now, where the source can tell, else when it was opened."""
        if self._size is not None:
            return self._size
        self._check_open()
        source = self._source
        if source is None:
            self._check_open()  # another thread has just closed it
        return self._reader.size(source, self.path)

    @property
    def full_name(self) -> str:
        """The path, with its protocol."""
        name: str = self.fs.unstrip_protocol(self.path)
        return name

    @property
    def details(self) -> dict[str, Any]:
        """What the wrapped filesystem's `info` says."""
        return self.info()

    def info(self) -> dict[str, Any]:
        """Return what the wrapped filesystem's `info` says of it, of the version that was opened."""
        found: dict[str, Any] = self.fs.info(self.path, **self._of_info)
        return found

    @override
    def readable(self) -> bool:
        """Return True."""
        return True

    @override
    def seekable(self) -> bool:
        """Return True."""
        return True

    def _check_open(self) -> None:
        if self.closed:
            msg = f"I/O operation on closed file {redact_url(self.path)!r}"
            raise ValueError(msg)
        if self._pid != _this_process:
            self._open_again()

    @property
    def is_inherited(self) -> bool:
        """Whether it was opened before this process was forked, and is to be opened again."""
        return self._pid != _this_process

    def _open_again(self) -> None:
        """Go on in a forked child, where the parent's scheduler, sessions and lock holders are not."""
        caching = {name: value for name, value in self._given.items() if name != "priority"}
        with _reopening.setdefault(os.getpid(), threading.RLock()):
            if self._pid == os.getpid():
                return
            place = (self.path, self._size, self._reader, self._source)
            self._reader, self._source = self.fs.open_again(*place, caching)
            self._prefetcher = None  # its reads stayed in the parent
            self._lock = threading.RLock()
            self._pid = os.getpid()  # last: what was cut, or failed, is done again

    @override
    def tell(self) -> int:
        """Return the position, in bytes."""
        self._check_open()
        return self._now_at()

    def _now_at(self) -> int:
        run = self._run
        return self._position if run is None else run.position()

    @override
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position; past the end is allowed, before the start is not."""
        self._check_open()
        offset = index(offset)  # a narrow integer of NumPy's would overflow further on
        with self._lock:
            if self._run is not None:
                self._end_run()
            position = (self._base(whence) if whence else 0) + offset
            if not 0 <= position <= MOST_OFFSET:
                where = "before the start" if position < 0 else "beyond the largest offset"
                msg = f"seek {where} of {redact_url(self.path)!r}: {position}"
                raise SeekError(errno.EINVAL, msg)
            if self._blocks.is_for_any:
                is_gone = self._has_read1 and position != self._position
            else:
                is_gone = abs(position - self._last_end) >= NEAR_BYTES
            if (is_gone or whence == os.SEEK_END) and not self._is_far:
                self._blocks.clear()  # Python's buffer would not have it any more
                self._has_read1 = False
            self._position = position
            return position

    def _base(self, whence: int) -> int:
        if whence == os.SEEK_SET:
            return 0
        if whence == os.SEEK_CUR:
            return self._position
        if whence == os.SEEK_END:
            return self.size
        msg = f"whence must be 0, 1 or 2, not {whence!r}"
        raise ValueError(msg)

    # -- reads

    def asked(self, starts: Any, ends: Any) -> tuple[Reader, Ranges, Urgency]:
        """Bring ranges of this file into columns, for `HeadraceFileSystem.read_ranges`.

        They are read through the file's own source, of its version, beside whatever else reads it: neither
        its position nor its lock has to do with it.
        """
        ranges = as_ranges(self.path, starts, ends)
        reader, source = self._reader, None
        while source is None or self.is_inherited:  # closed by another thread, or forked by a signal handler
            self._check_open()
            reader, source = self._reader, self._source
        ranges.opened, ranges.source = self, source
        if self._size is not None:
            ranges.clip(self._size)
        return reader, ranges, self._urgency

    @override
    def read(self, length: int | None = -1) -> bytes:
        """Return up to `length` bytes; all that are left for None or a negative number."""
        if self._pid != _this_process:
            self._check_open()
        length = -1 if length is None else index(length)
        with self._lock:
            if self._run is not None:
                self._end_run()
            small = self._at_hand(length)
            if small is not None:
                return small
            self._check_open()  # only now: a closed file has nothing at hand
            small = self._from_blocks(length)
            if small is not None:
                return small
            wanted = self._wanted(length)
            try:
                data = self._bytes_at(self._position, wanted)
            except NoRangesError:
                if self._position or wanted < self.size:
                    raise
                # All of it is what such a server can send.
                data = self._reader.read_whole(self._source, self._here())[:wanted]
            self._advance(len(data))
            return data

    def read_buffer(self, length: int | None = -1) -> pa.Buffer:
        """Return up to `length` bytes as a buffer; many are not copied. Never more than asked (I9)."""
        self._check_open()
        length = _as_count(length)
        with self._lock:
            if self._run is not None:
                self._end_run()
            follow(self)
            self._reader.channel.shorten_turns()  # Arrow's threads come back for each read
            # Arrow knows which ranges it wants: what is close to one of them is another one's.
            if self._position == self._last_end:
                small = self._from_blocks(length)
                if small is not None:
                    return pa.py_buffer(small)
            else:
                self._pass_blocks_by()
            wanted = self._wanted(length)
            there = self._without_a_plan(wanted)
            if there is not None:
                return pa.py_buffer(there)
            data, got = self._fetch(wanted)
            buffer = pa.py_buffer(data)
            return buffer if got == buffer.size else buffer.slice(0, got)

    @override
    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, a writable bytes-like object, and return how many bytes it got."""
        out = np.frombuffer(buffer, np.uint8)
        if not out.flags.writeable:
            msg = "readinto needs a writable buffer"
            raise TypeError(msg)
        self._check_open()
        with self._lock:
            if self._run is not None:
                self._end_run()
            small = self._at_hand(len(out))
            if small is None:
                small = self._from_blocks(len(out))
            if small is not None:
                out.data[: len(small)] = small
                return len(small)
            wanted = min(self._wanted(len(out)), len(out))
            if not wanted:
                return 0
            there = self._without_a_plan(wanted)
            if there is not None:
                out[: len(there)] = np.frombuffer(there, np.uint8)
                return len(there)
            got = self._read_into(out[:wanted], is_lent=True)
            self._advance(got)
            return got

    readinto1 = readinto

    @override
    def read1(self, length: int | None = -1) -> bytes:
        """Return some bytes: what is read ahead, or one block."""
        self._check_open()
        length = _as_count(length)
        with self._lock:
            if self._run is not None:
                self._end_run()
            self._has_read1 = True
            if not self._blocks.has(self._position, 1):
                self._fill(self._position)
            data = self._blocks.take(self._position, None if length < 0 else length)
            self._advance(len(data))
            return data

    def peek(self, length: int = 0) -> bytes:
        """Return some bytes and stay here: fewer than `length` or more, as of Python's own files."""
        self._check_open()
        with self._lock:
            data = self.read1(max(index(length), NEAR_BYTES))
            self._advance(-len(data))
            return data

    @override
    def readline(self, limit: int | None = -1) -> bytes:
        """Return the next line with its newline; at most `limit` bytes of it."""
        if self._pid != _this_process:
            self._check_open()
        limit = -1 if limit is None else index(limit)
        with self._lock:
            if self._run is not None:
                self._end_run()
            if limit < 0:
                line = self._blocks.whole_line(self._position)
                if line:  # the usual case, in as few steps as there may be
                    self._position = self._last_end = self._position + len(line)
                    return line
            self._check_open()
            return self._line_over_blocks(math.inf if limit < 0 else limit)

    def readuntil(self, char: bytes = b"\n", blocks: int | None = None) -> bytes:
        """Return bytes up to and with `char`, reading `blocks` bytes at a time."""
        pieces = []
        while True:
            start = self.tell()
            part = self.read(blocks or self.blocksize or CLAMP_ABOVE_BYTES)
            if not part:
                break
            found = part.find(char)
            if found > -1:
                pieces.append(part[: found + len(char)])
                self.seek(start + found + len(char))
                break
            pieces.append(part)
        return b"".join(pieces)

    def _line_over_blocks(self, most: float) -> bytes:
        """Return a line, or what there is of it; the file is where it was if a part of it cannot be read."""
        position = self._position
        pieces = [self._blocks.take_line(position, most)]
        position += len(pieces[0])
        while not pieces[-1].endswith(b"\n") and position - self._position < most:
            self._fill(position)
            piece = self._blocks.take_line(position, most - (position - self._position))
            if not piece:
                break
            pieces.append(piece)
            position += len(piece)
        self._position = self._last_end = position
        return b"".join(pieces)

    # -- where bytes come from; all under the file's lock

    def _wanted(self, length: int, start: int | None = None) -> int:
        """How many bytes to ask for, at the position or at `start`."""
        self._check_open()
        if self._size is None and 0 <= length <= CLAMP_ABOVE_BYTES:
            return length
        left = max(self.size - (self._position if start is None else start), 0)
        return left if length < 0 else min(length, left)

    def _here(self) -> Urgency:
        return self._urgency.at(self._position)

    def _read_ahead(self, start: int, wanted: int) -> UInt8Array | None:
        """Return bytes at `start` that were read ahead; what comes after them is submitted."""
        if self._prefetcher is None:
            return None
        return self._prefetcher.take(start, wanted)

    def _without_a_plan(self, wanted: int) -> bytes | UInt8Array | None:
        """Return what was read ahead, or is small enough to be read at once."""
        there: bytes | UInt8Array | None = self._read_ahead(self._position, wanted)
        if there is None:
            place = (self._source, self.path, self._position)
            there = self._reader.read_quick(*place, wanted, self._urgency)
        if there is not None:
            self._advance(len(there))
        return there

    def _read_into(self, out: UInt8Array, *, is_lent: bool = False) -> int:
        place = (self._source, self.path, self._position)
        got: int = self._reader.read_into(*place, out, self._here(), is_lent=is_lent)
        if self._prefetcher is not None:
            self._prefetcher.see(self._position, out[:got])
        return got

    def _bytes_at(self, start: int, wanted: int) -> bytes:
        """Read at `start`, and leave the position where it is."""
        there = self._read_ahead(start, wanted)
        if there is not None:
            return there.tobytes()
        urgency = self._urgency.at(start)
        data = self._reader.read_bytes(self._source, self.path, start, wanted, urgency)
        if self._prefetcher is not None:
            self._prefetcher.see(start, np.frombuffer(data, np.uint8))
        return data

    def _fetch(self, wanted: int) -> tuple[UInt8Array, int]:
        if not wanted:
            return pooled_buffer(0), 0
        data = pooled_buffer(wanted)
        got = self._read_into(data)
        self._advance(got)
        return data, got

    def _advance(self, got: int) -> None:
        self._position += got
        self._last_end = self._position

    def _at_hand(self, length: int) -> bytes | None:
        """Serve a small read from the block at hand: the usual case, in as few steps as there may be.

        Of a long local block only to who reads on, or skips a little: that is no older than what reading all
        of it would have brought.
        """
        blocks, start = self._blocks, self._position
        if not 0 < length < blocks.size_bytes:
            return None
        if not (blocks.is_for_any or 0 <= start - self._last_end < NEAR_BYTES):
            return None
        data = blocks.get(start, length)
        if data:
            self._position = self._last_end = start + length
        return data

    def _from_blocks(self, length: int) -> bytes | None:
        """Serve a small read from a block, or say that it takes none."""
        turn = self._turn_to_far_block if self._is_far else self._turn_to_local_block
        if not (0 <= length < self._blocks.size_bytes and turn(length)):
            self._pass_blocks_by()
            return None
        data = self._blocks.take(self._position, length)
        self._advance(len(data))
        return data

    def _turn_to_far_block(self, length: int) -> bool:
        """Have what a store's file is asked for in a block, or say that it is not worth one."""
        blocks, start = self._blocks, self._position
        length, is_next = self._wanted(length), start == self._last_end
        if not (blocks.turn_to(start, length) or is_next or self._is_worth_a_block(length)):
            return False
        if length and not blocks.has(start, length):
            self._fill(start if is_next else blocks.start_around(start, length))
        return True

    def _turn_to_local_block(self, length: int) -> bool:
        """Have what follows the last read, or is close to it, in a block, or say that it is neither."""
        blocks, start = self._blocks, self._position
        if start == self._last_end:
            if length and not blocks.has(start, length):
                self._fill(start)
            return True
        if not 0 < length <= NEAR_BYTES // SMALL_SHARE or abs(start - self._last_end) >= NEAR_BYTES:
            return False
        self._fill(start, min(NEAR_BYTES, blocks.size_bytes))
        return True

    def _pass_blocks_by(self) -> None:
        """Forget a local block where something else is read: its bytes would be older than those."""
        if not self._is_far:
            self._blocks.clear()

    def _is_worth_a_block(self, length: int) -> bool:
        """Whether a scattered read is close to others, and was not read ahead."""
        if self._prefetcher is not None and self._prefetcher.has(self._position, length):
            return False
        return self._blocks.is_close(self._position, length)

    def _fill(self, start: int, size: int | None = None) -> None:
        """Read the block that begins at `start`."""
        self._check_open()
        size = size or self.blocksize or CLAMP_ABOVE_BYTES
        self._blocks.keep(start, self._bytes_at(start, self._wanted(size, start)))
        if self._source is None:  # closed by a signal's handler: another thread waits until this read is over
            self._blocks.clear()
            self._check_open()  # what is not there any more is no end of the file

    # -- the rest of the protocol

    @override
    def __iter__(self) -> Iterator[bytes]:
        self._check_open()
        return lines_of(self._next_run)

    def _next_run(self) -> LineRun | None:
        """Return the next lines, as many as the block at hand has whole, or one; None at the end.

        They stay the file's until they are taken: where threads share a loop, a run may go astray.
        """
        self._check_open()
        with self._lock:
            self._end_run()
            start = self._position
            lines = self._blocks.whole_lines(start, RUN_BYTES)
            if not lines:
                lines = self._line_over_blocks(math.inf)  # of the next block
                self._position = start
            self._run = LineRun(start, lines) if lines else None
            return self._run

    def _end_run(self) -> None:
        """Be where a loop over the lines has come to; it goes on from wherever the file is then."""
        run = self._run
        if run is not None:
            self._position = self._last_end = run.end()
            self._run = None

    @override
    def __next__(self) -> bytes:
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    @override
    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Return the lines that are left, until they are more than `hint` bytes."""
        lines: list[bytes] = []
        total = 0
        for line in self:
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint < total:
                break
        return lines

    @override
    def fileno(self) -> int:
        """There is none."""
        msg = "fileno: what reads a descriptor goes round the scheduler; open the path itself for that"
        raise io.UnsupportedOperation(msg)

    @override
    def write(self, _data: Any) -> int:
        """Not opened for writing."""
        msg = "write"
        raise io.UnsupportedOperation(msg)

    @override
    def writelines(self, _lines: Iterable[Any]) -> None:
        """Not opened for writing."""
        self.write(None)

    @override
    def close(self) -> None:
        """Let go of the source; a read in progress on another thread ends first by itself.

        Not `read_ranges`: on filesystems that are neither local nor stores of objects, ranges that have not
        begun are errors then.
        """
        super().close()
        # In a forked child nobody may be left to free the lock, and the source is the parent's.
        is_here = self._pid == os.getpid()
        with self._lock if is_here else contextlib.nullcontext():
            source, self._source = self._source, None
            self._prefetcher = None
            self._end_run()
            self._blocks.clear()
        if is_here and source is not None:  # else it was closed before
            self._reader.release(source)

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        etag = getattr(self._source, "etag", None)
        # The length of an object is that of a version: without one it is asked for anew.
        is_length_known = etag is not None or not self._reader.channel.is_by_path
        options = {
            **self._options,
            **self._given,
            **({"size": self._size, "etag": etag} if is_length_known else {}),
        }
        return _reopen, (self.fs, self.path, self._now_at(), options)

    @override
    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self._now_at()}"
        return f"<headrace.HeadraceFile {redact_url(self.path)!r}, {state}>"


class WholeFile(io.BytesIO):
    """A file whose length only its end tells: it was read when it was opened."""

    def __init__(self, fs: Any, path: str, data: bytes) -> None:
        super().__init__(data)
        self.fs = fs
        self.path = path
        self.size = len(data)

    @property
    @override
    def name(self) -> str:
        """The path."""
        return self.path

    @property
    @override
    def mode(self) -> str:
        """That of reading bytes."""
        return "rb"


_reopening: dict[int, Any] = {}
"""A lock for each process: in a forked child nobody may be left to free its parent's."""


def _as_count(length: Any) -> int:
    """Return how many bytes are asked for, -1 for all of them, as an integer of Python's.

    A narrow one of NumPy's would wrap around where a position is added to it.
    """
    return -1 if length is None else index(length)


def _reopen(fs: Any, path: str, position: int, options: dict[str, Any]) -> HeadraceFile:
    """Open a pickled file again, where it was; of an object the same version, where the store tells it."""
    file: HeadraceFile = fs.open(path, "rb", **options)
    file.seek(position)
    return file
