"""What is the wrapped filesystem's own: all that is not a read, and under ``off`` the reads too.

One table of names instead of sixty methods of one line. Each forwards paths (which it brings into the
wrapped filesystem's form), options and answers unchanged (but for some names of `find`), holding what a
call to the target must hold.

The async twins await the target's own coroutine where it can be awaited on the caller's loop, hand it to
the target's loop where that is another, and run the sync method on a thread where the target has no
coroutines.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import stat
from functools import partial
from typing import TYPE_CHECKING, Any

from fsspec.implementations.local import LocalFileSystem

from headrace import uploads
from headrace.drivers import interrupts
from headrace.drivers.apart import call_apart
from headrace.foreign import answers_of_file
from headrace.ranges import answer_or_error, batch_of, listed
from headrace.redact import redacted_answers, redacted_errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from headrace.batch import RangeBatch
    from headrace.ranges import Ranges
    from headrace.runtime import Channel

# What the table is of: methods by what they do, and by which of their arguments are remote paths.
ASKING = (
    "checksum", "created", "disk_usage", "du", "exists", "expand_path", "glob", "info", "isdir", "isfile",
    "lexists", "listdir", "ls", "modified", "sign", "size", "sizes", "stat", "tree", "ukey", "url",
    "unstrip_protocol",
)  # fmt: skip
CHANGING = (
    "delete", "makedir", "makedirs", "mkdir", "mkdirs", "pipe_file", "rm", "rm_file", "rmdir", "touch",
    "write_bytes", "write_text",
)  # fmt: skip
COPYING = ("copy", "cp", "cp_file", "mv", "move", "rename")
DOWNLOADING = ("get", "get_file", "download")
TRANSACTIONS = ("start_transaction", "end_transaction")

REMOTE_PATHS: dict[tuple[str, ...], tuple[int, ...]] = {
    ASKING: (0,),
    CHANGING: (0,),
    COPYING: (0, 1),
    DOWNLOADING: (0,),
    uploads.FROM_DISK: (1,),
    TRANSACTIONS: (),
}
WITH_COROUTINES = frozenset(
    {
        "copy", "cp_file", "du", "exists", "expand_path", "get", "get_file", "glob", "info", "isdir",
        "isfile", "ls", "makedirs", "mkdir", "pipe_file", "put", "put_file", "rm", "rm_file", "size", "touch",
    }
)  # fmt: skip

CHANGES_NOTHING = frozenset({*ASKING, *DOWNLOADING, "find", "walk", "cat_file", "cat_ranges"})
"""Methods after which all is as it was."""

MOST_NESTED_LINKS = 10_000
"""Links to folders, met behind other links, that one listing of the local disk follows."""


class Delegation:
    """Forwards to ``self.target``."""

    asynchronous: bool
    _own_path: Callable[[Any], Any]
    _target_path: Callable[[Any], Any]
    _file_path: Callable[[Any], Any]

    @property
    def target(self) -> Any:
        """The wrapped filesystem."""
        raise NotImplementedError

    @property
    def channel(self) -> Channel | None:
        """Backend, driver and engine that serve reads; None under ``off``."""
        raise NotImplementedError

    def _exclusively(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call what is no read of the target, holding what must be held."""
        channel = self.channel
        if channel is None:
            return function(*args, **kwargs)
        channel.shorten_turns()
        return channel.exclusively(function, *args, **kwargs)

    def note_change(self) -> None:
        """Take note that something was written, or may have been."""

    def _of_target(self, name: str, *args: Any, **kwargs: Any) -> Any:
        with redacted_errors(), uploads.counted(self, name, args, kwargs):
            return self._exclusively(getattr(self.target, name), *args, **kwargs)

    async def _of_target_async(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Await the target's coroutine `name`, wherever its loop is."""
        with redacted_errors(), uploads.counted(self, name, args, kwargs):
            method = getattr(self.target, name, None)
            if method is None or not getattr(self.target, "async_impl", False):
                return await self._in_thread(getattr(self.target, name.lstrip("_")), *args, **kwargs)
            if self.channel is not None:
                self.channel.shorten_turns()
            if self.target.asynchronous:
                return await method(*args, **kwargs)
            future = asyncio.run_coroutine_threadsafe(method(*args, **kwargs), self.target.loop)
            return await asyncio.wrap_future(future)

    async def _in_thread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a sync method without blocking the caller's loop."""
        return await call_apart(self._one_at_a_time, function, *args, **kwargs)

    def _one_at_a_time(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call it, under ``off`` too with the target to itself: its caller knows of one thread alone."""
        from headrace.backends.fsspec_sync import instance_lock, is_thread_safe  # noqa: PLC0415 - a backend

        target = self.target
        if self.channel is not None or getattr(target, "async_impl", False) or is_thread_safe(target):
            return self._exclusively(function, *args, **kwargs)
        return interrupts.call_holding(instance_lock(target), function, *args, **kwargs)

    # -- reads, under `off`

    def _open_of_target(self, path: Any, mode: str, block_size: int | None, options: dict[str, Any]) -> Any:
        if options.get("cache_options") is None:
            options.pop("cache_options", None)
        if block_size is not None:
            options["block_size"] = block_size
        path = self._target_path(path)
        return self._counting_parts(self._of_target("open", path, mode, **options), path, mode)

    def _counting_parts(self, file: Any, path: str, mode: str) -> Any:
        """Have a file of the target count what it sends, if it is open for writing."""
        if set(mode) & set("wax+"):
            uploads.count_parts(self, file, path)
        return file

    def _ranges_of_target(self, ranges: Ranges, out: Any = None) -> RangeBatch:
        if ranges.opened is not None:
            answers = self._answers_of_file(ranges)
        else:
            answers = self._cat_ranges_of_target(*listed(ranges), on_error="return")
        return batch_of(answers, ranges, out)

    async def _ranges_of_target_async(self, ranges: Ranges, out: Any = None) -> RangeBatch:
        """Async twin. It writes to `out` on the caller's thread: another knows of no cancellation (I9)."""
        if ranges.opened is not None:
            ranges.own()
            # Under `off` it may be the target's own, whose files share what one thread at a time may use.
            apart = self._in_thread if self.channel is None else call_apart
            answers = await apart(self._answers_of_file, ranges)
        else:
            given = listed(ranges)
            answers = redacted_answers(await self._of_target_async("_cat_ranges", *given, on_error="return"))
        return batch_of(answers, ranges, out)

    def _answers_of_file(self, ranges: Ranges) -> list[Any]:
        with redacted_errors():
            return redacted_answers(answers_of_file(ranges))

    def _cat_ranges_of_target(self, *args: Any, **kwargs: Any) -> list[Any]:
        return redacted_answers(self._of_target("cat_ranges", *args, **kwargs))

    def _cat_of_target(self, path: Any, start: int | None, end: int | None, **kwargs: Any) -> bytes:
        data: bytes = self._of_target("cat_file", self._file_path(path), start=start, end=end, **kwargs)
        return data

    def _cat_all_of_target(
        self, paths: list[str], start: int | None, end: int | None, options: dict[str, Any]
    ) -> list[Any]:
        """Read several files, side by side where the target does."""
        if not getattr(self.target, "async_impl", False):
            return [
                answer_or_error(partial(self._cat_of_target, **options), one, start, end) for one in paths
            ]
        names = [self._file_path(one) for one in paths]
        return self._cat_ranges_of_target(names, start, end, on_error="return", **options)

    # -- listings

    def find(
        self,
        path: Any,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Call the wrapped filesystem's ``find``.

        With ``detail=True`` what lies under a relative path of the local disk is named by that path, as
        Arrow demands of whoever lists a dataset's folder (fsspec's own class it replaces by one of its own).
        A folder of the local disk that may not be listed is an error, as it is to Arrow: fsspec would leave
        out what lies in it, and a scan its rows. Links are what they lead to, as to Arrow.
        """
        asked = self._own_path(path)
        is_local = isinstance(self.target, LocalFileSystem)
        found: Any
        if is_local and "on_error" not in kwargs:
            listed = self._find_here(asked, maxdepth, kwargs, frozenset(), itertools.count())
            _check_listed(listed, is_deep=maxdepth is None)
            if not withdirs:
                listed = {name: info for name, info in listed.items() if info.get("type") != "directory"}
            found = listed if detail else list(listed)
        else:
            found = self._of_target("find", asked, maxdepth, withdirs=withdirs, detail=detail, **kwargs)
        if not (detail and is_local and _is_relative(asked)):
            return found
        whole = self._target_path(path).rstrip("/")
        return {asked.rstrip("/") + name.removeprefix(whole): info for name, info in found.items()}

    def _find_here(
        self,
        path: str,
        maxdepth: int | None,
        options: dict[str, Any],
        within: frozenset[str],
        nested: Iterator[int],
    ) -> dict[str, Any]:
        """Find on the local disk, and follow links: to fsspec they are neither files nor folders.

        `within` are the folders that were come from, `nested` counts the links which were met behind links:
        of folders that lead to each other there are more ways than there is time for.
        """
        found: dict[str, Any] = self._of_target("find", path, maxdepth, withdirs=True, detail=True, **options)
        links = [name for name, info in found.items() if info.get("islink")]
        within = within | {os.path.realpath(path)} if links else within
        for name in links:
            try:
                told = os.stat(name)  # noqa: PTH116 - of a name
            except OSError:
                continue  # it leads nowhere
            if stat.S_ISREG(told.st_mode):
                found[name] = {**found[name], "type": "file", "size": told.st_size}
            elif stat.S_ISDIR(told.st_mode) and os.path.realpath(name) not in within:
                found[name] = {**found[name], "type": "directory"}
                left = None if maxdepth is None else maxdepth - _depth(name, self._target_path(path))
                if len(within) > 1 and next(nested) >= MOST_NESTED_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
                if left is None or left > 0:
                    found |= self._find_here(name, left, options, within, nested)
        return dict(sorted(found.items())) if links else found

    async def _find(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Async twin of `find`."""
        if not getattr(self.target, "async_impl", False):
            return await call_apart(self.find, path, *args, **kwargs)
        return await self._of_target_async("_find", self._own_path(path), *args, **kwargs)

    def walk(self, path: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """Call the wrapped filesystem's ``walk``, a folder at a time: in between others may call it."""
        steps = iter(self._of_target("walk", self._own_path(path), *args, **kwargs))
        while True:
            with redacted_errors():
                step = self._exclusively(next, steps, None)
            if step is None:
                return
            yield step

    # -- writes and the rest

    def pipe(self, path: Any, value: Any = None, **kwargs: Any) -> Any:
        """Write one file, or each of a dict of them."""
        return self._of_target("pipe", self._own_contents(path), value, **kwargs)

    async def _pipe(self, path: Any, value: Any = None, **kwargs: Any) -> Any:
        return await self._of_target_async("_pipe", self._own_contents(path), value, **kwargs)

    def _own_contents(self, path: Any) -> Any:
        """Return where to write as the target names it: a path, or a dict of contents by path."""
        if isinstance(path, dict):
            return {self._own_path(name): data for name, data in path.items()}
        return self._own_path(path)

    async def _mv_file(self, path1: Any, path2: Any, **kwargs: Any) -> Any:
        """Move one file, in one request where the wrapped filesystem has one for that; `mv` is its own."""
        if not getattr(self.target, "async_impl", False):
            return await super()._mv_file(path1, path2, **kwargs)  # type: ignore[misc] # fsspec's, of ours
        paths = self._own_path(path1), self._own_path(path2)
        return await self._of_target_async("_mv_file", *paths, **kwargs)

    async def _walk(self, path: str, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Async twin of `walk`."""
        path = self._own_path(path)
        if getattr(self.target, "asynchronous", False):
            steps = self.target._walk(path, *args, **kwargs)  # noqa: SLF001
            while True:
                with redacted_errors():
                    step = await anext(steps, None)
                if step is None:
                    return
                yield step
        with redacted_errors():
            steps = iter(await self._in_thread(self.target.walk, path, *args, **kwargs))
        while True:
            # What a step names is the caller's to prune before the next one.
            with redacted_errors():
                step = await self._in_thread(next, steps, None)
            if step is None:
                return
            yield step

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget listings, of `path` or all, the footers that were kept, and what was noted of files."""
        self._of_target("invalidate_cache", path if path is None else self._own_path(path))
        channel = self.channel
        if channel is not None:
            channel.tails.clear()
            channel.backend.forget()

    @property
    def transaction(self) -> Any:
        """The wrapped filesystem's transaction: writes are its own."""
        return self.target.transaction

    @property
    def _intrans(self) -> bool:
        return bool(self.target._intrans)  # noqa: SLF001

    @_intrans.setter
    def _intrans(self, value: bool) -> None:
        """Set by fsspec's constructor; the target keeps its own."""

    @property
    def dircache(self) -> Any:
        """The listings that the wrapped filesystem keeps."""
        return self.target.dircache

    @dircache.setter
    def dircache(self, value: Any) -> None:
        """As for `_intrans`."""


def _sync(name: str, remote: tuple[int, ...]) -> Callable[..., Any]:
    """Make the method that forwards `name`, with the arguments at `remote` as paths of the target."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._of_target(name, *_paths(self, args, remote), **_named_paths(self, kwargs))

    return _named(method, name)


def _async(name: str, remote: tuple[int, ...]) -> Callable[..., Any]:
    async def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        args = _paths(self, args, remote)
        return await self._of_target_async(name, *args, **_named_paths(self, kwargs))

    return _named(method, name)


def _named(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    method.__name__ = name
    method.__qualname__ = f"HeadraceFileSystem.{name}"
    method.__doc__ = f"Call the wrapped filesystem's ``{name}``."
    return method


def _paths(self: Any, args: tuple[Any, ...], remote: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(self._own_path(arg) if k in remote and _is_path(arg) else arg for k, arg in enumerate(args))


def _check_listed(found: dict[str, Any], *, is_deep: bool) -> None:
    """Raise where a folder was found and what lies in it left out."""
    folders = [name for name, info in found.items() if info.get("type") == "directory"]
    for name in folders if is_deep else folders[:1]:
        if not os.access(name, os.R_OK | os.X_OK) and os.path.lexists(name):  # else it has gone meanwhile
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)


def _depth(name: str, root: str) -> int:
    return name.removeprefix(root).strip("/").count("/") + 1


_NOT_RELATIVE = ("/", "~", *(f"{protocol}:" for protocol in LocalFileSystem.protocol))


def _is_relative(path: Any) -> bool:
    """Whether a local path is relative to the working directory: no home, drive or protocol."""
    is_whole = isinstance(path, str) and (path.startswith(_NOT_RELATIVE) or os.path.splitdrive(path)[0] != "")
    return isinstance(path, str) and path != "" and not is_whole


_PATH_NAMES = frozenset({"path", "path1", "path2", "rpath"})


def _named_paths(self: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: self._own_path(value) if name in _PATH_NAMES and _is_path(value) else value
        for name, value in kwargs.items()
    }


def _is_path(value: Any) -> bool:
    return isinstance(value, str | list) or hasattr(value, "__fspath__")


def _fill() -> None:
    for names, remote in REMOTE_PATHS.items():
        for name in names:
            setattr(Delegation, name, _sync(name, remote))
            if name in WITH_COROUTINES:
                setattr(Delegation, f"_{name}", _async(f"_{name}", remote))


_fill()
