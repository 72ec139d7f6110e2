"""The rules of admission, and the deadlocks they prevent, one by one (I2, I3, I5, I7)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace.core.admission import (
    can_reserve,
    is_most_urgent,
    is_sibling,
    is_stuck,
    is_unlimited,
    pick_passing,
)
from headrace.core.budget import ByteBudget
from headrace.core.hub import Hub
from headrace.core.request import Request, State
from headrace.core.room import Limits
from headrace.core.scheduler import Scheduler
from headrace.core.window import Window
from headrace.types import Priority


def a_request(nbytes: int = 10, ops: int = 1, base: int = 0, **options: Any) -> Request:
    """Return a request of `nbytes` in ops of equal length."""
    lengths = np.full(ops, nbytes // ops, np.int64)
    is_awaited = options.pop("is_awaited", False)
    request = Request(lengths, result_bytes=nbytes, priority=Priority(base), **options)
    request.is_awaited = is_awaited
    return request


def submit(hub: Hub, device: str = "disk", **options: Any) -> Request:
    request = a_request(**options)
    scheduler_of(hub, device).submit(request, 0.0)
    hub.settle(0.0)
    return request


def scheduler_of(hub: Hub, device: str = "disk") -> Scheduler:
    return hub.scheduler(device, Limits(max_in_flight_ops=2))


def finish(hub: Hub, request: Request) -> None:
    """Perform what is in flight of the request, and what that admits, until it stands still."""
    scheduler = next(s for s in hub.schedulers.values() if request.seq in s.requests)
    while request.inbox:
        grant = request.inbox.pop(0)
        scheduler.complete(grant, grant.ops_left, grant.bytes_left, 0.0)
        hub.settle(0.0)
        hub.validate()


def consume(hub: Hub, request: Request) -> None:
    finish(hub, request)
    assert request.state is State.COMPLETE
    next(s for s in hub.schedulers.values() if request.seq in s.requests).consume(request, 0.0)
    hub.settle(0.0)


def is_admitted(request: Request) -> bool:
    return request.next_op > 0


# -- Lance's deadlocks


def test_scheduling_order_differs_from_consumption_order_with_a_small_budget() -> None:
    """The consumer wants the urgent read first; the budget is full of what it takes later."""
    hub = Hub(buffer_bytes=100)
    later = submit(hub, nbytes=100, base=1)
    finish(hub, later)
    first = submit(hub, nbytes=100, base=0)
    assert is_admitted(first)
    for request in (first, later):
        consume(hub, request)
    assert hub.budget.reserved_bytes == 0


def test_a_zero_budget_admits_everything() -> None:
    hub = Hub(buffer_bytes=0)
    requests = [submit(hub, nbytes=1 << 40) for _ in range(2)]
    assert all(is_admitted(request) for request in requests)


def test_chunks_of_one_wide_request_pass_an_unconsumed_more_urgent_one() -> None:
    """The first chunk is held until the last has arrived, on another device."""
    hub = Hub(buffer_bytes=100)
    urgent = submit(hub, nbytes=50, base=-1)
    finish(hub, urgent)
    submit(hub, nbytes=50, group="wide")
    last = submit(hub, "store", nbytes=50, group="wide")
    assert is_admitted(last)
    assert not is_admitted(submit(hub, "store", nbytes=50, group="other"))


@pytest.mark.parametrize("when", ["queued", "running", "complete"])
@pytest.mark.parametrize("how", ["cancel", "drop", "fail"])
def test_a_cancelled_read_gives_its_reservation_back(when: str, how: str) -> None:
    hub = Hub(buffer_bytes=100)
    scheduler = scheduler_of(hub)
    held = submit(hub, nbytes=100)
    gone = submit(hub, nbytes=60) if when == "queued" else held
    if when == "complete":
        finish(hub, held)
    waits = submit(hub, nbytes=100)
    assert not is_admitted(waits)
    if how == "drop":
        hub.drop(scheduler, gone)
    elif how == "cancel":
        scheduler.cancel(gone)
    else:
        scheduler.fail(gone, OSError("gone"))
    hub.settle(0.0)
    if when == "running":
        assert hub.budget.reserved_bytes == 100, "its op is in flight and writes to its buffer (I9)"
        finish(hub, gone)
    if how == "fail" and when == "complete":
        consume(hub, held)  # it is there: too late to fail
    elif when == "queued":
        consume(hub, held)
    assert is_admitted(waits)
    consume(hub, waits)
    assert (hub.budget.reserved_bytes, len(scheduler.requests)) == (0, 0)


def test_close_leaves_no_waiter_parked() -> None:
    hub = Hub(buffer_bytes=100)
    woken: list[Request] = []
    error = RuntimeError("closed")
    requests = [submit(hub, nbytes=100, on_wake=woken.append) for _ in range(3)]
    requests += [submit(hub, "store", nbytes=100, on_wake=woken.append) for _ in range(3)]
    woken.clear()
    hub.close(error)
    hub.settle(0.0)
    assert {request.seq for request in woken} == {request.seq for request in requests}
    assert all(request.error is error for request in requests)
    finish(hub, requests[0])
    assert (hub.budget.reserved_bytes, hub.in_flight_ops) == (0, 0)


# -- and ours


def test_a_blocked_waiter_with_nothing_in_flight_is_admitted() -> None:
    """Its own thread holds what fills the budget."""
    hub = Hub(buffer_bytes=100)
    finish(hub, submit(hub, nbytes=100))
    assert not is_admitted(submit(hub, nbytes=100, base=1))
    assert is_admitted(submit(hub, nbytes=100, is_awaited=True))


@pytest.mark.parametrize("base", [0, 3], ids=["equal", "less urgent"])
def test_a_waiter_behind_a_head_nobody_waits_for_is_admitted(base: int) -> None:
    """Reads that were submitted and are not asked for yet fill the budget and head the queue."""
    hub = Hub(buffer_bytes=100)
    unread = submit(hub, nbytes=100)
    finish(hub, unread)
    ahead = submit(hub, nbytes=100)
    waiter = submit(hub, nbytes=100, base=base, is_awaited=True)
    assert not is_admitted(ahead)
    assert is_admitted(waiter)
    for request in (waiter, unread, ahead):
        consume(hub, request)
    assert hub.budget.reserved_bytes == 0


def test_those_who_wait_go_side_by_side_past_a_head_nobody_waits_for() -> None:
    """Its consumer may never come, and they fit the budget beside what he has not taken."""
    hub = Hub(buffer_bytes=100)
    unread = submit(hub, nbytes=70)
    finish(hub, unread)
    ahead = submit(hub, nbytes=70)
    waiters = [submit(hub, nbytes=10, is_awaited=True) for _ in range(3)]
    assert [is_admitted(waiter) for waiter in waiters] == [True, True, False], "the device takes two"
    scheduler_of(hub).note_awaited(ahead)
    finish(hub, waiters[0])
    assert not is_admitted(waiters[2]), "now the head has its turn"
    for request in (*waiters[:2], unread, ahead, waiters[2]):
        consume(hub, request)
    assert hub.budget.reserved_bytes == 0


def test_waiting_later_counts_too() -> None:
    hub = Hub(buffer_bytes=100)
    finish(hub, submit(hub, nbytes=100))
    ahead, waiter = submit(hub, nbytes=100), submit(hub, nbytes=100)
    assert not is_admitted(waiter)
    scheduler_of(hub).note_awaited(waiter)
    hub.settle(0.0)
    assert (is_admitted(ahead), is_admitted(waiter)) == (False, True)


def test_what_was_admitted_in_part_goes_on_behind_a_head_without_budget() -> None:
    """Scans take turns: the other's head waits for what this one holds."""
    hub = Hub(buffer_bytes=100)
    begun = submit(hub, nbytes=100, ops=10, scan="a", is_awaited=True)
    ahead = submit(hub, nbytes=100, ops=10, scan="b")
    assert begun.next_op == 2
    assert scheduler_of(hub).queue.head() is ahead
    consume(hub, begun)
    consume(hub, ahead)


