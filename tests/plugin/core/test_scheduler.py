"""Admission to one device: limits that come back, slices, ends of requests, and scale (I1, I3, I4)."""

from __future__ import annotations

import gc
import os
import sys
import weakref
from typing import Any

import numpy as np
import pytest

from headrace.core.hub import Hub
from headrace.core.link import Link
from headrace.core.plan import plan_ranges
from headrace.core.queue import AGEING_S
from headrace.core.request import Grant, Request, State
from headrace.core.room import TURN_BYTES, Calls, Limits
from headrace.core.scheduler import Scheduler
from headrace.core.window import Window
from headrace.errors import IllegalTransitionError
from headrace.types import UNKNOWN_LENGTH, Priority

REQUESTS = int(os.environ.get("HEADRACE_TEST_SOAK", "100000"))


def a_scheduler(window: int = 0, ops: int = 100, grant: int = 100, **limits: int) -> tuple[Hub, Scheduler]:
    hub = Hub(**limits)
    shape = Window(initial=window, least=1, most=10 * window) if window else None
    return hub, hub.scheduler("disk", Limits(window=shape, max_in_flight_ops=ops, max_grant_ops=grant))


def a_request(*lengths: int, base: int = 0, **options: Any) -> Request:
    nbytes = options.pop("result_bytes", sum(lengths))
    columns = np.array(lengths, np.int64)
    return Request(columns, result_bytes=nbytes, priority=Priority(base), **options)


def submit(scheduler: Scheduler, *lengths: int, **options: Any) -> Request:
    request = a_request(*lengths, **options)
    scheduler.submit(request, 0.0)
    settle(scheduler)
    return request


def settle(scheduler: Scheduler) -> None:
    scheduler.hub.settle(0.0)
    scheduler.hub.validate()


def complete(scheduler: Scheduler, grant: Grant) -> None:
    scheduler.complete(grant, grant.ops_left, grant.bytes_left, 0.0)
    settle(scheduler)


def state_of(scheduler: Scheduler) -> tuple[int, ...]:
    hub = scheduler.hub
    flying = scheduler.room.in_flight_ops, scheduler.room.in_flight_bytes, len(scheduler.room.in_flight_bases)
    return (*flying, scheduler.waiting, hub.in_flight_ops, hub.budget.reserved_bytes)


# -- what needs no queue


def test_one_op_with_nothing_beside_it_is_admitted_as_it_is_submitted() -> None:
    hub, scheduler = a_scheduler(window=100)
    request = a_request(30, group="g")
    scheduler.submit(request, 0.0)
    (grant,) = request.inbox
    hub.validate()
    assert state_of(scheduler) == (1, 30, 1, 0, 1, 30)
    assert hub.budget.is_group_holding("g")
    complete(scheduler, grant)
    scheduler.consume(request, 0.0)
    assert state_of(scheduler) == (0,) * 6


def test_one_op_alone_tells_of_no_device_that_held_it_back() -> None:
    """The window cut a request that is gone: that is no reason to try another size."""
    _, scheduler = a_scheduler(window=20)
    cut = submit(scheduler, 15, 15)
    assert scheduler.room.is_held_back
    scheduler.cancel(cut)
    complete(scheduler, cut.inbox.pop())
    submit(scheduler, 10)
    assert not scheduler.room.is_held_back


@pytest.mark.parametrize(
    "what", ["in flight", "waits here", "waits elsewhere", "is written", "is speculative", "several", "long"]
)
def test_any_other_waits_for_the_end_of_the_section(what: str) -> None:
    """There the most urgent goes first, and what is shared is looked at."""
    hub, scheduler = a_scheduler(window=100, ops=1 if what == "waits here" else 100)
    if what in ("in flight", "waits here"):
        submit(scheduler, 10)
    if what == "waits here":
        submit(scheduler, 10, base=5)
    if what == "waits elsewhere":
        hub.scheduler("other", Limits(max_in_flight_ops=1)).submit(a_request(1, 1), 0.0)
    if what == "is written":
        scheduler.room.uploads.begin("a write", 1)
    lengths = {"several": (10, 10), "long": (200,)}.get(what, (10,))
    request = a_request(*lengths, is_speculative=what == "is speculative")
    scheduler.submit(request, 0.0)
    assert not request.inbox
    settle(scheduler)
    assert bool(request.inbox) is (what != "waits here")


# -- I1


def a_store(window: int, most: int = 100) -> Scheduler:
    shape = Window(initial=window, least=1, most=most)
    return Hub().scheduler(
        "store", Limits(window=shape, max_in_flight_ops=most, max_grant_ops=1, counts_ops=True)
    )


def a_store_of_calls(
    window: int, most: int = 100, at_once: int = 10, longest: int = 10, process_limit: int = 0
) -> Scheduler:
    shape = Window(initial=window, least=1, most=window)
    return Hub(process_io_limit=process_limit).scheduler(
        "store",
        Limits(
            window=shape,
            max_in_flight_ops=window,
            max_grant_ops=longest,
            counts_ops=True,
            calls=Calls(most, at_once, least_bytes=100, most_bytes=10_000),
        ),
    )


def sizes_of(grants: list[Grant]) -> list[int]:
    return [grant.hi - grant.lo for grant in grants]


def a_slow_store(grant: int = 1, *, calls: Calls | None = None) -> Scheduler:
    """Of 100 requests, and a link of which 64 MiB are asked for at once."""
    shape = Window(initial=100, least=1, most=100)
    return Hub().scheduler(
        "store",
        Limits(
            window=shape,
            max_in_flight_ops=100,
            max_grant_ops=grant,
            counts_ops=True,
            calls=calls,
            link=Link(32.0),
        ),
    )


OP = 8 << 20


def test_a_link_has_no_more_bytes_in_flight_than_it_brings_in_time() -> None:
    scheduler = a_slow_store()
    request = submit(scheduler, *[OP] * 100)
    assert len(request.inbox) == 7, "an eighth is kept for urgent reads"
    assert not scheduler.room.is_held_back, "which tells the window of requests nothing"
    urgent = submit(scheduler, OP, OP, base=-1)
    assert len(urgent.inbox) == 1
    grant = request.inbox.pop(0)
    scheduler.complete(grant, 1, OP, 0.001)
    settle(scheduler)
    assert len(request.inbox) > 50, "the first answer shows that it is fast"


