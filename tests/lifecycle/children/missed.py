"""SIGINT comes while the main thread is in C, and before a read on another thread is watched.

Run by ``test_interrupt.py``.  Prints ``failed`` where the read was told of it all the same.
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

    is_told = False

    def fail(self, _error: BaseException) -> None:
        self.is_told = True


def reads() -> None:
    may_begin.acquire()
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    select.select([interrupts._watcher.pair[0]], [], [])  # it has come
    with interrupts.watched(job):
        has_begun.release()


job = Job()
may_begin, has_begun = threading.Lock(), threading.Lock()
may_begin.acquire()
has_begun.acquire()
interrupts.arm()
interrupts.deliver_once()
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
sys.stdout.write("failed\n" if job.is_told else "not told\n")
