"""Which filesystem is wrapped: the one that is given, or one made from its protocol and options.

fsspec keeps most filesystems for the life of the process, by their options, but not those that hold an open
archive or a connection, nor those made with ``skip_instance_cache``. One of ours holds what it wraps, so it
is kept where that is, and for as long: an archive that was replaced is opened again, and closed when nobody
has it any more. Who asks for one of ours that is not kept is given what it wraps anew, too.

A sync filesystem that fsspec makes awaitable (`AsyncFileSystemWrapper`) is wrapped without that: ours is
awaitable anyhow, and by what is beneath it knows how to read. That is done before fsspec looks for an
instance, which is then the one of what is beneath.
"""

from __future__ import annotations

from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.spec import AbstractFileSystem
from typing_extensions import override

from headrace.backends.abc import arguments_by_name


def make_target(
    fs: Any,
    protocol: str | None,
    options: dict[str, Any] | None,
    flat: dict[str, Any],
    shared: dict[str, Any],
) -> Any:
    """Return the filesystem to wrap, made where it was only named.

    `shared` are options of ours that an async filesystem is given too, and no sync one need know.
    """
    if (fs is None) == (protocol is None):
        msg = (
            "HeadraceFileSystem takes either fs= or target_protocol=; a URL chains, as in headrace::s3://, "
            "or has storage_options={'target_protocol': 's3', ...}"
        )
        raise TypeError(msg)
    if fs is not None and not isinstance(fs, AbstractFileSystem):
        kind = f"{type(fs).__module__}.{type(fs).__qualname__}"
        msg = f"fs must be a filesystem of fsspec's, not {kind}; by name: target_protocol="
        raise TypeError(msg)
    given = dict(options or {})
    if fs is not None:
        if given or flat:
            msg = f"fs= is given, so these options have no target: {sorted(given | flat)}"
            raise TypeError(msg)
        return _unwrapped(fs)
    for name in given.keys() & flat.keys():
        if given[name] != flat[name]:
            msg = f"option {name!r} is given twice, flat and in target_options"
            raise TypeError(msg)
    merged = {**given, **flat}
    if issubclass(fsspec.get_filesystem_class(protocol), AsyncFileSystem):
        merged = {**shared, **merged}
    return _unwrapped(fsspec.filesystem(protocol, **merged))


def _unwrapped(fs: Any) -> Any:
    """Return the sync filesystem that is only made awaitable, or `fs`."""
    while isinstance(fs, AsyncFileSystemWrapper):
        fs = fs.sync_fs
    return fs


def is_kept(fs: Any) -> bool:
    """Whether fsspec keeps this instance, for whoever asks for one of its options."""
    return type(fs)._cache.get(fs._fs_token_) is fs  # noqa: SLF001


class _Instances(dict[str, Any]):
    """The instances of a class of ours that fsspec keeps: by their tokens, those whose target it keeps."""

    @override
    def __setitem__(self, token: str, fs: Any) -> None:
        if is_kept(fs.target):
            super().__setitem__(token, fs)

    @override
    def get(self, token: str, default: Any = None) -> Any:
        found = super().get(token)
        return default if found is None or not is_kept(found.target) else found


NOT_KEPT = "_is_target_not_kept"
"""The option by which the constructor learns of ``skip_instance_cache``, which fsspec takes away."""

_NAMING = ("fs", "target_protocol", "target_options")
"""Options that say what is wrapped."""


class KeptAsTarget(type(AbstractFileSystem)):  # type: ignore[misc]
    """The class of `HeadraceFileSystem`: its `cachable` cannot say what is of each instance."""

    _cache: Any

    def __init__(cls, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(cls._cache, dict):  # by fsspec's `weakref_instance_cache` it keeps none
            cls._cache = _Instances()

    @override
    def __call__(cls, *args: Any, **options: Any) -> Any:
        """Make an instance; where one of ours is to be wrapped, of what that wraps, with its settings.

        Around it reads would pass two schedulers, and the inner one holds nested reads to no limit. One of a
        derived class is wrapped as it is, but by its class: what that does to reads is not ours to leave out.
        """
        if args and (named := arguments_by_name(cls, args)):
            return cls(**named, **options)
        options = cls._unchained(options)
        given: Any = args[0] if args else options.get("fs")
        fs = _unwrapped(given)
        if fs is None and options.get("skip_instance_cache"):
            options[NOT_KEPT] = True
        if cls._is_derived_from(type(fs)):
            # Only where it says something: fsspec's token of an instance would tell it apart by this, too.
            not_kept = {} if is_kept(fs) else {"skip_instance_cache": True}
            options = {**not_kept, **fs.own_options(), **options}
            fs = fs.target
        if fs is not given and args:
            args = (fs, *args[1:])
        elif fs is not given:
            options["fs"] = fs
        return super().__call__(*args, **options)

    def _is_derived_from(cls, kind: type) -> bool:
        """Whether `kind` is one of our classes, and this one does all that it does."""
        return isinstance(kind, KeptAsTarget) and issubclass(cls, kind)

    def _unchained(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Return the options by which to name at once what one of ours, that is named, would wrap."""
        while options.get("fs") is None and (protocol := options.get("target_protocol")) is not None:
            if not cls._is_derived_from(fsspec.get_filesystem_class(protocol)):
                break
            outer = {name: value for name, value in options.items() if name not in _NAMING}
            options = {**(options.get("target_options") or {}), **outer}
        return options
