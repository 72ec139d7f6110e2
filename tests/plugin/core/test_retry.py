"""When an op is tried again: attempts, waits, Retry-After, and the budget of a store."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.retry import LONGEST_RETRY_AFTER_S, Attempts, Retries
from headrace.types import Verdict

AGAIN = Verdict(is_retryable=True)
FINAL = Verdict(is_retryable=False)


def test_what_is_not_retryable_is_given_up_and_costs_nothing() -> None:
    retries = Retries(5, reserve=1)
    assert retries.next_delay(1, FINAL, 0.5) is None
    assert retries.tokens == 1


def test_waits_double_up_to_a_cap() -> None:
    retries = Retries(6, base_s=0.1, cap_s=1.0)
    waits = [retries.next_delay(attempt, AGAIN, 0.5) for attempt in range(1, 7)]
    assert waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.5, 0.5])


def test_so_many_retries_and_no_more() -> None:
    retries = Retries(2)
    assert retries.next_delay(2, AGAIN, 0.0) is not None
    assert retries.next_delay(3, AGAIN, 0.0) is None
    assert Retries(0).next_delay(1, AGAIN, 0.0) is None


@given(attempt=st.integers(1, 5000), chance=st.floats(0, 1, exclude_max=True))
def test_a_wait_is_drawn_from_all_of_it(attempt: int, chance: float) -> None:
    delay = Retries(5000, base_s=0.1, cap_s=2.0).next_delay(attempt, AGAIN, chance)
    assert delay is not None
    assert delay == pytest.approx(chance * min(2.0, 0.1 * 2 ** min(attempt - 1, 30)))


def test_retry_after_is_the_least_wait_and_is_spread() -> None:
    told = Verdict(is_retryable=True, is_throttled=True, retry_after_s=3)
    retries = Retries(5)
    early, late = retries.next_delay(1, told, 0.0), retries.next_delay(1, told, 0.9)
    assert early == 3
    assert late is not None
    assert late > 3


def test_a_store_that_wants_to_be_left_alone_for_long_is_an_error_now() -> None:
    told = Verdict(is_retryable=True, retry_after_s=LONGEST_RETRY_AFTER_S + 1)
    assert Retries(5).next_delay(1, told, 0.0) is None


def test_successes_refill_the_budget_up_to_the_reserve() -> None:
    retries = Retries(100, reserve=2, refill=0.25)
    assert [retries.next_delay(1, AGAIN, 0) for _ in range(3)] == [0, 0, None]
    retries.note_success(3)
    assert retries.next_delay(1, AGAIN, 0) is None, "three quarters of a token"
    retries.note_success(1)
    assert retries.next_delay(1, AGAIN, 0) == 0
    retries.note_success(1000)
    assert retries.tokens == 2


def test_attempts_that_brought_something_to_keep_do_not_count() -> None:
    attempts, numbers = Attempts(), []
    for kept in (0, 0, 10, 10, 10, 25):
        attempts.begin()
        attempts.note_kept(0, kept)
        numbers.append(attempts.in_vain)
    assert numbers == [1, 2, 1, 2, 3, 1]


def test_of_a_call_each_op_may_bring_something() -> None:
    attempts = Attempts()
    attempts.begin()
    attempts.note_kept(7, 100)
    attempts.note_kept(8, 0)
    attempts.begin()
    attempts.note_kept(8, 0)
    assert attempts.in_vain == 2, "the other one is done"


def test_a_silent_store_is_asked_once_for_each_op_until_something_succeeds() -> None:
    retries = Retries(2)
    ops = [1, 1, 2, 2, 3]
    assert [retries.next_delay(attempt, AGAIN, 0.0) for attempt in ops] == [0, 0, 0, 0, None]
    assert not retries.is_silent, "two ops that fail are not yet a store that is gone"
    retries.next_delay(1, AGAIN, 0.0)
    assert retries.next_delay(3, AGAIN, 0.0) is None
    assert retries.is_silent
    assert retries.next_delay(1, AGAIN, 0.0) is None
    retries.note_success(1)
    assert retries.next_delay(1, AGAIN, 0.0) == 0


def _sent(ops: int, share: float, seed: int) -> tuple[int, int]:
    """Requests sent and ops failed, where each request fails with a chance of `share`."""
    rng, retries = random.Random(seed), Retries()
    sent = failed = 0
    for _ in range(ops):
        attempt = 1
        sent += 1
        while rng.random() < share:
            if retries.next_delay(attempt, AGAIN, rng.random()) is None:
                failed += 1
                break
            attempt += 1
            sent += 1
        else:
            retries.note_success(1)
    return sent, failed


@pytest.mark.parametrize("seed", range(5))
def test_a_tenth_of_faults_costs_less_than_a_fifth_of_requests(seed: int) -> None:
    sent, failed = _sent(10_000, 0.1, seed)
    assert failed == 0
    assert sent <= 12_000


def test_an_outage_is_no_storm() -> None:
    sent, failed = _sent(10_000, 1.0, 0)
    assert failed == 10_000
    assert sent <= 10_000 + 30, "one request each, and the attempts of the first three"
