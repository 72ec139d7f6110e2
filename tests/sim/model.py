"""A naive model of the scheduler core, and a `World` in which the two run side by side.

The model keeps plain lists and recomputes everything from them each time: what waits, what is in
flight, what is reserved, and which requests may be next. It predicts from the design's rules:

* I1: a slice is exactly what the window and the limits of ops leave room for; of a request in series the
  room is that of one op of each, and there is no other slice until that one is complete.
* I2, I7: a reservation fits or a named exemption holds, after speculation was dropped.
* I4: the base whose key ``base * 5 s + since`` is least; then some scan's first request by
  ``(position, sequence)``; and two scans that both wait are served alike, within two slices.
  Past a head that waits for the budget goes the first of those that I2 lets pass.
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
from headrace.core.queue import AGEING_S
from headrace.core.request import Grant, Request, State
from headrace.types import Priority

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.core.scheduler import Scheduler

DEVICES = ("disk", "store")
Level = tuple[str, bool, int]  # device, is speculative, base
ENDED = (State.FAILED, State.CANCELLED, State.RETIRED)


@dataclass(eq=False)
class Naive:
    """What the model knows of a request."""

    request: Request
    device: str
    lengths: list[int]
    asked_series_ops: int = 1
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
            return ops, nbytes
        series = math.ceil(ops / self.series_ops)
        return series, min(nbytes, series * max(self.lengths))

    @property
    def level(self) -> Level:
        return self.device, self.request.is_speculative, self.request.priority.base

    @property
    def order(self) -> tuple[Priority, int]:
        return self.request.priority, self.request.seq


class World:
    """A hub of two devices, the model beside it, and the checks."""

    def __init__(
        self, *, budget: int = 0, process_limit: int = 0, window: int = 100, disk_ops: int = 6
    ) -> None:
        self.now = 0.0
        self.fuse = Fuse()
        self.hub = Hub(buffer_bytes=budget, process_io_limit=process_limit)
        self.hub.trace = self._event
        shape = FusedWindow(self.fuse, initial=window, least=10, most=10 * window)
        self.schedulers = {
            "disk": self.hub.scheduler("disk", window=shape, max_in_flight_ops=disk_ops, max_grant_ops=4),
            "store": self.hub.scheduler("store", max_in_flight_ops=2, max_grant_ops=1),
        }
        self.known: list[Naive] = []
        # Since when each level waits, once for every way in which the core may have come here.
        self.histories: list[dict[Level, float]] = [{}]
        self.ahead: dict[frozenset[Any], dict[Any, int]] = {}
        self.largest = 0
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
        self.histories, self.ahead = [since], {}
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
                since[naive.level] = self.now

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
                self._pushed(naive)

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

    def await_(self, naive: Naive) -> None:
        with self.section():
            naive.request.is_awaited = True
            self.hub.changed()

    def raise_priority(self, naive: Naive, base: int, position: int) -> None:
        before = naive.level
        with self.section():
            self._of(naive).raise_priority(naive.request, (base, position), self.now)
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
                self._pushed(naive)
        elif event == "admitted":
            self._shed()
            if not request.is_nested:
                self._admitted(naive, lo, hi)
            grant = request.grants[-1]
            naive.next_op = hi
            naive.flying[grant] = (hi - lo, sum(naive.lengths[lo:hi]))

    def _pushed(self, naive: Naive) -> None:
        others = [n for n in self.waiting() if n.level == naive.level and n is not naive]
        if not others:
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
        in_turn, passed = self._in_turn(naive), self._passed(naive)
        assert in_turn or passed, "I4"
        assert hi - lo == self.room_ops(naive), "I1"
        self.histories = _distinct([*({**since, naive.level: self.now} for since in in_turn), *passed])
        if passed:
            self.ahead = {pair: served for pair, served in self.ahead.items() if naive.level not in pair}
        else:
            self._charge(naive, sum(naive.lengths[lo:hi]))
        if naive.holds is None:
            naive.holds = naive.request.result_bytes

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

    def _charge(self, naive: Naive, nbytes: int) -> None:
        """Two scans that both wait are served alike, within two slices (Goyal et al., theorem 1)."""
        self.largest = max(self.largest, nbytes)
        scans = {n.request.scan for n in self.waiting() if n.level == naive.level}
        pairs = {frozenset((naive.level, *pair)) for pair in combinations(sorted(scans), 2)}
        self.ahead = {
            pair: self.ahead.get(pair, dict.fromkeys(pair - {naive.level}, 0))
            for pair in (*pairs, *(p for p in self.ahead if naive.level not in p))
        }
        for pair in pairs:
            served = self.ahead[pair]
            if naive.request.scan in served:
                served[naive.request.scan] += nbytes
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
            heads = [h for device in DEVICES for h in self._demand_heads(device)]
            is_short = any(h.holds is None and not self.fits(h) and self.is_short_for(h) for h in heads)
            return self.fits(naive) and not is_short
        if self.fits(naive):
            return True
        holders = [n for n in self.known if n.holds is not None]
        droppable = [n for n in holders if n.request.is_speculative and not n.flying]
        if droppable and self.is_short_for(naive):
            return False
        return (
            all(request.priority < n.request.priority for n in holders)
            or (request.group is not None and request.group in {n.request.group for n in holders})
            or (request.is_awaited and not self.flying(naive.device))
        )

    def is_short_for(self, naive: Naive) -> bool:
        """I7: speculation gives way to what is awaited, or would fit without it."""
        demand = sum(n.holds for n in self.known if n.holds is not None and not n.request.is_speculative)
        would_fit = demand + naive.request.result_bytes <= self.hub.budget.limit_bytes
        return naive.request.is_awaited or would_fit

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

    def room_ops(self, naive: Naive) -> int:
        """I1: how many of its ops may start now."""
        scheduler, flying = self._of(naive), self.flying(naive.device)
        in_flight = sum(ops for _, ops, _ in flying)
        base = naive.request.priority.base
        in_rounds = [
            n.request.priority.base for n in self.known if n.device == naive.device and n.is_in_round
        ]
        if min(in_rounds, default=base) < base:
            return 0
        most = min(scheduler.max_grant_ops, len(naive.lengths) - naive.next_op)
        steps = naive.lengths[naive.next_op :]
        if naive.series_ops > 1:
            steps = [max(naive.lengths)] * math.ceil(most / naive.series_ops)
        share = 2 if naive.request.is_speculative else 1  # I7
        room = [scheduler.max_in_flight_ops // share - in_flight, min(most, len(steps))]
        if self.hub.process_io_limit:
            room.append(self.hub.process_io_limit // share - sum(ops for _, ops, _ in self.flying()))
        if min(room) <= 0 or scheduler.window is None:
            return min(most, min(room) * naive.series_ops)
        left = self._share(naive) - sum(nbytes for _, _, nbytes in flying)
        fitting = 0
        for length in steps:
            left -= length
            if left < 0:
                break
            fitting += 1
        must_go_on = not (fitting or in_flight or naive.request.is_speculative)
        slots = 1 if must_go_on else min(*room, fitting)
        return min(most, slots * naive.series_ops)

    def _share(self, naive: Naive) -> int:
        """I1, I7: the part of the window it may use."""
        window = self._of(naive).window
        assert window is not None
        bases = [n.request.priority.base for n, _, _ in self.flying(naive.device)]
        if naive.request.is_speculative:
            return window.limit // 2
        if bases and naive.request.priority.base < min(bases):
            return window.urgent_limit
        return window.limit - window.limit // 8 if bases or naive.series_ops > 1 else window.limit

    # -- the checks

    def check(self) -> None:
        self._shed()
        self.hub.validate()
        assert self.hub.budget.reserved_bytes == self.reserved(), "I3"
        for device, scheduler in self.schedulers.items():
            flying = self.flying(device)
            assert scheduler.in_flight_ops == sum(ops for _, ops, _ in flying)
            assert scheduler.in_flight_bytes == sum(nbytes for _, _, nbytes in flying)
            assert scheduler.waiting == len(self.waiting(device))
            present = [n.request.seq for n in self.known if n.device == device and not n.is_gone]
            assert sorted(scheduler.requests) == sorted(present)
            self._check_progress(device)
        least = self.hub.budget.least_priority()
        held = [n.request.priority for n in self.known if n.holds is not None]
        assert least == min(held, default=None), "I6"
        self._check_wakes()
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
            assert (scheduler.in_flight_ops, scheduler.in_flight_bytes) == (0, 0)
            assert not scheduler.in_flight_bases
            assert not scheduler.requests
            assert not scheduler.started
            assert not scheduler.awaited
            assert not scheduler.in_rounds


def _in_scan(naive: Naive) -> tuple[int, int]:
    return naive.request.priority.position, naive.request.seq


def _distinct(histories: list[dict[Level, float]]) -> list[dict[Level, float]]:
    return [since for n, since in enumerate(histories) if since not in histories[:n]]


def _charged(request: Request, lengths: list[int]) -> list[int]:
    return lengths if min(lengths, default=0) >= 0 else [request.bytes_between(0, 1)]
