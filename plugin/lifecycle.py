"""A clean end: of the interpreter, whatever Arrow's threads still hold.

Without this, a script that scans and ends aborts ("terminate called without an active exception"):
Arrow's threads drop their references to Python file objects while the interpreter is finalised. So an
exit hook

1. makes new reads fail, those of the wrapped filesystem's own files under ``off`` as well, and those that
   somebody still waits for: Arrow's threads among them return,
2. waits, a second at the most, until Arrow holds no handle any more (and only Arrow: a file that a program
   keeps in a global variable would never be gone), until the threads that let go are out of Python, and for
   an instant until what is in flight has ended,
3. closes the runtime, and with it the sessions of async filesystems, of those that the last collection takes
   as well: side by side, a second at the most, and as long for those that were being closed already.

Where Arrow's threads have not let go by then, they are stuck in a call of the wrapped filesystem's (a read
under ``off``, its ``open``): s3fs, which can make no new connection any more, tries again for half a minute.
What runs on the loops of such filesystems is cancelled then. Where even that does not help, Arrow would wait
for its threads after the interpreter is gone, and they would abort the process when they come back to it. The
last resort is to end the process before Arrow's own exit handlers run, with the exit status that it has by
then.

Handles are followed in every mode, `off` included.

Exit handlers run in the reverse of the order in which they were registered, so those of before headrace's
import come after all this, and cannot read. (All finalisers of `weakref.finalize` are one handler, as old as
the first of them.)
"""

from __future__ import annotations

import _thread
import asyncio
import atexit
import contextlib
import ctypes
import gc
import threading
import traceback
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

from headrace import runtime as _runtime
from headrace.drivers import interrupts
from headrace.errors import SchedulerClosedError
from headrace.threads import after_fork_in_child, forget_with

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable
    from types import FrameType

PATIENCE_S = 1.0
"""The longest an exit waits for Arrow to let go."""

LEAVE_S = 0.5
"""The longest it waits for other threads to leave Python; those of some programs stay."""

DRAIN_S = 0.1
"""The longest it waits, with Arrow gone, for storage to answer reads that nobody wants any more."""

_QUIET_S = 0.01
"""How often it looks; Arrow lets go within a few milliseconds."""


class _Guard:
    """The handles that Arrow holds, and whether the interpreter is going down."""

    def __init__(self) -> None:
        self._handles: dict[int, weakref.ref[Any]] = {}  # by id: two files of one object are equal
        self.is_exiting = False
        self.has_followed = False

    def follow(self, handle: Any) -> None:
        """Wait for `handle` to be gone before the interpreter ends."""
        self.has_followed = True
        if id(handle) not in self._handles:  # Arrow reads one many times
            self._handles[id(handle)] = forget_with(handle, self._handles)

    @property
    def handles(self) -> list[Any]:
        """Those that are there."""
        found = [handle() for handle in list(self._handles.values())]
        return [handle for handle in found if handle is not None]

    def fail_reads(self) -> None:
        """Have reads of the handles fail, whoever's they are: a scan reads ahead until one does."""
        for handle in self.handles:
            with contextlib.suppress(AttributeError):
                handle.read = _refuse

    def cancel_reads(self) -> None:
        """Cancel what runs on the loops of the handles' filesystems: reads that Arrow's threads wait for."""
        loops = {_loop_of(handle) for handle in self.handles} - {None}
        for loop in loops:
            with contextlib.suppress(RuntimeError):  # closed
                loop.call_soon_threadsafe(_cancel_all, loop)

    def is_held(self) -> bool:
        """Whether Arrow holds a handle."""
        return bool(self._handles)

    def is_in(self, frame: FrameType) -> bool:
        """Whether a frame is one of ours, which have what leads to a handle, or has one as a variable."""
        if str(frame.f_globals.get("__name__")).startswith("headrace."):
            return True
        # A list: a module's variables are its globals, and other threads may add to them.
        return any(id(value) in self._handles for value in list(frame.f_locals.values()))


_guard = _Guard()


def follow(handle: Any) -> None:
    """Have the exit hook wait for `handle`, which Arrow was given."""
    interrupts.deliver_once()
    _guard.follow(handle)


