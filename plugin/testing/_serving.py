"""One request on its way through an `ObjectServer`: its line in the log, its body, and its answer.

Here is what faults do to a connection. A reset is a close with SO_LINGER at zero seconds: the kernel then
sends RST and forgets what was not sent yet. A truncated body is an ordinary end of the connection before the
length that was promised.

Threading: the server's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from headrace.testing._dialect import Answer, Span

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.testing._faults import Fault, FaultKind

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_DRIBBLE_STEP_S = 0.02


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
        All that came. They have signatures in them, so they are not in the repr.
    client_port
        The client's end of the connection: the same for requests on one connection.
    began_s
        When its head was there (`time.monotonic`).
    fault
        What happened to it; ``none``: nothing.
    status
        Of the answer; None while there is none, and for good if the connection was reset before.
    sent_bytes
        Of the body, handed to the kernel or waiting for it.
    ended_s
        When all of it was sent, or the client or the server gave up; None while it is in progress.
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
    """An answer on its way, and what happens to it there."""

    request: web.BaseRequest
    served: ServedRequest
    fault: Fault
    said: Answer

    async def send(self) -> web.StreamResponse:
        self.served.status = self.said.status
        if self.request.method == "HEAD":
            return await self._send_all(b"")
        body = await _body(self.said)
        if body and self.fault.kind in ("break_body", "truncate"):
            return await self._send_part(body)
        if body and self.fault.kind == "dribble":
            return await self._send_slowly(body)
        return await self._send_all(body)

    async def _send_all(self, body: bytes) -> web.StreamResponse:
        response = web.Response(status=self.said.status, headers=self._headers(), body=body)
        self.served.sent_bytes = len(body)
        await response.prepare(self.request)
        await response.write_eof()
        return response

    async def _send_part(self, body: bytes) -> web.StreamResponse:
        asked = self.fault.body_bytes
        part = body[: len(body) // 2 if asked is None else min(asked, len(body) - 1)]
        response = await self._send_head()
        await self._send_piece(response, part)
        transport = self.request.transport
        if self.fault.kind == "break_body":
            reset(transport)
        elif transport is not None:
            transport.close()
        return response

    async def _send_slowly(self, body: bytes) -> web.StreamResponse:
        response = await self._send_head()
        step_bytes = max(1, int(self.fault.bytes_per_s * _DRIBBLE_STEP_S))
        for start in range(0, len(body), step_bytes):
            piece = body[start : start + step_bytes]
            await asyncio.sleep(len(piece) / self.fault.bytes_per_s)
            await self._send_piece(response, piece)
        await response.write_eof()
        return response

    async def _send_head(self) -> web.StreamResponse:
        response = web.StreamResponse(status=self.said.status, headers=self._headers())
        await response.prepare(self.request)
        return response

    async def _send_piece(self, response: web.StreamResponse, piece: bytes) -> None:
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


async def _body(said: Answer) -> bytes:
    if not isinstance(said.body, Span):
        return said.body
    stored, start, end = said.body.stored, said.body.start, said.body.end
    if isinstance(stored.data, bytes):
        return stored.read(start, end)
    return await asyncio.to_thread(stored.read, start, end)  # the disk may take its time


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
