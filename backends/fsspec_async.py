"""Any async fsspec filesystem (s3fs among them), on one event loop that headrace owns.

The sessions of such a filesystem belong to one loop ("attached to a different loop" is a frequent report),
so reads use an instance of their own, made from the wrapped one's class and options for our loop. Its
connection pool is not shared with anybody either: metadata and writes go through the wrapped instance.

A filesystem that wraps another (``dir``, ``reference``) cannot be made again for another loop, because
the one inside it would stay behind. It keeps its loop, and is awaited there.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from headrace.backends.abc import AsyncBackend, Defaults, PathSource, store_of, wrapped_filesystems

if TYPE_CHECKING:
    from collections.abc import Hashable

    from headrace.types import Ops


class AsyncFsspecBackend(AsyncBackend):
    """Serves every `fsspec.asyn.AsyncFileSystem` that reads by ``_cat_file``."""

    name: ClassVar[str] = "fsspec-async"
    rank: ClassVar[int] = 10
    defaults: ClassVar[Defaults] = Defaults(
        mode="standard", max_gap_bytes=64 << 10, max_op_bytes=8 << 20, io_parallelism=64
    )

    def __init__(self, target: Any) -> None:
        super().__init__(target)
        self._reader: Any = None

    @classmethod
    @override
    def serves(cls, target: Any) -> bool:
        """Async filesystems, unless what they wrap is sync or is headrace itself."""
        from fsspec.asyn import AsyncFileSystem  # noqa: PLC0415

        if not isinstance(target, AsyncFileSystem) or getattr(target, "is_headrace", False):
            return False
        inner = wrapped_filesystems(target)
        return all(getattr(fs, "async_impl", False) and fs.async_impl for fs in inner)

    @property
    @override
    def foreign_loop(self) -> Any:
        """The loop of a filesystem that cannot be made again for ours."""
        return self.target.loop if wrapped_filesystems(self.target) else None

    @override
    def bind(self, loop: Any) -> None:
        """Make the instance that reads on `loop`."""
        if wrapped_filesystems(self.target):
            self._reader = self.target
            return
        options = {**self.target.storage_options, "asynchronous": True, "loop": loop}
        if type(self.target).__module__.partition(".")[0] == "s3fs":
            options["config_kwargs"] = {
                # More ops in flight than connections would only queue inside the client.
                "max_pool_connections": self.defaults.io_parallelism,
                **(options.get("config_kwargs") or {}),
            }
        kind = type(self.target)
        self._reader = kind(*self.target.storage_args, skip_instance_cache=True, **options)

    @override
    def device(self, path: str) -> Hashable:
        """Name the store: class, options (endpoint and credentials among them) and bucket."""
        return (*store_of(self.target), path.lstrip("/").partition("/")[0])

    @override
    def open(self, path: str, **options: Any) -> PathSource:
        """Return the path; nothing is asked of the store."""
        options.pop("as_file", None)
        return PathSource(path, **options)

    @override
    async def read(self, ops: Ops, row: int) -> None:
        """Read one op with ``_cat_file``."""
        source = ops.sources[ops.file[row]]
        first, end = source.limits(int(ops.start[row]), int(ops.length[row]))
        # By name: s3fs's second positional parameter is a version, and it would read the whole object.
        data = await self._reader._cat_file(source.path, start=first, end=end, **source.options)  # noqa: SLF001
        ops.deliver(row, data)

    @override
    async def aclose(self) -> None:
        """Close the session that was made for our loop."""
        if self._reader is None or self._reader is self.target:
            return
        for name in ("_s3", "_session"):
            session = getattr(self._reader, name, None)
            close = getattr(session, "close", None)
            if close is not None:
                closing = close()
                if inspect.isawaitable(closing):
                    await closing
