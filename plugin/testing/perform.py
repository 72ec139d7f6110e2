"""Performs ops through a backend's own protocol, as the drivers do but without a scheduler.

`Performer` owns what a backend of its kind needs: an event loop for an `AsyncBackend`, nothing for
the others. `make_ops` lays ranges out in a buffer with guard bytes between them, and `Placed` tells
afterwards what each row read and whether anything was written where no row is (I9).

The rules it checks by itself are those that a driver relies on: `InlineBackend.start` names each
row that is not done, once, and no row outside its slice; every performed row has its `got` or its
error.

Threading: `perform` may be called by several threads at once for backends that are inline or
threaded, each with ops or a slice of its own.
"""

# ruff: noqa: S101 - a test asserts

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from headrace.backends.abc import AsyncBackend, Backend, BulkBackend, InlineBackend, ThreadedBackend
from headrace.columns import ascending
from headrace.types import NOT_YET, Int64Array, Ops, UInt8Array

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

GUARD = 0xA5
"""Value of every byte of the buffer that no op may write."""

GUARD_BYTES = 37
"""Between one op's bytes and the next; odd, so that no alignment hides a stray write."""

WAIT_S = 60.0

Row = tuple[int, int, int]
"""``(file, start, end)`` of an op."""


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Ops laid out among guard bytes."""

    ops: Ops

    def answer(self, row: int) -> bytes | BaseException | None:
        """Return the bytes or the error of a row; None while it is not performed."""
        ops = self.ops
        if row in ops.errors:
            return ops.errors[row]
        got, dest = int(ops.got[row]), int(ops.dest[row])
        return None if got == NOT_YET else ops.buffer[dest : dest + got].tobytes()

    def answers(self) -> list[bytes | BaseException | None]:
        """Return the answers of all rows."""
        return [self.answer(row) for row in range(len(self.ops))]

    def strays(self, rows: Sequence[int] | None = None) -> Int64Array:
        """Return where bytes were written that belong to none of `rows` (default: of all)."""
        ops = self.ops
        is_guard = np.ones(len(ops.buffer), np.bool_)
        for row in range(len(ops)) if rows is None else rows:
            dest = int(ops.dest[row])
            is_guard[dest : dest + int(ops.length[row])] = False
        return np.flatnonzero(is_guard & (ops.buffer != GUARD))


def make_ops(sources: list[Any], rows: Sequence[Row]) -> Placed:
    """Lay `rows` out one after another with guard bytes before, between and after them."""
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    file, start = columns[0].copy(), columns[1].copy()
    length = columns[2] - columns[1]
    ends = np.cumsum(length + GUARD_BYTES)
    dest = ends - length
    buffer: UInt8Array = np.full(int(ends[-1]) + GUARD_BYTES if len(ends) else 0, GUARD, np.uint8)
    return Placed(Ops.of(sources, (file, start, length, dest), buffer))


class Performer:
    """Performs ops with a backend of any kind; a context manager.

    Parameters
    ----------
    backend
        Not in use by anybody else.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._own_loop: asyncio.AbstractEventLoop | None = None
        if isinstance(backend, AsyncBackend):
            if backend.foreign_loop is None:
                self._own_loop = asyncio.new_event_loop()
            backend.bind(self._own_loop or backend.foreign_loop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        backend = self.backend
        if isinstance(backend, AsyncBackend) and self._own_loop is not None:
            self._own_loop.run_until_complete(backend.aclose())
            self._own_loop.run_until_complete(self._own_loop.shutdown_asyncgens())
            self._own_loop.close()

    def perform(self, ops: Ops, lo: int = 0, hi: int | None = None) -> None:
        """Perform the rows ``[lo, hi)``."""
        hi = len(ops) if hi is None else hi
        if isinstance(self.backend, InlineBackend):
            self._inline(self.backend, ops, lo, hi)
        elif isinstance(self.backend, ThreadedBackend):
            for row in range(lo, hi):
                with _noting_error(ops, row):
                    self.backend.read(ops, row)
        elif isinstance(self.backend, BulkBackend):
            most = self.backend.max_grant_ops
            for first in range(lo, hi, most):
                self.backend.perform(ops, ascending(first, min(first + most, hi)))
        elif isinstance(self.backend, AsyncBackend):
            self._run(_await_all(self.backend, ops, lo, hi))
        left = [row for row in range(lo, hi) if row not in ops.errors and ops.got[row] == NOT_YET]
        assert not left, f"rows without an answer: {left[:10]}"

    def _inline(self, backend: InlineBackend, ops: Ops, lo: int, hi: int) -> None:
        rows = np.asarray(backend.start(ops, lo, hi))
        assert rows.dtype.kind == "i", f"start() returned an array of {rows.dtype}"
        assert len(np.unique(rows)) == len(rows), "start() named a row twice"
        assert ((rows >= lo) & (rows < hi)).all(), f"start() named rows outside [{lo}, {hi})"
        rows = rows[[row not in ops.errors for row in rows.tolist()]] if len(rows) else rows
        if len(rows):
            backend.finish(ops, rows)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        if self._own_loop is not None:
            self._own_loop.run_until_complete(work)
            return
        assert isinstance(self.backend, AsyncBackend)
        asyncio.run_coroutine_threadsafe(work, self.backend.foreign_loop).result(WAIT_S)


async def _await_all(backend: AsyncBackend, ops: Ops, lo: int, hi: int) -> None:
    """Read all rows, as many at once as the backend says is good."""
    free = asyncio.Semaphore(backend.defaults.io_parallelism)

    async def read(row: int) -> None:
        async with free:
            with _noting_error(ops, row):
                await backend.read(ops, row)

    await asyncio.gather(*(read(row) for row in range(lo, hi)))


@contextlib.contextmanager
def _noting_error(ops: Ops, row: int) -> Iterator[None]:
    """Make what `read` raises the op's own answer, as the drivers do (I10)."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - as the drivers do
        ops.fail(row, error)