def test_an_attempt_that_is_late_takes_room_from_the_link() -> None:
    scheduler = a_slow_store()
    request = submit(scheduler, *[OP] * 100)
    for _ in range(7):
        scheduler.room.note_throttled(32.0, is_late=True)
    scheduler.complete(request.inbox.pop(0), 1, OP, 1e6)
    settle(scheduler)
    assert len(request.inbox) == 6, "no other takes its place"


def test_a_failed_attempt_says_nothing_of_the_link() -> None:
    """However soon its answer came, its bytes did not."""
    scheduler = a_slow_store()
    request = submit(scheduler, *[OP] * 100)
    scheduler.complete(request.inbox.pop(0), 1, OP, 0.001, is_failed=True)
    settle(scheduler)
    assert len(request.inbox) == 7, "as many as before"


def test_one_op_goes_over_the_link_however_long_it_is() -> None:
    scheduler = a_slow_store()
    assert len(submit(scheduler, 1 << 40, 1 << 40).inbox) == 1


def test_speculation_has_no_right_to_a_link_that_it_would_fill() -> None:
    """I7: a demand read that comes would have to share it with an op that is never taken back."""
    scheduler = a_slow_store()
    ahead = submit(scheduler, 1 << 40, is_speculative=True)
    assert ahead.inbox == []
    scheduler.raise_priority(ahead, (0, 0), 0.0)
    settle(scheduler)
    assert len(ahead.inbox) == 1, "it was joined"


def test_a_short_read_does_not_wait_for_what_fills_the_link() -> None:
    scheduler = a_slow_store()
    submit(scheduler, 1 << 40)
    assert len(submit(scheduler, 1 << 20).inbox) == 1
    assert len(submit(scheduler, *[4096] * 100).inbox) == 62, "so many at once"


def test_a_read_that_is_not_short_waits_for_what_fills_the_link() -> None:
    scheduler = a_slow_store()
    submit(scheduler, 1 << 40)
    assert submit(scheduler, 2 << 20).inbox == []


def test_whole_grants_are_as_long_as_the_link_takes_them() -> None:
    scheduler = a_slow_store(48, calls=Calls(3, at_once=48, most_bytes=1 << 40))
    request = submit(scheduler, *[OP] * 100)
    assert sizes_of(request.inbox) == [8], "with nothing in flight it has the whole limit"
    scheduler.complete(request.inbox[0], 1, OP, 1e6)
    settle(scheduler)
    assert sizes_of(request.inbox) == [8], "seven are left, an eighth is kept"
    scheduler.complete(request.inbox[0], 1, OP, 1e6)
    settle(scheduler)
    assert sizes_of(request.inbox) == [8, 1]


def test_what_comes_over_a_link_is_counted_from_its_admission() -> None:
    scheduler = a_slow_store()
    first, second = submit(scheduler, 1000), submit(scheduler, 1000)
    scheduler.complete(first.inbox[0], 1, 1000, 1.0)
    scheduler.complete(second.inbox[0], 1, 1000, 1.0)
    third = submit(scheduler, 1000)
    assert [r.inbox[0].arrived_before for r in (first, second, third)] == [0, 0, 2000]


def test_whole_grants_wait_for_room() -> None:
    """A slice is a call of its own: one cut short would stay short, call after call."""
    scheduler = a_store_of_calls(100)
    request = submit(scheduler, *[1] * 300)
    grants = [request.inbox.pop(0) for _ in range(len(request.inbox))]
    assert sizes_of(grants) == [10] * 8, "eight more would fit"
    scheduler.complete(grants[0], 1, 1, 0.0)
    settle(scheduler)
    assert request.inbox == [], "room for nine"
    scheduler.complete(grants[0], 1, 1, 0.0)
    settle(scheduler)
    assert sizes_of(request.inbox) == [10]


def test_a_small_window_is_used_by_shorter_grants() -> None:
    scheduler = a_store_of_calls(40)
    request = submit(scheduler, *[1] * 100)
    assert sizes_of(request.inbox) == [10, 10, 10, 5]


@pytest.mark.parametrize(
    ("n_ops", "sizes"),
    [
        (5, [3, 2]),  # shorter ones save nothing
        (42, [5] * 8 + [2]),  # a share for each of nine
        (101, [12] * 8 + [5]),  # however many wait inside of the calls: three of each are under way
        (1000, [50] * 9),  # no longer than the longest
    ],
)
def test_a_request_is_shared_out_to_calls(n_ops: int, sizes: list[int]) -> None:
    scheduler = a_store_of_calls(72, most=9, at_once=3, longest=50)
    request = submit(scheduler, *[1] * n_ops)
    assert sizes_of(request.inbox) == sizes
    assert scheduler.room.in_flight_ops == sum(min(size, 3) for size in sizes)
    assert scheduler.room.in_flight_calls == len(sizes)


def test_there_are_no_more_calls_than_the_window_has_room_for() -> None:
    scheduler = a_store_of_calls(80, at_once=10, longest=50)
    request = submit(scheduler, *[1] * 1000)
    assert sizes_of(request.inbox) == [50] * 7, "an eighth is kept"
    scheduler.complete(request.inbox[0], 50, 50, 0.0)
    settle(scheduler)
    assert sizes_of(request.inbox) == [50] * 8


def test_what_the_process_may_do_is_used_by_a_shorter_call() -> None:
    """It is no window, which would be used in full when the next call has ended."""
    scheduler = a_store_of_calls(460, longest=48, process_limit=16)
    assert sizes_of(submit(scheduler, *[1] * 1000).inbox) == [25, 6]


@pytest.mark.parametrize(
    ("length", "calls", "sizes"),
    [
        (1, 50, [10] * 4),
        (20, 50, [5] * 8),  # 100 bytes are not much for a call
        (600, 50, [1] * 40),  # its share of them is 600
        (600, 4, [10] * 4),  # and 6,000
        (1200, 4, [8] * 4),  # 10,000 are enough for one of several
        (20_000, 4, [1] * 4),
    ],
)
def test_long_ops_share_no_call(length: int, calls: int, sizes: list[int]) -> None:
    scheduler = a_store_of_calls(1000, most=calls, at_once=10, longest=50)
    assert sizes_of(submit(scheduler, *[length] * 40).inbox) == sizes


