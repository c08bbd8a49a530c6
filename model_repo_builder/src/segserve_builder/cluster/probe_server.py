"""HTTP server for the kubelet's probes and Prometheus' scrapes."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import parse_qs

from segserve_common.http.listening import listen_anywhere

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Query: TypeAlias = "Mapping[str, list[str]]"

_TIMEOUT_S: Final = 10.0
MAX_CONNECTIONS: Final = 64
"""Beyond it the oldest connection is closed, never the kubelet's: these are served within milliseconds."""


@dataclass(frozen=True, slots=True)
class ProbeResponse:
    """An HTTP response."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


def probe_response(ok: bool, why: str) -> ProbeResponse:
    """Return the response of a probe: status 200 or 503, and a sentence for people as body."""
    return ProbeResponse(200 if ok else 503, f"{why}\n".encode())


class ProbeServer:
    """Serves GET requests for the paths of `handlers` and `query_handlers`, each of up to 64 in its own thread.

    The latter get the parsed query. It serves at a port, of which 0 chooses a free one, or a socket that listens.
    """

    def __init__(
        self,
        at: int | socket.socket,
        handlers: Mapping[str, Callable[[], ProbeResponse]],
        query_handlers: Mapping[str, Callable[[Query], ProbeResponse]] | None = None,
    ) -> None:
        self._server = _Server(
            listen_anywhere(at) if isinstance(at, int) else at, _handler(handlers, query_handlers or {})
        )
        self._thread = threading.Thread(target=self._server.serve_forever, name="probes", daemon=True)

    @property
    def port(self) -> int:
        """The port on which the server listens."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Start serving; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the server, and free the port."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listening: socket.socket, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(listening.getsockname()[:2], handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self._open: dict[socket.socket, None] = {}
        self._changing = threading.Lock()
        self._free = threading.Semaphore(MAX_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, once there is one to spare."""
        if not self._free.acquire(blocking=False):
            with self._changing:
                oldest = next(iter(self._open), None)
                if oldest is not None:
                    del self._open[oldest]
                    with suppress(OSError):  # it has just ended by itself
                        oldest.shutdown(socket.SHUT_RDWR)
            self._free.acquire()
        with self._changing:
            self._open[request] = None
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection in the current thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._changing:
                self._open.pop(request, None)
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a connection that ended early."""


def _handler(
    handlers: Mapping[str, Callable[[], ProbeResponse]],
    query_handlers: Mapping[str, Callable[[Query], ProbeResponse]],
) -> type[BaseHTTPRequestHandler]:
    paths = ", ".join(sorted({**handlers, **query_handlers}))

    def respond(path: str) -> ProbeResponse:
        name, _, query = path.partition("?")
        if name in query_handlers:
            return query_handlers[name](parse_qs(query))
        handler = handlers.get(name)
        return handler() if handler else ProbeResponse(404, f"{path} is unknown; there are {paths}\n".encode())

    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT_S

        def do_GET(self) -> None:
            response = respond(self.path)
            self.send_response(response.status)
            self.send_header("Content-Type", response.content_type)
            self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            self.wfile.write(response.body)

        def log_message(self, *_: object) -> None:
            """Log nothing: probes come every second."""

    return Handler
