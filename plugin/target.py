"""Which filesystem is wrapped: the one that is given, or one made from its protocol and options."""

from __future__ import annotations

from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractFileSystem


def make_target(
    fs: Any,
    protocol: str | None,
    options: dict[str, Any] | None,
    flat: dict[str, Any],
    asynchronous: bool,
) -> Any:
    """Return the filesystem to wrap, made where it was only named."""
    if (fs is None) == (protocol is None):
        msg = (
            "HeadraceFileSystem takes either fs= or target_protocol=; a URL chains, as in headrace::s3://, "
            "or has storage_options={'target_protocol': 's3', ...}"
        )
        raise TypeError(msg)
    if fs is not None and not isinstance(fs, AbstractFileSystem):
        msg = f"fs must be a filesystem of fsspec's, not {type(fs).__name__}; by name: target_protocol="
        raise TypeError(msg)
    given = dict(options or {})
    if fs is not None:
        if given or flat:
            msg = f"fs= is given, so these options have no target: {sorted(given | flat)}"
            raise TypeError(msg)
        return fs
    for name in given.keys() & flat.keys():
        if given[name] != flat[name]:
            msg = f"option {name!r} is given twice, flat and in target_options"
            raise TypeError(msg)
    merged = {**given, **flat}
    if asynchronous and issubclass(fsspec.get_filesystem_class(protocol), AsyncFileSystem):
        merged.setdefault("asynchronous", True)
    return fsspec.filesystem(protocol, **merged)