def test_ops_of_all_lengths_share_calls_by_bytes() -> None:
    scheduler = a_store_of_calls(1000, most=4, at_once=2, longest=50)
    request = submit(scheduler, *[10] * 20, *[1000] * 4, *[10] * 16)
    assert sizes_of(request.inbox) == [10, 10, 1, 1], "a quarter of the bytes, but no more ops than a quarter"


def test_whole_grants_are_cut_when_nothing_else_is_in_flight() -> None:
    scheduler = a_store_of_calls(4)
    request = submit(scheduler, *[1] * 12)
    sizes = []
    while request.inbox:
        sizes.append(request.inbox[0].hi - request.inbox[0].lo)
        complete(scheduler, request.inbox.pop(0))
    assert sum(sizes) == 12
    assert request.state is State.COMPLETE


def test_a_window_of_requests_counts_ops_and_not_bytes() -> None:
    scheduler = a_store(8)
    request = submit(scheduler, *[1 << 30] * 20)
    assert scheduler.room.in_flight_ops == 7, "the last eighth is for what is more urgent"
    assert scheduler.room.is_held_back
    complete(scheduler, request.inbox.pop(0))
    assert scheduler.room.in_flight_ops == 7
    submit(scheduler, 1, base=-1)
    assert scheduler.room.in_flight_ops == 8


def test_a_window_of_requests_at_the_limit_of_ops_still_says_that_it_holds_back() -> None:
    scheduler = a_store(4, most=4)
    submit(scheduler, *[1] * 20)
    assert (scheduler.room.in_flight_ops, scheduler.room.is_held_back) == (4, True)


def test_a_scheduler_says_what_may_be_in_flight_in_the_unit_of_its_window() -> None:
    """The other unit is limited by the device alone, or not at all."""
    _, disk = a_scheduler(window=80, ops=9)
    store = a_store(8, most=20)
    assert (disk.room.limit_bytes, disk.room.limit_ops) == (80, 9)
    assert store.room.limit_bytes > 1 << 60
    assert store.room.limit_ops == 8


def test_throttling_shrinks_the_window_and_failures_tell_it_nothing() -> None:
    scheduler = a_store(64)
    request = submit(scheduler, *[1] * 200)
    for _ in range(64):
        scheduler.room.note_throttled(1.0)
    assert scheduler.room.window is not None
    assert scheduler.room.window.limit == 32
    for _ in range(56):
        grant = request.inbox.pop(0)
        scheduler.complete(grant, 1, 1, 1.0, is_failed=True)
    settle(scheduler)
    assert scheduler.room.window.limit == 32
    assert scheduler.room.in_flight_ops == 28


def test_bytes_in_flight_stay_inside_the_window() -> None:
    _, scheduler = a_scheduler(window=80)
    request = submit(scheduler, *[15] * 20)
    assert (request.next_op, scheduler.room.in_flight_bytes) == (5, 75)


def test_the_last_part_of_the_window_is_kept_for_the_urgent() -> None:
    _, scheduler = a_scheduler(window=80)
    submit(scheduler, *[10] * 8)
    submit(scheduler, *[10] * 8)
    assert scheduler.room.in_flight_bytes == 80, "the first found it empty"
    _, scheduler = a_scheduler(window=80)
    submit(scheduler, 10)
    ordinary, urgent = submit(scheduler, *[10] * 9), submit(scheduler, *[10] * 9, base=-1)
    assert (ordinary.next_op, urgent.next_op) == (6, 1)


@pytest.mark.parametrize("length", [1000, UNKNOWN_LENGTH], ids=["large", "unknown"])
def test_one_op_is_admitted_where_nothing_is_in_flight(length: int) -> None:
    _, scheduler = a_scheduler(window=10)
    first = submit(scheduler, length, result_bytes=1000, unknown_bytes=500)
    second = submit(scheduler, 1)
    assert (first.next_op, second.next_op) == (1, 0)
    complete(scheduler, first.inbox.pop(0))
    assert second.next_op == 1


def test_the_throttle_counts_down_and_comes_back() -> None:
    """However an op ends: Lance's first version never counted down."""
    hub, scheduler = a_scheduler(window=100, ops=3, process_io_limit=3)
    rounds = 0
    for end in ("complete", "fail", "cancel", "drop", "close", "short") * 3:
        request = submit(scheduler, 10, 10, 10, 10)
        assert (hub.in_flight_ops, request.next_op) == (3, 3), "never more, and again all of them"
        grant = request.inbox.pop(0)
        if end == "complete":
            complete(scheduler, grant)
            complete(scheduler, request.inbox.pop(0))
            scheduler.consume(request, 0.0)
        elif end == "short":
            scheduler.complete(grant, 2, 20, 0.0)
            scheduler.complete(grant, 1, 3, 0.0)
            scheduler.cancel(request)
        else:
            _end(scheduler, request, end)
            scheduler.complete(grant, 1, 10, 0.0)
            scheduler.forfeit(grant)
        settle(scheduler)
        for left in list(request.grants):
            scheduler.forfeit(left)
        settle(scheduler)
        assert state_of(scheduler) == (0, 0, 0, 0, 0, 0)
        rounds += 1
    assert rounds == 18


def _end(scheduler: Scheduler, request: Request, how: str) -> None:
    if how == "fail":
        scheduler.fail(request, OSError("gone"))
    elif how == "cancel":
        scheduler.cancel(request)
    elif how == "drop":
        scheduler.hub.drop(scheduler, request)
    else:
        scheduler.hub.close(RuntimeError("closed"))
    settle(scheduler)


def test_the_last_op_gives_back_all_that_its_grant_was_charged() -> None:
    """A driver that reports too few bytes must not narrow the window for ever."""
    _, scheduler = a_scheduler(window=100)
    request = submit(scheduler, 40, 40)
    scheduler.complete(request.inbox[0], 2, 1, 0.0)
    settle(scheduler)
    assert scheduler.room.in_flight_bytes == 0


