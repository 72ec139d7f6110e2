"""Ctrl-C for reads that run on Arrow's threads.

While the main thread is inside Arrow it cannot run Python's signal handler, and Arrow does not return
before its threads' reads have ended. So a watcher is told of SIGINT by the interpreter itself
(`signal.set_wakeup_fd`) and fails the reads that Arrow's threads wait for; Arrow returns with the error,
and the main thread raises KeyboardInterrupt as ever.

* Armed only where Python's own SIGINT handler is in force and nobody else set a wake-up descriptor
  (asyncio does, and resets it: hence `arm` on the main thread by every `open` of Arrow's, and by others'
  and by reads every `ARMED_S` seconds).
* The error that Arrow returns *is* the KeyboardInterrupt, and Python's own would follow it, as soon as the
  main thread is back in Python: in the middle of the program's `except` block. `deliver_once` lets Python's
  handler through, but for an interrupt that has come out of Arrow already.
* What Arrow asks for after it fails too, until the interrupt has come out of it: the error of one file comes
  out after the batches of those before it, for which it may read again much later.
* The watcher lives only while such reads wait: no thread is left behind.
* Reads of Python's own threads are left alone: an interrupt in one waiter never fails another's (I5).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import math
import os
import selectors
import signal
import socket
import threading
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, cast

from headrace.drivers.arrow_calls import (
    caller_of_arrow,
    has_surfaced,
    is_in_call_of,
    is_main_thread_at,
)
from headrace.drivers.waiter import check_process
from headrace.threads import after_fork_in_child, call_locked, is_python_thread, raise_if_of_a_handler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from headrace.drivers.job import Job

T = TypeVar("T")

IDLE_S = 0.5
"""Seconds the watcher stays when no read waits."""

AFTERMATH_S = 0.5
"""Reads that Arrow starts this soon after an interrupt fail, handled or not: its scan is ending."""

ARMED_S = 0.02
"""Seconds for which the watcher is taken to be armed still, where it is not Arrow that opens a file."""

LOCK_LOOK_S = 0.05
"""How often a thread that waits for a lock looks whether an interrupt came, or it was forked."""

_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)
"""What waits for a descriptor: on Unix `select` takes none of 1024 or more."""

ECHO_S = 2.0
"""How long after an interrupt that came through Arrow Python's own may be taken for its echo."""


