"""Finds backends by entry point, and loads one only when it is asked for.

The group is ``headrace.backends``; the name is what reports call it (for `local`,
``HEADRACE_LOCAL_BACKEND`` says `pread`), the value a class derived from one of the four kinds in
`headrace.backends.abc`. Of those that serve a filesystem the one of highest `rank` does.

A backend that cannot be loaded is passed over with one log line (a broken third-party package must not
break reads of local files); `headrace doctor` tells the reason.
"""

from __future__ import annotations

import functools
import inspect
import logging
from importlib import metadata
from typing import Any

from headrace.backends.abc import Backend
from headrace.errors import BackendError
from headrace.threads import raise_if_of_a_handler

GROUP = "headrace.backends"

_log = logging.getLogger("headrace")


@functools.cache
def entry_points() -> dict[str, metadata.EntryPoint]:
    """Return the registered backends by name, none of them loaded."""
    return {point.name: point for point in metadata.entry_points(group=GROUP)}


@functools.cache
def load(name: str) -> type[Backend]:
    """Load one backend.

    Raises
    ------
    BackendError
        No such name, or what it names cannot be imported or is no backend.
    """
    points = entry_points()
    if name not in points:
        msg = f"no backend {name!r} is installed; there are {sorted(points)}"
        raise BackendError(msg)
    try:
        found = points[name].load()
    except Exception as error:
        raise_if_of_a_handler(error)  # nothing of it is remembered
        msg = f"backend {name!r} ({points[name].value}) cannot be loaded: {error}"
        raise BackendError(msg) from error
    if not (inspect.isclass(found) and issubclass(found, Backend)):
        msg = f"backend {name!r} ({points[name].value}) is no subclass of headrace.backends.abc.Backend"
        raise BackendError(msg)
    return found


@functools.cache
def _loaded() -> tuple[tuple[str, type[Backend]], ...]:
    """Load all that can be, of highest rank first."""
    found = []
    for name in entry_points():
        try:
            found.append((name, load(name)))
        except BackendError as error:
            _log.warning("%s", error)
    return tuple(sorted(found, key=lambda named: -named[1].rank))


def _is_usable(name: str, backend: type[Backend], level: int) -> bool:
    """Whether this machine can use a backend; one that cannot tell is not used now, and the others are."""
    try:
        return _is_usable_always(name, backend, level)
    except Exception as error:  # noqa: BLE001 - anybody's
        raise_if_of_a_handler(error)
        _log.log(level, "backend %r is not used for now: %s", name, _told(error))
        return False


@functools.cache
def _is_usable_always(name: str, backend: type[Backend], level: int) -> bool:
    why = backend.unavailable()
    if why is not None:
        _log.log(level, "backend %r is not used: %s", name, why)
    return why is None


def why_not(backend: type[Backend]) -> str | None:
    """Say why this machine cannot use a backend, or why that cannot be told."""
    try:
        return backend.unavailable()
    except Exception as error:  # noqa: BLE001 - anybody's
        raise_if_of_a_handler(error)
        return _told(error)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def backend_for(target: Any, excluded: frozenset[str] = frozenset(), wanted: str = "") -> Backend:
    """Return a new backend for the filesystem `target`, none of the names `excluded`.

    Why one is not used is told once (each time it cannot tell): as a warning of that which was asked for by
    name.

    Raises
    ------
    BackendError
        No installed backend serves it.
    """
    for name, backend in _loaded():
        # What is excluded is not even asked: who forbids a probe may kill for it.
        level = logging.WARNING if name == wanted else logging.INFO
        if backend.name in excluded or not _is_usable(name, backend, level):
            continue
        if backend.serves(target):
            return backend(target)
    msg = f"no installed backend serves {type(target).__name__}; there are {sorted(entry_points())}"
    raise BackendError(msg)


def refusal(name: str, target: Any) -> str | None:
    """Say why the backend `name` does not serve `target`, though it reads such storage; None otherwise."""
    try:
        return load(name).refuses(target)
    except BackendError as error:
        return str(error)


def concerns(name: str, target: Any) -> bool:
    """Whether `target` is of the storage that the backend `name` is for."""
    try:
        return load(name).concerns(target)
    except BackendError:
        return False
