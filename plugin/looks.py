"""What Arrow asks about a path before it opens or lists it: one look at a store serves for all.

It asks `info` of a folder and then `isdir` and `find`, and of each file `isfile`, and opens it, for which
length and version are looked up again. Each is a round trip to a store that has no listing. So what was heard
of a folder is good for `isdir`, and what `isfile` heard for Arrow's own open: on the same thread, for the
same path and at once. Both take it away, so no other call ever meets it.

The listing that `find` will want is asked for beside `info`, of what looks like a folder. And where nothing
is known of a Parquet file, it is looked at by reading its end, which tells size and version too: what opens
it wants that first.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.dircache import DirCache
from typing_extensions import override

from headrace.delegation import CHANGES_NOTHING, Delegation
from headrace.lifecycle import is_arrows

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from types import FrameType

    from headrace.jobs import Urgency
    from headrace.reader import Reader

AT_ONCE_S = 0.1

LONGEST_S = 5.0
"""A listing ends, or is no longer good, if nobody has come for it by then."""

NO_FOLDER = re.compile(r"[^/]\.[A-Za-z][A-Za-z0-9]{0,9}$|(^|/)[_.][^/]*$")
"""What is named so is hardly a folder: its listing is not asked for before that is known."""

PARQUET_NAME = re.compile(r"\.(parquet|parq|pq)$")

END_BYTES = 64 << 10
"""Arrow reads so much of a Parquet file's end."""

MOST_MISSED = 3
"""Ends that did not come, one after the other: the store, or what is asked for, is not of that kind."""

_writes: dict[str, int] = {}
"""How often something was written through us, by the wrapped filesystem's token: views may have one each."""

_AS_ARROW_LISTS = {"maxdepth": None, "withdirs": True, "detail": True}


