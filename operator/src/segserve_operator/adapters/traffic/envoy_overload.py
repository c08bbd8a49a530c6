"""Renders what Envoy does before memory or file descriptors run out."""

from __future__ import annotations

from typing import Final

from segserve_operator.adapters.traffic.envoy_clusters import TYPES
from segserve_operator.adapters.traffic.envoy_extensions import extension
from segserve_operator.adapters.traffic.envoy_messages import Json

_HEAP: Final = "envoy.resource_monitors.fixed_heap"
MAX_CONNECTIONS: Final = 10_000
"""Connections of all callers together; beyond it a new one is closed at once. Envoy has no limit for each address."""
_MONITORS: Final = "extensions.resource_monitors"
# The memory of a request is counted from 2**20 bytes on: smaller ones are not what fills a gateway.
_COUNTED_FROM_POWER: Final = 20


def render_overload_manager(heap_bytes: int) -> Json:
    """Return the actions on the way to `heap_bytes` of memory, and the largest number of connections.

    From 80 % on callers are waited for less and less, from 85 % on the requests that hold the most memory are reset,
    the largest first, and from 95 % on new ones are rejected (503).
    """
    return {
        "refresh_interval": "0.25s",
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": _COUNTED_FROM_POWER},
        "resource_monitors": [
            extension(_HEAP, f"{_MONITORS}.fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=heap_bytes),
            extension(
                "envoy.resource_monitors.global_downstream_max_connections",
                f"{_MONITORS}.downstream_connections.v3.DownstreamConnectionsConfig",
                max_active_downstream_connections=MAX_CONNECTIONS,
            ),
        ],
        "actions": [
            {
                **_heap_action("reduce_timeouts", {"scaled": {"scaling_threshold": 0.8, "saturation_threshold": 0.95}}),
                "typed_config": {
                    "@type": f"{TYPES}.config.overload.v3.ScaleTimersOverloadActionConfig",
                    "timer_scale_factors": [
                        {"timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE", "min_timeout": "1s"},
                        {"timer": "HTTP_DOWNSTREAM_STREAM_IDLE", "min_timeout": "10s"},
                    ],
                },
            },
            _heap_action(
                "reset_high_memory_stream", {"scaled": {"scaling_threshold": 0.85, "saturation_threshold": 0.95}}
            ),
            _heap_action("stop_accepting_requests", {"threshold": {"value": 0.95}}),
        ],
    }


def _heap_action(name: str, trigger: Json) -> Json:
    """Return an action on the share of the heap that is used; `trigger` says from which one on."""
    return {"name": f"envoy.overload_actions.{name}", "triggers": [{"name": _HEAP, **trigger}]}
