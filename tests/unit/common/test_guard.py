"""Services of users are reached, and neither this machine nor its cloud by any spelling of their address."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import httpx
import pytest

from segserve_common.http.guard import send, send_async
from segserve_common.http.urls import RefusedError, Url, UrlError, lookup, refusal, service_check


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.0.1",
        "fe80::1",
        "fd00:ec2::254",
        "100.100.100.200",
        "168.63.129.16",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "::ffff:0:169.254.169.254",
        "64:ff9b:1::a9fe:a9fe",
        "fec0::1",
        "192.0.0.192",
        "64:ff9b::192.0.0.192",
        "fd00:ec2::23",
        "fd20:ce::254",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
    ],
)
@pytest.mark.parametrize("loopback", [True, False])
def test_nothing_is_sent_to_what_only_a_machine_or_its_cloud_is_to_reach(address: str, loopback: bool) -> None:
    assert refusal(address, loopback=loopback, private=True)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_for_the_platform_of_one_machine(address: str) -> None:
    assert refusal(address, private=True)
    assert not refusal(address, loopback=True, private=True)


@pytest.mark.parametrize("address", ["10.0.0.7", "192.168.1.2", "34.1.2.3", "2600::1", "fd12::7", "::ffff:10.0.0.7"])
def test_services_within_the_cluster_and_without_may_be_told(address: str) -> None:
    assert not refusal(address, private=True)


@pytest.mark.parametrize("host", ["169.254.169.254", "2852039166", "0xa9fea9fe", "127.1"])
def test_other_spellings_of_an_address_change_nothing(host: str) -> None:
    with pytest.raises(RefusedError):
        lookup(host, 80, service_check(["*", "0.0.0.0/0"], "gates.hosts"))


@pytest.mark.parametrize(
    ("text", "netloc", "shown"),
    [
        ("http://Example.org", "example.org", "http://example.org/"),
        ("https://example.org:443/a?signature=1", "example.org", "https://example.org/a"),
        ("http://[::1]:8080/a b".replace(" ", "%20"), "[::1]:8080", "http://[::1]:8080/a%20b"),
    ],
)
def test_both_parsers_agree_on_a_plain_url(text: str, netloc: str, shown: str) -> None:
    parsed = Url.parse(text)

    assert parsed == Url.normalised(text)
    assert (parsed.netloc, str(parsed)) == (netloc, shown)


def test_a_service_may_have_an_international_name_and_a_source_may_not() -> None:
    assert Url.normalised("https://bücher.example/ä").netloc == "xn--bcher-kva.example"
    with pytest.raises(RefusedError, match="'ü'"):
        Url.parse("https://bücher.example/ä")


@pytest.mark.parametrize("text", ["ftp://example.org/", "http://", "http://user:secret@example.org/", "http://[::1"])
def test_a_url_of_a_service_that_is_not_one_is_an_error_that_does_not_show_it(text: str) -> None:
    with pytest.raises(UrlError) as caught:
        Url.normalised(text)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("is_async", [True, False])
def test_a_host_is_reached_at_the_first_of_its_addresses_that_accepts(
    is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service at `localhost` may listen on 127.0.0.1 alone, where the name means ::1 first."""
    found = [(socket.AF_INET6, 1, 6, "", ("::1", 80, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.1", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        if request.url.host == "::1":
            raise httpx.ConnectError("refused")
        return httpx.Response(200)

    arguments: Any = (Url.parse("http://localhost"), lambda *_: None, {}, 1.0)
    transport = httpx.MockTransport(answer)
    response = asyncio.run(send_async(transport, "POST", *arguments)) if is_async else send(transport, *arguments)

    assert response.status_code == 200
    assert asked == ["::1", "127.0.0.1"]
