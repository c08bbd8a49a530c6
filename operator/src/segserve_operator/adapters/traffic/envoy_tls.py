"""Renders TLS of the public listener, whose certificates Envoy reads from files that it watches (SDS)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from segserve_operator.adapters.traffic.envoy_extensions import TLS_SOCKET, extension, listening_address, watched_file
from segserve_operator.adapters.traffic.envoy_messages import Json

CERTIFICATE: Final = "certificate"
CLIENT_CA: Final = "client_ca"
"""The names of the two resources that Envoy requests."""


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS of the public listener.

    `certificate` is a folder with tls.crt and tls.key, `client_ca` a file with the authorities of callers'
    certificates, which are required, or checked where a caller has one. Plain HTTP at `redirect_port` is redirected to
    `public_port`, the one that callers connect to. Files may change; `ListenerCertificates` gives Envoy what is new.
    """

    certificate: Path
    client_ca: Path | None = None
    client_certificates: Literal["required", "optional"] = "optional"
    min_version: Literal["1.2", "1.3"] = "1.2"
    redirect_port: int | None = None
    public_port: int = 443


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files that Envoy watches, in folders of their own below `folder`."""

    folder: Path

    @property
    def certificate(self) -> Path:
        """The listener's certificate with its private key."""
        return self.folder / CERTIFICATE / f"{CERTIFICATE}.json"

    @property
    def client_ca(self) -> Path:
        """The authorities of callers' certificates."""
        return self.folder / CLIENT_CA / f"{CLIENT_CA}.json"


def render_transport_socket(settings: TlsSettings, files: TlsFiles) -> Json:
    """Return the transport socket of a listener with TLS, for HTTP/2 (gRPC included) and HTTP/1.1."""
    common = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_params": {"tls_minimum_protocol_version": f"TLSv{settings.min_version.replace('.', '_')}"},
        "tls_certificate_sds_secret_configs": [_watched_secret(CERTIFICATE, files.certificate)],
    }
    if settings.client_ca is not None:
        common["validation_context_sds_secret_config"] = _watched_secret(CLIENT_CA, files.client_ca)
    return extension(
        TLS_SOCKET,
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context=common,
        require_client_certificate=settings.client_ca is not None and settings.client_certificates == "required",
    )


def render_redirect(settings: TlsSettings, host: str) -> list[Json]:
    """Return the listener that redirects plain HTTP, none if there is no port for it."""
    if settings.redirect_port is None:
        return []
    # 308: a client repeats the request as it is, with its method and body.
    redirect = {
        "https_redirect": True,
        "port_redirect": settings.public_port,
        "response_code": "PERMANENT_REDIRECT",
    }
    everywhere = {"name": "redirect", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "redirect": redirect}]}
    manager = extension(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="redirect",
        request_headers_timeout="5s",
        stream_idle_timeout="5s",
        common_http_protocol_options={"idle_timeout": "15s"},
        route_config={"virtual_hosts": [everywhere]},
        http_filters=[extension("envoy.filters.http.router", "extensions.filters.http.router.v3.Router")],
    )
    address = listening_address(host, settings.redirect_port)
    return [{"name": "redirect", "address": address, "filter_chains": [{"filters": [manager]}]}]


def _watched_secret(name: str, path: Path) -> Json:
    return {"name": name, "sds_config": watched_file(path)}
