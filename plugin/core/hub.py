"""The hub: all schedulers of a process, and what they share.

It owns the byte budget, the process's I/O limit, the sequence numbers and the wake-ups.

One lock guards the hub and every scheduler in it (the driver layer brings it: the core imports no
threads). A lock for each scheduler and another, taken last, for the shared limits would bring nothing
under the GIL, where a critical section of some microseconds is serial anyway, and would cost an ordering
rule and a second acquisition for each op.

`settle` is what the lock's holder does before it lets go:

1. drain `dropped`, the queue that finalisers append to without a lock (I3);
2. admit in every scheduler, while something was released or reserved (it may concern them all, I1, I5);
3. wake the owners of what was granted or ended, and fail the request of one that cannot be woken.

`recover` restores every derived number from requests and grants: an exception may arrive at any line of
the section (a signal handler that raises), and must cost nobody else a read (I5).

Threading: all methods under the hub's lock, except `drop`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from headrace.core.admission import is_behind_speculation
from headrace.core.budget import ByteBudget
from headrace.core.request import State, stay_asleep
from headrace.core.retry import Retries
from headrace.core.room import Limits
from headrace.core.scheduler import Scheduler

if TYPE_CHECKING:
    from headrace.core.request import Request

SCHEDULERS = 256
"""Beyond so many, those at rest are let go of: over HTTP every host has one."""

TraceSink = Callable[[str, "Request", int, int, float], None]


def _is_the_owners(_error: Exception) -> bool:
    return False


@dataclass(slots=True)
class Counters:
    """What the hub has seen since it began; all only ever grow."""

    requests_submitted: int = 0
    ops_completed: int = 0
    bytes_completed: int = 0
    ops_hit: int = 0
    bytes_delivered: int = 0
    bytes_gap: int = 0
    bytes_shared: int = 0
    bytes_short: int = 0
    bytes_abandoned: int = 0
    bytes_admitted: int = 0
    ops_admitted: int = 0
    requests_consumed: int = 0
    requests_nested: int = 0
    quick_ops: int = 0
    quick_bytes: int = 0


class Hub:
    """The schedulers of one process under one budget.

    Parameters
    ----------
    buffer_bytes
        The byte budget; 0 is no limit.
    process_io_limit
        Ops in flight over all schedulers; 0 is no limit.
    is_of_a_handler
        Whether a signal's handler raised an error that came out of a wake-up.
    """

    def __init__(
        self,
        *,
        buffer_bytes: int = 0,
        process_io_limit: int = 0,
        is_of_a_handler: Callable[[Exception], bool] = _is_the_owners,
    ) -> None:
        self.budget = ByteBudget(buffer_bytes)
        self.is_of_a_handler = is_of_a_handler
        self.process_io_limit = process_io_limit
        self.in_flight_ops = 0
        self.schedulers: dict[Hashable, Scheduler] = {}
        # Those let go of, while anybody has them: a device never has two, of which both would admit (I1).
        self._let_go: WeakValueDictionary[Hashable, Scheduler] = WeakValueDictionary()
        # Those in which anything waits: a process may have read from a thousand stores.
        self.backlogged: dict[Hashable, Scheduler] = {}
        self.counters = Counters()
        self.dropped: deque[tuple[Scheduler, Request, bool]] = deque()
        self.speculators: dict[int, tuple[Scheduler, Request]] = {}
        self.trace: TraceSink | None = None
        self._wakes: deque[Request] = deque()
        self._seq = 0
        self._has_changed = False
        self._turn = 0

    def scheduler(
        self,
        device: Hashable,
        limits: Limits | None = None,
        retries: Retries | None = None,
    ) -> Scheduler:
        """Return the scheduler of `device`, made with these limits the first time, or after many others."""
        found = self.schedulers.get(device) or self._let_go.get(device)
        if found is None:
            found = Scheduler(self, device, limits=limits or Limits(), retries=retries or Retries())
            found.last_used = self._seq
            self._let_one_go()
        self.schedulers[device] = found
        return found

    def _let_one_go(self) -> None:
        """Make room for a new scheduler: the one at rest that was used least lately goes."""
        if len(self.schedulers) < SCHEDULERS:
            return
        at_rest = [scheduler for scheduler in self.schedulers.values() if scheduler.is_at_rest]
        if at_rest:
            gone = min(at_rest, key=attrgetter("last_used"))
            self._let_go[gone.device] = gone
            del self.schedulers[gone.device]

    # -- what schedulers ask and tell

    def register(self, scheduler: Scheduler, request: Request) -> None:
        """Give a new request its sequence number; its scheduler is kept from now on."""
        self._seq += 1
        request.seq = scheduler.last_used = self._seq
        self.schedulers.setdefault(scheduler.device, scheduler)
        self.counters.requests_submitted += 1
        self._has_changed = True

    def room_ops(self, share: int = 1) -> int:
        """Ops which the process's limit still admits, or one part in so many of it."""
        if not self.process_io_limit:
            return 1 << 30
        return self.process_io_limit // share - self.in_flight_ops

    def is_short_of_budget(self) -> bool:
        """Whether demand of any device waits for the budget: speculation takes none then (I7).

        One that nobody waits for, and that would not fit without speculation either, may be in the way for
        as long as its consumer likes.
        """
        heads = [scheduler.queue.head() for scheduler in self.backlogged.values()]
        return any(
            head is not None
            and not self.budget.is_holding(head.seq)
            and not self.budget.fits(head.result_bytes)
            and (head.is_awaited or self.is_behind_speculation(head))
            for head in heads
        )

    def is_behind_speculation(self, request: Request) -> bool:
        """Whether demand that does not fit the budget would, without speculation."""
        if request.is_speculative:
            return False
        speculative_bytes = sum(holder.result_bytes for _, holder in self.speculators.values())
        return is_behind_speculation(request, self.budget, speculative_bytes)

    def changed(self) -> None:
        """Note that something was released: others may be admitted now."""
        self._has_changed = True

    def wake(self, request: Request) -> None:
        """Wake the owner of `request` when the section ends."""
        self._wakes.append(request)

    def let_sleep(self, request: Request) -> None:
        """Have its owner woken no more, unless somebody is still to be woken."""
        if not self._wakes:
            request.on_wake = stay_asleep

    def traced(self, event: str, request: Request, lo: int, hi: int, now: float) -> None:
        """Hand an event to the trace, if one is recorded."""
        if self.trace is not None:
            self.trace(event, request, lo, hi, now)

    # -- the end of a section

    def drop(self, scheduler: Scheduler, request: Request, *, is_left: bool = False) -> None:
        """Abandon a request from a finaliser: takes no lock, may be called anywhere (I3).

        With `is_left` nobody performs what was granted to it, either.
        """
        self.dropped.append((scheduler, request, is_left))

    def settle(self, now: float) -> None:
        """Do what is owed before the lock is released: see the module's text."""
        while self.dropped or self._has_changed or self._wakes:
            if self.dropped:
                scheduler, request, is_left = self.dropped[0]
                scheduler.cancel(request)
                if is_left:
                    scheduler.forfeit_all(request)
                self.dropped.popleft()
            elif self._has_changed:
                self._has_changed = False
                self._admit(now)
            else:
                self._wake_all()

    def _wake_all(self) -> None:
        """Wake every owner, then raise what a signal raised meanwhile.

        Nobody's wake-up may be lost for another's exception (I5). One that raised is tried once more, after
        the others; one that raises again has no owner that could be woken. That is an owner's matter, and
        the section may be anybody's: nothing of it comes out.
        """
        raised: BaseException | None = None
        failed: set[int] = set()
        while self._wakes:
            # Woken before it is removed: an exception here wakes twice, which is harmless.
            request = self._wakes[0]
            try:
                request.on_wake(request)
                if request.state is State.RETIRED:
                    # Nothing can happen to it any more; its owner, and the buffers there, may go.
                    request.on_wake = stay_asleep
            except BaseException as error:  # noqa: BLE001 - raised below, once all are awake
                is_owners = isinstance(error, Exception) and not self.is_of_a_handler(error)
                if not is_owners and (raised is None or not isinstance(error, Exception)):
                    raised = error
                if request.seq not in failed:
                    failed.add(request.seq)
                    self._wakes.append(request)
                elif is_owners:
                    self._give_up(request, error)
            self._wakes.popleft()
        if raised is not None:
            raise raised

    def _give_up(self, request: Request, error: BaseException) -> None:
        """Fail a request whose owner cannot be woken; what nobody has taken of it, nobody will perform.

        Its end is told once more: that may take less than a grant does.
        """
        if request.is_over:
            request.on_wake = stay_asleep
        for scheduler in self.schedulers.values():
            if request.seq in scheduler.requests:
                scheduler.fail(request, error)
                _forfeit_untaken(scheduler, request)

    def _admit(self, now: float) -> None:
        """Admit in every scheduler until none may start anything."""
        busy = list(self.backlogged.values())
        is_scarce = self.process_io_limit or self.budget.is_awaited
        self.budget.is_awaited = False
        if is_scarce and len(busy) > 1:
            self._admit_in_turn(busy, now)
            return
        for scheduler in busy:
            while scheduler.admit_one(now):
                pass

    def _admit_in_turn(self, busy: list[Scheduler], now: float) -> None:
        """Admit where the limit of the process, or the budget, does not do for all.

        The most urgent head goes first and equals take turns: in a fixed order the first busy device would
        keep the only permit, or what comes free of the budget, for ever.
        """
        order = [(s.head_priority(), s.last_turn, number) for number, s in enumerate(busy)]
        heapq.heapify(order)
        while order and self.room_ops() > 0:
            number = order[0][2]
            scheduler = busy[number]
            self._turn += 1
            scheduler.last_turn = self._turn
            if scheduler.admit_one(now):
                heapq.heapreplace(order, (scheduler.head_priority(), self._turn, number))
            else:
                heapq.heappop(order)

    def shed_speculation(self) -> bool:
        """Drop a speculative request that holds a reservation, for the sake of demand (I2, I7)."""
        for scheduler, holder in self.speculators.values():
            if not holder.grants:
                scheduler.cancel(holder)
                return True
        return False

    def recover(self, now: float) -> None:
        """Restore every derived number after an exception inside the section."""
        self.in_flight_ops = 0
        self.speculators.clear()
        for scheduler in self.schedulers.values():
            # First of all: an ended request, whose wake-up may be what was cut off, leaves below.
            self._wakes.extend(scheduler.requests.values())
            scheduler.recount(now)
        requests = (request for one in self.schedulers.values() for request in one.requests.values())
        self.budget.keep_only({request.seq: request.is_speculative for request in requests})
        self.budget.is_awaited = True  # perhaps: the pass that would have told was cut
        self._has_changed = True

    def close(self, error: BaseException) -> None:
        """Fail every request that is not over; what is in flight drains."""
        for scheduler in self.schedulers.values():
            for request in list(scheduler.requests.values()):
                scheduler.fail(request, error)

    def validate(self) -> None:
        """Raise AssertionError where derived numbers disagree with the facts (I1, I3)."""
        self.budget.validate()
        for scheduler in self.schedulers.values():
            scheduler.validate()
        total = sum(scheduler.room.in_flight_ops for scheduler in self.schedulers.values())
        if total != self.in_flight_ops:
            msg = f"hub: {self.in_flight_ops} ops in flight, schedulers say {total}"
            raise AssertionError(msg)
        if self.process_io_limit and total > self.process_io_limit:
            msg = f"hub: {total} ops in flight, process limit {self.process_io_limit}"
            raise AssertionError(msg)


def _forfeit_untaken(scheduler: Scheduler, request: Request) -> None:
    while request.inbox:
        try:
            grant = request.inbox.pop()
        except IndexError:  # its driver came after all
            return
        scheduler.forfeit(grant)