class Looks(Delegation):
    """Forwards to ``self.target``, and remembers what it said last."""

    _urgency: Callable[[int | None], Urgency]

    @property
    def _reader(self) -> Reader | None:
        """The way to read, or None under ``off``."""
        raise NotImplementedError

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # By thread; with how often something had been written before.
        self._looked_up: dict[int, tuple[str, dict[str, Any], float, Any]] = {}
        self._listings: dict[int, Listing] = {}  # by thread
        self._ends_missed = 0

    @override
    def _of_target(self, name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._of_target(name, *args, **kwargs)
        finally:
            if name not in CHANGES_NOTHING:
                self.note_change()

    @override
    async def _of_target_async(self, name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super()._of_target_async(name, *args, **kwargs)
        finally:
            if name.lstrip("_") not in CHANGES_NOTHING:
                self.note_change()

    @override
    def note_change(self) -> None:
        """Forget what was heard, on every thread: it may not be so any more."""
        _writes[self._store_token] = _writes.get(self._store_token, 0) + 1
        self._looked_up.clear()
        while self._listings:
            with contextlib.suppress(KeyError):  # another thread was first
                self._listings.popitem()[1].end_soon(0)

    def _changes_now(self) -> Any:
        """Say how often something was written: through ours of equal targets, or to what this one lists."""
        forgotten = getattr(getattr(self.target, "dircache", None), "forgotten", 0)
        return _writes.get(self._store_token, 0), forgotten

    @property
    def _store_token(self) -> str:
        return str(getattr(self.target, "_fs_token", ""))

    def info(self, path: Any, **kwargs: Any) -> dict[str, Any]:
        """Call the wrapped filesystem's ``info``."""
        path = self._own_path(path)
        if not self._is_look(sys._getframe().f_back):  # noqa: SLF001
            return self._of_target("info", path, **kwargs)  # type: ignore[no-any-return]
        listing = self._list_ahead(path)
        is_folder = False
        try:
            found: dict[str, Any] = self._of_target("info", path, **kwargs)
            is_folder = found.get("type") == "directory"
        finally:
            if listing is not None and not is_folder:
                listing.end_soon(0)
        if is_folder:
            self._note_look(self._target_path(path), found)
            if listing is not None:
                listing.end_soon(AT_ONCE_S)
                self._listings[threading.get_native_id()] = listing
        return found

    @override
    def find(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the wrapped filesystem's ``find``, as `Delegation.find` does."""
        is_arrows_way = (args, kwargs) == ((), _AS_ARROW_LISTS) and self._is_look(sys._getframe().f_back)  # noqa: SLF001
        listing = self._take_listing(self._own_path(path) if is_arrows_way else None)
        if listing is not None:
            try:
                found = listing.wait()
            except Exception:  # noqa: BLE001 - asked once more, it says so itself
                return super().find(path, *args, **kwargs)
            if listing.changes == self._changes_now():
                listing.keep()
                return found
        return super().find(path, *args, **kwargs)

    def _take_listing(self, path: str | None = None) -> Listing | None:
        """Take the listing that was asked for on this thread, if just now and of `path`; else it ends."""
        listing = self._listings.pop(threading.get_native_id(), None)
        if listing is None or listing.is_good_for(path):
            return listing
        listing.end_soon(0)
        return None

    def _list_ahead(self, path: str) -> Listing | None:
        """Start to list what looks like a folder, where its listing is a call of its own: on S3."""
        listing = self._take_listing(path)  # asked twice, as `pyarrow.parquet.read_table` does
        if listing is not None:
            listing.end_soon(LONGEST_S)
            return listing
        if not self._is_s3fs or NO_FOLDER.search(path.rstrip("/")) or self._is_listed(path):
            return None
        try:
            sync(self.target.loop, self.target.set_session)  # two calls that find none would each make one
            if type(self.target.dircache) is DirCache:
                self.target.dircache.__class__ = _WatchedCache
            return Listing(self.target, path, self._changes_now())
        except Exception:  # noqa: BLE001 - `info` will say what is wrong
            return None

    @property
    def _is_s3fs(self) -> bool:
        """Whether the wrapped filesystem is s3fs, and not a folder of it, on a loop of its own."""
        channel = self.channel
        if channel is None or not channel.backend.is_s3fs or channel.backend.target is not self.target:
            return False
        return not self.target.asynchronous

    def _is_listed(self, path: str) -> bool:
        """Whether a listing that is kept tells of a path."""
        try:
            return self.target._ls_from_cache(path) is not None  # noqa: SLF001
        except FileNotFoundError:
            return True

    def isdir(self, path: Any) -> bool:
        """Call the wrapped filesystem's ``isdir``, unless its ``info`` has just told that."""
        if self._is_look(sys._getframe().f_back):  # noqa: SLF001
            info = self._last_look(self._target_path(path))
            if info is not None and info.get("type") == "directory":
                return True
        found: bool = self._of_target("isdir", self._own_path(path))
        return found

    def isfile(self, path: Any) -> bool:
        """Call the wrapped filesystem's ``isfile``, or the ``info`` that it would ask."""
        caller = sys._getframe().f_back  # noqa: SLF001
        method = getattr(type(self.target), "_isfile", None)
        if method is not AsyncFileSystem._isfile or not self._is_look(caller):  # noqa: SLF001
            found: bool = self._of_target("isfile", self._own_path(path))
            return found
        path = self._target_path(path)
        # Who deletes files, or copies them, asks too.
        is_opening = caller is not None and caller.f_code.co_name == "open_input_file"
        try:
            info = (self._look_at_end(path) if is_opening else None) or self._of_target("info", path)
            is_file: bool = info["type"] == "file"
        except Exception:  # noqa: BLE001 - as fsspec's own `isfile`
            return False
        if is_file:
            self._note_look(path, info)
        return is_file

    def _look_at_end(self, path: str) -> dict[str, Any] | None:
        """Read the end of a Parquet file, for its reader; returns what is known of it then."""
        reader = self._reader
        is_there = PARQUET_NAME.search(path) and self._is_s3fs and self._ends_missed < MOST_MISSED
        # What was overwritten is still there by its id, which only `info` tells.
        is_by_id = getattr(self.target, "version_aware", False)
        if reader is None or not is_there or is_by_id or self._is_listed(path):
            return None
        try:
            found = reader.read_end(path, END_BYTES, self._urgency(None))
        except Exception:  # noqa: BLE001 - `info` will say what is wrong
            found = None
        if found is None:
            self._ends_missed += 1
            return None
        self._ends_missed = 0
        size, version, data = found
        end = np.frombuffer(data, np.uint8)
        return {"name": path, "type": "file", "size": size, "ETag": version, "end": end}

    def _is_look(self, caller: FrameType | None) -> bool:
        """Whether it is Arrow that asks, and a store that knows."""
        channel = self.channel if is_arrows(caller) else None
        return channel is not None and channel.is_remote and channel.settings.prefetch != "off"

    def _note_look(self, path: str, info: dict[str, Any]) -> None:
        now = monotonic()
        for thread, (_, _, at_s, _) in list(self._looked_up.items()):
            if now - at_s > AT_ONCE_S:
                self._looked_up.pop(thread, None)  # nobody came for it
        for thread, listing in list(self._listings.items()):
            if not listing.is_good_for(listing.path):
                self._listings.pop(thread, None)
        self._looked_up[threading.get_native_id()] = path, dict(info), now, self._changes_now()

    def _last_look(self, path: str) -> dict[str, Any] | None:
        """Take what has just been heard of a path on this thread."""
        found = self._looked_up.pop(threading.get_native_id(), None)
        if found is None:
            return None
        looked_up, info, at_s, changes = found
        is_good = looked_up == path and monotonic() - at_s < AT_ONCE_S and changes == self._changes_now()
        return info if is_good else None


class _WatchedCache(DirCache):
    """s3fs's listings, which it forgets a part of after each write: it is counted how often.

    Views of one filesystem share it, and programs may write through that itself.
    """

    forgotten = 0

    @override
    def pop(self, key: Any, *default: Any) -> Any:
        self.forgotten += 1
        return super().pop(key, *default)

    @override
    def clear(self) -> None:
        self.forgotten += 1
        super().clear()


class Listing:
    """A folder's listing, on its way. It may be a long one: if nobody wants it, it ends.

    It is made aside: what the filesystem keeps of listings is what it was, until it is told to `keep` this.

    Parameters
    ----------
    target
        The filesystem, whose loop lists it.
    path
        The folder.
    changes
        How often something had been written before.
    """

    def __init__(self, target: Any, path: str, changes: Any) -> None:
        self.path = path
        self.changes = changes
        self._target = target
        self._aside = object.__new__(type(target))
        vars(self._aside).update(vars(target))
        self._aside.dircache = DirCache()
        self._loop = target.loop
        self._is_wanted = False
        self._task: asyncio.Task[Any] | None = None
        self._found: Future[Any] | None = None
        self.end_soon(LONGEST_S)  # whoever starts it may be interrupted at any line
        listing = self._list()
        try:
            self._found = asyncio.run_coroutine_threadsafe(listing, self._loop)
        except BaseException:
            with contextlib.suppress(RuntimeError, ValueError):  # it may be on its way
                listing.close()
            raise

    async def _list(self) -> Any:
        self._task = asyncio.current_task()
        return await self._aside._find(self.path, **_AS_ARROW_LISTS)  # noqa: SLF001

    def end_soon(self, after_s: float) -> None:
        """End it after so many seconds, unless it is waited for by then."""
        self._good_until_s = monotonic() + after_s
        with contextlib.suppress(RuntimeError):  # the loop is closed, and so it has ended
            self._loop.call_soon_threadsafe(self._loop.call_later, after_s, self._end)

    def _end(self) -> None:
        if self._is_wanted or monotonic() < self._good_until_s:
            return
        if self._task is not None:
            self._task.cancel()
        self._found = None

    def is_good_for(self, path: str | None) -> bool:
        """Whether it is of `path`, and was asked for just now."""
        return path == self.path and self._found is not None and monotonic() < self._good_until_s

    def wait(self) -> dict[str, Any]:
        """Return what was found; raises what came instead."""
        found = self._found
        try:
            self._is_wanted = True
            listed: dict[str, Any] = found.result()  # type: ignore[union-attr]
        finally:
            if self._task is not None:
                self._loop.call_soon_threadsafe(self._task.cancel)  # an interrupt ends it
        return listed

    def keep(self) -> None:
        """Keep it as the filesystem keeps its listings."""
        for folder in self._aside.dircache:
            if folder not in self._target.dircache:
                self._target.dircache[folder] = self._aside.dircache[folder]