class _Watcher:
    """The wake-up descriptor, and the reads to fail when SIGINT comes."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.jobs: dict[int, Job | None] = {}
        self.thread: threading.Thread | None = None
        self.pair: tuple[socket.socket, socket.socket] | None = None
        self.is_stopping = False
        self.armed_s = -math.inf
        self.interrupted_s = -ECHO_S
        # When the main thread last handled one, and when the last that was told had not come yet: two times,
        # for a flag could be set by one thread after the other has cleared it.
        self.handled_s = self.came_after_s = -ECHO_S
        self.errors: list[KeyboardInterrupt] = []
        # What was raised in a call that Arrow made on the main thread, and the frame and place it waits in.
        self.inside: tuple[KeyboardInterrupt, FrameType, int] | None = None

    def arm(self) -> None:
        """Ask to be told of signals; from the main thread, where nobody else asked."""
        pair = self.pair
        if pair is None:
            pair = socket.socketpair()
            for end in pair:
                end.setblocking(False)  # noqa: FBT003 - the socket module's own signature
            self.pair = pair  # last: a signal's handler may raise in between
        fd = pair[1].fileno()
        previous = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        if previous not in (-1, fd):
            _give_back(previous)
        else:
            self.armed_s = monotonic()
        self.forget_handled()  # by a handler of the program's own, say, which tells nobody

    def is_armed_lately(self) -> bool:
        """Whether it was armed so short a time ago that nobody is likely to have undone it."""
        return self.pair is not None and monotonic() - self.armed_s < ARMED_S

    def add(self, key: int, job: Job | None) -> None:
        """Watch while `key` waits: for `job`, or for something that it looks up from by itself."""
        is_missed, now_s = False, monotonic()
        with self.lock:
            self.jobs[key] = job
            if not self._is_served():
                # Handled signals were forgotten then. What is left came since, with the main thread in
                # Arrow; but without the handler below nobody can tell.
                is_missed = self._take() and _signal.getsignal(_SIGINT) is _once
                self._start(now_s)
        if is_missed:
            self._interrupt(came_after_s=now_s)

    def _start(self, looked_s: float) -> None:
        self.thread = threading.Thread(
            target=self._watch, args=(looked_s,), name="headrace-interrupts", daemon=True
        )
        try:
            self.thread.start()
        except BaseException:
            self.thread = None
            raise

    def _is_served(self) -> bool:
        """Whether the thread runs, or is about to: an owner that it woke may have ended it."""
        thread = self.thread  # which leaves by itself
        return thread is not None and (thread.ident is None or thread.is_alive())

    def remove(self, key: int) -> None:
        with self.lock:
            self.jobs.pop(key, None)

    def forget_handled(self) -> None:
        """Forget signals that came while nobody watches: the main thread, which calls this, has them.

        Without the lock, for which a signal handler must not wait. Whoever begins to watch meanwhile may miss
        one that comes now: the main thread, which is about to handle it, sees to that (`note_handled`).
        """
        if not self._is_served():
            self._take()

    def note_handled(self) -> None:
        """Say that the main thread handles what came: it is not inside Arrow, or Arrow calls it."""
        self.forget_handled()
        if self.jobs:
            self._tell(_SIGINT)  # those of who began to watch meanwhile, and found nothing any more
        self.handled_s = monotonic()
        if self._is_served():
            self._tell(0)  # it looks once more: what it is told next came after this

    def _tell(self, number: int) -> None:
        """Tell of a signal as the interpreter does."""
        pair = self.pair
        try:
            if pair is not None:
                pair[1].send(bytes([number]))
        except OSError as error:  # it is full, or was given back meanwhile
            raise_if_of_a_handler(error)

    def _take(self) -> bool:
        """Read what was told, and say whether SIGINT was among it."""
        pair, told = self.pair, bytearray()
        try:
            if pair is not None:
                _receive(pair[0], told)
        except OSError as error:  # that was all, or it was given back meanwhile
            raise_if_of_a_handler(error)
        return _SIGINT in told

    def _watch(self, looked_s: float) -> None:
        """Watch; what comes is told after `looked_s`, when it was last known that nothing was."""
        assert self.pair is not None  # noqa: S101
        end = self.pair[0]
        idle_since = monotonic()
        while not self.is_stopping:
            _is_readable(end, IDLE_S)
            since_s, looked_s = looked_s, monotonic()  # before it looks: what it does not find comes later
            self._look(since_s)
            with self.lock:
                if self.jobs:
                    idle_since = monotonic()
                elif monotonic() - idle_since > IDLE_S:
                    self.thread = None
                    self._look(looked_s)  # what was handled meanwhile, and left for this thread
                    return

    def _look(self, since_s: float) -> None:
        """Fail the reads that are waited for, if an interrupt was told of after `since_s`."""
        if self._take() and _is_ours():
            self._interrupt(came_after_s=since_s)

    def stop(self, pair: tuple[socket.socket, socket.socket]) -> None:
        """End the watcher before its descriptor is closed under it."""
        thread, self.is_stopping = self.thread, True
        if thread is not None and thread.is_alive():
            pair[1].send(b"\0")
            thread.join(IDLE_S)

    def _interrupt(self, came_after_s: float) -> None:
        # Those of the last one go before this one is known: from then on Arrow's threads add their own.
        if not self._may_echo():
            self.errors = []
        self.interrupted_s = monotonic()
        self.came_after_s = came_after_s
        with self.lock:
            jobs = list(self.jobs.values())
        for job in filter(None, jobs):
            self.fail(job)

    def fail(self, job: Job) -> None:
        """Fail a read that Arrow waits for."""
        job.fail(self.error())

    def error(self) -> KeyboardInterrupt:
        """Return what one of Arrow's threads shall raise."""
        error = KeyboardInterrupt()
        self.errors.append(error)
        return error

    def is_aftermath(self) -> bool:
        """Whether an interrupt came just now, or has not come out of Arrow yet."""
        if self.is_pending() and _signal.getsignal(_SIGINT) is _once:  # no other tells when it is handled
            return True
        return monotonic() - self.interrupted_s < AFTERMATH_S or self.is_inside()

    def is_pending(self) -> bool:
        """Whether the main thread is inside Arrow, and has not handled the last interrupt."""
        return self.came_after_s > self.handled_s

    def is_inside(self) -> bool:
        """Whether Arrow has what a call of its own on the main thread raised, which waits for it."""
        if self.inside is None:
            return False
        error, caller, place = self.inside
        if not is_main_thread_at(caller, place) or has_surfaced(error):
            self.inside = None
        return self.inside is not None

    def has_delivered(self) -> bool:
        """Whether the last interrupt has come out of Arrow; asked once, before it is handled."""
        errors, self.errors = self.errors, []
        return self._may_echo() and any(map(has_surfaced, errors))

    def _may_echo(self) -> bool:
        return self.is_pending() or monotonic() - self.interrupted_s < ECHO_S

    def note_outside(self) -> None:
        """Say that the main thread is not inside Arrow: what came was handled, and has come out."""
        if self.is_pending():
            self.handled_s = monotonic()
        self.inside = None


