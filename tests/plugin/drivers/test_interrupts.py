"""The watcher's bookkeeping; what an interrupt does to real reads is in ``tests/lifecycle``."""

from __future__ import annotations

import threading
from time import monotonic

import pytest

from headrace.drivers.interrupts import ECHO_S, NOT_MINE, _Watcher, call_holding


def test_an_error_of_the_same_interrupt_is_remembered() -> None:
    """Arrow's threads raise theirs as soon as they see that one came, before all waits are ended."""
    watcher = _Watcher()
    watcher.interrupted_s = monotonic()
    error = watcher.error()
    watcher._interrupt()
    assert error in watcher.errors


def test_errors_of_an_older_interrupt_are_forgotten() -> None:
    watcher = _Watcher()
    watcher.error()
    watcher.interrupted_s = monotonic() - ECHO_S
    watcher._interrupt()
    assert watcher.errors == []


class Handled:
    """A lock after whose release a signal's handler raises."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._is_owned = self.lock._is_owned  # type: ignore[attr-defined]
        self.acquire = self.lock.acquire

    def release(self) -> None:
        self.lock.release()
        raise RuntimeError("from a handler")


def test_what_a_handler_raised_is_not_taken_for_the_locks_own() -> None:
    guard = Handled()
    with pytest.raises(RuntimeError, match="handler"):
        call_holding(guard, int)
    assert not guard._is_owned()


def test_a_lock_that_was_let_go_meanwhile_is_no_error() -> None:
    guard = threading.RLock()
    assert call_holding(guard, guard.release) is None


def test_the_lock_says_whose_it_is_not() -> None:
    """What its text is compared with."""
    with pytest.raises(RuntimeError, match=f"^{NOT_MINE}"):
        threading.RLock().release()
