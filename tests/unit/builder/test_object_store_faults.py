"""Object stores whose servers answer what real ones do not when asked to, and what is sent to them."""

from __future__ import annotations

import base64
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from urllib.parse import parse_qsl, urlsplit

import pytest

from fakes.object_servers import S3_KEYS, service_account
from segserve_builder.errors import (
    ArtifactMissingError,
    SourceDeniedError,
    SourceUnauthorizedError,
    SourceUnavailableError,
)
from segserve_builder.sources.access import Access, Credential
from segserve_builder.sources.az import AzSource
from segserve_builder.sources.gs import GsSource
from segserve_builder.sources.object_store import ObjectStoreSource
from segserve_builder.sources.s3 import S3Source

SOURCES: dict[str, ObjectStoreSource] = {"s3": S3Source(), "gs": GsSource(), "az": AzSource()}
AZ_KEYS = {
    "AZURE_STORAGE_ACCOUNT_KEY": base64.b64encode(b"a key").decode(),
    "AZURE_STORAGE_SAS_TOKEN": "sv=2023-11-03&sig=of-a-sas",
}
SECRETS = {
    "s3": S3_KEYS | {"session-token": "session-of-s3"},
    "gs": {"service-account.json": ""},
    "az key": {"account-key": AZ_KEYS["AZURE_STORAGE_ACCOUNT_KEY"]},
    "az sas": {"sas-token": AZ_KEYS["AZURE_STORAGE_SAS_TOKEN"]},
}


def read(source: ObjectStoreSource, uri: str, access: Access) -> bytes:
    with source.open(uri, access) as stream:
        return b"".join(iter(lambda: stream.read(100_000), b""))


@pytest.mark.parametrize("bucket", ["", ".", "a@b", "a:1", "..%2f"])
@pytest.mark.parametrize("source", [S3Source(), GsSource(), AzSource()], ids=lambda source: source.scheme)
def test_a_bucket_has_a_buckets_name(source: ObjectStoreSource, bucket: str) -> None:
    with pytest.raises(ArtifactMissingError, match="names no bucket"):
        read(source, f"{source.scheme}://{bucket}/x", Access())


@pytest.mark.parametrize("source", [S3Source(), GsSource()], ids=lambda source: source.scheme)
def test_the_usual_host_at_a_private_address_is_denied(
    source: ObjectStoreSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("10.0.0.8", 443))])

    with pytest.raises(SourceDeniedError, match=r"10\.0\.0\.8, which is in a private network"):
        read(source, f"{source.scheme}://bucket/x", Access())


def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    access = Access(endpoints={"s3": f"http://127.0.0.1:{port}"})

    with pytest.raises(SourceUnavailableError, match=r"cannot be fetched: .*refused"):
        read(S3Source(), "s3://bucket/x", access)
    with pytest.raises(SourceUnavailableError, match=r"cannot be fetched now.*ConnectionRefused"):
        list(S3Source().files("s3://bucket/x", access))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (301, ArtifactMissingError),
        (400, ArtifactMissingError),
        (401, SourceUnauthorizedError),
        (429, SourceUnavailableError),
        (503, SourceUnavailableError),
    ],
)
def test_what_a_server_answers_is_told_by_kind(status: int, error: type[Exception]) -> None:
    with answering(status, b"<Error><Code>Why</Code></Error>") as (url, _):
        for ask in (read, lambda *asked: list(S3Source().files(*asked[1:]))):
            with pytest.raises(error) as raised:
                ask(S3Source(), "s3://bucket/x", Access(endpoints={"s3": url}))
            assert type(raised.value) is error


def test_an_object_that_breaks_off_is_told() -> None:
    with answering(200, b"half", length=8) as (url, _), pytest.raises(ConnectionError):
        read(S3Source(), "s3://bucket/x", Access(endpoints={"s3": url}))


