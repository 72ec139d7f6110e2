"""The exceptions of headrace, each a kind that Python and fsspec users already catch.

A read that fails in storage fails with the exception of the wrapped filesystem, unchanged (I8, I10), or of
the native engine, whose own are OSErrors.
The classes below are only for what headrace itself has to say.
"""

from __future__ import annotations

import errno
from typing import Any

from typing_extensions import override

from headrace.redact import redact_url

TOO_MANY_OPEN = frozenset({errno.EMFILE, errno.ENFILE})
"""This process, or the system, has no descriptor left: fewer files or requests at once may have enough."""


def is_out_of_descriptors(error: BaseException) -> bool:
    """Whether there was no descriptor left, which is no answer of a file's."""
    return isinstance(error, OSError) and error.errno in TOO_MANY_OPEN


class HeadraceError(Exception):
    """Base of all errors that headrace raises on its own account."""


class SchedulerClosedError(HeadraceError, RuntimeError):
    """A read was pending, or was started, when its scheduler was closed or the interpreter exits."""


class ReadCancelledError(HeadraceError, RuntimeError):
    """The result of a cancelled read was asked for."""


class ReadTimeoutError(HeadraceError, TimeoutError):
    """A read was not finished in time.

    Within `HEADRACE_TIMEOUT_S`, the caller's own timeout, or, an attempt of it, `HEADRACE_TRY_TIMEOUT_S`.
    """


class BackendError(HeadraceError, ValueError):
    """No backend can serve what was asked, or an installed one cannot be loaded."""


class IllegalTransitionError(HeadraceError, RuntimeError):
    """The scheduler core was told of an event that cannot happen in its state; nothing changed."""


class ShortReadError(HeadraceError, OSError):
    """A backend left an op without any answer."""


class UnsizedFileError(HeadraceError, OSError):
    """A device, a pipe, or a file that the kernel makes up as it is read: there are no offsets in it."""


class NoRangesError(HeadraceError, OSError):
    """A server sent the whole of a file where a range of it was asked for."""


class SeekError(HeadraceError, OSError, ValueError):
    """A seek before the start of a file, or beyond the largest offset.

    Of both kinds, as `io.UnsupportedOperation` is: of files on disk it is an OSError, of fsspec's others a
    ValueError.
    """


class ObjectChangedError(HeadraceError, OSError):
    """The object was replaced since it was opened: a read would have mixed two versions.

    Parameters
    ----------
    path
        Of the object.
    expected
        Its version (ETag) when it was opened.
    found
        What the store has now: another version, or what it said.
    """

    def __init__(self, path: str, expected: str, found: str) -> None:
        why = f"the object was replaced since it was opened: it was {expected}, now {found}"
        super().__init__(errno.ESTALE, why, redact_url(path))
        self.path, self.expected, self.found = path, expected, found

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.expected, self.found)
