"""The permit: which admitted op, if any, the code that runs now belongs to.

A backend may read through headrace again (``zip://`` over ``headrace::s3://``). Such a read runs on its
parent's permit: it is admitted at once and waits for nobody's pool (I1). The permit is a context variable,
so it follows coroutines; threads that headrace starts for an op set it themselves, beside the variables of
who asked for that.

Ops of inline backends (local files, memory, rings) never call back into Python code of others. Where their
consumer performs them itself it does so on a permit all the same: a signal handler that reads meanwhile would
wait for what the frame below it holds. It takes the permit before it submits, and has it until nothing of the
request is in flight. Reads that are over in one section need no permit, which would cost as much as they do.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Context

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Permit:
    """An op that was admitted and is being performed.

    Attributes
    ----------
    request_seq
        Sequence number of its request; 0 for a call that is no read (metadata under an instance lock), and
        for what its consumer performs, who takes the permit before anything is admitted.
    path
        The file it reads.
    start, length
        Its bytes.
    """

    request_seq: int
    path: str
    start: int = 0
    length: int = 0


_permit: ContextVar[Permit | None] = ContextVar("headrace_permit", default=None)


def current_permit() -> Permit | None:
    """Return the op that the calling code performs, or None outside of any."""
    return _permit.get()


@contextlib.contextmanager
def permitted(permit: Permit) -> Iterator[None]:
    """Run the block on `permit`."""
    token = _permit.set(permit)
    try:
        yield
    finally:
        _permit.reset(token)


def call_permitted(permit: Permit, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call `function` on `permit`, on a thread where a signal may be handled at any line.

    Leaving a context is C: no exception in between leaves the permit behind.
    """
    return copy_context().run(_call, permit, function, args, kwargs)


def call_permitted_in(context: Context, permit: Permit, function: Callable[..., T], *args: Any) -> T:
    """Do the same in a copy of `context`: several threads may do so at once, and one is entered by one."""
    return context.copy().run(_call, permit, function, args, {})


def perform_here(path: str, function: Callable[..., T], *args: Any) -> T:
    """Call what submits a read and performs it on its consumer's thread, on a permit of its own.

    A signal handler that reads meanwhile must not wait for what this thread holds: it is nested.
    """
    return call_permitted(Permit(0, path), function, *args)


def _call(permit: Permit, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    _permit.set(permit)
    return function(*args, **kwargs)
