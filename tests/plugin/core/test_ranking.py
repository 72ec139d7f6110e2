"""Keys in an order of their own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.ranking import Ranking

EVENTS = st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(-3, 3)))


@given(EVENTS)
def test_against_a_table(events: list[tuple[bool, int, int]]) -> None:
    ranking: Ranking[int] = Ranking()
    table: dict[int, tuple[int, int]] = {}
    for number, (is_ranked, key, order) in enumerate(events):
        if is_ranked:
            ranking.rank(key, order)
            table[key] = order, number
        else:
            ranking.forget(key)
            table.pop(key, None)
        assert ranking.first() == min(table, key=lambda key: table[key], default=None)
        assert len(ranking) == len(table)


def test_what_left_keeps_no_memory() -> None:
    """Nobody asks for the first for as long as the budget suffices."""
    ranking: Ranking[int] = Ranking()
    ranking.rank(-1, -1)
    for key in range(10_000):
        ranking.rank(key, key)
        ranking.forget(key)
    assert len(ranking._heap) < 100
    assert ranking.first() == -1
    ranking.clear()
    assert (ranking.first(), len(ranking)) == (None, 0)
