"""SIGINT comes while the main thread is in C, and before a read on another thread is watched.

Run by ``test_interrupt.py``.  Prints which reads were told of it: the ``first``, one that is ``later`` but
before the main thread is back in Python, and one ``after`` that.
"""

from __future__ import annotations

import hashlib
import select
import signal
import sys
import threading

from headrace.drivers import interrupts


class Job:
    """What a watched read is asked for."""

    def __init__(self, name: str) -> None:
        self.name = name

    def fail(self, _error: BaseException) -> None:
        if self.name not in told:
            told.append(self.name)


def reads() -> None:
    may_begin.acquire()
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    select.select([interrupts._watcher.pair[0]], [], [])  # it has come
    with interrupts.watched(Job("first")):
        pass
    with interrupts.watched(Job("later")):
        has_begun.release()


told: list[str] = []
may_begin, has_begun = threading.Lock(), threading.Lock()
may_begin.acquire()
has_begun.acquire()
interrupts.arm(for_arrow=True)
interrupts.deliver_once()
interrupts.AFTERMATH_S = 0.0  # however late it is
thread = threading.Thread(target=reads)
thread.start()
sys.setswitchinterval(1000)  # the other thread runs when this one lets go of the GIL, and not before
try:
    may_begin.release()
    hashlib.pbkdf2_hmac("sha256", b"a second or so", b"in C, without the GIL", 2_000_000)
    has_begun.acquire()
except KeyboardInterrupt:
    pass
thread.join()
with interrupts.watched(Job("after")):
    pass
sys.stdout.write(f"{' '.join(told)}\n")
