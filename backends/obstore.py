"""Object stores through obstore, the Python binding of Rust's object_store: native requests, in bulk calls.

A call of ``obstore.get_ranges`` makes its requests on threads of Rust's and takes the GIL once, so it is deaf
to what Python threads do. It answers for all of its ranges or for none, takes no version, merges ranges that
touch (which then fail together), and cannot be interrupted. So there are three ways to read:

* *bulk*: several short ops of one object, none of them touching (`apart`), where nothing failed lately;
* *one by one*, but at once: requests with options of their own (``If-Match``), awaited on a short-lived event
  loop. After a fault, and for the first ops of a version (see `headrace.backends._obstore_stores`);
* *alone*: an op by itself, in one call too: answer and body of a ``get`` take the GIL twice. A long one is
  copied as it comes, and goes on from where it broke.

What obstore cannot answer as the wrapped filesystem would (an error that no other attempt cures, a range past
the end, odd bounds, keys that it would normalise, objects that it decodes) is put to that filesystem itself
(I8). A bulk call does not show whether an object is encoded, so an op goes beside the first one on an object,
and calls that are made meanwhile wait for what it shows. A lone op that is the first on an object is read by
``get``, which shows it, and not by ``get_range``.

It serves only what translates exactly: `headrace.backends._obstore_client` says what that takes of a kind of
storage, and `refuses` why a filesystem is not served.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import threading
import weakref
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from typing_extensions import override

from headrace.backends import _faults
from headrace.backends import _obstore_faults as faults
from headrace.backends._obstore_azure import AzureClient
from headrace.backends._obstore_client import CONNECTIONS, Client, InexactError, is_over
from headrace.backends._obstore_gcs import GcsClient
from headrace.backends._obstore_http import HttpClient
from headrace.backends._obstore_requests import (
    CHUNK_BYTES,
    check_version,
    deliver_all,
    options_of,
    progress_of,
    range_of,
    receive,
    take,
)
from headrace.backends._obstore_s3 import S3Client
from headrace.backends._obstore_stores import BucketStore, Stores, is_forked
from headrace.backends.abc import (
    BulkBackend,
    Defaults,
    NoEndError,
    PathSource,
    Verdict,
    bucket_of,
    kept_in,
)
from headrace.errors import ObjectChangedError
from headrace.threads import after_fork_in_child
from headrace.types import TRY_TIMEOUT_S, UNKNOWN_LENGTH

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping

    from headrace.backends.abc import AsyncBackend
    from headrace.types import Int64Array, Ops


T = TypeVar("T")

LEAST_VERSION = (0, 11)
"""Of obstore: those before do not know all the options that translate."""

_NUMBERS = re.compile(r"\d+")

_CLIENTS: tuple[type[Client], ...] = (S3Client, GcsClient, AzureClient, HttpClient)


def _client_class(target: Any) -> type[Client] | None:
    """Return who translates an object store's filesystem, a subclass's included; None for all others."""
    modules = [f"{kind.__module__}." for kind in type(target).__mro__]
    for kind in _CLIENTS:
        if any(module.startswith(f"{kind.filesystems}.") for module in modules):
            return kind
    return None


class ObjectSource(PathSource):
    """An object, by bucket and key; without, where only the wrapped filesystem reads what the path names."""

    __slots__ = ("bucket", "is_file", "key")

    def __init__(self, path: str, place: tuple[str, str] | None, *, is_file: bool, **options: Any) -> None:
        super().__init__(path, **options)
        self.bucket: str | None = None
        self.key = ""
        if place is not None and not self.options:
            self.bucket, self.key = place
        self.is_file = is_file
        """Whether its reads are of one open file, and so of one version."""


class ObstoreBackend(BulkBackend):
    """Reads object stores for their fsspec filesystems, in bulk."""

    name: ClassVar[str] = "obstore"
    rank: ClassVar[int] = 20
    defaults: ClassVar[Defaults] = Defaults(
        # 34 calls of `obstore.get_ranges`, each of which has ten requests under way, and an eighth that is
        # kept for urgent reads.
        mode="standard",
        max_gap_bytes=128 << 10,  # this and the next one: measured, see docs/benchmarks.md
        max_op_bytes=8 << 20,
        io_parallelism=390,
        window_ops=390,
    )
    options: ClassVar[frozenset[str]] = frozenset({"try_timeout_s"})
    checks_versions = True

    def __init__(self, target: Any) -> None:
        super().__init__(target)
        self._client = client_of(target)
        self.is_s3fs = isinstance(self._client, S3Client)
        self.are_versions_unique = not isinstance(self._client, HttpClient)
        self._stores = Stores(self._client)
        self._asked: Any = None
        self._lock = threading.RLock()

    @override
    def configure(self, *, try_timeout_s: float | None = None, **options: Any) -> None:
        """Take the seconds that one request may last."""
        super().configure(**options)
        self._stores.try_timeout_s = try_timeout_s or TRY_TIMEOUT_S

    @classmethod
    @override
    def unavailable(cls) -> str | None:
        """Say that obstore is not installed, or too old."""
        if importlib.util.find_spec("obstore") is None:
            return "obstore is not installed (pip install 'headrace[obstore]')"
        found = metadata.version("obstore")
        if tuple(map(int, _NUMBERS.findall(found)[:2])) < LEAST_VERSION:
            least = ".".join(map(str, LEAST_VERSION))
            return f"obstore {found} is older than {least} (pip install 'headrace[obstore]')"
        return None

    @classmethod
    @override
    def serves(cls, target: Any) -> bool:
        """Whether the options of an object store's filesystem translate exactly."""
        return _client_class(target) is not None and cls.refuses(target) is None

    @classmethod
    @override
    def concerns(cls, target: Any) -> bool:
        """Whether it is an object store's filesystem."""
        return _client_class(target) is not None

    @classmethod
    @override
    def refuses(cls, target: Any) -> str | None:
        """Say why an object store's filesystem is not read by obstore."""
        if _client_class(target) is None:
            return None
        if is_forked():
            return "this process was forked from one that had obstore loaded, where its calls would hang"
        missing = cls.unavailable()
        if missing is not None:  # before the options, whose remedies help only where it is there
            return missing
        try:
            client_of(target)
        except InexactError as error:
            return str(error)
        return None

    @property
    @override
    def asked_loop(self) -> Any:
        """The loop of the instance that answers what obstore cannot: fsspec's own, whatever the target's."""
        from fsspec.asyn import get_loop  # noqa: PLC0415

        return get_loop()

    @override
    def device(self, path: str) -> Hashable:
        """Name the store: engine, class, options (endpoint and credentials among them) and bucket."""
        return (self.name, *self.store, bucket_of(path))

    @override
    def open(self, path: str, **options: Any) -> PathSource:
        """Return the object's name; nothing is asked of the store."""
        options.pop("as_file", None)
        is_file = "etag" in options
        is_compared = not self._client.takes_conditions
        place = self._client.split(path)
        return ObjectSource(path, place, is_file=is_file, is_compared=is_compared, **options)

    @override
    def open_end(self, path: str, nbytes: int) -> PathSource | None:
        """Open an object of S3: others have no such request, or tell no version."""
        place = self._client.split(path) if self.is_s3fs else None
        if place is None:
            return None
        return ObjectSource(path, place, is_file=True, is_end=True, bounds=(-nbytes, None))

    @override
    def version_of(self, info: Mapping[str, Any]) -> str | None:
        """Have the kind of storage say which of its texts is the version."""
        return self._client.version_of(info)

    @override
    def verdict(self, error: BaseException) -> Verdict:
        """Judge by what the store answered."""
        return error.verdict if isinstance(error, faults.StoreError) else _faults.verdict(error)

    @override
    def left_out(self) -> str | None:
        """Say which bucket the wrapped filesystem reads, though the options translate."""
        return self._stores.left_out()

    @override
    def kept_bytes(self, ops: Ops, row: int) -> int:
        """Count what came of a long op."""
        return kept_in(ops, row)

    @override
    def forget(self) -> None:
        """Forget which objects are encoded."""
        self._stores.forget_encodings()

    # -- reads

    @override
    def perform(self, ops: Ops, rows: Int64Array) -> None:
        """Perform `rows`, object by object."""
        files = ops.file[rows]
        if (files == files[0]).all():
            self._perform_object(ops, rows)
            return
        for file in np.unique(files).tolist():
            self._perform_object(ops, rows[files == file])

    def _perform_object(self, ops: Ops, rows: Int64Array) -> None:
        refused = progress_of(ops).refused  # made before `_s3fs` would note something of its own
        source: ObjectSource = ops.sources[int(ops.file[rows[0]])]
        if source.is_end:
            self._read_end(ops, int(rows[0]), source)
            return
        lengths = ops.length[rows]
        bucket = self._bucket(source, lengths[0])
        if bucket is None:
            self._ask(ops, rows)
            return
        if refused:
            rows = self._sound_out(ops, rows)
            lengths = ops.length[rows]
        empty = rows[lengths == 0]
        if len(empty):
            self._ask(ops, empty)
            rows = rows[lengths != 0]
        if not len(rows):
            return
        store = self._store(bucket, source, len(rows))
        if len(rows) == 1:
            self._alone(ops, int(rows[0]), bucket, source, store)
        elif store is None or bucket.wary_ops:
            self._one_by_one(ops, rows)
        else:
            self._bulk_apart(ops, rows, bucket, source, store)

    def _bucket(self, source: ObjectSource, length: int) -> BucketStore | None:
        """Return the store that reads an op of so many bytes, or None: the wrapped filesystem does."""
        bucket = None if source.bucket is None else self._stores.bucket(source.bucket)
        if bucket is None:
            return None
        if length == UNKNOWN_LENGTH:  # its answer is looked at whatever is known
            return None if range_of(source) is None else bucket
        return None if bucket.is_encoded(source.key) else bucket

    def _is_decoded(self, bucket: BucketStore, source: ObjectSource, answer: Any) -> bool:
        """Whether the wrapped filesystem would decode the body of an answer."""
        if not self._client.decodes:
            return False
        is_encoded = str(answer.attributes.get("Content-Encoding", "identity")) != "identity"
        bucket.note_encoding(source.key, is_encoded=is_encoded)
        return is_encoded

    def _is_unseen(self, bucket: BucketStore, source: ObjectSource) -> bool:
        """Whether an answer must be looked at to know if its body would be decoded."""
        return self._client.decodes and bucket.is_encoded(source.key) is None

    def _read_end(self, ops: Ops, row: int, source: ObjectSource) -> None:
        """Perform the op of a look at a file; whatever goes wrong, a plain look will say it."""
        import obstore  # noqa: PLC0415

        try:
            store = getattr(self._stores.bucket(str(source.bucket)), "store", None)  # none is an error here
            options = options_of(ops, row, source)
            take(ops, row, source, obstore.get(store, source.key, options=options))  # type: ignore[arg-type]
        except Exception:  # noqa: BLE001
            ops.fail(row, NoEndError(source.path))

    def _store(self, bucket: BucketStore, source: ObjectSource, n_ops: int) -> Any:
        """Return the store that answers with the right version whatever it is asked.

        None while the first answer is to tell the version, while too little of it was read for a store of its
        own, and where it is no condition: each answer must be looked at then.
        """
        if source.etag is None:
            return None if source.is_file else bucket.store
        key, etag = source.key, source.condition
        if etag is None:
            return None
        # To object stores conditions are part of their protocol; servers of files may not know any.
        is_asked = isinstance(self._client, HttpClient)
        heeds = partial(_heeds_conditions, bucket, key) if is_asked else lambda: True
        return self._stores.version(bucket, key, etag, n_ops, heeds)

    def _bulk_apart(
        self, ops: Ops, rows: Int64Array, bucket: BucketStore, source: ObjectSource, store: Any
    ) -> None:
        for some in apart(ops, rows):
            if is_touching(ops, some):
                self._one_by_one(ops, some)
            elif len(some) == 1:
                self._alone(ops, int(some[0]), bucket, source, store)
            else:
                self._bulk(ops, some, bucket, source, store)

    def _bulk(
        self, ops: Ops, rows: Int64Array, bucket: BucketStore, source: ObjectSource, store: Any
    ) -> None:
        is_unseen = self._is_unseen(bucket, source)
        # To look beside a call costs half as much as the call: of several at once one does.
        another = bucket.begin_look(source.key) if is_unseen else None
        try:
            if is_unseen and another is None:
                first, rows = rows[:1], rows[1:]
                found = self._look_beside(ops, first, rows, bucket, source, store)
            else:
                found = self._get_ranges(ops, rows, source, store)
        except Exception as error:  # noqa: BLE001 - judged by what it says
            fault = faults.fault_of(error, source.path)
            if fault is None:
                self._note_refusal(error, bucket)
                # Which of them it was is not said: each has its own answer, but for an answer to all.
                is_of_all = faults.is_of_credentials(error) or isinstance(error, FileNotFoundError)
                self._one_by_one(ops, self._ask_first(ops, rows) if is_of_all else rows)
                return
            bucket.note(0, has_failed=True)
            progress_of(ops).note(rows.tolist(), fault)
            for row in rows.tolist():
                ops.fail(row, fault)
            return
        if is_unseen:
            if another is not None:
                another.wait(self._stores.try_timeout_s)
            n_told = self._look_on(ops, rows, bucket, source)
            rows, found = rows[n_told:], found[n_told:]
        if is_unseen and bucket.is_encoded(source.key) is not False:
            self._one_by_one(ops, rows)
        else:
            deliver_all(ops, rows, found)

    def _look_on(self, ops: Ops, rows: Int64Array, bucket: BucketStore, source: ObjectSource) -> int:
        """Where the op that was looked at failed, read others alone until one tells; returns how many."""
        told = 0
        while told < len(rows) and bucket.is_encoded(source.key) is None:
            self._one_by_one(ops, rows[told : told + 1])
            told += 1
        return told

    def _look_beside(
        self,
        ops: Ops,
        looked: Int64Array,
        rows: Int64Array,
        bucket: BucketStore,
        source: ObjectSource,
        store: Any,
    ) -> list[Any]:
        """Make a bulk call, and read others by themselves meanwhile."""
        import obstore  # noqa: PLC0415

        try:
            call = partial(obstore.get_ranges_async, store, source.key, **_ranges(ops, rows))
            return _run(_beside(_each(self.read, ops, looked.tolist(), 1), call))
        finally:
            bucket.end_look(source.key)

    def _get_ranges(self, ops: Ops, rows: Int64Array, source: ObjectSource, store: Any) -> list[Any]:
        import obstore  # noqa: PLC0415

        return obstore.get_ranges(store, source.key, **_ranges(ops, rows))

    def _one_by_one(self, ops: Ops, rows: Int64Array) -> None:
        # As many at once as `get_ranges` has under way.
        _run(_each(self.read, ops, rows.tolist(), self.least_call_ops))

    async def read(self, ops: Ops, row: int) -> None:
        """Perform one op by a request of its own, on whatever loop runs; raises its error."""
        source: ObjectSource = ops.sources[int(ops.file[row])]
        if source.is_end:
            await self._await_end(ops, row, source)
            return
        length = int(ops.length[row])
        bucket = self._bucket(source, length)
        was_refused = row in progress_of(ops).refused
        if bucket is None or was_refused or length == 0:
            await self._ask_one(ops, row)
            return
        try:
            is_decoded = partial(self._is_decoded, bucket, source)
            is_answered = await receive(bucket.store_for(length), source, ops, row, is_decoded)
        except Exception as error:  # noqa: BLE001 - judged by what it says
            fault = await self._judged(ops, row, bucket, source, error)
            if fault is not None:
                try:
                    raise fault from None
                finally:
                    del fault  # its traceback has this frame, and so the memory of the read
            is_answered = False
        else:
            bucket.note(1, has_failed=False)
        if not is_answered:
            await self._ask_one(ops, row)

    async def _await_end(self, ops: Ops, row: int, source: ObjectSource) -> None:
        try:
            bucket: BucketStore = self._stores.bucket(str(source.bucket))  # type: ignore[assignment]
            is_decoded = partial(self._is_decoded, bucket, source)
            is_answered = await receive(bucket.store, source, ops, row, is_decoded)
        except Exception as error:
            raise NoEndError(source.path) from error
        if not is_answered:
            raise NoEndError(source.path)

    @override
    def singly(self) -> AsyncBackend:
        """Return what awaits each op by itself."""
        from headrace.backends._obstore_singly import SingleReads  # noqa: PLC0415

        return SingleReads(self)

    def _alone(self, ops: Ops, row: int, bucket: BucketStore, source: ObjectSource, store: Any) -> None:
        import obstore  # noqa: PLC0415

        length = int(ops.length[row])
        try:
            if store is not None and 0 < length <= CHUNK_BYTES and not self._is_unseen(bucket, source):
                start = int(ops.start[row])
                ops.deliver(row, memoryview(obstore.get_range(store, source.key, start=start, length=length)))
            else:
                whole = bucket.store_for(length)
                answer = obstore.get(whole, source.key, options=options_of(ops, row, source))
                if self._is_decoded(bucket, source, answer):
                    self._ask(ops, np.array([row]))
                else:
                    take(ops, row, source, answer)
        except Exception as error:  # noqa: BLE001 - judged by what it says
            fault = _run(self._judged(ops, row, bucket, source, error))
            if fault is None:
                self._ask(ops, np.array([row]))
            else:
                ops.fail(row, fault)
        else:
            bucket.note(1, has_failed=False)

    # -- failures

    async def _judged(
        self, ops: Ops, row: int, bucket: BucketStore, source: ObjectSource, error: BaseException
    ) -> OSError | None:
        """Note what an op's error means; return what it failed of; None: the wrapped filesystem says it."""
        if faults.is_another_version(error):
            now = await _version_now(bucket.store, source.key)
            error = ObjectChangedError(source.path, source.etag or "unknown", now)
        if isinstance(error, ObjectChangedError):
            self.target.invalidate_cache(source.path)  # or a listing would name the old version again
            bucket.forget_encoding(source.key)
            return error
        fault = faults.fault_of(error, source.path)
        if fault is None:
            self._note_refusal(error, bucket)
        else:
            bucket.note(0, has_failed=True)
            progress_of(ops).note([row], fault)
        return fault

    def _note_refusal(self, error: BaseException, bucket: BucketStore) -> None:
        """Forget what an error says is no longer so."""
        if bucket.options.is_signed and faults.is_of_old_credentials(error):
            self._stores.forget(bucket.options.bucket)
        elif faults.is_elsewhere(error):
            why = "the bucket is in another region than the one configured"
            self._stores.give_up(bucket.options.bucket, why)
        elif faults.is_unfit(error):
            self._stores.give_up(bucket.options.bucket, "its answers lack headers that obstore wants")

    def _sound_out(self, ops: Ops, rows: Int64Array) -> Int64Array:
        """Of ops that were refused (429, 503) ask the wrapped filesystem for one: its error has Retry-After.

        Where it is refused again, so are the others, unasked. Returns the ops that are left.
        """
        refused = progress_of(ops).refused
        known = refused.keys() & set(rows.tolist())
        if not known:
            return rows
        first = min(known)
        left = self._ask_first(ops, np.concatenate([[first], rows[rows != first]]))
        if first not in ops.errors:
            for row in known:
                refused.pop(row, None)
        return left

    def _ask_first(self, ops: Ops, rows: Int64Array) -> Int64Array:
        """Have the wrapped filesystem answer one op of an object; return those which that does not answer.

        That nobody may read it, or that there is none, is the answer of all.
        """
        first, rows = int(rows[0]), rows[1:]
        self._ask(ops, np.array([first]))
        error = ops.errors.get(first)
        is_refusal = isinstance(error, faults.StoreError) and error.is_refusal
        if error is not None and (is_refusal or isinstance(error, (PermissionError, FileNotFoundError))):
            for row in rows.tolist():
                ops.fail(row, error)
            return rows[:0]
        return rows

    def _ask(self, ops: Ops, rows: Int64Array) -> None:
        """Have the wrapped filesystem answer some ops, at once."""
        from fsspec.asyn import sync  # noqa: PLC0415

        sync(self._asker().loop, _each, self._asking, ops, rows.tolist(), CONNECTIONS)

    async def _ask_one(self, ops: Ops, row: int) -> None:
        """Have it answer one, awaited on whatever loop runs: cancelled, it may go on for a moment (I9)."""
        one = ops.alone(row)
        if (fault := progress_of(ops).refused.get(row)) is not None:
            progress_of(one).refused[0] = fault
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._asking(one, 0), self._asker().loop))
        ops.take(row, one)

    async def _asking(self, ops: Ops, row: int) -> None:
        is_long = int(ops.length[row]) == UNKNOWN_LENGTH
        try:
            async with asyncio.timeout(None if is_long else self._stores.try_timeout_s):
                await self._client.ask(self._asker(), ops, row)
                await self._check_asked(ops, row)
        except Exception as error:
            if isinstance(error, ObjectChangedError):
                self.target.invalidate_cache(error.path)  # or a listing would name the old version again
            _raise_again(progress_of(ops).refused.get(row), _faults.verdict(error))
            raise

    async def _check_asked(self, ops: Ops, row: int) -> None:
        """Check the version after an answer of the wrapped filesystem, where that looks at none itself."""
        import obstore  # noqa: PLC0415

        source: ObjectSource = ops.sources[int(ops.file[row])]
        if self._client.asks_for_versions or source.etag is None or source.bucket is None:
            return
        bucket = self._stores.bucket(source.bucket)
        if bucket is None:
            return  # nothing is native here, so its versions are left to that filesystem as well
        try:
            check_version(source, (await obstore.head_async(bucket.store, source.key))["e_tag"])
        except Exception as error:  # noqa: BLE001 - judged by what it says
            changed = partial(ObjectChangedError, source.path, source.etag)
            unknown = f"unknown ({type(error).__name__})"
            raise await self._judged(ops, row, bucket, source, error) or changed(unknown) from None

    def _asker(self) -> Any:
        """Return an instance of the wrapped filesystem that any thread may call."""
        with self._lock:
            if self._asked is None:
                self._asked = self._client.asker(self.target)
            return self._asked


