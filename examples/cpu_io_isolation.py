"""Requests that should take 50 ms, beside Python code that computes: which of them wait for it.

The store answers after 50 ms, from a process of its own. Two tasks on an event loop compute in slices of
50 ms, and so does one more thread. A read is due every 50 ms, an upload every 250 ms, and the cost of each
counts from when it was due. Five ways to have computing and requests in one program:

* *one loop*: the tasks that compute and the requests share an event loop.
* *shared client*: requests have a loop of their own, but the client and its connections belong to the loop
  that computes. Whoever awaits a response, a connection is served by the loop that it was made on.
* *no reuse*: a loop and a client of their own, and a new connection for each request.
* *headrace, fsspec*: reads through s3fs on a loop that only headrace uses. The GIL is all they share.
* *headrace, obstore*: reads through a native engine, which takes the GIL once a call.

Under headrace uploads go through the wrapped s3fs, whose loop and connections the reads do not use.

Run it with ``python examples/cpu_io_isolation.py --out timeline.png``. It follows an experiment of CeresDB's
authors with the runtimes of Tokio.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, Self

import aiohttp
from matplotlib.figure import Figure

import headrace
from headrace.errors import HeadraceError
from headrace.testing import Faults, ObjectServerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

LATENCY_S = 0.05
SLICE_S = 0.05
TASKS = 2
READ_EVERY_S = 0.05
UPLOAD_EVERY_S = 0.25
READ_BYTES = 64 << 10
UPLOAD_BYTES = 256 << 10
BUCKET = "mill"
TABLE = bytes(range(256)) * (16 << 10)


@dataclass(frozen=True, slots=True)
class Request:
    """A read or an upload, and when it is due, in seconds after the start."""

    kind: str
    number: int
    due_s: float

    @property
    def start(self) -> int:
        """Where a read begins."""
        return self.number * READ_BYTES % (len(TABLE) - READ_BYTES) + self.number

    @property
    def body(self) -> bytes:
        """What a read must find, or an upload brings."""
        if self.kind == "read":
            return TABLE[self.start : self.start + READ_BYTES]
        return self.number.to_bytes(4) * (UPLOAD_BYTES // 4)


@dataclass(frozen=True, slots=True)
class Done:
    """A request that was answered."""

    request: Request
    cost_s: float


@dataclass(slots=True)
class Store:
    """The object store, as the variants reach it; `prefix` is where a variant's uploads go."""

    server: ObjectServerProcess
    prefix: str = ""

    def key(self, request: Request) -> str:
        """Return the key that a request is about."""
        return "table" if request.kind == "read" else f"{self.prefix}/{request.number}"

    def url(self, request: Request) -> str:
        """Return its address."""
        return f"{self.server.url}/{BUCKET}/{self.key(request)}"


class Clock:
    """Seconds since the start, which is a moment after the clock was made."""

    def __init__(self) -> None:
        self._start = perf_counter() + 0.1

    def now_s(self) -> float:
        """Return the time."""
        return perf_counter() - self._start

    def left_s(self, request: Request) -> float:
        """Return how long it is until a request is due."""
        return max(0.0, request.due_s - self.now_s())

    def done(self, request: Request) -> Done:
        """Note that a request was answered."""
        return Done(request, self.now_s() - request.due_s)


# -- what computes


def compute(seconds: float) -> None:
    """Keep the GIL busy, as decoding in Python does."""
    end = perf_counter() + seconds
    while perf_counter() < end:
        sum(k * k for k in range(1000))


@contextlib.contextmanager
def computing_thread() -> Iterator[None]:
    """Compute on another thread."""
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            compute(SLICE_S)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


class Loop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the loop and wait for it, from outside."""
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()

    async def awaited(self, what: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on the loop and await it on another one."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(what, self._loop))

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Compute on the loop, and on a thread beside it."""
        is_over = threading.Event()

        async def work() -> None:
            while not is_over.is_set():
                compute(SLICE_S)
                await asyncio.sleep(0)

        tasks = [asyncio.run_coroutine_threadsafe(work(), self._loop) for _ in range(TASKS)]
        try:
            with computing_thread():
                yield
        finally:
            is_over.set()
            for task in tasks:
                task.result()


# -- requests through aiohttp


async def send(client: aiohttp.ClientSession, where: Store, request: Request) -> None:
    """Make one request and check its answer."""
    url = where.url(request)
    if request.kind == "upload":
        async with client.put(url, data=request.body, raise_for_status=True) as answer:
            await answer.read()
        return
    span = f"bytes={request.start}-{request.start + READ_BYTES - 1}"
    async with client.get(url, headers={"Range": span}, raise_for_status=True) as answer:
        assert await answer.read() == request.body


async def send_all(
    requests: Sequence[Request], sending: Callable[[Request], Coroutine[Any, Any, None]]
) -> list[Done]:
    """Make each request when it is due."""
    clock = Clock()

    async def send_one(request: Request) -> Done:
        await asyncio.sleep(clock.left_s(request))
        await sending(request)
        return clock.done(request)

    return await asyncio.gather(*map(send_one, requests))


@contextlib.contextmanager
def client_of(loop: Loop, **options: Any) -> Iterator[aiohttp.ClientSession]:
    """Make a client whose connections belong to `loop`."""

    async def make() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(**options))

    client = loop.run(make())
    try:
        yield client
    finally:
        loop.run(client.close())


def one_loop(where: Store, requests: Sequence[Request]) -> list[Done]:
    """Compute and make requests on one loop."""
    with Loop() as loop, client_of(loop) as client, loop.computing():
        return loop.run(send_all(requests, lambda request: send(client, where, request)))


