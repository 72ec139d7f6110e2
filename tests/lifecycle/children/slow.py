"""Local files read slowly: filesystems for child processes that are interrupted in a read.

Both announce every read on standard output before it waits (``reading`` and a newline), so that
the parent can wait for that event, and take `delay_s` over it.  With `delay_s` at 0 they are quick
and silent: a dataset is opened quickly and then scanned slowly.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import threading
import time
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem


def say(word: str) -> None:
    """Tell the parent; one write, so that lines of several threads do not mix."""
    os.write(sys.stdout.fileno(), f"{word}\n".encode())


delay_s = 0.0
"""Seconds each read takes."""

only = ""
"""A part of the names of the files that are slow; all are by default."""

failing = ""
"""A part of the names of the files whose reads fail; none do by default."""

has_begun = threading.Event()
"""A slow read is in progress, or was."""


def _is_slow(path: str) -> bool:
    if failing and failing in path:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)
    if not delay_s or only not in path:
        return False
    say("reading")
    has_begun.set()
    return True


def _bounds(path: str, start: int | None, end: int | None) -> tuple[int, int]:
    size = os.stat(path).st_size  # noqa: PTH116
    first = start or 0
    last = size if end is None else end
    return (first + size if first < 0 else first, last + size if last < 0 else last)


def _read(path: str, start: int | None, end: int | None) -> bytes:
    first, last = _bounds(path, start, end)
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return os.pread(file.fileno(), max(0, last - first), first)


class SlowFile:
    """An open file whose reads take `delay_s`."""

    def __init__(self, path: str, options: dict[str, Any]) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: PTH123, SIM115
        self.path = path
        self.options = options
        self.closed = False

    def read(self, length: int = -1) -> bytes:
        if _is_slow(self.path):
            time.sleep(delay_s)
        return self._file.read(length)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True
        self._file.close()


class SlowFileSystem(LocalFileSystem):
    """The synchronous one."""

    protocol = "slow"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode != "rb":
            return super()._open(path, mode, **options)
        return SlowFile(self._strip_protocol(path), options)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        if _is_slow(path):
            time.sleep(delay_s)
        return _read(self._strip_protocol(path), start, end)


class SlowAsyncFileSystem(AsyncFileSystem):
    """The asynchronous one: its reads wait in ``asyncio.sleep``."""

    protocol = "aslow"
    root_marker = "/"
    _local = LocalFileSystem()

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        return self._local.info(self._strip_protocol(path))

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        return self._local.ls(self._strip_protocol(path), detail=detail)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        if _is_slow(path):
            await asyncio.sleep(delay_s)
        return _read(self._strip_protocol(path), start, end)

    async def _pipe_file(self, path: str, value: bytes, **_: Any) -> None:
        self._local.pipe_file(self._strip_protocol(path), value)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return SlowFile(self._strip_protocol(path), options)


fsspec.register_implementation("slow", SlowFileSystem, clobber=True)
fsspec.register_implementation("aslow", SlowAsyncFileSystem, clobber=True)
