"""What exists once in a process: engines, the loop thread, worker threads, and their end.

* An `Engine` (a hub with its budget and limits) for each pair of process-wide limits in use. Ordinarily
  that is one: the limits come from the environment. A filesystem constructed with limits of its own gets an
  engine of its own.
* A `Channel` for each wrapped filesystem, mode and engine: its backend and the driver that drives it.
  Filesystem instances of one target share it, so chaining and pickling make no second scheduler. The channel
  of a folder of a store is the store's, but for the paths.

After a fork the child starts afresh (`_forget`): threads, loops and locks of the parent do not exist there.
The runtime is never pickled.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
import weakref
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.backends import registry
from headrace.backends._folders import beneath_plain_folders, in_folder
from headrace.backends.abc import AsyncBackend, Backend, BulkBackend, InlineBackend, ThreadedBackend
from headrace.core.hedge import Hedge
from headrace.core.link import Link
from headrace.core.retry import Retries
from headrace.core.room import Calls, Limits
from headrace.core.series import SeriesLimits
from headrace.core.window import Window
from headrace.drivers import bulk, interrupts
from headrace.drivers.asynchronous import CLOSE_S, AsyncDriver
from headrace.drivers.asynchronous_lite import LiteAsyncDriver
from headrace.drivers.bulk import BulkDriver
from headrace.drivers.copies import Copies
from headrace.drivers.engine import Engine
from headrace.drivers.inline import LiteDriver, LoopDriver
from headrace.drivers.loop import Dispatcher, LoopThread
from headrace.drivers.permit import Permit, call_permitted
from headrace.drivers.threaded import ThreadedDriver
from headrace.drivers.turns import Turns
from headrace.drivers.workers import Pools, Workers
from headrace.errors import BackendError
from headrace.limits import soft_limit
from headrace.redact import redact_record
from headrace.tails import Tails
from headrace.threads import after_fork_in_child
from headrace.types import TRY_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.core.hub import TraceSink
    from headrace.core.request import Request
    from headrace.core.scheduler import Scheduler
    from headrace.drivers.driver import Driver
    from headrace.settings import Settings

T = TypeVar("T")

_METADATA = Permit(0, "metadata")

QUICK_BYTES = 64 << 10
"""Copies of up to this many bytes are short enough to be made with the GIL and the lock held."""

DISK_WORKERS = 8
"""Threads that wait for a disk on behalf of the loop thread, of each device."""

NATIVE = "obstore"
"""Name of the native cloud engine's backend."""

_BUCKETS = 4
"""Of the native engine, whose connections may together use up the descriptors of a process."""

_OF_A_LOOP = 3
"""Descriptors of an event loop: a call may need one of its own."""

_log = logging.getLogger("headrace")
_log.addFilter(redact_record)  # whatever the errors of other people's code say


