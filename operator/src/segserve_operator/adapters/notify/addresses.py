"""Whom a notification may be sent to: nobody that only this machine, or its cloud, is to reach."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address

_METADATA: Final = frozenset(map(ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")))
"""What clouds answer credentials at, besides link-local addresses."""

_TRANSLATED: Final = ip_network("64:ff9b::/96")


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
    """Return why nothing is sent to an address; empty where it may be."""
    meant = _meant(address)
    reasons = (
        (meant.is_link_local or meant in _METADATA, "which is link-local or a cloud's metadata service"),
        (meant.is_loopback and not loopback, "which is the operator itself"),
        (meant.is_unspecified or meant.is_multicast, "which is no one server"),
    )
    return next((why for holds, why in reasons if holds), "")


def _meant(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one stands for, or the address itself."""
    if not isinstance(address, IPv6Address):
        return address
    if address in _TRANSLATED:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address
