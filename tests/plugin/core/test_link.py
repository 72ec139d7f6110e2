"""How many bytes a link is asked for at once: its best rate lately, less what came too late (I1)."""

from __future__ import annotations

import pytest

from headrace.core.link import LEAST_RATE, Link

TRY_S = 2.0
FLOOR = int(LEAST_RATE * TRY_S)
FAST = 100 << 20
"""Bytes a second."""


def a_fast_link() -> Link:
    """Half of an attempt is a second, so that the limit is what comes in one."""
    link = Link(TRY_S)
    link.note_arrival(FAST, 0, 1.0)
    assert link.limit_bytes == FAST
    return link


def test_the_best_rate_counts_and_fades() -> None:
    """A slow answer may be the store's doing; where all are slow, the link is."""
    link = a_fast_link()
    link.note_arrival(1, link.arrived_bytes, 1.0)
    assert FAST * 0.97 < link.limit_bytes < FAST
    for _ in range(1000):
        link.note_arrival(1, link.arrived_bytes, 1.0)
    assert link.limit_bytes == FLOOR


@pytest.mark.parametrize(("in_flight_ops", "left"), [(4, 7 / 8), (1, 1 / 2), (0, 1 / 2)])
def test_a_late_attempt_takes_half_of_its_part_from_the_limit(in_flight_ops: int, left: float) -> None:
    """Of what is known and of what is taken for granted; one that nothing is beside is all there is."""
    known, unknown = a_fast_link(), Link(TRY_S)
    for link, before in ((known, FAST), (unknown, FLOOR)):
        link.note_late(in_flight_ops)
        assert link.limit_bytes == before * left


def test_what_was_taken_from_the_least_limit_comes_back_with_answers() -> None:
    link = Link(TRY_S)
    link.note_late(1)
    for _ in range(100):
        link.note_arrival(1, link.arrived_bytes, 1.0)
    assert link.limit_bytes == FLOOR
