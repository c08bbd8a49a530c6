"""TLS between gateway and servers on two real Envoys: what a stranger on the pods' network does not get."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
import trustme
from cryptography import x509
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from fakes.gateway import RunningGateway, running_gateway
from fakes.issued import identity_secret
from fakes.mounted_secret import MountedSecret
from fakes.repeated_calls import RepeatedCalls
from fakes.server_sidecar import POD, RunningSidecar, running_sidecar
from fakes.triton import StubTriton
from fakes.waiting import HANG_S, eventually
from segserve_operator.adapters.traffic.envoy_files import ConfigurationRejectedError
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan
from segserve_operator.gateway_sync.follower import Follower
from segserve_operator.gateway_sync.plan_shards import ShardContent

pytestmark = [pytest.mark.platform, pytest.mark.core, pytest.mark.asyncio(loop_scope="module")]

INFER = "/v2/models/coins/infer"
SERVERS = "spiffe://example.org/ns/vision/sa/servers"
GATEWAY = "gateway.default.vision.svc"


def plan(*servers: Endpoint, group: str = "main") -> TrafficPlan:
    return TrafficPlan((Route("coins", (Share(group, "coins-a", 100, servers),)),), servers[:1])


@dataclass
class Pod:
    """A gateway and one server, whose Triton listens on loopback only, with one authority for both."""

    authority: trustme.CA
    gateway: RunningGateway
    own: MountedSecret
    sidecar: RunningSidecar
    triton: StubTriton

    def trust(self, secret: dict[str, bytes] | None, folder: Path) -> ssl.SSLContext:
        """Return the context of a caller with this identity, who takes any server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if secret is not None:
            (folder / "caller.pem").write_bytes(secret["tls.key"] + secret["tls.crt"])
            context.load_cert_chain(folder / "caller.pem")
        return context

    def renew_gateway(self, content: dict[str, bytes]) -> str | None:
        self.own.write(content)
        return self.gateway.traffic.server_certificates.refresh()

    async def by_http(self) -> int:
        async with httpx.AsyncClient(base_url=self.gateway.traffic.url, trust_env=False, timeout=HANG_S) as client:
            return (await client.post(INFER, content=b"image")).status_code

    async def by_grpc(self) -> str:
        async with grpc.aio.insecure_channel(self.gateway.authority) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                answer = await stub.ModelInfer(pb.ModelInferRequest(model_name="coins"), timeout=HANG_S)
            except grpc.aio.AioRpcError as error:
                return str(error.code().name)
            return str(answer.model_version)

    async def serves(self) -> bool:
        return (await self.by_http(), await self.by_grpc()) == (200, "coins")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pod(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pod]:
    folder, authority = tmp_path_factory.mktemp("upstream"), trustme.CA()
    own = MountedSecret(folder / "gateway-secret", identity_secret(authority, GATEWAY))
    secret = MountedSecret(folder / "server-secret", identity_secret(authority, SERVERS))
    with StubTriton("coins") as triton:
        async with (
            running_sidecar(folder / "pod", triton.endpoint, secret, identity=SERVERS, gateway=GATEWAY) as sidecar,
            running_gateway(folder / "gateway", server_tls=own.folder) as gateway,
        ):
            yield Pod(authority, gateway, own, sidecar, triton)


@pytest_asyncio.fixture(loop_scope="module")
async def serving(pod: Pod) -> Pod:
    """Both, with good certificates and a plan."""
    await pod.gateway.traffic.apply(plan(pod.sidecar.endpoint))
    await eventually(pod.serves, "requests are answered through TLS")
    return pod


async def test_requests_reach_triton_through_tls_by_either_protocol(serving: Pod) -> None:
    before = len(serving.triton.asked), len(serving.triton.methods)

    assert await serving.by_http() == 200
    assert await serving.by_grpc() == "coins"
    assert (len(serving.triton.asked), len(serving.triton.methods)) == (before[0] + 1, before[1] + 1)


async def test_nobody_reaches_triton_at_another_address_than_loopback(serving: Pod) -> None:
    for port in (serving.triton.endpoint.http_port, serving.triton.endpoint.grpc_port):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(POD, port)


async def test_a_stranger_on_the_pods_network_is_not_answered_in_plain_text(serving: Pod) -> None:
    before = len(serving.triton.asked)
    async with httpx.AsyncClient(trust_env=False, timeout=HANG_S) as client:
        with pytest.raises(httpx.TransportError):
            await client.post(f"http://{POD}:{serving.sidecar.endpoint.http_port}{INFER}", content=b"image")

    assert len(serving.triton.asked) == before


async def settings_of(server: Endpoint, context: ssl.SSLContext) -> bytes:
    """Return the beginning of what a server of HTTP/2 says first."""
    reader, writer = await asyncio.open_connection(server.host, server.grpc_port, ssl=context)
    try:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        return await reader.readexactly(9)
    finally:
        writer.close()
        with suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()


