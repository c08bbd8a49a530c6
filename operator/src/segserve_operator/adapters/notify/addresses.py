"""Whom a notification may be sent to: nobody that only this machine, or its cloud, is to reach."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

from segserve_builder.sources.addresses import METADATA, meant

if TYPE_CHECKING:
    from segserve_builder.sources.addresses import Address


class RefusedAddressError(Exception):
    """A target is none that may be sent to; the text says which address was seen, and why not."""


async def resolved(host: str, port: int, *, loopback: bool) -> str:
    """Return an address of a host that may be sent to; connect to it, and not to the name, which may change.

    Raises `RefusedAddressError` where any of its addresses may not (on a cluster loopback is one of them), and OSError
    where the name is unknown.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # Of an address with a zone (fe80::1%eth0) the zone comes last, and is of link-local ones alone.
    addresses = [str(sockaddr[0]).partition("%")[0] for *_, sockaddr in found]
    for text in addresses:
        why = refusal(ip_address(text), loopback=loopback)
        if why:
            raise RefusedAddressError(f"{host!r} is {text}, {why}")
    return addresses[0]


def refusal(address: Address, *, loopback: bool) -> str:
    """Return why nothing is sent to an address; empty where it may be. Services of private nets may be told."""
    reached = meant(str(address))
    reasons = (
        (reached.is_link_local or reached in METADATA, "which is link-local or a cloud's metadata service"),
        (reached.is_loopback and not loopback, "which is the operator itself"),
        (reached.is_unspecified or reached.is_multicast, "which is no one server"),
    )
    return next((why for holds, why in reasons if holds), "")
