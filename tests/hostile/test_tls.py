"""TLS of the public listener on the real Envoy: what somebody on the wire, or a bad renewal, does not get."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
import trustme
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from bench.ports import free_ports
from fakes.gateway import RunningGateway, running_gateway
from fakes.gateway_clients import served
from fakes.mounted_secret import MountedSecret, tls_secret
from fakes.repeated_calls import RepeatedCalls
from fakes.triton import StubTriton
from fakes.waiting import HANG_S, eventually
from segserve import AsyncClient, SegserveError, Tls, TlsError
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.gateway import PRIVATE_CERTIFICATE, LocalGateway
from segserve_operator.adapters.traffic.envoy_tls import TlsSettings
from segserve_operator.adapters.traffic.listener_certificates import ListenerCertificates
from segserve_operator.api.triton_pool import Gateway

pytestmark = [pytest.mark.platform, pytest.mark.core, pytest.mark.asyncio(loop_scope="module")]

INFER = "/v2/models/coins/infer"


@dataclass
class Entrance:
    """A gateway with TLS whose one model is `coins`; its certificate is in a Secret that is mounted."""

    running: RunningGateway
    authority: trustme.CA
    secret: MountedSecret
    redirect_port: int
    ca_file: Path

    @property
    def certificates(self) -> ListenerCertificates:
        assert self.running.traffic.certificates is not None
        return self.running.traffic.certificates

    @property
    def url(self) -> str:
        return self.running.traffic.url

    def renew(self, content: dict[str, bytes]) -> str | None:
        """Mount other content, and do what the sidecar does in each of its passes."""
        self.secret.write(content)
        return self.certificates.refresh()

    def trust(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def http(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, verify=self.trust(), trust_env=False, timeout=HANG_S, **options)

    def channel(self) -> grpc.aio.Channel:
        roots = grpc.ssl_channel_credentials(self.authority.cert_pem.bytes())
        return grpc.aio.secure_channel(self.running.authority, roots)

    async def shown(self) -> bytes:
        """Return the certificate that a new connection is shown."""
        _, writer = await asyncio.open_connection("127.0.0.1", self.running.gateway.port, ssl=self.trust())
        shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return shown


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def entrance(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Entrance]:
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    (redirect_port,) = free_ports(1)
    secret = MountedSecret(folder / "secret")
    settings = TlsSettings(secret.folder, redirect_port=redirect_port, public_port=8443)
    with StubTriton("coins") as triton:
        async with running_gateway(folder / "gateway", tls=settings) as running:
            await running.traffic.apply(served(triton))
            yield Entrance(running, authority, secret, redirect_port, folder / "ca.pem")


async def answers(entrance: Entrance) -> bool:
    try:
        async with entrance.http() as client:
            return (await client.post(INFER, content=b"image")).status_code == 200
    except httpx.TransportError:
        return False


@pytest_asyncio.fixture(loop_scope="module")
async def serving(entrance: Entrance) -> Entrance:
    """The gateway, once it has a certificate."""
    assert entrance.renew(tls_secret(entrance.authority.issue_cert("127.0.0.1"))) is None
    await eventually(lambda: answers(entrance), "the gateway has a certificate")
    return entrance


async def test_a_gateway_without_a_certificate_runs_and_serves_nobody_until_it_has_one(tmp_path: Path) -> None:
    secret, authority = MountedSecret(tmp_path / "secret"), trustme.CA()
    with StubTriton("coins") as triton:
        async with running_gateway(tmp_path / "gateway", tls=TlsSettings(secret.folder)) as running:
            waiting = Entrance(running, authority, secret, 0, tmp_path)
            await running.traffic.apply(served(triton))
            before, reason = await answers(waiting), waiting.certificates.refresh()
            await running.traffic.check_ready()

            assert not before
            assert not waiting.certificates.can_serve
            assert "there is no tls.crt in" in str(reason)
            assert waiting.renew(tls_secret(authority.issue_cert("127.0.0.1"))) is None
            assert waiting.certificates.can_serve
            await eventually(lambda: answers(waiting), "the Secret has come")


@pytest.mark.parametrize("http2", [False, True])
async def test_callers_of_http_choose_its_version(serving: Entrance, http2: bool) -> None:
    async with serving.http(http1=not http2, http2=http2) as client:
        answer = await client.post(INFER, content=b"image")

    assert (answer.status_code, answer.http_version) == (200, "HTTP/2" if http2 else "HTTP/1.1")


@pytest.mark.parametrize("options", [{}, {"transport": "grpc"}])
async def test_our_client_trusts_the_private_authority_where_it_is_named_and_no_other(
    serving: Entrance, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not await is_trusted(AsyncClient(serving.url, retries=0, **options))
    assert await is_trusted(AsyncClient(serving.url, retries=0, tls=Tls(ca_file=serving.ca_file), **options))
    monkeypatch.setenv("SEGSERVE_CA_FILE", str(serving.ca_file))
    assert await is_trusted(AsyncClient(serving.url, retries=0, **options))


async def is_trusted(client: AsyncClient) -> bool:
    """Return whether the client got beyond the handshake; the server has no configuration to answer it with."""
    async with client:
        try:
            await client.model_info("coins")
        except TlsError:
            return False
        except SegserveError:
            pass
        return True


async def test_nobody_is_served_in_plain_text(serving: Entrance) -> None:
    plain = f"http://{serving.running.authority}{INFER}"
    async with httpx.AsyncClient(trust_env=False, timeout=HANG_S) as client:
        with pytest.raises(httpx.TransportError):
            await client.post(plain, content=b"image")
    async with grpc.aio.insecure_channel(serving.running.authority) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ModelInfer(pb.ModelInferRequest(model_name="coins"), timeout=HANG_S)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_plain_http_is_sent_to_the_port_with_tls_and_nothing_of_it_to_a_server(serving: Entrance) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=HANG_S) as client:
        answer = await client.post(
            f"http://127.0.0.1:{serving.redirect_port}{INFER}?x=1",
            headers={"host": "models.example.com"},
            content=b"image",
        )

    assert answer.status_code == 308
    assert answer.headers["location"] == f"https://models.example.com:8443{INFER}?x=1"


async def test_the_internal_listener_stays_plain(serving: Entrance) -> None:
    async with httpx.AsyncClient(base_url=f"http://{serving.running.internal}", trust_env=False) as client:
        answer = await client.post(INFER, content=b"image", headers={"x-segserve-group": "main"})

    assert answer.status_code == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_no_old_version_of_tls_is_spoken(serving: Entrance, version: ssl.TLSVersion) -> None:
    context = serving.trust()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version

    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await asyncio.open_connection("127.0.0.1", serving.running.gateway.port, ssl=context)


def half(content: dict[str, bytes]) -> dict[str, bytes]:
    return {**content, "tls.crt": content["tls.crt"][: len(content["tls.crt"]) // 2]}


OTHER = trustme.CA().issue_cert("127.0.0.1")
BROKEN: dict[str, tuple[Callable[[dict[str, bytes]], dict[str, bytes]], str]] = {
    "the key of another": (lambda new: {**new, "tls.key": tls_secret(OTHER)["tls.key"]}, "is not the key of"),
    "half a certificate": (half, "has no PEM certificate"),
    "no key": (lambda new: {"tls.crt": new["tls.crt"]}, "there is no tls.key in"),
    "no file at all": (lambda _: {}, "there is no tls.crt in"),
    "rubbish": (lambda new: {**new, "tls.key": b"\xff\x00"}, "is not PEM"),
    "a megabyte and more": (lambda new: {**new, "tls.crt": b"a" * (2**20 + 1)}, "has more than 1048576 bytes"),
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_renewal_does_not_replace_the_certificate_that_serves(serving: Entrance, kind: str) -> None:
    breaks, expected = BROKEN[kind]
    former = await serving.shown()

    reason = serving.renew(breaks(tls_secret(serving.authority.issue_cert("127.0.0.1"))))

    assert expected in str(reason)
    assert "the former one stays in use" in str(reason)
    assert (await serving.shown(), serving.certificates.can_serve) == (former, True)


async def post(client: httpx.AsyncClient) -> str:
    try:
        return str((await client.post(INFER, content=b"image")).status_code)
    except httpx.HTTPError as error:
        return repr(error)


async def infer(channel: grpc.aio.Channel) -> str:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    try:
        return str((await stub.ModelInfer(pb.ModelInferRequest(model_name="coins"), timeout=HANG_S)).model_version)
    except grpc.aio.AioRpcError as error:
        return repr(error.code())


async def test_certificates_are_renewed_under_load_without_a_failed_request(serving: Entrance) -> None:
    async def connecting_anew() -> str:
        async with serving.http() as client:
            return await post(client)

    async with (
        serving.http() as client,
        serving.channel() as channel,
        RepeatedCalls(connecting_anew, connecting_anew, lambda: post(client), lambda: infer(channel)) as load,
    ):
        for _ in range(4):
            former = await serving.shown()
            assert serving.renew(tls_secret(serving.authority.issue_cert("127.0.0.1"))) is None

            async def renewed(former: bytes = former) -> bool:
                return await serving.shown() != former

            await eventually(renewed, "new connections are shown the new certificate")
            await load.goes_on(20)

    assert set(load.outcomes) == {"200", "coins"}, load.outcomes


async def test_an_envoy_that_starts_beside_a_broken_secret_serves_with_the_last_good_one(serving: Entrance) -> None:
    former = await serving.shown()
    serving.renew({"tls.crt": b"rubbish", "tls.key": b"rubbish"})

    serving.running.kill()
    await serving.running.start()

    await eventually(lambda: answers(serving), "Envoy is back")
    assert await serving.shown() == former


async def test_this_machines_gateway_has_a_certificate_of_its_own_authority(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    state.create()
    tls = {"secretName": PRIVATE_CERTIFICATE}
    gateway = LocalGateway(state, Gateway.model_validate({"port": free_ports(1)[0], "tls": tls}))

    async def follows() -> bool:
        return (await gateway.observe()).plan is not None

    try:
        await eventually(follows, "the gateway follows a plan")
        with StubTriton("coins") as triton:
            await gateway.apply(served(triton))
            async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=gateway.ca_file)) as client:
                answer = await client.post(f"{gateway.url}{INFER}", content=b"image")
            trusted = [
                await is_trusted(AsyncClient(gateway.url, retries=0, tls=Tls(gateway.ca_file), transport=transport))
                for transport in ("http", "grpc")
            ]
    finally:
        processes.end_marked_processes(state.root, grace_s=5)

    assert (answer.status_code, answer.url.scheme) == (200, "https")
    assert trusted == [True, True]
