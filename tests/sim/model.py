"""A naive model of the scheduler core, and a `World` in which the two run side by side.

The model keeps plain lists and recomputes everything from them each time: what waits, what is in
flight, what is reserved, and which requests may be next. It predicts from the design's rules:

* I1: a slice is exactly what the window, the limits of ops and the link leave room for; of a request in
  series the room is that of one op of each, and there is no other slice until that one is complete. Where
  whole slices are wanted a shorter one waits for room, if eight longer ones fit the window.
* What starts past the queue fits every limit; nobody waits, or none who is as urgent.
* I2, I7: a reservation fits or a named exemption holds, after speculation was dropped.
* I4: the base whose key ``base * 5 s + since`` is least; then some scan's first request by
  ``(age, position, sequence)``; and two scans that both wait are served alike, within two slices.
  Past a head that waits for the budget goes the first of those that I2 lets pass.
* I4 between devices: where the process's limit is scarce, or somebody waited for the budget, a device is
  granted nothing while another's head with a lower key could start. (A sibling's right may begin meanwhile.)
* Progress: after each section nothing that could be admitted is left.
* I3, I5: what ended released all it held, and whoever was granted something was woken.

`World` drives a real hub as the engine does: a command, then `settle`, or `recover` and `settle`
after an exception. A *fuse* raises `Interrupt` at the n-th call that leaves the core (a trace, an
observation, a wake-up). After one the model starts again from requests and grants, which are the
facts; whatever the core derives from them must agree.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from sim.fuse import Fuse, FusedWindow, Interrupt

from headrace.core.hub import Hub
from headrace.core.link import LEAST_RATE, Link
from headrace.core.queue import AGEING_S
from headrace.core.request import Grant, Request, State
from headrace.core.room import TURN_BYTES, Calls, Limits
from headrace.types import Priority

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.core.scheduler import Scheduler

DEVICES = ("disk", "store", "requests", "calls")
WITHOUT_LINK = ("disk", "store", "requests")  # where series and reads past the queue are
CALLS = Calls(most=6, at_once=2, least_bytes=30, most_bytes=90)
LINK_BYTES = 400  # asked for at once, at most
Level = tuple[str, bool, int]  # device, is speculative, base
ENDED = (State.FAILED, State.CANCELLED, State.RETIRED)


@dataclass(eq=False)
class Naive:
    """What the model knows of a request."""

    request: Request
    device: str
    lengths: list[int]
    asked_series_ops: int = 1
    is_queued: bool = True
    queued_s: float | None = None
    age: int = 0
    next_op: int = 0
    flying: dict[Grant, tuple[int, int]] = field(default_factory=dict)
    holds: int | None = None
    is_over: bool = False
    is_gone: bool = False
    seen: set[Grant] = field(default_factory=set)
    has_seen_end: bool = False

    @property
    def series_ops(self) -> int:
        is_single = len(self.lengths) < 2 or self.request.is_nested
        return 1 if is_single else self.asked_series_ops

    @property
    def is_in_round(self) -> bool:
        return self.series_ops > 1 and bool(self.flying) and self._has_more

    @property
    def _has_more(self) -> bool:
        return not self.is_over and self.next_op < len(self.lengths)

    @property
    def is_waiting(self) -> bool:
        return self._has_more and not self.is_in_round

    def in_flight(self, grant: Grant) -> tuple[int, int]:
        ops, nbytes = self.flying[grant]
        if self.series_ops == 1:
            return min(ops, CALLS.at_once) if self.device == "calls" else ops, nbytes
        series = math.ceil(ops / self.series_ops)
        return series, min(nbytes, series * max(self.lengths))

    @property
    def level(self) -> Level:
        return self.device, self.request.is_speculative, self.request.priority.base

    @property
    def order(self) -> tuple[Priority, int]:
        return self.request.priority, self.request.seq


class World:
    """A hub of four devices, the model beside it, and the checks.

    A disk has a window of bytes, a store limits of ops alone. Two more have windows of requests; one of
    these is asked by calls, of whole slices, over a link.
    """

    def __init__(
        self,
        *,
        budget: int = 0,
        process_limit: int = 0,
        window: int = 100,
        devices: tuple[str, ...] = DEVICES,
    ) -> None:
        self.now = 0.0
        self.fuse = Fuse()
        self.hub = Hub(buffer_bytes=budget, process_io_limit=process_limit)
        self.hub.trace = self._event
        of_bytes = FusedWindow(self.fuse, initial=window, least=10, most=10 * window)
        few, many = (
            FusedWindow(self.fuse, initial=window // part, least=1, most=10 * window) for part in (12, 5)
        )
        limits: dict[str, dict[str, Any]] = {
            "disk": {"window": of_bytes, "max_in_flight_ops": 6, "max_grant_ops": 4},
            "store": {"max_in_flight_ops": 2, "max_grant_ops": 1},
            "requests": {"window": few, "counts_ops": True, "max_in_flight_ops": 10, "max_grant_ops": 3},
            "calls": {
                "window": many,
                "counts_ops": True,
                "max_in_flight_ops": 24,
                "max_grant_ops": 4,
                "calls": CALLS,
                "link": Link(LINK_BYTES / LEAST_RATE),
            },
        }
        self.schedulers = {device: self.hub.scheduler(device, Limits(**limits[device])) for device in devices}
        self.known: list[Naive] = []
        # Since when each level waits, once for every way in which the core may have come here.
        self.histories: list[dict[Level, float]] = [{}]
        self.ahead: dict[frozenset[Any], dict[Any, int]] = {}
        # Those whose age goes on after a round, unless anybody looked meanwhile and found them idle.
        self.unsure: set[Level] = set()
        self.is_budget_awaited = False  # at the end of the last section
        self.turns_between_devices = 0  # admissions in whose place another device's could have been
        self.largest = 0
        self.scans: dict[tuple[Level, Any], float] = {}  # since when any of it waits
        self.log: list[tuple[Any, ...]] = []

    # -- sections

    @contextlib.contextmanager
    def section(self) -> Iterator[None]:
        """Run a command as `drivers.engine` does, then settle and check."""
        try:
            yield
        except Interrupt:
            self._recover()
        try:
            self.hub.settle(self.now)
        except Interrupt:
            self._recover()
            self.hub.settle(self.now)
        self.check()

    def _recover(self) -> None:
        self.hub.recover(self.now)
        self._resync()

    def _resync(self) -> None:
        """Start again from the facts."""
        since: dict[Level, float] = {}
        self.histories, self.ahead, self.is_budget_awaited = [since], {}, True
        self.scans.clear()
        self.unsure.clear()
        for scheduler in self.schedulers.values():
            cut = [r.label for r in scheduler.requests.values() if r.label not in self.known]
            self.known.extend(naive for naive in cut if isinstance(naive, Naive))
        for naive in self.known:
            request = naive.request
            naive.next_op = request.next_op
            naive.flying = {g: (g.ops_left, g.bytes_left) for g in request.grants}
            naive.is_over = request.is_over
            naive.is_gone = request.state is State.RETIRED
            is_holding = self.hub.budget.is_holding(request.seq)
            naive.holds = request.result_bytes if is_holding else None
            if naive.is_waiting:
                since[naive.level] = self.scans[self._scan(naive)] = self.now
                self._queue(naive)

    # -- commands

    def submit(self, device: str, lengths: list[int], **options: Any) -> Naive:
        """Submit a request; one whose submission was interrupted is given up, as drivers do."""
        request = Request(np.array(lengths, np.int64), on_wake=self._woken, **options)
        series_ops = options.get("series_ops", 1)
        naive = request.label = Naive(request, device, _charged(request, lengths), series_ops)
        is_cut = True
        with self.section():
            self.schedulers[device].submit(request, self.now)
            is_cut = False
        if is_cut:
            self.end(naive, "cancel")
        return naive

    def start_now(self, device: str, lengths: list[int], **options: Any) -> None:
        """Start a request past the queue if it may, as quick reads do; an interrupted one is given up."""
        request = Request(np.array(lengths, np.int64), on_wake=self._woken, **options)
        naive = request.label = Naive(request, device, lengths, is_queued=False)
        scheduler, size = self.schedulers[device], (sum(lengths), len(lengths))
        is_cut = True
        with self.section():
            assert scheduler.has_room(*size) == self.has_room(naive), "past nobody"
            may_start = scheduler.has_room(*size, request.priority.base, self.now)
            self.histories = [since for since in self.histories if self.has_room(naive, since) == may_start]
            assert self.histories, "past the queue"
            if may_start:
                grant = scheduler.start_now(request, self.now)
                assert (grant.ops_left, grant.bytes_left) == (len(lengths), sum(lengths))
            is_cut = False
        if is_cut:
            self.end(naive, "cancel")

    def refuse(self, device: str, answers: int, *, is_late: bool) -> None:
        """Answer that the store asks for less."""
        with self.section():
            for _ in range(answers):
                self.schedulers[device].room.note_throttled(self.now, is_late=is_late)

    def complete(self, grant: Grant, ops: int, short: int = 0, *, is_hit: bool = False) -> None:
        """Complete the next `ops` ops of a grant, charged `short` bytes too few at its end."""
        naive = grant.request.label
        assert isinstance(naive, Naive)
        if grant in grant.request.inbox:
            grant.request.inbox.remove(grant)
        left, left_bytes = naive.flying[grant]
        first = grant.hi - left
        nbytes = sum(naive.lengths[first : first + ops])
        told = max(0, nbytes - short) if ops == left else nbytes
        with self.section():
            self._of(naive).complete(grant, ops, told, self.now, is_hit=is_hit)
            naive.flying[grant] = (left - ops, left_bytes - nbytes)
            was_waiting = naive.is_waiting
            self._landed(naive)
            if naive.is_waiting and not was_waiting:
                self._queue(naive)
                before = [since for since in self.histories if naive.level in since]
                self._pushed(naive)
                self.histories = _distinct([*self.histories, *before])  # its age may go on
                self.unsure.add(naive.level)

    def forfeit(self, grant: Grant) -> None:
        naive = grant.request.label
        assert isinstance(naive, Naive)
        with self.section():
            self._of(naive).forfeit(grant)
            del naive.flying[grant]
            self._landed(naive)

    def _landed(self, naive: Naive) -> None:
        naive.flying = {g: left for g, left in naive.flying.items() if left[0]}
        if not naive.is_over:
            naive.is_over = naive.next_op == len(naive.lengths) and not naive.flying
        elif naive.request.state in ENDED:
            self._drained(naive)

    def _drained(self, naive: Naive) -> None:
        if not naive.flying:
            naive.is_gone, naive.holds = True, None

    def end(self, naive: Naive, how: str) -> None:
        request, scheduler = naive.request, self._of(naive)
        was_complete = request.state is State.COMPLETE
        if how == "drop":
            self.hub.drop(scheduler, request)
        with self.section():
            if how == "consume":
                scheduler.consume(request, self.now)
            elif how == "cancel":
                scheduler.cancel(request)
            elif how == "fail":
                scheduler.fail(request, OSError("gone"))
            if was_complete and how != "fail":
                self._drained(naive)
            elif not was_complete and how != "consume":
                naive.is_over = True
                self._drained(naive)

    def note_length(self, naive: Naive, nbytes: int) -> None:
        """I2: what is complete holds no more than its result."""
        with self.section():
            self._of(naive).note_length(naive.request, nbytes)
            if naive.request.state is State.COMPLETE and naive.holds is not None:
                naive.holds = min(naive.holds, nbytes)

    def await_(self, naive: Naive) -> None:
        with self.section():
            self._of(naive).note_awaited(naive.request)

    def raise_priority(self, naive: Naive, base: int, position: int) -> None:
        before, request = naive.level, naive.request
        is_moved, was_speculative = Priority(base, position) < request.priority, request.is_speculative
        with self.section():
            self._of(naive).raise_priority(request, (base, position), self.now)
            if was_speculative:
                naive.queued_s = None  # nobody waited for it
            if naive.is_waiting and (is_moved or was_speculative):
                self._queue(naive)
            # One that moves inside its base keeps the age of that.
            if naive.is_waiting and naive.level != before:
                self._pushed(naive)

    def close(self) -> None:
        with self.section():
            self.hub.close(RuntimeError("closed"))
            for naive in self.known:
                if not naive.is_over:
                    naive.is_over = True
                    self._drained(naive)

    def advance(self, seconds: float) -> None:
        with self.section():
            self.now += seconds
            self.hub.changed()

    def drain(self) -> None:
        """Bring everything to its end."""
        self.fuse.left = 0
        while grants := self.grants():
            self.complete(grants[0], grants[0].ops_left)
        while left := [naive for naive in self.known if not naive.is_gone]:
            self.end(left[0], "consume" if left[0].request.state is State.COMPLETE else "cancel")
            for grant in list(left[0].request.grants):
                self.forfeit(grant)

    def of_requests(self) -> list[str]:
        return [device for device, scheduler in self.schedulers.items() if scheduler.room.counts_ops]

    def grants(self) -> list[Grant]:
        return [grant for naive in self.known for grant in naive.request.grants]

    # -- what the core tells

    def _woken(self, request: Request) -> None:
        self.fuse.tick()
        naive = request.label
        assert isinstance(naive, Naive)
        naive.seen |= set(request.grants)
        naive.has_seen_end |= request.is_over

    def _event(self, event: str, request: Request, lo: int, hi: int, now: float) -> None:
        self.log.append((event, request.seq, lo, hi, now))
        self.fuse.tick()
        naive = request.label
        assert isinstance(naive, Naive)
        if event == "queued":
            self.known.append(naive)
            naive.is_over = not naive.lengths
            if naive.is_waiting and not request.is_nested:
                self._queue(naive)
                self._pushed(naive)
        elif event == "admitted":
            self._shed()
            if not naive.is_queued:
                self.known.append(naive)
                naive.holds = request.result_bytes
            elif not request.is_nested:
                self._admitted(naive, lo, hi)
            grant = request.grants[-1]
            naive.next_op = hi
            naive.flying[grant] = (hi - lo, sum(naive.lengths[lo:hi]))

    def _scan(self, naive: Naive) -> tuple[Level, Any]:
        return naive.level, naive.request.scan

    def _queue(self, naive: Naive) -> None:
        """Give it its age, in steps since its scan became backlogged."""
        scan = self._scan(naive)
        if not any(self._scan(n) == scan for n in self.waiting() if n is not naive):
            self.scans[scan] = self.now
        if naive.queued_s is None:
            naive.queued_s = self.now
        naive.age = int((naive.queued_s - self.scans[scan]) // AGEING_S)

    def _pushed(self, naive: Naive) -> None:
        others = [n for n in self.waiting() if n.level == naive.level and n is not naive]
        if not others:
            self.unsure.discard(naive.level)
            self.histories = [{**since, naive.level: self.now} for since in self.histories]

    def _shed(self) -> None:
        """Take note of speculation that was dropped: nothing else ends unasked."""
        for naive in self.known:
            if naive.request.is_over and not naive.is_over:
                assert naive.request.is_speculative
                assert naive.holds is not None
                assert not naive.flying
                naive.is_over = True
                self._drained(naive)
            elif naive.request.state in ENDED and not naive.is_gone and not naive.flying:
                assert naive.request.is_speculative
                self._drained(naive)

    def _admitted(self, naive: Naive, lo: int, hi: int) -> None:
        assert lo == naive.next_op
        assert naive.is_waiting
        if self.hub.process_io_limit or (self.is_budget_awaited and naive.holds is None):
            rivals = self._rivals(naive.device)
            self.turns_between_devices += bool(rivals)
            self.histories = [
                since for since in self.histories if not self._is_less_urgent(naive.device, rivals, since)
            ]
            assert self.histories, "I4 between devices"
        in_turn, passed = self._in_turn(naive), self._passed(naive)
        assert in_turn or passed, "I4"
        assert hi - lo == self.room_ops(naive), "I1"
        self.histories = _distinct([*({**since, naive.level: self.now} for since in in_turn), *passed])
        if passed:
            self.ahead = {pair: served for pair, served in self.ahead.items() if naive.level not in pair}
        else:
            self.unsure.discard(naive.level)
            self._charge(naive, self._price(naive, naive.lengths[lo:hi]))
        if naive.holds is None:
            naive.holds = naive.request.result_bytes

    def _rivals(self, device: str) -> list[Naive]:
        """Return the heads of other devices that could start as well, and whose key is known."""
        heads = [h for other in self.schedulers if other != device for h in self._demand_heads(other)]
        return [
            head
            for head in heads
            if not self.unsure & {n.level for n in self.contending(device) + self.contending(head.device)}
            and head.request.group is None
            and self.may_reserve(head)
            and self.room_ops(head) > 0
        ]

    def _is_less_urgent(self, device: str, rivals: list[Naive], since: dict[Level, float]) -> bool:
        """Whether one of the rivals has a lower key than this device's."""
        return any(self._key(head.device, since) < self._key(device, since) for head in rivals)

    def _key(self, device: str, since: dict[Level, float]) -> tuple[bool, float]:
        rows = self.contending(device)
        return rows[0].request.is_speculative, min(n.level[2] * AGEING_S + since[n.level] for n in rows)

    def _in_turn(self, naive: Naive) -> list[dict[Level, float]]:
        """Return the histories after which it was the head: its base's age begins anew (I4)."""
        if not self.may_reserve(naive):
            return []
        return [since for since in self.histories if naive in self.heads(naive.device, since)]

    def _passed(self, naive: Naive) -> list[dict[Level, float]]:
        """Return the histories after which it may have passed a head: no turn, so no age changes (I2).

        Where both may be, both are kept. I4 says of the scans of a base only that they take turns, so
        the model leaves open whose turn it is (`_charge` bounds it): the one that went was the head, or
        passed another scan's which waits for the budget. A head shows later which histories are wrong.
        """
        return [
            since
            for since in self.histories
            for head in self.heads(naive.device, since)
            if not self.may_reserve(head) and self.passing(head) is naive
        ]

    def _price(self, naive: Naive, lengths: list[int]) -> int:
        """All but the disk limit ops, each of which has a least price."""
        return sum(lengths) if naive.device == "disk" else max(sum(lengths), len(lengths) * TURN_BYTES)

    def _charge(self, naive: Naive, units: int) -> None:
        """Two scans that both wait are served alike, within two slices (Goyal et al., theorem 1)."""
        self.largest = max(self.largest, units)
        scans = {n.request.scan for n in self.waiting() if n.level == naive.level}
        pairs = {frozenset((naive.level, *pair)) for pair in combinations(sorted(scans), 2)}
        self.ahead = {
            pair: self.ahead.get(pair, dict.fromkeys(pair - {naive.level}, 0))
            for pair in (*pairs, *(p for p in self.ahead if naive.level not in p))
        }
        for pair in pairs:
            served = self.ahead[pair]
            if naive.request.scan in served:
                served[naive.request.scan] += units
            assert max(served.values()) - min(served.values()) <= 2 * self.largest, "turns"

    # -- the rules

    def _of(self, naive: Naive) -> Scheduler:
        return self.schedulers[naive.device]

    def waiting(self, device: str | None = None) -> list[Naive]:
        return [
            n for n in self.known if n.is_waiting and not n.request.is_nested and device in (None, n.device)
        ]

    def flying(self, device: str | None = None) -> list[tuple[Naive, int, int]]:
        """Request, ops and bytes of each grant in flight that counts."""
        return [
            (n, *n.in_flight(grant))
            for n in self.known
            for grant in n.flying
            if not n.request.is_nested and device in (None, n.device)
        ]

    def contending(self, device: str) -> list[Naive]:
        """Demand that waits, or speculation where no demand does."""
        rows = self.waiting(device)
        return [n for n in rows if not n.request.is_speculative] or rows

    def heads(self, device: str, since: dict[Level, float]) -> list[Naive]:
        """Requests which may be next: the first of each scan of the level that is due."""
        rows = self.contending(device)
        if not rows:
            return []
        due = min((n.level[2] * AGEING_S + since[n.level], n.level[2]) for n in rows)[1]
        rows = [n for n in rows if n.level[2] == due]
        scans = {n.request.scan for n in rows}
        return [min((n for n in rows if n.request.scan == s), key=_in_scan) for s in scans]

    def reserved(self) -> int:
        return sum(n.holds for n in self.known if n.holds is not None)

    def fits(self, naive: Naive) -> bool:
        limit = self.hub.budget.limit_bytes
        is_empty = all(n.holds is None for n in self.known)
        return not limit or is_empty or self.reserved() + naive.request.result_bytes <= limit

    def may_reserve(self, naive: Naive) -> bool:
        """I2: it fits, or one of the named exemptions holds once speculation was dropped."""
        request = naive.request
        if naive.holds is not None:
            return True
        if request.is_speculative:
            heads = [h for device in self.schedulers for h in self._demand_heads(device)]
            waits = [h for h in heads if h.holds is None and not self.fits(h)]
            return self.fits(naive) and not any(h.request.is_awaited or self.would_fit(h) for h in waits)
        if self.fits(naive):
            return True
        holders = [n for n in self.known if n.holds is not None]
        droppable = [n for n in holders if n.request.is_speculative and not n.flying]
        demand = [n for n in holders if not n.request.is_speculative] or holders
        passes = (
            request.priority < min(n.request.priority for n in demand)
            or (request.group is not None and request.group in {n.request.group for n in holders})
            or (request.is_awaited and not self.flying(naive.device))
        )
        if droppable and (self.would_fit(naive) or (request.is_awaited and passes)):
            return False
        return passes

    def would_fit(self, naive: Naive) -> bool:
        """I7: without speculation, which gives way then; alone if it is larger than the budget."""
        demand = sum(n.holds for n in self.known if n.holds is not None and not n.request.is_speculative)
        return not demand or demand + naive.request.result_bytes <= self.hub.budget.limit_bytes

    def _demand_heads(self, device: str) -> list[Naive]:
        head = self.schedulers[device].queue.head()
        assert head is None or isinstance(head.label, Naive)
        return [] if head is None else [head.label]

    def passing(self, head: Naive) -> Naive | None:
        """Return the one that goes on although `head` waits for the budget."""
        rows = self.contending(head.device)
        started = [n for n in rows if n.holds is not None]
        awaited = [n for n in rows if n.request.is_awaited and not n.request.is_speculative]
        first = min(started or awaited, key=lambda n: n.order, default=None)
        if first is None or started or not self.flying(head.device):
            return first
        return None if head.request.is_awaited or not self.fits(first) else first

    def has_room(self, naive: Naive, since: dict[Level, float] | None = None) -> bool:
        """Whether all of it may start past the queue; with the ages of those who wait also past these."""
        scheduler, device, base = self._of(naive), naive.device, naive.request.priority.base
        ops, nbytes = self.in_flight(device)
        ops, nbytes = ops + len(naive.lengths), nbytes + sum(naive.lengths)
        ahead = self.waiting(device)
        rounds = self.rounds(device)
        if since is not None:
            due = base * AGEING_S + self.now
            demand = [n for n in ahead if not n.request.is_speculative]
            ahead = [n for n in demand if n.level[2] * AGEING_S + since[n.level] <= due]
            rounds = [other for other in rounds if other <= base]
        in_process = sum(ops for _, ops, _ in self.flying()) + len(naive.lengths)
        return (
            not (ahead or rounds)
            and ops <= scheduler.room.max_in_flight_ops
            and in_process <= (self.hub.process_io_limit or math.inf)
            and (
                scheduler.room.window is None or self._used(naive, ops, nbytes) <= scheduler.room.window.limit
            )
            and self.fits(naive)
        )

    def rounds(self, device: str) -> list[int]:
        """I4: the bases of those that want more when their round is over."""
        return [n.request.priority.base for n in self.known if n.device == device and n.is_in_round]

    def in_flight(self, device: str) -> tuple[int, int]:
        flying = self.flying(device)
        return sum(ops for _, ops, _ in flying), sum(nbytes for _, _, nbytes in flying)

    def room_ops(self, naive: Naive) -> int:
        """I1: how many of its ops may start now."""
        scheduler, base = self._of(naive), naive.request.priority.base
        if min(self.rounds(naive.device), default=base) < base:
            return 0
        if naive.device == "calls" and naive.series_ops == 1:
            return self._call_ops(naive)
        most = min(scheduler.room.max_grant_ops, len(naive.lengths) - naive.next_op)
        steps = naive.lengths[naive.next_op :][:most]
        if naive.series_ops > 1:
            steps = [max(naive.lengths)] * math.ceil(most / naive.series_ops)
        steps = steps[: self._process_room(naive)]
        steps = steps[: self._brought(naive, steps)]
        return min(most, self._fitting(naive, steps) * naive.series_ops)

    def _process_room(self, naive: Naive) -> int:
        """How many ops the process may start."""
        limit = self.hub.process_io_limit
        in_process = sum(ops for _, ops, _ in self.flying())
        return max(self._part(naive, limit) - in_process, 0) if limit else 1 << 30

    def _call_ops(self, naive: Naive) -> int:
        """How many ops the next call performs: its slice, if there is room for what is under way of it."""
        flying = self.flying("calls")
        calls = sum(1 for n, *_ in flying if n.series_ops == 1)
        steps = naive.lengths[naive.next_op :][: self._slice_ops(naive)]
        steps = steps[: self._brought(naive, steps)]
        if calls >= CALLS.most or not steps:
            return 0
        wanted = steps[: CALLS.at_once]
        share = self._fitting(naive, wanted)
        fitting = min(share, self._process_room(naive))
        if fitting == len(wanted):
            return len(steps)
        is_small = share == len(wanted) or 8 * (share + 1) > self._share(naive)
        return fitting if is_small or not flying else 0

    def _slice_ops(self, naive: Naive) -> int:
        """How long a call may be: a request is shared out to as many as the limits have room for."""
        room = self._of(naive).room
        limit = min(room.uploads.left_of(room.window.limit), room.max_in_flight_ops)
        calls = min(max((limit - limit // 8) // CALLS.at_once, 1), CALLS.most)
        total, left = len(naive.lengths), naive.lengths[naive.next_op :]
        even = math.ceil(total / calls)
        even_bytes = math.floor(sum(naive.lengths) * even / total)
        nbytes = min(max(even_bytes, CALLS.least_bytes), CALLS.most_bytes)
        within = sum(1 for k in range(len(left)) if sum(left[: k + 1]) <= nbytes)
        return min(max(even, CALLS.at_once), room.max_grant_ops, max(within, 1))

    def _fitting(self, naive: Naive, steps: list[int]) -> int:
        """How many of these, one after the other, the limit of ops and the window leave room for."""
        scheduler = self._of(naive)
        ops, nbytes = self.in_flight(naive.device)
        must_go_on = not (ops or naive.request.is_speculative)
        for fitting, length in enumerate(steps):
            ops, nbytes = ops + 1, nbytes + length
            is_beyond = scheduler.room.window is not None and self._used(naive, ops, nbytes) > self._share(
                naive
            )
            if ops > self._part(naive, scheduler.room.max_in_flight_ops) or is_beyond:
                return 1 if must_go_on and not fitting else fitting
        return len(steps)

    def _brought(self, naive: Naive, steps: list[int]) -> int:
        """How many of these the link brings in time, beside what is under way on it."""
        link = self._of(naive).room.link
        if link is None:
            return len(steps)
        before = self.in_flight(naive.device)[1]
        must_go_on = not (self.flying(naive.device) or naive.request.is_speculative)
        wanted = 0
        for brought, length in enumerate(steps):
            wanted += length
            is_short = 64 * wanted <= link.limit_bytes
            if before + wanted > self._share_of(naive, link.limit_bytes) and not is_short:
                return 1 if must_go_on and not brought else brought
        return len(steps)

    def _used(self, naive: Naive, ops: int, nbytes: int) -> int:
        return ops if self._of(naive).room.counts_ops else nbytes

    def _part(self, naive: Naive, limit: int) -> int:
        """I7: half of each limit is left to demand."""
        return limit // 2 if naive.request.is_speculative else limit

    def _share(self, naive: Naive) -> int:
        """I1, I7: the part of the window it may use."""
        window = self._of(naive).room.window
        assert window is not None
        is_urgent = self._is_most_urgent(naive) and not naive.request.is_speculative
        return window.urgent_limit if is_urgent else self._share_of(naive, window.limit)

    def _share_of(self, naive: Naive, limit: int) -> int:
        """I1, I7: the part of a limit: its last eighth is for what is more urgent than all in flight."""
        if naive.request.is_speculative or self._is_most_urgent(naive):
            return self._part(naive, limit)
        return limit - limit // 8 if self.flying(naive.device) or naive.series_ops > 1 else limit

    def _is_most_urgent(self, naive: Naive) -> bool:
        bases = [n.request.priority.base for n, _, _ in self.flying(naive.device)]
        return bool(bases) and naive.request.priority.base < min(bases)

    # -- the checks

    def check(self) -> None:
        self._shed()
        self.hub.validate()
        assert self.hub.budget.reserved_bytes == self.reserved(), "I3"
        for device, scheduler in self.schedulers.items():
            assert (scheduler.room.in_flight_ops, scheduler.room.in_flight_bytes) == self.in_flight(device)
            assert scheduler.waiting == len(self.waiting(device))
            present = [n.request.seq for n in self.known if n.device == device and not n.is_gone]
            assert sorted(scheduler.requests) == sorted(present)
            self._check_progress(device)
        least = self.hub.budget.least_priority()
        held = [n.request.priority for n in self.known if n.holds is not None]
        assert least == min(held, default=None), "I6"
        self._check_wakes()
        heads = [head for device in self.schedulers for head in self._demand_heads(device)]
        self.is_budget_awaited = any(not self.may_reserve(head) for head in heads)
        self.known = [n for n in self.known if not n.is_gone]

    def _check_progress(self, device: str) -> None:
        """Nothing is left that could start (I1, I5)."""
        scheduler = self.schedulers[device]
        head = scheduler.queue.head() or scheduler.speculative.head()
        if head is None:
            assert not self.waiting(device)
            return
        naive = head.label
        assert isinstance(naive, Naive)
        self.histories = [since for since in self.histories if naive in self.heads(device, since)]
        assert self.histories, "I4"
        if self.may_reserve(naive):
            assert self.room_ops(naive) <= 0, "progress"
            return
        passing = self.passing(naive)
        assert passing is None or self.room_ops(passing) <= 0, "progress past the head"

    def _check_wakes(self) -> None:
        for naive in self.known:
            assert set(naive.request.inbox) <= naive.seen, "I5"
            assert naive.has_seen_end or not naive.is_over, "I5"

    def check_rest(self) -> None:
        """Nothing is left of anything (I3)."""
        assert not self.known
        assert (self.hub.budget.reserved_bytes, len(self.hub.budget)) == (0, 0)
        assert self.hub.in_flight_ops == 0
        assert not self.hub.speculators
        for scheduler in self.schedulers.values():
            assert (scheduler.room.in_flight_ops, scheduler.room.in_flight_bytes) == (0, 0)
            assert not scheduler.room.in_flight_bases
            assert not scheduler.requests
            assert not scheduler.started
            assert not scheduler.awaited
            assert not scheduler.in_rounds


def _in_scan(naive: Naive) -> tuple[int, int, int]:
    return naive.age, naive.request.priority.position, naive.request.seq


def _distinct(histories: list[dict[Level, float]]) -> list[dict[Level, float]]:
    return [since for n, since in enumerate(histories) if since not in histories[:n]]


def _charged(request: Request, lengths: list[int]) -> list[int]:
    return lengths if min(lengths, default=0) >= 0 else [request.bytes_between(0, 1)]