@pytest.mark.parametrize("limits", [{"process_io_limit": 1}, {"buffer_bytes": 1}])
def test_a_nested_read_runs_on_the_permit_of_its_parent(limits: dict[str, int]) -> None:
    hub, scheduler = a_scheduler(window=10, ops=1, grant=1, **limits)
    parent = submit(scheduler, 10)
    nested = submit(scheduler, 99, 99, is_nested=True)
    assert (len(parent.inbox), len(nested.inbox)) == (1, 2)
    assert (hub.in_flight_ops, hub.budget.reserved_bytes) == (1, 10)
    for request in (nested, parent):
        for grant in list(request.inbox):
            complete(scheduler, grant)
        assert request.state is State.COMPLETE


def test_a_hit_tells_the_controller_nothing() -> None:
    class Watched(Window):
        seen = 0

        def observe(self, **_: Any) -> None:
            self.seen += 1

    hub = Hub()
    window = Watched(initial=100, least=1, most=1000)
    scheduler = hub.scheduler("disk", Limits(window=window))
    for is_hit in (True, False):
        grant = submit(scheduler, 10).inbox.pop(0)
        scheduler.complete(grant, 1, 10, 0.0, is_hit=is_hit)
    assert (window.seen, scheduler.room.in_flight_bytes, hub.counters.ops_hit) == (1, 0, 1)


class TrustingWindow(Window):
    """Keeps what it was told of each completion: whether it held demand back."""

    limited: bool | None = None

    def observe(self, *, is_limited: bool, **_: Any) -> None:
        self.limited = is_limited


@pytest.mark.parametrize("is_nested", [False, True])
def test_the_window_is_told_of_what_it_admitted_alone(is_nested: bool) -> None:
    """A nested read was not, and an answer without an op is none."""
    shape = TrustingWindow(initial=10, least=1, most=10)
    scheduler = Hub().scheduler("disk", Limits(window=shape))
    grant = submit(scheduler, 10, is_nested=is_nested).inbox[0]
    scheduler.complete(grant, 0, 0, 0.0)
    assert shape.limited is None
    complete(scheduler, grant)
    assert (shape.limited is None) == is_nested


@pytest.mark.parametrize("series_ops", [1, 2])
@pytest.mark.parametrize(
    ("holds_back", "window", "ops", "process"),
    [
        ("nothing", 1000, 100, 0),
        ("the window", 100, 100, 0),
        ("the limit of ops", 1000, 2, 0),
        ("the limit of the process", 1000, 100, 3),
        ("the part of the window that speculation has", 100, 100, 0),
    ],
)
def test_the_window_is_told_that_it_is_limited_where_it_held_demand_back(
    holds_back: str, window: int, ops: int, process: int, series_ops: int
) -> None:
    """Whatever else holds reads back, or whichever reads, says nothing of the device."""
    hub = Hub(process_io_limit=process)
    submit(hub.scheduler("store", Limits(max_in_flight_ops=1)), 10, 10)
    shape = TrustingWindow(initial=window, least=1, most=window)
    scheduler = hub.scheduler("disk", Limits(window=shape, max_in_flight_ops=ops))
    request = submit(
        scheduler, *[10] * 40, base=-1, is_speculative="speculation" in holds_back, series_ops=series_ops
    )
    complete(scheduler, request.inbox[0])
    assert shape.limited == (holds_back == "the window")


def test_what_starts_at_once_keeps_every_limit() -> None:
    hub, scheduler = a_scheduler(window=100, ops=2, process_io_limit=2, buffer_bytes=1000)
    assert scheduler.has_room(100)
    assert not scheduler.has_room(101)
    grant = scheduler.start_now(a_request(60), 0.0)
    hub.validate()
    assert (scheduler.has_room(40), scheduler.has_room(41)) == (True, False)
    assert not scheduler.has_room(2, 2), "one op is left"
    other = scheduler.start_now(a_request(1), 0.0)
    assert not scheduler.has_room(1), "no op is left"
    for done in (grant, other):
        complete(scheduler, done)
        scheduler.consume(done.request, 0.0)
    several = scheduler.start_now(a_request(30, 40), 0.0)
    hub.validate()
    assert (several.ops_left, several.bytes_left) == (2, 70)
    scheduler.complete(several, 2, 70, 0.0)
    scheduler.consume(several.request, 0.0)
    submit(scheduler, *[50] * 9)
    assert not scheduler.has_room(1), "somebody waits"


def test_what_is_more_urgent_than_all_that_wait_starts_at_once() -> None:
    """It would be the head of the queue; one that waited for long is ahead of it, whatever its base."""
    hub, scheduler = a_scheduler(window=100)
    scan = submit(scheduler, *[20] * 9)
    scheduler.complete(scan.inbox[0], 1, 20, 0.0)
    hub.settle(0.0)
    assert scheduler.room.in_flight_bytes == 80, "an eighth is kept for what is more urgent"
    assert scheduler.has_room(20, 1, -1)
    assert not scheduler.has_room(21, 1, -1), "beyond the window"
    assert not scheduler.has_room(20)
    assert not scheduler.has_room(20, 1, -1, AGEING_S + 0.1), "the others have waited their turn"
    grant = scheduler.start_now(a_request(20, base=-1), 0.0)
    hub.validate()
    assert not scheduler.has_room(1, 1, -2), "the window is full"
    complete(scheduler, grant)


def test_what_starts_at_once_fits_the_budget() -> None:
    """I2: what was read and not taken yet is held, though nothing is in flight."""
    _, scheduler = a_scheduler(buffer_bytes=100)
    complete(scheduler, submit(scheduler, 60).inbox.pop(0))
    assert scheduler.has_room(40)
    assert not scheduler.has_room(41)
    assert not scheduler.has_room(41, 1, -1), "nor however urgent it is"


def test_what_starts_at_once_reserves_its_result_until_it_is_taken() -> None:
    hub, scheduler = a_scheduler(buffer_bytes=100)
    grant = scheduler.start_now(a_request(60), 0.0)
    assert hub.budget.reserved_bytes == 60
    other = submit(scheduler, 60)
    complete(scheduler, grant)
    assert not other.inbox
    scheduler.consume(grant.request, 0.0)
    settle(scheduler)
    assert len(other.inbox) == 1


# -- series


