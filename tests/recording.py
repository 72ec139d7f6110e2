"""Filesystems that write down every read that reaches them.

`RecordingFileSystem` (synchronous, protocol ``recording``) and `AsyncRecordingFileSystem` (protocol
``arecording``) serve local files.  Whatever asks them for data, by ``cat_file`` or through an open
file, is entered in a `ReadLog` before the bytes are read: path, range, thread, and the permit of
the admitted op it runs in (``headrace.testing.current_permit``), which is None for a read that
went round the scheduler.

A log is found by name, not held by the filesystem: fsspec caches instances per thread, headrace
makes an instance of an async filesystem for its own loop, and pickling makes more; all of them
write to one log.  A test may set `ReadLog.before_read`: it is called with each record, on the
thread of the read and outside the log's lock, and may block (to hold an op in flight) or raise (to
fail it).

Threading: the log has one lock, taken for an append or a copy only.
"""

from __future__ import annotations

import asyncio
import io
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class ReadRecord:
    """One read that reached the filesystem: ``[start, end)`` of `path`."""

    path: str
    start: int
    end: int
    thread_id: int
    permit: Any

    @property
    def is_admitted(self) -> bool:
        """Whether the read ran inside an admitted op, and inside the bytes of that op.

        Sequence number 0 is the permit of a call that is no read (metadata): none for data.
        """
        permit = self.permit
        if permit is None or permit.request_seq == 0 or permit.path != self.path:
            return False
        is_whole = permit.length < 0  # an op of unknown length reads to the end of the file
        return permit.start <= self.start and (is_whole or self.end <= permit.start + permit.length)

    @property
    def span(self) -> tuple[str, int, int]:
        """Name of the file and the range, for comparisons of order."""
        return os.path.basename(self.path), self.start, self.end  # noqa: PTH119


@dataclass(slots=True)
class ReadLog:
    """The reads of all instances that share a log name, in order of arrival."""

    before_read: Callable[[ReadRecord], None] | None = None
    _records: list[ReadRecord] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, path: str, start: int, end: int) -> ReadRecord:
        """Note a read that is about to happen."""
        record = ReadRecord(path, start, end, threading.get_native_id(), _current_permit())
        with self._lock:
            self._records.append(record)
        return record

    @property
    def records(self) -> list[ReadRecord]:
        """A copy of what was noted so far."""
        with self._lock:
            return list(self._records)

    @property
    def outside(self) -> list[ReadRecord]:
        """The reads that went round the scheduler."""
        return [record for record in self.records if not record.is_admitted]

    def clear(self) -> None:
        """Forget what was noted."""
        with self._lock:
            self._records.clear()


_LOGS: dict[str, ReadLog] = {}


def read_log(name: str) -> ReadLog:
    """Return the log of that name, made on first use."""
    return _LOGS.setdefault(name, ReadLog())


def _current_permit() -> Any:
    from headrace.testing import current_permit

    return current_permit()


def _bounds(path: str, start: int | None, end: int | None) -> tuple[int, int]:
    """Resolve None and negative bounds as fsspec's ``cat_file`` does; ends past the file stay."""
    size = os.stat(path).st_size  # noqa: PTH116
    first = 0 if start is None else start
    last = size if end is None else end
    return (
        max(0, first + size) if first < 0 else first,
        last + size if last < 0 else last,
    )


def _read(path: str, start: int, end: int) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return os.pread(file.fileno(), max(0, end - start), start)


class RecordingFile(io.RawIOBase):
    """An unbuffered file that notes each read; what fsspec's ``open`` returns here."""

    def __init__(self, path: str, log: ReadLog) -> None:
        super().__init__()
        self._file = open(path, "rb", buffering=0)  # noqa: PTH123, SIM115
        self._log = log
        self.path = path
        self.size = os.fstat(self._file.fileno()).st_size

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        start = self._file.tell()
        record = self._log.enter(self.path, start, start + len(view))
        if self._log.before_read is not None:
            self._log.before_read(record)
        return self._file.readinto(view)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed and hasattr(self, "_file"):  # else it could not be opened
            self._file.close()
        super().close()


class _Local:
    """What both variants share: everything but reads is the local filesystem's own."""

    root_marker = "/"
    _local = LocalFileSystem(auto_mkdir=True)
    log_name: str

    @property
    def log(self) -> ReadLog:
        return read_log(self.log_name)

    def created(self, path: str) -> Any:
        return self._local.created(path)

    def modified(self, path: str) -> Any:
        return self._local.modified(path)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        path = self._local._strip_protocol(path.partition("://")[2] or path)
        if mode == "rb":
            return RecordingFile(path, self.log)
        return open(path, mode)  # noqa: PTH123


class RecordingFileSystem(_Local, fsspec.AbstractFileSystem):
    """The synchronous variant."""

    protocol = "recording"

    def __init__(self, log: str = "default", **options: Any) -> None:
        super().__init__(log=log, **options)
        self.log_name = log

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return self._local.info(self._strip_protocol(path))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        return self._local.ls(self._strip_protocol(path), detail=detail)

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        self._local.mkdir(self._strip_protocol(path), create_parents=create_parents)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._local.makedirs(self._strip_protocol(path), exist_ok=exist_ok)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = self._strip_protocol(path)
        first, last = _bounds(path, start, end)
        record = self.log.enter(path, first, last)
        if self.log.before_read is not None:
            self.log.before_read(record)
        return _read(path, first, last)


class AsyncRecordingFileSystem(_Local, AsyncFileSystem):
    """The asynchronous variant: ranges are served by ``_cat_file`` on the caller's event loop."""

    protocol = "arecording"

    def __init__(self, log: str = "default", **options: Any) -> None:
        super().__init__(log=log, **options)
        self.log_name = log

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        return self._local.info(self._strip_protocol(path))

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        return self._local.ls(self._strip_protocol(path), detail=detail)

    async def _get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        if await self._isdir(rpath):
            os.makedirs(lpath, exist_ok=True)  # noqa: PTH103
            return
        content = await self._cat_file(rpath)
        with open(lpath, "wb") as file:  # noqa: ASYNC230, PTH123
            file.write(content)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = self._strip_protocol(path)
        first, last = _bounds(path, start, end)
        record = self.log.enter(path, first, last)
        if self.log.before_read is not None:
            await asyncio.to_thread(self.log.before_read, record)
        await asyncio.sleep(0)  # a read of a store always gives way to the loop
        return _read(path, first, last)


fsspec.register_implementation("recording", RecordingFileSystem, clobber=True)
fsspec.register_implementation("arecording", AsyncRecordingFileSystem, clobber=True)
