"""Fetching over HTTP from a real server on the loopback."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from segserve_builder.errors import ArtifactMissingError, DigestMismatchError
from segserve_builder.sources import fetch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Paths: /good, /hop/N (N redirects to /good), /to/SCHEME, /short (breaks off), anything else 404."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        match self.path.strip("/").split("/"):
            case ["good"]:
                self._send(CONTENT)
            case ["corrupt"]:
                self._send(CONTENT[::-1])
            case ["short"]:
                self._send(CONTENT, declared=len(CONTENT) + 10)
            case ["hop", count]:
                left = int(count) - 1
                self._redirect(f"/hop/{left}" if left else "/good")
            case ["to", "file"]:
                self._redirect("file:///etc/passwd")
            case ["to", "ftp"]:
                self._redirect("ftp://127.0.0.1/x")
            case _:
                self.send_error(404)

    def _redirect(self, location: str) -> None:
        self.send_response(302)
        self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, declared: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(declared or len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("path", ["good", "hop/1", "hop/5"])
def test_a_file_is_fetched_through_at_most_five_redirects(server: str, path: str, tmp_path: Path) -> None:
    assert fetch(f"{server}/{path}", SHA256, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        pytest.param("nowhere", "404", id="not found"),
        pytest.param("hop/6", "302", id="six redirects"),
        pytest.param("to/file", "file:.*not allowed", id="redirect to a file"),
        pytest.param("to/ftp", "'ftp'; allowed: http, https", id="redirect to ftp"),
        pytest.param("short", "broke off", id="fewer bytes than declared"),
    ],
)
def test_what_cannot_be_fetched_says_why_and_leaves_nothing(server: str, path: str, seen: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match=seen):
        fetch(f"{server}/{path}", SHA256, tmp_path)

    assert [found for found in tmp_path.rglob("*") if found.is_file()] == []


def test_wrong_bytes_over_http_are_refused(server: str, tmp_path: Path) -> None:
    with pytest.raises(DigestMismatchError):
        fetch(f"{server}/corrupt", SHA256, tmp_path)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1/x", "http:///x", "http://[::1/x"])
def test_a_server_that_is_not_there_is_missing(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError):
        fetch(uri, SHA256, tmp_path)
