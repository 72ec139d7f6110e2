"""Any async fsspec filesystem (s3fs among them), on one event loop that headrace owns.

The sessions of such a filesystem belong to one loop ("attached to a different loop" is a frequent report),
so reads use an instance of their own, made from the wrapped one's class and options for our loop. Its
connection pool is not shared with anybody either: metadata and writes go through the wrapped instance.

A filesystem that wraps others (``reference``) keeps its loop and is awaited there; so does one that was given
what may belong to its loop (`headrace.backends._readers`). Where a wrapper has none, for it is awaited by its
program, a copy of it reads, with instances inside that are made for our loop. Folders of a store (``dir``)
are read as the store is (`headrace.backends._folders`).

What s3fs reads is of one version and resumed where it broke (`headrace.backends._s3fs`), what fsspec's HTTP
filesystem reads of one version (`headrace.backends._http`). The others read by ``_cat_file``, which takes no
version. An op that breaks starts again, but for s3fs. Clients do not try again by
themselves where that can be told them: errors are judged here (`headrace.backends._faults`) and the driver
decides.
"""

from __future__ import annotations

import asyncio
import inspect
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from headrace.backends import _faults, _http, _readers, _s3fs
from headrace.backends._answers import deliver_answer
from headrace.backends.abc import (
    AsyncBackend,
    Defaults,
    NoEndError,
    PathSource,
    Verdict,
    bucket_of,
    kept_in,
    store_of,
    wrapped_filesystems,
)
from headrace.errors import ObjectChangedError
from headrace.types import TRY_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Hashable

    from headrace.types import Ops


class AsyncFsspecBackend(AsyncBackend):
    """Serves every `fsspec.asyn.AsyncFileSystem` that reads by ``_cat_file``."""

    name: ClassVar[str] = "fsspec-async"
    rank: ClassVar[int] = 10
    defaults: ClassVar[Defaults] = Defaults(
        mode="standard",
        max_gap_bytes=128 << 10,  # this and the next one: measured, see docs/benchmarks.md
        max_op_bytes=8 << 20,
        io_parallelism=128,
        window_ops=128,  # s3fs asks for as many at once; of these 112 are for reads that are not urgent
    )

    options: ClassVar[frozenset[str]] = frozenset({"io_parallelism", "try_timeout_s"})

    def __init__(self, target: Any) -> None:
        super().__init__(target)
        self._reader: Any = None
        self._made: list[Any] = []
        self.is_s3fs = self.are_versions_unique = _s3fs.is_s3fs(target)
        self._is_compared = self.is_s3fs and not _s3fs.takes_conditions(target)
        self._is_http = _http.is_http(target)
        self.checks_versions = self.is_s3fs or self._is_http
        self._is_wrapper = bool(wrapped_filesystems(target))
        self._stays = self._is_wrapper or _readers.is_bound(target)
        self._connections = self.defaults.io_parallelism
        self._try_timeout_s = TRY_TIMEOUT_S

    @override
    def configure(
        self, *, io_parallelism: int | None = None, try_timeout_s: float | None = None, **options: Any
    ) -> None:
        """Take the ops in flight, for as many connections, and the seconds that reading an end may last."""
        super().configure(**options)
        self._connections = io_parallelism or self.defaults.io_parallelism
        self._try_timeout_s = try_timeout_s or TRY_TIMEOUT_S

    @classmethod
    @override
    def serves(cls, target: Any) -> bool:
        """Async filesystems, unless what they wrap is sync or is headrace itself."""
        from fsspec.asyn import AsyncFileSystem  # noqa: PLC0415

        if not isinstance(target, AsyncFileSystem) or getattr(target, "is_headrace", False):
            return False
        inner = wrapped_filesystems(target)
        return all(getattr(fs, "async_impl", False) for fs in inner)

    @property
    @override
    def foreign_loop(self) -> Any:
        """The loop of a filesystem that cannot be made again for ours."""
        return self.target.loop if self._stays else None

    @override
    def bind(self, loop: Any) -> None:
        """Make the instance that reads on `loop`, where the wrapped one cannot."""
        is_home = loop is self.foreign_loop
        if is_home and not self.is_s3fs:
            self._reader = self.target
        elif self._is_wrapper:
            self._reader, self._made = _readers.make_wrapper(self.target, loop, self._connections)
        else:
            self._reader = _readers.make(self.target, loop, self._connections, is_home=is_home)
            self._made = [self._reader]

    @override
    def device(self, path: str) -> Hashable:
        """Name the store: class, options (endpoint and credentials among them) and bucket.

        Paths of a filesystem that puts others together (``reference``) name no bucket: all are of one store.
        """
        return self._parts or (*self.store, bucket_of(path))

    @cached_property
    def _parts(self) -> tuple[str, ...]:
        return tuple(sorted({":".join(store_of(fs)) for fs in wrapped_filesystems(self.target)}))

    @override
    def open(self, path: str, **options: Any) -> PathSource:
        """Return the path; nothing is asked of the store."""
        options.pop("as_file", None)
        return PathSource(path, is_compared=self._is_compared, **options)

    @override
    def open_end(self, path: str, nbytes: int) -> PathSource | None:
        """Open an object of S3: others have no such request, or tell no version."""
        return PathSource(path, bounds=(-nbytes, None), is_end=True) if self.is_s3fs else None

    @override
    async def read(self, ops: Ops, row: int) -> None:
        """Read one op, a range of one version where the filesystem can."""
        source = ops.sources[ops.file[row]]
        length = int(ops.length[row])
        if source.is_end:
            await self._read_end(ops, row)
            return
        if self._is_http or (self.is_s3fs and _s3fs.can_read(source, length)):
            await self._read_version(ops, row)
            return
        first, end = source.limits(int(ops.start[row]), length)
        # By name: s3fs's second positional parameter is a version, and it would read the whole object.
        data = await self._reader._cat_file(source.path, start=first, end=end, **source.options)  # noqa: SLF001
        deliver_answer(ops, row, data, (first, end), is_part=self._is_wrapper)

    async def _read_end(self, ops: Ops, row: int) -> None:
        try:
            async with asyncio.timeout(self._try_timeout_s):
                await _s3fs.read_end(self._reader, ops, row)
        except Exception as error:
            raise NoEndError(ops.sources[ops.file[row]].path) from error

    async def _read_version(self, ops: Ops, row: int) -> None:
        try:
            await (_http if self._is_http else _s3fs).read_op(self._reader, ops, row)
        except ObjectChangedError as error:
            self.target.invalidate_cache(error.path)  # or a listing would name the old version again
            raise

    @override
    def verdict(self, error: BaseException) -> Verdict:
        """Judge by what HTTP clients raise."""
        return _faults.verdict(error)

    @override
    def kept_bytes(self, ops: Ops, row: int) -> int:
        """Count what came through s3fs's client."""
        return kept_in(ops, row)

    @override
    async def aclose(self) -> None:
        """Close the sessions that were made for our loop."""
        for reader, name in product(self._made, ("_s3", "_session")):
            session = getattr(reader, name, None)
            close = getattr(session, "close", None)
            if close is not None:
                closing = close()
                if inspect.isawaitable(closing):
                    await closing
