"""The watcher's bookkeeping; what an interrupt does to real reads is in ``tests/lifecycle``."""

from __future__ import annotations

from time import monotonic

from headrace.drivers.interrupts import ECHO_S, _Watcher


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