def _receive(end: socket.socket, told: bytearray) -> None:
    """Receive all there is, until the socket says that it would block: a loop of its own, without a `try`."""
    while more := end.recv(4096):
        told += more


def _is_readable(end: socket.socket, timeout_s: float) -> bool:
    """Wait until there is something to receive, on a descriptor of any number."""
    with _Selector() as selector:
        selector.register(end, selectors.EVENT_READ)
        return bool(selector.select(timeout_s))


_watcher = _Watcher()


def _give_back(fd: int) -> None:
    """Let another's descriptor be told of signals; one that is closed by now was no longer its."""
    try:
        signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    except (ValueError, OSError) as error:
        raise_if_of_a_handler(error)


@after_fork_in_child
def _forget() -> None:
    """In a forked child: its signals are not the parent's, who reads the other end of the socket."""
    global _watcher, _main_ident  # noqa: PLW0603
    _main_ident = threading.main_thread().ident
    with contextlib.suppress(ValueError):  # only a main thread may say who is told
        _release(_watcher)
    _watcher = _Watcher()


def disarm() -> None:
    """Give the wake-up descriptor back, at exit."""
    if _signal.getsignal(_SIGINT) is _once:
        signal.signal(_SIGINT, signal.default_int_handler)
    _release(_watcher)


def _release(watcher: _Watcher) -> None:
    if watcher.pair is None:
        return
    previous = signal.set_wakeup_fd(-1)  # first: nothing is written to a number that may be another's
    pair, watcher.pair = watcher.pair, None
    if previous not in (-1, pair[1].fileno()):
        _give_back(previous)
    watcher.stop(pair)
    for end in pair:
        end.close()


# The C module: `signal.getsignal` looks its answer up in an enumeration, for 3 µs.
_SIGINT = int(signal.SIGINT)
_SIGNALS = tuple(int(number) for number in signal.valid_signals() if number != signal.SIGINT)
_main_ident = threading.main_thread().ident


def arm(*, for_arrow: bool = False) -> None:
    """Arm the watcher, where that is allowed and right; on entry of reads by path, and of `open`.

    That gives the GIL up twice, and beside a busy thread so many turns. Where it is not Arrow that opens a
    file, an arming of some milliseconds ago will do.
    """
    if threading.get_ident() == _main_ident and is_pythons_own(_signal.getsignal(_SIGINT)):
        if for_arrow or not _watcher.is_armed_lately():
            _watcher.arm()
        if (_watcher.is_pending() or _watcher.inside) and not is_in_call_of("pyarrow.fs"):
            _watcher.note_outside()


def _is_ours() -> bool:
    """Whether an interrupt ends what Arrow waits for: a handler of the program's own may want it to go on."""
    handler = _signal.getsignal(_SIGINT)
    return is_pythons_own(handler) or isinstance(getattr(handler, "__self__", None), Deferred)


def is_pythons_own(handler: object) -> bool:
    """Whether SIGINT has the handler that Python gave it, or the one below, which does the same."""
    return handler is _signal.default_int_handler or handler is _once


def may_raise() -> bool:
    """Whether this is the main thread and a handler of the program's own may interrupt it at any line."""
    if threading.get_ident() != _main_ident:
        return False
    handlers = [_signal.getsignal(number) for number in _SIGNALS]
    return any(map(callable, handlers)) or not is_pythons_own(_signal.getsignal(_SIGINT))


