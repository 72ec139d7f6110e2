"""The small types that every layer shares: priorities, verdicts, and the columns of ops a backend performs.

`Ops` is the one contract between the scheduler's side and the backends: columns of equal length, one
row an op, and a result buffer. A backend fills `got` (bytes read, -1 while unknown) and `errors`; it
never learns what a request, a queue or a priority is.

Threading: a row is written by the one thread which was granted it; rows are never granted twice.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.columns import minus_ones
from headrace.redact import redact_error, redact_url

Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]

NOT_YET = -1
"""Value of `Ops.got` for an op which was not performed."""

UNKNOWN_LENGTH = -1
"""Value of `Ops.length` for an op that reads to the end of a file of unknown size."""


TRY_TIMEOUT_S = 30.0
"""Seconds for one attempt of an op at a store, its body included, unless a setting says otherwise.

A body that dribbles is then resumed on another connection.
"""


class Priority(NamedTuple):
    """Urgency of a read: lower is more urgent, `base` first, then `position` inside one scan."""

    base: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error of the storage means for the op that met it.

    Attributes
    ----------
    is_retryable
        The same request may succeed later, and asking again changes nothing in the store.
    is_throttled
        The store asks for less (429, 503 SlowDown), or does not keep up (time-outs).
    retry_after_s
        Seconds the store wants to be left alone, where its answer says so.
    is_late
        The attempt ran out of time: the store, or the link to it, may be too slow for what is in flight.
    """

    is_retryable: bool
    is_throttled: bool = False
    retry_after_s: float | None = None
    is_late: bool = False


@dataclass(slots=True, eq=False)
class Ops:
    """The ops of one request, a row each.

    Attributes
    ----------
    sources
        What the backend's `open` returned, one for each file of the request.
    file, start, length, dest
        ``int64[m]``: index into `sources`, offset in the file, bytes to read, offset in `buffer`.
        An op of `UNKNOWN_LENGTH` is alone in its request.
    buffer
        ``uint8[b]``, writable. The backend writes nothing outside ``dest : dest + length`` (I9).
    got
        ``int64[m]``: bytes read by each op, `NOT_YET` before.
    errors
        The exception of each op that failed, by row.
    whole
        The answer of an op of unknown length, by row.
    state
        The backend's own, made when it first sees the ops.
    series_ops
        So many ops of a slice are to be performed one after the other, as `InlineBackend.series_ops` says.
    """

    sources: list[Any]
    file: Int64Array
    start: Int64Array
    length: Int64Array
    dest: Int64Array
    buffer: UInt8Array
    got: Int64Array
    errors: dict[int, BaseException] = field(default_factory=dict)
    whole: dict[int, bytes] = field(default_factory=dict)
    state: Any = None
    series_ops: int = 1

    def __len__(self) -> int:
        return len(self.got)

    @classmethod
    def of(cls, sources: list[Any], columns: tuple[Int64Array, ...], buffer: UInt8Array) -> Ops:
        """Make ops which nobody performed yet from ``(file, start, length, dest)``."""
        file, start, length, dest = columns
        return cls(sources, file, start, length, dest, buffer, minus_ones(len(file)))

    def alone(self, row: int) -> Ops:
        """Make op `row` anew, with a buffer of its own: what comes too late for it goes nowhere."""
        length = int(self.length[row])
        one, zero = slice(row, row + 1), np.zeros(1, np.int64)
        columns = (zero, self.start[one], self.length[one], zero)
        return Ops.of([self.sources[self.file[row]]], columns, np.empty(max(length, 0), np.uint8))

    def take(self, row: int, found: Ops) -> None:
        """Deliver what `found`, made by `alone`, was answered, whatever became of the op itself."""
        self.errors.pop(row, None)
        if found.errors:
            self.fail(row, found.errors[0])
            return
        data = found.whole.get(0)
        self.deliver(row, found.buffer[: int(found.got[0])].data if data is None else data)

    def fail(self, row: int, error: BaseException) -> None:
        """Note that op `row` raised `error`, which tells its file and range in a note (I10), no secret."""
        self.errors[row] = error
        self.got[row] = 0
        redact_error(error)
        with contextlib.suppress(Exception):  # of a class whose instances take none
            if not hasattr(error, "__notes__"):  # of ops that fail together the first is named
                error.add_note(self._place(row))

    def _place(self, row: int) -> str:
        path = redact_url(str(getattr(self.sources[self.file[row]], "path", "a file")))
        start, length = int(self.start[row]), int(self.length[row])
        span = "" if length == UNKNOWN_LENGTH else f", bytes {start} to {start + length}"
        return f"headrace read {path!r}{span}"

    def deliver(self, row: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data`, the bytes of op `row`, into the buffer; longer than asked is cut (I9)."""
        if self.length[row] == UNKNOWN_LENGTH:
            self.whole[row] = bytes(data)
            self.got[row] = len(data)
            return
        got = min(len(data), int(self.length[row]))
        if got:
            dest = int(self.dest[row])
            # Not by NumPy, which gives the GIL up to copy 500 bytes: winning it back may take 10 ms.
            self.buffer.data[dest : dest + got] = memoryview(data).cast("B")[:got]
        self.got[row] = got
