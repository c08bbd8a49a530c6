"""A private authority for the gateway of this machine, and the certificate that it issues to it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from segserve_common.files import private_folder, write_private
from segserve_operator.adapters.traffic.listener_certificates import CERTIFICATE_FILE, KEY_FILE

AUTHORITY_FILE: Final = "ca.crt"
_AUTHORITY_KEY_FILE: Final = "ca.key"
_AUTHORITY_TERM: Final = timedelta(days=3650)
_TERM: Final = timedelta(days=397)
_RENEWED_BEFORE: Final = timedelta(days=30)
_CLOCK_DIFFERENCE: Final = timedelta(hours=1)
_NAMES: Final = [
    x509.DNSName("localhost"),
    x509.IPAddress(IPv4Address("127.0.0.1")),
    x509.IPAddress(IPv6Address("::1")),
]
# A client that trusts the authority trusts it for no other host's name, even if its key is stolen. gRPC's TLS refuses
# an authority that is constrained to addresses.
_CONSTRAINT: Final = x509.NameConstraints(permitted_subtrees=[x509.DNSName("localhost")], excluded_subtrees=None)


def ensure_certificate(folder: Path, now: datetime | None = None) -> Path:
    """Make `folder` have an authority and a certificate of this machine, and return the authority's file.

    The authority is made once, the certificate again a month before it expires. All files are private to this user.
    """
    now = datetime.now(UTC) if now is None else now
    private_folder(folder)
    if not _is_valid(folder / AUTHORITY_FILE, folder / _AUTHORITY_KEY_FILE, now):
        _write_authority(folder, now)
        (folder / CERTIFICATE_FILE).unlink(missing_ok=True)  # of another authority
    if not _is_valid(folder / CERTIFICATE_FILE, folder / KEY_FILE, now):
        _write_certificate(folder, now)
    return folder / AUTHORITY_FILE


def _is_valid(certificate: Path, key: Path, now: datetime) -> bool:
    try:
        read = x509.load_pem_x509_certificate(certificate.read_bytes())
        return _load_key(key).public_key() == read.public_key() and read.not_valid_after_utc - now > _RENEWED_BEFORE
    except (FileNotFoundError, ValueError, TypeError):
        return False


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} is not a key on an elliptic curve")
    return key


def _write_authority(folder: Path, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "segserve on this machine")])
    certificate = (
        _builder(name, name, key, now, _AUTHORITY_TERM)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(_CONSTRAINT, critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_key(folder / _AUTHORITY_KEY_FILE, key)
    write_private(folder / AUTHORITY_FILE, certificate.public_bytes(Encoding.PEM))


def _write_certificate(folder: Path, now: datetime) -> None:
    authority = x509.load_pem_x509_certificate((folder / AUTHORITY_FILE).read_bytes())
    authority_key, key = _load_key(folder / _AUTHORITY_KEY_FILE), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _builder(name, authority.subject, key, now, _TERM)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_NAMES), critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    _write_key(folder / KEY_FILE, key)
    write_private(folder / CERTIFICATE_FILE, certificate.public_bytes(Encoding.PEM))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, term: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_DIFFERENCE)
        .not_valid_after(now + term)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
