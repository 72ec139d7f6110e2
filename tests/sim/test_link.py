"""What may be in flight on a link: on a slow one nothing runs out of time, a fast one is not held back."""

from __future__ import annotations

import pytest
from sim.link import SharedLink

from headrace.core.link import LEAST_RATE, Link

MIB = 1 << 20
OPS = 200


def _expected_s(link: SharedLink, ops: int = OPS) -> float:
    return ops * link.op_bytes / link.bytes_per_s


def test_without_a_limit_ops_run_out_of_time_side_by_side() -> None:
    """What the limit is for: 64 ops of 8 MiB take 86 s at 50 Mbit/s, so none of the first comes within 30."""
    played = SharedLink(6e6).play(OPS)
    assert played.failed == played.most_in_flight > 50, "the read ends with the first of them"


@pytest.mark.parametrize("rate", [2.2e6, 3e6, 6e6, 20e6, 100e6])
def test_nothing_runs_out_of_time_on_a_slow_link(rate: float) -> None:
    link = SharedLink(rate, link=Link(30.0))
    played = link.play(OPS)
    assert (played.late, played.failed) == (0, 0)
    assert played.done_s[-1] < 1.03 * _expected_s(link), "and it is kept busy"


@pytest.mark.parametrize("rate", [0.05e6, 0.3e6, 1e6])
def test_what_is_kept_is_gone_on_from_however_slow_the_link(rate: float) -> None:
    link = SharedLink(rate, keeps=True, link=Link(30.0))
    played = link.play(20)
    assert played.failed == 0
    assert played.done_s[-1] < 1.1 * _expected_s(link, 20)


@pytest.mark.parametrize("op_bytes", [4 << 10, MIB, 8 * MIB])
def test_a_fast_link_is_used_in_full_after_one_round_trip(op_bytes: int) -> None:
    """1 GB/s at 20 ms: as much is in flight as without a limit, and it is over one round trip later."""
    plain = SharedLink(1e9, op_bytes=op_bytes).play(OPS)
    limited = SharedLink(1e9, op_bytes=op_bytes, link=Link(30.0)).play(OPS)
    assert limited.most_in_flight == plain.most_in_flight
    assert limited.done_s[-1] <= plain.done_s[-1] + 0.021


def test_small_reads_before_a_scan_do_not_hold_it_back() -> None:
    link = Link(30.0)
    for _ in range(1000):
        link.note_arrival(4096, link.arrived_bytes, 0.02)
    assert link.limit_bytes == LEAST_RATE * 30


def test_a_rate_that_was_is_forgotten() -> None:
    link = Link(30.0)
    link.note_arrival(1 << 30, 0, 1.0)
    assert link.limit_bytes == 15 << 30
    for _ in range(1000):
        link.note_arrival(MIB, link.arrived_bytes, 0.1)
    assert link.limit_bytes == 150 * MIB


def test_attempts_that_ran_out_of_time_lower_the_limit_and_answers_raise_it() -> None:
    link = Link(30.0)
    for _ in range(64):
        link.note_late(64)
    assert link.limit_bytes == pytest.approx(60 * MIB * 0.6, rel=0.02), "once all were late"
    for _ in range(100):
        link.note_arrival(1, link.arrived_bytes, 1.0)
    assert link.limit_bytes == 60 * MIB


def test_a_clock_that_stands_tells_nothing() -> None:
    link = Link(30.0)
    link.note_arrival(MIB, 0, 0.0)
    assert link.limit_bytes == 60 * MIB
