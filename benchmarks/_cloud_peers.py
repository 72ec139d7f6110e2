"""The contenders of `cloud.py`: ways to read ranges of an object over HTTP.

All of them sign with the same keys and speak to the same endpoint. Each peer has the configuration that
was fastest for it here:

* s3fs: a pool of 64 and one of 128 connections. 64 is better beside busy threads, 128 idle.
* pyarrow: its S3 client keeps as many connections as Arrow has I/O threads *when it is made*, at least 25.
  So besides the filesystem as it comes (64 threads read, 25 connections) there is one with 128 of both.
* obstore: its fsspec filesystem as it comes (it coalesces over gaps of 1 MiB and has no option not to); one
  bulk `get_ranges`; 12 threads with bulk calls, 10 ranges in each; and 64 coroutines.

headrace reads single ranges with `max_gap_bytes=0`, so that it sends a request for each as the others do;
datasets it reads as it comes.

*Versions.* An open file's ranges are checked to be of one version, whether one call asks for many ("one open
file") or each of many threads for one at a time ("open files"), and so are those of one call by path on the
s3fs engine. By path the native engine takes each range from whatever version the object then has, as the
peers do. What its check costs is told by the same calls of the same open files without it ("unchecked").
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import obstore
import pyarrow as pa
import pyarrow.fs
import s3fs
from _bench import Contender, Took
from obstore.fsspec import FsspecStore
from obstore.store import S3Store

from headrace import HeadraceFileSystem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REGION = "us-east-1"
KEYS = ("benchmark", "not-a-secret")
ENGINES = ("obstore", "fsspec")
NATIVE = "headrace obstore"
MODES = {"": "auto", ", lite": "lite"}
S3FS_POOLS = (64, 128)
OPEN_FILES_OF_S3FS = "s3fs open files"
"""Not one of the ways in which s3fs is at its best by path."""
ARROW_THREADS = 128
BULK_THREADS = 12
BULK_RANGES = 10
COROUTINES = 64
OPEN_FILES = 64


@dataclass(frozen=True, slots=True)
class Clients:
    """Every filesystem of the comparison, made once, so that all cases use warm connections.

    Attributes
    ----------
    headrace
        By name: engine and mode, and what else differs from the default.
    fsspec
        Other fsspec filesystems.
    arrow
        pyarrow's, with the threads that read through each.
    store
        obstore's own, of the bucket.
    missing
        Contenders that are not here, and why.
    """

    endpoint: str
    bucket: str
    headrace: dict[str, HeadraceFileSystem] = field(default_factory=dict)
    fsspec: dict[str, Any] = field(default_factory=dict)
    arrow: dict[str, tuple[pyarrow.fs.S3FileSystem, int]] = field(default_factory=dict)
    store: Any = None
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def as_it_comes(self) -> dict[str, HeadraceFileSystem]:
        """One filesystem of headrace for each engine, in the mode that it prefers."""
        return {name: fs for name, fs in self.headrace.items() if "," not in name}

    @property
    def openers(self) -> dict[str, Callable[[str], Any]]:
        """What opens the files that are also read, by name: with versions checked, and without."""
        found: dict[str, Callable[[str], Any]] = {
            f"{name}, open files": partial(fs.open, cache_type="none")
            for name, fs in self.as_it_comes.items()
        }
        plain = self.fsspec[f"s3fs, {S3FS_POOLS[0]} connections"]
        found[OPEN_FILES_OF_S3FS] = partial(plain.open, cache_type="none")
        if NATIVE in self.as_it_comes:
            found[f"{NATIVE}, open files, unchecked"] = partial(open_unchecked, self.as_it_comes[NATIVE])
        return found


def make_clients(endpoint: str, bucket: str, name: str) -> Clients:
    """Return the filesystems; headrace's engines are tried on the object `name`."""
    options: dict[str, Any] = {"allow_http": True}
    access = {"access_key_id": KEYS[0], "secret_access_key": KEYS[1], "region": REGION}
    store = S3Store(bucket, endpoint=endpoint, client_options=options, **access)
    clients = Clients(endpoint, bucket, store=store)
    for engine in ENGINES:
        for suffix, mode in MODES.items():
            _add_headrace(clients, f"headrace {engine}{suffix}", name, scheduler=mode, cloud_engine=engine)
    for pool in S3FS_POOLS:
        clients.fsspec[f"s3fs, {pool} connections"] = s3fs.S3FileSystem(
            **s3_options(endpoint), config_kwargs={"max_pool_connections": pool}
        )
    clients.fsspec["obstore FsspecStore"] = FsspecStore(
        "s3", config={**access, "endpoint": endpoint}, client_options=options
    )
    clients.arrow["pyarrow S3"] = (_arrow(endpoint, pa.io_thread_count()), 64)
    clients.arrow[f"pyarrow S3, {ARROW_THREADS} connections"] = (
        _arrow(endpoint, ARROW_THREADS),
        ARROW_THREADS,
    )
    return clients


