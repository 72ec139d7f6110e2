"""The backends' protocol: how ops, once admitted, are performed.

A backend knows storage and nothing else: no queue, no priority, no budget. It belongs to one of four
kinds, by how an op of it waits:

* `InlineBackend` performs a slice on the calling thread, in two steps: `start` does what cannot block and
  sets the rest going, `finish` waits for it. Local files, memory, a ring.
* `ThreadedBackend` blocks in `read`, one op at a time, on daemon threads. Sync filesystems.
* `AsyncBackend` awaits one op at a time on an event loop. Async filesystems.
* `BulkBackend` performs a slice in one blocking call of a native engine, several threads at once.

Backends are found through the entry-point group ``headrace.backends`` (see `headrace.backends.registry`)
and import nothing of headrace but this module, `headrace.types` and `headrace.errors` (ours also
`headrace.columns`, `headrace.threads` and `headrace.redact`). A third party's passes
`headrace.testing.BackendTests`.

Errors: an op that fails stores its exception with ``ops.fail(row, error)`` and lets the other rows go on.
A read past the end of the file is short, not an error, unless the storage says otherwise. Backends do not try
again by themselves: `Backend.verdict` says what an error means, and the driver decides.
"""

from __future__ import annotations

import abc
import contextlib
import inspect
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from headrace.columns import ascending
from headrace.errors import ObjectChangedError
from headrace.types import UNKNOWN_LENGTH, Int64Array, Ops, Verdict

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import numpy as np
    import numpy.typing as npt


__all__ = [
    "FINAL",
    "AsyncBackend",
    "Backend",
    "BulkBackend",
    "Defaults",
    "InlineBackend",
    "NoEndError",
    "PathSource",
    "ThreadedBackend",
    "Verdict",
    "arguments_by_name",
    "beneath_folders",
    "bucket_of",
    "kept_in",
    "store_of",
    "take_up",
    "wrapped_filesystems",
]

FINAL = Verdict(is_retryable=False)
"""Asking again would bring the same answer."""


class NoEndError(OSError):
    """The read of a file's end failed. It is not tried again: a plain ``info`` will say why."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a backend works best with. Mode, gap, ops and parallelism can be set by the environment.

    Attributes
    ----------
    mode
        Who drives under ``HEADRACE_SCHEDULER=auto``.
    max_gap_bytes
        Ranges of one file no further apart than this are read as one op.
    max_op_bytes
        Longer reads are split into ops of this size.
    short_op_bytes
        The same of reads that nobody waits for yet, and while more urgent reads come, which wait for an op; 0
        for no difference.
    series_op_bytes
        The same while more urgent reads come, of a backend that performs ops in series; 0 for no difference.
    io_parallelism
        Ops in flight to one device, at the most.
    window_bytes, window_ops
        First guess of the short-queue window, in bytes for disks, in requests for object stores; 0 for none.
    """

    mode: Literal["lite", "standard"]
    max_gap_bytes: int
    max_op_bytes: int
    io_parallelism: int
    window_bytes: int = 0
    window_ops: int = 0
    short_op_bytes: int = 0
    series_op_bytes: int = 0