class Deferred:
    """Has Ctrl-C call `note` where it would raise KeyboardInterrupt, and raises that at the end.

    Elsewhere than on the main thread, and beside a handler of the program's own, it does nothing.
    """

    __slots__ = ("_error", "_handler", "_note")

    def __init__(self, note: Callable[[], object]) -> None:
        self._note = note
        self._handler: object = None
        self._error: KeyboardInterrupt | None = None

    def __enter__(self) -> None:
        handler = _signal.getsignal(_SIGINT)
        if threading.get_ident() == _main_ident and is_pythons_own(handler):
            self._handler = handler
            _signal.signal(_SIGINT, self._come)

    def _come(self, _number: int, frame: FrameType | None) -> None:
        self._error, _ = _handled(frame)
        self._note()

    def __exit__(self, *_error: object) -> None:
        if self._handler is not None:
            _signal.signal(_SIGINT, self._handler)
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # or it, and with it all frames that it passes, is kept by this one


def deliver_once() -> None:
    """Have an interrupt that came through Arrow not come a second time; on the main thread."""
    if threading.get_ident() == _main_ident and _signal.getsignal(_SIGINT) is _signal.default_int_handler:
        signal.signal(_SIGINT, _once)
        _watcher.forget_handled()
        _watcher.handled_s = monotonic()  # what came until now was for Python's own


def _once(_number: int, frame: FrameType | None) -> None:
    has_delivered = _watcher.has_delivered()
    error, is_called_by_arrow = _handled(frame)
    # In a call of ours on the main thread it is Arrow that calls, and goes on: what came out of its other
    # threads has not reached the program, and the call may wait for the storage that those were stuck in.
    if is_called_by_arrow or not has_delivered:
        raise error


def _handled(frame: FrameType | None) -> tuple[KeyboardInterrupt, bool]:
    """Note that the main thread handles an interrupt in `frame`.

    Returns what it raises, and whether Arrow may be called further up: its other reads fail until it returns.
    """
    caller = caller_of_arrow(frame)
    error = KeyboardInterrupt()
    if caller is not None:
        _watcher.inside = error, caller, caller.f_lasti
    if _watcher.jobs or is_in_call_of("pyarrow.fs"):
        # The watcher will say so too, but Arrow may have its next call made before that thread runs.
        _watcher.interrupted_s = monotonic()
    _watcher.note_handled()  # last: who begins to watch once it is forgotten finds one of these
    return error, caller is not None


def is_aftermath() -> bool:
    """Whether an interrupt came just now, and what Arrow's threads still ask for fails at once."""
    return _watcher.is_aftermath()


def is_watched() -> bool:
    """Whether SIGINT must reach the reads of this thread: it is Arrow's, and the watcher is armed."""
    return _watcher.pair is not None and not is_python_thread()


@contextlib.contextmanager
def watched(job: Job) -> Iterator[None]:
    """Let SIGINT fail `job` while the block waits for it on one of Arrow's threads."""
    try:
        _watcher.add(id(job), job)
        # Asked once it is watched: an interrupt comes before one or the other.
        if _watcher.is_aftermath():
            _watcher.fail(job)
        yield
    finally:
        _watcher.remove(id(job))


def call_holding(guard: Any, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call `function` while `guard` is held; SIGINT ends the wait for a lock, on Arrow's threads too."""
    is_owned = getattr(guard, "_is_owned", None)
    if is_owned is None or is_owned():
        with guard:
            return function(*args, **kwargs)
    if _watcher.is_aftermath() and is_in_call_of("pyarrow.fs"):
        raise _watcher.error()  # Arrow's scan, which is ending, opens its next file
    return cast("T", call_locked(guard, partial(_wait_for, guard.acquire), function, *args, **kwargs))


def _wait_for(acquire: Callable[..., bool]) -> bool:
    """Acquire a lock, and look up: a signal that comes just before the wait does not end it.

    A signal handler may fork meanwhile: whoever has the lock stays with the parent.
    """
    pid = os.getpid()
    if not is_watched():
        while not acquire(timeout=LOCK_LOOK_S):
            check_process(pid)
        return True
    key = threading.get_ident()
    try:
        _watcher.add(key, None)
        return _wait_watched(acquire, pid)
    finally:
        _watcher.remove(key)


def _wait_watched(acquire: Callable[..., bool], pid: int) -> bool:
    while not acquire(timeout=LOCK_LOOK_S):
        check_process(pid)
        if _watcher.is_aftermath():
            raise _watcher.error()
    return True
