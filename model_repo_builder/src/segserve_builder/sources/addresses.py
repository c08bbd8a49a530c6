"""Which addresses are not everybody's: those of the machine, of its nets, of its cloud."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Address: TypeAlias = IPv4Address | IPv6Address

METADATA: Final = frozenset(map(ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")))
"""What clouds answer credentials at, besides link-local addresses."""

_TRANSLATED: Final = (ip_network("64:ff9b::/96"), ip_network("::/96"))
"""IPv6 networks whose last 32 bits are an IPv4 address."""

_OWN_TRANSLATION: Final = ip_network("64:ff9b:1::/48")
"""Here each net puts the IPv4 address where it likes."""

_THEMSELVES: Final = (IPv6Address("::"), IPv6Address("::1"))


def meant(text: str) -> Address:
    """Return the address that is reached: of an IPv6 one that stands for an IPv4 one, that; a zone is left out."""
    address = ip_address(text.partition("%")[0])
    if not isinstance(address, IPv6Address):
        return address
    if any(address in network for network in _TRANSLATED) and address not in _THEMSELVES:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def refusal(text: str) -> str:
    """Return why an address is not a public server's; empty where it is one."""
    address = meant(text)
    reasons = (
        (address.is_link_local or address in METADATA, "which is link-local or a cloud's metadata service"),
        (address.is_loopback, "which is this machine"),
        (address.is_unspecified or address.is_multicast, "which is no one server"),
        (not address.is_global or address in _OWN_TRANSLATION, "which is of a private net"),
    )
    return next((why for holds, why in reasons if holds), "")


def is_within(text: str, networks: Iterable[str]) -> bool:
    """Return whether an address is in one of the networks; what is not a network (a host's name) holds nothing.

    Link-local addresses and metadata services are in none: only their own address names them.
    """
    address = meant(text)
    found = [network for name in networks if (network := _network(name)) is not None]
    if address.is_link_local or address in METADATA:
        found = [network for network in found if network.num_addresses == 1]
    return any(address in network for network in found)


def _network(name: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(name, strict=False)
    except ValueError:
        return None
