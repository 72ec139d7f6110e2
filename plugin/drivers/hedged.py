"""A read with a second request beside it, should it be late: the first answer wins, the other is cancelled.

When, and whether the budget allows it, the core says (`core.hedge`). The second request reads into memory of
its own: the first may have written a part of the result already, and goes on until it has lost.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

from headrace.types import Ops

if TYPE_CHECKING:
    from headrace.backends.abc import AsyncBackend
    from headrace.drivers.job import Job

_ZERO = np.zeros(1, np.int64)


async def hedged(backend: AsyncBackend, job: Job, row: int, delay_s: float) -> None:
    """Read op `row`, by two requests where one takes longer than `delay_s`."""
    ops = job.ops
    first = asyncio.ensure_future(backend.read(ops, row))
    reads: list[asyncio.Future[None]] = [first]
    try:
        await asyncio.wait(reads, timeout=delay_s)
        if first.done() or not job.may_hedge():
            await first
            return
        twin = _twin(ops, row)
        reads.append(asyncio.ensure_future(backend.read(twin, 0)))
        if await _winner(reads) is first:
            return
    finally:
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
    ops.deliver(row, twin.buffer[: int(twin.got[0])].data)


async def _winner(reads: list[asyncio.Future[None]]) -> asyncio.Future[None]:
    """Return the first that succeeds; raises the first one's error where none does."""
    pending = set(reads)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for read in done:
            if read.exception() is None:
                return read
    await reads[0]
    raise AssertionError  # pragma: no cover - it failed


def _twin(ops: Ops, row: int) -> Ops:
    """Make the op anew, with a buffer of its own."""
    length = int(ops.length[row])
    source = ops.sources[ops.file[row]]
    columns = (_ZERO, ops.start[row : row + 1], ops.length[row : row + 1], _ZERO)
    return Ops.of([source], columns, np.empty(length, np.uint8))