@dataclass(slots=True, eq=False, weakref_slot=True)
class Channel:
    """The way from one wrapped filesystem to its storage."""

    backend: Backend
    driver: Driver
    engine: Engine
    mode: str
    settings: Settings
    turns: Turns
    copies: Copies
    quick_bytes: int = 0
    """Reads of up to so many bytes may be answered without a request, where that needs no waiting."""
    store: Channel | None = None
    """Of a folder that of its store, whose driver it shares, and which lives as long."""
    tails: Tails = field(init=False)
    series_limits: SeriesLimits = field(init=False)
    keeps_open: bool = field(init=False)
    """Whether what is read is opened, and not named by a path."""
    is_by_path: bool = field(init=False)
    """Whether what is read is an object of a store."""
    is_remote: bool = field(init=False)
    """Whether an op is a request to a store, which costs more than planning it."""
    is_guarded: bool = field(init=False)
    """Whether a call to the target must hold something that others may be holding."""
    max_op_bytes: int = field(init=False)
    """Longer reads are split into ops of this size."""
    short_op_bytes: int = field(init=False)
    """The same for reads that urgent ones may have to wait for."""
    urgent_op_bytes: int = field(init=False)
    """The same while urgent reads come."""

    def __post_init__(self) -> None:
        self.tails = Tails(self.settings.buffer_bytes)
        backend, chosen = self.backend, self.settings.max_op_bytes
        self.keeps_open = isinstance(backend, InlineBackend)
        self.is_by_path = isinstance(backend, (AsyncBackend, BulkBackend))
        self.is_remote = backend.defaults.window_ops > 0
        self.is_guarded = not isinstance(backend.guard(), contextlib.nullcontext)
        self.max_op_bytes = chosen or backend.defaults.max_op_bytes
        self.short_op_bytes = chosen or backend.defaults.short_op_bytes or self.max_op_bytes
        self.urgent_op_bytes = chosen or backend.defaults.series_op_bytes or self.short_op_bytes
        self.series_limits = SeriesLimits(
            backend.series_ops if isinstance(backend, InlineBackend) else 1,
            self.short_op_bytes,
            self.urgent_op_bytes,
            backend.defaults.window_bytes,
            self.most_ops,
        )

    @property
    def io_parallelism(self) -> int:
        """Ops in flight to one device, at the most."""
        return _io_parallelism(self.backend, self.settings)

    @property
    def most_ops(self) -> int:
        """The same, with the limit of the process."""
        return min(self.io_parallelism, self.engine.hub.process_io_limit or self.io_parallelism)

    @property
    def max_gap_bytes(self) -> int:
        """Ranges no further apart than this are read as one op."""
        chosen = self.settings.max_gap_bytes
        return self.backend.defaults.max_gap_bytes if chosen is None else chosen

    def op_bytes(self, path: str) -> int:
        """Size of the ops of a read that is planned now."""
        is_urgent = self.urgent_op_bytes < self.max_op_bytes and self.scheduler(path).room.expects_urgent
        return self.urgent_op_bytes if is_urgent else self.max_op_bytes

    def shorten_turns(self) -> None:
        """Have other Python threads give up the GIL sooner for a while, since somebody reads."""
        self.turns.shorten(self.settings.switch_interval_s)

    def exclusively(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call what is no read of the target, holding what must be held (see `backends.fsspec_sync`).

        An interrupt ends the wait for it, also on Arrow's threads.
        """
        if not self.is_guarded:
            return function(*args, **kwargs)
        # Reads that the target makes through headrace meanwhile run at once: an op that holds the process's
        # only permit may be waiting for the lock which is held here.
        guard = self.backend.guard()
        answer: T = interrupts.call_holding(guard, call_permitted, _METADATA, function, *args, **kwargs)
        return answer

    def scheduler(self, path: str) -> Scheduler:
        """Return the scheduler of the device or store that `path` is on."""
        device = self.backend.device(path)
        found = self.engine.hub.schedulers.get(device)
        if found is not None:
            return found
        with self.engine.lock, self.engine as hub:
            scheduler = hub.scheduler(device, self._limits(), self._retries())
            if self.settings.hedge and scheduler.hedge is None:
                scheduler.hedge = Hedge(self.settings.hedge)
            return scheduler

    def _limits(self) -> Limits:
        return Limits(
            window=self._window(),
            counts_ops=self.backend.defaults.window_ops > 0,
            max_in_flight_ops=self.io_parallelism,
            max_grant_ops=_max_grant_ops(self.backend),
            calls=_calls(self.backend),
            link=self._link(),
        )

    def _link(self) -> Link | None:
        # No other backend's attempts run out of time.
        return Link(self.settings.try_timeout_s or TRY_TIMEOUT_S) if self.is_by_path else None

    def _retries(self) -> Retries:
        chosen = self.settings.retries
        return Retries() if chosen is None else Retries(chosen)

    def _window(self) -> Window | None:
        defaults = self.backend.defaults
        if defaults.window_ops:
            most = self.io_parallelism
            initial = min(defaults.window_ops, most)
            # Beside threads that compute now and then, trials find too small a limit at times: latency alone
            # takes no more than half of the first one. A store that throttles may take all but one request.
            return Window(initial=initial, least=(initial + 1) // 2, most=most)
        if defaults.window_bytes:
            initial = defaults.window_bytes
            return Window(initial=initial, least=min(self.urgent_op_bytes, initial), most=1 << 30)
        return None


def _io_parallelism(backend: Backend, settings: Settings) -> int:
    """Return how many ops may be in flight: of the native engine each has a connection."""
    most = settings.io_parallelism or backend.defaults.io_parallelism
    if settings.io_parallelism or not isinstance(backend, BulkBackend):
        return most
    return min(most, _descriptors_of_a_bucket())


def _calls(backend: Backend) -> Calls | None:
    """Return how calls are made, and as many as may run an event loop each."""
    if not isinstance(backend, BulkBackend):
        return None
    most = min(bulk.MOST_CALLS, max(_descriptors_of_a_bucket() // _OF_A_LOOP, 2))
    return Calls(most, backend.least_call_ops, backend.least_call_bytes, backend.max_call_bytes)


def _descriptors_of_a_bucket() -> int:
    descriptors = soft_limit("RLIMIT_NOFILE")
    return 1 << 30 if descriptors is None else max(descriptors // _BUCKETS, 1)


def _max_grant_ops(backend: Backend) -> int:
    if isinstance(backend, BulkBackend):
        return backend.max_grant_ops
    return 1 << 30 if isinstance(backend, InlineBackend) else 1


class Runtime:
    """Everything of headrace that a process has once."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._engines: dict[tuple[int, int], Engine] = {}
        self._channels: weakref.WeakValueDictionary[tuple[Any, ...], Channel] = weakref.WeakValueDictionary()
        self._loop_thread: LoopThread | None = None
        self._dispatcher = Dispatcher()
        self._disk_workers = Pools(DISK_WORKERS, "headrace-disk")
        self.turns = Turns(self.is_reading)
        self.copies = Copies()
        self._traces: tuple[TraceSink, ...] = ()

    @property
    def engines(self) -> list[Engine]:
        """The engines in use."""
        return list(self._engines.values())

    @property
    def channels(self) -> list[Channel]:
        """The channels in use."""
        return list(self._channels.values())

    def is_reading(self) -> bool:
        """Whether an op is in flight."""
        return any(engine.hub.in_flight_ops for engine in self.engines)

    def add_trace(self, sink: TraceSink) -> None:
        """Have every engine's events go to `sink`, too."""
        with self._lock:
            self._trace_to((*self._traces, sink))

    def remove_trace(self, sink: TraceSink) -> None:
        """End what `add_trace` began."""
        with self._lock:
            self._trace_to(tuple(one for one in self._traces if one != sink))

    def _trace_to(self, sinks: tuple[TraceSink, ...]) -> None:
        self._traces = sinks
        for engine in self.engines:
            engine.hub.trace = _all_of(sinks)

    def engine(self, settings: Settings) -> Engine:
        """Return the engine with these process-wide limits."""
        limit = 1 if settings.serialize else settings.process_io_limit
        key = (settings.buffer_bytes, limit)
        with self._lock:
            if key not in self._engines:
                self._engines[key] = Engine(buffer_bytes=key[0], process_io_limit=limit)
                self._engines[key].hub.trace = _all_of(self._traces)
            return self._engines[key]

    def channel(self, target: Any, settings: Settings) -> Channel:
        """Return the way to read `target` under `settings`, made the first time.

        Raises
        ------
        BackendError
            No backend serves it, or the settings ask for one which is not there.
        """
        key = (id(target), settings)
        with self._lock:
            found = self._channels.get(key)
            if found is None:
                found = self._channels[key] = self._make(target, settings)
                if found.store is None:
                    # Not at exit: `close` does it then, in its order.
                    weakref.finalize(found, _dispose, found.driver).atexit = False
            return found

    def _make(self, target: Any, settings: Settings) -> Channel:
        if settings.log is not None:
            _log.setLevel(settings.log)
        found = self._in_folder(target, settings)
        if found is not None:
            return found
        backend = registry.backend_for(target, _excluded(settings), wanted=settings.local_backend)
        _check_engine(backend, settings)
        backend.configure(**{name: getattr(settings, name) for name in backend.options})
        if settings.hedge and isinstance(backend, BulkBackend):
            backend = backend.singly() or backend
        mode = backend.defaults.mode if settings.scheduler == "auto" else settings.scheduler
        driver = self._driver(backend, mode, settings)
        is_quick = isinstance(backend, InlineBackend) and type(backend).probe is not InlineBackend.probe
        quick_bytes = min(QUICK_BYTES, settings.max_op_bytes or QUICK_BYTES) if is_quick else 0
        return Channel(
            backend,
            driver,
            self.engine(settings),
            mode,
            settings,
            self.turns,
            self.copies,
            quick_bytes=quick_bytes,
        )

    def _in_folder(self, target: Any, settings: Settings) -> Channel | None:
        """Return the channel of a folder of a store, which is the store's but for the paths."""
        beneath = beneath_plain_folders(target)
        if beneath is target:
            return None
        store = self.channel(beneath, settings)
        backend = in_folder(target, store.backend)
        return None if backend is None else replace(store, backend=backend, store=store)

    def _driver(self, backend: Backend, mode: str, settings: Settings) -> Driver:
        if isinstance(backend, InlineBackend):
            looped = LoopDriver(self._dispatcher, self._disk_workers)
            return LiteDriver(looped) if mode == "lite" else looped
        if isinstance(backend, ThreadedBackend):
            return ThreadedDriver(Workers(_io_parallelism(backend, settings), "headrace-read"))
        if isinstance(backend, BulkBackend):
            workers = Workers(bulk.MOST_THREADS, "headrace-read", bulk.IDLE_S)
            return BulkDriver(workers, is_lite=mode == "lite")
        if isinstance(backend, AsyncBackend):
            if mode == "lite" and backend.foreign_loop is None:
                return LiteAsyncDriver(backend, LoopThread("headrace-keeper"), settings.try_timeout_s)
            return AsyncDriver(backend, self.loop_thread(), settings.try_timeout_s)
        msg = f"backend {type(backend).__name__} is of none of the four kinds"
        raise BackendError(msg)

    def loop_thread(self) -> LoopThread:
        """Return the process's loop thread; it starts when it is first called."""
        with self._lock:
            if self._loop_thread is None:
                self._loop_thread = LoopThread()
            return self._loop_thread

    def keep_for_ever(self) -> None:
        """In a forked child: never free the parent's sessions, which cannot be closed here and say so."""
        for channel in self.channels:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(channel.driver))

    def close(self, error: BaseException) -> None:
        """Fail what is pending, close sessions and stop the loops."""
        for engine in self.engines:
            with engine.lock, engine as hub:
                hub.close(error)
        drivers = {channel.driver for channel in self.channels if isinstance(channel.driver, AsyncDriver)}
        for driver in drivers:
            driver.close_at_exit()
        deadline_s = monotonic() + CLOSE_S
        for driver in drivers:
            driver.closed.wait(max(deadline_s - monotonic(), 0))
        self._dispatcher.close()
        if self._loop_thread is not None:
            self._loop_thread.close()


