"""The window of requests on a simulated object store: it grows, backs off, recovers, and sends no storm."""

from __future__ import annotations

import statistics

import pytest
from sim.store import BROKEN, Store, play


@pytest.mark.parametrize("servers", [16, 64, 200])
def test_finds_what_a_store_serves_at_once(servers: int) -> None:
    played = play(Store(servers), 15_000)
    end_s = played.done[-1][0]
    assert played.rate_between(end_s / 2, end_s * 0.9) >= 0.85 * servers / 20e-3
    assert statistics.median(played.limits_between(end_s / 2, end_s)) <= 2 * servers + 8


@pytest.mark.parametrize("servers", [16, 64, 200])
def test_a_store_that_refuses_what_is_too_much_is_not_pressed(servers: int) -> None:
    played = play(Store(servers, refuses=True), 15_000)
    end_s = played.done[-1][0]
    assert played.sent <= 1.2 * 15_000
    assert len(played.failed) <= 0.01 * 15_000
    assert played.rate_between(end_s / 3, end_s / 2) >= 0.6 * servers / 20e-3


@pytest.mark.parametrize("broken_share", [0.01, 0.1])
def test_faults_that_no_smaller_window_would_prevent_do_not_make_it_small(broken_share: float) -> None:
    played = play(Store(broken_share=broken_share), 10_000)
    end_s = played.done[-1][0]
    assert played.failed == []
    assert played.sent <= 1.2 * 10_000
    assert played.rate_between(end_s / 2, end_s * 0.8) >= 0.85 * 100 / 20e-3


def test_a_tenth_of_broken_connections_costs_a_ninth_of_requests() -> None:
    played = play(Store(broken_share=0.1, broken=BROKEN), 10_000)
    assert played.failed == []
    assert played.sent <= 1.2 * 10_000


@pytest.mark.parametrize("storm_s", [0.5, 1.0, 2.0, 4.0])
def test_full_rate_within_two_seconds_after_a_storm(storm_s: float) -> None:
    end_s = 2 + storm_s
    played = play(Store(storms=((2, end_s),)), 40_000)
    before = played.rate_between(1, 2)
    assert played.rate_between(end_s + 2, end_s + 3) >= 0.9 * before
    assert min(played.limits_between(end_s, end_s + 2)) <= 4


def test_few_requests_go_out_during_a_storm() -> None:
    store = Store(storms=((2, 6),))
    played = play(store, 40_000)
    calm = len(played.done) + len(played.failed)
    assert played.sent - calm <= 600, "the reserve of the budget, and what it was refilled by"
    assert len(played.failed) <= 600


def test_a_store_that_never_answers_is_given_up() -> None:
    played = play(Store(storms=((0, 1e9),)), 2_000)
    assert len(played.failed) == 2_000
    assert played.sent <= 2_000 + 500


def test_the_same_run_twice_is_the_same() -> None:
    one, two = (play(Store(storms=((1, 2),)), 5_000) for _ in range(2))
    assert (one.done, one.failed, one.sent) == (two.done, two.failed, two.sent)
