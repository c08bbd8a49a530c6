"""A Hugging Face hub as its own client knows it: files, large ones by a redirect to another host, trees, gates."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "5f3c" * 10
PAGE = 2
"""So many entries has a page of a tree."""

_RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_TREE = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
_RANGE = re.compile(r"bytes=(\d+)-")


@dataclass
class Hub:
    """Repositories by name, `datasets/` before that of a dataset; each has files by path and revision.

    Files of at least `large` bytes are on another host. `tokens` are those that open a gated repository.
    """

    repositories: Mapping[str, Mapping[tuple[str, str], bytes]]
    gated: frozenset[str] = frozenset()
    tokens: frozenset[str] = frozenset()
    large: int = 1000
    url: str = ""
    storage: str = ""
    seen: list[tuple[str, Message]] = field(default_factory=list)
    stored: list[tuple[str, Message]] = field(default_factory=list)


@contextmanager
def hub(served: Hub) -> Iterator[Hub]:
    """Serve the hub at one host, and its large files at another."""
    with _serving("127.0.0.1", _Api, served) as served.url, _serving("127.0.0.2", _Storage, served) as served.storage:
        yield served


@contextmanager
def _serving(host: str, handler: type[_Handler], served: Hub) -> Iterator[str]:
    httpd = _Server((host, 0), handler)
    httpd.hub = served
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://{host}:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    hub: Hub


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        raise NotImplementedError

    def give(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def give_file(self, content: bytes, **headers: str) -> None:
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        if asked is None:
            self.give(200, content, **headers)
            return
        start = int(asked[1])
        if start >= len(content):
            self.give(416)
            return
        self.give(206, content[start:], Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}", **headers)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Api(_Handler):
    def do_GET(self) -> None:
        hub, parts = self.server.hub, urlsplit(self.path)
        hub.seen.append((self.path, self.headers))
        found = _RESOLVE.fullmatch(parts.path) or _TREE.fullmatch(parts.path)
        if found is None:
            self.give(404)
            return
        kind = "datasets/" if (found["kind"] or "").startswith("datasets") else ""
        name, revision = f"{kind}{found['name']}", unquote(found["revision"])
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        files = {path: content for (path, of), content in hub.repositories.get(name, {}).items() if of == revision}
        if name not in hub.repositories:
            self.give(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif name in hub.gated and token not in hub.tokens:
            self.give(
                403 if token else 401, X_Error_Code="GatedRepo", X_Error_Message=f"Access to {name} is restricted"
            )
        elif not files:
            self.give(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        elif "/resolve/" in parts.path:
            self._resolve(files, unquote(found["path"]))
        else:
            self._tree(files, unquote(found["path"] or ""), parse_qs(parts.query))

    def _resolve(self, files: Mapping[str, bytes], path: str) -> None:
        content = files.get(path)
        if content is None:
            self.give(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=COMMIT)
        elif len(content) < self.server.hub.large:
            self.give_file(content, X_Repo_Commit=COMMIT)
        else:
            digest = hashlib.sha256(content).hexdigest()
            self.give(
                302,
                Location=f"{self.server.hub.storage}/{digest}?Signature=s1gned",
                X_Repo_Commit=COMMIT,
                X_Linked_Size=str(len(content)),
                X_Linked_Etag=f'"{digest}"',
            )

    def _tree(self, files: Mapping[str, bytes], folder: str, query: Mapping[str, list[str]]) -> None:
        below = sorted(path for path in files if not folder or path.startswith(f"{folder}/"))
        folders = sorted({path.rpartition("/")[0] for path in below} - {"", folder})
        entries = [{"type": "directory", "oid": COMMIT, "size": 0, "path": path} for path in folders]
        entries += [{"type": "file", "oid": COMMIT, "size": len(files[path]), "path": path} for path in below]
        start = int(query.get("cursor", ["0"])[0])
        more = {}
        if start + PAGE < len(entries):
            url = f"{self.server.hub.url}{urlsplit(self.path).path}?recursive=true&cursor={start + PAGE}"
            more = {"Link": f'<{url}>; rel="next"'}
        self.give(200, json.dumps(entries[start : start + PAGE]).encode(), Content_Type="application/json", **more)


class _Storage(_Handler):
    """Signed URLs: it refuses who sends a token too, as S3 does."""

    def do_GET(self) -> None:
        hub, parts = self.server.hub, urlsplit(self.path)
        hub.stored.append((self.path, self.headers))
        contents = [content for files in hub.repositories.values() for content in files.values()]
        by_digest = {hashlib.sha256(content).hexdigest(): content for content in contents}
        if "Authorization" in self.headers or "Signature" not in parse_qs(parts.query):
            self.give(400)
        else:
            self.give_file(by_digest[parts.path.strip("/")])
