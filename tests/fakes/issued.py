"""Certificates of a private authority with the names that a test asks for, SPIFFE IDs among them."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID


def issued(
    authority: trustme.CA, *, uri: str = "", dns: str = "", subject: str = "x", lasts: timedelta = timedelta(hours=1)
) -> tuple[bytes, bytes]:
    """Return (certificate, key) in PEM."""
    signer = load_pem_private_key(authority.private_key_pem.bytes(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    issuer = x509.load_pem_x509_certificate(authority.cert_pem.bytes())
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    names: list[x509.GeneralName] = [x509.DNSName(dns)] if dns else []
    names += [x509.UniformResourceIdentifier(uri)] if uri else []
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + lasts)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)
    return certificate, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def tls_secret(authority: trustme.CA, lasts: timedelta) -> dict[str, Any]:
    """Return the Secret `tls` of a gateway, with a certificate that is valid for so long from now."""
    chain, key = issued(authority, dns="coins.example", lasts=lasts)
    data = {"tls.crt": b64encode(chain).decode(), "tls.key": b64encode(key).decode()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tls"}, "data": data}
