"""One attempt of an op, and one with a second request beside it, should it be late.

Of two the first answer wins, which no failure is, and the other is cancelled. When, and whether the budget
allows it, the core says (`core.hedge`). The second request reads into memory of its own: the first may have
written a part of the result already, and goes on until it has lost.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

from headrace.drivers.job import check_delivery
from headrace.types import NOT_YET

if TYPE_CHECKING:
    from headrace.backends.abc import AsyncBackend
    from headrace.core.hedge import Hedge
    from headrace.drivers.job import Job
    from headrace.types import Ops

LOOK_S = 0.05
"""An op that may not be asked for twice, or not yet, is looked at again after so long."""


async def read_op(backend: AsyncBackend, ops: Ops, row: int) -> None:
    """Read op `row` once; raises what it failed with, whether its backend raised that or stored it."""
    ops.errors.pop(row, None)  # of an attempt before this one, which raised it besides
    await backend.read(ops, row)
    check_delivery(backend, ops, row)
    if isinstance(ops.errors.get(row), Exception):  # any other would end more than this read
        ops.got[row] = NOT_YET
        raise ops.errors.pop(row)


async def hedged(backend: AsyncBackend, job: Job, row: int, hedge: Hedge) -> None:
    """Read op `row`, by two requests where it is late and the budget allows it."""
    ops, length, began_s = job.ops, int(job.ops.length[row]), perf_counter()
    first = asyncio.ensure_future(read_op(backend, ops, row))
    reads: list[asyncio.Future[None]] = [first]
    twin = None
    try:
        if await _is_late(first, job, hedge, length):
            twin = ops.alone(row)
            reads.append(asyncio.ensure_future(read_op(backend, twin, 0)))
        winner = await _winner(reads)
    except (Exception, asyncio.CancelledError):
        await _end(reads)
        raise
    except BaseException:
        # It is for the thread that runs the loop now: a turn later that may be another.
        _cancel(reads)
        raise
    await _end(reads)
    if winner is None:
        await read_op(backend, ops, row)
    elif twin is not None and winner is not first:
        ops.take(row, twin)
    job.ask(hedge.note, length, perf_counter() - began_s)


def _cancel(reads: list[asyncio.Future[None]]) -> None:
    for read in reads:
        read.cancel()


async def _end(reads: list[asyncio.Future[None]]) -> None:
    """Cancel what goes on, and wait until nothing does."""
    _cancel(reads)
    await asyncio.gather(*reads, return_exceptions=True)


async def _is_late(first: asyncio.Future[None], job: Job, hedge: Hedge, length: int) -> bool:
    """Wait until the op is done, or to be asked for again.

    When a store's first ops begin, it is not known what is late, and the budget for second requests is empty.
    """
    began_s = perf_counter()
    while not first.done():
        delay_s = job.ask(hedge.delay_s, length)
        left_s = LOOK_S if delay_s is None else began_s + delay_s - perf_counter()
        if left_s <= 0:
            if job.ask(hedge.may_send):
                return True
            left_s = LOOK_S
        await asyncio.wait([first], timeout=left_s)
    return False


async def _winner(reads: list[asyncio.Future[None]]) -> asyncio.Future[None] | None:
    """Return the first that succeeds; raises the first one's error where none does.

    None: all that did not fail were interrupted with the thread that ran the loop, which has raised that.
    """
    pending = reads
    while pending:
        for read in reads:
            if read.done() and read.exception() is None:
                return read
        pending = [read for read in reads if not read.done()]
        if pending:
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    for read in reads:
        if isinstance(read.exception(), Exception):
            await read
    return None