STRANGERS = {
    "without a certificate": lambda _: None,
    "of another authority with the gateway's name": lambda _: identity_secret(trustme.CA(), GATEWAY),
    "of the authority with the name of a server": lambda own: identity_secret(own, SERVERS),
    "of the authority with a name that begins like the gateway's": lambda own: identity_secret(own, f"{GATEWAY}.x"),
    "of the authority with the gateway's name as a URI": lambda own: identity_secret(own, f"spiffe://{GATEWAY}/a"),
}


@pytest.mark.parametrize("who", STRANGERS)
async def test_a_stranger_who_speaks_tls_gets_nothing_from_a_server(serving: Pod, who: str, tmp_path: Path) -> None:
    before = len(serving.triton.asked), len(serving.triton.methods)
    context = serving.trust(STRANGERS[who](serving.authority), tmp_path)
    server = serving.sidecar.endpoint

    async with httpx.AsyncClient(verify=context, trust_env=False, timeout=HANG_S) as client:
        with pytest.raises((httpx.TransportError, ssl.SSLError)):
            await client.post(f"https://{POD}:{server.http_port}{INFER}", content=b"image")
    context.set_alpn_protocols(["h2"])
    with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
        await settings_of(server, context)

    assert (len(serving.triton.asked), len(serving.triton.methods)) == before


async def test_who_has_the_gateways_certificate_is_answered(serving: Pod, tmp_path: Path) -> None:
    context = serving.trust(identity_secret(serving.authority, GATEWAY), tmp_path)
    async with httpx.AsyncClient(verify=context, trust_env=False, timeout=HANG_S) as client:
        answer = await client.post(f"https://{POD}:{serving.sidecar.endpoint.http_port}{INFER}", content=b"image")

    assert answer.status_code == 200
    context.set_alpn_protocols(["h2"])
    assert await settings_of(serving.sidecar.endpoint, context)


async def test_the_plain_port_has_metrics_and_health_and_nothing_that_infers_or_changes(serving: Pod) -> None:
    async with httpx.AsyncClient(base_url=serving.sidecar.plain, trust_env=False, timeout=HANG_S) as client:
        open_to_all = ["/metrics", "/v2/health/live", "/v2/health/ready"]
        assert [(await client.get(path)).status_code for path in open_to_all] == [200] * 3
        before = len(serving.triton.asked)
        closed = [await client.post(path, content=b"x") for path in (*open_to_all, INFER, "/v2/repository/index")]
        closed += [
            await client.get(path)
            for path in ("/v2", "/v2/models/coins", "/v2/health/live/..%2f..", "/metrics/..", "/v2/models/stats", "/")
        ]

    assert {answer.status_code for answer in closed} == {404}
    assert len(serving.triton.asked) == before


@pytest.mark.parametrize(
    "impostor",
    [
        pytest.param(lambda own: identity_secret(own, "spiffe://example.org/ns/other/sa/servers"), id="another name"),
        pytest.param(lambda own: identity_secret(own, "servers.default.vision.svc"), id="a DNS name"),
        pytest.param(lambda own: identity_secret(trustme.CA(), SERVERS, own), id="another authority"),
    ],
)
async def test_a_server_that_cannot_show_its_name_gets_no_request(pod: Pod, impostor: object, tmp_path: Path) -> None:
    assert callable(impostor)
    secret = MountedSecret(tmp_path / "secret", impostor(pod.authority))
    with StubTriton("coins") as other:
        async with running_sidecar(
            tmp_path / "pod", other.endpoint, secret, identity=SERVERS, gateway=GATEWAY
        ) as false:
            await pod.gateway.traffic.apply(plan(false.endpoint))

            assert await pod.by_http() == 503
            assert await pod.by_grpc() == "UNAVAILABLE"
            assert (other.asked, other.methods) == ([], [])
            # Beside an honest one, all requests go there.
            await pod.gateway.traffic.apply(plan(false.endpoint, pod.sidecar.endpoint))
            for _ in range(6):
                assert (await pod.by_http(), await pod.by_grpc()) == (200, "coins")
            assert (other.asked, other.methods) == ([], [])


async def test_a_server_that_claims_to_have_no_tls_is_asked_as_the_plan_says(pod: Pod) -> None:
    """Servers of an earlier template stay in plain text, beside others, until they are gone."""
    with StubTriton("coins") as former:
        await pod.gateway.traffic.apply(plan(former.endpoint, pod.sidecar.endpoint))
        await eventually(pod.serves, "requests are answered")
        for _ in range(12):
            assert (await pod.by_http(), await pod.by_grpc()) == (200, "coins")

        assert former.asked
        assert former.methods


async def test_a_gateway_without_a_certificate_keeps_its_plan_and_asks_no_server_in_plain_text(
    pod: Pod, tmp_path: Path
) -> None:
    secret = MountedSecret(tmp_path / "secret")
    with StubTriton("coins") as former:
        for folder in (None, secret.folder):
            async with running_gateway(tmp_path / f"gateway-{folder is None}", server_tls=folder) as waiting:
                here = replace(pod, gateway=waiting, own=secret)
                await waiting.traffic.apply(plan(former.endpoint))

                with pytest.raises(ConfigurationRejectedError, match="TLS"):
                    await waiting.traffic.apply(plan(pod.sidecar.endpoint))

                assert (await here.by_http(), await here.by_grpc()) == (200, "coins")
                if folder is not None:
                    certificates = waiting.traffic.server_certificates
                    assert "there is no tls.crt in" in str(certificates.refresh())
                    assert here.renew_gateway(identity_secret(pod.authority, GATEWAY)) is None
                    await waiting.traffic.apply(plan(pod.sidecar.endpoint))
                    asked = len(pod.triton.asked)
                    assert (await here.by_http(), await here.by_grpc()) == (200, "coins")
                    assert len(pod.triton.asked) == asked + 1


