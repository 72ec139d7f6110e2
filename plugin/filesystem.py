"""`HeadraceFileSystem`: any fsspec filesystem, with its reads behind the scheduler.

What is a read (``open`` for reading, ``cat*``, ``read_*``, ``head``, ``tail``) is planned and scheduled; all
else is the wrapped filesystem's own, called as it is. Sync methods are written out rather than mirrored
from async ones: a mirrored method would go through fsspec's loop thread, and lite scheduling would be lost.

Settings come from the constructor, the environment and ``dask.config``, and are looked up where data is
read, never pickled from a client to a worker. Under ``off`` reads are the wrapped filesystem's own too, but
for the exit guard and the fork reset.

Scheduler state is the process's (`headrace.runtime`), so instances are cheap: `with_priority` makes one.
"""

from __future__ import annotations

import itertools
import operator
import os
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import fsspec
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.chained import ChainedFileSystem
from fsspec.utils import tokenize
from typing_extensions import override

from headrace import ambient, lifecycle
from headrace.backends import _s3fs
from headrace.backends._http import is_http
from headrace.backends.abc import beneath_folders
from headrace.core.ahead import Habits
from headrace.drivers import interrupts
from headrace.drivers.apart import call_apart
from headrace.errors import UnsizedFileError
from headrace.file import HeadraceFile, WholeFile
from headrace.foreign import is_open_file, ranges_of_file
from headrace.forked import of_this_process
from headrace.jobs import Urgency
from headrace.looks import Looks
from headrace.prefetch import Prefetcher
from headrace.quick import FEW
from headrace.ranges import (
    answer_or_error,
    as_ranges,
    ask,
    check_bytes,
    collect_cat,
    is_plain,
    or_error,
    raise_first,
)
from headrace.read import Read
from headrace.reader import Reader
from headrace.redact import redact, redacted_answers, redacted_errors
from headrace.runtime import Channel, runtime
from headrace.settings import OPTION_NAMES, Settings, SettingsError, current_settings, warn_misspelt
from headrace.stats import Stats, snapshot
from headrace.target import NOT_KEPT, KeptAsTarget, make_target
from headrace.types import Priority

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from headrace.batch import RangeBatch
    from headrace.ranges import AnyPath, Asked, Asking, Ranges, Single

_OF_ASYNC = frozenset({"asynchronous", "batch_size", "loop"})
"""Options of every async filesystem, and so of ours."""
_SHARED = frozenset({"asynchronous", "loop"})
"""Those that what is wrapped is given, too: s3fs and fsspec's HTTP take a `batch_size` for something else."""
_OF_READS = OPTION_NAMES | {"priority"}
_OURS = _OF_READS | _OF_ASYNC
_POSITION_BITS = 48
"""Offsets of a file fill the low bits of a position, the file's number in its scan the high ones."""

_READING = ({"r"}, {"r", "b"}, {"r", "t"})


class _OfClassOrTarget:
    """A class method of fsspec's: it asks the target of an instance, and without an instance is fsspec's own.

    A method that the instance held would hold it, and an archive that nobody has any more stay open.
    """

    def __init__(self, of_instance: str) -> None:
        self._of_instance = of_instance

    def __set_name__(self, _kind: type, name: str) -> None:
        self._name = name

    def __get__(self, fs: Any, kind: type[HeadraceFileSystem]) -> Any:
        if fs is None:
            return getattr(super(HeadraceFileSystem, kind), self._name)
        return getattr(fs, self._of_instance)


