"""What schedulers share: limits, wake-ups, and recovery from an exception at any line (I1, I3, I5)."""

from __future__ import annotations

import contextlib
import sys
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import headrace.core
import headrace.core.hub as hub_module
from headrace.core.hub import Hub
from headrace.core.queue import AGEING_S, PriorityQueue
from headrace.core.request import Request, State
from headrace.core.room import Limits
from headrace.core.scheduler import Scheduler
from headrace.core.window import Window
from headrace.types import Priority

if TYPE_CHECKING:
    from collections.abc import Callable

CORE = str(Path(headrace.core.__file__).parent)


def submit(hub: Hub, device: str, *, ops: int = 1, base: int = 0, **options: Any) -> Request:
    request = Request(np.full(ops, 10, np.int64), result_bytes=10 * ops, priority=Priority(base), **options)
    hub.scheduler(device).submit(request, 0.0)
    return request


def serve(hub: Hub, requests: list[Request], now: float) -> Request:
    """Perform the one op in flight; returns its request."""
    (request,) = (request for request in requests if request.inbox)
    grant = request.inbox.pop(0)
    next(s for s in hub.schedulers.values() if request.seq in s.requests).complete(grant, 1, 10, now)
    hub.settle(now)
    hub.validate()
    return request


def test_devices_take_turns_at_the_process_limit() -> None:
    hub = Hub(process_io_limit=1)
    requests = [submit(hub, device, ops=30) for device in ("a", "b", "c")]
    hub.settle(0.0)
    order = [serve(hub, requests, 0.0).seq for _ in range(30)]
    assert [order.count(seq) for seq in (1, 2, 3)] == [10, 10, 10]


def test_the_urgent_device_comes_first_at_the_process_limit() -> None:
    hub = Hub(process_io_limit=1)
    requests = [submit(hub, "a", ops=3), submit(hub, "b", ops=3, base=-1)]
    requests.append(submit(hub, "c", ops=3, base=-9, is_speculative=True))
    hub.settle(0.0)
    assert [serve(hub, requests, 0.0).seq for _ in range(6)] == [2, 2, 2, 1, 1, 1]
    assert requests[2].next_op == 0, "I7: the only permit is demand's"


def test_no_device_starves_at_the_process_limit() -> None:
    """I4: waiting counts between devices as it does inside one."""
    hub = Hub(process_io_limit=1)
    requests = [submit(hub, "a", ops=100), submit(hub, "b", ops=3, base=1)]
    hub.settle(0.0)
    order = [serve(hub, requests, float(second)).seq for second in range(int(4 * AGEING_S))]
    assert order.count(2) == 3


def test_a_release_on_one_device_admits_on_another() -> None:
    hub = Hub(buffer_bytes=10)
    first, second = submit(hub, "a"), submit(hub, "b")
    hub.settle(0.0)
    assert (len(first.inbox), len(second.inbox)) == (1, 0)
    serve(hub, [first, second], 0.0)
    hub.schedulers["a"].consume(first, 0.0)
    hub.settle(0.0)
    assert len(second.inbox) == 1


def a_backlog(hub: Hub, base: int) -> tuple[list[Request], Request]:
    """Have three less urgent reads fill the budget and queue on one device, and one queue on another."""
    many, one = [submit(hub, "a", base=0) for _ in range(3)], submit(hub, "b", base=base)
    hub.settle(0.0)
    assert [len(request.inbox) for request in (*many, one)] == [1, 1, 0, 0]
    return many, one


def served_before(hub: Hub, many: list[Request], one: Request) -> int:
    """Count the reads of "a" whose results are taken, one each second, until `one` is admitted."""
    served = 0
    while not one.inbox and served < 4 * AGEING_S:
        served += 1
        now, request = float(served), many.pop(0)
        hub.schedulers["a"].complete(request.inbox.pop(0), 1, 10, now)
        hub.settle(now)
        many.append(submit(hub, "a"))
        hub.schedulers["a"].consume(request, now)
        hub.settle(now)
        hub.validate()
    return served


