"""HTTPS: whose certificates count, for which name, and that nothing leads out of it."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from fakes.flaky_server import Behaviour, flaky_server
from segserve_builder.errors import ArtifactMissingError, SourceDeniedError, SourceUnauthorizedError
from segserve_builder.sources import Access, RetryPolicy, fetch
from segserve_builder.sources.access import LOCAL, Credential

NET = bytes(range(256)) * 100
SHA256 = hashlib.sha256(NET).hexdigest()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[Behaviour]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with flaky_server(Behaviour(NET), context=context) as served:
        served.url = served.url.replace("127.0.0.1", "localhost")
        yield served


def trusting(folder: Path, pem: bytes) -> Access:
    folder.mkdir()
    (folder / "ca.crt").write_bytes(pem)
    return LOCAL.model_copy(update={"credentials": (Credential(scheme="https", folder=folder),)})


def got(url: str, cache: Path, access: Access) -> bytes:
    return fetch(f"{url}/net", SHA256, cache, access, retry_policy=RetryPolicy(tries=1)).read_bytes()


def test_the_authority_of_a_credential_is_trusted(server: Behaviour, authority: trustme.CA, tmp_path: Path) -> None:
    assert got(server.url, tmp_path, trusting(tmp_path / "secret", authority.cert_pem.bytes())) == NET
    assert server.seen[0][1]["Host"] == server.url.removeprefix("https://")


def test_no_other_certificate_is(server: Behaviour, authority: trustme.CA, tmp_path: Path) -> None:
    own = trusting(tmp_path / "secret", authority.cert_pem.bytes())
    other = trusting(tmp_path / "other", trustme.CA().cert_pem.bytes())

    for url, access in ((server.url, LOCAL), (server.url, other), (server.url.replace("localhost", "127.0.0.1"), own)):
        with pytest.raises(ArtifactMissingError, match="certificate is refused"):
            got(url, tmp_path / "cache", access)
    with pytest.raises(SourceUnauthorizedError, match=r"ca\.crt .* not a PEM"):
        got(server.url, tmp_path / "cache", trusting(tmp_path / "broken", b"no certificate"))
    assert server.seen == []


def test_a_redirect_from_https_to_http_is_not_followed(
    server: Behaviour, authority: trustme.CA, tmp_path: Path
) -> None:
    with flaky_server(Behaviour(NET)) as plain:
        server.redirects = {"/net": f"{plain.url}/net"}

        with pytest.raises(SourceDeniedError, match="from https to http"):
            got(server.url, tmp_path / "cache", trusting(tmp_path / "secret", authority.cert_pem.bytes()))

        assert plain.seen == []
