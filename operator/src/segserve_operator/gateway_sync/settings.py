"""The settings of a gateway pod's containers, read from the environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from segserve_common.http.listening import any_address
from segserve_common.kube.names import CERTIFICATE_FOLDER, INTERNAL_PORT, RUN_FOLDER, SECRETS_FOLDER, SYNC_PORT
from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
from segserve_operator.adapters.traffic.envoy_auth import AuthSettings
from segserve_operator.adapters.traffic.envoy_listener import EnvoySettings
from segserve_operator.adapters.traffic.envoy_tls import TlsSettings
from segserve_operator.api.access import Auth, Cors
from segserve_operator.api.session_affinity import SessionAffinity
from segserve_operator.api.telemetry import AccessLog, Tracing

if TYPE_CHECKING:
    from collections.abc import Mapping

GATEWAY_VARIABLE: Final = "SEGSERVE_GATEWAY"
FOLDER_VARIABLE: Final = "SEGSERVE_RUN_FOLDER"
DRAIN_VARIABLE: Final = "SEGSERVE_DRAIN_SECONDS"
_NEEDED: Final = ("POD_NAME", "POD_UID", "POD_NAMESPACE", "SEGSERVE_POOL", GATEWAY_VARIABLE)
_Port = Annotated[int, Field(ge=0, le=65535)]


class SidecarSettingsError(Exception):
    """An environment that lacks a variable, or has an invalid one."""


class TlsOptions(BaseModel):
    """TLS of the public listener; the certificates are in mounted folders, which tests set."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)

    public_port: _Port
    min_version: Literal["1.2", "1.3"] = "1.2"
    client_certificates: Literal["required", "optional"] = "optional"
    redirect_port: _Port | None = None
    certificate: Path = Path(CERTIFICATE_FOLDER)
    client_ca: Path | None = None


class GatewaySettings(BaseModel):
    """The value of `SEGSERVE_GATEWAY`; tests also set the addresses."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)

    port: _Port
    max_request_bytes: int
    request_timeout_seconds: float
    workers: Annotated[int, Field(ge=1)] = 1
    plain_http: bool = False
    heap_bytes: Annotated[int, Field(ge=2**26)] = 2 * 2**30
    host: str = Field(default_factory=any_address)
    internal_port: _Port = INTERNAL_PORT
    sync_port: _Port = SYNC_PORT
    tls: TlsOptions | None = None
    auth: Auth | None = None
    secrets: Path = Path(SECRETS_FOLDER)
    session_affinity: SessionAffinity | None = None
    cors: Cors | None = None
    access_log: AccessLog | None = None
    tracing: Tracing | None = None
    capture: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """The pod, its pool, and the gateway's own settings."""

    pod: str
    uid: str
    namespace: str
    pool: str
    gateway: GatewaySettings
    folder: Path
    drain_s: float = 0.0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """Read an environment; raises `SidecarSettingsError`, which names what is missing or wrong."""
        missing = [name for name in _NEEDED if not environment.get(name)]
        if missing:
            raise SidecarSettingsError(f"the environment lacks {', '.join(missing)}")
        try:
            gateway = GatewaySettings.model_validate_json(environment[GATEWAY_VARIABLE])
        except ValidationError as error:
            raise SidecarSettingsError(f"{GATEWAY_VARIABLE} is {environment[GATEWAY_VARIABLE]!r}: {error}") from error
        pod, uid, namespace, pool = (environment[name] for name in _NEEDED[:4])
        folder = Path(environment.get(FOLDER_VARIABLE) or RUN_FOLDER)
        return cls(pod, uid, namespace, pool, gateway, folder, float(environment.get(DRAIN_VARIABLE) or 0))

    def traffic(self) -> EnvoyTraffic:
        """Return the control of this pod's Envoy."""
        settings = self.gateway
        gateway = EnvoySettings(
            host=settings.host,
            port=settings.port,
            max_request_bytes=settings.max_request_bytes,
            workers=settings.workers,
            plain_http=settings.plain_http,
            internal_port=settings.internal_port,
            heap_bytes=settings.heap_bytes,
            tls=TlsSettings(**dict(settings.tls)) if settings.tls is not None else None,
            affinity=settings.session_affinity,
            cors=settings.cors,
            access_log=settings.access_log,
            tracing=settings.tracing,
            capture=settings.capture,
            auth=AuthSettings(settings.auth, (settings.secrets,), self.folder / "auth") if settings.auth else None,
        )
        return EnvoyTraffic(self.folder, gateway, timeout_s=settings.request_timeout_seconds)