class Backend(abc.ABC):
    """What all four kinds have in common.

    Parameters
    ----------
    target
        The wrapped fsspec filesystem.
    """

    name: ClassVar[str]
    rank: ClassVar[int] = 50
    """Of the backends that serve a filesystem the one of highest rank does."""
    is_s3fs: bool = False
    """Whether the target is s3fs's, of which more is known than of others: sessions, listings and ranges."""
    are_versions_unique: bool = False
    """Whether two contents of a file are never of one version."""
    checks_versions: bool = False
    """Whether reads of a source that was opened with an `etag` are of that version, or an error."""
    holds_descriptors: bool = False
    """Whether an open source takes of the process's descriptors: then many files are open some at a time."""

    defaults: ClassVar[Defaults]
    options: ClassVar[frozenset[str]] = frozenset()
    """Names of the settings that `configure` takes."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def configure(self, **options: Any) -> None:  # noqa: B027
        """Take the settings named in `options`, before the first read."""

    @classmethod
    def unavailable(cls) -> str | None:
        """Say why this machine cannot use this backend at all, or None.

        That is asked once. What is raised is told, not remembered, and the next filesystem asks again.
        """
        return None

    @cached_property
    def store(self) -> tuple[str, str]:
        """The store behind `target`, as `store_of` names it."""
        return store_of(self.target)

    @classmethod
    @abc.abstractmethod
    def serves(cls, target: Any) -> bool:
        """Whether this backend reads what `target` reads, byte for byte."""

    @classmethod
    def concerns(cls, target: Any) -> bool:  # noqa: ARG003
        """Whether `target` is of the storage this backend is for, whatever its options; for reports."""
        return False

    @classmethod
    def refuses(cls, target: Any) -> str | None:  # noqa: ARG003
        """Say why this backend does not serve `target` though it reads such storage, or None.

        For reports: it is asked where `serves` was False.
        """
        return None

    def left_out(self) -> str | None:
        """Say what turned out to be left to the wrapped filesystem, and why, or None; for reports."""
        return None

    def forget(self) -> None:  # noqa: B027
        """Forget what was noted of files: they may be others by now."""

    @property
    def asked_loop(self) -> Any:
        """The event loop that answers may have to come from, besides its driver's; None: there is none.

        A sync read is refused on the thread that runs it.
        """
        return None

    @abc.abstractmethod
    def device(self, path: str) -> Hashable:
        """Name the device or store that `path` lives on: one scheduler for each."""

    @abc.abstractmethod
    def open(self, path: str, **options: Any) -> Any:
        """Return a source of `path`'s bytes, to be put into `Ops.sources`; may be the path itself.

        Options it does not know it ignores. `bounds` and `options` are those of `PathSource`. A file that
        stays open is opened with `etag` on async and bulk backends: the version that its reads must match, or
        None for the one that the first of them meets. On all others it is opened with `as_file`, on threaded
        ones also with `caching`, where its caller said something: ``block_size``, ``cache_type`` and
        ``cache_options``, of a handle that reads ahead.

        Raises
        ------
        OSError
            What opening the file raises, of the type that the wrapped filesystem raises.
        """

    def open_end(self, path: str, nbytes: int) -> Any:  # noqa: ARG002
        """Open a file for one op, of unknown length, that reads its last bytes and learns `size` and `etag`.

        None where that is no single request. Any failure is a `NoEndError`.
        """
        return None

    def close(self, source: Any) -> None:  # noqa: B027
        """Release what `open` returned."""

    def size(self, source: Any) -> int | None:  # noqa: ARG002
        """Bytes of an open source, or None where only the filesystem's ``info`` can tell."""
        return None

    def version_of(self, info: Mapping[str, Any]) -> str | None:
        """Return the version that ``info`` of a file tells, as `open` takes it for `etag`; None for none."""
        return info.get("ETag") or None

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Return what the filesystem says of a path."""
        found: dict[str, Any] = self.target.info(path, **options)
        return found

    def verdict(self, error: BaseException) -> Verdict:  # noqa: ARG002
        """Say whether the op that met `error` may be tried again, and what it tells of the store."""
        return FINAL

    def kept_bytes(self, ops: Ops, row: int) -> int:  # noqa: ARG002
        """Return how much of an op whose attempts failed is there, and will not be asked for again."""
        return 0

    def guard(self) -> contextlib.AbstractContextManager[Any]:
        """Return what a call to `target` that is no read must hold: nothing, for most."""
        return contextlib.nullcontext()


class InlineBackend(Backend):
    """Performs a slice of ops on the calling thread."""

    holds_descriptors: bool = True

    series_ops: int = 1
    """So many ops of a slice it can perform one after the other by itself, and the next so many beside them.

    Where `Ops.series_ops` says so, the first so many rows of a slice are a series, the next another one.
    """

    def start(self, ops: Ops, lo: int, hi: int) -> Int64Array:  # noqa: ARG002
        """Perform what cannot block of the rows ``[lo, hi)`` and set the others going.

        Returns
        -------
        numpy.ndarray
            ``int64[k]``: the rows that are not done, for `finish`.
        """
        return ascending(lo, hi)

    def probe(self, source: Any, start: int, length: int) -> bytes | None:  # noqa: ARG002
        """Return exactly ``[start, start + length)`` if that takes no waiting, else None.

        Called by one thread at a time, for short reads; must neither block nor release the GIL.
        """
        return None

    def copy(self, source: Any, start: int, out: memoryview) -> bool:  # noqa: ARG002
        """Fill `out` from `start` on if that takes no waiting and no device, else say so.

        May release the GIL; called by several threads.
        """
        return False

    fills_plainly: bool = False
    """Whether a range that is one op may be read by `fill`, without columns."""

    def fill(self, source: Any, start: int, out: memoryview) -> tuple[int, bool]:
        """Fill `out` from `start` on, waiting; returns its bytes, and whether no device was needed.

        They are fewer than asked only at the end of the file. Only called where `fills_plainly`; may release
        the GIL; called by several threads.
        """
        raise NotImplementedError

    probes_rows: bool = True
    """Whether `probe_rows` may find anything; else no file is opened for it."""

    def probe_rows(self, ops: Ops, lo: int, hi: int, *, keeps_gil: bool = True) -> bool:  # noqa: ARG002
        """Perform the rows ``[lo, hi)``, all of them short, if that takes no waiting; else say so.

        Called by several threads. It must not block, nor release the GIL, unless `keeps_gil` is false: then
        others copy, too, and where one call copies many rows it should.
        """
        return False

    def read_one(self, source: Any, start: int, length: int) -> bytes:
        """Read what `probe` did not have, waiting; fewer bytes only at the end of the file.

        Only called on backends that implement `probe`.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def finish(self, ops: Ops, rows: Int64Array) -> None:
        """Perform `rows`, not to be written to, to their end: each has its `got` or its error afterwards."""

    def finish_some(self, ops: Ops, rows: Int64Array, least: int) -> npt.NDArray[np.bool_]:
        """Perform at least so many of `rows` to their end; returns which: ``bool[len(rows)]``."""
        self.finish(ops, rows[:least])
        return ascending(0, len(rows)) < least

    def are_whole(self, ops: Ops, rows: Int64Array) -> npt.NDArray[np.bool_]:
        """Say which of `rows` have all their bytes where they belong: ``bool[len(rows)]``."""
        whole: npt.NDArray[np.bool_] = ops.got[rows] >= ops.length[rows]
        return whole

    def is_bound(self, ops: Ops) -> bool:  # noqa: ARG002
        """Whether rows of `ops` must be finished by the thread that started them."""
        return False

    def drain(self) -> None:
        """Wait until nothing is under way that this thread started, whoever wanted it."""


