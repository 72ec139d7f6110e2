"""The drivers of inline backends: what they keep of a read, and for how long."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from headrace.backends.memory import MemoryBackend
from headrace.drivers.inline import LiteDriver
from headrace.drivers.job import Waiter


class Started:
    """A job whose consumer waits for the disk."""

    def __init__(self) -> None:
        self.backend = MemoryBackend(None)
        self.ops = None
        self.under_way = [(None, np.arange(3))]
        self.is_ahead = False
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