def test_a_holder_on_another_device_lets_its_siblings_pass_at_once() -> None:
    """In whatever order the devices are looked at."""
    hub = Hub(buffer_bytes=100)
    for device in ("disk", "store"):
        scheduler_of(hub, device)
    held = submit(hub, "store", nbytes=90)
    finish(hub, held)
    large = a_request(nbytes=50, group="wide")
    small = a_request(nbytes=10, group="wide")
    scheduler_of(hub, "disk").submit(large, 0.0)
    scheduler_of(hub, "store").submit(small, 0.0)
    hub.settle(0.0)
    assert is_admitted(small)
    assert is_admitted(large)


def test_a_holder_on_another_device_that_leaves_too_little_lets_started_reads_go_on_at_once() -> None:
    """The head has a right to the budget and waits for the window, until another device takes the budget."""
    hub = Hub(buffer_bytes=300)
    window = Window(initial=100, least=100, most=100)
    disk = hub.scheduler("disk", Limits(window=window, max_in_flight_ops=20, max_grant_ops=20))
    started = submit(hub, nbytes=200, ops=20, scan="a")
    head = submit(hub, nbytes=85, scan="b")
    disk.complete(started.inbox[0], 3, 30, 0.0)
    hub.settle(0.0)
    assert (started.next_op, head.next_op) == (10, 0)
    submit(hub, "store", nbytes=50)
    assert (started.next_op, head.next_op) == (11, 0)


