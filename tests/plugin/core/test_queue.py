"""The priority queue: order, turns, ageing, and what it costs with many requests waiting (I4)."""

from __future__ import annotations

import gc
import math
import os
import random
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from headrace.core.queue import AGEING_S, PriorityQueue, _Level
from headrace.types import Priority

if TYPE_CHECKING:
    from collections.abc import Hashable

Queue = PriorityQueue[Any]

REQUESTS = int(os.environ.get("HEADRACE_TEST_SOAK", "100000"))


class Item:
    """The least that the queue wants of a request."""

    def __init__(self, seq: int, base: int = 0, position: int = 0, scan: Hashable = None) -> None:
        self.seq = seq
        self.priority = Priority(base, position)
        self.scan = scan
        self.queue_ticket = 0
        self.queued_s: float | None = None
        self.is_waiting = True


def push_all(queue: Queue, items: list[Item], now: float = 0.0) -> None:
    for item in items:
        queue.push(item, now)


def serve(queue: Queue, now: float = 0.0, units: int = 10, *, is_last: bool = True) -> Item | None:
    """Serve the head as the scheduler does; returns it."""
    item: Item | None = queue.head()
    if item is not None:
        item.is_waiting = not is_last
        queue.served(item, units, now)
    return item


def served_seqs(queue: Queue) -> list[int]:
    found = []
    while (item := serve(queue)) is not None:
        found.append(item.seq)
    return found


def test_the_base_comes_first_then_the_position_then_who_came_first() -> None:
    queue: Queue = PriorityQueue()
    rows = [(0, 5), (1, 0), (0, 5), (-1, 9), (0, 2)]
    push_all(queue, [Item(seq, base, position) for seq, (base, position) in enumerate(rows)])
    assert served_seqs(queue) == [3, 4, 0, 2, 1]


def test_any_order_of_pushes_gives_the_same_order() -> None:
    rows = [(seq, seq % 3, seq * 7 % 5) for seq in range(60)]
    expected = [s for s, b, p in sorted(rows, key=lambda row: (row[1], row[2], row[0]))]
    for seed in range(5):
        queue: Queue = PriorityQueue()
        push_all(queue, [Item(*row) for row in random.Random(seed).sample(rows, len(rows))])
        assert served_seqs(queue) == expected


def test_who_waited_through_a_step_of_age_is_not_overtaken_by_an_earlier_position() -> None:
    """An early file that is read all the time would keep out the others of its scan."""
    queue: Queue = PriorityQueue()
    push_all(queue, [Item(1, position=9), Item(2, position=0)])
    served = []
    for seq in range(3, 20):
        queue.push(Item(seq, position=0), (seq - 3) * AGEING_S / 4)
        head = serve(queue, (seq - 3) * AGEING_S / 4)
        assert head is not None
        served.append(head.seq)
    assert served[:2] == [2, 3], "at first in the order of the files"
    assert 1 in served


def test_the_clock_has_no_marks_at_which_positions_mean_nothing() -> None:
    """Ages count from when the scan became backlogged, also where it was so before."""
    queue: Queue = PriorityQueue()
    for begin_s in (0.0, AGEING_S * 1.4):
        push_all(queue, [Item(1, position=9)], begin_s)
        push_all(queue, [Item(2, position=0)], begin_s + AGEING_S * 0.9)
        assert served_seqs(queue) == [2, 1]


def test_age_is_kept_where_a_request_is_pushed_again() -> None:
    queue: Queue = PriorityQueue()
    old, new = Item(1, base=5, position=9), Item(2, position=0)
    push_all(queue, [old], 0.0)
    old.priority = Priority(0, 9)
    push_all(queue, [new, old], AGEING_S)
    assert served_seqs(queue) == [1, 2]
    old.is_waiting = new.is_waiting = True
    queue.rebuild([new, old], 2 * AGEING_S)
    assert served_seqs(queue) == [1, 2]


def test_scans_take_turns_by_bytes() -> None:
    queue: Queue = PriorityQueue()
    push_all(queue, [Item(1, scan="big"), Item(2, scan="small")])
    order = []
    for _ in range(12):
        head = queue.head()
        assert head is not None
        order.append(head.scan)
        queue.served(head, 30 if head.scan == "big" else 10, 0.0)
    assert order.count("small") == 3 * order.count("big")


def test_a_scan_that_reads_one_by_one_does_not_overtake_another_for_ever() -> None:
    """Its turn is remembered although, for a moment, it has nothing waiting."""
    queue: Queue = PriorityQueue()
    push_all(queue, [Item(1, scan="eager"), Item(2, scan="patient")])
    order = []
    for seq in range(3, 13):
        head = serve(queue, is_last=queue.head().scan == "eager")  # type: ignore[union-attr]
        assert head is not None
        order.append(head.scan)
        assert queue.head() is not None  # as every settle looks
        if head.scan == "eager":
            queue.push(Item(seq, scan="eager"), 0.0)
    assert order.count("patient") == 5


