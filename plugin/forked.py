"""Filesystems in a forked child: the event loop of an async one stayed with the parent.

fsspec's own answer is an error ("not fork-safe"). What a program opened or wrapped before it forked shall
work in the child, so such a filesystem is made again, from its class and options, when it is first used.
"""

from __future__ import annotations

import os
from typing import Any

from fsspec import AbstractFileSystem

from headrace.backends.abc import wrapped_filesystems


def of_this_process(fs: Any) -> Any:
    """Return `fs`, or one like it if its loop, or that of one which it wraps, is another process's."""
    if not _is_of_another_process(fs):
        return fs
    args = [_renewed(value) for value in fs.storage_args]
    options = {name: _renewed(value) for name, value in fs.storage_options.items()}
    return type(fs)(*args, **options)


def _renewed(value: Any) -> Any:
    return of_this_process(value) if isinstance(value, AbstractFileSystem) else value


def _is_of_another_process(fs: Any) -> bool:
    made_in = getattr(fs, "_pid", None) if getattr(fs, "async_impl", False) else None
    is_foreign = made_in is not None and made_in != os.getpid()
    return is_foreign or any(map(_is_of_another_process, wrapped_filesystems(fs)))
