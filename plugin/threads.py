"""What threads, signals and forks ask of every layer; it imports none of them."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import signal
import threading
import weakref
from functools import partial
from inspect import CO_VARARGS
from itertools import pairwise
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
F = TypeVar("F", bound="Callable[[], None]")

NOT_MINE = "cannot release"
"""What an `RLock` says to a thread that does not have it."""


def call_locked(
    lock: Any, acquire: Callable[[], bool], function: Callable[..., T], *args: Any, **kwargs: Any
) -> T | None:
    """Call `function` with a lock, and return what it returns; None where `acquire` does not get the lock.

    Python may run a signal's handler after any call and on entry to any function. Where one raises after the
    lock was acquired and before that is noted, as in `with` and `__exit__`, the lock would be held for ever.
    So it is let go of whatever is known, in the step after the block, and that it was not ours is no error.

    Parameters
    ----------
    lock
        An `RLock`, best one that this thread does not have: it might be let go of once too often.
    acquire
        Acquires it, or says that it did not.
    """
    try:
        return function(*args, **kwargs) if acquire() else None
    finally:
        try:
            lock.release()
        except RuntimeError as error:
            if not str(error).startswith(NOT_MINE):
                raise  # a signal handler's


def call_if_free(lock: Any, function: Callable[..., T], *args: Any) -> T | None:
    """Call `function` with an `RLock`, and return what it returns; None where somebody has it.

    A finaliser or signal handler may have interrupted that somebody, who may be this thread.
    """
    if lock._is_owned():  # noqa: SLF001 - the only way to ask
        return None
    return call_locked(lock, partial(lock.acquire, blocking=False), function, *args)


def forget_with(thing: T, known: dict[int, Any]) -> weakref.ref[T]:
    """Return a weak reference to `thing` that takes ``known[id(thing)]`` away when `thing` is gone.

    To be kept in that entry. Python's own weak containers ask whether two things are equal, and fsspec's
    filesystems and files often are. A finaliser may run anywhere: this one takes no lock and runs no Python.
    """
    return weakref.ref(thing, partial(known.pop, id(thing)))  # the reference it is called with is the default


def is_python_thread() -> bool:
    """Whether Python started the calling thread; those of others lose their variables at every return."""
    # Not by `threading.enumerate`: a signal handler may have interrupted who holds its lock.
    known: Any = threading._active.get(threading.get_ident())  # type: ignore[attr-defined]  # noqa: SLF001
    return known is not None and not isinstance(known, threading._DummyThread)  # noqa: SLF001


_SIGNALS = tuple(map(int, signal.valid_signals()))


def raise_if_of_a_handler(error: BaseException) -> None:
    """Raise what a signal's handler raised: it is the caller's, and no answer of what was just called.

    As a time-out by an alarm, or the soft time limit of a task queue. It came through a frame of one of the
    handlers that are set. Only the main thread runs them. To be called by who caught it.
    """
    trace = error.__traceback__
    trace = None if trace is None else trace.tb_next  # the first is the frame that caught it
    if trace is None or threading.get_ident() != threading.main_thread().ident:
        return
    # Not `signal.getsignal`, which looks its answer up in an enumeration.
    handlers = {_code_of(handler) for handler in map(_signal.getsignal, _SIGNALS) if callable(handler)}
    while trace is not None:
        if trace.tb_frame.f_code in handlers and _may_handle(trace.tb_frame):
            raise error
        trace = trace.tb_next


def _may_handle(frame: FrameType) -> bool:
    """Whether a frame was given a signal and where that came, or lets nobody tell.

    A handler behind a decorator has the code of all functions that are behind it.
    """
    code, known = frame.f_code, frame.f_locals
    given = [known.get(name, _GONE) for name in code.co_varnames[: code.co_argcount]]
    if code.co_flags & CO_VARARGS:
        given += known.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount], (_GONE,))
    return any(one is _GONE for one in given) or any(
        isinstance(number, int) and number in _SIGNALS and (where is None or isinstance(where, FrameType))
        for number, where in pairwise(given)
    )


_GONE: Any = object()
"""What a function was given and has deleted."""


def _code_of(handler: Any) -> Any:
    """Return the code of a function, a method, or anything else of Python's that is called; or None."""
    while isinstance(handler, partial):
        handler = handler.func
    if not hasattr(handler, "__code__") and not hasattr(handler, "__func__"):
        handler = type(handler).__call__
    return getattr(getattr(handler, "__func__", handler), "__code__", None)


def after_fork_in_child(function: F) -> F:
    """Have `function` called in every forked child, where whoever held a lock of the parent's is not."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
    return function
