"""Which reads are performed in series, and in how many."""

from __future__ import annotations

import numpy as np
import pytest

from headrace.core.series import SeriesLimits, series_ops

KIB, MIB = 1 << 10, 1 << 20
LIMITS = SeriesLimits(
    most_series_ops=32, short_bytes=MIB, urgent_bytes=64 * KIB, window_bytes=MIB, most_ops=1024
)


def ops_of(total: int, each: int) -> np.ndarray:
    return np.full(total // each, each, np.int64)


def test_a_long_read_of_short_ops_has_half_as_many_series_as_the_window_has_room_for() -> None:
    lengths = ops_of(16 * MIB, 64 * KIB)
    assert len(lengths) / series_ops(lengths, 16 * MIB, LIMITS) == MIB / (64 * KIB) / 2


def test_no_series_is_longer_than_the_backend_makes_them() -> None:
    assert series_ops(ops_of(256 * MIB, 64 * KIB), 256 * MIB, LIMITS) == 32


@pytest.mark.parametrize(
    ("total", "each", "changed"),
    [
        (MIB, 64 * KIB, {}),  # short
        (16 * MIB, 2 * MIB, {}),  # of long ops
        (16 * MIB, 16 * KIB, {}),  # of very short ones, which lie apart
        (16 * MIB, 64 * KIB, {"most_ops": 31}),  # a round would keep the few that may be in flight
        (16 * MIB, 64 * KIB, {"most_series_ops": 1}),
    ],
)
def test_others_are_performed_side_by_side(total: int, each: int, changed: dict[str, int]) -> None:
    assert series_ops(ops_of(total, each), total, LIMITS._replace(**changed)) == 1


def test_a_window_below_two_ops_makes_one_series() -> None:
    narrow = LIMITS._replace(window_bytes=64 * KIB)
    assert series_ops(ops_of(2 * MIB, 64 * KIB), 2 * MIB, narrow) == 32
