"""Callers that show certificates, on the real Envoy: who they are by that, and who is not."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import trustme

from fakes.gateway import RunningGateway, running_gateway
from fakes.issued import issued
from fakes.mounted_secret import MountedSecret, tls_secret
from fakes.triton import StubTriton
from fakes.waiting import HANG_S, eventually
from segserve_operator.adapters.traffic.envoy_auth import AuthSettings
from segserve_operator.adapters.traffic.envoy_tls import TlsSettings
from segserve_operator.api.access import Auth
from segserve_operator.core.traffic import AccessRule, Callers, Route, Share, TrafficPlan

pytestmark = [pytest.mark.platform, pytest.mark.core, pytest.mark.asyncio(loop_scope="module")]

SCANNER = "spiffe://example.com/ns/vision/sa/scanner"
ACCESS = {
    "scans": (AccessRule(certificates=(SCANNER,)),),
    "hosts": (AccessRule(certificates=("scanner.example.com",)),),
    "people": (AccessRule(certificates=("CN=ann",)),),
    "known": (AccessRule(callers=Callers.AUTHENTICATED),),
}


def issue(authority: trustme.CA, path: Path, *, uri: str = "", dns: str = "", subject: str = "x") -> Path:
    """Write a caller's certificate with its key, and return the file."""
    certificate, key = issued(authority, uri=uri, dns=dns, subject=subject)
    path.write_bytes(key + certificate)
    return path


@dataclass
class Entrance:
    """A gateway that takes certificates of one authority; each model is for callers of another kind."""

    running: RunningGateway
    triton: StubTriton
    server: trustme.CA
    authority: trustme.CA

    async def statuses(self, certificate: Path | None, headers: dict[str, str] | None = None) -> dict[str, int]:
        context = ssl.create_default_context()
        self.server.configure_trust(context)
        if certificate is not None:
            context.load_cert_chain(certificate)
        async with httpx.AsyncClient(
            base_url=self.running.traffic.url, verify=context, timeout=HANG_S, trust_env=False, headers=headers
        ) as client:
            return {model: (await client.get(f"/v2/models/{model}/ready")).status_code for model in ACCESS}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def entrance(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Entrance]:
    folder = tmp_path_factory.mktemp("tls")
    server, authority = trustme.CA(), trustme.CA()
    secret = MountedSecret(folder / "secret", tls_secret(server.issue_cert("127.0.0.1")))
    (folder / "ca.crt").write_bytes(authority.cert_pem.bytes())
    tls = TlsSettings(secret.folder, client_ca=folder / "ca.crt", client_certificates="optional")
    auth = Auth.model_validate({"mtls": {"caSecretRef": {"name": "callers", "key": "ca.crt"}}})
    settings = AuthSettings(auth, (folder,), folder / "gateway/auth")
    with StubTriton("old") as triton:
        share = Share("main", "r1", 100, (triton.endpoint,))
        routes = tuple(Route(model, (share,), access=rules) for model, rules in ACCESS.items())
        async with running_gateway(folder / "gateway", tls=tls, auth=settings) as running:
            await running.traffic.apply(TrafficPlan(routes, (triton.endpoint,)))
            entrance = Entrance(running, triton, server, authority)

            async def serves() -> bool:
                try:
                    return bool(await entrance.statuses(None))
                except httpx.TransportError:
                    return False

            await eventually(serves, "the gateway has a certificate")
            yield entrance


@pytest.mark.parametrize(
    ("names", "open_to"),
    [
        pytest.param({"uri": SCANNER}, "scans", id="a URI"),
        pytest.param({"uri": SCANNER, "dns": "scanner.example.com", "subject": "ann"}, "scans", id="a URI before all"),
        pytest.param({"dns": "scanner.example.com", "subject": "ann"}, "hosts", id="a DNS name before the subject"),
        pytest.param({"subject": "ann"}, "people", id="the subject"),
        pytest.param({"uri": SCANNER + "/more", "subject": "ann"}, "", id="a longer URI"),
        pytest.param({"uri": "spiffe://evil.example/?" + SCANNER}, "", id="a URI that contains it"),
        pytest.param({"dns": "evil.scanner.example.com"}, "", id="a name below it"),
        pytest.param({"subject": "ann,CN=ann"}, "", id="a subject with a comma"),
    ],
)
async def test_a_caller_is_the_first_name_of_its_certificate_alone(
    entrance: Entrance, tmp_path: Path, names: dict[str, str], open_to: str
) -> None:
    certificate = issue(entrance.authority, tmp_path / "caller.pem", **names)

    expected = {model: 200 if model in (open_to, "known") else 404 for model in ACCESS}
    assert await entrance.statuses(certificate) == expected


async def test_a_caller_without_a_certificate_is_a_stranger(entrance: Entrance) -> None:
    assert set((await entrance.statuses(None)).values()) == {401}


async def test_a_certificate_of_another_authority_ends_the_connection(entrance: Entrance, tmp_path: Path) -> None:
    before = len(entrance.triton.asked)

    with pytest.raises((httpx.TransportError, ssl.SSLError)):
        await entrance.statuses(issue(trustme.CA(), tmp_path / "caller.pem", uri=SCANNER))

    assert len(entrance.triton.asked) == before


async def test_a_certificate_in_a_header_is_none(entrance: Entrance) -> None:
    forged = {"x-forwarded-client-cert": f"URI={SCANNER}", "x-segserve-certificate": SCANNER}

    assert set((await entrance.statuses(None, forged)).values()) == {401}
