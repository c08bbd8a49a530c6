"""How segserve itself calls a gateway: by its internal listener, where requests name the group."""

from __future__ import annotations

from typing import Final

import httpx

SOCKET: Final = "unix:"
"""What the address of a listener begins with that is a socket in the file system; gRPC reads it likewise."""


def internal_client(url: str, *, timeout_s: float) -> httpx.AsyncClient:
    """Return a client of the internal listener at `url`: `http://host:port`, or `unix:` and a socket's path."""
    if url.startswith(SOCKET):
        transport = httpx.AsyncHTTPTransport(uds=url.removeprefix(SOCKET), verify=False)
        return httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=timeout_s, trust_env=False)
    return httpx.AsyncClient(base_url=url, timeout=timeout_s, verify=False, trust_env=False)