def test_the_urgent_device_has_what_comes_free_of_the_budget() -> None:
    hub = Hub(buffer_bytes=30)
    held = submit(hub, "b", base=-1)
    hub.settle(0.0)
    serve(hub, [held], 0.0)
    assert served_before(hub, *a_backlog(hub, -1)) == 1


def test_the_urgent_device_has_it_after_a_recovery_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass that would have given it was cut."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    hub = Hub(buffer_bytes=30)
    hub.scheduler("a")  # the first that is asked, but for the rule
    held = submit(hub, "b", base=-1)
    hub.settle(0.0)
    serve(hub, [held], 0.0)
    (first, *_), one = a_backlog(hub, -1)
    hub.schedulers["a"].complete(first.inbox.pop(0), 1, 10, 0.0)
    hub.schedulers["a"].consume(first, 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "admit_one", interrupted)
        with pytest.raises(KeyboardInterrupt):
            hub.settle(0.0)
    hub.recover(0.0)
    hub.settle(0.0)
    assert one.inbox


def test_no_device_starves_for_the_budget() -> None:
    hub = Hub(buffer_bytes=20)
    assert AGEING_S <= served_before(hub, *a_backlog(hub, 1)) < 4 * AGEING_S


# -- finalisers


def test_a_drop_waits_for_the_holder_of_the_lock_to_settle() -> None:
    hub = Hub(buffer_bytes=10)
    gone, waits = submit(hub, "a"), submit(hub, "a")
    hub.settle(0.0)
    hub.drop(hub.schedulers["a"], gone)
    assert (gone.state, hub.budget.reserved_bytes) == (State.RUNNING, 10)
    hub.settle(0.0)
    hub.schedulers["a"].forfeit(gone.inbox.pop(0))
    hub.settle(0.0)
    assert (gone.state, len(waits.inbox)) == (State.RETIRED, 1)


def test_a_request_dropped_twice_or_when_it_is_over_is_released_once() -> None:
    hub = Hub(buffer_bytes=10)
    gone, kept = submit(hub, "a"), submit(hub, "b", base=-1)
    hub.settle(0.0)
    for _ in range(2):
        hub.drop(hub.schedulers["a"], gone)
    hub.settle(0.0)
    hub.schedulers["a"].forfeit(gone.inbox.pop(0))
    hub.drop(hub.schedulers["a"], gone)
    hub.settle(0.0)
    hub.validate()
    assert (gone.state, len(kept.inbox)) == (State.RETIRED, 1)
    assert hub.budget.reserved_bytes == 10


def test_what_was_granted_to_a_read_that_was_left_comes_back() -> None:
    """Its consumer was to perform it, and was interrupted twice."""
    hub = Hub(process_io_limit=1)
    left, waits = submit(hub, "a", ops=3), submit(hub, "b")
    hub.settle(0.0)
    assert (len(left.grants), len(waits.inbox)) == (1, 0)
    hub.drop(hub.schedulers["a"], left, is_left=True)
    hub.settle(0.0)
    hub.validate()
    assert (left.state, len(waits.inbox)) == (State.RETIRED, 1)


# -- wake-ups


class DeadLoopError(RuntimeError):
    """What an owner raises that cannot be woken."""


def refuse(_request: Request) -> None:
    raise DeadLoopError


def test_one_owner_that_cannot_be_woken_costs_no_other_anything() -> None:
    """Nor does its error come out of a section that has nothing to do with it."""
    hub = Hub(process_io_limit=4)
    woken: list[int] = []
    bad = submit(hub, "a", on_wake=refuse)
    good = [submit(hub, "a", on_wake=lambda r: woken.append(r.seq)) for _ in range(4)]
    hub.settle(0.0)
    hub.validate()
    assert woken == [request.seq for request in good], "the last of them by what the first gave back"
    assert isinstance(bad.error, DeadLoopError)
    assert (bad.state, bad.inbox, bad.grants) == (State.RETIRED, [], [])