def _all_of(sinks: tuple[TraceSink, ...]) -> TraceSink | None:
    """Make one sink of several."""
    if len(sinks) <= 1:
        return sinks[0] if sinks else None

    def record(event: str, request: Request, lo: int, hi: int, now: float) -> None:
        for sink in sinks:
            sink(event, request, lo, hi, now)

    return record


def _excluded(settings: Settings) -> frozenset[str]:
    """Name the backends that the settings do without."""
    found = {"uring"} if settings.local_backend == "pread" else set()
    if settings.cloud_engine == "fsspec":
        found.add(NATIVE)
    return frozenset(found)


def _check_engine(backend: Backend, settings: Settings) -> None:
    """Raise where the native engine was asked for and cannot be had: nothing else shall read then."""
    if settings.cloud_engine != NATIVE or backend.name == NATIVE:
        return
    why = registry.refusal(NATIVE, backend.target)
    if why is not None:
        msg = f"cloud_engine={NATIVE!r} cannot read this filesystem: {why}; use 'auto' or 'fsspec'"
        raise BackendError(msg)


def engine_reason(channel: Channel) -> str:
    """Say why a cloud engine reads and not the other; nothing for what is no object store."""
    backend, chosen = channel.backend, channel.settings.cloud_engine
    if backend.name == NATIVE:
        left_out = backend.left_out()
        return "the filesystem's options translate exactly" + (f", but {left_out}" if left_out else "")
    if chosen == "fsspec" and registry.concerns(NATIVE, backend.target):
        return "cloud_engine is 'fsspec'"
    why = registry.refusal(NATIVE, backend.target)
    if why is None and registry.concerns(NATIVE, backend.target):
        why = "it could not be used when this filesystem was made"
    return "" if why is None else f"not {NATIVE}: {why}"


def _dispose(driver: Driver) -> None:
    """Close what an async backend opened on a loop of ours, and the loop if it is its own."""
    if isinstance(driver, AsyncDriver):
        with contextlib.suppress(RuntimeError):  # no thread can be started
            driver.close()


_current: Runtime | None = None
_guard = threading.RLock()


def runtime() -> Runtime:
    """Return this process's runtime."""
    global _current  # noqa: PLW0603
    found = _current
    if found is None:
        with _guard:
            if _current is None:
                _current = Runtime()
            found = _current
    return found


@after_fork_in_child
def forget() -> None:
    """Start afresh: in a forked child, where the parent's threads and locks do not exist."""
    global _current, _guard  # noqa: PLW0603
    parents, _current = _current, None
    _guard = threading.RLock()
    if parents is not None:
        parents.turns.forget()
        parents.keep_for_ever()
