"""The limit of a window while its store throttles, answer by answer."""

from __future__ import annotations

from headrace.core.throttle import Throttle
from headrace.core.window import Window, WindowState


def _round(throttle: Throttle, limit: int, *, throttled: int) -> None:
    """Count one round of `limit` answers, so many of them throttled, spread over it."""
    for answer in range(limit):
        is_throttled = answer * throttled // limit != (answer + 1) * throttled // limit
        throttle.count(limit, ok=not is_throttled, throttled=is_throttled)


def test_a_stray_refusal_does_nothing() -> None:
    throttle = Throttle()
    _round(throttle, 64, throttled=15)
    assert not throttle.is_active
    assert not throttle.is_counting


def test_a_storm_halves_the_limit_each_round() -> None:
    throttle, seen = Throttle(), []
    for _ in range(7):
        _round(throttle, max(16, throttle.limit if throttle.is_active else 64), throttled=10_000)
        seen.append(throttle.limit)
    assert seen == [32, 16, 8, 4, 2, 1, 1]


def test_half_of_a_round_costs_an_eighth() -> None:
    throttle = Throttle()
    _round(throttle, 64, throttled=32)
    assert throttle.limit == 56


def test_it_doubles_in_a_round_trip_and_then_goes_slowly_until_it_is_back() -> None:
    throttle = Throttle()
    for _ in range(6):
        _round(throttle, max(16, throttle.limit if throttle.is_active else 64), throttled=10_000)
    assert throttle.limit == 1
    seen = []
    while throttle.is_active:
        for _ in range(throttle.limit):
            if throttle.is_active:
                throttle.count(64, ok=1)
        seen.append(throttle.limit)
    assert seen[:5] == [2, 4, 8, 16, 32]
    assert seen[-1] == 64
    assert 10 <= len(seen) - 5 <= 12
    assert not throttle.is_counting


def test_a_store_that_throttles_takes_more_than_latency_may() -> None:
    window = Window(initial=64, least=32, most=64)
    for _ in range(64 + 32 + 16 * 5):
        window.note_throttled(1.0)
    assert window.limit == 1


def test_a_window_is_throttled_and_goes_on_where_it_was() -> None:
    window = Window(initial=64, least=1, most=64)
    for _ in range(64 + 32):
        window.note_throttled(1.0)
    assert window.state is WindowState.THROTTLED
    assert window.limit == 16
    for answer in range(1000):
        window.observe(now=2 + answer, units=1, latency_s=0.02, in_flight=1, is_limited=False)
    assert window.state is not WindowState.THROTTLED
    assert window.limit == 64
