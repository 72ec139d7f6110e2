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
import re
import sys
import threading
from inspect import iscoroutinefunction
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np
from fsspec.asyn import AsyncFileSystem, sync
from typing_extensions import override

from headrace.delegation import Delegation
from headrace.lifecycle import is_arrows

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from headrace.jobs import Urgency
    from headrace.reader import Reader

AT_ONCE_S = 0.1

FILE_NAME = re.compile(r"[^/]\.[A-Za-z][A-Za-z0-9]{0,9}$")
"""What ends like this is hardly a folder: its listing is not asked for before that is known."""

PARQUET_NAME = re.compile(r"\.(parquet|parq|pq)$")

END_BYTES = 64 << 10
"""Arrow reads so much of a Parquet file's end."""

_ASKING = frozenset({"exists", "find", "info", "isdir", "isfile"})
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
        self._looked_up: dict[int, tuple[str, dict[str, Any], float]] = {}  # by thread
        self._listings: dict[int, Listing] = {}  # by thread
        self._has_answered = False

    @override
    def _of_target(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name not in _ASKING:
            self._listings.pop(threading.get_native_id(), None)  # it may not be so any more
        return super()._of_target(name, *args, **kwargs)

    def info(self, path: Any, **kwargs: Any) -> dict[str, Any]:
        """Call the wrapped filesystem's ``info``."""
        path = self._own_path(path)
        if not self._is_look(sys._getframe(1)):  # noqa: SLF001
            return self._of_target("info", path, **kwargs)  # type: ignore[no-any-return]
        listing = self._list_ahead(path)
        is_folder = False
        try:
            found: dict[str, Any] = self._of_target("info", path, **kwargs)
            is_folder, self._has_answered = found.get("type") == "directory", True
        finally:
            if listing is not None:
                listing.end_soon(AT_ONCE_S if is_folder else 0)
        if is_folder:
            self._note_look(self._target_path(path), found)
            if listing is not None:
                self._listings[threading.get_native_id()] = listing
        return found

    @override
    def find(
        self,
        path: Any,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Call the wrapped filesystem's ``find``, as `Delegation.find` does."""
        asked = {"maxdepth": maxdepth, "withdirs": withdirs, "detail": detail, **kwargs}
        if asked == _AS_ARROW_LISTS and self._is_look(sys._getframe(1)):  # noqa: SLF001
            listing = self._listing_of(self._own_path(path))
            if listing is not None:
                return listing
        return super().find(path, **asked)

    def _list_ahead(self, path: str) -> Listing | None:
        """Start to list what looks like a folder, where a listing runs beside other calls."""
        target = self.target
        is_awaited = getattr(target, "async_impl", False) and not target.asynchronous
        protocols = {target.protocol} if isinstance(target.protocol, str) else {*target.protocol}
        # A page of the web is a file, and its listing the whole of it.
        if not is_awaited or protocols & {"http", "https"} or FILE_NAME.search(path.rstrip("/")):
            return None
        try:
            connect = getattr(target, "set_session", None)
            if iscoroutinefunction(connect):
                sync(target.loop, connect)  # of two calls that find none each would make a session
            elif not self._has_answered:
                return None
            return Listing(target, path)
        except Exception:  # noqa: BLE001 - `info` will say what is wrong
            return None

    def _listing_of(self, path: str) -> dict[str, Any] | None:
        """Take the listing of a folder, if it was asked for just now."""
        listing = self._listings.pop(threading.get_native_id(), None)
        if listing is None or listing.path != path:
            return None
        try:
            return listing.wait()
        except Exception:  # noqa: BLE001 - asked once more, it says so itself; or it had ended
            return None

    def isdir(self, path: Any) -> bool:
        """Call the wrapped filesystem's ``isdir``, unless its ``info`` has just told that."""
        if self._is_look(sys._getframe(1)):  # noqa: SLF001
            info = self._last_look(self._target_path(path))
            if info is not None and info.get("type") == "directory":
                return True
        found: bool = self._of_target("isdir", self._own_path(path))
        return found

    def isfile(self, path: Any) -> bool:
        """Call the wrapped filesystem's ``isfile``, or the ``info`` that it would ask."""
        method = getattr(type(self.target), "_isfile", None)
        if method is not AsyncFileSystem._isfile or not self._is_look(sys._getframe(1)):  # noqa: SLF001
            found: bool = self._of_target("isfile", self._own_path(path))
            return found
        path = self._target_path(path)
        try:
            info = self._look_at_end(path) or self._of_target("info", path)
            is_file: bool = info["type"] == "file"
        except Exception:  # noqa: BLE001 - as fsspec's own `isfile`
            return False
        if is_file:
            self._note_look(path, info)
        return is_file

    def _look_at_end(self, path: str) -> dict[str, Any] | None:
        """Read the end of a Parquet file, and keep it for its reader; returns what is known of it then."""
        reader = self._reader
        if reader is None or not PARQUET_NAME.search(path) or reader.channel.tails.knows(path):
            return None
        if self.target._ls_from_cache(path) is not None:  # noqa: SLF001
            return None
        try:
            found = reader.read_end(path, END_BYTES, self._urgency(None))
        except Exception:  # noqa: BLE001 - `info` will say what is wrong
            return None
        if found is None:
            return None
        size, version, data = found
        reader.channel.tails.keep_end(path, version, size, np.frombuffer(data, np.uint8))
        return {"name": path, "type": "file", "size": size, "ETag": version}

    def _is_look(self, caller: FrameType) -> bool:
        """Whether it is Arrow that asks, and a store that knows."""
        channel = self.channel if is_arrows(caller) else None
        return channel is not None and channel.is_remote and channel.settings.prefetch != "off"

    def _note_look(self, path: str, info: dict[str, Any]) -> None:
        now = monotonic()
        for thread, (_, _, at_s) in list(self._looked_up.items()):
            if now - at_s > AT_ONCE_S:
                self._looked_up.pop(thread, None)  # nobody came for it
        for thread, listing in list(self._listings.items()):
            if listing.has_ended:
                self._listings.pop(thread, None)
        self._looked_up[threading.get_native_id()] = path, dict(info), now

    def _last_look(self, path: str) -> dict[str, Any] | None:
        """Take what has just been heard of a path on this thread."""
        looked_up, info, at_s = self._looked_up.pop(threading.get_native_id(), (None, None, 0.0))
        return info if looked_up == path and monotonic() - at_s < AT_ONCE_S else None


class Listing:
    """A folder's listing, on its way. It may be a long one: nobody wants it, it ends.

    Parameters
    ----------
    target
        The filesystem, whose loop lists it.
    path
        The folder.
    """

    def __init__(self, target: Any, path: str) -> None:
        self.path = path
        self._loop = target.loop
        self._is_wanted = False
        find = target._find(path, **_AS_ARROW_LISTS)  # noqa: SLF001
        self._found = asyncio.run_coroutine_threadsafe(find, self._loop)

    def end_soon(self, after_s: float) -> None:
        """End it after so many seconds, unless it is waited for by then."""
        self._loop.call_soon_threadsafe(self._loop.call_later, after_s, self._end)

    def _end(self) -> None:
        if not self._is_wanted:
            self._found.cancel()

    @property
    def has_ended(self) -> bool:
        """Whether nothing is under way any more."""
        return self._found.done()

    def wait(self) -> dict[str, Any]:
        """Return what was found; raises what came instead."""
        self._is_wanted = True
        try:
            return self._found.result()  # type: ignore[no-any-return]
        finally:
            self._found.cancel()  # an interrupt ends it