def test_a_token_of_the_environment_goes_in_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_TOKEN", "of-the-environment")
    with answering(200, b"x") as (url, seen):
        access = Access(endpoints={"az": f"{url}/account1"}, ambient=True)
        assert read(AzSource(), "az://bucket/x", access) == b"x"

    assert [(asked.path, asked.headers["Authorization"]) for asked in seen] == [
        ("/account1/bucket/x", "Bearer of-the-environment")
    ]


def test_an_object_broken_off_under_a_token_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_TOKEN", "of-the-environment")
    with answering(200, b"half", length=8) as (url, _), pytest.raises(OSError, match="Azure"):
        read(AzSource(), "az://bucket/x", Access(endpoints={"az": f"{url}/account1"}, ambient=True))


@pytest.mark.parametrize("variable", ["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"])
def test_azures_key_and_signature_of_the_environment_sign_the_url(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, AZ_KEYS[variable])
    with answering(200, b"x") as (url, seen):
        read(AzSource(), "az://bucket/x", Access(endpoints={"az": f"{url}/account1"}, ambient=True))

    assert ["sig=" in asked.path for asked in seen] == [True]
    assert seen[0].headers["Authorization"] is None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_redirect_to_this_machine_is_denied_before_it_is_asked(name: str, status: int, tmp_path: Path) -> None:
    with answering(200, b"x") as (other, never), answering(status, b"", to=at_localhost(other)) as (url, seen):
        access = opened_by(name, url, tmp_path)
        with pytest.raises(SourceDeniedError, match=r"localhost.*this machine") as raised:
            read(SOURCES[access.credentials[0].scheme], f"{access.credentials[0].scheme}://bucket/x", access)

    assert len(seen) == 1
    assert not never
    assert not any(secret in str(raised.value) for secret in told(seen[0]))


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_redirect_to_where_it_may_lead_takes_no_secret_along(name: str, tmp_path: Path) -> None:
    with answering(200, b"x") as (other, there), answering(307, b"", to=at_localhost(other)) as (url, seen):
        access = opened_by(name, url, tmp_path).model_copy(update={"private": ("localhost",)})
        scheme = access.credentials[0].scheme
        assert read(SOURCES[scheme], f"{scheme}://bucket/x", access) == b"x"

    assert told(seen[0])
    sent = f"{there[0].path} {there[0].headers}"
    assert there[0].path == "/moved"
    assert not any(secret in sent for secret in (*told(seen[0]), "session-of-s3", "bucket/x"))


@pytest.mark.parametrize("status", [301, 400, 403])
def test_a_bucket_of_another_region_is_told_with_its_region(status: int, tmp_path: Path) -> None:
    region = {"x-amz-bucket-region": "eu-central-1"}
    refused = pytest.raises((ArtifactMissingError, SourceUnauthorizedError))
    with answering(status, b"<Code>PermanentRedirect</Code>", headers=region) as (url, _), refused as raised:
        read(S3Source(), "s3://bucket/x", opened_by("s3", url, tmp_path))

    assert "(PermanentRedirect)" in str(raised.value)
    assert "the region 'eu-central-1', which is named by the key region" in str(raised.value)
    assert "Signature" not in str(raised.value)


def test_an_object_that_is_labelled_as_encoded_arrives_as_it_is_stored() -> None:
    with answering(200, b"as stored", headers={"Content-Encoding": "gzip"}) as (url, _):
        assert read(S3Source(), "s3://bucket/x", Access(endpoints={"s3": url})) == b"as stored"


