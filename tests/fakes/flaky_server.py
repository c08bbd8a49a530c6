"""An HTTP server that resumes, breaks off, is busy, redirects or lies, as a test says; it notes every request."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_RANGE = re.compile(r"bytes=(\d+)-")


@dataclass
class Behaviour:
    """What is given out, and how. `etag` None: the server cannot resume.

    `cuts` are how many bytes each of the next answers has before its connection breaks; `busy` are the next answers,
    each a status with headers. `redirects` are Locations by path.
    """

    content: bytes = b""
    etag: str | None = '"1"'
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    busy: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    redirects: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    is_chunked: bool = False
    url: str = ""
    seen: list[tuple[str, Message]] = field(default_factory=list)

    def ranges_asked(self) -> list[str | None]:
        return [headers["Range"] for _, headers in self.seen]


@contextmanager
def flaky_server(
    behaviour: Behaviour, host: str = "127.0.0.1", context: ssl.SSLContext | None = None
) -> Iterator[Behaviour]:
    """Serve as `behaviour` says, at its `url`; over TLS with a context."""
    httpd = _Server((host, 0), _Handler)
    httpd.behaviour = behaviour
    if context is not None:
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    behaviour.url = f"http{'s' if context else ''}://{host}:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield behaviour
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


@contextmanager
def silent_listener() -> Iterator[socket.socket]:
    """Listen without ever answering; `accept` says whether anybody came."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        yield listener


def came(listener: socket.socket) -> bool:
    """Return whether anybody connected."""
    try:
        listener.accept()[0].close()
    except TimeoutError:
        return False
    return True


class _Server(ThreadingHTTPServer):
    behaviour: Behaviour

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        told = self.server.behaviour
        told.seen.append((self.path, self.headers))
        if told.busy:
            status, headers = told.busy.pop(0)
            self._head(status, headers | {"Content-Length": "0"})
        elif self.path in told.redirects:
            self._head(302, {"Location": told.redirects[self.path], "Content-Length": "0"})
        else:
            self._give(told)

    def _give(self, told: Behaviour) -> None:
        asked = _RANGE.fullmatch(self.headers.get("Range", "")) if told.ranges else None
        start = int(asked[1]) if asked else 0
        size = len(told.content)
        if start and start >= size:
            self._head(416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
            return
        headers = {"Content-Length": str(size - start)} if not told.is_chunked else {"Transfer-Encoding": "chunked"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        if told.etag:
            headers["ETag"] = told.etag
        self._head(206 if asked else 200, headers | told.headers)
        body = told.content[start:]
        if told.cuts:
            self.wfile.write(body[: told.cuts.pop(0)])
            self.close_connection = True
        elif told.is_chunked:
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        else:
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
