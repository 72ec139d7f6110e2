"""One thread sleeps until another wakes it."""

from __future__ import annotations

import pytest

from headrace.drivers.waiter import Waiter


def test_to_wake_twice_is_to_wake_once() -> None:
    waiter = Waiter()
    waiter.wake()
    waiter.wake()
    assert waiter.wait(0)
    assert not waiter.wait(0)


def test_what_a_handler_raised_is_not_taken_for_the_locks_own() -> None:
    """A signal is handled after the lock was let go: the sleeper is awake."""

    class Lock:
        is_free = False

        def release(self) -> None:
            Lock.is_free = True
            raise RuntimeError("from a handler")

    waiter = Waiter()
    waiter._lock = Lock()  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="handler"):
        waiter.wake()
    assert Lock.is_free
