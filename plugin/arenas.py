"""Memory of results that are used again: arenas.

Faulting in fresh pages costs as much as reading what goes into them from the page cache, so the mapping of a
large result is not unmapped when the result is gone but kept for the next one. It comes back when the last
view, `pyarrow.Buffer` or array on it is gone (I9), however it was handed out: all of them hold the one
object whose end is watched.

What lies idle stays within what the limit that the caller names, its byte budget, leaves beside what is out,
and is given up for what there would be no room for otherwise, kept itself or not.
Finalisers take no lock they would have to wait for (I3): what comes back waits in a queue for the next
holder of the lock.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.memory import MAPPED_BYTES, mapping, on_no_room, result_buffer
from headrace.threads import after_fork_in_child, call_if_free

if TYPE_CHECKING:
    from headrace.types import UInt8Array

UNLIMITED_BYTES = 512 << 20
"""What stays idle at the most where the byte budget is no limit."""


class Arenas:
    """Mappings that are out, and idle ones to hand out next.

    How much is out is read from what is watched, never counted beside it: an exception between any two
    lines costs a mapping, which is unmapped as ever, and no bytes of the limit.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._idle: list[mmap.mmap] = []
        self._returned: deque[mmap.mmap] = deque()
        self._watched: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._limit = UNLIMITED_BYTES

    @property
    def out_bytes(self) -> int:
        """Bytes of mappings that somebody holds."""
        return sum(size for _, size in list(self._watched.values()))

    @property
    def idle_bytes(self) -> int:
        """Bytes of mappings that wait to be used again."""
        return sum(map(len, list(self._idle))) + sum(map(len, list(self._returned)))

    def take(self, nbytes: int, limit_bytes: int) -> UInt8Array:
        """Return memory for `nbytes`, contents undefined.

        Parameters
        ----------
        nbytes
            Bytes; what is too small for a mapping, or larger than the limit, is not kept.
        limit_bytes
            What is idle takes no more of it than what is out leaves; 0 stands for 512 MiB.
        """
        limit_bytes = limit_bytes or UNLIMITED_BYTES
        size = _rounded(nbytes)
        is_kept = nbytes >= MAPPED_BYTES and size <= limit_bytes
        memory = call_if_free(self._lock, self._take, size, limit_bytes) if is_kept else None
        return result_buffer(nbytes) if memory is None else np.frombuffer(memory, np.uint8, nbytes)

    def give_up(self) -> bool:
        """Let go of what is idle, and say whether anything was; whoever has the lock may need it, too."""
        idle_bytes = self.idle_bytes
        call_if_free(self._lock, self._settle)
        self._idle = []
        return idle_bytes > 0

    def forget(self) -> None:
        """In a forked child: whoever held the lock is not there."""
        self._lock = threading.RLock()

    def _take(self, size: int, limit_bytes: int) -> Any:
        self._limit = limit_bytes
        self._settle()
        mapped = self._fitting(size) or mapping(size)
        memory = self._watch(mapped)
        self._shrink()
        return memory

    def _watch(self, mapped: mmap.mmap) -> Any:
        memory = (ctypes.c_char * len(mapped)).from_buffer(mapped)
        key = id(mapped)
        gone = weakref.ref(memory, lambda _gone: self._give_back(mapped, key))
        self._watched[key] = (gone, len(mapped))
        return memory

    def _give_back(self, mapped: mmap.mmap, key: int) -> None:
        self._watched.pop(key, None)
        self._returned.append(mapped)
        call_if_free(self._lock, self._settle)

    def _settle(self) -> None:
        """Make idle what came back, and let go of what is too much."""
        for key, (gone, _) in list(self._watched.items()):
            if gone() is None:  # and an exception cut `_give_back`, or it is at its first line
                self._watched.pop(key, None)
        while self._returned:
            self._idle.append(self._returned.popleft())
        self._shrink()

    def _shrink(self) -> None:
        while self._idle and self.idle_bytes > max(0, self._limit - self.out_bytes):
            del self._idle[:1]  # the one that has been idle longest

    def _fitting(self, size: int) -> mmap.mmap | None:
        """Take the smallest idle mapping that has room for `size` bytes and is not much larger."""
        idle = self._idle  # of its own, if all are given up meanwhile
        fitting = [place for place, one in enumerate(idle) if size <= len(one) <= 2 * size]
        return idle.pop(min(fitting, key=lambda place: len(idle[place]))) if fitting else None


def _rounded(nbytes: int) -> int:
    """Round up to an eighth of a power of two: results of similar sizes share arenas."""
    step = max(mmap.PAGESIZE, 1 << max(0, nbytes.bit_length() - 4))
    return -(-nbytes // step) * step


arenas = Arenas()
"""The process's."""

after_fork_in_child(arenas.forget)
on_no_room.append(arenas.give_up)
