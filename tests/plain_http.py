"""A plain HTTP server on loopback, with TLS or without: it answers what a test says, and keeps a log."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import trustme

_SAY_WHERE_IT_ENDS = {"Connection", "Content-Length", "Transfer-Encoding"}
"""Headers of an answer without which its body is as long as it says: with them a test may cut it short."""


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    port: int = 0
    """The client's: one for each connection."""

    def span(self, size: int) -> tuple[int, int] | None:
        """Return the range that was asked for."""
        said = self.headers.get("range", "").removeprefix("bytes=")
        if not said:
            return None
        first, _, last = said.partition("-")
        return int(first), min(int(last) + 1, size) if last else size


@dataclass
class Said:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    then: Callable[[], bytes] | None = None
    """Returns, when it is time, what is sent after the body."""


def ranged(asked: Asked, data: bytes, **headers: str) -> Said:
    """Answer as a server of files does."""
    span = asked.span(len(data))
    if span is None:
        return Said(200, headers, data)
    if span[0] >= len(data):
        return Said(416, {**headers, "Content-Range": f"bytes */{len(data)}"})
    part = f"bytes {span[0]}-{span[1] - 1}/{len(data)}"
    return Said(206, {**headers, "Content-Range": part}, data[span[0] : span[1]])


class Authority:
    """Vouches for servers on loopback; who trusts the certificates in `path` trusts them."""

    def __init__(self, folder: Path) -> None:
        made = trustme.CA()
        self.path = folder / "authority.pem"
        made.cert_pem.write_to_path(str(self.path))
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.issue_cert("127.0.0.1").configure_cert(self.server)


class QuietServer(ThreadingHTTPServer):
    """Says nothing of clients that leave in a handshake."""

    daemon_threads = True

    def handle_error(self, *_args: Any) -> None: ...


class PlainServer:
    def __init__(self, answer: Callable[[Asked], Said], authority: Authority | None = None) -> None:
        self.answer = answer
        self._scheme = "http" if authority is None else "https"
        self.log: list[Asked] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_args: Any) -> None: ...

            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.command, self.path, headers, self.client_address[1])
                server.log.append(asked)
                said = server.answer(asked)
                self.send_response(said.status)
                for name, value in said.headers.items():
                    self.send_header(name, value)
                if not said.headers.keys() & _SAY_WHERE_IT_ENDS:
                    self.send_header("Content-Length", str(len(said.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(said.body)
                    if said.then is not None:
                        self.wfile.write(said.then())

            do_HEAD = do_GET  # noqa: N815 - http.server's name

        self._http = QuietServer(("127.0.0.1", 0), Handler)
        if authority is not None:
            self._http.socket = authority.server.wrap_socket(
                self._http.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    @property
    def gets(self) -> list[Asked]:
        return [asked for asked in self.log if asked.method == "GET"]
