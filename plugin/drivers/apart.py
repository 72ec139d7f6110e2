"""Blocking calls for coroutines, on threads of headrace's own.

The threads of `asyncio.to_thread` are the program's: all of them may be busy, or waiting for
the very coroutine that would call.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.drivers.workers import Workers
from headrace.threads import after_fork_in_child

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_MOST = 1024
"""Threads at a time."""

_workers = Workers(_MOST, "headrace-call")


@after_fork_in_child
def _forget() -> None:
    """In a forked child: the threads, and whoever held their lock, stayed with the parent."""
    global _workers  # noqa: PLW0603
    _workers = Workers(_MOST, "headrace-call")


async def call_apart(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call `function` on another thread, in the caller's context, and await what it returns."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[T] = loop.create_future()
    call = partial(contextvars.copy_context().run, function, *args, **kwargs)
    _workers.put(partial(_call, call, loop, over))
    return await over


def _call(call: Callable[[], T], loop: asyncio.AbstractEventLoop, over: asyncio.Future[T]) -> None:
    if over.cancelled():
        return
    try:
        tell = partial(_tell, over, over.set_result, call())
    except StopIteration as error:  # which no future takes
        wrong = RuntimeError("a call raised StopIteration")
        wrong.__cause__ = error
        tell = partial(_tell, over, over.set_exception, wrong)
    except BaseException as error:  # noqa: BLE001 - the caller's
        tell = partial(_tell, over, over.set_exception, error)
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
        loop.call_soon_threadsafe(tell)


def _tell(over: asyncio.Future[Any], tell: Callable[[Any], None], outcome: Any) -> None:
    if not over.done():  # cancelled
        tell(outcome)
