"""Envoy's certificates: read from a folder such as a mounted Secret, checked, and given to it.

They are checked before Envoy gets them, so a broken renewal never replaces one that serves, and a certificate and its
key always reach Envoy together.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from segserve_common.files import DamagedFileError, read_file
from segserve_operator.adapters.traffic.envoy_clusters import TYPES
from segserve_operator.adapters.traffic.envoy_extensions import encode_resources
from segserve_operator.adapters.traffic.envoy_files import DiscoveryResponse, write_watched
from segserve_operator.adapters.traffic.envoy_messages import Json
from segserve_operator.adapters.traffic.envoy_tls import CERTIFICATE, CLIENT_CA, TlsFiles, TlsSettings

CERTIFICATE_FILE: Final = "tls.crt"
KEY_FILE: Final = "tls.key"
MAX_BYTES: Final = 2**20
"""Largest file that is read; Kubernetes stores no larger Secret."""
_SECRET_TYPE: Final = f"{TYPES}.extensions.transport_sockets.tls.v3.Secret"
# What Envoy accepts.
_LEAST_RSA_BITS: Final = 2048
_CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")


class CertificateError(Exception):
    """A certificate or an authority that cannot be used; the message has what was found and what is allowed."""


class ListenerCertificates:
    """The certificate of the public listener and the authorities of callers, if any.

    Envoy keeps its certificates if new ones cannot be used.
    """

    def __init__(self, settings: TlsSettings, files: TlsFiles) -> None:
        self._folder = settings.certificate
        self._authorities_file = settings.client_ca
        self._files = files
        self._written: dict[Path, bytes] = {}
        self.expires_s: float | None = None
        """Unix time at which the certificate that was read last expires."""

    @property
    def can_serve(self) -> bool:
        """Whether Envoy has a certificate, even an old one."""
        return _has_resource(self._files.certificate) and (
            self._authorities_file is None or _has_resource(self._files.client_ca)
        )

    def refresh(self) -> str | None:
        """Give Envoy what has changed; return why something cannot be used, None if all is well.

        Without an earlier certificate Envoy gets a file without one: it starts, and ends every connection.
        """
        problems = [self._refresh(CERTIFICATE, self._files.certificate)]
        if self._authorities_file is not None:
            problems.append(self._refresh(CLIENT_CA, self._files.client_ca))
        return "; ".join(problem for problem in problems if problem is not None) or None

    def _refresh(self, name: str, path: Path) -> str | None:
        problem = None
        try:
            secret = self._certificate() if name == CERTIFICATE else self._authorities()
        except CertificateError as error:
            in_use = _has_resource(path)
            without = "until it can be, the gateway ends every connection"
            outcome = "the former one stays in use" if in_use else without
            problem = f"{error}; {outcome}"
            if in_use:
                return problem
            content = DiscoveryResponse(*encode_resources([]))
        else:
            resource = {"@type": _SECRET_TYPE, "name": name, **secret}
            content = DiscoveryResponse(*encode_resources([resource]))
            if name == CERTIFICATE and self.expires_s is not None and self.expires_s < datetime.now(UTC).timestamp():
                problem = f"the certificate has expired, at {datetime.fromtimestamp(self.expires_s, UTC):%FT%TZ}"
        if self._written.get(path) != content.content:
            if not path.is_file() or path.read_bytes() != content.content:
                write_watched(path, content)
            self._written[path] = content.content
        return problem

    def _certificate(self) -> Json:
        folder = self._folder
        chain, key = _read(folder, (CERTIFICATE_FILE, KEY_FILE))
        leaf = _certificates(chain, folder / CERTIFICATE_FILE)[0]
        _check_key(leaf, folder / CERTIFICATE_FILE)
        _check_pair(leaf, key, folder)
        self.expires_s = leaf.not_valid_after_utc.timestamp()
        return {
            "tls_certificate": {
                "certificate_chain": {"inline_string": chain.decode()},
                "private_key": {"inline_string": key.decode()},
            }
        }

    def _authorities(self) -> Json:
        path = self._authorities_file
        assert path is not None
        (content,) = _read(path.parent, (path.name,))
        _certificates(content, path)
        return {"validation_context": {"trusted_ca": {"inline_string": content.decode()}}}


def _read(folder: Path, names: Iterable[str]) -> list[bytes]:
    """Read files of one version of a Secret: the kubelet replaces all of them at once, by a link to a new folder."""
    version = folder / "..data"
    parent = version.resolve() if version.exists() else folder
    contents = []
    for name in names:
        try:
            with (parent / name).open("rb") as file:
                content = file.read(MAX_BYTES + 1)
            content.decode("ascii")
        except FileNotFoundError:
            raise CertificateError(f"there is no {name} in {folder}: is there such a Secret, with this key?") from None
        except OSError as error:
            raise CertificateError(f"{folder / name} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise CertificateError(f"{folder / name} is not PEM") from None
        if len(content) > MAX_BYTES:
            raise CertificateError(f"{folder / name} has more than {MAX_BYTES} bytes")
        contents.append(content)
    return contents


def _certificates(content: bytes, path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise CertificateError(f"{path} has no PEM certificate that can be read: {error}") from None


def _check_key(leaf: x509.Certificate, path: Path) -> None:
    key = leaf.public_key()
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _LEAST_RSA_BITS:
        return
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return
    found = f"RSA of {key.key_size} bits" if isinstance(key, rsa.RSAPublicKey) else type(key).__name__
    raise CertificateError(
        f"the key of {path} is {found}; allowed are RSA of at least {_LEAST_RSA_BITS} bits and {', '.join(_CURVES)}"
    )


def _check_pair(leaf: x509.Certificate, key: bytes, folder: Path) -> None:
    try:
        private = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError(f"{folder / KEY_FILE} has no PEM key without a password: {error}") from None
    if private.public_key() != leaf.public_key():
        raise CertificateError(f"{KEY_FILE} of {folder} is not the key of the first certificate in {CERTIFICATE_FILE}")


def _has_resource(path: Path) -> bool:
    try:
        return read_file(path, lambda text: bool(json.loads(text)["resources"]))
    except (OSError, DamagedFileError):
        return False