# -- speculation, I7


def test_speculation_is_dropped_before_the_budget_is_exceeded() -> None:
    hub = Hub(buffer_bytes=100)
    ahead = [submit(hub, nbytes=30, is_speculative=True, base=9) for _ in range(3)]
    for request in ahead:
        finish(hub, request)
    demand = submit(hub, nbytes=60)
    assert is_admitted(demand)
    assert [request.state for request in ahead] == [State.RETIRED, State.RETIRED, State.COMPLETE]
    assert hub.budget.peak_bytes <= 100


def test_speculation_in_flight_is_not_dropped() -> None:
    """The kernel writes to its buffer (I9)."""
    hub = Hub(buffer_bytes=100)
    ahead = submit(hub, nbytes=100, is_speculative=True)
    demand = submit(hub, nbytes=100)
    assert (ahead.state, is_admitted(demand)) == (State.RUNNING, False)
    finish(hub, ahead)
    assert (ahead.state, is_admitted(demand)) == (State.RETIRED, True)


def test_speculation_that_was_joined_is_not_dropped() -> None:
    hub = Hub(buffer_bytes=100)
    ahead = submit(hub, nbytes=100, is_speculative=True)
    scheduler_of(hub).raise_priority(ahead, (0, 0), 0.0)
    finish(hub, ahead)
    assert not is_admitted(submit(hub, nbytes=100))
    assert ahead.state is State.COMPLETE


def test_speculation_takes_no_budget_that_demand_of_another_device_waits_for() -> None:
    hub = Hub(buffer_bytes=100)
    held = submit(hub, nbytes=60)
    demand = submit(hub, nbytes=60, is_awaited=True)
    ahead = submit(hub, "store", nbytes=30, is_speculative=True)
    assert not is_admitted(ahead)
    consume(hub, held)
    assert (is_admitted(demand), is_admitted(ahead)) == (True, True)


def test_demand_that_nobody_waits_for_and_other_demand_keeps_out_leaves_speculation_alone() -> None:
    """Its consumer may take as long as he likes, and what was read ahead would not make it fit."""
    hub = Hub(buffer_bytes=100)
    unread = submit(hub, nbytes=60)
    finish(hub, unread)
    ahead = submit(hub, "store", nbytes=30, is_speculative=True)
    finish(hub, ahead)
    demand = submit(hub, nbytes=60)
    further = submit(hub, "store", nbytes=10, is_speculative=True)
    assert (is_admitted(demand), is_admitted(further), ahead.state) == (False, True, State.COMPLETE)
    scheduler_of(hub).note_awaited(demand)
    hub.settle(0.0)
    assert (is_admitted(demand), ahead.state) == (True, State.RETIRED)


