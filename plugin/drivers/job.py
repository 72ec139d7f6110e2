"""A job: one request, its ops, the backend that performs them, and the thread or loop that waits.

The driver layer's common currency. The core is told of an op's end by nothing but `complete` and its like.
"""

from __future__ import annotations

import random
import threading
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.core.request import State
from headrace.drivers.permit import Permit
from headrace.drivers.waiter import Waiter
from headrace.errors import ShortReadError
from headrace.types import NOT_YET

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from headrace.backends.abc import Backend
    from headrace.core.request import Grant, Request
    from headrace.core.retry import Attempts
    from headrace.core.scheduler import Scheduler
    from headrace.drivers.engine import Engine
    from headrace.types import Int64Array, Ops

T = TypeVar("T")


class Job:
    """One request on its way.

    Attributes
    ----------
    fails_fast
        Whether the first failing op ends the request (I10); otherwise each range has its own result.
    callbacks
        Called when the request is over.
    before
        Called by whoever comes for the first grant: the request has its reservation then (I2). Of several
        threads that come at once each calls it, and none goes on before it is done.
    meanwhile
        Called by its consumer, where that drives, while ops are under way: with how many first ones are done.
    hands
        Held by the thread that starts grants, on inline backends: its consumer or a passer-by. On
        threaded ones by the worker that performs them, where they are to be performed in order.
    fault
        What the last attempt that failed said, secrets and all: in words, as an error would keep its frames.
    lost
        Keeps what tells the engine that nobody holds the read any more, of one that was submitted.
    taken
        Called with this in the section in which the request is complete: its consumer waits for it, has the
        memory already, and need not come back to say that he has taken it.
    under_way
        Grants whose rows were started and are to be finished, on inline backends.
    is_left
        Its consumer left: nobody may start anything for it any more.
    tasks
        The asyncio tasks that perform it, on async backends; made with the first.
    context
        The context variables of who asked for it. Drivers that have its ops performed elsewhere note them,
        unless a native engine performs those: of a bulk job.
    """

    __slots__ = (
        "__weakref__",
        "backend",
        "before",
        "callbacks",
        "context",
        "engine",
        "fails_fast",
        "fault",
        "hands",
        "is_left",
        "lost",
        "meanwhile",
        "ops",
        "request",
        "scheduler",
        "taken",
        "tasks",
        "under_way",
        "waiter",
    )

    context: Context

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        request: Request,
        ops: Ops,
        backend: Backend,
        *,
        fails_fast: bool = False,
    ) -> None:
        self.engine = engine
        self.scheduler = scheduler
        self.request = request
        self.ops = ops
        self.backend = backend
        self.fails_fast = fails_fast
        self.waiter = Waiter()
        self.tasks: set[Any] | None = None
        self.before: Callable[[], object] | None = None
        self.meanwhile: Callable[[int], object] | None = None
        self.taken: Callable[[Job], object] | None = None
        self.lost: object = None
        self.fault = ""
        self.callbacks: list[Callable[[], object]] = []
        self.hands = threading.RLock()
        self.under_way: list[tuple[Grant, Int64Array]] = []  # as `Request.inbox`
        self.is_left = False

    def notify(self) -> None:
        """Tell whoever waits that the request is over; under the hub's lock, never blocks."""
        self.waiter.wake()
        for callback in self.callbacks:
            callback()

    def submit(self) -> None:
        """Hand the request to the scheduler."""
        with self.engine.lock, self.engine:
            self.scheduler.submit(self.request, perf_counter())

    def take(self) -> Grant | None:
        """Take the next grant, if there is one."""
        return self._next(lambda inbox: inbox.pop(0))

    def take_into(self, held: list[Grant]) -> Grant | None:
        """Move the next grant, if there is one, to the end of `held`.

        An interrupt at any line finds it in one of the two: that is one call of C's.
        """

        def move(inbox: list[Grant]) -> Grant:
            held.extend(map(inbox.pop, (0,)))
            return held[-1]

        return self._next(move)

    def first(self) -> Grant | None:
        """Return the next grant, if there is one, and leave it in the inbox, which is the caller's."""
        return self._next(lambda inbox: inbox[0])

    def _next(self, of: Callable[[list[Grant]], Grant]) -> Grant | None:
        before = self.before
        if before is not None and self.request.inbox:
            before()
            self.before = None  # not earlier: another thread that comes meanwhile would go on without it
        try:
            grant = of(self.request.inbox)
        except IndexError:
            return None
        trace = self.engine.hub.trace
        if trace is not None:
            trace("submitted", self.request, grant.lo, grant.hi, perf_counter())
        return grant

    def complete(self, grant: Grant, ops: int, nbytes: int, *, is_hit: bool = False) -> None:
        """Tell the core that ops of a grant were performed; fail the request if one says so."""
        self.complete_all([(grant, ops, nbytes)], is_hit=is_hit)

    def complete_tried(self, grant: Grant, rows: Int64Array, nbytes: int) -> None:
        """Tell it that ops of a grant were performed by a store that is asked again on failure.

        Errors of other rows say nothing: another attempt at them may be under way.
        """
        errors = self.ops.errors
        failed = [row for row in rows.tolist() if row in errors] if errors else []
        self._complete([(grant, len(rows), nbytes)], failed, succeeded=len(rows) - len(failed))

    def complete_all(self, performed: list[tuple[Grant, int, int]], *, is_hit: bool = False) -> None:
        """Tell it of several grants' ops and bytes in one section: what that admits is one grant."""
        self._complete(performed, sorted(self.ops.errors) if self.fails_fast else [], is_hit=is_hit)

    def _complete(
        self,
        performed: list[tuple[Grant, int, int]],
        failed: list[int],
        *,
        is_hit: bool = False,
        succeeded: int | None = None,
    ) -> None:
        """Fail the request for the first of the rows `failed`; `succeeded` of a store refill its retries."""
        with self.engine.lock, self.engine:
            scheduler = self.scheduler
            if self.fails_fast and failed and not self.request.is_over:
                scheduler.fail(self.request, self.ops.errors[failed[0]])
            if succeeded:
                scheduler.retries.note_success(succeeded)
            now = perf_counter()
            for grant, ops, nbytes in performed:
                if not grant.ops_left and self.is_left:
                    continue  # forfeited meanwhile: its consumer was interrupted while it left
                scheduler.complete(grant, ops, nbytes, now, is_hit=is_hit, is_failed=succeeded == 0)
            if self.ops.whole:
                scheduler.note_length(self.request, len(self.ops.whole[0]))
            if self.taken is not None and self.request.state == State.COMPLETE:
                self.taken(self)

    def next_delay(self, attempts: Attempts, row: int, error: BaseException) -> float | None:
        """Tell the core that an attempt at op `row` failed; returns the seconds until the next, or None."""
        verdict = self.backend.verdict(error)
        self.fault = _words_of(error)
        attempts.note_kept(row, self.backend.kept_bytes(self.ops, row))
        with self.engine.lock, self.engine:
            scheduler = self.scheduler
            if verdict.is_throttled:
                scheduler.room.note_throttled(perf_counter(), is_late=verdict.is_late)
            return scheduler.retries.next_delay(attempts.in_vain, verdict, random.random())  # noqa: S311

    def ask(self, function: Callable[..., T], *args: Any) -> T:
        """Call what concerns no request, and owes nothing to a section's end."""
        try:
            with self.engine.lock:
                return function(*args)
        finally:
            self.engine.drain_dropped()

    def permit(self, row: int) -> Permit:
        """Make the permit that the code of op `row` runs on."""
        ops = self.ops
        source = ops.sources[ops.file[row]]
        path = getattr(source, "path", source)
        return Permit(self.request.seq, str(path), int(ops.start[row]), int(ops.length[row]))

    def forfeit(self, grant: Grant) -> None:
        """Give back a grant that came when the request had ended."""
        with self.engine.lock, self.engine:
            self.scheduler.forfeit(grant)

    def give_back(self) -> None:
        """End the request, and give back what was granted to it and is not under way."""
        with self.engine.lock, self.engine:
            self.scheduler.cancel(self.request)
            self.scheduler.forfeit_all(self.request)

    def cancel(self, error: BaseException | None = None) -> None:
        """End the request; does nothing when it is over and drained."""
        with self.engine.lock, self.engine:
            self.scheduler.cancel(self.request, error)

    def fail(self, error: BaseException) -> None:
        """End the request with `error`."""
        with self.engine.lock, self.engine:
            self.scheduler.fail(self.request, error)


def check_delivery(backend: Backend, ops: Ops, row: int) -> None:
    """Fail an op that its backend left without an answer."""
    if ops.got[row] == NOT_YET and row not in ops.errors:
        ops.fail(row, ShortReadError(f"backend {type(backend).__name__} left op {row} without an answer"))


def _words_of(error: BaseException) -> str:
    """Return what an error says, or its name alone where it cannot say it."""
    name = type(error).__name__
    try:
        return f"{name}: {error}"
    except Exception:  # noqa: BLE001 - what it raises when it is printed is nobody's
        return name
