"""A small object store for tests and demos, on the loopback device, that fails as it is told to.

`ObjectServer` speaks S3's dialect of HTTP (`_dialect.py`) about objects put into it (`_objects.py`) and
does to its requests what `Faults` or a script say (`_faults.py`). What it is for: exact, repeatable faults
and a log of what was really asked. What it is not: a reference for S3 (moto is), secure, or fast (a few
thousand requests a second, in competition with the client for the interpreter's lock).

Threading: each server has one thread with an event loop of its own, which serves all connections; a request
that waits holds up no other. All methods may be called from any thread, but those that say so not from a
script, which runs on the server's thread. After a fork the child lets go of its copies of the sockets, so
that the parent's server closes and resets connections as if it had not forked; the child's object is dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import sys
import threading
import time
import weakref
from concurrent.futures import Future
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote

from aiohttp import web
from multidict import CIMultiDict

from headrace.testing._dialect import Answer, Ask, S3Error, access_key_id, answer
from headrace.testing._faults import Fault, Faults
from headrace.testing._objects import Buckets, Stored
from headrace.testing._serving import (
    Sending,
    ServedRequest,
    client_port,
    new_secret,
    received,
    request_id,
    reset,
    socket_of,
    storage_options,
    wait_for,
)
from headrace.threads import after_fork_in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

_HOST = "127.0.0.1"
_BACKLOG = 1024


class ObjectServer:
    """A server of S3's dialect with faults, as a context manager.

    Parameters
    ----------
    faults
        What goes wrong at random; may be assigned to while the server runs.
    seed
        Of the generator that the faults are drawn from.
    access_key_ids
        Who may ask; None: everybody, unsigned requests too. Signatures are not verified.

    Attributes
    ----------
    faults : Faults
        In force for the requests that arrive from now on.
    script : callable or None
        Called with each `ServedRequest` on the server's thread before it is served. What it returns happens
        to the request instead of what `faults` would do; None leaves it to them. It must not wait. If it
        raises, the request is answered with 500 and `close` raises the error again.

    Examples
    --------
    >>> import fsspec
    >>> from headrace.testing import Faults, ObjectServer
    >>> with ObjectServer() as server:
    ...     _ = server.put("bucket", "key", b"0123456789")
    ...     fs = fsspec.filesystem("s3", **server.storage_options())
    ...     server.faults = Faults(slow_down_share=0.1)
    ...     fs.cat_file("bucket/key", start=2, end=4)
    b'23'
    """

    def __init__(
        self,
        *,
        faults: Faults | None = None,
        seed: int = 0,
        access_key_ids: Iterable[str] | None = None,
    ) -> None:
        self.faults = faults or Faults()
        self.script: Callable[[ServedRequest], Fault | None] | None = None
        self._generator = Random(seed)  # noqa: S311 - faults shall be repeatable
        self._access_key_ids = None if access_key_ids is None else frozenset(access_key_ids)
        self._expired: dict[str, int] = {}
        self._buckets = Buckets()
        self._log: list[ServedRequest] = []
        self._in_progress = self._most_in_progress = self._connections_made = 0
        self._failure: BaseException | None = None
        self._secret = new_secret()
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._reserved = _bound_socket(0)
        self._port: int = self._reserved.getsockname()[1]

    # Life

    def __enter__(self) -> Self:
        """Start the server, unless it runs."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Close it; the block's own error goes before a script's."""
        with contextlib.ExitStack() as stack:
            if error is not None:
                stack.enter_context(contextlib.suppress(Exception))
            self.close()

    def start(self) -> Self:
        """Listen, and return the server once it does."""
        if self._is_closed:
            raise RuntimeError("this server was closed")
        if self._thread is None:
            ready: Future[None] = Future()
            self._thread = threading.Thread(
                target=self._run, args=(ready,), name=f"headrace-objects-{self._port}", daemon=True
            )
            self._thread.start()
            ready.result()
            _running.add(self)
        return self

    def close(self) -> None:
        """Reset every connection, whatever is under way, and end the thread; may be called again.

        Raises
        ------
        Exception
            What a script raised, or what the server itself failed with.
        """
        if self._is_closed or os.getpid() != self._pid:
            return
        self._is_closed = True
        _running.discard(self)
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        self._reserved.close()
        if self._failure is not None:
            raise self._failure

    def stop_listening(self) -> None:
        """Refuse new connections from now on; those that are open stay. Not from a script."""
        self._call(self._unlisten())

    def listen_again(self) -> None:
        """Take connections again, on the same port. Not from a script."""
        self._call(self._listen())

    def drop_connections(self) -> None:
        """Reset every open connection, also those that wait for an answer. Not from a script."""
        self._call(self._drop())

    @property
    def port(self) -> int:
        """Where it listens; kept while it does not."""
        return self._port

    @property
    def url(self) -> str:
        """The endpoint, such as ``http://127.0.0.1:39921``."""
        return f"http://{_HOST}:{self._port}"

    def storage_options(self, access_key_id: str = "test-key") -> dict[str, Any]:
        """Return options with which s3fs reaches this server as `access_key_id`."""
        return storage_options(self.url, access_key_id, self._secret)

    # What it stores

    def create_bucket(self, bucket: str) -> None:
        """Make an empty bucket, unless it is there."""
        self._buckets.create(bucket)

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Store an object, make its bucket if need be, and return its ETag."""
        return self._buckets.put(bucket, key, Stored.of_bytes(bytes(data))).etag

    def replace(self, bucket: str, key: str, data: bytes) -> str:
        """Store another version of an object that is there, and return its ETag.

        Raises
        ------
        KeyError
            There is no such object.
        """
        if key not in self._buckets.by_name.get(bucket, ()):
            raise KeyError(f"{bucket}/{key}")
        return self.put(bucket, key, data)

    def put_folder(self, bucket: str, folder: str | Path) -> None:
        """Serve the files of a folder, from disk, under their paths in it.

        Their sizes and times are taken now, and the bytes when they are asked for. NotADirectoryError where
        there is no such folder.
        """
        root = Path(folder)
        if not root.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(root))
        self._buckets.create(bucket)
        for path in sorted(root.rglob("*")):
            if path.is_file():
                self._buckets.put(bucket, path.relative_to(root).as_posix(), Stored.of_file(path))

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object; KeyError if there is none."""
        del self._buckets.by_name[bucket][key]

    def read(self, bucket: str, key: str) -> bytes:
        """Return what is stored; KeyError if nothing is."""
        stored = self._buckets.by_name[bucket][key]
        return stored.read(0, stored.size_bytes)

    # Who may ask

    def expire(self, access_key_id: str, status: int = 400) -> None:
        """Answer requests signed by this key with ExpiredToken (S3 says 400, some stores 403)."""
        self._expired[access_key_id] = status

    def renew(self, access_key_id: str) -> None:
        """Let an expired key ask again."""
        self._expired.pop(access_key_id, None)

    # What was asked

    @property
    def requests(self) -> list[ServedRequest]:
        """All requests in order of arrival; those in progress too."""
        return list(self._log)

    @property
    def request_count(self) -> int:
        """Requests so far."""
        return len(self._log)

    @property
    def in_progress(self) -> int:
        """Requests that have arrived and whose answers are not fully sent; never more than clients have."""
        return self._in_progress

    @property
    def most_in_progress(self) -> int:
        """High-water mark of `in_progress`."""
        return self._most_in_progress

    @property
    def open_connections(self) -> int:
        """Connections open now."""
        return len(self._http.connections) if self._thread is not None else 0

    @property
    def connections_made(self) -> int:
        """Connections so far."""
        return self._connections_made

    def forget(self) -> None:
        """Empty the log and start the high-water mark and the count of connections made anew."""
        self._log = []
        self._most_in_progress, self._connections_made = self._in_progress, 0

    # The server's thread

    def _run(self, ready: Future[None]) -> None:
        try:
            with asyncio.Runner(debug=False, loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self._serve_until_stopped(ready))
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)

    async def _serve_until_stopped(self, ready: Future[None]) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._http = web.Server(
            self._serve,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            tcp_keepalive=False,
        )
        self._listening: socket.socket | None = None
        self._opening: dict[socket.socket, asyncio.Task[Any]] = {}
        await self._listen()
        ready.set_result(None)
        await self._stop.wait()
        await self._unlisten()
        await self._drop()

    def _call(self, coroutine: Any) -> None:
        is_running = self._thread is not None and not self._is_closed and os.getpid() == self._pid
        if not is_running or self._thread is threading.current_thread():
            coroutine.close()
            raise RuntimeError("the server does not run here, or this is its own thread")
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    # Not asyncio's own server: closed while it takes a connection, it leaves the socket open and unserved.

    async def _listen(self) -> None:
        if self._listening is None:
            self._listening = _bound_socket(self._port)
            self._listening.settimeout(0)
            self._listening.listen(_BACKLOG)
            self._loop.add_reader(self._listening, self._accept, self._listening)

    async def _unlisten(self) -> None:
        listening, self._listening = self._listening, None
        if listening is not None:
            self._loop.remove_reader(listening)
            listening.close()

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            accepted, _ = listening.accept()
            self._connections_made += 1
            opening = self._loop.create_task(self._open(accepted))
            self._opening[accepted] = opening

    async def _open(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._http, accepted)
        finally:
            del self._opening[accepted]

    async def _drop(self) -> None:
        await asyncio.gather(*self._opening.values())
        for connection in self._http.connections:
            reset(connection.transport)
        await asyncio.sleep(0)  # the sockets are closed in the loop's next turn

    def _sockets(self) -> Iterable[Any]:
        if self._listening is not None:
            yield self._listening
        yield from list(self._opening)
        yield from (socket_of(connection.transport) for connection in self._http.connections)

    # One request

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        served = self._begin(request)
        try:
            fault = self._next_fault(served)
            served.fault = fault.kind
            body = await received(request)
            await wait_for(fault)
            if fault.kind == "reset":
                self._end(served)
                reset(request.transport)
                return web.Response()
            said = self._answer(served, fault, body)
            return await Sending(request, served, fault, said, lambda: self._end(served)).send()
        except ConnectionError:  # the client has gone, and aiohttp finds that out again without a word
            return web.Response()
        except Exception as error:
            self._failure = self._failure or error
            raise
        finally:
            self._end(served)

    def _end(self, served: ServedRequest) -> None:
        if served.ended_s is None:
            self._in_progress -= 1
            served.ended_s = time.monotonic()

    def _begin(self, request: web.BaseRequest) -> ServedRequest:
        bucket, _, key = unquote(request.rel_url.raw_path).removeprefix("/").partition("/")
        ask = Ask(request.method, bucket, key, dict(request.query), request.headers)
        served = ServedRequest(
            number=len(self._log),
            method=ask.method,
            bucket=bucket,
            key=key,
            query=ask.query,
            range=request.headers.get("Range"),
            access_key_id=access_key_id(ask),
            headers=CIMultiDict(request.headers),
            client_port=client_port(request.transport),
            began_s=time.monotonic(),
        )
        self._log.append(served)
        self._in_progress += 1
        self._most_in_progress = max(self._most_in_progress, self._in_progress)
        return served

    def _next_fault(self, served: ServedRequest) -> Fault:
        drawn = self.faults.draw(served.method, self._generator)
        try:
            said = self.script(served) if self.script is not None else None
        except Exception as error:  # noqa: BLE001 - the test's own; `close` raises it
            self._failure = self._failure or error
            return Fault("internal_error")
        return drawn if said is None else said

    def _answer(self, served: ServedRequest, fault: Fault, body: bytes) -> Answer:
        headers: Mapping[str, str] = served.headers
        if fault.kind == "whole_object":
            headers = CIMultiDict(headers)
            headers.pop("Range", None)
        try:
            fault.raise_if_error()
            self._check_credentials(served.access_key_id)
            ask = Ask(served.method, served.bucket, served.key, served.query, headers, body)
            return answer(self._buckets, ask)
        except S3Error as error:
            return error.answer(f"/{served.bucket}/{served.key}", request_id(served))

    def _check_credentials(self, access_key_id: str | None) -> None:
        if access_key_id in self._expired:
            status = self._expired[access_key_id]
            raise S3Error(status, "ExpiredToken", "The provided token has expired.")
        if self._access_key_ids is None or access_key_id in self._access_key_ids:
            return
        if access_key_id is None:
            raise S3Error(403, "AccessDenied", "Access Denied")
        message = "The AWS Access Key Id you provided does not exist in our records."
        raise S3Error(403, "InvalidAccessKeyId", message)


def _bound_socket(port: int) -> socket.socket:
    """Bind without listening: whoever connects is refused, and nobody else is given the port.

    A second one can be bound beside it as long as the first does not listen.
    """
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    option = socket.SO_REUSEPORT if sys.platform == "darwin" else socket.SO_REUSEADDR
    bound.setsockopt(socket.SOL_SOCKET, option, 1)
    bound.bind((_HOST, port))
    return bound


_running: weakref.WeakSet[ObjectServer] = weakref.WeakSet()


@after_fork_in_child
def _let_go() -> None:
    """Give up a forked child's copies of the sockets, which would keep the parent's connections open.

    Their numbers go to the null device, so that objects which still hold them close nothing else.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for server in list(_running):
        for each in server._sockets():  # noqa: SLF001
            if each is not None and each.fileno() >= 0:
                os.dup2(null, each.fileno(), inheritable=False)
    _running.clear()
    os.close(null)
