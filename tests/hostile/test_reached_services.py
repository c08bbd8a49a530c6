"""Tenants who have the operator or their servers call for them: where that leads, and what they learn of the answer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from fakes.answering_service import says, service
from fakes.flaky_server import Behaviour, flaky_server
from fakes.golden_pictures import check_of, context_of
from fakes.pools import MINIMAL, pool_context, with_defaults
from segserve_builder.errors import DigestMismatchError, SourceDeniedError
from segserve_builder.sources import Access, RetryPolicy, fetch
from segserve_common.http.urls import RefusedError, lookup, service_check
from segserve_operator.adapters.checks import promql, webhook
from segserve_operator.adapters.kube.objects import artifacts
from segserve_operator.api.rollout_policy import PromqlGate, WebhookGate
from segserve_operator.core.gates.checks import CheckError

SECRET = "hvs.CAESIJ-a-token"
EVERYTHING = ("*", "0.0.0.0/0", "::/0", "169.254.169.254/32")
METADATA = (
    "169.254.169.254",
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "169.16689662",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "fd00:ec2::254",
    "::ffff:169.254.169.254",
    "::ffff:0:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "fec0::1",
    "fe80::1",
)


@pytest.mark.core
@pytest.mark.parametrize("host", METADATA)
def test_no_setting_of_a_pool_or_chart_reaches_the_credentials_of_a_machine(host: str) -> None:
    access = Access(private=EVERYTHING, endpoints={"s3": f"http://{host if ':' not in host else f'[{host}]'}:80"})

    with pytest.raises(SourceDeniedError):
        lookup(host, 80, access.check_address)
    with pytest.raises(RefusedError):
        lookup(host, 80, service_check(EVERYTHING, "gates.hosts"))


@pytest.mark.parametrize(
    ("allowed", "host", "address", "is_called"),
    [
        ((), "hooks.example.com", "93.184.215.14", True),
        ((), "prometheus.monitoring", "10.0.0.7", False),
        ((), "segserve-other--gateway", "10.0.0.8", False),
        (("prometheus.monitoring",), "prometheus.monitoring", "10.0.0.7", True),
        (("prometheus.monitoring",), "vault.security", "10.0.0.7", False),
        (("prometheus.monitoring",), "hooks.example.com", "93.184.215.14", False),
        (("10.0.0.0/24",), "any.name", "10.0.0.7", True),
        (("*",), "vault.security", "10.0.0.9", True),
        (("*",), "localhost", "127.0.0.1", False),
    ],
)
def test_a_gate_calls_no_private_service_that_the_chart_does_not_list(
    allowed: tuple[str, ...], host: str, address: str, is_called: bool
) -> None:
    check = service_check(allowed, "gates.hosts")

    if is_called:
        check(host, address)
    else:
        with pytest.raises(RefusedError, match=r"gates\.hosts"):
            check(host, address)


def access_of(chart: dict[str, Any], **pool: Any) -> Access:
    return artifacts.access_of(with_defaults(pool_context(MINIMAL, artifacts=pool), **chart))


def test_a_pool_reaches_no_scheme_host_or_endpoint_beyond_the_charts() -> None:
    chart = {"artifact_schemes": ("oci", "s3"), "artifact_hosts": ("registry.corp", "models-*")}

    wide = access_of(chart, schemes=["oci", "http", "s3"], hosts=["*"], endpoints={"s3": "https://evil.example"})
    narrow = access_of(chart, schemes=["http"], hosts=["registry.corp"])
    silent = access_of(chart)

    for access, scheme, host in (
        (wide, "http", "registry.corp"),
        (wide, "oci", "evil.example"),
        (wide, "s3", "models-a"),  # at an endpoint of the tenant
        (narrow, "oci", "registry.corp"),
        (narrow, "http", "registry.corp"),
        (silent, "oci", "evil.example"),
    ):
        with pytest.raises(SourceDeniedError):
            access.check_uri(scheme, host)
    wide.check_uri("oci", "registry.corp")
    silent.check_uri("s3", "models-a")


@pytest.mark.parametrize(("folders", "is_shown"), [((), False), (None, True)], ids=["a pool", "this machine's user"])
def test_a_wrong_digest_does_not_tell_what_is_at_a_private_address(
    folders: tuple[Path, ...] | None, is_shown: bool, tmp_path: Path
) -> None:
    access = Access(private=("127.0.0.1/32",), folders=folders)
    with flaky_server(Behaviour(SECRET.encode())) as server, pytest.raises(DigestMismatchError) as caught:
        fetch(server.url, "0" * 64, tmp_path, access, retry_policy=RetryPolicy(tries=1))

    assert (hashlib.sha256(SECRET.encode()).hexdigest() in str(caught.value)) is is_shown


async def test_a_webhooks_answer_tells_nothing_but_its_status() -> None:
    async with service(says({"token": SECRET})) as url:
        gate = WebhookGate(name="own", url=url)
        found = await webhook.run(check_of("check", spec=gate, gate="own"), context_of(), print)

    assert found.status == 200
    assert "CAES" not in repr(found)


@pytest.mark.parametrize(
    "body",
    [
        {"status": "error", "errorType": SECRET, "error": SECRET},
        {"status": "success", "data": {"resultType": "scalar", "result": [1, SECRET]}},
        {"token": SECRET},
    ],
)
async def test_a_query_of_what_is_no_prometheus_shows_nothing_of_it(body: Any) -> None:
    async with service(says(body)) as url:
        gate = PromqlGate(name="own", address=url, query="up", max=2.0)
        with pytest.raises(CheckError) as caught:
            await promql.run(check_of("check", spec=gate, gate="own"), context_of(), print)

    assert "CAES" not in str(caught.value)
