"""Ranges of open files that are not headrace's: of other libraries, and of the wrapped filesystem's own.

Such a file has one position, and whatever methods it has. So its ranges are read by its own ``seek`` and
``read``, one call at a time, in the order of their offsets: a compressed file would begin anew for each that
lies before the last. Nothing is scheduled.
"""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from headrace.ranges import as_ranges, or_error
from headrace.redact import redact_url
from headrace.threads import raise_if_of_a_handler

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from headrace.ranges import Ranges


def is_open_file(given: Any) -> TypeIs[IO[bytes] | io.BufferedIOBase]:
    """Whether it is an open file, and neither a path nor a list of them."""
    return hasattr(given, "seek") and hasattr(given, "read")


def ranges_of_file(file: Any, starts: Any, ends: Any) -> Ranges:
    """Bring ranges of an open file into columns.

    Raises
    ------
    TypeError
        It is open in text mode, and has no bytes to offer.
    ValueError
        It is closed.
    """
    if isinstance(file, io.TextIOBase):
        msg = f"ranges are read of a file that is open in binary mode, not of {type(file).__name__}"
        raise TypeError(msg)
    if getattr(file, "closed", False):
        msg = "I/O operation on closed file"
        raise ValueError(msg)
    name = getattr(file, "path", getattr(file, "name", type(file).__name__))
    ranges = as_ranges(str(name), starts, ends)
    ranges.opened = file
    return ranges


def answers_of_file(ranges: Ranges) -> list[bytes | Exception]:
    """Read each range, or say why it cannot be; the file's position is then what it was, if it may be set."""
    from headrace.backends.fsspec_sync import HandleSource, instance_lock  # noqa: PLC0415 - a backend

    file, path = ranges.opened, ranges.paths[0]
    source = HandleSource(path, file, {}, {})

    def read(bounds: tuple[int, int]) -> bytes:
        start, end = bounds
        try:
            return bytes(source.read(start, end - start))  # of text it is a TypeError
        except Exception as error:
            error.add_note(f"read of {redact_url(path)!r}, bytes {start} to {end}")
            raise

    answers: list[bytes | Exception] = [b""] * len(ranges)
    with instance_lock(file):
        before = file.tell()
        try:
            for row in np.argsort(ranges.starts, kind="stable").tolist():
                answers[row] = or_error(read, (int(ranges.starts[row]), int(ranges.ends[row])))
        finally:
            try:
                file.seek(before)
            except Exception as error:  # noqa: BLE001 - what was read is there, or something worse on its way
                raise_if_of_a_handler(error)
    return answers
