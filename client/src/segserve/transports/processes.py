"""Keeps callers from connections that are closed, or belong to another process."""

from __future__ import annotations

import os

from segserve.errors import ForkedClientError
from segserve_common.errors import BadRequestError


def check_process(made_in: int) -> None:
    """Raise `ForkedClientError` in another process than the one that made the connections."""
    if made_in != os.getpid():
        raise ForkedClientError(
            f"this client was made in process {made_in} and is used in its fork {os.getpid()}: "
            "make one after the fork, or start processes by spawn"
        )


def check_open(closed: bool) -> None:
    """Raise `BadRequestError` where the connections were closed."""
    if closed:
        raise BadRequestError("the client is closed")
