"""Lines of an open file, many at a time: a loop over a file calls Python once for some hundreds of them.

`lines_of` chains the runs that the file hands out: an iterator of C over iterators of C. While a run is under
way its own position is the file's. Whatever else uses the file ends the run first, which says where it was
(`LineRun.end`): the loop then goes on with the next run, wherever the file is by then.
"""

from __future__ import annotations

import io
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RUN_BYTES = 16 << 10
"""A run is a copy of no more of its block: it may be ended after its first line, each time."""


class LineRun:
    """Whole lines of a block.

    Parameters
    ----------
    start
        Where they begin in the file.
    data
        The lines.
    """

    __slots__ = ("_lines", "_start")

    def __init__(self, start: int, data: bytes) -> None:
        self._start = start
        self._lines = io.BytesIO(data)

    def __iter__(self) -> Iterator[bytes]:
        """Return what takes each line in one step of C's: threads may share it without a lock."""
        return self._lines

    def position(self) -> int:
        """Return where the next line begins in the file."""
        return self._start + self._lines.tell()

    def end(self) -> int:
        """Give out no more lines; returns the position, however often it is asked."""
        self._lines.truncate(0)  # leaves its position where it is
        return self.position()


class _Runs:
    """The runs of a file: neither a generator nor ``iter(next_run, None)``, which threads cannot share."""

    __slots__ = ("_next_run",)

    def __init__(self, next_run: Callable[[], LineRun | None]) -> None:
        self._next_run = next_run

    def __iter__(self) -> _Runs:
        return self

    def __next__(self) -> LineRun | _Raise:
        try:
            run = self._next_run()
        except BaseException as error:  # noqa: BLE001 - raised in the next step
            return _Raise(error)
        if run is None:
            raise StopIteration
        return run


class _Raise:
    """An iterator that raises an error, once: the chain would forget its source if that did."""

    __slots__ = ("_error",)

    def __init__(self, error: BaseException) -> None:
        self._error: BaseException | None = error

    def __iter__(self) -> _Raise:
        return self

    def __next__(self) -> bytes:
        error, self._error = self._error, None
        if error is None:
            raise StopIteration
        raise error


def lines_of(next_run: Callable[[], LineRun | None]) -> Iterator[bytes]:
    """Iterate over the lines of the runs that `next_run` returns, until that is None."""
    return chain.from_iterable(_Runs(next_run))
