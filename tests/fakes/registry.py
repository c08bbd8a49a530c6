"""Debian's docker-registry as a process, open to all or with accounts or tokens, and what is pushed into it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from fakes.waiting import HANG_S

USER, PASSWORD = "reader", "open sesame"
_HTPASSWD = "reader:$2y$05$rX1SRx7N4tZ.8ufZLXM7COTdzGI6MzLHULpJSWvvu2t0E1QXw03Dm\n"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
TAR = "application/vnd.oci.image.layer.v1.tar"
TITLE = "org.opencontainers.image.title"
_LISTENS = re.compile(r"listening on (127\.0\.0\.1:\d+)")


@dataclass(frozen=True)
class Registry:
    """A registry at `host`, a port included."""

    host: str
    folder: Path
    headers: Mapping[str, str] = field(default_factory=dict)

    def push(self, name: str, layers: list[dict[str, Any]], tag: str = "1") -> str:
        """Push a manifest of layers, and return its digest."""
        config = self.blob(name, b"{}", "application/vnd.oci.empty.v1+json")
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
        return self.manifest(name, tag, manifest)

    def artifact(self, name: str, files: Mapping[str, bytes], tag: str = "1") -> str:
        """Push files as `oras push` does: one layer each, with its title."""
        return self.push(name, [self.layer(name, content, title=title) for title, content in files.items()], tag)

    def layer(
        self, name: str, content: bytes, kind: str = "application/octet-stream", title: str = ""
    ) -> dict[str, Any]:
        described = self.blob(name, content, kind)
        return described | ({"annotations": {TITLE: title}} if title else {})

    def blob(self, name: str, content: bytes, kind: str) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        with self._client() as client:
            started = client.post(f"/v2/{name}/blobs/uploads/").raise_for_status()
            place = httpx.URL(started.headers["Location"]).copy_merge_params({"digest": digest})
            client.put(place, content=content).raise_for_status()
        return {"mediaType": kind, "digest": digest, "size": len(content)}

    def manifest(self, name: str, tag: str, manifest: dict[str, Any]) -> str:
        body = json.dumps(manifest).encode()
        headers = {"Content-Type": manifest["mediaType"]}
        with self._client() as client:
            client.put(f"/v2/{name}/manifests/{tag}", content=body, headers=headers).raise_for_status()
        return f"sha256:{hashlib.sha256(body).hexdigest()}"

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://{self.host}", headers=self.headers)


def tar(files: Mapping[str, bytes | None], *, mode: str = "w") -> bytes:
    """Return a tar of files; None is a symbolic link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            info.size = len(content or b"")
            archive.addfile(info, io.BytesIO(content or b""))
    return out.getvalue()


@contextmanager
def registry(folder: Path, auth: Mapping[str, Any] | None = None, **headers: str) -> Iterator[Registry]:
    """Run a registry whose files are below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": "127.0.0.1:0"},
        "log": {"level": "info"},
    } | ({"auth": auth} if auth else {})
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(["docker-registry", "serve", str(folder / "config.yml")], stdout=out, stderr=out)
    try:
        yield Registry(_address(process, log), folder, headers)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def registry_with_accounts(folder: Path) -> Iterator[Registry]:
    """Run a registry that knows one account."""
    folder.mkdir(parents=True)
    (folder / "htpasswd").write_text(_HTPASSWD)
    auth = {"htpasswd": {"realm": "models", "path": str(folder / "htpasswd")}}
    with registry(folder, auth, Authorization=_basic()) as server:
        yield server


@contextmanager
def registry_with_tokens(folder: Path) -> Iterator[Registry]:
    """Run a registry that wants a token of a second server, which gives it to the one account."""
    folder.mkdir(parents=True)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    certificate = _certificate(key)
    (folder / "root.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    chain = [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]

    def token(scope: str, actions: list[str]) -> str:
        now = int(time.time())
        access = [{"type": "repository", "name": scope.split(":")[1], "actions": actions}]
        said = {"iss": "tests", "aud": "models", "sub": USER, "nbf": now - 60, "exp": now + 300, "access": access}
        return jwt.encode(said, key, "RS256", headers={"x5c": chain})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            scope = parse_qs(urlsplit(self.path).query)["scope"][0]
            known = self.headers["Authorization"] == _basic()
            body = json.dumps({"token": token(scope, ["pull"])} if known else {"errors": []}).encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    realm = f"http://127.0.0.1:{httpd.server_port}/token"
    options = {"realm": realm, "service": "models", "issuer": "tests", "rootcertbundle": str(folder / "root.pem")}
    pusher = f"Bearer {token('repository:nets/coins:pull', ['pull', 'push'])}"
    try:
        with registry(folder, {"token": options}, Authorization=pusher) as server:
            yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def _basic() -> str:
    return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def _certificate(key: rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline_s = time.monotonic() + HANG_S
    while (found := _LISTENS.search(log.read_text())) is None:
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise RuntimeError(f"docker-registry does not start: {log.read_text()[-500:]}")
        time.sleep(0.02)
    return found[1]