def test_what_is_complete_reserves_no_more_than_its_result() -> None:
    """Nobody knew before how long it would be; who waits for the budget goes on."""
    hub, scheduler = a_scheduler(buffer_bytes=50)
    request = submit(scheduler, UNKNOWN_LENGTH, result_bytes=40, group="g")
    waiting = submit(scheduler, 30)
    scheduler.note_length(request, 5)
    assert (request.result_bytes, hub.budget.reserved_bytes) == (40, 40), "what is in flight may be longer"
    complete(scheduler, request.inbox.pop())
    scheduler.note_length(request, 45)
    assert hub.budget.reserved_bytes == 40
    scheduler.note_length(request, 5)
    assert hub.budget.is_group_holding("g")
    settle(scheduler)
    assert len(waiting.inbox) == 1
    assert hub.budget.reserved_bytes == 35
    scheduler.consume(request, 0.0)
    scheduler.note_length(request, 1)
    assert hub.budget.reserved_bytes == 30


def test_a_series_takes_the_room_of_one_op() -> None:
    """I1: the others of it are not in flight; what is charged falls with the last of them."""
    hub, scheduler = a_scheduler(window=80)
    request = submit(scheduler, *[10] * 20, 7, series_ops=4)
    (grant,) = request.inbox
    assert (grant.lo, grant.hi) == (0, 21), "six series, which have room"
    assert state_of(scheduler) == (6, 60, 1, 0, 6, 207)
    for left, flying in ((17, (5, 50)), (8, (2, 20)), (5, (2, 20)), (2, (1, 10)), (1, (1, 7)), (0, (0, 0))):
        ops = grant.ops_left - left
        scheduler.complete(grant, ops, 10 * ops if left else 7, 0.0)
        settle(scheduler)
        assert (scheduler.room.in_flight_ops, scheduler.room.in_flight_bytes) == flying
    assert (request.state, hub.in_flight_ops) == (State.COMPLETE, 0)


@pytest.mark.parametrize(("limits", "series"), [({}, 3), ({"ops": 2}, 2), ({"process_io_limit": 1}, 1)])
def test_series_keep_every_limit(limits: dict[str, int], series: int) -> None:
    """And leave the last part of the window to more urgent reads, though nothing was in flight before."""
    _, scheduler = a_scheduler(window=40, **limits)
    request = submit(scheduler, *[10] * 100, series_ops=5)
    assert sizes_of(request.inbox) == [5 * series]
    assert scheduler.room.in_flight_ops == series
    assert scheduler.has_room(10, 1, -1, 0.0) == (not limits)


def test_one_series_is_admitted_where_nothing_is_in_flight() -> None:
    """Progress, also where its op is larger than the window."""
    _, scheduler = a_scheduler(window=5)
    request = submit(scheduler, *[10] * 8, series_ops=4)
    assert sizes_of(request.inbox) == [4]


def test_the_next_round_is_admitted_when_this_one_is_over() -> None:
    """Whoever performs it sleeps until then: others may have the room that comes free meanwhile."""
    _, scheduler = a_scheduler(window=40)
    one, other = (submit(scheduler, *[10] * 12, series_ops=2, scan=scan) for scan in "ab")
    round_ = one.inbox.pop(0)
    assert (sizes_of([round_]), sizes_of(other.inbox)) == ([6], [])
    scheduler.complete(round_, 2, 20, 0.0)
    settle(scheduler)
    assert (one.inbox, sizes_of(other.inbox)) == ([], [2])
    complete(scheduler, round_)
    assert (sizes_of(one.inbox), sizes_of(other.inbox)) == ([4], [2])
    assert not scheduler.waiting
    while grants := [*one.grants, *other.grants]:
        complete(scheduler, grants[0])
    assert (one.state, other.state) == (State.COMPLETE, State.COMPLETE)
    assert state_of(scheduler)[:5] == (0, 0, 0, 0, 0)


def test_what_a_more_urgent_round_leaves_is_for_its_next() -> None:
    """I4: it does not wait in the queue, and is not to be overtaken by those who do."""
    _, scheduler = a_scheduler(window=80)
    bulk = submit(scheduler, *[10] * 100, series_ops=2, base=5)
    urgent = submit(scheduler, *[10] * 100, series_ops=2, base=0)
    assert (sizes_of(bulk.inbox), sizes_of(urgent.inbox)) == ([14], [2])
    complete(scheduler, bulk.grants[0])
    assert not bulk.grants
    complete(scheduler, urgent.grants[0])
    assert (sizes_of(bulk.grants), sizes_of(urgent.grants)) == ([], [14])
    assert not scheduler.has_room(10, 1, 0, 0.0), "nor by equals, and who is less urgent, past the queue"
    assert not scheduler.has_room(10)
    assert scheduler.has_room(10, 1, -1, 0.0)
    scheduler.cancel(urgent)
    settle(scheduler)
    assert not bulk.grants, "there is no room yet"
    complete(scheduler, urgent.grants[0])
    assert sizes_of(bulk.grants) == [14]


def test_what_waits_for_its_next_round_is_held_back_by_the_window() -> None:
    """Nobody is in the queue, and yet a larger window would be used: its controller must know."""
    _, scheduler = a_scheduler(window=40)
    request = submit(scheduler, *[10] * 12, series_ops=2)
    assert (scheduler.waiting, scheduler.room.is_held_back) == (0, True)
    complete(scheduler, request.inbox.pop(0))
    assert (request.next_op, scheduler.waiting, scheduler.room.is_held_back) == (12, 0, False)


def test_what_the_limit_of_ops_holds_back_says_nothing_of_the_window() -> None:
    _, scheduler = a_scheduler(window=400, ops=3)
    request = submit(scheduler, *[10] * 12, series_ops=2)
    assert (sizes_of(request.inbox), scheduler.room.is_held_back) == ([6], False)


@pytest.mark.parametrize("how", ["cancel", "fail"])
def test_a_request_that_ends_in_a_round_is_drained(how: str) -> None:
    """And those that it outranked go on at once."""
    _, scheduler = a_scheduler(window=40)
    request = submit(scheduler, *[10] * 12, series_ops=2)
    less = submit(scheduler, 4, base=3)
    assert not less.inbox
    scheduler.fail(request, OSError()) if how == "fail" else scheduler.cancel(request)
    settle(scheduler)
    assert sizes_of(less.inbox) == [1]
    complete(scheduler, less.inbox.pop(0))
    complete(scheduler, request.inbox.pop(0))
    assert (request.state, request.next_op) == (State.RETIRED, 6)
    assert state_of(scheduler)[:5] == (0, 0, 0, 0, 0)
    assert not scheduler.in_rounds