def s3_options(endpoint: str) -> dict[str, Any]:
    """Return what s3fs, and headrace around it, is told."""
    return {
        "key": KEYS[0],
        "secret": KEYS[1],
        "endpoint_url": endpoint,
        "client_kwargs": {"region_name": REGION},
    }


def _add_headrace(clients: Clients, name: str, path: str, **options: Any) -> None:
    """Add a headrace filesystem if it can read, else the reason why it cannot."""
    try:
        made = HeadraceFileSystem(
            target_protocol="s3", target_options=s3_options(clients.endpoint), max_gap_bytes=0, **options
        )
        made.cat_file(f"{clients.bucket}/{path}", start=0, end=1)
    except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
        clients.missing[name] = f"not available: {error}"
    else:
        clients.headrace[name] = made


def _arrow(endpoint: str, connections: int) -> pyarrow.fs.S3FileSystem:
    before = pa.io_thread_count()
    pa.set_io_thread_count(connections)
    try:
        return pyarrow.fs.S3FileSystem(
            access_key=KEYS[0],
            secret_key=KEYS[1],
            region=REGION,
            scheme="http",
            endpoint_override=endpoint.removeprefix("http://"),
        )
    finally:
        pa.set_io_thread_count(before)


def open_unchecked(fs: HeadraceFileSystem, path: str) -> Any:
    """Open a file whose reads are of no one version, as those by path are.

    No setting of headrace does that: with s3fs's `local_expiry_check` the answers are compared.
    """
    file = fs.open(path, cache_type="none")
    file._source = file._reader.channel.backend.open(file.path)  # noqa: SLF001
    return file


# -- many ranges at once


def rate_contenders(clients: Clients, name: str, nbytes: int, slow_share: float) -> Iterator[Contender]:
    """Read ranges of `nbytes` as fast as possible; slow ones do a part of them."""
    path = f"{clients.bucket}/{name}"
    for label, fs in {**clients.headrace, **clients.fsspec}.items():
        yield limited(label, _cat_ranges(fs, path, nbytes), slow_share if is_slow(label) else 1.0)
    for label, fs in clients.as_it_comes.items():
        read = _read_ranges(fs, fs.open(path), nbytes)
        yield limited(f"{label}, one open file", read, slow_share if is_slow(label) else 1.0)
    if NATIVE in clients.as_it_comes:
        fs = clients.as_it_comes[NATIVE]
        label = f"{NATIVE}, one open file, unchecked"
        yield limited(label, _read_ranges(fs, open_unchecked(fs, path), nbytes), 1.0)
    for label, open_file in clients.openers.items():
        share = slow_share if is_slow(label) else 1.0
        yield _open_files(label, partial(open_file, path), nbytes, share)
    for label, (fs, threads) in clients.arrow.items():
        yield _arrow_threads(label, fs.open_input_file(path), nbytes, threads)
    yield limited("obstore get_ranges", _get_ranges(clients.store, name, nbytes), slow_share)
    yield _obstore_threads(clients.store, name, nbytes)
    yield _obstore_coroutines(clients.store, name, nbytes)


def is_slow(label: str) -> bool:
    """Whether s3fs does the reads: then a part of them is enough for a rate."""
    return label.startswith(("s3fs", "headrace fsspec"))


def limited(
    label: str,
    run: Callable[[list[int]], Any],
    share: float,
    close: Callable[[], object] = lambda: None,
) -> Contender:
    """Return a contender that does a part of the input, the first of it."""
    return Contender(label, lambda starts: run(starts[: round(len(starts) * share)]), close, share)


def _cat_ranges(fs: Any, path: str, nbytes: int) -> Callable[[list[int]], list[bytes]]:
    def run(starts: list[int]) -> list[bytes]:
        ends = [start + nbytes for start in starts]
        found: list[bytes] = fs.cat_ranges([path] * len(starts), starts, ends, on_error="raise")
        return found

    return run


def _read_ranges(fs: HeadraceFileSystem, file: Any, nbytes: int) -> Callable[[list[int]], list[bytes]]:
    """Read ranges of an open file in one call; as `bytes`, like those of the others."""

    def run(starts: list[int]) -> list[bytes]:
        found: list[bytes] = fs.read_ranges(file, starts, [start + nbytes for start in starts]).to_pylist()
        return found

    return run


def _get_ranges(store: Any, name: str, nbytes: int) -> Callable[[list[int]], Any]:
    return lambda starts: obstore.get_ranges(
        store, name, starts=starts, lengths=[nbytes] * len(starts), coalesce=0
    )


