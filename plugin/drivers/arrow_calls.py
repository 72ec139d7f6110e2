"""What Python's frames tell of Arrow: who called it, what it calls, and what has come out of it.

Arrow is C++: it leaves no frame. So its calls are known by those of our functions that it calls, and by
pyarrow's own callbacks, and an error is outside of Arrow once the outermost frame of its traceback is none of
these.
"""

from __future__ import annotations

import gc
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_CALLED_BY_ARROW = frozenset({"pyarrow.fs", "headrace.filesystem", "headrace.looks", "headrace.file"})
"""Modules of what Arrow calls: `open`, `info`, `find`, reads of files. Where they move to is named here."""

_WITHIN_ARROW = ("headrace.", "pyarrow.fs", "pyarrow._fs")
"""Modules that an error passes on its way into Arrow; the last is that of Arrow's own callbacks."""


def has_surfaced(error: BaseException) -> bool:
    """Whether `error` has left Arrow's threads, and not on another thread of Python's."""
    entry = error.__traceback__
    if entry is None or str(entry.tb_frame.f_globals.get("__name__")).startswith(_WITHIN_ARROW):
        return False
    return not any(
        entry.tb_frame is frame
        for ident, top in _top_frames().items()
        if ident != threading.main_thread().ident
        for frame in _frames(top)
    )


def is_main_thread_at(frame: FrameType, place: int) -> bool:
    """Whether the main thread is in `frame`, or in what that calls, and still at `place` in it."""
    if frame.f_lasti != place:
        return False
    top = _top_frames().get(threading.main_thread().ident or 0)
    return any(one is frame for one in _frames(top))


def caller_of_arrow(frame: FrameType | None) -> FrameType | None:
    """Return the frame that called Arrow, or us, if one of the calls in which `frame` is may be Arrow's."""
    found, is_called = None, False
    for one in _frames(frame):
        was_called, is_called = is_called, one.f_globals.get("__name__") in _CALLED_BY_ARROW
        if was_called and not is_called:
            found = one
    return found


def _top_frames() -> dict[int, FrameType]:
    """Return what each thread executes.

    Without the collector: before 3.11.5 (CPython's gh-106883) it runs inside that call, under the lock that
    new threads need, too. A finaliser that gives up the GIL there may never have it back.
    """
    is_collecting = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames()  # noqa: SLF001
    finally:
        if is_collecting:
            gc.enable()


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def is_in_call_of(module: str) -> bool:
    """Whether `module` is being executed further up on this thread."""
    return any(frame.f_globals.get("__name__") == module for frame in _frames(sys._getframe()))  # noqa: SLF001
