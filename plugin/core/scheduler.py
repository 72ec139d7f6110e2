"""The scheduler of one device or store: which of its requests' ops go next.

One call of `admit_one`:

1. take the head of the queue (demand before speculation, `core.queue` decides the order, I4);
2. reserve its whole result unless it has its reservation already (I2, `core.admission`);
3. grant the slice of its ops for which there is room (I1, `core.room`): one `cumsum` made at submission and
   one `bisect_right` here, so the cost is per slice and not per op;
4. the hub calls again: a more urgent request that arrived meanwhile goes next.

A page-cache hit is refunded: its completion frees the window and tells the controller nothing.

Threading: all methods under the hub's lock, except `has_room` without a priority. Time is an argument. It
performs nothing: drivers find grants in ``request.inbox`` and report back with `complete`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from headrace.core.admission import SPECULATIVE_SHARE, can_reserve, pick_passing
from headrace.core.queue import PriorityQueue
from headrace.core.ranking import Ranking
from headrace.core.request import LEGAL, Grant, Request, State
from headrace.core.room import Limits, Room
from headrace.errors import IllegalTransitionError
from headrace.types import Priority

if TYPE_CHECKING:
    from collections.abc import Hashable

    from headrace.core.hedge import Hedge
    from headrace.core.hub import Hub
    from headrace.core.retry import Retries


class Scheduler:
    """Admission to one device.

    Parameters
    ----------
    hub
        The process-wide owner of budget, limits and wake-ups.
    device
        What it schedules, for statistics and traces.
    limits
        What the device bears.
    retries
        Decides on ops that failed.
    """

    def __init__(
        self,
        hub: Hub,
        device: Hashable,
        limits: Limits,
        retries: Retries,
    ) -> None:
        self.hub = hub
        self.device = device
        self.room = Room(limits)
        self.retries = retries
        self.hedge: Hedge | None = None
        self.requests: dict[int, Request] = {}
        self.queue: PriorityQueue[Request] = PriorityQueue()
        self.speculative: PriorityQueue[Request] = PriorityQueue()
        self.started: dict[int, Request] = {}
        self.awaited: Ranking[int] = Ranking()
        # Requests that will want more when their round is over, and whether the window cut it.
        self.in_rounds: dict[int, tuple[Request, bool]] = {}
        self.waiting = 0
        self.last_turn = 0
        self.last_used = 0
        """The hub's number of its last request, or of when it was made."""

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is asked of its device, read or written."""
        return not self.requests and not self.room.uploads.ops

    def submit(self, request: Request, now: float) -> None:
        """Queue a request; one without ops is complete at once."""
        self.hub.register(self, request)
        self.requests[request.seq] = request
        self.hub.traced("queued", request, 0, request.n_ops, now)
        if request.n_ops == 0:
            self._end(request, State.COMPLETE)
        elif request.is_nested:
            self._grant_nested(request, now)
        elif self._is_alone(request):
            self.room.note_urgent(request, now)
            self._start_all(request, now)
        else:
            self._list_awaited(request)
            self.room.note_urgent(request, now)  # it may wait for all that is in flight, and start alone
            self._queue_of(request).push(request, now)
            self._count_waiting(1)

    def _count_waiting(self, change: int) -> None:
        self.waiting += change
        if self.waiting:
            self.hub.backlogged[self.device] = self
        else:
            self.hub.backlogged.pop(self.device, None)

    def _queue_of(self, request: Request) -> PriorityQueue[Request]:
        return self.speculative if request.is_speculative else self.queue

    # -- admission

    def admit_one(self, now: float) -> bool:
        """Grant the next slice, if it may start now."""
        head = self._next()
        request = head
        if head is not None and not self._may_reserve(head):
            self.hub.budget.is_awaited = True
            first = self.requests.get(self.awaited.first() or 0)
            request = pick_passing(
                head, self.started.values(), first, self.hub.budget, self.room.in_flight_ops
            )
        if request is None:
            self.room.is_held_back = self.in_rounds != {} and any(cut for _, cut in self.in_rounds.values())
            return False
        if self.in_rounds and self._is_outranked(request.priority.base):
            return False
        share = SPECULATIVE_SHARE if request.is_speculative else 1
        count = self.room.grantable(request, self.hub.room_ops(share))
        if count <= 0:
            return False
        self._grant(request, count, now, is_head=request is head)
        return True

    def head_priority(self) -> tuple[bool, float]:
        """How urgent the next request is, its age included, for schedulers that share a limit."""
        if not self.waiting:
            return True, math.inf
        key = self.queue.head_key()
        return (False, key) if key < math.inf else (True, self.speculative.head_key())

    def has_room(self, nbytes: int, ops: int = 1, base: int | None = None, now: float = 0.0) -> bool:
        """Whether ops that are performed at once may start: nobody waits, and they fit.

        With a base priority they may also pass those who wait and are less urgent. Without one it only looks
        at numbers, and may be asked without the lock: what is copied then is not charged to the window.
        """
        if self.in_rounds and (base is None or self._is_outranked(base + 1)):
            return False
        return (
            (not self.waiting or (base is not None and self.queue.is_ahead(base, now)))
            and self.room.fits(ops, nbytes)
            and self.hub.room_ops() >= ops
            and self.hub.budget.fits(nbytes)
        )

    def start_now(self, request: Request, now: float) -> Grant:
        """Admit all ops of a request past the queue; the caller asked `has_room` in this section."""
        self.room.note_urgent(request, now)
        self.hub.register(self, request)
        self.requests[request.seq] = request
        self._start_all(request, now)
        return request.inbox.pop(0)

    def _is_alone(self, request: Request) -> bool:
        """Whether it is one op with nothing before it or beside it, which needs no queue to be the next."""
        room = self.room
        is_idle = not (self.hub.backlogged or room.in_flight_ops or room.uploads.ops)
        is_one = request.n_ops == 1 and not request.is_speculative
        return is_idle and is_one and self.has_room(request.result_bytes)

    def _start_all(self, request: Request, now: float) -> None:
        """Admit all its ops: there is room."""
        self.room.is_held_back = False
        self.hub.budget.hold(request.seq, request.result_bytes, request.priority, request.group)
        grant = self._hand_out(request, request.n_ops, now)
        self.hub.wake(request)
        self._count(request, *grant.in_flight())

    def may_copy(self, nbytes: int) -> bool:
        """Whether what the page cache holds may be copied now: the device has nothing to do for it."""
        return not self.hub.process_io_limit and self.hub.budget.fits(nbytes)

    def count_hit(self, nbytes: int, ops: int = 1) -> None:
        """Count ops that were performed and delivered at once, as `has_room` or `may_copy` said."""
        self.hub.counters.quick_ops += ops
        self.hub.counters.quick_bytes += nbytes

    def _next(self) -> Request | None:
        if not self.waiting:
            return None
        return self.queue.head() or self.speculative.head()

    def _may_reserve(self, request: Request) -> bool:
        budget = self.hub.budget
        if budget.is_holding(request.seq):
            return True
        if budget.fits(request.result_bytes):
            return not request.is_speculative or not self.hub.is_short_of_budget()
        passes = can_reserve(request, budget, self.room.in_flight_ops)
        helps = self.hub.is_behind_speculation(request) or (passes and request.is_awaited)
        while helps and self.hub.shed_speculation():
            if budget.fits(request.result_bytes):
                return True
        return passes

    def _is_outranked(self, base: int) -> bool:
        """Whether a more urgent request is in a round: what comes free meanwhile is for its next one (I4)."""
        return any(other.priority.base < base for other, _ in self.in_rounds.values())

    def _grant(self, request: Request, count: int, now: float, *, is_head: bool) -> None:
        self.room.note_urgent(request, now)
        self._reserve(request)
        grant = self._hand_out(request, count, now)
        self.hub.wake(request)
        if is_head:
            units = grant.bytes_left
            if self.room.turn_bytes:
                units = max(units, grant.ops_left * self.room.turn_bytes)
            self._queue_of(request).served(request, units, now)
        self._count(request, *grant.in_flight())
        if request.next_op < request.n_ops and not request.step_bytes:
            self.started[request.seq] = request
            return
        self._leave_queue(request)
        if request.next_op < request.n_ops:
            self.in_rounds[request.seq] = request, self.room.is_held_back

    def _reserve(self, request: Request) -> None:
        if self.hub.budget.is_holding(request.seq):
            return
        if request.is_speculative:
            self.hub.speculators[request.seq] = (self, request)
        if len(self.hub.schedulers) > 1:
            # On others siblings may pass now, and what was started behind a head that fitted until now.
            self.hub.changed()
        self.hub.budget.hold(
            request.seq,
            request.result_bytes,
            request.priority,
            request.group,
            is_speculative=request.is_speculative,
        )

    def note_awaited(self, request: Request) -> None:
        """Note that somebody waits for a request from now on: it may pass the budget (I2)."""
        request.is_awaited = True
        self._list_awaited(request)
        self.hub.changed()

    def _list_awaited(self, request: Request) -> None:
        """Rank a request that somebody waits for among those: demand, on permits of its own."""
        is_ranked = request.seq in self.requests and not (request.is_speculative or request.is_nested)
        if is_ranked and request.is_awaited and request.is_waiting:
            self.awaited.rank(request.seq, (request.priority, request.seq))

    def _leave_queue(self, request: Request) -> None:
        """Note that nothing of it may be admitted now."""
        self._count_waiting(-1)
        if self.started:
            self.started.pop(request.seq, None)
        if request.is_awaited:
            self.awaited.forget(request.seq)

    def _hand_out(self, request: Request, count: int, now: float) -> Grant:
        """Put a grant of the next `count` ops into the inbox."""
        lo = request.next_op
        arrived = 0 if self.room.link is None else self.room.link.arrived_bytes
        nbytes = request.bytes_between(lo, lo + count)
        calls = self.room.calls
        at_once = 0 if calls is None or request.step_bytes else calls.at_once
        grant = Grant(request, lo, lo + count, nbytes, now, arrived_before=arrived, at_once=at_once)
        # The grant is the primary fact: from here on `recover` can derive the rest.
        request.grants.append(grant)
        request.inbox.append(grant)
        request.next_op = grant.hi
        request.state = State.RUNNING
        self.hub.counters.ops_admitted += count
        self.hub.counters.bytes_admitted += grant.bytes_left
        self.hub.traced("admitted", request, lo, grant.hi, now)
        return grant

    def _grant_nested(self, request: Request, now: float) -> None:
        """Grant all of it, uncounted: the op it runs inside of was admitted and holds the permit.

        Deadlock prevented: with a limit of 1 the parent would wait for a permit that it holds itself.
        """
        while request.next_op < request.n_ops:
            self._hand_out(request, self.room.slice_ops(request), now)
        self.hub.wake(request)  # once: a driver has all of it performed then
        self.hub.counters.requests_nested += 1

    def _count(self, request: Request, ops: int, nbytes: int, calls: int = 0) -> None:
        if request.is_nested:
            return
        self.room.count(request.priority.base, ops, nbytes, calls)
        self.hub.in_flight_ops += ops

    # -- completion

    def complete(
        self,
        grant: Grant,
        ops: int,
        nbytes: int,
        now: float,
        *,
        is_hit: bool = False,
        is_failed: bool = False,
    ) -> None:
        """Note that `ops` ops of `grant`, of `nbytes` bytes together, were performed or failed.

        What the page cache answered, and what a store failed to, tells the window nothing.

        Raises
        ------
        IllegalTransitionError
            More ops than the grant has left. Nothing is changed.
        """
        if not 0 <= ops <= grant.ops_left or not 0 <= nbytes <= grant.bytes_left:
            msg = f"{ops} ops completed of {grant!r}, which has {grant.ops_left} left"
            raise IllegalTransitionError(msg)
        elapsed_s = now - grant.admitted_s
        if not (is_hit or is_failed or grant.request.is_nested):
            self.room.observe(ops, nbytes, elapsed_s, now)
        if self.room.link is not None and not is_failed:
            self.room.link.note_arrival(nbytes, grant.arrived_before, elapsed_s)
        self._give_back(grant, ops, nbytes)
        request = grant.request
        request.ops_done += ops
        counters = self.hub.counters
        counters.ops_completed += ops
        counters.bytes_completed += nbytes
        counters.ops_hit += ops if is_hit else 0
        if grant.ops_left == 0:
            self.hub.traced("completed", request, grant.lo, grant.hi, now)
            if request.step_bytes and request.is_waiting:
                self._queue_again(request, now)
        self._after(request)

    def _queue_again(self, request: Request, now: float) -> None:
        """Let a request whose round is over wait for the next."""
        self.in_rounds.pop(request.seq, None)
        self._queue_of(request).push(request, now)
        self.started[request.seq] = request
        self._list_awaited(request)
        self._count_waiting(1)

    def forfeit(self, grant: Grant) -> None:
        """Take back a grant that its driver will not perform; only an ended request's.

        Raises
        ------
        IllegalTransitionError
            Somebody still waits for the request. Nothing is changed.
        """
        if not grant.request.is_over:
            msg = f"{grant!r} cannot be forfeited: its request is {grant.request.state.name.lower()}"
            raise IllegalTransitionError(msg)
        self._give_back(grant, grant.ops_left, grant.bytes_left)
        self._after(grant.request)

    def forfeit_all(self, request: Request) -> None:
        """Take back all that was granted to an ended request."""
        for grant in list(request.grants):
            self.forfeit(grant)

    def _give_back(self, grant: Grant, ops: int, nbytes: int) -> None:
        if ops == grant.ops_left:
            # Whatever was charged and not yet given back: a rest would narrow the window for ever.
            nbytes = grant.bytes_left
        ops_before, bytes_before, calls_before = grant.in_flight()
        grant.ops_left -= ops
        grant.bytes_left -= nbytes
        ops_after, bytes_after, calls_after = grant.in_flight() if grant.ops_left else (0, 0, 0)
        change = ops_after - ops_before, bytes_after - bytes_before, calls_after - calls_before
        self._count(grant.request, *change)
        if grant.ops_left == 0 and grant in grant.request.grants:
            grant.request.grants.remove(grant)
        self.hub.changed()

    def _after(self, request: Request) -> None:
        if request.state is State.RUNNING:
            if request.ops_done == request.n_ops:
                self._end(request, State.COMPLETE)
        elif request.is_over:
            self._drain(request)

    def note_length(self, request: Request, nbytes: int) -> None:
        """Note how long the result of a complete request is: what it holds beyond that is others' (I2)."""
        if request.state is State.COMPLETE and nbytes < request.result_bytes:
            request.result_bytes = nbytes
            self.hub.budget.shrink(request.seq, nbytes)
            self.hub.changed()

    # -- the ways a request ends

    def consume(self, request: Request, now: float) -> None:
        """Release the reservation: the result was handed to the caller."""
        if request.state is State.COMPLETE:
            self.hub.traced("consumed", request, 0, request.n_ops, now)
            self.hub.let_sleep(request)  # its owner was woken when it was complete
            self._end(request, State.RETIRED)

    def fail(self, request: Request, error: BaseException) -> None:
        """End it with its first error; what is in flight drains (I9), the rest is never admitted."""
        if not request.is_over:
            request.error = error
            self._end(request, State.FAILED)

    def cancel(self, request: Request, error: BaseException | None = None) -> None:
        """End it because nobody wants it: cancelled, dropped, collected or closed (I3)."""
        if request.is_wanted:
            request.error = request.error or error
            self._end(request, State.CANCELLED)

    def _end(self, request: Request, state: State) -> None:
        if state not in LEGAL[request.state]:
            msg = f"{request!r} cannot become {state.name.lower()}"
            raise IllegalTransitionError(msg)
        # One that an interrupt kept from being submitted was never counted.
        was_waiting = request.is_waiting and request.seq in self.requests
        request.state = state
        if self.in_rounds.pop(request.seq, None) is not None:
            self.hub.changed()  # it held back those that are less urgent
        if was_waiting:
            self._leave_queue(request)
            self._queue_of(request).sweep(self.waiting)
            self.hub.changed()  # it may have been the head that held the others back
        self.hub.wake(request)
        self._drain(request)

    def _drain(self, request: Request) -> None:
        """Retire an ended request once nothing of it is in flight any more (I3, I9)."""
        if request.grants or request.is_wanted:
            return
        if request.state is not State.RETIRED:
            self.hub.counters.bytes_abandoned += request.bytes_between(0, request.next_op)
            request.state = State.RETIRED
            self.hub.wake(request)  # a last time: the hub unties it from its owner
        self.hub.budget.release(request.seq)
        if request.is_speculative:
            self.hub.speculators.pop(request.seq, None)
        self.requests.pop(request.seq, None)
        self.hub.changed()

    def raise_priority(self, request: Request, priority: tuple[int, int], now: float) -> None:
        """Make a request more urgent; a speculative one becomes demand (I7: joined), whose result is kept."""
        if request.state > State.COMPLETE:
            return
        was_speculative, request.is_speculative = request.is_speculative, False
        self.hub.speculators.pop(request.seq, None)
        moved = Priority(*priority) < request.priority
        if moved:
            self._move(request, Priority(*priority))
        if moved or was_speculative:
            self.hub.budget.reprioritise(request.seq, request.priority)
        if was_speculative:
            request.queued_s = None  # what nobody waited for has no age
        if request.is_waiting and (moved or was_speculative):
            self._list_awaited(request)
            self.queue.push(request, now)
            self.queue.sweep(self.waiting)
            self.speculative.sweep(self.waiting)
            self.hub.changed()

    def _move(self, request: Request, priority: Priority) -> None:
        in_flight_ops = sum(grant.in_flight()[0] for grant in request.grants)
        self._count(request, -in_flight_ops, 0)
        request.priority = priority
        self._count(request, in_flight_ops, 0)

    # -- derived numbers

    def recount(self, now: float) -> None:
        """Derive everything from requests and grants again, after an exception at any line."""
        self.room.clear()
        self._count_waiting(-self.waiting)
        self.started.clear()
        self.awaited.clear()
        self.in_rounds.clear()
        for request in list(self.requests.values()):
            request.mend()
            self._recount(request, now)
        for queue, is_speculative in ((self.queue, False), (self.speculative, True)):
            rows = [r for r in self.requests.values() if r.is_speculative is is_speculative]
            queue.rebuild(rows, now)

    def _recount(self, request: Request, now: float) -> None:
        for grant in request.grants:
            self._count(request, *grant.in_flight())
        if request.state is State.RUNNING and request.ops_done == request.n_ops:
            request.state = State.COMPLETE
        if request.is_waiting and request.is_nested:
            self._grant_nested(request, now)
        self._count_waiting(int(request.is_waiting))
        self._list_awaited(request)
        if request.step_bytes and request.grants and request.next_op < request.n_ops and not request.is_over:
            self.in_rounds[request.seq] = request, True
        if request.is_waiting and self.hub.budget.is_holding(request.seq):
            self.started[request.seq] = request
        if request.is_speculative and self.hub.budget.is_holding(request.seq):
            self.hub.speculators[request.seq] = (self, request)
        self._drain(request)

    def validate(self) -> None:
        """Raise AssertionError where a derived number disagrees with the facts."""
        flying = [g.in_flight() for r in self.requests.values() if not r.is_nested for g in r.grants]
        ops, nbytes, calls = (sum(column) for column in zip(*flying, strict=True)) if flying else (0, 0, 0)
        facts = (ops, nbytes, calls, sum(r.is_waiting for r in self.requests.values()))
        room = self.room
        found = (room.in_flight_ops, room.in_flight_bytes, room.in_flight_calls, self.waiting)
        if found != facts or (self.device in self.hub.backlogged) is not bool(self.waiting):
            msg = f"{self.device}: counted {found}, facts say {facts}"
            raise AssertionError(msg)
        self.room.validate(self.device)
