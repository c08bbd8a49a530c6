"""The secret that Triton's restricted APIs require: only its agent can load, unload, trace or share memory."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path
from typing import Final

KEY: Final = "segserve"
RESTRICTED: Final = "model-repository,shared-memory,trace,logging"
_GRPC_PREFIX: Final = "triton-grpc-protocol-"


def obtain(path: Path) -> str:
    """Return the secret in the file `path`, which the first process creates; its user and group can read it.

    In a pod, Triton has it in its arguments, and its agent may be another user of the same group.
    """
    if not path.exists():
        handle, staging = tempfile.mkstemp(dir=path.parent, prefix=".secret-")  # mode 0600
        try:
            with os.fdopen(handle, "w") as file:
                os.fchmod(handle, 0o440)
                file.write(secrets.token_urlsafe(32))
            # Unlike a rename, a link fails if another process was first.
            path.hardlink_to(staging)
        except FileExistsError:
            pass
        finally:
            Path(staging).unlink()
    return path.read_text()


def server_arguments(secret: str) -> tuple[str, ...]:
    """Return the arguments of Triton (2.51 to 2.68 at least) that require the secret for its restricted APIs."""
    rule = f"{RESTRICTED}:{KEY}={secret}"
    return (f"--http-restricted-api={rule}", f"--grpc-restricted-protocol={rule}")


def grpc_headers(secret: str) -> dict[str, str]:
    """Return the headers of a gRPC call to a restricted API."""
    return {f"{_GRPC_PREFIX}{KEY}": secret}
