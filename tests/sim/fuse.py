"""An interrupt in the middle of a section, at a call that leaves the core."""

from __future__ import annotations

from typing import Any

from headrace.core.window import Window


class Interrupt(BaseException):
    """What a signal handler would raise in the middle of a section."""


class Fuse:
    """Raises `Interrupt` once, at the n-th tick after `arm`."""

    def __init__(self) -> None:
        self.left = 0

    def tick(self) -> None:
        if self.left:
            self.left -= 1
            if not self.left:
                raise Interrupt


class FusedWindow(Window):
    """A window whose observation may be interrupted."""

    def __init__(self, fuse: Fuse, **limits: int) -> None:
        super().__init__(**limits)
        self.fuse = fuse

    def observe(self, **seen: Any) -> None:
        self.fuse.tick()
        super().observe(**seen)
