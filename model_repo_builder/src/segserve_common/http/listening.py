"""Sockets of servers that are called from outside their pod, whichever family of addresses the cluster has."""

from __future__ import annotations

import errno
import socket
from typing import Final

_NO_IPV6: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def listen_anywhere(port: int) -> socket.socket:
    """Return a socket that listens on all IPv6 and IPv4 addresses; port 0 chooses a free one.

    Without IPv6 in the kernel, it listens on IPv4 addresses only. Raises OSError, as if the port is taken.
    """
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("::", port), family=socket.AF_INET6, backlog=128, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in _NO_IPV6:
                raise
    return socket.create_server(("0.0.0.0", port), backlog=128)


def any_address() -> str:
    """Return the wildcard address of the machine: `::` if there is IPv6, which also covers IPv4."""
    with listen_anywhere(0) as probe:
        return str(probe.getsockname()[0])
