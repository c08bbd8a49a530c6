"""Real object stores for tests: moto for S3 and for Google's S3-like protocol, Azurite for Azure."""

from __future__ import annotations

import base64
import hmac
import json
import re
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import obstore
import pytest
from obstore.store import ObjectStore

from fakes.waiting import HANG_S
from segserve_builder.sources.access import Access, Credential
from segserve_builder.sources.az import AzSource
from segserve_builder.sources.gs import GsSource
from segserve_builder.sources.object_store import ObjectStoreSource
from segserve_builder.sources.s3 import S3Source
from tools import AZURITE, PEERS

MOTO = PEERS / "moto_server"
BUCKET = "models"
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's own, which everybody knows."""
S3_KEYS = {"access-key-id": "AKIAEXAMPLE", "secret-access-key": "well-known-secret"}


@dataclass(frozen=True, slots=True)
class ObjectServer:
    """A bucket on a server of this machine; `keys` are those of a Secret that opens it."""

    source: ObjectStoreSource
    endpoint: str
    keys: dict[str, str]

    def access(self, secret: Path, keys: dict[str, str] | None = None) -> Access:
        """Return what a pool would say, with `keys` written to the folder `secret` as a Secret's."""
        secret.mkdir(exist_ok=True)
        for name, value in (self.keys if keys is None else keys).items():
            (secret / name).write_text(value)
        scheme = self.source.scheme
        return Access(
            schemes=(scheme,),
            endpoints={scheme: self.endpoint},
            credentials=(Credential(scheme=scheme, host=BUCKET, folder=secret),),
        )

    def put(self, key: str, content: bytes) -> str:
        """Write an object, and return its URI."""
        with tempfile.TemporaryDirectory() as folder:
            obstore.put(self.store(Path(folder)), key, content)
        return f"{self.source.scheme}://{BUCKET}/{key}"

    def store(self, secret: Path) -> ObjectStore:
        """Return the bucket, with all rights."""
        return self.source.connect(BUCKET, self.access(secret)).store


@contextmanager
def s3_server(advertised: str = "127.0.0.1") -> Iterator[ObjectServer]:
    """Start moto, with an empty bucket, at an address of this machine."""
    with _moto(advertised) as endpoint:
        yield ObjectServer(S3Source(), endpoint, S3_KEYS)


def service_account() -> str:
    """Return what Google gives for a service account, with a key that is made now."""
    private_key = subprocess.run(["openssl", "genrsa", "2048"], capture_output=True, check=True, text=True).stdout
    account = {
        "type": "service_account",
        "client_email": "reader@example.iam.gserviceaccount.com",
        "private_key": private_key,
        "private_key_id": "1",
        "token_uri": "https://oauth2.googleapis.com/token",
    }
    return json.dumps(account)


@contextmanager
def gs_server() -> Iterator[ObjectServer]:
    """Start moto, which answers as Google's XML API does; tokens are made from a service account's key as ever."""
    with _moto() as endpoint:
        yield ObjectServer(GsSource(), endpoint, {"service-account.json": service_account()})


@contextmanager
def az_server() -> Iterator[ObjectServer]:
    """Start Azurite, with an empty container."""
    options = ["--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence", "--skipApiVersionCheck"]
    with _running([str(AZURITE), *options, "--disableTelemetry"], r"listens on (http://127\.0\.0\.1:\d+)") as url:
        server = ObjectServer(AzSource(), f"{url}/{AZURE_ACCOUNT}", {"account-key": AZURE_KEY})
        _create_container(server)
        yield server


def needed(scheme: str) -> pytest.MarkDecorator:
    """Return the mark of tests that start the server of a scheme."""
    return pytest.mark.needs("azurite" if scheme == "az" else "peers")


SERVERS: dict[str, Callable[[], AbstractContextManager[ObjectServer]]] = {
    "s3": s3_server,
    "gs": gs_server,
    "az": az_server,
}


@contextmanager
def _moto(host: str = "127.0.0.1") -> Iterator[str]:
    with _running([str(MOTO), "-H", host, "-p", "0"], rf"Running on (http://{re.escape(host)}:\d+)") as url:
        request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=HANG_S).close()
        yield url


@contextmanager
def _running(command: list[str], announced: str) -> Iterator[str]:
    """Start a server, give the URL that it prints, and end it."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=folder)
            try:
                yield _announced(process, log, announced)
            finally:
                process.terminate()
                process.wait(timeout=HANG_S)


def _announced(process: subprocess.Popen[bytes], log: Path, pattern: str) -> str:
    until_s = time.monotonic() + HANG_S
    while time.monotonic() < until_s and process.poll() is None:
        if found := re.search(pattern, log.read_text()):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"{process.args!r} did not start:\n{log.read_text()}")


def _create_container(server: ObjectServer) -> None:
    """Create it by a request that is signed as Azure's documentation says; obstore only works within containers."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed = "\n".join(f"{name}:{value}" for name, value in headers.items())
    text = "PUT" + "\n" * 12 + f"{signed}\n/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{BUCKET}\nrestype:container"
    digest = hmac.digest(base64.b64decode(AZURE_KEY), text.encode(), "sha256")
    headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}"
    url = f"{server.endpoint}/{BUCKET}?restype=container"
    urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers), timeout=HANG_S).close()