class ThreadedBackend(Backend):
    """Blocks in each op; runs on daemon threads, so that an interrupted caller can leave."""

    def reads_in_order(self, ops: Ops) -> bool:  # noqa: ARG002
        """Whether `ops` are to be read one after the other, as those of one handle that seeks at a price."""
        return False

    @abc.abstractmethod
    def read(self, ops: Ops, row: int) -> None:
        """Perform op `row` to its end."""


class AsyncBackend(Backend):
    """Awaits each op on an event loop of headrace's, or on one the filesystem is bound to."""

    @abc.abstractmethod
    def bind(self, loop: Any) -> None:
        """Prepare for reads on `loop`, before the first of them."""

    @property
    def foreign_loop(self) -> Any:
        """The running loop the filesystem cannot leave, or None: headrace's own."""
        return None

    @abc.abstractmethod
    async def read(self, ops: Ops, row: int) -> None:
        """Perform op `row` to its end; what fails is raised, or stored with ``ops.fail``.

        It is called again where `verdict` allows that, and at once for an op that is late, with other ops.
        """

    async def aclose(self) -> None:
        """Close sessions; on the loop it was bound to."""


class BulkBackend(Backend):
    """Performs a slice of ops in one blocking call, which takes the GIL once and not once an op.

    Such a call cannot be interrupted: drivers make it on threads that nobody needs to interrupt. Several
    calls run at once.
    """

    max_grant_ops: ClassVar[int] = 48
    """Ops of one grant, and so of one call, at the most."""
    least_call_ops: ClassVar[int] = 10
    """Ops that a call has under way at a time: fewer would leave it idle, more save turns of the GIL."""
    least_call_bytes: ClassVar[int] = 1 << 20
    max_call_bytes: ClassVar[int] = 4 << 20
    """A call of several ops reads no more than its share of the request, if that is between these."""

    @abc.abstractmethod
    def perform(self, ops: Ops, rows: Int64Array) -> None:
        """Perform `rows`, not to be written to, to their end: each has its `got` or its error afterwards."""

    def singly(self) -> AsyncBackend | None:
        """Return a backend of the same storage that awaits each op by itself, or None where there is none.

        It reads instead where ops that are late shall be asked for twice: those of a call are late together.
        """
        return None


