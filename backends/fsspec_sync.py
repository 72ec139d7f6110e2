"""Any sync fsspec filesystem, on daemon threads.

A sync filesystem is not thread-safe unless it was shown to be (eight threads on one ``tar`` filesystem
read wrong bytes in a fifth of their reads), so one lock for each instance lets one thread at a time into
it, for reads and for everything else. `THREAD_SAFE` names the classes that were tested to need none.

A path is read with the filesystem's own ``cat_file``, so that its answer past the end, to a missing file
or to a negative bound is its own (I8). An open file keeps one handle of the filesystem's and seeks in it, to
one op after the other: formats that cannot seek backwards cheaply are neither opened anew nor start over.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from headrace.backends.abc import Defaults, PathSource, ThreadedBackend, beneath_folders
from headrace.threads import after_fork_in_child, call_if_free, forget_with, raise_if_of_a_handler

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable, Hashable

    from headrace.types import Ops

THREAD_SAFE = frozenset(
    {
        "fsspec.implementations.local.LocalFileSystem",
        "fsspec.implementations.memory.MemoryFileSystem",
        "headrace.filesystem.HeadraceFileSystem",
    }
)

_locks: dict[int, tuple[threading.RLock, weakref.ref[Any]]] = {}  # by id: equal ones are not the same


@after_fork_in_child
def _forget_locks() -> None:
    """Drop the locks in a forked child: their holders do not exist there."""
    global _locks  # noqa: PLW0603
    _locks = {}


def is_thread_safe(target: Any) -> bool:
    """Whether `target` may be used by several threads at once."""
    kind = type(target)
    return f"{kind.__module__}.{kind.__qualname__}" in THREAD_SAFE


def instance_lock(target: Any) -> Any:
    """Return the one lock of `target`; entered by one thread at a time, again by the same.

    Of those who make it at once the first one's is it. That takes no lock, which a signal handler or a
    finaliser would find held by its own thread.
    """
    found = _locks.get(id(target)) or _locks.setdefault(
        id(target), (threading.RLock(), forget_with(target, _locks))
    )
    return found[0]


def _close_if_free(lock: Any, close: Callable[[], object]) -> None:
    """Close with an `RLock`, unless another thread has it."""
    if lock._is_owned():  # noqa: SLF001 - the only way to ask
        close()
    else:
        call_if_free(lock, close)


def _untaken_caching(target: Any) -> frozenset[str]:
    """Return what files of `target` cannot be told of their caches: those of ``blockcache`` have its own."""
    from fsspec.implementations.cached import CachingFileSystem  # noqa: PLC0415

    opener = getattr(type(beneath_folders(target)), "_open", None)
    return frozenset({"cache_type"} if opener is CachingFileSystem._open else ())  # noqa: SLF001


class HandleSource:
    """A file that the filesystem holds open; one thread at a time reads it.

    `options` are those that it was opened with, `of_info` those of them that ``info`` is asked with, too.
    """

    __slots__ = ("_size", "handle", "lock", "of_info", "options", "path")

    def __init__(self, path: str, handle: Any, options: dict[str, Any], of_info: dict[str, Any]) -> None:
        self.path = path
        self.handle = handle
        self.lock = threading.RLock()
        self.options = options
        self.of_info = of_info
        self._size: int | None = None

    def read(self, start: int, length: int) -> bytes:
        """Return up to `length` bytes: fewer only at the end of the file."""
        with self.lock:
            self.handle.seek(start)
            pieces = self._pieces(length)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _pieces(self, length: int) -> list[bytes]:
        pieces = []
        while length > 0 and (piece := self.handle.read(length)):
            pieces.append(piece)
            length -= len(piece)
        return pieces

    def size(self) -> int:
        """Bytes of the file, as its handle sees it: now, where it can tell without reading them.

        What the filesystem says of the path may be of another version, or of the file before it was
        decompressed.
        """
        with self.lock:
            if isinstance(getattr(self.handle, "raw", None), io.FileIO):
                return self._end()  # of a file on disk, which may grow
            # A known size first: seeking to the end of a compressed member reads all of it.
            known = getattr(self.handle, "size", None)
            if isinstance(known, int):
                return known
            if self._size is None:
                self._size = self._end()
            return self._size

    def _end(self) -> int:
        self.handle.seek(0, os.SEEK_END)
        return int(self.handle.tell())  # `seek` of some returns nothing


class SyncBackend(ThreadedBackend):
    """Serves every fsspec filesystem that no other backend does."""

    name: ClassVar[str] = "fsspec"
    rank: ClassVar[int] = 0
    defaults: ClassVar[Defaults] = Defaults(
        mode="standard", max_gap_bytes=0, max_op_bytes=8 << 20, io_parallelism=8
    )

    def __init__(self, target: Any) -> None:
        super().__init__(target)
        self._lock = None if is_thread_safe(target) else instance_lock(target)
        self._untaken_caching = _untaken_caching(target)

    @classmethod
    @override
    def serves(cls, target: Any) -> bool:
        """Whatever can ``cat_file`` and ``open``."""
        return hasattr(target, "cat_file") and hasattr(target, "open")

    @override
    def guard(self) -> contextlib.AbstractContextManager[Any]:
        """Return the instance's lock, or nothing for a class that needs none."""
        return contextlib.nullcontext() if self._lock is None else self._lock

    @override
    def device(self, path: str) -> Hashable:
        """Name the filesystem itself: its class and every option that makes it what it is."""
        return self.store

    @override
    def open(
        self, path: str, *, as_file: bool = False, caching: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        """Return a path to be read with ``cat_file``, or an open handle, with a cache of its own."""
        if not as_file:
            return PathSource(path, **options)
        caching = {name: v for name, v in (caching or {}).items() if name not in self._untaken_caching}
        with self.guard():
            handle = self.target.open(path, mode="rb", **caching, **options)
        return HandleSource(path, handle, options, self._of_info(options))

    def _of_info(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return those options that the filesystem's ``info`` knows: a revision of Git, say."""
        if not options:
            return options
        target = beneath_folders(self.target)
        known = dict(inspect.signature(target.info).parameters)
        if any(one.kind is one.VAR_KEYWORD for one in known.values()):
            known |= inspect.signature(target.ls).parameters  # to which fsspec's own hands on all of them
        return {name: value for name, value in options.items() if name in known}

    @override
    def close(self, source: Any) -> None:
        """Close the handle, unless a read that was given up is still at work: then it closes itself.

        Closing must not wait for that read: its caller left because it would not.
        """
        if not isinstance(source, HandleSource):
            return
        close = source.handle.close
        if self._lock is not None:
            close = partial(_close_if_free, self._lock, close)
        _close_if_free(source.lock, close)

    @override
    def size(self, source: Any) -> int | None:
        """Bytes of an open file."""
        if not isinstance(source, HandleSource):
            return None
        with self.guard():
            try:
                return source.size()
            except (OSError, ValueError, AttributeError) as error:
                raise_if_of_a_handler(error)
                found = self.target.info(source.path, **source.of_info).get("size")
                if not isinstance(found, int):
                    raise
                return found  # of a handle that does not seek from its end

    @override
    def reads_in_order(self, ops: Ops) -> bool:
        """Whether they are of an open file: its handle is one, and a decompressor starts over to go back."""
        return len(ops.sources) == 1 and isinstance(ops.sources[0], HandleSource)

    @override
    def read(self, ops: Ops, row: int) -> None:
        """Read one op through the filesystem."""
        source = ops.sources[ops.file[row]]
        start, length = int(ops.start[row]), int(ops.length[row])
        with self.guard():
            if isinstance(source, HandleSource):
                data = source.read(start, length)
            else:
                first, end = source.limits(start, length)
                data = self.target.cat_file(source.path, start=first, end=end, **source.options)
        ops.deliver(row, data)