def test_what_an_owner_took_that_cannot_be_woken_is_under_way_until_it_is_done() -> None:
    hub = Hub()
    request = submit(hub, "a", ops=2)
    hub.settle(0.0)
    grant = request.inbox.pop(0)
    request.on_wake = refuse
    hub.wake(request)
    hub.settle(0.0)
    hub.validate()
    assert (request.state, hub.in_flight_ops) == (State.FAILED, 2)
    hub.schedulers["a"].complete(grant, 2, 20, 0.0)
    hub.settle(0.0)
    hub.validate()
    assert (request.state, hub.in_flight_ops) == (State.RETIRED, 0)


def test_an_owner_that_cannot_be_woken_for_a_grant_is_told_of_the_end() -> None:
    hub = Hub()
    told: list[State] = []

    def wake(request: Request) -> None:
        if request.inbox:
            raise DeadLoopError
        told.append(request.state)

    submit(hub, "a", on_wake=wake)
    hub.settle(0.0)
    assert set(told) == {State.RETIRED}


def test_what_a_handler_raised_comes_out_and_costs_the_owner_nothing() -> None:
    hub = Hub(is_of_a_handler=lambda error: isinstance(error, TimeoutError))
    calls: list[int] = []

    def wake(request: Request) -> None:
        calls.append(request.seq)
        if len(calls) == 1:
            raise TimeoutError

    request = submit(hub, "a", on_wake=wake)
    with pytest.raises(TimeoutError):
        hub.settle(0.0)
    assert calls == [request.seq] * 2
    assert request.state is State.RUNNING


def test_one_owner_that_was_interrupted_is_woken_all_the_same() -> None:
    hub = Hub()
    calls: list[int] = []

    def wake(request: Request) -> None:
        calls.append(request.seq)
        if len(calls) == 1:
            raise KeyboardInterrupt

    request = submit(hub, "a", on_wake=wake)
    with pytest.raises(KeyboardInterrupt):
        hub.settle(0.0)
    assert calls == [request.seq] * 2


@pytest.mark.parametrize("is_owed", [False, True])
def test_who_takes_a_result_is_not_woken_for_that(is_owed: bool) -> None:
    """But whoever else waits for it is, where its end has not been told yet."""
    hub = Hub()
    woken: list[State] = []
    request = submit(hub, "a", on_wake=lambda request: woken.append(request.state))
    hub.settle(0.0)
    scheduler = hub.scheduler("a")
    scheduler.complete(request.inbox.pop(), 1, 10, 0.0)
    if not is_owed:
        hub.settle(0.0)
    scheduler.consume(request, 0.0)
    hub.settle(0.0)
    after_the_end = woken[1:]
    assert after_the_end == ([State.RETIRED] if is_owed else [State.COMPLETE])


def test_recovery_wakes_the_owner_of_a_request_that_had_just_ended() -> None:
    """The exception came between the end of the request and the note to wake its owner."""
    hub = Hub()
    woken: list[Request] = []
    request = submit(hub, "a", on_wake=woken.append)
    hub.settle(0.0)
    woken.clear()
    request.state = State.CANCELLED
    request.grants.clear()
    hub.recover(0.0)
    hub.settle(0.0)
    assert woken == [request]
    assert not hub.schedulers["a"].requests


def test_recovery_admits_what_the_section_still_owed() -> None:
    """The exception came with the first read's grant, and no other event will have the second looked at."""
    hub = Hub()
    first, second = submit(hub, "a"), submit(hub, "a")

    def interrupt(*_: object) -> None:
        hub.trace = None
        raise KeyboardInterrupt

    hub.trace = interrupt
    with pytest.raises(KeyboardInterrupt):
        hub.settle(0.0)
    hub.recover(0.0)
    hub.settle(0.0)
    assert (len(first.inbox), len(second.inbox)) == (1, 1)


