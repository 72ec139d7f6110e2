"""Starting threads where a signal handler may raise.

`threading.Thread.start` waits until the thread runs. A handler that raises in the middle of that wait, after
a lock was released and before it is waited for, has its exception replaced: the lock's ``with`` ends with
"release unlocked lock". Whoever called headrace expects what the handler raised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threading import Thread


def start_thread(thread: Thread) -> None:
    """Start a thread; what a signal handler raises meanwhile comes out as it is.

    Raises
    ------
    RuntimeError
        There can be no more threads, or the interpreter ends.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raised = error.__context__
        if raised is None or str(error) != "release unlocked lock":
            raise
        raise raised from None