def shared_client(where: Store, requests: Sequence[Request]) -> list[Done]:
    """Make requests on another loop, with the client of the one that computes."""
    with Loop() as busy, Loop() as quiet, client_of(busy) as client, busy.computing():
        return quiet.run(send_all(requests, lambda request: busy.awaited(send(client, where, request))))


def no_reuse(where: Store, requests: Sequence[Request]) -> list[Done]:
    """Make requests on another loop, each with a connection of its own."""
    with Loop() as busy, Loop() as quiet, client_of(quiet, force_close=True) as client, busy.computing():
        return quiet.run(send_all(requests, lambda request: send(client, where, request)))


# -- requests through headrace


def isolated(engine: str) -> Callable[[Store, Sequence[Request]], list[Done]]:
    """Make requests through headrace, from a thread for each."""

    def run(where: Store, requests: Sequence[Request]) -> list[Done]:
        fs = headrace.HeadraceFileSystem(
            target_protocol="s3", target_options=where.server.storage_options(), cloud_engine=engine
        )
        for kind in ("read", "upload"):  # sessions are made, which takes s3fs a moment
            send_through(fs, where, Request(kind, len(requests), 0.0))
        with Loop() as busy, busy.computing(), ThreadPoolExecutor(len(requests)) as threads:
            clock = Clock()

            def send_one(request: Request) -> Done:
                sleep(clock.left_s(request))
                send_through(fs, where, request)
                return clock.done(request)

            return list(threads.map(send_one, requests))

    return run


def send_through(fs: headrace.HeadraceFileSystem, where: Store, request: Request) -> None:
    """Make one request and check its answer."""
    path = f"{BUCKET}/{where.key(request)}"
    if request.kind == "upload":
        fs.pipe_file(path, request.body)
    else:
        assert fs.cat_file(path, start=request.start, end=request.start + READ_BYTES) == request.body


VARIANTS = {
    "one loop": one_loop,
    "shared client": shared_client,
    "no reuse": no_reuse,
    "headrace, fsspec": isolated("fsspec"),
    "headrace, obstore": isolated("obstore"),
}


# -- the experiment


def make_requests(reads: int, uploads: int) -> list[Request]:
    """Return the requests in the order in which they are due."""
    plan = [Request("read", k, k * READ_EVERY_S) for k in range(reads)]
    plan += [Request("upload", k, k * UPLOAD_EVERY_S) for k in range(uploads)]
    return sorted(plan, key=lambda request: request.due_s)


def check_uploads(where: Store, requests: Sequence[Request]) -> None:
    """Read back what was uploaded."""
    for request in requests:
        if request.kind == "upload":
            with urllib.request.urlopen(where.url(request)) as answer:  # noqa: S310 - our own server
                assert answer.read() == request.body


def run_variants(where: Store, requests: Sequence[Request]) -> dict[str, list[Done]]:
    """Run one variant after the other; an engine that is not here is left out."""
    found: dict[str, list[Done]] = {}
    for name, variant in VARIANTS.items():
        where.prefix = name.replace(", ", "-").replace(" ", "-")
        try:
            found[name] = variant(where, requests)
        except HeadraceError as error:
            print(f"{name}: not available: {error}")
            continue
        check_uploads(where, requests)
        for done in found[name]:
            request = done.request
            text = f"{request.kind:6} {request.number:3}  begins {request.due_s:6.3f} s"
            print(f"{name}: {text}  costs {done.cost_s:6.3f} s")
    return found


def show_summary(found: dict[str, list[Done]]) -> None:
    """Print what the requests of each variant cost."""
    print(f"\n{'':20}{'requests':>9}{'median':>10}{'worst':>10}")
    for name, all_done in found.items():
        for kind in ("read", "upload"):
            costs = [done.cost_s for done in all_done if done.request.kind == kind]
            median = statistics.median(costs)
            print(f"{name:20}{len(costs):3} {kind}s{median:8.3f} s{max(costs):8.3f} s")


def draw(found: dict[str, list[Done]], out: Path) -> None:
    """Draw a bar for each request, from when it was due to its answer."""
    figure = Figure(figsize=(11, 2 * len(found)), layout="constrained")
    figure.suptitle(f"requests that should take {LATENCY_S * 1e3:.0f} ms, beside code that computes")
    panels = figure.subplots(len(found), 1, sharex=True, squeeze=False).ravel()
    for panel, (name, all_done) in zip(panels, found.items(), strict=True):
        for row, done in enumerate(all_done):
            colour = "#d1495b" if done.request.kind == "upload" else "#30638e"
            panel.broken_barh([(done.request.due_s, done.cost_s)], (row, 0.9), facecolors=colour)
        panel.set_title(name, fontsize=9)
        panel.set_yticks([])
        panel.invert_yaxis()
    panels[-1].set_xlabel("seconds; reads blue, uploads red")
    figure.savefig(out, dpi=110)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def main() -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reads", type=_count, default=40, help="reads of each variant (default 40)")
    parser.add_argument("--uploads", type=_count, default=8, help="uploads of each variant (default 8)")
    default = Path(tempfile.gettempdir()) / "cpu_io_isolation.png"
    parser.add_argument("--out", type=Path, default=default, help="the timeline (default %(default)s)")
    given = parser.parse_args()
    requests = make_requests(given.reads, given.uploads)
    # A process of its own: the server's GIL is no part of the experiment.
    with ObjectServerProcess(faults=Faults(latency_s=LATENCY_S)) as server:
        server.put(BUCKET, "table", TABLE)
        found = run_variants(Store(server), requests)
    show_summary(found)
    draw(found, given.out)
    print(f"\nwritten: {given.out}")


if __name__ == "__main__":
    main()