async def test_a_sidecar_says_why_it_keeps_its_plan_and_follows_the_new_one_once_its_secret_has_come(
    pod: Pod, tmp_path: Path
) -> None:
    secret, reports = MountedSecret(tmp_path / "secret"), list[dict[str, Any]]()
    async with running_gateway(tmp_path / "gateway", server_tls=secret.folder) as waiting:
        follower = Follower(waiting.traffic, "uid", reports.append)
        follower.follow(ShardContent(plan(pod.sidecar.endpoint), {"0": "version"}, {}))
        await asyncio.sleep(0)
        await follower.one_pass()

        assert follower.health.followed is None
        assert set(reports[-1]["refused"]) == {"plan", "certificate"}
        secret.write(identity_secret(pod.authority, GATEWAY))
        await follower.one_pass()
        assert reports[-1]["shards"] == {"0": "version"}
        assert reports[-1]["refused"] == {}
        assert await replace(pod, gateway=waiting).serves()


async def test_a_server_whose_certificate_cannot_be_used_is_not_ready_until_it_can(pod: Pod, tmp_path: Path) -> None:
    good, other = identity_secret(pod.authority, SERVERS), identity_secret(pod.authority, SERVERS)
    secret = MountedSecret(tmp_path / "secret", {**good, "tls.key": other["tls.key"]})
    async with running_sidecar(
        tmp_path / "pod", pod.triton.endpoint, secret, identity=SERVERS, gateway=GATEWAY, wait=False
    ) as waiting:

        async def answers() -> int:
            return await waiting.probe()

        assert await eventually(answers, "Envoy listens") == 503
        # As the kubelet restarts it after a minute.
        waiting.kill()
        secret.write(good)
        waiting.start()
        await eventually(waiting.starts, "the Secret is good")


async def loaded(gateway: RunningGateway) -> tuple[set[int], set[int]]:
    """Return the serial numbers of the certificates that the gateway shows to servers, and of the first authority."""
    transport = httpx.AsyncHTTPTransport(uds=str(gateway.folder / "admin.sock"))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin", timeout=HANG_S) as client:
        found = (await client.get("/certs")).json()["certificates"]
    own, roots = ({int(each[key][0]["serial_number"], 16) for each in found} for key in ("cert_chain", "ca_cert"))
    return own, roots


def serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificates(pem)[0].serial_number


async def test_both_sides_renew_certificates_and_authorities_under_load_without_a_failed_request(
    serving: Pod, tmp_path: Path
) -> None:
    old, new, server = serving.authority, trustme.CA(), serving.sidecar.endpoint
    was, will = (serving.trust(identity_secret(each, GATEWAY), tmp_path) for each in (old, new))
    for context in (was, will):
        context.set_alpn_protocols(["h2"])

    async def trusts(context: ssl.SSLContext) -> bool:
        try:
            return bool(await settings_of(server, context))
        except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
            return False

    async def renew(own: trustme.CA, *trusted: trustme.CA) -> None:
        """Renew the gateway's certificate, and wait until Envoy has it."""
        content = identity_secret(own, GATEWAY, *trusted)
        assert serving.renew_gateway(content) is None

        async def has_it() -> bool:
            return await loaded(serving.gateway) == ({serial(content["tls.crt"])}, {serial(content["ca.crt"])})

        await eventually(has_it, "the gateway has its new certificate")

    async def by_http() -> str:
        return str(await serving.by_http())

    async with RepeatedCalls(by_http, by_http, serving.by_grpc) as load:
        # Both trust the new authority too; then both show its certificates; then they forget the old one.
        serving.sidecar.secret.write(identity_secret(old, SERVERS, new, old))
        await renew(old, new, old)
        await eventually(lambda: trusts(will), "the server trusts the new authority")
        former = await serving.sidecar.shown(was)
        serving.sidecar.secret.write(identity_secret(new, SERVERS, new, old))

        async def renewed() -> bool:
            return await serving.sidecar.shown(was) != former

        await eventually(renewed, "the server shows its new certificate")
        await renew(new, new, old)
        # Another group's connections are new ones.
        await serving.gateway.traffic.apply(plan(server, group="second"))
        await load.goes_on(10)
        serving.sidecar.secret.write(identity_secret(new, SERVERS))
        await renew(new)

        async def forgotten() -> bool:
            return not await trusts(was)

        await eventually(forgotten, "the server trusts the old authority no more")
        await serving.gateway.traffic.apply(plan(server, group="third"))
        await load.goes_on(10)
    serving.authority = new

    assert set(load.outcomes) == {"200", "coins"}, load.outcomes