def test_speculation_gives_way_to_demand_after_a_recovery_as_before_it() -> None:
    hub = Hub(buffer_bytes=10)
    ahead = submit(hub, "a", is_speculative=True)
    hub.settle(0.0)
    serve(hub, [ahead], 0.0)
    hub.recover(0.0)
    demand = submit(hub, "a")
    hub.settle(0.0)
    assert (ahead.state, len(demand.inbox)) == (State.RETIRED, 1)


def test_who_waits_passes_a_head_that_nobody_waits_for_after_a_recovery_too() -> None:
    hub = Hub(buffer_bytes=10)
    unread = submit(hub, "a")
    hub.settle(0.0)
    _head, waiter = submit(hub, "a"), submit(hub, "a")
    waiter.is_awaited = True  # an interrupt came before it was ranked
    hub.recover(0.0)
    serve(hub, [unread], 0.0)
    assert len(waiter.inbox) == 1, "nothing else is in flight, and its thread may hold what fills the budget"


def test_what_comes_free_after_a_recovery_is_still_for_the_next_round_of_the_more_urgent() -> None:
    """I4: it does not wait in the queue, and is not to be overtaken by those who do."""
    hub = Hub()
    disk = hub.scheduler("disk", Limits(max_in_flight_ops=2, max_grant_ops=2))
    urgent = submit(hub, "disk", ops=4, series_ops=2)
    hub.settle(0.0)
    less = submit(hub, "disk", base=1)
    hub.recover(0.0)
    hub.settle(0.0)
    assert not less.inbox, "though an op of it would fit"
    disk.complete(urgent.inbox[0], 2, 20, 0.0)
    hub.settle(0.0)
    assert (urgent.next_op, len(less.inbox)) == (4, 1), "no round comes after that one"


def test_what_was_cut_in_two_is_given_back_once() -> None:
    """The exception came between a grant's ops and its bytes; its driver gives it back once more."""
    hub = Hub()
    cut, other = submit(hub, "a"), submit(hub, "a")
    hub.settle(0.0)
    (grant,) = cut.grants
    grant.ops_left = 0
    hub.recover(0.0)
    hub.schedulers["a"].cancel(cut)
    hub.schedulers["a"].forfeit(grant)
    hub.settle(0.0)
    hub.validate()
    assert hub.schedulers["a"].room.in_flight_bytes == other.grants[0].bytes_left == 10


# -- an exception at any line


class Boom(BaseException):
    """What a signal handler raises."""


