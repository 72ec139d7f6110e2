"""The ambient priority: what reads started in this context are worth, where nothing else says so.

``with headrace.priority(-1): ...`` sets it for the code in the block, and for the tasks and coroutines that
copy its context. It does not reach Arrow's threads, on which every callback has a fresh context: it is
captured when a file is opened, and for a whole scan `HeadraceFileSystem.with_priority` is the way.

Integrations may register a provider, which is asked where no block is in force (Dask: the priority of the
task that runs).
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_base: ContextVar[int | None] = ContextVar("headrace_priority", default=None)
_providers: list[Callable[[], int | None]] = []
_known: dict[str, str] = {"distributed.worker": "headrace.integrations.dask"}


@contextlib.contextmanager
def priority(base: int) -> Iterator[None]:
    """Give the reads started in the block the base priority `base`; lower is more urgent.

    Raises
    ------
    TypeError
        Not an integer.
    ValueError
        Beyond 2 to the power of 31, either way.
    """
    token = _base.set(checked_base(base))
    try:
        yield
    finally:
        _base.reset(token)


MOST_BASE = 1 << 31
"""Of a priority, either way: ages are counted beside it, in floats."""


def checked_base(base: object) -> int:
    """Return `base` if it is a priority."""
    if isinstance(base, bool) or not hasattr(base, "__index__"):
        msg = f"a priority is an integer, lower is more urgent; not {base!r}"
        raise TypeError(msg)
    found = int(base.__index__())
    if abs(found) > MOST_BASE:
        msg = f"a priority is from {-MOST_BASE} to {MOST_BASE}, not {found}"
        raise ValueError(msg)
    return found


def register(provider: Callable[[], int | None]) -> None:
    """Ask `provider` for the base priority where no `priority` block is in force."""
    _providers.append(provider)


def base_priority() -> int:
    """Return the priority in force here."""
    found = _base.get()
    if found is not None:
        return found
    _load_known()
    for provider in _providers:
        found = provider()
        if found is not None:
            return found
    return 0


def _load_known() -> None:
    """Import an integration once the library it speaks to is in use."""
    for library in list(_known):
        # Another thread may be doing the same; who imports what is imported waits for it.
        if library in sys.modules and (integration := _known.get(library)) is not None:
            importlib.import_module(integration)
            _known.pop(library, None)
