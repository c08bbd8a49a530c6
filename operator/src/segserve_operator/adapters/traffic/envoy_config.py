"""Renders what Envoy is started with: the listener, and the files that clusters and routes come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from segserve_operator.adapters.traffic.envoy_clusters import TYPES
from segserve_operator.adapters.traffic.envoy_listener import render_listener

if TYPE_CHECKING:
    from segserve_operator.adapters.traffic.envoy_clusters import Json
    from segserve_operator.adapters.traffic.envoy_listener import Gateway

_HEAP_BYTES: Final = 2 * 2**30
_CONNECTIONS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Sources:
    """Absolute paths: the files that Envoy watches, each in a folder of its own, and its admin socket."""

    admin_socket: str
    clusters: str
    routes: str


def render_bootstrap(gateway: Gateway, sources: Sources) -> Json:
    """Return Envoy's bootstrap configuration."""
    return {
        "node": {"id": "gateway", "cluster": "segserve"},
        "admin": {"address": {"pipe": {"path": sources.admin_socket, "mode": 0o600}}},
        # A model's some hundred statistics take memory once it is asked, not before.
        "deferred_stat_options": {"enable_deferred_creation_stats": True},
        "dynamic_resources": {"cds_config": _watched(sources.clusters)},
        "static_resources": {"listeners": [render_listener(gateway, _watched(sources.routes))]},
        "overload_manager": _overload_manager(),
    }


def _watched(path: str) -> Json:
    folder = path.rpartition("/")[0]
    source = {"path": path, "watched_directory": {"path": folder}}
    return {"resource_api_version": "V3", "path_config_source": source}


def _overload_manager() -> Json:
    """Refuse requests (503) before memory is short, and connections before descriptors are."""
    heap, connections = (
        "envoy.resource_monitors.fixed_heap",
        "envoy.resource_monitors.global_downstream_max_connections",
    )
    resources = f"{TYPES}.extensions.resource_monitors"
    monitors = {
        heap: {"@type": f"{resources}.fixed_heap.v3.FixedHeapConfig", "max_heap_size_bytes": _HEAP_BYTES},
        connections: {
            "@type": f"{resources}.downstream_connections.v3.DownstreamConnectionsConfig",
            "max_active_downstream_connections": _CONNECTIONS,
        },
    }
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [{"name": name, "typed_config": config} for name, config in monitors.items()],
        "actions": [
            {
                "name": "envoy.overload_actions.stop_accepting_requests",
                "triggers": [{"name": heap, "threshold": {"value": 0.95}}],
            }
        ],
    }
