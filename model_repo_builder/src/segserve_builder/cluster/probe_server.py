"""Answers the kubelet's and Prometheus' questions about the process it runs in."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Query: TypeAlias = "Mapping[str, list[str]]"

_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class ProbeResponse:
    """An HTTP answer."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


def probe_response(ok: bool, why: str) -> ProbeResponse:
    """Return a probe's answer: 200 or 503, and a sentence for whoever looks."""
    return ProbeResponse(200 if ok else 503, f"{why}\n".encode())


class ProbeServer:
    """Answers GET for the paths of `questions`, each asked in a thread of its own; `queries` are told the query."""

    def __init__(
        self,
        port: int,
        questions: Mapping[str, Callable[[], ProbeResponse]],
        queries: Mapping[str, Callable[[Query], ProbeResponse]] | None = None,
    ) -> None:
        self._server = _Server(("", port), _handler(questions, queries or {}))
        self._thread = threading.Thread(target=self._server.serve_forever, name="probes", daemon=True)

    @property
    def port(self) -> int:
        """The port, for those who asked for 0."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End, and free the port."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def _handler(
    questions: Mapping[str, Callable[[], ProbeResponse]], queries: Mapping[str, Callable[[Query], ProbeResponse]]
) -> type[BaseHTTPRequestHandler]:
    known = ", ".join(sorted({**questions, **queries}))

    def answer_to(path: str) -> ProbeResponse:
        name, _, query = path.partition("?")
        if name in queries:
            return queries[name](parse_qs(query))
        question = questions.get(name)
        return question() if question else ProbeResponse(404, f"{path} is unknown; there are {known}\n".encode())

    class Handler(BaseHTTPRequestHandler):
        timeout = _TIMEOUT_S

        def do_GET(self) -> None:
            answer = answer_to(self.path)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            """Leave the log to what happens seldom."""

    return Handler
