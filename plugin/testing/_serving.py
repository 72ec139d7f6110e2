"""One request on its way through an `ObjectServer`: its line in the log, its body, and its answer.

Here is what faults do to a connection. A reset is a close with SO_LINGER at zero seconds: the kernel then
sends RST and forgets what was not sent yet. A truncated body is an ordinary end of the connection before the
length that was promised.

Threading: the server's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from headrace.testing._dialect import REGION, Answer, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from headrace.testing._faults import Fault, FaultKind

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_DRIBBLE_STEP_S = 0.02
_ONE_WRITE_BYTES = 64 * 1024


@dataclass(slots=True, eq=False)
class ServedRequest:
    """One line of the log; the last four change while the request is served.

    Parameters
    ----------
    number
        From 0, in order of arrival.
    method, bucket, key, query
        What was asked; `bucket` and `key` may be empty.
    range
        The Range header as it came.
    access_key_id
        Who says to have signed it; None: nobody.
    headers
        All that came, found by names in any case. Signatures are in them, so they are not in the repr.
    client_port
        The client's end of the connection: the same for requests on one connection.
    began_s
        When its head was there (`time.monotonic`).
    fault
        What happened to it; ``none``: nothing.
    status
        Of the answer; None while there is none, and for good if the connection was reset before.
    sent_bytes
        Of the body, handed to the kernel or about to be.
    ended_s
        Just before its last byte was sent, or when the client or the server gave up; None while in progress.
    """

    number: int
    method: str
    bucket: str
    key: str
    query: Mapping[str, str]
    range: str | None
    access_key_id: str | None
    headers: Mapping[str, str] = field(repr=False)
    client_port: int
    began_s: float
    fault: FaultKind = "none"
    status: int | None = None
    sent_bytes: int = 0
    ended_s: float | None = None


@dataclass(frozen=True, slots=True)
class Sending:
    """An answer on its way, and what happens to it there.

    `end` is called before the last byte is sent, so that whoever has seen the end of an answer finds it ended
    in the log, and the requests in progress are never more than the client has under way.
    """

    request: web.BaseRequest
    served: ServedRequest
    fault: Fault
    said: Answer
    end: Callable[[], None]

    async def send(self) -> web.StreamResponse:
        self.served.status = self.said.status
        if self.request.method == "HEAD":
            return await self._send_all(b"")
        body = await self._body()
        if body and self.fault.kind in ("break_body", "truncate"):
            return await self._send_part(body)
        if body and self.fault.kind == "dribble":
            return await self._send_slowly(body)
        return await self._send_all(body)

    async def _body(self) -> bytes:
        promised = self.said.body
        if not isinstance(promised, Span):
            return promised
        stored, start, end = promised.stored, promised.start, promised.end
        if isinstance(stored.data, bytes):
            return stored.read(start, end)
        found = await asyncio.to_thread(stored.read, start, end)  # the disk may take its time
        if len(found) < len(promised):
            raise EOFError(f"{stored.data} has shrunk since it was put into the server")
        return found

    async def _send_all(self, body: bytes) -> web.StreamResponse:
        if len(body) > _ONE_WRITE_BYTES:
            return await self._send_pieces([memoryview(body)[:-1], body[-1:]])
        response = web.Response(status=self.said.status, headers=self._headers(), body=body)
        self.served.sent_bytes = len(body)
        self.end()
        await response.prepare(self.request)
        await response.write_eof()
        return response

    async def _send_part(self, body: bytes) -> web.StreamResponse:
        asked = self.fault.body_bytes
        part = body[: len(body) // 2 if asked is None else min(asked, len(body) - 1)]
        response = await self._send_head()
        await self._send_piece(response, part)
        self.end()
        transport = self.request.transport
        if self.fault.kind == "break_body":
            reset(transport)
        elif transport is not None:
            transport.close()
        return response

    async def _send_slowly(self, body: bytes) -> web.StreamResponse:
        step_bytes = max(1, int(self.fault.bytes_per_s * _DRIBBLE_STEP_S))
        pieces = [body[start : start + step_bytes] for start in range(0, len(body), step_bytes)]
        return await self._send_pieces(pieces, self.fault.bytes_per_s)

    async def _send_pieces(
        self, pieces: Sequence[bytes | memoryview], bytes_per_s: float = math.inf
    ) -> web.StreamResponse:
        response = await self._send_head()
        for index, piece in enumerate(pieces):
            await asyncio.sleep(len(piece) / bytes_per_s)
            if index == len(pieces) - 1:
                self.end()
            await self._send_piece(response, piece)
        await response.write_eof()
        return response

    async def _send_head(self) -> web.StreamResponse:
        response = web.StreamResponse(status=self.said.status, headers=self._headers())
        await response.prepare(self.request)
        return response

    async def _send_piece(self, response: web.StreamResponse, piece: bytes | memoryview) -> None:
        self.served.sent_bytes += len(piece)
        await response.write(piece)

    def _headers(self) -> dict[str, str]:
        length_bytes = len(self.said.body)
        return {
            **self.said.headers,
            "Content-Length": str(length_bytes),
            "Server": "headrace-objects",
            "x-amz-request-id": request_id(self.served),
        }


async def received(request: web.BaseRequest) -> bytes:
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    return await request.content.read() if request.can_read_body else b""


async def wait_for(fault: Fault) -> None:
    if fault.until is not None:
        await asyncio.shield(asyncio.wrap_future(fault.until))
    if fault.delay_s > 0:
        await asyncio.sleep(fault.delay_s)


def request_id(served: ServedRequest) -> str:
    return f"{served.number:016X}"


def socket_of(transport: asyncio.BaseTransport | None) -> Any:
    return None if transport is None else transport.get_extra_info("socket")


def client_port(transport: asyncio.BaseTransport | None) -> int:
    peer = None if transport is None else transport.get_extra_info("peername")
    return int(peer[1]) if peer else 0


def reset(transport: asyncio.BaseTransport | None) -> None:
    """Close a connection with RST instead of FIN: what was not sent yet never is."""
    if isinstance(transport, asyncio.WriteTransport):
        with contextlib.suppress(OSError):  # closed by the client already
            socket_of(transport).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()


_numbers = itertools.count(1)


def new_secret() -> str:
    """Return the secret of a new server's clients.

    A later server may get the port of an earlier one. To its clients it is another store all the same: what
    was learnt of the earlier one (its window, its retries) says nothing of it.
    """
    return f"test-secret-{next(_numbers)}"


def storage_options(url: str, access_key_id: str, secret: str) -> dict[str, Any]:
    """Return options with which s3fs reaches the server at `url`."""
    return {
        "key": access_key_id,
        "secret": secret,
        "endpoint_url": url,
        "client_kwargs": {"region_name": REGION},
    }