class HeadraceFileSystem(Looks, AsyncFileSystem, ChainedFileSystem, metaclass=KeptAsTarget):
    """Reads of another filesystem through one priority scheduler.

    Parameters
    ----------
    fs : fsspec.AbstractFileSystem, optional
        The filesystem to wrap. Of one of ours: what that wraps, with its settings where none are given;
        unless its class was derived from this one, and what that does would be lost.
    target_protocol : str, optional
        Or the protocol of the one to make.
    target_options : mapping, optional
        Its options.
    fo : str, optional
        Path, as chained URLs pass it; not used.
    priority : int
        Base priority of the reads of this instance; lower is more urgent. Default: that in force where a
        file is opened (`headrace.priority`), else 0.
    **options
        Settings of ours by name (see docs/environment.md), such as ``scheduler="lite"``; everything else
        goes to the target, as the plain URL would send it.

    Raises
    ------
    TypeError
        Neither or both of `fs` and `target_protocol`; an option given twice; options for a target that
        exists already.
    SettingsError
        A setting has a value that is not allowed.
    """

    protocol: ClassVar[str | tuple[str, ...]] = "headrace"
    async_impl = True
    mirror_sync_methods = False
    cachable = True
    is_headrace = True
    _strip_tokenize_options: ClassVar[tuple[str, ...]] = ("fo", NOT_KEPT)
    _strip_protocol = _OfClassOrTarget("_target_path")
    _parent = _OfClassOrTarget("_target_parent")

    def __init__(
        self,
        fs: Any = None,
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        fo: str | None = None,  # noqa: ARG002
        priority: int | None = None,
        **options: Any,
    ) -> None:
        ours = {name: options[name] for name in OPTION_NAMES & options.keys()}
        super().__init__(**{name: options[name] for name in _OF_ASYNC & options.keys()})
        skips = {"skip_instance_cache": True} if options.pop(NOT_KEPT, False) else {}
        flat = {name: value for name, value in options.items() if name not in _OURS}
        if fs is None:
            warn_misspelt(flat)
        shared = {name: options[name] for name in _SHARED & options.keys() if options[name]}
        made = make_target(fs, target_protocol, target_options, flat | skips, shared)
        self._target, self._target_pid = of_this_process(made), os.getpid()
        # On the instance: fsspec reads them off the class, before there is a target.
        self.sep, self.root_marker = self.target.sep, self.target.root_marker
        self._settings_options = ours
        self._names_of_target = {"fs", "target_protocol", "target_options", "fo", *flat}
        self._base = None if priority is None else ambient.checked_base(priority)
        self._bound: tuple[Any, Settings, Reader | None] | None = None
        self._file_numbers = itertools.count(1)
        self._scan: Hashable = object()
        self._habits = Habits()
        current_settings(ours)  # a bad value is an error here, not in the middle of a scan

    def __getattr__(self, name: str) -> Any:
        """Say where what only the wrapped filesystem has is found: calls of it are not scheduled."""
        msg = f"{type(self).__name__!r} object has no attribute {name!r}"
        if not name.startswith("_") and hasattr(vars(self).get("_target"), name):
            msg += f"; the wrapped filesystem has it: .target.{name}"
        raise AttributeError(msg, name=name, obj=self)

    # -- paths and identity

    @property
    @override
    def target(self) -> Any:
        """The wrapped filesystem: in a forked child one of its own, where it must be."""
        if self._target_pid != os.getpid():
            self._target, self._target_pid = of_this_process(self._target), os.getpid()
        return self._target

    @override
    def _own_path(self, path: Any) -> Any:
        """Take our own prefix off; the target is given the rest as it is, a last slash included."""
        if isinstance(path, list):
            return [self._own_path(one) for one in path]
        path = fsspec.utils.stringify_path(path)
        return path.removeprefix("headrace::").removeprefix("headrace://")

    @override
    def _target_path(self, path: Any) -> Any:
        """Return the path as the target names the file."""
        return self.target._strip_protocol(self._own_path(path))  # noqa: SLF001

    @override
    def _file_path(self, path: Any) -> Any:
        """Return the same for a read by path: to s3fs a slash at the end is then part of a name."""
        own = self._own_path(path)
        found = self.target._strip_protocol(own)  # noqa: SLF001
        if own[-1:] == "/" and "/" in found and _s3fs.is_s3fs(self.target):
            return found + own[len(own.rstrip("/")) :]
        return found

    def with_priority(self, base: int) -> HeadraceFileSystem:
        """Return a view of this filesystem whose reads have base priority `base`.

        The way to give a whole scan a priority: Arrow opens most of a scan's files on threads of its own,
        which no context reaches. Same target, same scheduler; files opened with it are a scan of their own.
        """
        view: HeadraceFileSystem = type(self)(fs=self, priority=base)
        return view

    def own_options(self) -> dict[str, Any]:
        """Return the options that are not the target's: ours, and those of a derived class."""
        given = self.storage_options.items()
        return {name: value for name, value in given if name not in self._names_of_target}

    def _target_parent(self, path: Any) -> Any:
        """Return the folder of a path, as the target names it."""
        return self.target._parent(self._own_path(path))  # noqa: SLF001

    @property
    def fsid(self) -> str:
        """The wrapped filesystem's."""
        return f"headrace-{self.target.fsid}"

    @override
    def __repr__(self) -> str:
        # fsspec keys its cache by the text of a filesystem that is wrapped, and two that read the same would
        # be taken for one. Where it keeps a wrapper it keeps us, and our place is nobody else's.
        scheduler = self._settings_options.get("scheduler")
        given = "" if scheduler is None else f", scheduler={scheduler!r}"  # what is in force says `mode`
        return f"<headrace.HeadraceFileSystem over {type(self.target).__name__}{given}, at {id(self):#x}>"

    __str__ = __repr__

    def __dask_tokenize__(self) -> str:
        """Name a filesystem that was given by its own token: by its text it would be named by its place.

        That another may have when it is gone.
        """
        if not self.storage_args and self.storage_options.get("fs") is None:
            return str(self._fs_token)
        ours = sorted((name, value) for name, value in self.own_options().items() if name != "loop")
        return str(tokenize(type(self), self.target.__dask_tokenize__(), ours, self.storage_args[1:]))

    def to_dict(self, *, include_password: bool = True) -> dict[str, Any]:
        """As fsspec's; without passwords, nested options included, unless they are asked for."""
        found: dict[str, Any] = super().to_dict(include_password=include_password)
        return found if include_password else redact(found)

    # -- settings and channel, looked up where data is read

    @property
    def settings(self) -> Settings:
        """The settings in force here and now."""
        return current_settings(self._settings_options)

    @property
    @override
    def _reader(self) -> Reader | None:
        """The way to read, or None under ``off``."""
        now, seen = runtime(), current_settings()
        bound = self._bound
        if bound is None or bound[0] is not now or bound[1] is not seen:
            settings = self.settings
            reader = None
            if settings.scheduler != "off":
                reader = Reader(now.channel(self.target, settings))
            self._bound = bound = (now, seen, reader)
        return bound[2]

    @property
    @override
    def channel(self) -> Channel | None:
        """Backend, driver and engine that serve reads; None under ``off``."""
        reader = self._reader
        return reader.channel if reader is not None else None

    @property
    def mode(self) -> str:
        """Who drives: ``lite``, ``standard`` or ``off``."""
        channel = self.channel
        return "off" if channel is None else channel.mode

    @property
    def backend_name(self) -> str | None:
        """The backend that serves reads; None under ``off``."""
        channel = self.channel
        return None if channel is None else channel.backend.name

    def stats(self) -> Stats:
        """Return a snapshot of this filesystem's engine: counters, limits and what is in flight."""
        return snapshot(self.channel)

    @override
    def _urgency(self, base: int | None, *, number: int = 0) -> Urgency:
        base = self._base_here() if base is None else ambient.checked_base(base)
        return Urgency(Priority(base, number << _POSITION_BITS), (self._scan, number > 0))

    def _base_here(self) -> int:
        """Return the base priority of reads that are given none."""
        return ambient.checked_base(ambient.base_priority() if self._base is None else self._base)

    # -- reads of many ranges

    def _asked(
        self, paths: Asking, starts: Any, ends: Any, priority: int | None
    ) -> tuple[Reader | None, Ranges, Urgency]:
        """Return who reads what is asked for (None: what is not headrace's), its columns and its urgency."""
        if isinstance(paths, HeadraceFile):
            reader, ranges, urgency = paths.asked(starts, ends)
            if priority is not None:
                urgency = urgency.with_base(ambient.checked_base(priority))
            return reader, ranges, urgency
        urgency = self._urgency(priority)
        if is_open_file(paths):
            return None, ranges_of_file(paths, starts, ends), urgency
        return self._reader, as_ranges(paths, starts, ends, self._file_path), urgency

    def read_ranges(
        self,
        paths: Asking,
        starts: Any,
        ends: Any,
        priority: int | None = None,
        out: Any = None,
    ) -> RangeBatch:
        """Read byte ranges ``[start, end)``.

        Parameters
        ----------
        paths : str, open file or sequence of str
            One file for all ranges, or a path for each. Ranges of a file that `open` returned are of the
            version that was opened, where the store tells one, and end where it does; the file's position
            stays where it is. It is not to be closed meanwhile. A file that is not headrace's (under ``off``,
            of another library) is read by its own ``seek`` and ``read``, and not to be used otherwise then.
        starts, ends : int or array of int, shape (n,)
            Bytes; not negative, and no end before its start.
        priority : int, optional
            Base priority, lower is more urgent. Default: that of the open file, of this instance, or that in
            force here.
        out : writable buffer, optional
            Where the bytes go; at least as long as what is read, gaps included.

        Returns
        -------
        RangeBatch
            In the caller's order. A range past the end is as short as the wrapped filesystem would make
            it; one that failed raises its error where it is looked at, and is in `errors`.

        Raises
        ------
        ValueError, TypeError
            What was asked makes no sense, or is of a file that is closed, or open in text mode; nothing was
            read.
        """
        reader, ranges, urgency = self._asked(paths, starts, ends, priority)
        if reader is None:
            return self._ranges_of_target(ranges, out)
        self._begin_read(reader)
        return reader.read(ranges, urgency, out)

    def submit_ranges(self, paths: Asking, starts: Any, ends: Any, priority: int | None = None) -> Read:
        """Start what `read_ranges` does, and return a handle: ``result(timeout)``, ``cancel()``, ``done()``.

        It opens all its files at once, and holds them open until it is taken: where the process has no
        descriptor for one, that is the file's error.

        Under ``off`` there is no scheduler to submit to, nor for files that are not headrace's: the read is
        done when this returns. An open file may be dropped; of one that is closed before its ranges have
        begun they are errors, but of local files and objects.
        """
        reader, ranges, urgency = self._asked(paths, starts, ends, priority)
        if reader is None:
            return Read.finished(ranges, self._ranges_of_target(ranges))
        self._begin_read(reader)
        return reader.submit(ranges, urgency)

    async def _read_ranges(
        self,
        paths: Asking,
        starts: Any,
        ends: Any,
        priority: int | None = None,
        out: Any = None,
    ) -> RangeBatch:
        """Async twin of `read_ranges`; `out` is written once all is there, and never when cancelled.

        Of a file that is not headrace's the read goes on for a while when it is cancelled.
        """
        if isinstance(paths, HeadraceFile) and paths.is_inherited:
            await call_apart(paths.tell)  # which opens it again
        reader, ranges, urgency = self._asked(paths, starts, ends, priority)
        if reader is not None:
            return await reader.read_async(ranges, urgency, out)
        return await self._ranges_of_target_async(ranges, out)

    # -- fsspec's reads

    def cat_ranges(
        self,
        paths: Sequence[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        batch_size: int | None = None,  # noqa: ARG002
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Read byte ranges of files, as fsspec specifies it.

        Parameters
        ----------
        paths : list of str
            One for each range.
        starts, ends : int or list of int or None
            Bytes; negative ones count from the end, None is the start or end of the file.
        max_gap : int, optional
            Ranges of one file no further apart than so many bytes are read as one.
        on_error : {"return", "raise"}
            Whether a range that fails yields its exception or raises it.
        **kwargs
            What else the wrapped filesystem's ``cat_file`` takes (a version, headers): then each range is a
            request of its own.

        Returns
        -------
        list of bytes
            Or of exceptions, where `on_error` is "return".
        """
        reader = self._reader
        found: list[Any]
        check_bytes("max_gap", max_gap)
        if reader is None:
            # Not `max_gap`, which says how to read and not what: most filesystems refuse it.
            given = self._ranges_for_target(paths, starts, ends)
            return self._cat_ranges_of_target(*given, on_error=on_error, **kwargs)
        if kwargs:
            asked = ask(paths, starts, ends, self._file_path, max_gap)
            self._begin_read(reader)
            found = self._cat_many(reader, asked.singles(are_all=True), kwargs)
            return asked.answers(None, found, on_error)
        if isinstance(paths, list) and len(paths) <= FEW:
            few = reader.cat_few(paths, starts, ends, self._file_path, self._base_here)
            if few is not None:
                return few
        asked = ask(paths, starts, ends, self._file_path, max_gap)
        self._begin_read(reader)
        return self._cat_asked(reader, asked, on_error)

    def _cat_asked(self, reader: Reader, asked: Asked, on_error: str) -> list[Any]:
        """Read what `cat_ranges` is asked for, by means of as many reads as that takes."""
        max_gap = asked.plain.max_gap
        opens_too_many = reader.opens_too_many(asked.plain)
        if asked.has_odd_bounds or opens_too_many:
            reader = reader.of_one_call()
        if opens_too_many:

            def read(paths: Any, starts: Any, ends: Any) -> list[Any]:
                return self._cat_asked(reader, ask(paths, starts, ends, self._file_path, max_gap), on_error)

            return asked.answers_in_blocks(reader.most_open, read)
        urgency = self._urgency(None)
        if not asked.has_odd_bounds and max_gap is None:
            long = reader.read_long(asked.plain, urgency)
            if long is not None:
                return long if on_error == "return" else raise_first(long)
        batch = reader.read(asked.plain, urgency, is_listed=True)
        found = reader.cat_many(asked.singles(), urgency, {}) if asked.has_odd_bounds else []
        return asked.answers(batch, found, on_error)

    async def _cat_ranges(
        self,
        paths: Sequence[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        batch_size: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """Async twin of `cat_ranges`."""
        reader = self._reader
        found: list[Any]
        check_bytes("max_gap", max_gap)
        if reader is None and getattr(self.target, "async_impl", False):
            given = self._ranges_for_target(paths, starts, ends)
            found = await self._of_target_async("_cat_ranges", *given, on_error=on_error, **kwargs)
            return redacted_answers(found)
        if reader is not None:
            asked = ask(paths, starts, ends, self._file_path, max_gap)
            if not reader.opens_too_many(asked.plain):
                urgency = self._urgency(None)
                batch = None if kwargs else await reader.read_async(asked.plain, urgency)
                singles = asked.singles(are_all=batch is None)
                found = await self._cat_many_async(reader, singles, kwargs) if singles else []
                return asked.answers(batch, found, on_error)
        options = {"max_gap": max_gap, "batch_size": batch_size, "on_error": on_error, **kwargs}
        found = await self._in_thread(self.cat_ranges, paths, starts, ends, **options)
        return found

    @staticmethod
    def _begin_read(reader: Reader | None, *, for_arrow: bool = False) -> None:
        """Make ready for a read of this thread's."""
        if reader is not None and reader.channel.is_remote:
            reader.channel.shorten_turns()  # first: the next line may give the GIL up
        interrupts.arm(for_arrow=for_arrow)

    def _ranges_for_target(self, paths: Any, starts: Any, ends: Any) -> tuple[Any, Any, Any]:
        names = [self._file_path(one) for one in paths] if isinstance(paths, list) else paths
        firsts, lasts = (list(b) if isinstance(b, Iterable) else b for b in (starts, ends))
        return names, firsts, lasts

    def cat_file(
        self, path: AnyPath, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        """Return the bytes ``[start, end)`` of a file, as the wrapped filesystem understands them.

        Negative bounds count from the end; None is the start or the end of the file.
        """
        reader = self._reader
        if reader is None:
            return self._cat_of_target(path, start, end, **kwargs)
        name: str = self._file_path(path)
        if start is not None and end is not None and 0 <= start < end and not kwargs:
            few = reader.cat_few([name], [start], [end], str, self._base_here, is_list=False)
            if few is not None:
                return few[0]
        self._begin_read(reader)
        if self._opens_for(reader, kwargs):
            return self._cat_opened((name, (start, end)), kwargs)
        return reader.cat(name, (start, end), self._urgency(None), kwargs)

    def _opens_for(self, reader: Reader, options: dict[str, Any]) -> bool:
        """Whether ``cat_file`` of the target hands these options on to ``open``: of local files it does."""
        kind = type(self.target)
        return bool(options) and reader.channel.keeps_open and kind.cat_file is AbstractFileSystem.cat_file

    def _cat_opened(self, one: Single, options: dict[str, Any]) -> bytes:
        """Read what lies between the bounds in an open file."""
        path, (start, end) = one
        data: bytes = AbstractFileSystem.cat_file(self, path, start, end, **options)
        return data

    def _cat_many(
        self, reader: Reader, asked: Sequence[Single | Exception], options: dict[str, Any]
    ) -> list[bytes | Exception]:
        if self._opens_for(reader, options):
            return [or_error(self._cat_opened, one, options) for one in asked]
        return reader.cat_many(asked, self._urgency(None), options)

    async def _cat_many_async(
        self, reader: Reader, asked: Sequence[Single | Exception], options: dict[str, Any]
    ) -> list[bytes | Exception]:
        if self._opens_for(reader, options):
            return await call_apart(self._cat_many, reader, asked, options)
        return await reader.cat_many_async(asked, self._urgency(None), options)

    async def _cat_file(
        self, path: AnyPath, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        """Async twin of `cat_file`."""
        reader = self._reader
        if reader is None:
            path = self._file_path(path)
            data: bytes = await self._of_target_async("_cat_file", path, start=start, end=end, **kwargs)
            return data
        if is_plain(start, end) and not kwargs:
            batch = await self._read_ranges(path, [start], [end])
            return bytes(batch[0])
        (found,) = await self._cat_many_async(reader, [(self._file_path(path), (start, end))], kwargs)
        return raise_first([found])[0]  # type: ignore[no-any-return]

    def cat(
        self,
        path: Any,
        recursive: bool = False,
        on_error: str = "raise",
        batch_size: int | None = None,  # noqa: ARG002 - how many at a time is the scheduler's to say
        **kwargs: Any,
    ) -> Any:
        """Return the contents of one file, or a dict of those of several; `kwargs` are for `cat_file`."""
        paths = self.expand_path(path, recursive=recursive)
        self._begin_read(self._reader)
        found = self._cat_all(paths, **kwargs)
        is_alone = self._is_named_alone(path, paths)
        # As fsspec has it, of sync filesystems and of async ones: with one file named there is one answer.
        return collect_cat(paths, found, "raise" if is_alone else on_error, is_alone=is_alone)

    def _cat_all(
        self, paths: list[str], *, start: int | None = None, end: int | None = None, **options: Any
    ) -> list[bytes | Exception]:
        reader = self._reader
        if reader is None:
            return self._cat_all_of_target(paths, start, end, options)
        if len(paths) == 1:
            return [answer_or_error(partial(self.cat_file, **options), paths[0], start, end)]
        return self._cat_many(reader, [(one, (start, end)) for one in paths], options)

    def _is_named_alone(self, path: Any, paths: list[str]) -> bool:
        return isinstance(path, str | os.PathLike) and paths == [self._target_path(path)]

    async def _cat(
        self,
        path: Any,
        recursive: bool = False,
        on_error: str = "raise",
        batch_size: int | None = None,  # noqa: ARG002 - as for `cat`
        **kwargs: Any,
    ) -> Any:
        """Async twin of `cat`."""
        paths = await self._expand_path(path, recursive=recursive)
        reader = self._reader
        bounds = kwargs.pop("start", None), kwargs.pop("end", None)
        found: list[Any]
        if reader is not None:
            found = await self._cat_many_async(reader, [(one, bounds) for one in paths], kwargs)
        elif getattr(self.target, "async_impl", False):
            found = await self._of_target_async("_cat_ranges", paths, *bounds, on_error="return", **kwargs)
            redacted_answers(found)
        else:
            found = await self._in_thread(self._cat_all_of_target, paths, *bounds, kwargs)
        return collect_cat(paths, found, on_error, is_alone=self._is_named_alone(path, paths))

    # -- files

    def open(
        self,
        path: AnyPath,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: dict[str, Any] | None = None,
        compression: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Open a file.

        Parameters
        ----------
        path : str
        mode : str
            Modes that write are the wrapped filesystem's own.
        block_size : int, optional
            Bytes of a block: small reads that follow one another, and on stores those that are close to one
            another, are of blocks. 0 is none; over HTTP it is a stream of the wrapped filesystem, which is
            not scheduled, for servers that know no ranges. So is a file of a server that says so
            (``Accept-Ranges: none``), and of a filesystem that was made with ``block_size=0``.
        priority : int, optional
            Base priority of its reads. Default: that of this instance, or that in force here.
        cache_type : str, optional
            "none" has small reads take no block; anything else is the default. What a scan wants next is read
            ahead all the same, on object stores (`prefetch`).
        cache_options : dict, optional
            As `block_size` and `cache_type`, for files of sync filesystems, which have caches of their own.
        size : int, optional
            Length of the file, where the caller knows it: saves a look-up.
        etag : str, optional
            The version of an object that goes with `size`: reads are of that one, or an `ObjectChangedError`.
        version_id, headers, ... : optional
            Which version, or what else the wrapped filesystem's ``cat_file`` takes: over HTTP all that
            aiohttp's requests do (``params``, ``auth``, ``cookies``).

        Returns
        -------
        HeadraceFile
            Or, in text mode, for writing and under ``off``, what fsspec makes of it. Where only files of the
            wrapped filesystem know the version that is asked for (`generation` of gcsfs, `version_id` of
            adlfs), or who pays (`requester_pays` of s3fs), one of those, which is not scheduled.
        """
        is_arrows = lifecycle.is_arrows(sys._getframe().f_back)  # noqa: SLF001
        options = {"cache_options": cache_options, "compression": compression, **kwargs}
        # Modes that write, and those that no filesystem has, are the target's to perform or refuse.
        reader = self._reader
        if set(mode) not in _READING or reader is None:
            self._urgency(options.pop("priority", None))
            if options.pop("etag", None) is not None:  # of a file that was pickled where it was scheduled
                options.pop("size", None)
            file = self._open_of_target(path, mode, block_size, options)
        else:
            self._begin_read(reader, for_arrow=is_arrows)
            look = self._last_look(self._target_path(path)) if is_arrows else None
            if look is not None:
                options["look"] = look
            file = super().open(path, mode, block_size=block_size, **options)
        if is_arrows:
            lifecycle.follow(file)
        return file

    def _open(
        self,
        path: Any,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Any = None,
        priority: int | None = None,
        cache_type: str | None = None,
        size: int | None = None,
        etag: str | None = None,
        look: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        # Not by way of `open` it is called by fsspec's own wrappers: `blockcache`, references.
        if not isinstance(path, str) or "://" in path:
            path = self._target_path(path)
        reader = self._reader
        if reader is None or set(mode) != {"r", "b"}:
            given = {"cache_type": cache_type, "size": size, **kwargs}
            given = {name: value for name, value in given.items() if value is not None}
            how = {"block_size": block_size, "autocommit": autocommit, "cache_options": cache_options}
            return self._counting_parts(self._of_target("_open", path, mode, **how, **given), path, mode)
        lifecycle.check_not_exiting()
        block_bytes = _block_bytes(block_size, cache_type, reader.block_bytes)
        caching = {"block_size": block_size, "cache_type": cache_type, "cache_options": cache_options}
        caching = {name: value for name, value in caching.items() if value is not None}
        open_of_target = partial(self._of_target, "open", path, "rb", **caching, **kwargs)
        if reader.only_target_opens(kwargs) or _is_stream(self.target, block_size):
            return open_of_target()
        try:
            with redacted_errors():
                source, size = self._exclusively(
                    reader.open_source, path, size, kwargs, etag=etag, info=look, caching=caching
                )
        except UnsizedFileError:
            return self._of_target("open", path, "rb")  # there is nothing in it to schedule
        urgency = self._urgency(priority, number=next(self._file_numbers))
        if source is None and size is not None:
            return open_of_target()
        if source is None:
            # The store does not know the length (a stream): read it once, through the scheduler.
            return WholeFile(self, path, reader.cat(path, (None, None), urgency, reader.read_options(kwargs)))
        return HeadraceFile(
            self,
            path,
            reader,
            source,
            size=size,
            urgency=urgency,
            block_bytes=block_bytes,
            given=_given_again(caching, priority),
            prefetcher=self._prefetcher(reader, source, path, size, urgency, (look or {}).get("end")),
        )

    def _prefetcher(
        self,
        reader: Reader,
        source: Any,
        path: str,
        size: int | None,
        urgency: Urgency,
        end: Any,
    ) -> Prefetcher | None:
        """Return what reads ahead in a file, where that may be and storage is far enough away for it."""
        channel = reader.channel
        if size is None or not channel.is_remote or channel.settings.prefetch == "off":
            return None
        return Prefetcher(reader, source, path, size, urgency, self._habits, end)

    def open_again(
        self, path: str, size: int | None, reader: Reader, source: Any, caching: dict[str, Any]
    ) -> tuple[Reader, Any]:
        """Return the reader and the source with which a file goes on in a forked child."""
        reader = Reader(runtime().channel(self.target, reader.channel.settings))
        if reader.channel.keeps_open:
            return reader, source  # a descriptor is inherited, and its file is the one that was opened
        options, etag = getattr(source, "options", {}), getattr(source, "etag", None)
        again = partial(reader.open_source, path, size, options, etag=etag, caching=caching)
        return reader, self._exclusively(again)[0]

    async def open_async(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        """Open a stream of the wrapped filesystem, which is not scheduled."""
        if not hasattr(self.target, "open_async"):
            raise NotImplementedError(f"{type(self.target).__name__} has no streams to open (open_async)")
        return await self._of_target_async("open_async", self._target_path(path), mode, **kwargs)


def _block_bytes(given: Any, cache_type: str | None, default: int) -> int:
    given = None if given == "default" else given  # fsspec's word for it
    if isinstance(given, float) and given.is_integer():
        given = int(given)  # 5e6, say
    check_bytes("block_size", given)
    if cache_type == "none":
        return 0
    return default if given is None else operator.index(given)


def _given_again(caching: dict[str, Any], priority: int | None) -> dict[str, Any]:
    """Return what `open` is given where a pickled file is opened again: not what a cache was filled with."""
    given = dict(caching) if priority is None else {**caching, "priority": priority}
    if given.pop("cache_options", None) is not None:
        given.pop("cache_type", None)
    return given


def _is_stream(target: Any, block_size: int | None) -> bool:
    """Whether a file with blocks of this size, or of the filesystem's own, is a stream over HTTP."""
    read = beneath_folders(target)
    return is_http(read) and (read.block_size if block_size is None else block_size) == 0


def wrap(fs: Any, **options: Any) -> HeadraceFileSystem:
    """Return `fs` with its reads behind the scheduler; options as for `HeadraceFileSystem`.

    One of ours is not wrapped again: without options it is returned as it is, and with some what it wraps is
    wrapped, by its own class and settings but for those.
    """
    if not isinstance(fs, HeadraceFileSystem):
        return HeadraceFileSystem(fs=fs, **options)
    return type(fs)(fs=fs, **options) if options else fs


def wrap_url(url: str, options: Mapping[str, Any]) -> tuple[HeadraceFileSystem, str]:
    """Return the filesystem of a URL, as one of ours, and the path in it.

    ``headrace::`` in front may be left out, and then needs no entry point. Options with the names of ours are
    ours, as they are with it; those of the link, in a dict called ``headrace``, give way to the others. Where
    another link of the chain is one of ours, the dict is that one's.

    Raises
    ------
    SettingsError
        An option of ours is not allowed.
    """
    url = url.removeprefix("headrace::")
    if "headrace" in options and "::headrace:" not in url:
        options = dict(options)
        of_the_link = options.pop("headrace")
        if not isinstance(of_the_link, Mapping):
            msg = f"headrace={type(of_the_link).__name__} is not allowed; allowed: a dict of options"
            raise SettingsError(msg)
        options = {**of_the_link, **options}
    if url.startswith("headrace://"):  # one of ours already, which divides the options itself
        target, path = url_to_fs(url, **options)
        return wrap(target), path
    ours = {name: options[name] for name in options if name in _OF_READS}
    theirs = {name: options[name] for name in options if name not in _OF_READS}
    warn_misspelt(theirs)
    target, path = url_to_fs(url, **theirs)
    return wrap(target, **ours), path