def is_arrows(caller: FrameType | None) -> bool:
    """Whether the code that runs in `caller` is pyarrow's: it will hold what it opens on its own threads.

    C code that calls has no frame: that of DuckDB, or of a thread that is nothing but the call.
    """
    name = "" if caller is None else caller.f_globals.get("__name__", "")
    return isinstance(name, str) and name.startswith("pyarrow")


def _loop_of(handle: Any) -> Any:
    """Return the loop on which an async filesystem reads a handle; None for ours, whose reads have failed."""
    fs = getattr(handle, "fs", None)
    is_async = getattr(fs, "async_impl", False) and not getattr(fs, "is_headrace", False)
    return getattr(fs, "_loop", None) if is_async else None


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()


def _refuse(*_: Any) -> None:
    check_not_exiting()


def check_not_exiting() -> None:
    """Raise where a read is started while the interpreter ends."""
    if _guard.is_exiting:
        msg = "the interpreter is shutting down; exit handlers may read that were registered after headrace's"
        raise SchedulerClosedError(msg)


def _at_exit() -> None:
    _guard.is_exiting = True
    error = SchedulerClosedError("the interpreter is shutting down")
    # Kept until `close`: `weakref.finalize` may do nothing any more for what is collected meanwhile.
    channels = _runtime.runtime().channels
    _fail_reads(error)
    _guard.fail_reads()
    gc.collect()
    if not _wait_while(partial(_is_held, error), PATIENCE_S):
        _guard.cancel_reads()
        if not _wait_while(partial(_is_held, error), PATIENCE_S):
            _skip_exit_handlers()
    if _guard.has_followed:
        # The thread that let go of the last handle may still be on its way out of Python.
        threading.Event().wait(_QUIET_S)
        _wait_while(has_visitors, LEAVE_S)
    _wait_while(_runtime.runtime().is_reading, DRAIN_S)
    interrupts.disarm()
    _runtime.runtime().close(error)
    del channels


def _is_held(error: BaseException) -> bool:
    """Whether Arrow holds a handle, and not only by the traceback of what was raised on its threads.

    A traceback refers to the frames that were left, and those to handles. Whoever keeps it (Arrow does so
    beside the error, whose own may be another) has no use for their variables any more.
    """
    if not _guard.is_held():
        return False
    _fail_reads(error)  # once more: one may have been past the check already
    for trace in filter(_is_traceback, gc.get_objects()):
        if _guard.is_in(trace.tb_frame):
            traceback.clear_frames(trace)
    return _guard.is_held()


def _is_traceback(thing: object) -> bool:
    return type(thing) is TracebackType


def _fail_reads(error: BaseException) -> None:
    """End what is not over: nobody will take its result, but Arrow's threads wait for it."""
    for engine in _runtime.runtime().engines:
        with engine.lock, engine as hub:
            hub.close(error)


def has_visitors() -> bool:
    """Whether a thread that Python did not start is inside of it: leaving too late it aborts the process.

    Such a thread has a thread state for as long as it is inside (``PyGILState_Ensure``).
    """
    try:
        api = ctypes.pythonapi
        head, following = api.PyInterpreterState_ThreadHead, api.PyThreadState_Next
        interpreter = api.PyInterpreterState_Get
    except AttributeError:  # no CPython
        return False
    interpreter.restype = head.restype = following.restype = ctypes.c_void_p
    head.argtypes = following.argtypes = (ctypes.c_void_p,)
    states, state = 0, head(interpreter())
    while state:
        states, state = states + 1, following(state)
    return states > 1 + _thread._count()  # noqa: SLF001


def _wait_while(condition: Callable[[], bool], most_s: float) -> bool:
    """Wait until `condition` is no more; False where that took too long."""
    deadline = monotonic() + most_s
    tick = threading.Event()
    while condition():
        if monotonic() >= deadline:
            return False
        tick.wait(_QUIET_S)
    return True


def _skip_exit_handlers() -> None:
    """Have the process end as soon as the interpreter is gone, before Arrow waits for its threads.

    ``on_exit(3)`` of glibc calls back with the exit status, the newest registration first; ``_exit(2)``
    takes just that.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.fflush(None)
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)  # noqa: SLF001 - its name in C


@after_fork_in_child
def _forget() -> None:
    """In a forked child: the parent's handles are not its own to wait for."""
    global _guard  # noqa: PLW0603
    _guard = _Guard()


atexit.register(_at_exit)
