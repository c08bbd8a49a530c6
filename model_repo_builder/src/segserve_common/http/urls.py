"""URLs and addresses that may be requested: strict parsing, one lookup, and a check of every address.

Addresses of the machine, of its networks and of its cloud are not public.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final, Self, TypeAlias
from urllib.parse import quote, urlsplit

Address: TypeAlias = IPv4Address | IPv6Address

METADATA: Final = frozenset(
    map(
        ip_address,
        ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"),
    )
)
"""Addresses at which clouds hand out credentials, besides link-local ones."""

_TRANSLATED: Final = tuple(map(ip_network, ("64:ff9b::/96", "::ffff:0:0:0/96", "::/96")))
"""IPv6 networks whose last 32 bits are an IPv4 address."""

_UNREADABLE: Final = tuple(map(ip_network, ("64:ff9b:1::/48", "fec0::/10")))
"""Each network chooses the place of an IPv4 address in the first, so it cannot be read from the address; the second was
once what link-local addresses are."""

_NOT_TRANSLATED: Final = (IPv6Address("::"), IPv6Address("::1"))

AddressCheck: TypeAlias = Callable[[str, str], None]
"""Called with a host and one of its addresses; raises if it must not be connected to, such as `RefusedError`."""

PORTS: Final = {"http": 80, "https": 443}
_AMBIGUOUS: Final = re.compile(r"[^\x21-\x7e]|\\")


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

    `loopback` allows this machine, `private` networks that are not public. Nothing allows what `is_forbidden`.
    """
    address = reached_address(text)
    if is_forbidden(text):
        return "which is link-local or a cloud's metadata service"
    if address.is_loopback:
        return "" if loopback else "which is this machine"
    if address.is_unspecified or address.is_multicast:
        return "which is not the address of one server"
    if not private and not address.is_global:
        return "which is in a private network"
    return ""


def is_loopback(host: str) -> bool:
    """Return whether a host name or address means this machine; a name such as 127.example.org does not."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_proxied(url: str) -> bool:
    """Return whether the proxies of the environment are for a URL: a server of this machine is asked directly."""
    try:
        return not is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return True


def is_forbidden(text: str) -> bool:
    """Return whether an address is link-local, of a metadata service, or may be a translation of such a one.

    They hand out the credentials of the machine, so no setting allows them.
    """
    address = reached_address(text)
    return address.is_link_local or address in METADATA or any(address in network for network in _UNREADABLE)


def is_within(text: str, networks: Iterable[str]) -> bool:
    """Return whether an address is in one of the networks; names that are not networks (hosts) are skipped."""
    address = reached_address(text)
    return any(address in network for name in networks if (network := _network(name)) is not None)


def matches_host(host: str, patterns: Iterable[str]) -> bool:
    """Return whether a host matches one of the `fnmatch` patterns, which are in lower case."""
    return any(fnmatchcase(host.lower(), pattern.lower()) for pattern in patterns)


def _network(name: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(name, strict=False)
    except ValueError:
        return None


class RefusedError(Exception):
    """A URL or an address that must not be requested; nothing was sent to it."""


class UrlError(Exception):
    """A text that is not an http(s) URL with a host."""


class RequestError(Exception):
    """A request without a usable response; `is_transient` says whether it may succeed later."""

    def __init__(self, message: str, *, is_transient: bool = False) -> None:
        super().__init__(message)
        self.is_transient = is_transient


@dataclass(frozen=True, slots=True)
class Url:
    """The parts of an http(s) URL, from one parser for what is checked and for what is connected to."""

    scheme: str
    host: str
    port: int
    target: str
    """Path and query, as sent."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take a URL apart.

        Raises `RefusedError` for another scheme, for credentials in the URL, and for characters that parsers read
        differently; `UrlError` for a URL without a host.
        """
        if ambiguous := _AMBIGUOUS.search(text):
            raise RefusedError(f"a URL has {ambiguous[0]!r}; allowed is ASCII, percent-encoded, and hosts as xn--...")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise UrlError(f"an http(s) URL with a host is needed: {error}") from error
        if "@" in parts.netloc:
            raise RefusedError("a URL names a user or a password; name a credential instead")
        if parts.scheme not in PORTS:
            raise RefusedError(f"the scheme {parts.scheme!r} is not allowed here; allowed: http, https")
        if not parts.hostname:
            raise UrlError(f"{text.partition('?')[0]!r} has no host; an http(s) URL with a host is needed")
        path = quote(parts.path, safe="/%:@!$&'()*+,;=~-._") or "/"
        return cls(
            parts.scheme, parts.hostname, port or PORTS[parts.scheme], f"{path}?{parts.query}" if parts.query else path
        )

    @classmethod
    def normalised(cls, text: str) -> Self:
        """Take a service's URL apart as httpx does: international hosts and paths are encoded.

        Raises `UrlError` for another scheme, for credentials in the URL, and without a host; it shows only the scheme,
        as the rest may be secret.
        """
        import httpx  # here, as it takes 80 ms and 10 MiB: not every process of a pod sends requests

        try:
            url = httpx.URL(text)
        except httpx.InvalidURL as error:
            raise UrlError(f"not a URL: {error}") from error
        if url.scheme not in PORTS or not url.host or url.userinfo:
            raise UrlError(f"scheme {url.scheme!r}; allowed are http and https, a host, and no credentials before it")
        return cls(
            url.scheme, url.raw_host.decode("ascii"), url.port or PORTS[url.scheme], url.raw_path.decode("ascii")
        )

    @property
    def netloc(self) -> str:
        """The value of the `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: a credential is for these."""
        return self.scheme, self.host, self.port

    def __str__(self) -> str:
        """Return the URL without its query, which may hold a signature."""
        return f"{self.scheme}://{self.netloc}{self.target.partition('?')[0]}"


def own_service(host: str, address: str) -> None:
    """Check the address of a service configured by this machine's user; private networks and loopback are allowed."""
    if reason := refusal(address, loopback=True, private=True):
        raise RefusedError(f"{host!r} is at {address}, {reason}")


def service_check(allowed: Collection[str], setting: str) -> AddressCheck:
    """Return the check of services that tenants configure and that a process of another owner calls.

    `allowed` are patterns of hosts, or networks, from the chart's value `setting`: only these may be called, and only
    these may have private addresses. If it is empty, all public addresses may be called.
    """

    def check(host: str, address: str) -> None:
        is_listed = matches_host(host, allowed) or is_within(address, allowed)
        if reason := refusal(address, private=is_listed):
            raise RefusedError(f"{host!r} is at {address}, {reason}; the chart's {setting} may allow private hosts")
        if allowed and not is_listed:
            raise RefusedError(f"{host!r} is not allowed by the chart's {setting}: {', '.join(allowed)}")

    return check


def lookup(host: str, port: int, check_address: AddressCheck) -> list[str]:
    """Return the addresses of a host, all checked.

    Raises what `check_address` raises if one of them is not allowed, and `OSError` for an unknown host.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise OSError(f"the host {host!r} has no address: {error}") from error
    return checked(host, found, check_address)


def checked(host: str, found: list[Any], check_address: AddressCheck) -> list[str]:
    """Return the addresses in a result of `getaddrinfo`, each checked, with its zone if it has one."""
    addresses: dict[str, None] = {}  # unique, and in order
    for *_, (address, _, *scope) in found:
        check_address(host, str(address))
        zone = f"%{scope[1]}" if len(scope) > 1 and scope[1] and "%" not in address else ""
        addresses[f"{address}{zone}"] = None
    return list(addresses)
