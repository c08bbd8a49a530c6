"""The one place that connects: to an address that was checked, and never to a name, which may mean another by then."""

from __future__ import annotations

import http.client
import socket
import ssl
from typing import TYPE_CHECKING, Any

from segserve_builder.errors import SourceUnauthorizedError, SourceUnavailableError

if TYPE_CHECKING:
    from segserve_builder.sources.access import Access


def checked_addresses(host: str, port: int, access: Access) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
    """Return where `host` lies, as `socket.connect` takes it, each address checked.

    Raises `SourceDeniedError` where any of them is not allowed, and `SourceUnavailableError` for an unknown name.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SourceUnavailableError(f"the host {host!r} has no address: {error}") from error
    for *_, address in found:
        access.check_address(host, str(address[0]))
    return [(family, address) for family, *_, address in found]


def dial(host: str, port: int, access: Access, timeout_s: float) -> socket.socket:
    """Connect to the first of the host's addresses that answers; raises as `checked_addresses` does, and `OSError`."""
    failure = OSError(f"{host!r} has no address")
    for family, address in checked_addresses(host, port, access):
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout_s)
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure


class PlainConnection(http.client.HTTPConnection):
    """HTTP over a connection that was dialled here."""

    def __init__(self, host: str, port: int, access: Access, timeout_s: float) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._dialled = (host, port, access, timeout_s)

    def connect(self) -> None:
        """Connect to a checked address."""
        self.sock = dial(*self._dialled)


class TlsConnection(PlainConnection):
    """HTTPS; the certificate has to be the name's, whatever address it lies at."""

    default_port = http.client.HTTPS_PORT

    def __init__(self, host: str, port: int, access: Access, timeout_s: float, authority: str | None) -> None:
        super().__init__(host, port, access, timeout_s)
        self._trust = trust(authority)

    def connect(self) -> None:
        """Connect to a checked address, and check the certificate."""
        super().connect()
        plain = self.sock
        try:
            self.sock = self._trust.wrap_socket(plain, server_hostname=self.host)
        except OSError:
            plain.close()
            raise


def trust(authority: str | None) -> ssl.SSLContext:
    """Return what certificates are checked by: this machine's authorities, and the one given as PEM."""
    context = ssl.create_default_context()
    try:
        if authority:
            context.load_verify_locations(cadata=authority)
    except (ssl.SSLError, ValueError) as error:
        raise SourceUnauthorizedError(f"ca.crt of the credential is no PEM certificate: {error}") from error
    return context
