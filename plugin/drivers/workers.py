"""A small pool of daemon threads, for what blocks.

Why not `concurrent.futures`: its threads are joined at interpreter exit, so a read stuck in storage would
hold the process; and they live as long as the pool. Ours are daemons, started on demand and gone after
`IDLE_S` without work. Work is a callable that handles its own errors.

Why not `queue.SimpleQueue`: its getters wait for one lock, one behind the other, each until the one before it
has had the GIL. Beside two busy Python threads the twentieth thread began 231 ms after it was wanted; where
each sleeps on a lock of its own, after 33 ms. So work lies in a deque, and who puts some there wakes one.
The deque, the list and the set are changed by single calls, each of which the GIL makes atomic.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from functools import partial
from operator import is_not, methodcaller
from typing import TYPE_CHECKING, Any

from headrace.drivers.starting import Daemon, call_unbroken, start_thread
from headrace.drivers.waiter import Waiter
from headrace.threads import call_if_free, forget_with

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable

IDLE_S = 1.0
"""Seconds a thread waits for more work before it ends."""

_log = logging.getLogger("headrace")


class Workers:
    """Threads that take work in order of arrival.

    Parameters
    ----------
    most
        Threads at a time.
    name
        Prefix of the threads' names.
    idle_s
        Seconds a thread waits for more work before it ends.
    """

    def __init__(self, most: int, name: str, idle_s: float = IDLE_S) -> None:
        self._most = most
        self._name = name
        self._idle_s = idle_s
        self._work: deque[Callable[[], None]] = deque()
        self._lock = threading.RLock()  # a signal handler may read, too
        self._threads: list[threading.Thread] = []
        self._idle: list[Waiter] = []
        self._performing: set[threading.Thread] = set()
        self._started = 0

    def put(self, work: Callable[[], None], *, starts: bool = True) -> None:
        """Have `work` called on one of the threads; never blocks.

        Without `starts` no thread is started for it: the caller does that soon, with `start_needed`.
        """
        self._work.append(work)
        if not self._wake_one() and starts:
            self._start_missing()

    def _wake_one(self) -> bool:
        """Wake the thread that has been idle shortest; says whether there was one."""
        while self._idle:
            try:
                # Woken before it is no longer idle: an interrupt in between wakes it twice, and loses none.
                one = self._idle[-1]
                one.wake()
                self._idle.remove(one)
            except (IndexError, ValueError):  # it got up by itself, and may rest again, or another woke it
                continue
            return True
        return False

    def start_needed(self) -> None:
        """Start a thread for each work that no idle one will take.

        A start takes a tenth of a millisecond, and turns of the GIL where a signal handler may raise: not to
        be done while others wait for a lock.
        """
        if not self._work:
            return
        dead = sum(not thread.is_alive() for thread in list(self._threads))
        for _ in range(len(self._work) - self._awake() + dead):
            if not self._wake_one():  # whoever put it there may have been interrupted before he did that
                call_unbroken(self._start_again)  # no handler, which may read, interrupts it with the lock
                return

    def _start_again(self) -> None:
        call_if_free(self._lock, self._forget_dead)
        self._start_missing()

    def _start_missing(self) -> None:
        """Start what is missing, unless somebody has the lock: he sees to it when he lets go of it.

        Nobody waits for him: a signal handler may have interrupted him, and be waiting for this thread.
        """
        while self._is_one_missing() and call_if_free(self._lock, self._start_one):
            pass

    def _is_one_missing(self) -> bool:
        return self._awake() < len(self._work) != 0

    def _awake(self) -> int:
        """Count the threads that are about to take work."""
        return len(self._threads) - len(self._idle) - len(self._performing)

    def _start_one(self) -> bool:
        """Start a thread, if there may be one more; with the lock. Returns whether it did."""
        self._forget_dead()
        if len(self._threads) >= self._most or not self._is_one_missing():
            return False
        self._started += 1
        thread = Daemon(self._serve, f"{self._name}-{self._started}")
        self._threads.append(thread)
        try:
            start_thread(thread)
        except RuntimeError as error:
            self._forget_dead()
            if not (self._threads and str(error).startswith("can't")):
                raise  # a signal handler's, or nobody will do the work
            return False
        return True

    def _forget_dead(self) -> None:
        """Go by what is alive, not by a count: an exception may cut a thread's start, or end it."""
        self._threads = list(filter(methodcaller("is_alive"), self._threads))

    def _serve(self) -> None:
        me = threading.current_thread()
        while self._next(me):
            pass
        self._start_missing()  # of who came while this one had the lock to leave

    def _next(self, me: threading.Thread) -> bool:
        """Do some work, or wait for it; False: this thread ends."""
        # Counted before it takes work: rather a thread too many than work that nobody does.
        self._performing.add(me)
        try:
            work = self._work.popleft()
        except IndexError:
            self._performing.discard(me)
            return self._rest()
        try:
            work()
        except Exception:  # noqa: BLE001 - told; the thread serves others too
            _log.exception("an error escaped from a read")
        finally:
            self._performing.discard(me)
        return True

    def _rest(self) -> bool:
        """Sleep until woken; False: nothing came for so long that this thread ends."""
        # Of this rest alone: who found the one before, and is about to strike it off, would strike this off,
        # and count on a thread that sleeps.
        mine = Waiter()
        self._idle.append(mine)
        # Who put work there before that line saw nobody to wake.
        is_wanted = bool(self._work) or mine.wait(self._idle_s)
        with contextlib.suppress(ValueError):
            self._idle.remove(mine)
        return is_wanted or not self._leave()

    def _leave(self) -> bool:
        """End this thread, unless work came while it made up its mind."""
        with self._lock:
            if self._work:
                return False
            # It may have been taken for dead while an interrupt held up its start.
            self._threads = list(filter(partial(is_not, threading.current_thread()), self._threads))
            return True


class Pools:
    """Workers for each of some things, which go with it: where those of one hang, the others have theirs.

    Parameters
    ----------
    most, name
        Of each, as `Workers` takes them.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._pools: dict[int, tuple[Workers, weakref.ref[Any]]] = {}

    def of(self, thing: object) -> Workers:
        """Return its workers; of those who make them at once the first one's are they."""
        found = self._pools.get(id(thing)) or self._pools.setdefault(
            id(thing), (Workers(self._most, self._name), forget_with(thing, self._pools))
        )
        return found[0]