class Program:
    """A program of sections, each run as `drivers.engine` runs it.

    What it must hold in the end, wherever an exception hit it: everything drained, every owner told,
    and only the reads that were given up are not complete.
    """

    def __init__(self, bomb: LineBomb) -> None:
        self.bomb = bomb
        self.now = 0.0
        self.hub = Hub(buffer_bytes=60, process_io_limit=4)
        window = Window(initial=50, least=10, most=500)
        self.disk = self.hub.scheduler("disk", Limits(window=window, max_in_flight_ops=3, max_grant_ops=2))
        self.store = self.hub.scheduler("store", Limits(max_in_flight_ops=2, max_grant_ops=1))
        self.given_up: set[Request] = set()
        self.told: dict[Request, set[Any]] = {}
        self.ended: set[Request] = set()
        self.all: list[tuple[Scheduler, Request]] = []

    def woken(self, request: Request) -> None:
        self.told.setdefault(request, set()).update(request.grants)
        if request.is_over:
            self.ended.add(request)

    def section(self, command: Callable[[], object]) -> bool:
        """Return whether the command itself came to its end."""
        self.now += 0.5
        is_done = False
        self.bomb.is_armed = True
        try:
            try:
                command()
                is_done = True
            except Boom:
                self.hub.recover(self.now)
            self.hub.settle(self.now)
        except Boom:
            self.hub.recover(self.now)
            self.hub.settle(self.now)
        self.bomb.is_armed = False
        return is_done

    def submit(self, scheduler: Scheduler, ops: int, **options: Any) -> Request:
        lengths = np.full(ops, 10, np.int64)
        request = Request(lengths, result_bytes=10 * ops, on_wake=self.woken, **options)
        if not self.section(lambda: scheduler.submit(request, self.now)):
            self.given_up.add(request)
            self.section(lambda: scheduler.cancel(request))
        else:
            self.all.append((scheduler, request))
        return request

    def perform(self, scheduler: Scheduler, request: Request) -> None:
        """Perform what is in flight, op by op, and again what an exception cut off."""
        for grant in list(request.grants):
            if grant in request.inbox:
                request.inbox.remove(grant)
            while grant.ops_left:
                self.section(lambda g=grant: scheduler.complete(g, 1, 10, self.now))  # type: ignore[misc]

    def give_up(self, scheduler: Scheduler, request: Request) -> None:
        self.given_up.add(request)
        self.section(lambda: scheduler.cancel(request))

    def run(self) -> None:
        disk, store = self.disk, self.store
        first = self.submit(disk, 3, scan="a")
        self.submit(disk, 3, scan="b", group="g")
        ahead = self.submit(store, 2, is_speculative=True)
        second = self.submit(store, 2, group="g")
        self.submit(disk, 2, is_nested=True)
        self.submit(disk, 0)
        self.perform(disk, first)
        if ahead not in self.given_up:
            while ahead.is_speculative and not ahead.is_over:  # or it may be dropped
                self.section(lambda: store.raise_priority(ahead, (-1, 0), self.now))
        self.perform(store, ahead)
        late = self.submit(disk, 2, priority=Priority(-2))
        self.give_up(disk, late)
        self.hub.drop(store, second)
        self.given_up.add(second)
        self.section(lambda: None)
        self.submit(disk, 3)
        bad = self.submit(disk, 1)
        self.given_up.add(bad)
        self.section(lambda: disk.fail(bad, OSError("gone")))

    def finish(self) -> None:
        """Perform everything and take every result."""
        for _ in range(20):
            for scheduler in (self.disk, self.store):
                for request in list(scheduler.requests.values()):
                    self.perform(scheduler, request)
                    self.section(lambda s=scheduler, r=request: s.consume(r, self.now))  # type: ignore[misc]

    def check(self) -> None:
        self.hub.validate()
        assert not self.disk.requests
        assert not self.store.requests
        assert (self.hub.budget.reserved_bytes, len(self.hub.budget)) == (0, 0)
        assert self.hub.in_flight_ops == 0
        for _, request in self.all:
            assert request in self.ended, "its owner sleeps"
            if request in self.given_up or request.is_speculative:
                continue  # given up, or never joined, for an exception came first
            assert request.error is None
            assert request.ops_done == request.n_ops
            assert self.told[request] or not request.n_ops, "nobody was told of a grant"