def test_what_is_raised_in_a_round_goes_first_afterwards() -> None:
    _, scheduler = a_scheduler(window=40)
    request = submit(scheduler, *[10] * 8, series_ops=2, base=1)
    other = submit(scheduler, *[10] * 8, series_ops=2, base=0)
    scheduler.raise_priority(request, (-1, 0), 0.0)
    settle(scheduler)
    complete(scheduler, request.inbox.pop(0))
    assert (request.next_op, other.next_op) == (8, 2)
    assert scheduler.room.in_flight_bases == {-1: 1, 0: 1}


# -- order


def test_a_more_urgent_request_goes_between_two_slices() -> None:
    _, scheduler = a_scheduler(ops=2)
    scan = submit(scheduler, *[10] * 10)
    urgent = submit(scheduler, 10, base=-1)
    complete(scheduler, scan.inbox.pop(0))
    assert (urgent.next_op, scan.next_op) == (1, 3)


def test_raising_moves_what_is_in_flight_too() -> None:
    """I7: a demand read joined it; the rest of its ops must not wait as speculation does."""
    hub, scheduler = a_scheduler(window=80, ops=4, buffer_bytes=1000)
    joined = submit(scheduler, *[10] * 8, base=5, is_speculative=True)
    other = submit(scheduler, *[10] * 8, base=0)
    assert (joined.next_op, other.next_op) == (2, 2)
    scheduler.raise_priority(joined, (-1, 0), 0.0)
    settle(scheduler)
    assert joined.priority == Priority(-1, 0)
    assert scheduler.room.in_flight_bases == {-1: 2, 0: 2}
    assert hub.budget.least_priority() == Priority(-1, 0)
    complete(scheduler, joined.inbox.pop(0))
    assert (joined.next_op, other.next_op) == (4, 2)


def test_raising_admits_what_only_speculation_had_to_wait_for() -> None:
    """I5: nothing else may happen afterwards that would look at the queue."""
    _, scheduler = a_scheduler(window=80)
    submit(scheduler, 40)
    joined = submit(scheduler, 20, is_speculative=True)
    assert joined.next_op == 0
    scheduler.raise_priority(joined, (0, 0), 0.0)
    settle(scheduler)
    assert joined.next_op == 1


def test_raising_never_lowers() -> None:
    _, scheduler = a_scheduler(ops=1)
    submit(scheduler, 10)
    request = submit(scheduler, 10, base=-3)
    scheduler.raise_priority(request, (0, 0), 0.0)
    assert request.priority == Priority(-3)


def test_what_waits_behind_a_started_read_goes_on_when_that_is_given_up() -> None:
    """I5: its op is still in flight, and releases nothing before it lands."""
    _, scheduler = a_scheduler(window=100)
    started = submit(scheduler, 60, 60)
    behind = submit(scheduler, 10)
    assert (started.next_op, behind.next_op) == (1, 0)
    scheduler.cancel(started)
    settle(scheduler)
    assert (scheduler.room.in_flight_bytes, behind.next_op) == (70, 1)


# -- ends


def test_an_empty_request_is_complete_at_once() -> None:
    _, scheduler = a_scheduler(buffer_bytes=1)
    request = submit(scheduler)
    assert request.state is State.COMPLETE
    scheduler.consume(request, 0.0)
    assert not scheduler.requests


@pytest.mark.parametrize("how", ["cancel", "fail"])
def test_ending_what_was_never_submitted_counts_nothing(how: str) -> None:
    """An interrupt came before the submission, and the driver cleans up after itself."""
    _, scheduler = a_scheduler(ops=1)
    lost = a_request(10)
    if how == "cancel":
        scheduler.cancel(lost)
    else:
        scheduler.fail(lost, OSError("gone"))
    settle(scheduler)
    assert submit(scheduler, 10).next_op == 1


def test_a_request_fails_with_its_first_error() -> None:
    _, scheduler = a_scheduler(ops=2)
    request = submit(scheduler, 10, 10, 10)
    first = OSError("first")
    scheduler.fail(request, first)
    scheduler.fail(request, OSError("second"))
    scheduler.cancel(request, OSError("third"))
    assert (request.error, request.state, request.next_op) == (first, State.FAILED, 2)
    complete(scheduler, request.inbox.pop(0))
    assert (request.error, request.state) == (first, State.RETIRED)


def test_a_request_that_is_cancelled_says_why() -> None:
    _, scheduler = a_scheduler(ops=1)
    request, reason = submit(scheduler, 10, 10), RuntimeError("closed")
    scheduler.cancel(request, reason)
    assert (request.error, request.is_over) == (reason, True)


def test_an_illegal_event_raises_and_changes_nothing() -> None:
    _, scheduler = a_scheduler(window=100)
    request = submit(scheduler, 10, 10)
    grant = request.inbox[0]
    before = state_of(scheduler)
    for ops, nbytes in ((3, 20), (2, 21), (1, -1), (-1, 0)):
        with pytest.raises(IllegalTransitionError):
            scheduler.complete(grant, ops, nbytes, 0.0)
    with pytest.raises(IllegalTransitionError):
        scheduler.forfeit(grant)
    assert (state_of(scheduler), grant.ops_left, request.ops_done) == (before, 2, 0)
    scheduler.consume(request, 0.0)
    assert request.state is State.RUNNING


def test_a_request_that_is_over_is_let_go() -> None:
    """The core keeps no reference: the result's buffer hangs on it (I9)."""
    hub, scheduler = a_scheduler(ops=1)
    ends = []
    for how in ("consume", "cancel"):
        request = submit(scheduler, 10)
        queued = submit(scheduler, 10)
        complete(scheduler, request.inbox.pop(0))
        scheduler.cancel(queued)
        if how == "consume":
            scheduler.consume(request, 0.0)
        else:
            scheduler.cancel(request)
        for grant in list(queued.grants):
            scheduler.forfeit(grant)
        settle(scheduler)
        ends += [weakref.ref(request), weakref.ref(queued)]
    del request, queued, grant
    gc.collect()
    assert [end() for end in ends] == [None] * 4
    assert hub.budget.reserved_bytes == 0


