"""Addresses that are not public: of the machine, of its networks, of its cloud."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address

METADATA: Final = frozenset(map(ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")))
"""Addresses at which clouds hand out credentials, besides link-local ones."""

_TRANSLATED: Final = (ip_network("64:ff9b::/96"), ip_network("::/96"))
"""IPv6 networks whose last 32 bits are an IPv4 address."""

_LOCAL_TRANSLATION: Final = ip_network("64:ff9b:1::/48")
"""Each network chooses the place of the IPv4 address in here, so it cannot be read from the address."""

_NOT_TRANSLATED: Final = (IPv6Address("::"), IPv6Address("::1"))


def reached_address(text: str) -> Address:
    """Return the address that a connection reaches: an embedded IPv4 address, or the address without its zone."""
    address = ip_address(text.partition("%")[0])
    if not isinstance(address, IPv6Address):
        return address
    if any(address in network for network in _TRANSLATED) and address not in _NOT_TRANSLATED:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def refusal(text: str, *, loopback: bool = False, private: bool = False) -> str:
    """Return why an address is refused, or an empty string if it is public.

    `loopback` allows this machine, `private` networks that are not public. Nothing allows link-local addresses and
    metadata services: they hand out the credentials of the machine.
    """
    address = reached_address(text)
    if address.is_link_local or address in METADATA:
        return "which is link-local or a cloud's metadata service"
    if address.is_loopback:
        return "" if loopback else "which is this machine"
    if address.is_unspecified or address.is_multicast:
        return "which is not the address of one server"
    if not private and (not address.is_global or address in _LOCAL_TRANSLATION):
        return "which is in a private network"
    return ""


def is_within(text: str, networks: Iterable[str]) -> bool:
    """Return whether an address is in one of the networks; names that are not networks (hosts) are skipped.

    A link-local address or metadata service is only in a network of that single address.
    """
    address = reached_address(text)
    candidates = [network for name in networks if (network := _network(name)) is not None]
    if address.is_link_local or address in METADATA:
        candidates = [network for network in candidates if network.num_addresses == 1]
    return any(address in network for network in candidates)


def _network(name: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(name, strict=False)
    except ValueError:
        return None
