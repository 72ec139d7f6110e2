"""NumPy's answers, block by block."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.columns import (
    BLOCK,
    are_equal,
    ascending,
    difference,
    first_bad,
    largest,
    minus_ones,
    offsets_of,
)

SIZES = [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7]
FIRST = 1 << 16
"""Up to here `ascending` hands out parts of one column."""


@pytest.mark.parametrize("n", [0, *SIZES])
@pytest.mark.parametrize("lo", [0, 5, FIRST - 3, FIRST, 10**12])
def test_ascending(lo: int, n: int) -> None:
    found = ascending(lo, lo + n)
    assert found.dtype == np.int64
    assert found.tolist() == list(range(lo, lo + n))


def test_what_all_have_in_common_cannot_be_spoilt() -> None:
    with pytest.raises(ValueError, match="read-only"):
        ascending(0, 10)[3] = 1
    assert ascending(0, 10).tolist() == list(range(10))


@pytest.mark.parametrize("n", [0, *SIZES])
def test_minus_ones(n: int) -> None:
    found = minus_ones(n)
    assert found.dtype == np.int64
    assert found.tolist() == [-1] * n
    found[:] = 7
    assert minus_ones(n).tolist() == [-1] * n


@pytest.mark.parametrize("n", SIZES)
def test_are_equal(n: int) -> None:
    values = np.full(n, 7)
    assert are_equal(values, 7)
    assert not are_equal(values, 8)
    for row in {0, n // 2, n - 1}:
        values[row] = 6
        assert not are_equal(values, 7)
        values[row] = 7


@pytest.mark.parametrize("n", SIZES)
def test_what_numpy_answers(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.integers(0, 10**9, (2, n))
    assert difference(a, b).tolist() == (a - b).tolist()
    assert offsets_of(a).tolist() == [0, *np.cumsum(a).tolist()]
    assert largest(a) == int(a.max())
    ends = a + b
    assert first_bad(a, ends) is None
    ends[n - 1] = a[n - 1] - 1
    assert first_bad(a, ends) == n - 1