def test_a_scan_that_comes_late_is_owed_nothing_of_the_past() -> None:
    queue: Queue = PriorityQueue()
    push_all(queue, [Item(1, scan="early")])
    for _ in range(100):
        serve(queue, is_last=False)
    push_all(queue, [Item(2, scan="late")])
    order = [serve(queue, is_last=False).seq for _ in range(10)]  # type: ignore[union-attr]
    assert order.count(1) >= 4


def test_a_busy_base_is_strictly_first_until_another_has_waited() -> None:
    queue: Queue = PriorityQueue()
    push_all(queue, [Item(1, base=0), Item(2, base=1)])
    order = [serve(queue, float(second), is_last=False).seq for second in range(20)]  # type: ignore[union-attr]
    assert [second for second, seq in enumerate(order) if seq == 2] == [7, 14]


@pytest.mark.parametrize("is_served", [True, False], ids=["served", "cancelled"])
def test_idle_time_is_no_age(is_served: bool) -> None:
    """A base which had nothing to do for long is not owed anything when it comes back."""
    queue: Queue = PriorityQueue()
    push_all(queue, [Item(1, base=0), Item(2, base=1)])
    assert serve(queue).seq == 1  # type: ignore[union-attr]
    if is_served:
        assert serve(queue).seq == 2  # type: ignore[union-attr]
    else:
        queue.head().is_waiting = False  # type: ignore[union-attr]
    push_all(queue, [Item(3, base=1), Item(4, base=0)], now=1000.0)
    assert queue.head().seq == 4  # type: ignore[union-attr]


def test_a_request_that_moves_inside_its_base_keeps_its_age() -> None:
    """It is alone there, so its old row is all that says how long the base has waited."""
    queue: Queue = PriorityQueue()
    moved = Item(1, base=1, position=5)
    push_all(queue, [moved, Item(2, base=0)])
    moved.priority = Priority(1, 0)
    push_all(queue, [moved], now=6.0)
    order = [serve(queue, float(second), is_last=False).seq for second in range(6, 12)]  # type: ignore[union-attr]
    assert order[:2] == [2, 1], "it had waited for six seconds"


def test_a_sweep_keeps_the_age_of_who_waits() -> None:
    """A storm of cancellations must not start everybody's wait anew: they would starve."""
    queue: Queue = PriorityQueue()
    push_all(queue, [Item(1, base=1), Item(2, base=0)])
    order = []
    for second in range(20):
        dead = [Item(seq, base=0, position=-1) for seq in range(3, 200)]
        push_all(queue, dead, float(second))
        for item in dead:
            item.is_waiting = False
        queue.sweep(2)
        assert {item.seq for item in queue} == {1, 2}
        order.append(serve(queue, float(second), is_last=False).seq)  # type: ignore[union-attr]
    assert [second for second, seq in enumerate(order) if seq == 1] == [7, 14]


def test_a_sweep_keeps_the_turns() -> None:
    queue: Queue = PriorityQueue()
    push_all(queue, [Item(1, scan="a"), Item(2, scan="b")])
    dead = [Item(seq, scan="a") for seq in range(3, 300)]
    push_all(queue, dead)
    assert serve(queue, is_last=False).scan == "a"  # type: ignore[union-attr]
    for item in dead:
        item.is_waiting = False
    queue.sweep(2)
    assert queue.head().scan == "b"  # type: ignore[union-attr]


@pytest.mark.parametrize("seed", range(20))
def test_a_sweep_changes_no_order(seed: int) -> None:
    """Beside a queue that drops its dead rows one by one."""
    draw = random.Random(seed)
    rows = [(seq, draw.randrange(3), draw.randrange(50), draw.randrange(6)) for seq in range(300)]
    alive = set(draw.sample(range(300), 40))
    orders = []
    for is_swept in (False, True):
        queue: Queue = PriorityQueue()
        items = [Item(*row) for row in rows]
        push_all(queue, items)
        for item in items:
            item.is_waiting = item.seq in alive
        if is_swept:
            queue.sweep(len(alive))
            assert {item.seq for item in queue} == alive
        orders.append(served_seqs(queue))
    assert orders[0] == orders[1]
    assert set(orders[0]) == alive


def test_a_scan_that_comes_back_has_had_its_turn() -> None:
    """It had three times as much as the other, and gave its place up before that had as much."""
    queue: Queue = PriorityQueue()
    push_all(queue, [Item(1, scan="back"), Item(2, scan="steady")])
    assert serve(queue, units=30).scan == "back"  # type: ignore[union-attr]
    assert [serve(queue, is_last=False).scan for _ in range(3)] == ["steady"] * 3  # type: ignore[union-attr]
    assert queue.head() is not None  # as every settle looks
    push_all(queue, [Item(3, scan="back")])
    assert queue.head().scan == "steady"  # type: ignore[union-attr]


