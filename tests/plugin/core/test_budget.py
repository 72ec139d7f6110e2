"""The byte budget: reservations, released exactly once, and the least priority among them (I3, I6)."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.budget import ByteBudget
from headrace.types import Priority


def test_what_fits() -> None:
    budget = ByteBudget(100)
    assert budget.fits(1000), "alone, it may be larger than the budget"
    budget.hold("a", 60, Priority())
    assert budget.fits(40)
    assert not budget.fits(41)


def test_a_budget_of_0_is_no_limit() -> None:
    budget = ByteBudget(0)
    budget.hold("a", 1 << 40, Priority())
    assert budget.fits(1 << 40)


def test_a_second_reservation_of_one_key_is_refused() -> None:
    budget = ByteBudget(100)
    budget.hold("a", 60, Priority())
    with pytest.raises(ValueError, match="'a' holds a reservation already"):
        budget.hold("a", 1, Priority(-9))
    assert (budget.reserved_bytes, budget.least_priority()) == (60, Priority())
    budget.validate()


def test_releasing_twice_releases_once() -> None:
    budget = ByteBudget(100)
    budget.hold("a", 60, Priority())
    budget.hold("b", 7, Priority())
    assert (budget.release("a"), budget.release("a"), budget.release("never")) == (60, 0, 0)
    assert budget.reserved_bytes == 7


def test_the_least_priority_follows_a_holder_that_was_raised() -> None:
    budget = ByteBudget(100)
    budget.hold("a", 1, Priority(3))
    budget.hold("b", 1, Priority(1))
    budget.reprioritise("a", Priority(-1))
    budget.reprioritise("never", Priority(-9))
    assert budget.least_priority() == Priority(-1)
    budget.release("a")
    assert budget.least_priority() == Priority(1)


def test_a_key_that_comes_back_has_its_new_priority() -> None:
    budget = ByteBudget(100)
    budget.hold("b", 1, Priority(-7))
    budget.hold("a", 1, Priority(-5))
    budget.release("a")
    budget.hold("a", 1, Priority(5))
    budget.release("b")
    assert budget.least_priority() == Priority(5)


def test_a_group_holds_while_a_member_does() -> None:
    budget = ByteBudget(100)
    for key in "ab":
        budget.hold(key, 1, Priority(), group="g")
    budget.release("a")
    assert budget.is_group_holding("g")
    budget.release("b")
    assert not budget.is_group_holding("g")
    assert not budget.is_group_holding(None)


def test_derived_numbers_are_derived_again() -> None:
    budget = ByteBudget(100)
    for key in range(5):
        budget.hold(key, 10, Priority(key), group=key % 2, is_speculative=key == 2)
    budget.reserved_bytes = 12345
    budget._demand.clear()
    budget._groups.clear()
    with pytest.raises(AssertionError, match="budget"):
        budget.validate()
    budget.keep_only({2: True, 3: False, 4: False, 99: False})
    budget.validate()
    assert (budget.reserved_bytes, budget.least_priority()) == (30, Priority(2))
    assert budget.least_of_demand() == Priority(3)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["hold", "release", "raise", "shrink"]), st.integers(0, 4), st.integers(-3, 3)
        )
    )
)
def test_against_a_table(events: list[tuple[str, int, int]]) -> None:
    budget, table = ByteBudget(50), dict[int, tuple[int, Priority, bool]]()
    for event, key, value in events:
        if event == "release":
            assert budget.release(key) == table.pop(key, (0, None, None))[0]
        elif event == "hold" and key not in table:
            table[key] = (10 + value, Priority(value), value % 2 == 1)
            budget.hold(key, 10 + value, Priority(value), is_speculative=value % 2 == 1)
        elif event == "raise" and key in table:
            table[key] = (table[key][0], Priority(value), False)
            budget.reprioritise(key, Priority(value))
        elif event == "shrink":
            budget.shrink(key, 8 + value)
            if key in table:
                nbytes, *rest = table[key]
                table[key] = (min(nbytes, 8 + value), *rest)  # type: ignore[assignment]
        budget.validate()
        assert budget.reserved_bytes == sum(nbytes for nbytes, _, _ in table.values())
        assert budget.least_priority() == min((p for _, p, _ in table.values()), default=None)
        demand = [p for _, p, is_speculative in table.values() if not is_speculative]
        assert budget.least_of_demand() == min(demand, default=None)


class CountedPriority(Priority):
    """A priority that counts how often it is compared."""

    compared = 0

    def __lt__(self, other: tuple[int, ...]) -> bool:
        CountedPriority.compared += 1
        return tuple.__lt__(self, other)

    def __eq__(self, other: object) -> bool:
        CountedPriority.compared += 1
        return tuple.__eq__(self, other)

    __hash__ = Priority.__hash__


def test_the_least_of_a_hundred_thousand_costs_a_logarithm() -> None:
    """Over many holds and releases together: a release leaves its row to be dropped later."""
    n, rounds = 100_000, 50_000
    draw = random.Random(3)
    budget = ByteBudget(0)
    priority = lambda: CountedPriority(draw.randrange(100), draw.randrange(1 << 30))  # noqa: E731
    for key in range(n):
        budget.hold(key, 1, priority())
    CountedPriority.compared = 0
    for key in range(rounds):
        budget.release(key)
        budget.hold(n + key, 1, priority())
        assert budget.least_priority() is not None
    assert CountedPriority.compared <= 8 * rounds * math.log2(n)
    assert len(budget._demand._heap) <= 2 * len(budget) + 65


def test_rows_of_the_released_do_not_pile_up() -> None:
    budget = ByteBudget(0)
    budget.hold("stays", 1, Priority(-1))
    for key in range(10_000):
        budget.hold(key, 1, Priority(key))
        budget.release(key)
    assert len(budget._demand._heap) < 100
    assert budget.least_priority() == Priority(-1)


def test_the_peak_is_the_most_that_was_held_at_once() -> None:
    budget = ByteBudget(100)
    for key, nbytes in (("a", 30), ("b", 40)):
        budget.hold(key, nbytes, Priority())
    budget.release("a")
    budget.hold("c", 20, Priority())
    assert (budget.reserved_bytes, budget.peak_bytes) == (60, 70)
