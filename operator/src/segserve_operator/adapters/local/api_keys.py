"""The API key of this machine's user: made once, shown once, and kept only as its hash."""

from __future__ import annotations

import base64
import hashlib
import secrets
from typing import Final

from segserve_common.files import write_private
from segserve_operator.adapters.local.files import StateFolder

SECRET: Final = "generated-keys"
"""Name of the Secret of this machine that has the hash."""
SECRET_KEY: Final = "htpasswd"
CALLER: Final = "local"
"""Name of the caller with the key."""
_SECRET_BYTES: Final = 32


def make_key(name: str) -> tuple[str, str]:
    """Return a new API key of the caller `name`, and the line with its hash by which a gateway recognises it.

    The hash is SHA-1, the only one that Envoy's filter supports. It is safe because the secret is random and long:
    2^256 of them cannot be tried, and finding two texts with one hash, which is easy with SHA-1, opens no gateway.
    """
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    digest = base64.b64encode(hashlib.sha1(secret.encode(), usedforsecurity=False).digest()).decode()
    return base64.b64encode(f"{name}:{secret}".encode()).decode(), f"{name}:{{SHA}}{digest}\n"


def replace_key(state: StateFolder) -> str:
    """Make the key of this machine's user and return it; an earlier one ends."""
    key, line = make_key(CALLER)
    state.create()
    write_private(state.secrets / SECRET / SECRET_KEY, line)
    return key
