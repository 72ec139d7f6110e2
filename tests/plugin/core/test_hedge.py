"""When a second request is sent, and how many."""

from __future__ import annotations

import random

import numpy as np

from headrace.core.hedge import Hedge


def test_nothing_is_late_before_enough_was_seen() -> None:
    hedge = Hedge(1.0)
    for _ in range(31):
        hedge.note(4096, 0.02)
    assert hedge.delay_s(4096) is None
    hedge.note(4096, 0.02)
    assert hedge.delay_s(4096) == 0.02 * 1.5
    assert hedge.delay_s(8 << 20) is None, "long ops are another matter"


def test_the_budget_is_a_share_of_the_ops() -> None:
    hedge = Hedge(0.03)
    sent = 0
    for _ in range(1000):
        hedge.note(4096, 0.02)
        sent += hedge.may_send()
    assert 29 <= sent <= 30
    assert hedge.sent == sent


def test_a_store_where_all_is_late_is_asked_no_more_than_the_share() -> None:
    hedge = Hedge(0.03)
    for _ in range(10_000):
        hedge.note(4096, 0.02)
    assert sum(hedge.may_send() for _ in range(1000)) == 10


def test_one_in_a_hundred_stragglers_is_gone_for_three_percent() -> None:
    rng, hedge = random.Random(2), Hedge(0.03)

    def request_s() -> float:
        return 2.0 if rng.random() < 0.01 else 0.02 * rng.lognormvariate(0, 0.2)

    taken = []
    for _ in range(50_000):
        latency_s, late_s = request_s(), hedge.delay_s(4096)
        if late_s is not None and latency_s > late_s and hedge.may_send():
            latency_s = min(latency_s, late_s + request_s())
        hedge.note(4096, latency_s)
        taken.append(latency_s)
    assert hedge.sent <= 0.03 * 50_000
    assert np.percentile(taken, 99.9) < 0.2


def test_what_the_first_ones_took_to_connect_is_soon_forgotten() -> None:
    hedge = Hedge()
    for _ in range(32):
        hedge.note(4096, 0.15)
    assert hedge.delay_s(4096) == 0.15 * 1.5
    for _ in range(32):
        hedge.note(4096, 0.02)
    assert hedge.delay_s(4096) == 0.02 * 1.5


def test_what_is_late_changes_with_the_store() -> None:
    """Only what came lately counts, and it is looked at again and again."""
    hedge = Hedge()
    for latency_s in (1.0, 4.0, 2.0):
        for _ in range(300):
            hedge.note(1000, latency_s)
        assert hedge.delay_s(1000) == 1.5 * latency_s