def _obstore_threads(store: Any, name: str, nbytes: int) -> Contender:
    read = _get_ranges(store, name, nbytes)
    pool = ThreadPoolExecutor(BULK_THREADS)

    def run(starts: list[int]) -> list[Any]:
        parts = [starts[k : k + BULK_RANGES] for k in range(0, len(starts), BULK_RANGES)]
        return [piece for part in pool.map(read, parts) for piece in part]

    return Contender(f"obstore get_ranges, {BULK_THREADS} threads", run, pool.shutdown)


def _obstore_coroutines(store: Any, name: str, nbytes: int) -> Contender:
    runner = asyncio.Runner()

    async def read_all(starts: list[int]) -> list[Any]:
        slots = asyncio.Semaphore(COROUTINES)

        async def read(start: int) -> Any:
            async with slots:
                return await obstore.get_range_async(store, name, start=start, length=nbytes)

        return await asyncio.gather(*map(read, starts))

    return Contender(
        f"obstore, {COROUTINES} coroutines", lambda starts: runner.run(read_all(starts)), runner.close
    )


def _open_files(label: str, open_file: Callable[[], Any], nbytes: int, share: float) -> Contender:
    """Read from 64 threads, each with a file of its own."""
    mine = threading.local()

    def read(start: int) -> bytes:
        if not hasattr(mine, "file"):
            mine.file = open_file()
        found: bytes = _seek_and_read(mine.file, nbytes)(start)
        return found

    contender = _threads(label, read, OPEN_FILES, lambda: None)
    return limited(label, contender.run, share, contender.close)


def _seek_and_read(file: Any, nbytes: int) -> Callable[[int], Any]:
    def read(start: int) -> Any:
        file.seek(start)
        return file.read(nbytes)

    return read


def _arrow_threads(label: str, file: Any, nbytes: int, threads: int) -> Contender:
    return _threads(label, lambda start: file.read_at(nbytes, start), threads, file.close)


def _threads(
    label: str, read_one: Callable[[int], Any], threads: int, then: Callable[[], object]
) -> Contender:
    pool = ThreadPoolExecutor(threads)

    def read(start: int) -> tuple[Any, float]:
        began = perf_counter()
        return read_one(start), perf_counter() - began

    def run(starts: list[int]) -> Took:
        began = perf_counter()
        found = list(pool.map(read, starts))
        took = perf_counter() - began
        return Took(took, [each_s for _, each_s in found], [answer for answer, _ in found])

    def close() -> None:
        pool.shutdown()
        then()

    return Contender(label, run, close)


# -- one read after another


def single_contenders(clients: Clients, name: str, nbytes: int) -> Iterator[Contender]:
    """Read one range after another, each measured."""
    path = f"{clients.bucket}/{name}"
    for label, open_file in clients.openers.items():
        file = open_file(path)
        yield Contender(label, _each(_seek_and_read(file, nbytes)), file.close)
    filesystems = {**clients.as_it_comes, **clients.fsspec}
    del filesystems[f"s3fs, {S3FS_POOLS[1]} connections"]  # one connection is enough here
    for label, fs in filesystems.items():
        yield Contender(label, _each(_cat_file(fs, path, nbytes)))
    label = "pyarrow S3"
    file = clients.arrow[label][0].open_input_file(path)
    yield Contender(label, _each(lambda start: file.read_at(nbytes, start)), file.close)
    store = clients.store
    yield Contender(
        "obstore get_range",
        _each(lambda start: obstore.get_range(store, name, start=start, length=nbytes)),
    )


def _cat_file(fs: Any, path: str, nbytes: int) -> Callable[[int], Any]:
    return lambda start: fs.cat_file(path, start=start, end=start + nbytes)


def _each(read: Callable[[int], Any]) -> Callable[[list[int]], Took]:
    def run(starts: list[int]) -> Took:
        answers, each_s = [], []
        first = began = perf_counter()
        for start in starts:
            answers.append(read(start))
            now = perf_counter()
            each_s.append(now - began)
            began = now
        return Took(began - first, each_s, answers)

    return run


# -- datasets


def scan_filesystems(clients: Clients) -> dict[str, Any]:
    """Return the filesystems that `pyarrow.dataset` reads through."""
    options = s3_options(clients.endpoint)
    pool = {"max_pool_connections": S3FS_POOLS[0]}
    found: dict[str, Any] = {}
    for label, fs in clients.headrace.items():
        given = {name: value for name, value in fs.storage_options.items() if name != "max_gap_bytes"}
        found[label] = HeadraceFileSystem(**given)
        found[label].stats()  # its connections are there from now on, as those of the others
    found["s3fs"] = s3fs.S3FileSystem(**options, config_kwargs=pool)
    found["s3fs, cache none"] = s3fs.S3FileSystem(**options, config_kwargs=pool, default_cache_type="none")
    found["obstore FsspecStore"] = clients.fsspec["obstore FsspecStore"]
    return {**found, **{label: fs for label, (fs, _) in clients.arrow.items()}}
