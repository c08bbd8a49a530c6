"""Servers of pods answer on whichever family of addresses their cluster has."""

from __future__ import annotations

import errno
import socket
import urllib.request
from pathlib import Path
from typing import Any, Final

import pytest

from fakes.waiting import HANG_S
from segserve_builder.cluster.probe_server import ProbeServer, probe_response
from segserve_common.http.listening import any_address, listen_anywhere

_ADDRESSES: Final = Path("/proc/net/if_inet6")
HAS_IPV6: Final = _ADDRESSES.exists() and bool(_ADDRESSES.read_text())


@pytest.mark.parametrize("host", ["127.0.0.1", *(["[::1]"] if HAS_IPV6 else [])])
def test_probes_are_answered_on_ipv4_and_on_ipv6(host: str) -> None:
    server = ProbeServer(0, {"/live": lambda: probe_response(True, "well")})
    server.start()
    try:
        with urllib.request.urlopen(f"http://{host}:{server.port}/live", timeout=HANG_S) as answer:
            assert answer.read() == b"well\n"
    finally:
        server.stop()


@pytest.mark.parametrize("family", ["no such family", "no such address"])
def test_a_kernel_without_ipv6_is_listened_to_on_ipv4(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = errno.EAFNOSUPPORT if family == "no such family" else errno.EADDRNOTAVAIL
    create = socket.create_server

    def without_ipv6(address: tuple[str, int], **options: Any) -> socket.socket:
        if options.get("family") == socket.AF_INET6:
            raise OSError(code, "not here")
        return create(address, **options)

    monkeypatch.setattr(socket, "create_server", without_ipv6)

    assert any_address() == "0.0.0.0"


def test_a_port_that_is_taken_is_an_error() -> None:
    with listen_anywhere(0) as first, pytest.raises(OSError, match="Address already in use"):
        listen_anywhere(first.getsockname()[1])


def test_all_addresses_are_those_of_ipv6_where_there_is_ipv6() -> None:
    assert any_address() == ("::" if HAS_IPV6 else "0.0.0.0")
