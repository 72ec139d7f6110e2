"""The exceptions of headrace, each a kind that Python and fsspec users already catch.

A read that fails in storage fails with the exception of the wrapped filesystem, unchanged (I8, I10).
The classes below are only for what headrace itself has to say.
"""

from __future__ import annotations


class HeadraceError(Exception):
    """Base of all errors that headrace raises on its own account."""


class SchedulerClosedError(HeadraceError, RuntimeError):
    """A read was pending, or was started, when its scheduler was closed or the interpreter exits."""


class ReadCancelledError(HeadraceError, RuntimeError):
    """The result of a cancelled read was asked for."""


class ReadTimeoutError(HeadraceError, TimeoutError):
    """A read was not finished within `HEADRACE_TIMEOUT_S`, or within the caller's own timeout."""


class BackendError(HeadraceError, ValueError):
    """No backend can serve what was asked, or an installed one cannot be loaded."""


class IllegalTransitionError(HeadraceError, RuntimeError):
    """The scheduler core was told of an event that cannot happen in its state; nothing changed."""


class ShortReadError(HeadraceError, OSError):
    """A backend delivered more or fewer bytes than its protocol allows."""