# -- scale


def calls_of(function: Any) -> int:
    """Return how many calls, of Python and of C functions, `function` makes."""
    count = 0

    def profile(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    gc.disable()  # a collection would call other tests' finalisers
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count


class AttentiveWindow(Window):
    """Counts what it is told of urgent reads."""

    urgent = 0

    def note_urgent(self, now: float) -> None:
        self.urgent += 1
        super().note_urgent(now)


@pytest.mark.parametrize(("first", "second", "is_told"), [(0, -1, True), (0, 0, False), (-1, 0, False)])
@pytest.mark.parametrize("counts_ops", [False, True])
def test_the_window_is_told_of_urgent_reads(
    first: int, second: int, *, is_told: bool, counts_ops: bool
) -> None:
    """Of those which wait for what a device has to do; a store does it beside them."""
    window = AttentiveWindow(initial=100, least=1, most=100)
    scheduler = Hub().scheduler("disk", Limits(window=window, max_in_flight_ops=9, counts_ops=counts_ops))
    submit(scheduler, 10, base=first)
    assert window.urgent == 0
    submit(scheduler, 10, base=second)
    assert bool(window.urgent) == (is_told and not counts_ops)
    assert scheduler.room.expects_urgent == bool(window.urgent)


def test_the_window_is_told_of_an_urgent_read_that_starts_at_once() -> None:
    """The device serves it among what it has already, however it was admitted."""
    window = AttentiveWindow(initial=100, least=1, most=100)
    scheduler = Hub().scheduler("disk", Limits(window=window, max_in_flight_ops=9))
    scheduler.start_now(a_request(10), 0.0)
    assert not scheduler.room.expects_urgent
    scheduler.start_now(a_request(10, base=-1), 0.0)
    assert scheduler.room.expects_urgent


@pytest.mark.parametrize(
    ("base", "others", "after_s", "is_told"),
    [
        (-1, [0], 0.5, True),
        (0, [0], 0.5, False),
        (-1, [0], 2.0, False),
        (-1, [0, -3], 0.5, True),
        (-1, [-3, 0], 0.5, True),
        (-1, [-3], 0.5, False),
    ],
    ids=["urgent", "not urgent", "long after", "with a more urgent", "after a more urgent", "less urgent"],
)
def test_the_window_is_told_of_urgent_reads_beside_what_the_kernel_reads_ahead(
    base: int, others: list[int], after_s: float, *, is_told: bool
) -> None:
    """The page cache answers the scan, and nothing of it is in flight; of each such answer one tells."""
    window = AttentiveWindow(initial=100, least=1, most=100)
    scheduler = Hub().scheduler("disk", Limits(window=window, max_in_flight_ops=9))
    for other in others:
        scheduler.room.note_ahead(other, 1.0)
    scheduler.submit(a_request(10, base=base), 1.0 + after_s)
    assert window.urgent == is_told
    assert scheduler.room.expects_before(0, 1.0 + after_s) == is_told
    assert not scheduler.room.expects_before(base, 1.0 + after_s)
    scheduler.submit(a_request(10, base=base), 1.0 + after_s)
    assert window.urgent == is_told
    assert [scheduler.room.has_urgent(1.0 + after_s + more_s) for more_s in (0.5, 1.5)] == [is_told, False]


def test_reads_that_are_as_urgent_do_not_hide_what_the_kernel_reads_ahead() -> None:
    window = AttentiveWindow(initial=100, least=1, most=100)
    scheduler = Hub().scheduler("disk", Limits(window=window, max_in_flight_ops=9))
    scheduler.room.note_ahead(0, 1.0)
    for base in (0, 0, -1):
        scheduler.submit(a_request(10, base=base), 1.5)
    assert window.urgent == 1


def test_who_is_more_urgent_than_whom_is_remembered() -> None:
    scheduler = Hub().scheduler(
        "disk", Limits(window=Window(initial=100, least=1, most=100), max_in_flight_ops=99)
    )
    for base in (0, -3, -1):
        submit(scheduler, 10, base=base)
    room = scheduler.room
    assert [room.expects_before(base, 0.5) for base in (0, -1, -3, -4)] == [True, True, False, False]
    assert not room.expects_before(0, 1.5)
    scheduler.submit(a_request(10, base=-1), 2.0)
    assert [room.expects_before(base, 2.5) for base in (0, -1)] == [True, False]


def test_the_window_is_told_of_an_urgent_read_that_starts_alone() -> None:
    """It had waited for an op that fills the window, and was admitted when that was done."""
    window = AttentiveWindow(initial=10, least=1, most=10)
    scheduler = Hub().scheduler("disk", Limits(window=window, max_in_flight_ops=9))
    scan = submit(scheduler, 10, 10)
    urgent = submit(scheduler, 4, base=-1)
    assert (urgent.next_op, scheduler.room.expects_urgent) == (0, True)
    complete(scheduler, scan.grants[0])
    assert urgent.next_op == 1


def test_urgent_reads_start_while_a_smaller_limit_is_tried() -> None:
    """What the scan had in flight before is more than that."""
    window = Window(initial=100, least=1, most=100)
    scheduler = Hub().scheduler("disk", Limits(window=window, max_in_flight_ops=1000))
    scan = submit(scheduler, *[10] * 100)
    for now in range(1, 100):
        grant = scan.inbox[0]
        scheduler.complete(grant, 1, 10, now)
        if window.limit < scheduler.room.in_flight_bytes:
            break
        settle(scheduler)
        scan.inbox = [grant for grant in scan.inbox if grant.ops_left]
    assert window.limit < scheduler.room.in_flight_bytes < 100
    assert submit(scheduler, 4, base=-1).next_op == 1
    assert submit(scheduler, 4, base=-1).next_op == 0, "as urgent as what is in flight"


# -- turns of scans


@pytest.mark.parametrize(
    ("limits", "turns"),
    [
        ({"window": 1, "counts_ops": True}, 1),
        ({"max_in_flight_ops": 1}, 1),
        ({"window": 1 << 20}, 8),
    ],
    ids=["requests", "ops", "bytes"],
)
def test_an_op_has_a_least_price_where_ops_are_limited(limits: dict[str, Any], turns: int) -> None:
    """A store's request takes a place however little it reads: a long one does not owe it many."""
    window = limits.pop("window", None)
    shape = window and Window(initial=window, least=1, most=window)
    scheduler = Hub().scheduler("d", Limits(window=shape, max_grant_ops=1, **limits))
    blocker = submit(scheduler, 1 << 20)
    small = submit(scheduler, *[TURN_BYTES // 8] * 40, scan="small")
    large = submit(scheduler, *[TURN_BYTES] * 5, scan="large")
    (grant,) = blocker.inbox
    complete(scheduler, grant)
    flying = [*small.grants, *large.grants]
    while large.next_op < 4:
        complete(scheduler, flying.pop(0))
        flying = [*small.grants, *large.grants]
    assert small.next_op / large.next_op == pytest.approx(turns, abs=1 + turns / 2)


def test_what_nobody_waited_for_has_no_age() -> None:
    """What was read ahead and is wanted now does not pass who waits at an earlier position."""
    _, scheduler = a_scheduler(ops=1)
    blocker = submit(scheduler, 1)
    ahead = a_request(10, is_speculative=True)
    ahead.priority = Priority(0, 9)
    scheduler.submit(ahead, 0.0)
    waits = a_request(10)
    scheduler.submit(waits, AGEING_S + 1)
    scheduler.raise_priority(ahead, (0, 9), 2 * AGEING_S)
    complete(scheduler, blocker.inbox.pop())
    assert (len(waits.inbox), len(ahead.inbox)) == (1, 0)


def columns_of(n: int) -> tuple[Any, ...]:
    draw = np.random.default_rng(5)
    start = draw.integers(0, 1 << 40, n)
    return np.zeros(n, np.int64), start, start + draw.integers(1, 8192, n)


def test_planning_a_million_ranges_makes_no_more_calls_than_a_thousand() -> None:
    """All the work is in NumPy, n log n; a call a range would show here."""

    def plan(n: int) -> int:
        columns = columns_of(n)
        return calls_of(lambda: plan_ranges(*columns, max_gap_bytes=64, max_op_bytes=4096))

    assert plan(1_000_000) <= plan(1_000) + 20


def test_a_million_ops_are_admitted_slice_by_slice() -> None:
    """What a slice costs depends neither on its ops nor on those still to come."""
    window = 4 << 20
    plan = plan_ranges(*columns_of(1_000_000), max_gap_bytes=0, max_op_bytes=1 << 20)
    hub = Hub()
    shape = Window(initial=window, least=window, most=window)
    scheduler = hub.scheduler("disk", Limits(window=shape, max_in_flight_ops=1 << 30))
    request = Request(plan.op_length, result_bytes=plan.buffer_bytes)
    slices, dearest = 0, 0

    def step() -> None:
        grant = request.inbox.pop(0)
        scheduler.complete(grant, grant.ops_left, grant.bytes_left, 0.0)
        hub.settle(0.0)

    scheduler.submit(request, 0.0)
    hub.settle(0.0)
    while request.inbox:
        slices += 1
        dearest = max(dearest, calls_of(step))
    assert request.state is State.COMPLETE
    assert request.n_ops > 990_000
    least = plan.op_length.sum() / window
    assert least <= slices <= least * 1.01 + 2
    assert dearest < 100


@pytest.mark.parametrize("are_awaited", [False, True], ids=["submitted", "awaited"])
@pytest.mark.parametrize("is_short", [False, True], ids=["roomy", "no budget left"])
def test_a_settle_with_a_hundred_thousand_waiting_costs_what_it_does_with_ten(
    is_short: bool, are_awaited: bool
) -> None:
    """Nor does it look through the queue for siblings, waiters or speculation to drop."""
    counts = [_dearest_step(n, is_short=is_short, are_awaited=are_awaited) for n in (10, 100_000)]
    assert counts[1] <= counts[0] + 60  # a heap is some levels deeper
    assert counts[1] < 300


def _dearest_step(n: int, *, is_short: bool, are_awaited: bool) -> int:
    hub, scheduler = a_scheduler(ops=1, buffer_bytes=15 if is_short else 0)
    first = submit(scheduler, 10)
    for number in range(n):
        request = a_request(10, scan=number % 100, group=number)
        request.is_awaited = are_awaited and number > 0  # the head is not
        scheduler.submit(request, 0.0)
        hub.settle(0.0)
    dearest = calls_of(lambda: submit(scheduler, 10, group="last"))
    dearest -= calls_of(hub.validate)
    grant = first.inbox.pop(0)

    def step() -> None:
        scheduler.complete(grant, 1, 10, 0.0)
        hub.settle(0.0)
        scheduler.consume(first, 0.0)
        hub.settle(0.0)

    dearest = max(dearest, calls_of(step))
    assert hub.in_flight_ops == 1
    return dearest


def test_many_small_requests_cancelled_leave_nothing_behind() -> None:
    """``HEADRACE_TEST_SOAK`` of them: 100,000 in the gate, a million in the full run."""
    hub, scheduler = a_scheduler(ops=4, buffer_bytes=1000)
    columns = np.array([10], np.int64)
    live: list[Request] = []
    sample = []
    for number in range(REQUESTS):
        request = Request(columns, result_bytes=10, scan=number % 7, priority=Priority(number % 3))
        scheduler.submit(request, 0.0)
        live.append(request)
        if number % 1000 == 0:
            sample.append(weakref.ref(request))
        if len(live) == 1000:
            hub.settle(0.0)
            _cancel_all(scheduler, live)
    del request
    assert hub.counters.requests_submitted == REQUESTS
    hub.validate()
    assert (hub.budget.reserved_bytes, hub.in_flight_ops, len(scheduler.requests)) == (0, 0, 0)
    assert not any(scan.rows for level in scheduler.queue._levels.values() for scan in level.scans.values())
    gc.collect()
    assert not any(gone() for gone in sample)


def _cancel_all(scheduler: Scheduler, live: list[Request]) -> None:
    while live:
        request = live.pop(len(live) * 7 // 10)
        scheduler.cancel(request)
        for grant in list(request.grants):
            scheduler.forfeit(grant)
            scheduler.hub.settle(0.0)
    scheduler.hub.settle(0.0)
