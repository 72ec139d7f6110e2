"""Leaving the kernel's readahead, which is in nobody's window, when urgent reads come.

Advice against it is not enough: each page that is marked to set the next readahead going does so whatever a
descriptor's advice is, also for another descriptor, and each sets the next mark (mm/readahead.c:
``page_cache_async_ra``). So what may have been read ahead is read around the page cache, once, by ops that
wait for their turn. No mark is met, and what comes after it is read page by page.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from functools import partial

from headrace.backends import _linux as linux

SLACK_BYTES = 1 << 20
"""How much further the kernel is taken to be ahead than it says."""


FAR_BYTES = 64 << 20
"""Who goes on so far behind where the kernel was followed is elsewhere: it is nowhere so far ahead."""


class Around:
    """What is left of a part of an open file that is read around the page cache, by a descriptor of its own.

    It reaches as far as the kernel may be ahead: over the window whose mark was met and the one that this set
    going, each as long as the device allows, or as an op that is longer.

    Parameters
    ----------
    fd
        Of the file.
    begin
        Where to read on.
    followed
        Up to where the kernel was followed.
    most
        Bytes of the longest op.

    Raises
    ------
    OSError
        The file's filesystem has no such reads, there is no descriptor, or this is no Linux.
    """

    __slots__ = ("__del__", "begin", "end", "fds")

    def __init__(self, fd: int, begin: int, followed: int, most: int) -> None:
        self.fds: list[int] = []
        # As of `LocalSource`: C opens and closes it, which no signal's handler cuts.
        self.__del__: partial[deque[int]] = partial(deque, map(linux.close, self.fds), 0)
        device = os.fstat(fd).st_dev
        if linux.is_served(device):
            msg = "a server, or a program, reads ahead as it likes, and for each descriptor"
            raise OSError(msg)
        self.begin = begin
        self.end = followed + 2 * max(linux.read_ahead_bytes(device), most) + SLACK_BYTES
        linux.open_around(fd, self.fds)
        linux.advise(self.fds[0], linux.ADVICE_RANDOM)  # where it reads through the page cache all the same

    def read(self, start: int, out: memoryview) -> int:
        """Fill `out` from `start` on, waiting; returns bytes, which may be fewer.

        Raises
        ------
        OSError, MemoryError
            Blocks of this size are refused, there is no room for them, or they cannot be read.
        """
        first, end = start & -linux.BLOCK, (start + len(out) + linux.BLOCK - 1) & -linux.BLOCK
        with mmap.mmap(-1, end - first) as memory, memoryview(memory) as blocks:
            got = max(0, min(os.preadv(self.fds[0], [blocks], first) - (start - first), len(out)))
            out[:got] = blocks[start - first : start - first + got]
        return got
