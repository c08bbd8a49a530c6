"""Which addresses a notification may go to."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from segserve_operator.adapters.notify.addresses import RefusedAddressError, refusal, resolved


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
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
    ],
)
@pytest.mark.parametrize("loopback", [True, False])
def test_nothing_is_sent_to_what_only_a_machine_or_its_cloud_is_to_reach(address: str, loopback: bool) -> None:
    assert refusal(ip_address(address), loopback=loopback)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_for_the_platform_of_one_machine(address: str) -> None:
    assert refusal(ip_address(address), loopback=False)
    assert not refusal(ip_address(address), loopback=True)


@pytest.mark.parametrize("address", ["10.0.0.7", "192.168.1.2", "34.1.2.3", "2600::1", "fd12::7", "::ffff:10.0.0.7"])
def test_services_within_the_cluster_and_without_may_be_told(address: str) -> None:
    assert not refusal(ip_address(address), loopback=False)


@pytest.mark.parametrize("host", ["169.254.169.254", "2852039166", "0xa9fea9fe", "127.1"])
async def test_other_spellings_of_an_address_change_nothing(host: str) -> None:
    with pytest.raises(RefusedAddressError):
        await resolved(host, 80, loopback=False)
