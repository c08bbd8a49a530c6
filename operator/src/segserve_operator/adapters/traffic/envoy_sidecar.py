"""The Envoy in a server's pod: it ends mutual TLS at the pod's address, and passes bytes on to Triton on loopback.

It has no admin interface, as the pod's other containers share its loopback. Its whole configuration is its command line
and files that name those of the certificate, which Envoy reads again when they are replaced.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segserve_operator.adapters.traffic.envoy_clusters import protocol_options, socket_address
from segserve_operator.adapters.traffic.envoy_extensions import TLS_SOCKET, extension, watched_file
from segserve_operator.adapters.traffic.envoy_messages import TYPE_PREFIX, Json
from segserve_operator.adapters.traffic.envoy_overload import heap_action, monitors
from segserve_operator.adapters.traffic.envoy_server_tls import TLS_VERSION, validation
from segserve_operator.adapters.traffic.envoy_tls import CERTIFICATE, CLIENT_CA

LOOPBACK: Final = "127.0.0.1"
PLAIN_PATHS: Final = ("/v2/health/live", "/v2/health/ready")
"""What of Triton's HTTP is answered in plain text, beside its metrics: for probes."""
PROOF_PATH: Final = "/tls"
"""Answered there with 200 if the certificate can be used."""
_METRICS: Final = "metrics"
_PROOF: Final = "proof"
# Longer than the hour after which the gateway closes an unused connection: it must be the one who closes.
_IDLE: Final = "7200s"
_BUFFER_BYTES: Final = 2**18
_WORKERS: Final = 2
_SECRET: Final = f"{TYPE_PREFIX}envoy.extensions.transport_sockets.tls.v3.Secret"


@dataclass(frozen=True, slots=True)
class SidecarSettings:
    """The Envoy of a server.

    It listens at `address`, with TLS at `http` and `grpc`, in plain text at `metrics` for metrics and probes; each is
    (own port, Triton's port). `gateway` is the identity of whom it serves; `secrets` is a folder with `secret_files`.
    Before it uses more than `heap_bytes` of memory it takes no more connections.
    """

    address: str
    http: tuple[int, int]
    grpc: tuple[int, int]
    metrics: tuple[int, int]
    gateway: str
    secrets: Path
    heap_bytes: int = 2**27


def command(binary: str, settings: SidecarSettings) -> list[str]:
    """Return Envoy's command line."""
    return [
        binary,
        *("--config-yaml", json.dumps(render_sidecar(settings))),
        *("--concurrency", str(_WORKERS)),
        *("--log-level", "warning"),
        "--disable-hot-restart",  # it would need shared memory, and an id that differs between pods
    ]


def secret_files(folder: Path) -> dict[str, str]:
    """Return by name the watched files that name the certificate's files in `folder`, a mounted Secret."""
    watched = {"watched_directory": {"path": str(folder)}}
    certificate = {
        "certificate_chain": {"filename": str(folder / "tls.crt")},
        "private_key": {"filename": str(folder / "tls.key")},
        **watched,
    }
    authorities = {"trusted_ca": {"filename": str(folder / "ca.crt")}, **watched}
    secrets = {CERTIFICATE: {"tls_certificate": certificate}, CLIENT_CA: {"validation_context": authorities}}
    # Envoy wants one secret in a file.
    return {
        f"{name}.json": json.dumps({"resources": [{"@type": _SECRET, "name": name, **secret}]})
        for name, secret in secrets.items()
    }


def render_sidecar(settings: SidecarSettings) -> Json:
    """Return the bootstrap configuration."""
    triton = {"http": settings.http, "grpc": settings.grpc}
    listeners = [_secure(settings, name, own) for name, (own, _) in triton.items()] + [_proof(settings)]
    clusters = [_cluster(name, port) for name, (_, port) in (*triton.items(), (_METRICS, settings.metrics))]
    clusters.append(_proof_cluster(settings))
    return {
        "node": {"id": "server", "cluster": "segserve"},
        "static_resources": {"listeners": [*listeners, _plain(settings)], "clusters": clusters},
        "overload_manager": {
            "refresh_interval": "0.25s",
            "resource_monitors": monitors(settings.heap_bytes),
            "actions": [heap_action("stop_accepting_connections", {"threshold": {"value": 0.95}})],
        },
    }