class LineBomb:
    """Raises at the n-th line that is run in the core, once."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.lines = 0
        self.is_armed = False

    def __call__(self, frame: Any, event: str, _arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(CORE):
            return None
        if event == "line" and self.is_armed:
            self.lines += 1
            if self.lines == self.at:
                raise Boom
        return self


def run_with(bomb: LineBomb) -> Program:
    program = Program(bomb)
    before = sys.gettrace()
    sys.settrace(bomb)
    try:
        program.run()
    finally:
        sys.settrace(before)
    program.finish()
    return program


def test_the_program_ends_well_when_left_alone() -> None:
    program = run_with(LineBomb(0))
    program.check()
    complete = [r for _, r in program.all if r not in program.given_up]
    assert len(complete) == 6


def test_an_exception_inside_a_recovery_costs_no_reservation() -> None:
    """At each of its lines: the next section recovers once more."""
    bomb = LineBomb(0)
    while bomb.lines >= bomb.at:
        bomb = LineBomb(bomb.at + 1)
        hub = Hub(buffer_bytes=100)
        for request in [submit(hub, "a", group="g") for _ in range(3)]:
            hub.settle(0.0)
            hub.scheduler("a").complete(request.inbox.pop(), 1, 10, 0.0)
            hub.settle(0.0)
        before, bomb.is_armed = sys.gettrace(), True
        sys.settrace(bomb)
        try:
            with contextlib.suppress(Boom):
                hub.recover(0.0)
        finally:
            sys.settrace(before)
        hub.recover(0.0)
        hub.settle(0.0)
        hub.validate()
        assert (hub.budget.reserved_bytes, hub.budget.is_group_holding("g")) == (30, True), bomb.at
    assert bomb.at > 20


def test_an_exception_at_any_line_costs_nobody_else_a_read() -> None:
    """Every line that the program runs in the core, one after the other."""
    quiet = LineBomb(0)
    run_with(quiet)
    assert quiet.lines > 1000
    for at in range(1, quiet.lines + 1):
        program = run_with(LineBomb(at))
        try:
            program.check()
        except AssertionError as error:
            error.add_note(f"the exception was raised at line event {at}")
            raise


def test_stores_at_rest_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may have read from a thousand of them."""
    hub = Hub(buffer_bytes=15)
    for number in range(100):
        request = submit(hub, f"store {number}")
        hub.settle(0.0)
        serve(hub, [request], 0.0)
        hub.scheduler(f"store {number}").consume(request, 0.0)
    asked: set[int] = set()
    head = PriorityQueue.head

    def noting(queue: PriorityQueue[Request]) -> Request | None:
        asked.add(id(queue))
        return head(queue)

    monkeypatch.setattr(PriorityQueue, "head", noting)
    requests = [submit(hub, "store 7"), submit(hub, "store 7"), submit(hub, "store 8", is_speculative=True)]
    hub.settle(0.0)
    assert hub.is_short_of_budget() is False
    busy = [hub.scheduler(device) for device in ("store 7", "store 8")]
    assert asked <= {id(queue) for one in busy for queue in (one.queue, one.speculative)}
    assert asked
    assert len(requests) == 3


def read_through(hub: Hub, device: str) -> None:
    request = submit(hub, device)
    hub.settle(0.0)
    serve(hub, [request], 0.0)
    hub.scheduler(device).consume(request, 0.0)


def test_the_schedulers_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP every host has one."""
    monkeypatch.setattr(hub_module, "SCHEDULERS", 4)
    hub = Hub()
    read_through(hub, "disk")
    often = weakref.ref(hub.scheduler("disk"))
    waiting, writing = submit(hub, "waiting"), hub.scheduler("writing")
    writing.room.uploads.begin("a file", 1)
    read_through(hub, "seldom")
    seldom = weakref.ref(hub.scheduler("seldom"))
    for number in range(10):
        read_through(hub, "disk")
        read_through(hub, f"host {number}")
    assert list(hub.schedulers) == ["disk", "waiting", "writing", "host 9"]
    assert hub.scheduler("disk") is often()
    assert seldom() is None
    hub.settle(0.0)
    serve(hub, [waiting], 0.0)


def test_a_device_never_has_two_schedulers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One who looked his up before many others were made submits to it then, and others find it."""
    monkeypatch.setattr(hub_module, "SCHEDULERS", 1)
    hub = Hub()
    mine = hub.scheduler("mine", Limits(max_in_flight_ops=1))
    read_through(hub, "another")
    assert list(hub.schedulers) == ["another"]
    request = Request([10], result_bytes=10)
    mine.submit(request, 0.0)
    hub.settle(0.0)
    hub.recover(0.0)
    hub.validate()
    assert hub.in_flight_ops == 1
    assert hub.scheduler("mine") is mine
    serve(hub, [request], 0.0)
    mine.consume(request, 0.0)
    read_through(hub, "another")
    read_through(hub, "a third")
    assert "mine" not in hub.schedulers
    assert hub.scheduler("mine") is mine