class PathSource:
    """A file named by its path, for filesystems that read by ``cat_file``.

    `bounds` are the caller's own start and end, where they are not plain offsets (None, negative), `options`
    what else ``cat_file`` shall be given. `etag` is the version seen at open, which every read must match, or
    None where none is known; with `is_compared` it is only looked for in the answers, for the store does not
    know ``If-Match``. With `is_end` it is for one op of the last bytes, which learns version and size.
    """

    __slots__ = ("bounds", "etag", "is_compared", "is_end", "options", "path", "size")

    def __init__(
        self,
        path: str,
        bounds: tuple[int | None, int | None] = (None, None),
        options: dict[str, Any] | None = None,
        etag: str | None = None,
        *,
        is_compared: bool = False,
        is_end: bool = False,
    ) -> None:
        self.path = path
        self.etag = etag
        self.is_compared = is_compared
        self.is_end = is_end
        self.size: int | None = None
        self.bounds = bounds
        self.options = options or {}

    @property
    def version(self) -> str | None:
        """The `etag`, but no weak one: that may be of two contents."""
        return None if self.etag is None or self.etag.startswith("W/") else self.etag

    @property
    def condition(self) -> str | None:
        """The version for ``If-Match``, if that is sent: a weak one never matches (RFC 9110, 13.1.1)."""
        return None if self.is_compared else self.version

    def meet(self, found: str | None) -> None:
        """Have all reads be of one version: that of the opening, or else that the first answer is of.

        Raises
        ------
        ObjectChangedError
            `found` is another one.
        """
        if self.etag is None:
            self.etag = found
        elif found != self.etag:
            raise ObjectChangedError(self.path, self.etag, str(found))

    def limits(self, start: int, length: int) -> tuple[int | None, int | None]:
        """Return start and end as ``cat_file`` takes them."""
        return self.bounds if length == UNKNOWN_LENGTH else (start, start + length)


_NOT_IDENTITY = frozenset({"asynchronous", "loop", "skip_instance_cache", "use_listings_cache"})


def store_of(target: Any) -> tuple[str, str]:
    """Name the store behind a filesystem: its class, and a digest of every option that makes it.

    Equal options are one store, whichever thread made the instance; other credentials are another.
    """
    from fsspec.utils import tokenize  # noqa: PLC0415

    kind = type(target)
    options = {k: v for k, v in target.storage_options.items() if k not in _NOT_IDENTITY}
    return (f"{kind.__module__}.{kind.__qualname__}", tokenize(target.storage_args, options))


def arguments_by_name(kind: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Return arguments of a constructor by the names that it has for them; none where it takes any number."""
    signature = inspect.signature(partial(kind.__init__, None))
    if any(one.kind is one.VAR_POSITIONAL for one in signature.parameters.values()):
        return {}
    return signature.bind_partial(*args).arguments


def take_up(ops: Ops, row: int) -> Any:
    """Return what a state has of an op, the bytes themselves or their number, for its next attempt; or None.

    Where nothing says the version, what is left may be of another one: the op starts again. To compare it is
    as good as a condition, for that is done before anything is taken of a body.
    """
    if ops.state is None:
        return None
    if not _has_version(ops, row):
        ops.state.pop(row, None)
    return ops.state.get(row)


def kept_in(ops: Ops, row: int) -> int:
    """Count the bytes of an op that its next attempt will take up."""
    kept = ops.state.get(row, 0) if ops.state is not None and _has_version(ops, row) else 0
    return kept if isinstance(kept, int) else len(kept)


def _has_version(ops: Ops, row: int) -> bool:
    return ops.sources[int(ops.file[row])].version is not None


def bucket_of(path: str) -> str:
    """Name the part of a store that `path` is in: its bucket, of a URL scheme and host."""
    scheme, separator, rest = path.partition("://")
    if not separator or "/" in scheme:
        scheme, separator, rest = "", "", path
    return scheme + separator + rest.lstrip("/").partition("/")[0]


def beneath_folders(target: Any) -> Any:
    """Return the filesystem that is told what a ``dir``, of a ``dir`` even, is asked."""
    from fsspec.implementations.dirfs import DirFileSystem  # noqa: PLC0415

    while isinstance(target, DirFileSystem):
        target = target.fs
    return target


def wrapped_filesystems(target: Any) -> list[Any]:
    """Return the filesystems that `target` holds."""
    from fsspec import AbstractFileSystem  # noqa: PLC0415

    held = []
    for value in vars(target).values():
        inner = value.values() if isinstance(value, dict) else [value]
        held += [fs for fs in inner if isinstance(fs, AbstractFileSystem)]
    return held
