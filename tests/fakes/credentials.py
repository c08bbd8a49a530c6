"""Credentials of callers: an issuer that signs tokens as it is told to, and API keys with the lines of their hashes."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from typing import Any, Final

from cryptography.hazmat.primitives import hashes, hmac, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

ISSUER: Final = "https://issuer.example"
AUDIENCE: Final = "segserve"


def b64(data: bytes) -> str:
    """Return base64 for URLs, without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Issuer:
    """Signs tokens with a key of its own."""

    def __init__(self, kid: str = "1", name: str = ISSUER) -> None:
        self.kid = kid
        self.name = name
        self._key = rsa.generate_private_key(65537, 2048)

    @property
    def jwk(self) -> dict[str, str]:
        """The public key."""
        numbers = self._key.public_key().public_numbers()
        as_text = (b64(number.to_bytes((number.bit_length() + 7) // 8, "big")) for number in (numbers.n, numbers.e))
        modulus, exponent = as_text
        return {"kty": "RSA", "kid": self.kid, "alg": "RS256", "use": "sig", "n": modulus, "e": exponent}

    @property
    def jwks(self) -> str:
        """The public key as a JSON Web Key Set."""
        return json.dumps({"keys": [self.jwk]})

    def pem(self) -> bytes:
        """Return the public key as PEM, which everybody may know."""
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def token(self, *, header: dict[str, Any] | None = None, secret: bytes | None = None, **claims: Any) -> str:
        """Return a token with these claims beside good ones; a claim that is None is left out.

        With `secret` it is signed by HMAC with that, and not at all if its algorithm is `none`.
        """
        # Many are made when their module is imported, and sent by a test much later.
        good = {"iss": self.name, "aud": AUDIENCE, "sub": "ann", "exp": int(time.time()) + 86400}
        held = {key: value for key, value in {**good, **claims}.items() if value is not None}
        head = {"typ": "JWT", "alg": "RS256", "kid": self.kid, **(header or {})}
        signed = f"{b64(json.dumps(head).encode())}.{b64(json.dumps(held).encode())}"
        return f"{signed}.{self._signature(str(head['alg']), signed.encode(), secret)}"

    def _signature(self, algorithm: str, signed: bytes, secret: bytes | None) -> str:
        if algorithm.lower() == "none":
            return ""
        if secret is not None:
            mac = hmac.HMAC(secret, hashes.SHA256())
            mac.update(signed)
            return b64(mac.finalize())
        return b64(self._key.sign(signed, padding.PKCS1v15(), hashes.SHA256()))


def api_key(name: str, secret: str) -> str:
    """Return the key that a caller sends."""
    return base64.b64encode(f"{name}:{secret}".encode()).decode()


def key_line(name: str, secret: str) -> str:
    """Return the line of a Secret that admits the caller with this key."""
    return f"{name}:{{SHA}}{base64.b64encode(hashlib.sha1(secret.encode()).digest()).decode()}\n"