def _ranges(ops: Ops, rows: Int64Array) -> dict[str, Any]:
    return {"starts": ops.start[rows].tolist(), "lengths": ops.length[rows].tolist(), "coalesce": 0}


async def _each(
    perform: Callable[[Ops, int], Awaitable[None]], ops: Ops, rows: list[int], at_once: int
) -> None:
    """Perform some ops, each with an answer of its own (I10)."""
    free = asyncio.Semaphore(at_once)

    async def one(row: int) -> None:
        async with free:
            try:
                await perform(ops, row)
            except Exception as error:  # noqa: BLE001 - the op's own
                ops.fail(row, error)

    await asyncio.gather(*map(one, rows))


async def _beside(look: Awaitable[None], call: Callable[[], Awaitable[T]]) -> T:
    """Await a call, and something else meanwhile."""
    looking = asyncio.ensure_future(look)
    try:
        return await call()
    finally:
        await looking


def _run(what: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop of its own, and leave alone which loop the thread has set.

    Where that thread runs one (a nested read is performed where it came from) another thread runs this.
    """
    if asyncio._get_running_loop() is None:  # noqa: SLF001
        return _run_here(what)
    answer: Future[T] = Future()
    context = copy_context()

    def run() -> None:
        try:
            answer.set_result(context.run(_run_here, what))
        except BaseException as error:  # noqa: BLE001 - the waiter's
            answer.set_exception(error)

    threading.Thread(target=run, name="headrace-nested", daemon=True).start()
    return answer.result()


def _run_here(what: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(what)


def _raise_again(fault: faults.StoreError | None, verdict: Verdict) -> None:
    """Raise the fault of an op that was refused, and is again, with what the store says now."""
    if fault is not None and verdict.is_throttled:
        fault.verdict = verdict
        try:
            raise fault from None
        finally:
            del fault  # its traceback has this frame


def apart(ops: Ops, rows: Int64Array) -> list[Int64Array]:
    """Share ranges that touch out to two calls, every other one to each: obstore would merge them."""
    if not is_touching(ops, rows):
        return [rows]
    starts = ops.start[rows].tolist()
    in_order = np.array([row for _, row in sorted(zip(starts, rows.tolist(), strict=True))])
    return [in_order[::2], in_order[1::2]]


def is_touching(ops: Ops, rows: Int64Array) -> bool:
    """Whether any of the ranges touch or overlap.

    In Python: NumPy gives the GIL up to sort, even so few.
    """
    reach = -1
    for start, length in sorted(zip(ops.start[rows].tolist(), ops.length[rows].tolist(), strict=True)):
        if start <= reach:
            return True
        reach = start + length
    return False


def _heeds_conditions(bucket: BucketStore, key: str) -> bool:
    """Whether the store reads no other version than is asked for: it is asked for one that is none."""
    import obstore  # noqa: PLC0415

    if bucket.may_ask_for_conditions(key):
        try:
            obstore.get(bucket.store, key, options={"range": (0, 1), "if_match": '"headrace"'})
        except Exception as error:  # noqa: BLE001 - judged by what it says; of others a read will tell
            if faults.is_another_version(error):
                bucket.heeds_conditions = True
            elif faults.is_of_one_object(error):
                bucket.note_unclear(key)
            elif faults.fault_of(error, key) is None and not isinstance(error, FileNotFoundError):
                bucket.heeds_conditions = False  # it would answer so the next time, too
        else:
            bucket.heeds_conditions = False
    return bool(bucket.heeds_conditions)


async def _version_now(store: Any, key: str) -> str:
    import obstore  # noqa: PLC0415

    try:
        return str((await obstore.head_async(store, key))["e_tag"])
    except Exception as error:  # noqa: BLE001 - only for the message
        return f"unknown ({type(error).__name__})"


_clients: dict[int, tuple[weakref.ref[Any], Client | InexactError]] = {}
"""Of filesystems by id, or why there is none: an error's traceback would keep the filesystem."""
_clients_lock = threading.RLock()


def client_of(target: Any) -> Client:
    """Return the translation of a filesystem's options, made the first time.

    Raises
    ------
    InexactError
        There is none.
    """
    with _clients_lock:
        known = _clients.get(id(target))
        if known is None or known[0]() is not target or is_over(known[1]):
            found = _remember(target)
        else:
            found = known[1]
    if isinstance(found, Client):
        return found
    raise InexactError(str(found))


def _remember(target: Any) -> Client | InexactError:
    kind = _client_class(target)
    assert kind is not None, "asked of object stores' filesystems alone"  # noqa: S101
    found: Client | InexactError
    try:
        found = kind(target)
    except InexactError as error:
        found = error.with_traceback(None)
        found.__cause__ = found.__context__ = None  # whose frames have the target, which is not to be kept
    except OSError as error:  # no matter of the options, and perhaps over soon
        return InexactError(f"its options cannot be looked at now ({error.strerror or type(error).__name__})")
    except Exception as error:  # noqa: BLE001 - what it cannot make sense of, the filesystem may
        found = InexactError(f"its options do not translate ({type(error).__name__})")
    number = id(target)
    _clients[number] = (weakref.ref(target, lambda _: _clients.pop(number, None)), found)
    return found


@after_fork_in_child
def _forget_clients() -> None:
    """In a forked child: the lock's holder may not exist there."""
    global _clients_lock  # noqa: PLW0603
    _clients_lock = threading.RLock()
    _clients.clear()
