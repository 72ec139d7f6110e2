"""`plan_few`: the same plans as `plan_ranges`, made without NumPy."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.few import plan_few
from headrace.core.plan import Plan, plan_ranges

ranges = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(1, 12)), min_size=1, max_size=30
)


def columns(rows: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    file, start, length = np.array(rows, np.int64).T.copy()
    return file, start, start + length


def assert_equal(one: Plan, other: Plan) -> None:
    for field in fields(Plan):
        found, expected = getattr(one, field.name), getattr(other, field.name)
        assert np.array_equal(found, expected), field.name
        assert not isinstance(expected, np.ndarray) or found.dtype == expected.dtype


@given(rows=ranges, gap=st.integers(-1, 20))
def test_it_plans_as_the_other_one_does(rows: list[tuple[int, int, int]], gap: int) -> None:
    found = plan_few(*columns(rows), max_gap_bytes=gap, max_op_bytes=1000)
    assert found is not None
    assert_equal(found, plan_ranges(*columns(rows), max_gap_bytes=gap, max_op_bytes=1000))


@pytest.mark.parametrize("rows", [[(0, 5, 0), (0, 9, 3)], [(0, 5, 11)], [(0, 0, 8), (0, 8, 8)]])
def test_it_leaves_empty_and_long_ranges_to_the_other_one(rows: list[tuple[int, int, int]]) -> None:
    assert plan_few(*columns(rows), max_gap_bytes=0, max_op_bytes=10) is None
