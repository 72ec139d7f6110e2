"""The background threads: who starts them, and who waits until they are started."""

from __future__ import annotations

import threading

import pytest

from headrace.drivers.loop import Dispatcher, LoopThread

WAIT_S = 30.0


@pytest.mark.parametrize("kind", [Dispatcher, LoopThread])
def test_a_call_waits_for_nobody_that_is_about_to_start_the_thread(
    kind: type[Dispatcher | LoopThread],
) -> None:
    """It may come from inside the engine's section; who waits for what was called starts the thread."""
    thread, called = kind(), threading.Event()
    with thread._lock:
        caller = threading.Thread(target=thread.call, args=(called.set,), daemon=True)
        caller.start()
        caller.join(WAIT_S)
        assert not caller.is_alive()
        assert not thread.is_alive
        thread.ensure()
    assert called.wait(WAIT_S)
    thread.close(WAIT_S)
