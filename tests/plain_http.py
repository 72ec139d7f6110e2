"""A plain HTTP server on loopback that answers what a test tells it to, and keeps a log."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]

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


def ranged(asked: Asked, data: bytes, **headers: str) -> Said:
    """Answer as a server of files does."""
    span = asked.span(len(data))
    if span is None:
        return Said(200, headers, data)
    if span[0] >= len(data):
        return Said(416, {**headers, "Content-Range": f"bytes */{len(data)}"})
    part = f"bytes {span[0]}-{span[1] - 1}/{len(data)}"
    return Said(206, {**headers, "Content-Range": part}, data[span[0] : span[1]])


class PlainServer:
    def __init__(self, answer: Callable[[Asked], Said]) -> None:
        self.answer = answer
        self.log: list[Asked] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_args: Any) -> None: ...

            def do_GET(self) -> None:
                asked = Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
                server.log.append(asked)
                said = server.answer(asked)
                self.send_response(said.status)
                for name, value in said.headers.items():
                    self.send_header(name, value)
                if "Transfer-Encoding" not in said.headers:
                    self.send_header("Content-Length", str(len(said.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(said.body)

            do_HEAD = do_GET  # noqa: N815 - http.server's name

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
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
        return f"http://127.0.0.1:{self.port}"

    @property
    def gets(self) -> list[Asked]:
        return [asked for asked in self.log if asked.method == "GET"]