def test_speculation_gives_way_to_demand_that_is_larger_than_the_budget() -> None:
    """It would be admitted alone."""
    hub = Hub(buffer_bytes=100)
    ahead = submit(hub, "store", nbytes=50, is_speculative=True)
    finish(hub, ahead)
    assert is_admitted(submit(hub, nbytes=200))
    assert ahead.state is State.RETIRED


def test_what_was_read_ahead_keeps_nobody_from_passing() -> None:
    """More urgent than all demand that holds: what is in flight of the same scan's read-ahead is none."""
    hub = Hub(buffer_bytes=100)
    unread = submit(hub, nbytes=70, base=5)
    finish(hub, unread)
    ahead = submit(hub, nbytes=20, is_speculative=True, base=-1)
    assert is_admitted(ahead)
    assert is_admitted(submit(hub, nbytes=90, is_awaited=True))


def test_a_more_urgent_read_passes_read_ahead_that_is_in_flight() -> None:
    hub = Hub(buffer_bytes=100)
    ahead = submit(hub, nbytes=100, is_speculative=True)
    assert is_admitted(ahead)
    assert is_admitted(submit(hub, nbytes=10, base=-5))


def test_speculation_stays_where_demand_waits_for_other_demand_all_the_same() -> None:
    """Somebody waits for it; but what was read ahead would be read again, and nothing won."""
    hub = Hub(buffer_bytes=100)
    unread = submit(hub, nbytes=60)
    finish(hub, unread)
    ahead = submit(hub, nbytes=30, is_speculative=True)
    finish(hub, ahead)
    in_flight = submit(hub, nbytes=5)
    demand = submit(hub, nbytes=80, is_awaited=True)
    further = submit(hub, "store", nbytes=1, is_speculative=True)
    assert (is_admitted(demand), is_admitted(further), ahead.state) == (False, False, State.COMPLETE)
    finish(hub, in_flight)
    assert (is_admitted(demand), ahead.state) == (True, State.RETIRED), "it is stuck now"


def test_speculation_gives_way_to_demand_that_nobody_waits_for_if_that_would_fit() -> None:
    hub = Hub(buffer_bytes=100)
    ahead = [submit(hub, "store", nbytes=50, is_speculative=True) for _ in range(2)]
    finish(hub, ahead[0])
    demand = submit(hub, nbytes=60)
    assert ahead[0].state is State.RETIRED
    assert not is_admitted(demand), "the other one is in flight"
    further = submit(hub, "store", nbytes=10, is_speculative=True)
    assert not is_admitted(further)
    finish(hub, ahead[1])
    assert is_admitted(demand)


def test_speculation_waits_while_demand_is_queued() -> None:
    hub = Hub()
    running = [submit(hub) for _ in range(2)]
    ahead = submit(hub, is_speculative=True, base=-9)
    demand = submit(hub, base=9)
    finish(hub, running[0])
    assert (is_admitted(demand), is_admitted(ahead)) == (True, False)


@pytest.mark.parametrize("limit", ["window", "ops", "process"])
def test_speculation_leaves_room_for_demand_that_comes(limit: str) -> None:
    """I7: whatever limits what is in flight, demand finds half of it free."""
    hub = Hub(process_io_limit=4 if limit == "process" else 0)
    window = Window(initial=48, least=48, most=48) if limit == "window" else None
    scheduler = hub.scheduler("disk", Limits(window=window, max_in_flight_ops=4 if limit == "ops" else 99))
    ahead = [submit(hub, is_speculative=True) for _ in range(4)]
    assert [is_admitted(request) for request in ahead] == [True, True, False, False]
    assert is_admitted(submit(hub))
    scheduler.raise_priority(ahead[3], (0, 0), 0.0)
    hub.settle(0.0)
    assert is_admitted(ahead[3]), "it was joined"


def test_speculation_has_no_right_to_go_on() -> None:
    """With room for a single op, that is demand's; what is larger than its part waits to be joined."""
    hub = Hub()
    hub.scheduler("disk", Limits(max_in_flight_ops=1))
    assert not is_admitted(submit(hub, is_speculative=True))
    assert is_admitted(submit(hub))


