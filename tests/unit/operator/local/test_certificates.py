"""The private authority of this machine's gateway."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from fakes.waiting import connections_are_closed
from segserve_operator.adapters.local.certificates import ensure_certificate

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nobody_else_can_read_the_authoritys_key_nor_the_certificates(tmp_path: Path) -> None:
    ensure_certificate(tmp_path / "tls")

    assert (tmp_path / "tls").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "tls").iterdir()} == {0o600}


def test_nothing_changes_until_a_month_before_the_certificate_expires(tmp_path: Path) -> None:
    ensure_certificate(tmp_path, NOW)
    first = contents(tmp_path)

    ensure_certificate(tmp_path, NOW + timedelta(days=366))
    assert contents(tmp_path) == first

    ensure_certificate(tmp_path, NOW + timedelta(days=368))
    renewed = contents(tmp_path)
    assert {name for name in first if renewed[name] != first[name]} == {"tls.crt", "tls.key"}


@pytest.mark.parametrize("name", ["ca.crt", "ca.key", "tls.crt", "tls.key"])
def test_a_file_that_is_lost_or_broken_is_made_again(tmp_path: Path, name: str) -> None:
    ensure_certificate(tmp_path)
    (tmp_path / name).write_text("half")

    ensure_certificate(tmp_path)

    authority = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    x509.load_pem_x509_certificate((tmp_path / "tls.crt").read_bytes()).verify_directly_issued_by(authority)


@pytest.mark.parametrize(("host", "trusted"), [("127.0.0.1", True), ("localhost", True), ("example.com", False)])
async def test_who_trusts_the_authority_trusts_this_machine_alone(tmp_path: Path, host: str, trusted: bool) -> None:
    authority = ensure_certificate(tmp_path)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=own)
    port = server.sockets[0].getsockname()[1]
    context = ssl.create_default_context(cafile=authority)
    context.verify_flags |= ssl.VERIFY_X509_STRICT

    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=host)
        writer.close()
        reached = True
    except ssl.SSLCertVerificationError:
        reached = False

    server.close()
    await connections_are_closed()
    assert reached is trusted
