"""Writes have their part of a store's window: they wait for nothing, and do not starve reads."""

from __future__ import annotations

import random

import pytest

from headrace.core.hub import Hub
from headrace.core.request import Request
from headrace.core.room import Limits
from headrace.core.scheduler import Scheduler
from headrace.core.uploads import MOST_PARTS, UPLOAD_BYTES, Uploads
from headrace.core.window import Window


@pytest.mark.parametrize(
    ("nbytes", "ops"),
    [
        (0, 1),
        (1, 1),
        (UPLOAD_BYTES, 1),
        (UPLOAD_BYTES + 1, 2),
        (MOST_PARTS * UPLOAD_BYTES, MOST_PARTS),
        (1 << 40, MOST_PARTS),
    ],
)
def test_bytes_count_as_requests_up_to_what_is_under_way_at_once(nbytes: int, ops: int) -> None:
    uploads = Uploads()
    uploads.begin("write", nbytes)
    assert uploads.ops == ops
    uploads.end("write")
    uploads.end("write")
    assert uploads.ops == 0


def test_any_writes_are_their_sum() -> None:
    uploads, draw, under_way = Uploads(), random.Random(4), dict[int, int]()
    for number in range(500):
        if under_way and draw.random() < 0.5:
            write = draw.choice(list(under_way))
            del under_way[write]
            uploads.end(write)
        else:
            under_way[number] = draw.randint(1, MOST_PARTS)
            uploads.begin(number, under_way[number] * UPLOAD_BYTES)
        assert uploads.ops == sum(under_way.values())


@pytest.mark.parametrize(("limit", "left"), [(1, 1), (2, 1), (3, 2), (10, 5), (20, 10), (30, 20)])
def test_reads_keep_half_of_the_window(limit: int, left: int) -> None:
    uploads = Uploads()
    uploads.begin("write", 1 << 40)
    assert uploads.left_of(limit) == left


def a_store(window: int, most_ops: int = 100) -> tuple[Hub, Scheduler]:
    hub = Hub()
    shape = Window(initial=window, least=1, most=window)
    return hub, hub.scheduler("store", Limits(window=shape, max_in_flight_ops=most_ops, counts_ops=True))


def submit(hub: Hub, store: Scheduler, ops: int) -> Request:
    # More urgent than all in flight: it may use the window to its end.
    request = Request([1] * ops, result_bytes=ops)
    store.submit(request, 0.0)
    hub.settle(0.0)
    hub.validate()
    return request


def test_a_write_narrows_the_window_and_its_end_widens_it() -> None:
    hub, store = a_store(window=16)
    store.room.uploads.begin("write", 4 * UPLOAD_BYTES)
    assert store.room.limit_ops == 12
    request = submit(hub, store, 100)
    assert request.next_op == store.room.in_flight_ops == 12
    store.room.uploads.end("write")
    hub.changed()
    hub.settle(0.0)
    assert store.room.in_flight_ops > 12


def test_what_is_in_flight_already_stays() -> None:
    hub, store = a_store(window=16)
    request = submit(hub, store, 100)
    before = store.room.in_flight_ops
    store.room.uploads.begin("write", 1 << 40)
    hub.settle(0.0)
    assert store.room.in_flight_ops == before
    grant = request.inbox[0]
    store.complete(grant, 1, 1, 1.0)
    hub.settle(1.0)
    hub.validate()
    assert store.room.in_flight_ops == before - 1, "nothing more is admitted while reads have over half"


def test_a_read_goes_on_in_a_window_of_one() -> None:
    hub, store = a_store(window=1)
    store.room.uploads.begin("write", 1 << 40)
    assert submit(hub, store, 5).next_op == 1


def test_the_number_is_derived_again_after_an_exception() -> None:
    hub, store = a_store(window=16)
    store.room.uploads.begin("write", 2 * UPLOAD_BYTES)
    store.room.uploads.ops = 99
    hub.recover(0.0)
    assert store.room.uploads.ops == 2
