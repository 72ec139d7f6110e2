"""What the children that soak share: threads that work at random, and what is open afterwards."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

THREADS = 4
IDLE_S = 30.0

wrong: list[str] = []
"""What went wrong on any of the threads."""


def on_threads(work: Callable[[random.Random], int], count: int) -> None:
    """Call `work`, which says how much it did, on some threads until they have done `count` together."""

    def soak(seed: int) -> None:
        chance, left = random.Random(seed), count // THREADS
        try:
            while left > 0:
                left -= work(chance)
        except BaseException as error:  # noqa: BLE001 - reported
            wrong.append(f"{type(error).__name__}: {error}"[:500])

    threads = [threading.Thread(target=soak, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()


def descriptors() -> Counter[str]:
    """Count what is open, by name; the descriptor of this listing is gone when it is asked."""
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
            found[target.partition(":[")[0]] += 1
    return found


def wait_until_closed(files: Counter[str], deadline_s: float) -> None:
    """Wait until nothing is open but `files`.

    An op is over a moment before the loop thread, which told so, lets go of it; where its read raised, what
    is left then is a cycle of error, traceback and read.
    """
    while descriptors() - files and time.monotonic() < deadline_s:
        gc.collect()
        time.sleep(0.001)