def test_the_environment_counts_only_where_it_may(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAFROMENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with answering(200, b"x") as (url, seen):
        for ambient in (False, True):
            read(S3Source(), "s3://bucket/x", Access(endpoints={"s3": url}, ambient=ambient))

    assert ["AKIAFROMENV" in asked.path for asked in seen] == [False, True]


def test_the_environments_endpoint_is_not_where_a_pools_requests_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    for name, value in S3_KEYS.items():
        (folder / name).write_text(value)
    with answering(200, b"x") as (url, seen), answering(200, b"y") as (other, never):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", other)
        monkeypatch.setenv("AWS_SESSION_TOKEN", "of the environment")
        credential = Credential(scheme="s3", folder=folder)
        access = Access(endpoints={"s3": url}, credentials=(credential,), ambient=True)
        assert read(S3Source(), "s3://bucket/x", access) == b"x"

    assert not never
    assert "X-Amz-Signature" in seen[0].path
    assert "X-Amz-Security-Token" not in seen[0].path


def test_the_profile_that_aws_takes_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = tmp_path / "credentials"
    written.write_text("[other]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = a%b\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(written))
    with answering(200, b"x") as (url, seen):
        for profile in ("other", "none"):
            monkeypatch.setenv("AWS_PROFILE", profile)
            read(S3Source(), "s3://bucket/x", Access(endpoints={"s3": url}, ambient=True))

    assert ["AKIAPROFILE" in asked.path for asked in seen] == [True, False]


def test_a_servers_own_authority_is_trusted_where_the_secret_names_it(tmp_path: Path) -> None:
    pair, folder = certified(tmp_path), tmp_path / "keys"
    folder.mkdir()
    for name, value in S3_KEYS.items():
        (folder / name).write_text(value)
    access = Access(credentials=(Credential(scheme="s3", folder=folder),))
    with answering(200, b"x", pair=pair) as (url, _):
        access = access.model_copy(update={"endpoints": {"s3": url}})
        with pytest.raises(ArtifactMissingError, match="certificate is refused"):
            read(S3Source(), "s3://bucket/x", access)
        with pytest.raises(SourceUnavailableError, match="InvalidCertificate"):
            list(S3Source().files("s3://bucket/x", access))

        (folder / "ca.crt").write_text(pair[0].read_text())

        assert read(S3Source(), "s3://bucket/x", access) == b"x"


def certified(folder: Path) -> tuple[Path, Path]:
    """Return a certificate for this machine's address that nobody else signed, and its key."""
    certificate, key = folder / "server.crt", folder / "server.key"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    told = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run([*command, *told, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key


def opened_by(name: str, url: str, folder: Path) -> Access:
    """Return the access of a pool whose Secret is the one of that name in `SECRETS`."""
    scheme = name.partition(" ")[0]
    keys = folder / "keys"
    keys.mkdir()
    for key, value in SECRETS[name].items():
        (keys / key).write_text(value or service_account())
    endpoint = f"{url}/account1" if scheme == "az" else url
    return Access(endpoints={scheme: endpoint}, credentials=(Credential(scheme=scheme, folder=keys),))


def at_localhost(url: str) -> str:
    """Return another host's URL: that of a server here by a name that no endpoint has."""
    return f"{url.replace('127.0.0.1', 'localhost')}/moved"


def told(asked: Asked) -> list[str]:
    """Return the values of the query that sign a request."""
    return [
        value for name, value in parse_qsl(urlsplit(asked.path).query) if re.search("(?i)sig$|signature|token", name)
    ]


@dataclass(frozen=True)
class Asked:
    path: str
    headers: Message


@contextmanager
def answering(
    status: int,
    body: bytes,
    length: int | None = None,
    pair: tuple[Path, Path] | None = None,
    to: str | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[str, list[Asked]]]:
    """A server that answers all in one way, and keeps what it was sent: what real ones do not do when asked to."""
    seen: list[Asked] = []
    more = dict(headers) | ({"Location": to} if to else {})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(Asked(self.path, self.headers))
            self.send_response(status)
            self.send_header("Content-Length", str(length or len(body)))
            self.send_header("ETag", '"1"')
            for name, value in more.items():
                self.send_header(name, value)
            self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        if pair is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*pair)
            httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"{'http' if pair is None else 'https'}://127.0.0.1:{httpd.server_port}", seen
        finally:
            httpd.shutdown()
            thread.join()