def _secure(settings: SidecarSettings, name: str, port: int) -> Json:
    tls = extension(
        TLS_SOCKET,
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        require_client_certificate=True,
        common_tls_context={
            "tls_params": TLS_VERSION,
            "alpn_protocols": ["h2" if name == "grpc" else "http/1.1"],
            "tls_certificate_sds_secret_configs": [_secret(settings, CERTIFICATE)],
            "combined_validation_context": validation(settings.gateway, _secret(settings, CLIENT_CA)),
        },
    )
    # Bytes as they come: the gateway has checked the requests, and nothing here adds to their time.
    forward = extension(
        "envoy.filters.network.tcp_proxy",
        "extensions.filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix=name,
        cluster=name,
        idle_timeout=_IDLE,
    )
    chain = {"filters": [forward], "transport_socket": tls, "transport_socket_connect_timeout": "5s"}
    return {**_listener(settings, name, port), "filter_chains": [chain]}


def _plain(settings: SidecarSettings) -> Json:
    """Return the listener without TLS: what neither infers nor changes anything, by exact paths."""
    paths = {"/metrics": _METRICS, PROOF_PATH: _PROOF, **dict.fromkeys(PLAIN_PATHS, "http")}
    reads = [{"name": ":method", "string_match": {"exact": "GET"}}]
    routes = [
        {"match": {"path": path, "headers": reads}, "route": {"cluster": cluster, "timeout": "10s"}}
        for path, cluster in paths.items()
    ]
    chain = {"filters": [_manager("plain", routes)]}
    return {**_listener(settings, "plain", settings.metrics[0]), "filter_chains": [chain]}


def _manager(name: str, routes: list[Json]) -> Json:
    return extension(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        request_headers_timeout="5s",
        request_timeout="5s",
        stream_idle_timeout="15s",
        common_http_protocol_options={"idle_timeout": "5s"},
        route_config={"virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]},
        http_filters=[extension("envoy.filters.http.router", "extensions.filters.http.router.v3.Router")],
    )


def _listener(settings: SidecarSettings, name: str, port: int) -> Json:
    return {
        "name": name,
        "address": socket_address(settings.address, port),
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
    }


def _proof(settings: SidecarSettings) -> Json:
    """Return the listener that answers who comes through TLS with this certificate, at a socket without a file.

    Envoy listens also with a certificate that it cannot use, and then ends every connection: a probe of the plain port
    is sent here, through TLS, and fails then.
    """
    tls = extension(
        TLS_SOCKET,
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        require_client_certificate=False,
        common_tls_context={
            "tls_certificate_sds_secret_configs": [_secret(settings, CERTIFICATE)],
            "validation_context_sds_secret_config": _secret(settings, CLIENT_CA),
        },
    )
    routes = [{"match": {"path": PROOF_PATH}, "direct_response": {"status": 200}}]
    chain = {"filters": [_manager(_PROOF, routes)], "transport_socket": tls}
    return {"name": _PROOF, "address": _proof_address(settings), "filter_chains": [chain]}


def _proof_cluster(settings: SidecarSettings) -> Json:
    kind = "extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    server = {"endpoint": {"address": _proof_address(settings)}}
    return {
        "name": _PROOF,
        "type": "STATIC",
        "connect_timeout": "1s",
        # It asks itself; a kept connection would prove the certificate of before.
        "typed_extension_protocol_options": protocol_options(
            "http", common_http_protocol_options={"max_requests_per_connection": 1}
        ),
        "transport_socket": extension(TLS_SOCKET, kind, common_tls_context={}),
        "load_assignment": {"cluster_name": _PROOF, "endpoints": [{"lb_endpoints": [server]}]},
    }


def _proof_address(settings: SidecarSettings) -> Json:
    return {"pipe": {"path": f"@segserve-{settings.address}-{settings.http[0]}"}}


def _secret(settings: SidecarSettings, name: str) -> Json:
    return {"name": name, "sds_config": watched_file(settings.secrets / f"{name}.json")}


def _cluster(name: str, port: int) -> Json:
    server = {"endpoint": {"address": socket_address(LOOPBACK, port)}}
    limits = {"max_connections": 8192, "max_pending_requests": 8192, "max_requests": 8192}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [server]}]},
    }
