"""The drivers of inline backends: what they keep of a read, and for how long."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from headrace.backends.memory import MemoryBackend
from headrace.drivers.inline import LiteDriver, _shares
from headrace.drivers.job import Waiter


class Started:
    """A job whose consumer waits for the disk."""

    def __init__(self) -> None:
        self.backend = MemoryBackend(None)
        self.ops = None
        self.under_way = [(None, np.arange(3))]
        self.waiter = Waiter()


class Admitted:
    inbox = (None,)


def test_a_read_that_was_passed_over_is_not_kept() -> None:
    """Its consumer may start what was admitted itself; its files are to be closed when it is over."""
    driver, job, request = LiteDriver(None), Started(), Admitted()  # type: ignore[arg-type]
    untyped: Any = job
    driver._wake(untyped, request)  # type: ignore[arg-type]
    assert job.waiter.wait(0), "woken"
    gone = weakref.ref(job)
    del job, untyped
    assert gone() is None
    driver._start_for_others()


@pytest.mark.parametrize(("length", "shares"), [(4096, [[0, 1, 2]]), (1 << 20, [[0, 1], [2]])])
def test_workers_share_long_ops(length: int, shares: list[list[int]]) -> None:
    """One worker would copy them one after the other; more than two would keep others waiting."""
    job: Any = Started()
    job.ops = SimpleNamespace(length=np.full(3, length))
    assert [rows.tolist() for rows in _shares(job, np.arange(3))] == shares
    assert _shares(job, np.arange(0)) == []