def sweeps_of(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the sweeps that look at rows."""
    swept: list[int] = []
    sweep = _Level.sweep

    def counted(level: Any) -> int:
        swept.append(1)
        return sweep(level)

    monkeypatch.setattr(_Level, "sweep", counted)
    return swept


def test_rows_are_looked_at_only_when_most_are_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    swept = sweeps_of(monkeypatch)
    queue: Queue = PriorityQueue()
    items = [Item(seq) for seq in range(400)]
    push_all(queue, items)
    for item in items[100:]:
        item.is_waiting = False
    queue.sweep(200)
    assert not swept, "half of them might be alive"
    queue.sweep(100)
    assert len(swept) == 1
    queue.sweep(100)
    assert len(swept) == 1, "those are gone"
    assert served_seqs(queue) == list(range(100))
    push_all(queue, [Item(1000)])
    queue.sweep(1)
    assert len(swept) == 1, "and so are those that were served"


def test_where_nothing_is_left_nothing_is_kept() -> None:
    queue: Queue = PriorityQueue()
    items = [Item(seq, base=seq, scan=seq) for seq in range(5)]
    push_all(queue, items)
    for item in items:
        item.is_waiting = False
    gone = [weakref.ref(item) for item in items]
    queue.sweep(0)
    del items, item
    gc.collect()
    assert [ref() for ref in gone] == [None] * 5


def test_levels_and_scans_that_ended_are_forgotten() -> None:
    queue: Queue = PriorityQueue()
    items = [Item(seq, base=seq % 50, scan=seq) for seq in range(1000)]
    push_all(queue, items)
    for item in items[1:]:
        item.is_waiting = False
    queue.sweep(1)
    assert (len(queue._levels), len(queue._keys)) == (1, 1)
    assert [len(level.scans) for level in queue._levels.values()] == [1]


def test_pushing_again_moves_a_request() -> None:
    queue: Queue = PriorityQueue()
    items = [Item(1), Item(2), Item(3, base=1)]
    push_all(queue, items)
    items[2].priority = Priority(-1)
    queue.push(items[2], 0.0)
    assert len(list(queue)) == 3
    assert served_seqs(queue) == [3, 1, 2]


def test_what_was_served_is_let_go() -> None:
    """A row would keep the request's buffer alive."""
    queue: Queue = PriorityQueue()
    push_all(queue, [Item(1, scan="a"), Item(2, scan="b"), Item(3, scan="b")])
    gone = weakref.ref(serve(queue))  # type: ignore[arg-type]
    gc.collect()
    assert gone() is None
    assert served_seqs(queue) == [2, 3]


def test_the_key_of_the_head() -> None:
    queue: Queue = PriorityQueue()
    assert queue.head_key() == math.inf
    push_all(queue, [Item(1, base=2)], now=3.0)
    assert queue.head_key() == 2 * AGEING_S + 3.0


# -- cost


class Counted(int):
    """An integer that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: int) -> bool:
        Counted.compared += 1
        return int.__lt__(self, other)

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return int.__eq__(self, other)

    __hash__ = int.__hash__

    def __add__(self, other: int) -> Counted:
        return Counted(int(self) + int(other))

    __radd__ = __add__


def most_comparisons(n: int, *, scans: int) -> int:
    """Return what the dearest push or serve cost while `n` requests waited."""
    draw = random.Random(1)
    queue: Queue = PriorityQueue()
    dearest = 0

    def push(seq: int) -> None:
        scan = seq % scans
        queue.push(Item(seq, position=Counted(draw.randrange(1 << 30)), scan=scan), 0.0)

    for seq in range(n):
        push(seq)
    for seq in range(n, n + 2_000):
        Counted.compared = 0
        push(seq)
        assert serve(queue, units=Counted(draw.randrange(1, 1 << 20))) is not None
        dearest = max(dearest, Counted.compared)
    return dearest


@pytest.mark.parametrize("scans", [1, REQUESTS], ids=["one scan", "a scan each"])
def test_many_waiting_cost_a_logarithm(scans: int) -> None:
    """A push and a serve: two comparisons a level of a heap down, and two up.

    ``HEADRACE_TEST_SOAK`` of them, 100,000 in the gate (I6).
    """
    assert most_comparisons(REQUESTS, scans=scans) <= 10 * math.log2(REQUESTS)


def test_many_that_are_cancelled_leave_no_rows() -> None:
    """However they are mixed with those that stay; ``HEADRACE_TEST_SOAK`` of them, 100,000 in the gate."""
    queue: Queue = PriorityQueue()
    draw = random.Random(2)
    kept = [Item(-1), Item(-2, base=1)]
    push_all(queue, kept)
    live: list[Item] = []
    for seq in range(REQUESTS):
        item = Item(seq, base=draw.randrange(3), scan=draw.randrange(50))
        queue.push(item, 0.0)
        live.append(item)
        if len(live) == 1000:
            draw.shuffle(live)
            while live:
                live.pop().is_waiting = False
                queue.sweep(len(kept) + len(live))
    assert rows_of(queue) <= 2 * len(kept) + 64
    for item in kept:
        item.is_waiting = False
    queue.sweep(0)
    assert rows_of(queue) == 0


def rows_of(queue: Queue) -> int:
    return sum(len(scan.rows) for level in queue._levels.values() for scan in level.scans.values())
