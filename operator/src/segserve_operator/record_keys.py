"""Ed25519 keys with which records of rollouts are signed and checked, in PEM files."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segserve_operator.core.rollout.chain import Check, Sign


class RecordKeyError(ValueError):
    """A file is no Ed25519 key in PEM."""


def signer(path: Path) -> Sign:
    """Return what signs a digest with the private key in a file; raises `RecordKeyError`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise RecordKeyError(f"{path} cannot be read: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RecordKeyError(
            f"{path} has a {type(key).__name__}; allowed: an Ed25519 key (openssl genpkey -algorithm ed25519)"
        )
    return lambda digest: base64.b64encode(key.sign(digest.encode())).decode()


def checker(path: Path) -> Check:
    """Return what checks a digest's signature with the public key in a file; raises `RecordKeyError`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise RecordKeyError(f"{path} cannot be read: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise RecordKeyError(
            f"{path} has a {type(key).__name__}; allowed: an Ed25519 public key (openssl pkey -pubout)"
        )
    known = key

    def check(digest: str, signature: str) -> bool:
        try:
            known.verify(base64.b64decode(signature, validate=True), digest.encode())
        except (InvalidSignature, ValueError):
            return False
        return True

    return check
