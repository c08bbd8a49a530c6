"""Renders the gateway's part of mutual TLS with servers: its certificate, and the name that each server has to show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from segserve_operator.adapters.traffic.envoy_clusters import EnvoyCluster, Protocol, Upstream
from segserve_operator.adapters.traffic.envoy_extensions import TLS_SOCKET, extension
from segserve_operator.adapters.traffic.envoy_files import ConfigurationRejectedError
from segserve_operator.adapters.traffic.envoy_messages import CLUSTER, SOCKET_MATCH, Json, encode, parse, parse_json
from segserve_operator.adapters.traffic.envoy_tls import CERTIFICATE, CLIENT_CA, TlsFiles, watched_secret
from segserve_operator.core.traffic import Endpoint

SERVERS: Final = "servers"
"""Key of a gateway's report for what is wrong with the certificate that it shows to servers."""
TLS_VERSION: Final = {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}
"""Both ends are ours, so nothing older is needed; as a client Envoy speaks it only where that is said."""
_IDENTITY: Final = "identity"
_APPLICATIONS: Final[Mapping[Protocol, str]] = {"http": "http/1.1", "grpc": "h2"}


def with_server_tls(
    clusters: dict[str, EnvoyCluster], servers: Iterable[Endpoint], files: TlsFiles | None
) -> dict[str, EnvoyCluster]:
    """Return the clusters with TLS to those servers that have an identity, and in plain text to the others.

    `files` have the gateway's certificate and the authorities of servers. Raises `ConfigurationRejectedError` if there
    are none and a server needs them: it is never asked in plain text.
    """
    named = {(at.host, port): at.identity for at in servers if at.identity for port in (at.http_port, at.grpc_port)}
    if not named:
        return clusters
    if files is None:
        raise ConfigurationRejectedError("servers of the plan want TLS, for which this gateway has no certificate")
    return {name: EnvoyCluster(_secured(each.content, named, files), each.usable) for name, each in clusters.items()}


def validation(identity: str, authorities: Json) -> Json:
    """Return the check of the other side's certificate: its authorities, from a watched file, and the name in it."""
    kind = "URI" if "://" in identity else "DNS"
    names = [{"san_type": kind, "matcher": {"exact": identity}}]
    return {
        "default_validation_context": {"match_typed_subject_alt_names": names},
        "validation_context_sds_secret_config": authorities,
    }


def _secured(content: bytes, named: Mapping[tuple[str, int], str], files: TlsFiles) -> bytes:
    cluster = parse(CLUSTER, content)
    protocol, found = Upstream.parse(cluster.name).protocol, set()
    for locality in cluster.load_assignment.endpoints:
        for server in locality.lb_endpoints:
            address = server.endpoint.address.socket_address
            identity = named.get((address.address, address.port_value))
            if identity is not None:
                server.metadata.filter_metadata["envoy.transport_socket_match"].update({_IDENTITY: identity})
                found.add(identity)
    for identity in sorted(found):
        cluster.transport_socket_matches.add().ParseFromString(_socket(identity, protocol, files))
    return encode(cluster)


@lru_cache(maxsize=256)
def _socket(identity: str, protocol: Protocol, files: TlsFiles) -> bytes:
    socket = extension(
        TLS_SOCKET,
        "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        common_tls_context={
            "tls_params": TLS_VERSION,
            "alpn_protocols": [_APPLICATIONS[protocol]],
            "tls_certificate_sds_secret_configs": [watched_secret(CERTIFICATE, files.certificate)],
            "combined_validation_context": validation(identity, watched_secret(CLIENT_CA, files.client_ca)),
        },
    )
    return encode(
        parse_json(SOCKET_MATCH, {"name": identity, "match": {_IDENTITY: identity}, "transport_socket": socket})
    )
