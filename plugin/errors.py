"""The exceptions of headrace, each a kind that Python and fsspec users already catch.

A read that fails in storage fails with the exception of the wrapped filesystem, unchanged (I8, I10), or of
the native engine, whose own are OSErrors.
The classes below are only for what headrace itself has to say. An error that is the answer of a range is
returned without its frames (`without_frames`).
"""

from __future__ import annotations

import contextlib
import errno
import traceback
from typing import Any, TypeVar

from typing_extensions import override

from headrace.redact import redact_url

E = TypeVar("E", bound=BaseException)


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


def without_frames(error: E) -> E:
    """Take the tracebacks off an error that is returned and not raised; a note says where it was raised.

    Whoever keeps it would keep the frames that it came through and all that called them, and so the memory
    of the whole read; and a read that has its errors would have itself, until a collection. The error that
    was being handled meanwhile may be somebody else's: it keeps its own, and is no longer referred to.
    """
    places = list(traceback.walk_tb(error.__traceback__))
    if places:
        frame, line = places[-1]
        code = frame.f_code
        note = f"raised in {code.co_name}, {code.co_filename}:{line}"
        with contextlib.suppress(Exception):  # of a class whose instances take none
            if note not in getattr(error, "__notes__", ()):  # of one that is raised again and again
                error.add_note(note)
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        link.__traceback__ = link.__context__ = None
        link = link.__cause__
    return error
