"""The local gateway: Envoy as a child process, which a new supervisor adopts, and its comparator."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil

from segserve_builder.comparator.kept import KEPT_S
from segserve_builder.sources.access import LOCAL, Access
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.certificates import ensure_certificate
from segserve_operator.adapters.local.comparator import IDLE_S, local_capture, local_comparator
from segserve_operator.adapters.local.files import StateFolder, config_folder
from segserve_operator.adapters.local.triton import LOOPBACK, is_port_free
from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
from segserve_operator.adapters.traffic.envoy_admin import UNIX_SCHEME
from segserve_operator.adapters.traffic.envoy_auth import AuthSettings
from segserve_operator.adapters.traffic.envoy_listener import EnvoySettings
from segserve_operator.adapters.traffic.envoy_mirror import has_capture, has_mirror, keeps_pairs
from segserve_operator.adapters.traffic.envoy_tls import TlsSettings
from segserve_operator.api.triton_pool import Gateway as GatewaySpec
from segserve_operator.core.rollout.counters import Sample
from segserve_operator.core.traffic import TrafficPlan, TrafficState

PRIVATE_CERTIFICATE: Final = "private-certificate"
"""The `gateway.tls.secretName` for which this machine issues a certificate itself."""
FOLLOWED: Final = ("auth", "session_affinity", "cors", "access_log")
"""Fields of the gateway that a running platform follows; the others wait for its next start."""
START_INTERVAL_S: Final = 1.0
END_GRACE_S: Final = 5.0


class PortTakenError(Exception):
    """Another process listens on the gateway's port."""


class LocalGateway:
    """Envoy on loopback; `observe` and `apply` start it if it does not run."""

    def __init__(self, state: StateFolder, spec: GatewaySpec, access: Access = LOCAL) -> None:
        self._state = state
        self._port = spec.port
        self.ca_file = ensure_certificate(state.tls) if _is_private(spec) else None
        """The authority of the gateway's own certificate; None without one."""
        self._started_s = 0.0
        self._internal = state.gateway / "internal.sock"
        self._spec = spec
        self._envoy = self._of(spec)
        url, most = f"{UNIX_SCHEME}{self._internal}", spec.max_request_bytes
        self._comparator = local_comparator(state, self._envoy.comparator, internal_url=url, max_request_bytes=most)
        self._capture = local_capture(state, self._envoy.capture, access, internal_url=url, max_request_bytes=most)
        self._plan: TrafficPlan | None = None

    def _of(self, spec: GatewaySpec) -> EnvoyTraffic:
        state, secrets = self._state, (self._state.secrets, config_folder() / "secrets")
        settings = EnvoySettings(
            host=LOOPBACK,
            port=spec.port,
            max_request_bytes=spec.max_request_bytes,
            plain_http=spec.plain_http,
            internal_socket=str(self._internal),
            tls=_tls(state, spec),
            auth=AuthSettings(spec.auth, secrets, state.gateway / "auth") if spec.auth is not None else None,
            affinity=spec.session_affinity,
            cors=spec.cors,
            access_log=spec.access_log,
            access_log_file=state.access_log,
            capture=True,
            metrics_socket=str(state.metrics_socket),
            tracing=spec.tracing,
        )
        return EnvoyTraffic(state.gateway, settings, timeout_s=spec.request_timeout_seconds)

    def follow(self, spec: GatewaySpec) -> None:
        """Change access, request ids, allowed web pages and logging if the pool's resource says otherwise.

        Envoy is started again for it. All else of a changed resource waits for the next start of the platform.
        """
        followed = {name: getattr(spec, name) for name in FOLLOWED}
        if any(getattr(self._spec, name) != value for name, value in followed.items()):
            self._spec = self._spec.model_copy(update=followed)
            self._envoy = self._of(self._spec)

    @property
    def url(self) -> str:
        """URL for clients."""
        return self._envoy.url

    async def observe(self) -> TrafficState:
        """Return the plan that Envoy follows and the requests in flight."""
        self._envoy.refresh_certificates()
        self._keep_running()
        self._envoy.refresh_credentials()
        state = await self._envoy.observe()
        self._plan = state.plan if state.plan is not None else self._plan
        self._keep_services()
        return state

    async def apply(self, plan: TrafficPlan) -> None:
        """Make Envoy follow a plan."""
        self._keep_running()
        self._plan = plan
        self._keep_services()
        await self._envoy.apply(plan)

    async def samples(self, models: Mapping[str, tuple[str, str]]) -> dict[str, Sample]:
        """Return the sample of each model, empty while the gateway does not answer."""
        return await self._envoy.samples(models)

    async def metrics(self) -> bytes:
        """Return Envoy's statistics in the Prometheus text format; raises `EnvoyUnreachableError`."""
        return await self._envoy.metrics()

    async def internal_url(self) -> str | None:
        """Return the URL for segserve's own requests; None if Envoy does not run."""
        return f"{UNIX_SCHEME}{self._internal}" if self._internal.exists() else None

    def _keep_services(self) -> None:
        kept_s = KEPT_S if keeps_pairs(self._plan) else IDLE_S
        self._comparator.keep(wanted=has_mirror(self._plan), idle_s=kept_s)
        self._capture.keep(wanted=has_capture(self._plan))

    def _keep_running(self) -> None:
        # An Envoy that ends at once is started once per interval, however often the supervisor passes.
        recently = time.monotonic() - self._started_s < START_INTERVAL_S
        running = processes.read_record(_record(self._state))
        if not recently and processes.is_alive(running) and not self._envoy.is_current:
            # It was started with other settings.
            processes.end(running, grace_s=END_GRACE_S)
        if recently or processes.is_alive(running):
            return
        check_port(self._state, self._port)
        self._started_s = time.monotonic()
        processes.start(
            self._envoy.command(),
            record=_record(self._state),
            log=self._state.gateway / "envoy.out.log",
            environment=os.environ,
            state=self._state.root,
        )


def check_port(state: StateFolder, port: int) -> None:
    """Raise `PortTakenError` if another process than this platform's gateway listens on the port."""
    if not processes.is_alive(processes.read_record(_record(state))) and not is_port_free(port):
        raise PortTakenError(f"port {port} is in use{_owner(port)}; stop that process, or choose a port with --port")


def _is_private(spec: GatewaySpec) -> bool:
    return spec.tls is not None and spec.tls.secret_name == PRIVATE_CERTIFICATE


def _tls(state: StateFolder, spec: GatewaySpec) -> TlsSettings | None:
    """Return TLS with the certificate of a Secret of this machine's configuration, or of the private authority."""
    if spec.tls is None:
        return None
    secrets, mtls = config_folder() / "secrets", spec.auth.mtls if spec.auth is not None else None
    return TlsSettings(
        certificate=state.tls if _is_private(spec) else secrets / spec.tls.secret_name,
        client_ca=secrets / mtls.ca_secret_ref.name / mtls.ca_secret_ref.key if mtls is not None else None,
        client_certificates=spec.auth.client_certificates if spec.auth is not None else "optional",
        min_version=spec.tls.min_version,
        redirect_port=spec.tls.redirect_port,
        public_port=spec.port,
    )


def _record(state: StateFolder) -> Path:
    return state.gateway / "envoy.process.json"


def _owner(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1:] == (port,)
            if listens and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except psutil.Error:
        return ""
    return ""
