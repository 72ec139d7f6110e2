"""The instance of an async filesystem that headrace reads with: for which loop it is, and what it shares.

* It is another than the wrapped one, made of the same options for headrace's loop. s3fs's is also who the
  wrapped one has connected as, whatever the environment says by now (`_s3fs.identity_of`). Clients are told
  not to try again by themselves, where that can be told them.
* Not so where the options hold what may belong to a loop (`is_bound`): a session, a connector, a credential.
  What those wait for inside is of the loop that needed it first; on another one reads would fail, or hang.
  Such a filesystem is read where it lives, and so is adlfs's.
* Google's credentials are the wrapped instance's, as they are (`lend_credentials`): making others may ask for
  them again, and refuse a token that is about to expire.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from headrace.backends import _s3fs
from headrace.backends.abc import wrapped_filesystems

NOBODY = {"token": "anon"}
"""Options of a gcsfs instance that is lent its credentials: its own would be asked for, of a browser even."""


def is_bound(target: Any) -> bool:
    """Whether a filesystem can only be read on its own loop.

    Because it was given what may belong to that, objects that have coroutines, or because it is adlfs's: an
    instance of that waits for its loop when the interpreter ends, and ours may have ended before.
    """
    given = {name: value for name, value in target.storage_options.items() if name != "loop"}
    has_session = _s3fs.is_s3fs(target) and given.get("session") is not None  # what it makes is awaited
    is_adlfs = any(_package(kind) == "adlfs" for kind in type(target).__mro__)
    return is_adlfs or has_session or _has_coroutines([target.storage_args, given])


def _has_coroutines(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_coroutines, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(_has_coroutines, value))
    members = [member for kind in type(value).__mro__ for member in vars(kind).values()]
    return any(map(inspect.iscoroutinefunction, members))


def make(target: Any, loop: Any, connections: int, *, is_home: bool) -> Any:
    """Make the instance that reads on `loop`, which with `is_home` is the target's own."""
    args, options = target.storage_args, {**target.storage_options, "asynchronous": not is_home, "loop": loop}
    is_s3fs = _s3fs.is_s3fs(target)
    is_lent = _package(type(target)) == "gcsfs" and not args
    if is_s3fs:
        args = ()
        options = _s3fs.options_of(target) | options | _s3fs.reader_options(target, connections)
    if is_lent:
        options |= NOBODY
    reader = type(target)(*args, skip_instance_cache=True, **options)
    if is_s3fs:
        reader.retries = 1  # that is one attempt
    if is_lent:
        lend_credentials(target, reader)
    return reader


def make_wrapper(target: Any, loop: Any, connections: int) -> tuple[Any, list[Any]]:
    """Copy a filesystem that wraps others, with such of them as read on `loop`; returns also those."""
    from fsspec.asyn import AsyncFileSystem  # noqa: PLC0415

    made: dict[int, Any] = {}

    def again(value: Any) -> Any:
        if isinstance(value, dict) and any(isinstance(one, AsyncFileSystem) for one in value.values()):
            return {name: again(one) for name, one in value.items()}
        if not isinstance(value, AsyncFileSystem) or getattr(value, "is_headrace", False):
            return value  # which is read on any loop
        if not wrapped_filesystems(value):
            if id(value) not in made:
                made[id(value)] = make(value, loop, connections, is_home=False)
            return made[id(value)]
        copied = object.__new__(type(value))  # its constructor may read files, or have others made
        vars(copied).update({name: again(one) for name, one in vars(value).items()})
        return copied

    return again(target), list(made.values())


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def lend_credentials(target: Any, reader: Any) -> None:
    """Have an instance of gcsfs ask for tokens where another does, which may refresh them for both."""
    for name in ("credentials", "credential"):
        if hasattr(target, name):
            setattr(reader, name, getattr(target, name))
