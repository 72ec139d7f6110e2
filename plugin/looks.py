"""What Arrow asks about a path before it opens or lists it: one look at a store serves for all.

It asks `info` of a folder and then `isdir`, and of each file `isfile`, and opens it, for which length and
version are looked up again. Each is a round trip to a store that has no listing. So what was heard of a
folder is good for `isdir`, and what `isfile` heard for Arrow's own open: on the same thread, for the same
path and at once. Both take it away, so no other call ever meets it.
"""

from __future__ import annotations

import sys
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from fsspec.asyn import AsyncFileSystem

from headrace.delegation import Delegation
from headrace.lifecycle import is_arrows

if TYPE_CHECKING:
    from types import FrameType

AT_ONCE_S = 0.1


class Looks(Delegation):
    """Forwards to ``self.target``, and remembers what it said last."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._looked_up: dict[int, tuple[str, dict[str, Any], float]] = {}  # by thread

    def info(self, path: Any, **kwargs: Any) -> dict[str, Any]:
        """Call the wrapped filesystem's ``info``."""
        path = self._own_path(path)
        found: dict[str, Any] = self._of_target("info", path, **kwargs)
        if self._is_look(sys._getframe(1)) and found.get("type") == "directory":  # noqa: SLF001
            self._note_look(self._target_path(path), found)
        return found

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
            info = self._of_target("info", path)
            is_file: bool = info["type"] == "file"
        except Exception:  # noqa: BLE001 - as fsspec's own `isfile`
            return False
        if is_file:
            self._note_look(path, info)
        return is_file

    def _is_look(self, caller: FrameType) -> bool:
        """Whether it is Arrow that asks, and a store that knows."""
        channel = self.channel if is_arrows(caller) else None
        return channel is not None and channel.is_remote and channel.settings.prefetch != "off"

    def _note_look(self, path: str, info: dict[str, Any]) -> None:
        now = monotonic()
        for thread, (_, _, at_s) in list(self._looked_up.items()):
            if now - at_s > AT_ONCE_S:
                self._looked_up.pop(thread, None)  # nobody came for it
        self._looked_up[threading.get_native_id()] = path, dict(info), now

    def _last_look(self, path: str) -> dict[str, Any] | None:
        """Take what has just been heard of a path on this thread."""
        looked_up, info, at_s = self._looked_up.pop(threading.get_native_id(), (None, None, 0.0))
        return info if looked_up == path and monotonic() - at_s < AT_ONCE_S else None
