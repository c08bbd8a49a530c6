"""Whether a port of loopback is free."""

from __future__ import annotations

import socket

from segserve_operator.adapters.local.triton import LOOPBACK


def is_port_free(port: int) -> bool:
    """Tell whether a server could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