# -- the predicates


def a_full_budget(base: int = 0, group: str | None = None) -> ByteBudget:
    budget = ByteBudget(100)
    budget.hold("holder", 100, Priority(base), group)
    return budget


def test_each_exemption_by_name() -> None:
    assert is_unlimited(ByteBudget(0))
    assert not is_unlimited(ByteBudget(1))
    assert is_most_urgent(a_request(base=0), a_full_budget(base=1))
    assert not is_most_urgent(a_request(base=0), a_full_budget(base=0))
    assert not is_most_urgent(a_request(), ByteBudget(1))
    assert is_sibling(a_request(group="g"), a_full_budget(group="g"))
    assert not is_sibling(a_request(group="g"), a_full_budget(group="h"))
    assert not is_sibling(a_request(group=None), a_full_budget(group=None))
    assert is_stuck(a_request(is_awaited=True), 0)
    assert not is_stuck(a_request(is_awaited=True), 1)
    assert not is_stuck(a_request(), 0)


@pytest.mark.parametrize("exemption", ["urgent", "sibling", "stuck"])
def test_speculation_has_no_exemption(exemption: str) -> None:
    options: dict[str, Any] = {
        "urgent": {"base": -1},
        "sibling": {"group": "g"},
        "stuck": {"is_awaited": True},
    }[exemption]
    budget = a_full_budget(group="g")
    assert can_reserve(a_request(**options), budget, 0)
    assert not can_reserve(a_request(is_speculative=True, **options), budget, 0)
    assert not can_reserve(a_request(group="other"), budget, 0)


def test_what_passes_a_blocked_head() -> None:
    budget = a_full_budget()
    head, begun, waiter = a_request(), a_request(base=1), a_request(is_awaited=True)
    ahead = a_request(is_speculative=True)
    assert pick_passing(head, [begun], waiter, budget, 0) is begun
    assert pick_passing(head, [], waiter, budget, 0) is waiter
    assert pick_passing(head, [], waiter, budget, 1) is None
    assert pick_passing(head, [ahead], None, budget, 0) is None
    assert pick_passing(a_request(is_speculative=True), [ahead], None, budget, 0) is ahead


@pytest.mark.parametrize("is_awaited", [False, True], ids=["not awaited", "awaited"])
def test_what_fits_passes_a_head_nobody_waits_for(is_awaited: bool) -> None:
    budget = ByteBudget(100)
    budget.hold("unread", 80, Priority())
    head, small = a_request(60, is_awaited=is_awaited), a_request(20, base=1, is_awaited=True)
    assert pick_passing(head, [], small, budget, 3) is (None if is_awaited else small)


def test_the_first_that_is_awaited_is_not_passed_by_those_that_fit() -> None:
    """Else it would wait for a moment with nothing in flight, which might never come."""
    hub = Hub(buffer_bytes=100)
    unread = submit(hub, nbytes=80)
    finish(hub, unread)
    submit(hub, nbytes=60)
    running = submit(hub, nbytes=10, is_awaited=True)
    small = submit(hub, nbytes=5, base=1, is_awaited=True)
    large = submit(hub, nbytes=30, is_awaited=True)
    later = submit(hub, nbytes=5, is_awaited=True)
    assert [is_admitted(request) for request in (running, small, large, later)] == [True, True, False, False]
    consume(hub, running)
    assert not is_admitted(later)
    consume(hub, small)
    assert is_admitted(large), "nothing was in flight any more"


def test_who_waits_and_becomes_more_urgent_is_the_first() -> None:
    hub = Hub(buffer_bytes=100)
    finish(hub, submit(hub, nbytes=90))
    submit(hub, nbytes=60)
    running = [submit(hub, nbytes=1, is_awaited=True) for _ in range(2)]
    waiters = [submit(hub, nbytes=5, base=3, is_awaited=True) for _ in range(2)]
    scheduler_of(hub).raise_priority(waiters[1], (2, 0), 0.0)
    consume(hub, running[0])
    assert [is_admitted(waiter) for waiter in waiters] == [False, True]
