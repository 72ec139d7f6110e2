"""Writes that pass by the scheduler, counted in their store's window while they are under way.

What is counted: contents given as a whole (``pipe``, ``write_bytes``), local files (``put``), and the parts
that a file opened for writing sends. Copies inside the store move no bytes here.
"""

from __future__ import annotations

import contextlib
import functools
import os
import weakref
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from headrace.core.uploads import MOST_PARTS, UPLOAD_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.core.scheduler import Scheduler
    from headrace.delegation import Delegation
    from headrace.runtime import Channel

_WHOLE = frozenset({"pipe", "pipe_file", "write_bytes", "write_text"})
FROM_DISK = ("put", "put_file", "upload")
_SENDING = _WHOLE.union(FROM_DISK)
_NAMES = ({"path", "lpath"}, {"value", "data", "text", "rpath"})
"""What filesystems call the first two arguments of these."""

_INSIDE = ("buffer", "fileobj", "_fp")
"""Where files of Python's keep the one that they write into: text, gzip, and bz2 and xz."""

_UNKNOWN_BYTES = MOST_PARTS * UPLOAD_BYTES


def counted(
    fs: Delegation, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> contextlib.AbstractContextManager[Any]:
    """Count what a call of the filesystem's method `name` sends, until it is over."""
    name = name.lstrip("_")
    if name not in _SENDING or not _counts(fs.channel):
        return contextlib.nullcontext()
    return _all_under_way(fs, _sent(name, args, kwargs))


def count_parts(fs: Delegation, file: Any, path: str) -> None:
    """Have a file that was opened for writing count each part that it sends."""
    sending = _sending_in(file) if _counts(fs.channel) else None
    if sending is not None:
        # A class and no attribute: a bound method inside the file would be a cycle, and a file that nobody
        # closed is closed by its finaliser.
        sending._headrace_counted = functools.partial(_under_way, fs, path)  # noqa: SLF001
        sending.__class__ = _counting(type(sending))  # type: ignore[arg-type]


def _sending_in(file: Any) -> Any:
    """Return the file that sends the parts: `file`, what that encodes or compresses for, or None."""
    while file is not None and not callable(getattr(file, "_upload_chunk", None)):
        inside = (getattr(file, name, None) for name in _INSIDE)
        file = next((inner for inner in inside if inner is not None), None)
    return file


def _counts(channel: Channel | None) -> bool:
    return channel is not None and channel.backend.defaults.window_ops > 0


@contextlib.contextmanager
def _all_under_way(fs: Delegation, sizes: dict[str, int]) -> Iterator[None]:
    with contextlib.ExitStack() as under_way:
        for path, nbytes in sizes.items():
            under_way.enter_context(_under_way(fs, path, nbytes))
        yield


@contextlib.contextmanager
def _under_way(fs: Delegation, path: str, nbytes: int) -> Iterator[None]:
    channel = fs.channel  # that of this process
    if channel is None or channel.engine.is_inside():
        # A signal handler or finaliser that interrupted a section can count nothing, and is not held back.
        try:
            yield
        finally:
            fs.note_change()
        return
    engine, scheduler = channel.engine, channel.scheduler(fs.target._strip_protocol(path))  # noqa: SLF001
    write = _Write()
    end = _End(write, engine.taken.append)
    end.scheduler = scheduler
    try:
        with engine.lock, engine:
            scheduler.room.uploads.begin(end, nbytes)
        yield
    finally:
        del write  # cut before that line, it goes with its frame
        fs.note_change()
        if not engine.is_inside():  # else what was interrupted there notes the end
            with engine.lock, engine:
                pass  # it notes the end


class _Write:
    """A write, for as long as it is under way."""

    __slots__ = ("__weakref__",)


class _End(weakref.ref[_Write]):
    """What the engine's next section is told, from C and in one step, of a write that is over.

    An interrupt may come at any line, and would else leave it under way for ever.
    """

    __hash__ = object.__hash__  # the reference's own needs what it refers to
    __eq__ = object.__eq__

    scheduler: Scheduler | None = None
    """None of one whose making was cut, and which was never counted."""

    @override
    def __call__(self) -> None:
        """Note the end; in a section."""
        if self.scheduler is not None:
            self.scheduler.room.uploads.end(self)
            self.scheduler.hub.changed()  # reads may take its place


@functools.cache
def _counting(kind: Any) -> Any:
    """Return the class of files that are like `kind` and count the parts that they send."""

    def send(self: Any, final: bool = False) -> Any:
        with self._headrace_counted(self.buffer.tell()):
            return kind._upload_chunk(self, final=final)  # noqa: SLF001

    return type(
        kind.__name__, (kind,), {"__slots__": (), "__module__": kind.__module__, "_upload_chunk": send}
    )


def _sent(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, int]:
    """Return the bytes that a call sends, by path; nothing for a call that its method will refuse."""
    first, second = (_argument(k, args, kwargs) for k in (0, 1))
    if name in FROM_DISK:
        path = second[0] if isinstance(second, list) and second else second
        return {path: _size_on_disk(first)} if isinstance(path, str) else {}
    contents = first if isinstance(first, dict) else {first: second}
    return {path: _length(data) for path, data in contents.items() if isinstance(path, str)}


def _argument(k: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[k] if k < len(args) else next((kwargs[name] for name in kwargs if name in _NAMES[k]), None)


def _length(data: Any) -> int:
    return getattr(data, "nbytes", None) or (len(data) if hasattr(data, "__len__") else 0)


def _size_on_disk(path: Any) -> int:
    """Return the bytes of one file; folders, lists and patterns are long."""
    try:
        return os.path.getsize(path) if os.path.isfile(path) else _UNKNOWN_BYTES  # noqa: PTH113, PTH202
    except TypeError:
        return _UNKNOWN_BYTES
