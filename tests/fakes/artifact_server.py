"""An HTTP server of artifacts for tests: it serves a folder, counts, and fails on demand."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

UNAVAILABLE = 503


@dataclass(slots=True)
class ArtifactServer:
    """What is in `folder` is at `url`. While `failing_with` is a status, that is the answer to all."""

    url: str
    folder: Path
    failing_with: int | None = None
    requests: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def failing(self, status: int = UNAVAILABLE) -> Iterator[None]:
        """Answer everything with `status` for the time of the block."""
        self.failing_with = status
        try:
            yield
        finally:
            self.failing_with = None


@contextmanager
def artifact_server(host: str, folder: Path, *, advertised: str | None = None) -> Iterator[ArtifactServer]:
    """Serve `folder` on `host` on a free port; others reach it at the host `advertised`, where that is another."""
    httpd = _Server((host, 0), partial(_Handler, directory=str(folder)))
    httpd.artifacts = ArtifactServer(f"http://{advertised or host}:{httpd.server_port}", folder)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    try:
        yield httpd.artifacts
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    artifacts: ArtifactServer


class _Handler(SimpleHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        state = self.server.artifacts
        state.requests[self.path] += 1
        if state.failing_with is None:
            super().do_GET()
        else:
            self.send_error(state.failing_with)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
